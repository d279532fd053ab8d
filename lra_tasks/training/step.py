"""The compiled side of a run: the model, its optimiser, one training step, one evaluation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from lra_tasks.config import Config
from lra_tasks.data.batches import Batch, evaluation_batches
from lra_tasks.errors import UsageError
from lra_tasks.model.encoder import Block, Classifier
from lra_tasks.progress import Progress
from lra_tasks.tasks import Examples, Task
from lra_tasks.training.optimizer import make_optimizer

PADDING_TOLERANCE = 0.01  # of the largest number that a mixer returns


class State(NamedTuple):
    """What a step changes: the step's number (), the parameters, the optimiser's moments."""

    step: Int[Array, ""]
    params: Any
    moments: Any


class Program:
    """The compiled side of a run: the model, its optimiser, one training step, one evaluation.

    It runs on the devices of all processes, each of which reads the rows of a batch that its own devices get.

    Args:
      config: the run.
      task: the task's record.

    Attributes:
      rows: the rows of every batch for the devices of this process, ascending; with one process, all.

    Raises:
      UsageError: if the devices cannot share the batch, or the mixer is unknown or keeps state.
    """

    def __init__(self, config: Config, task: Task) -> None:
        devices = jax.device_count()
        if config.batch_size % devices:
            raise UsageError(
                f"--batch-size must be a multiple of the {devices} devices; got {config.batch_size}."
            )
        self._params_key, self._dropout_key = jax.random.split(jax.random.key(config.seed))
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
        self._sharded = NamedSharding(mesh, PartitionSpec("data"))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        shares = self._sharded.addressable_devices_indices_map((config.batch_size,)).values()
        self.rows = np.unique([np.arange(config.batch_size)[share] for share in shares])
        self._config = config
        self._task = task
        graph, _, rest = nnx.split(nnx.eval_shape(self._model), nnx.Param, ...)
        if jax.tree.leaves(rest):
            kept = ", ".join("/".join(map(str, path)) for path, _ in nnx.to_flat_state(rest))
            raise UsageError(
                f"The mixer '{config.mixer}' keeps state other than nnx.Param ({kept}). Take randomness from"
                " the `rngs` of the call, and make what is learned an nnx.Param."
            )
        self._graph = graph
        self._evaluations: dict[int, jax.stages.Compiled] = {}
        self._optimizer = make_optimizer(config.optimizer, config.num_steps)

    def _model(self) -> Classifier:
        config, task = self._config, self._task
        return Classifier(
            config,
            vocab_size=task.vocab_size,
            num_classes=task.num_classes,
            num_inputs=task.num_inputs,
            # "dropout" for mixers that would keep the stream: they are told not to, see __init__.
            rngs=nnx.Rngs(params=self._params_key, dropout=self._dropout_key),
        )

    def init(self) -> State:
        """Returns the state before the first step, on all devices."""

        def build() -> State:
            params = nnx.state(self._model(), nnx.Param)
            return State(jnp.zeros((), jnp.int32), params, self._optimizer.init(params))

        return jax.jit(build, out_shardings=self._replicated)()

    def shard(self, batch: Batch) -> Batch:
        """Puts the rows of a batch on the devices of this process; those of all processes are the batch."""
        rows = {name: values for name, values in batch.items() if name != "index"}
        shapes = {name: (self._config.batch_size, *values.shape[1:]) for name, values in rows.items()}
        return jax.make_array_from_process_local_data(self._sharded, rows, shapes)

    def compile(self, state: State) -> jax.stages.Compiled:
        """Returns the compiled training step: (state, batch) → (state, (loss, correct, gradient norm))."""
        step = jax.jit(self._train_batch, donate_argnums=0)
        return step.lower(state, self._abstract_batch(self._config.length)).compile()

    def compile_evaluation(self, params: Any, length: int | None = None) -> jax.stages.Compiled:
        """Returns the compiled evaluation: (params, batch) → (weight of correct, sum of losses); kept."""
        length = self._config.length if length is None else length
        if length not in self._evaluations:
            batch = self._abstract_batch(length)
            batch["weight"] = jax.ShapeDtypeStruct(
                (self._config.batch_size,), jnp.float32, sharding=self._sharded
            )
            self._evaluations[length] = jax.jit(self._evaluate_batch).lower(params, batch).compile()
        return self._evaluations[length]

    def check(self) -> None:
        """Traces a training step without compiling it: what a mixer does wrong shows within seconds.

        Raises:
          UsageError: if the mixer returns a wrong shape.
        """
        jax.eval_shape(
            self._train_batch, jax.eval_shape(self.init), self._abstract_batch(self._config.length)
        )

    def reads_padding(self) -> bool:
        """Whether what stands in padding changes what the mixer makes of real tokens, which it should not.

        Measured before any training, with random numbers added to the initial parameters, of which some may
        be zeros: on one random sequence whose second half is padding, once with random numbers there and once
        with one and the same large vector everywhere. Pictures are never padded: False.
        """
        if self._config.mixer == "none" or self._task.is_image:
            return False

        def difference(key: Array) -> Array:
            streams = nnx.Rngs(params=self._params_key, dropout=self._dropout_key)
            block = Block(self._config, rngs=streams)
            keys = nnx.Rngs(jax.random.fold_in(key, 1))
            for _, parameter in nnx.iter_graph(block):
                if isinstance(parameter, nnx.Param):
                    noise = jax.random.normal(keys(), parameter.shape, parameter.dtype)
                    parameter[...] = parameter[...] + 0.05 * noise
            shape = (1, block.length, self._config.model.width)
            x = jax.random.normal(key, shape, jnp.dtype(self._config.model.dtype))
            other = 4.0 * jax.random.normal(jax.random.fold_in(key, 2), shape[-1:], x.dtype)
            mask = jnp.arange(block.length)[None] < (block.length + 1) // 2
            results = (
                jnp.where(mask[..., None], block.mixer(given, mask, deterministic=True, rngs=None), 0.0)
                for given in (x, jnp.where(mask[..., None], x, other))
            )
            one, two = (result.astype(jnp.float32) for result in results)
            return jnp.max(jnp.abs(one - two)) / jnp.maximum(
                jnp.max(jnp.abs(one)), jnp.finfo(jnp.float32).tiny
            )

        return not float(jax.jit(difference)(jax.random.key(0))) <= PADDING_TOLERANCE  # NaN is no proof

    def _abstract_batch(self, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        rows = self._config.batch_size
        inputs = (rows, length) if self._task.num_inputs == 1 else (rows, 2, length)
        shapes = {
            "tokens": (inputs, jnp.int32),
            "mask": (inputs, jnp.bool_),
            "label": ((rows,), jnp.int32),
        }
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharded)
            for name, (shape, dtype) in shapes.items()
        }

    def _train_batch(self, state: State, batch: dict[str, Array]) -> tuple[State, tuple[Array, Array, Array]]:
        key = jax.random.fold_in(self._dropout_key, state.step)

        def mean_loss(params: Any) -> tuple[Array, Array]:
            model = nnx.merge(self._graph, params)
            rngs = nnx.Rngs(dropout=key)
            logits = model(batch["tokens"], batch["mask"], deterministic=False, rngs=rngs)
            targets = optax.smooth_labels(
                jax.nn.one_hot(batch["label"], logits.shape[-1]), self._config.label_smoothing
            )
            return jnp.mean(optax.softmax_cross_entropy(logits, targets)), _num_correct(logits, batch)

        (loss, correct), gradients = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, moments = self._optimizer.update(gradients, state.moments, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, moments), (loss, correct, optax.tree.norm(gradients))

    def _evaluate_batch(self, params: Any, batch: dict[str, Array]) -> tuple[Array, Array]:
        logits = nnx.merge(self._graph, params)(batch["tokens"], batch["mask"], deterministic=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = _num_correct(logits, batch, weight=batch["weight"])
        return correct, jnp.sum(losses * batch["weight"])

    def evaluate(
        self,
        params: Any,
        source: Examples,
        limit: int | None,
        progress: Progress,
        message: str,
        *,
        length: int | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> tuple[float, float]:
        """Returns accuracy in percent and mean loss over the first `limit` examples (None: all).

        `between` is called before every batch; what it raises ends the evaluation.
        """
        length = self._config.length if length is None else length
        size = self._config.batch_size
        total = len(source) if limit is None else min(limit, len(source))
        correct = loss = weight = 0.0
        batches = evaluation_batches(source, length=length, batch_size=size, limit=limit, rows=self.rows)
        for batch in batches:
            between()
            progress.show(message, round(weight), total)
            evaluation = self.compile_evaluation(params, length)
            batch_correct, batch_loss = jax.device_get(evaluation(params, self.shard(batch)))
            correct, loss = correct + float(batch_correct), loss + float(batch_loss)
            weight += float((batch["index"] >= 0).sum())
        return 100.0 * correct / weight, loss / weight


def _num_correct(logits: Array, batch: dict[str, Array], weight: Array | float = 1.0) -> Array:
    return jnp.sum((jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32) * weight)
