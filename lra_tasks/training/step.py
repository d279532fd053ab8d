"""`Trainer`: model and optimizer on a mesh of devices, one training step and one evaluation step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from lra_tasks.config import Config
from lra_tasks.data.batches import Batch, padded_lengths
from lra_tasks.errors import UsageError
from lra_tasks.model.encoder import Classifier
from lra_tasks.task import Task
from lra_tasks.training.jax_settings import check_modes
from lra_tasks.training.mesh import check_mesh, make_mesh
from lra_tasks.training.optimizer import make_optimizer


class TrainState(NamedTuple):
    """The state that a step updates: the number of steps (), the parameters, the optimizer's state."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any


class Trainer:
    """A model, its optimizer, one training step and one evaluation step.

    It runs on the devices of all processes. Each process reads the rows of a batch that its devices need.

    Args:
      config: Configuration of the run.
      task: Task with a known number of classes.
      mesh: Sizes of the mesh's axes, as in `lra_tasks.training.mesh.make_mesh`; None shares the batch.

    Attributes:
      mesh: Mesh of all devices.
      rows: Rows of every batch for the devices of this process, ascending; with one process, all rows.

    Raises:
      UsageError: If the devices cannot share batch or sequence, the tokens are not the pixels that the model
        expects, or the mixer is unknown, does not take its options or keeps state; or in a mode of JAX that
        training does not support.
    """

    def __init__(self, config: Config, task: Task, mesh: Mapping[str, int] | str | None = None) -> None:
        check_modes()
        self.mesh = make_mesh(mesh)
        check_mesh(self.mesh, config)
        if config.settings.model.pixels == "value" and not task.is_image:
            raise UsageError(
                f"model.pixels must be 'embedding' for {task.name}, which has no pixels; got 'value'.",
                argument="model.pixels",
            )
        self._config = config
        self._settings = config.settings
        self._task = task
        self._params_key, self._dropout_key = jax.random.split(jax.random.key(config.seed))
        self._replicated = NamedSharding(self.mesh, PartitionSpec())
        self._by_row = NamedSharding(self.mesh, PartitionSpec("data"))
        inputs = ("data", "sequence") if task.num_inputs == 1 else ("data", None, "sequence")
        self._by_token = NamedSharding(self.mesh, PartitionSpec(*inputs))
        size = self._settings.batch_size
        shares = self._by_row.addressable_devices_indices_map((size,)).values()
        self.rows = np.unique([np.arange(size)[share] for share in shares])
        self._evaluations: dict[int, jax.stages.Compiled] = {}
        self._optimizer = make_optimizer(self._settings.optimizer, self._settings.num_steps)
        self._graph, _, rest = nnx.split(nnx.eval_shape(self.model), nnx.Param, ...)
        if jax.tree.leaves(rest):
            kept = ", ".join("/".join(map(str, path)) for path, _ in nnx.to_flat_state(rest))
            raise UsageError(
                f"The mixer '{config.mixer}' keeps state other than nnx.Param ({kept}). Take randomness from"
                " the `rngs` of the call, and make learned arrays nnx.Param."
            )

    def model(self, params: Any = None) -> Classifier:
        """Returns the model with initial parameters, or with the given ones."""
        if params is not None:
            return nnx.merge(self._graph, params)
        return Classifier(
            self._settings.model,
            self._config.mixer_name,
            length=self._settings.length,
            vocab_size=self._task.vocab_size,
            num_classes=self._task.num_classes,
            num_inputs=self._task.num_inputs,
            # "dropout" for mixers that would keep the stream, so that the error above can name it.
            rngs=nnx.Rngs(params=self._params_key, dropout=self._dropout_key),
        )

    def init(self) -> TrainState:
        """Returns the state before the first step, on all devices."""

        def build() -> TrainState:
            params = nnx.state(self.model(), nnx.Param)
            return TrainState(jnp.zeros((), jnp.int32), params, self._optimizer.init(params))

        return jax.jit(build, out_shardings=self._replicated)()

    def shard(self, batch: Batch) -> dict[str, Array]:
        """Puts this process's rows of a batch on its devices; the rows of all processes are the batch."""
        rows = {name: values for name, values in batch.items() if name != "index"}
        shapes = {name: (self._settings.batch_size, *values.shape[1:]) for name, values in rows.items()}
        shardings = {name: self._sharding(name) for name in rows}
        return jax.tree.map(jax.make_array_from_process_local_data, shardings, rows, shapes)

    def compile_training(self, state: TrainState, length: int | None = None) -> jax.stages.Compiled:
        """Returns the compiled step: (state, batch) → (state, (loss, correct predictions, gradient norm)).

        Args:
          state: The state, or its shapes.
          length: Length T of the batches; None means that of the settings.
        """
        length = self._settings.length if length is None else length
        # The state stays on all devices: by itself XLA shares learned positions like the sequence.
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._replicated), state
        )
        step = jax.jit(self._train_step, donate_argnums=0, out_shardings=self._replicated)
        return step.lower(state, self._abstract_batch(length)).compile()

    def compile_evaluation(self, params: Any, length: int | None = None) -> jax.stages.Compiled:
        """Returns the compiled evaluation: (params, batch) → (correct predictions, sum of losses); kept."""
        length = self._settings.length if length is None else length
        if length not in self._evaluations:
            batch = self._abstract_batch(length, weight=((self._settings.batch_size,), jnp.float32))
            self._evaluations[length] = jax.jit(self._eval_step).lower(params, batch).compile()
        return self._evaluations[length]

    def check(self) -> None:
        """Traces a training step per length without compiling it, which finds faults of a mixer in seconds.

        Raises:
          UsageError: If the mixer returns an array of the wrong shape.
        """
        state = jax.eval_shape(self.init)
        for length in padded_lengths(self._settings.length, self._settings.buckets):
            jax.eval_shape(self._train_step, state, self._abstract_batch(length))

    def _sharding(self, name: str) -> NamedSharding:
        return self._by_token if name in ("tokens", "mask") else self._by_row

    def _abstract_batch(self, length: int, **more: Any) -> dict[str, jax.ShapeDtypeStruct]:
        rows = self._settings.batch_size
        inputs = (rows, length) if self._task.num_inputs == 1 else (rows, 2, length)
        arrays = {"tokens": (inputs, jnp.int32), "mask": (inputs, jnp.bool_), "label": ((rows,), jnp.int32)}
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding(name))
            for name, (shape, dtype) in (arrays | more).items()
        }

    def _train_step(
        self, state: TrainState, batch: dict[str, Array]
    ) -> tuple[TrainState, tuple[Array, Array, Array]]:
        key = jax.random.fold_in(self._dropout_key, state.step)

        def mean_loss(params: Any) -> tuple[Array, Array]:
            rngs = nnx.Rngs(dropout=key)
            logits = self.model(params)(batch["tokens"], batch["mask"], deterministic=False, rngs=rngs)
            labels = jax.nn.one_hot(batch["label"], logits.shape[-1])
            targets = optax.smooth_labels(labels, self._settings.label_smoothing)
            return jnp.mean(optax.softmax_cross_entropy(logits, targets)), _correct(logits, batch)

        (loss, correct), gradients = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = self._optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        measured = loss, jnp.sum(correct), optax.tree.norm(gradients)
        return TrainState(state.step + 1, params, opt_state), measured

    def _eval_step(self, params: Any, batch: dict[str, Array]) -> tuple[Array, Array]:
        logits = self.model(params)(batch["tokens"], batch["mask"], deterministic=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return jnp.sum(_correct(logits, batch) * batch["weight"]), jnp.sum(losses * batch["weight"])


def _correct(logits: Array, batch: dict[str, Array]) -> Array:
    return (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
