"""Which part of a holographic memory makes it mix?

Question. HRR attention leaves values where they are, and `hrrformer.nnx.HRRMemory` moves them. Between the
two are unbinding, positions, and a decay per head or per coefficient. Beyond are more poles, a short
convolution and a gate. How much does each add, and does binding add anything once all others are there?

    python -m experiments.memory_ladder order                       every rung, with the preset "quick"
    python -m experiments.memory_ladder listops --rungs memory gate softmax
    python -m experiments.memory_ladder image --preset small --rates 1e-3 4e-3 --seeds 0 1 2

`LADDER` names the rungs. All further flags are those of `lra compare`, which trains them. The runs and the
report are in its folder.

Setting. Every rung is a mixer in the same encoder, with at most 10 % more parameters than softmax for a width
of 64, 4 heads and 2 layers. A gate, which is a fifth projection, narrows the heads to 4/5. Without binding
the projections of keys and queries go, and the heads get wider: twice, or 4/3 with a gate. `Rung` defines
the layers; without options it is `HRRMemory`, to the last bit.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from flax.nnx.nn.linear import default_kernel_init
from jaxtyping import Array, Bool, Float

from hrrformer import hrr_memory, unitary_projection
from hrrformer.adapter import EPSILON, SCALE, initial_log_rate, initial_phase
from lra_tasks.cli import main as lra
from lra_tasks.cli.exit_codes import exit_codes
from lra_tasks.errors import unknown_name
from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.mixers.checks import check_odd, check_positive
from lra_tasks.model.operations import long_convolution

ENDLESS = 1e-12  # nepers per token: a memory that does not fade within any sequence of the arena


class Rung(nnx.Module):
    """The layer `hrrformer.nnx.HRRMemory` without biases, each part of which is an option.

        q = δ + W_query x / √H,   k = δ + W_key x / √H,   v = W_value x
        o = W_out · concat_heads(silu(W_gate x) ⊙ gelu(norm(Σ_m hrr_memory_m(q, k, v) + skip · v)))

    Memory m has poles of its own: in a sum over tokens the weight of a pair at the distance τ is
    w_m gain exp((-rate_m + i phase_m) |τ|), with the gain √(1 - exp(-2 rate_m)). The real weights w (2, M, N,
    K) are learned, and 1/√M at the start; a single memory has none. Without decay the gain is 1/√T for
    sequences of up to T tokens, so that a sum of independent pairs has the same size.

    The head size H is such that all projections have 4·D·Q parameters as those of softmax, to the nearest
    whole number: Q / N for keys, queries and no gate.

    Cost: O(T·(log C + M)) time and O(T) memory, in blocks of C tokens.

    Args:
      spec: Sizes from the model.
      rngs: Streams of random keys; `params` is used.
      bind: Whether queries and keys depend on the tokens; otherwise both are δ, the identity of binding.
      position: Whether pairs turn with the distance; otherwise the phases are 0.
      decay: Rates per coefficient and side, or per head and side; "none" lets no pair fade.
      poles: Number M of memories.
      taps: Number of taps of a depthwise convolution of W_query x, W_key x and W_value x over the tokens,
        odd; 0 for none. Padding is not convolved.
      gate: Whether silu(W_gate x) multiplies the heads.
      norm: "unitary" projects q and k to vectors with coefficients of modulus 1.
      phases: Phases at the start: "turn", less than one turn until the pair has faded to 1/e; "lin", evenly
        from 0 to π per token over all coefficients, heads and memories.
      horizon: Longest time, in tokens, after which a pair has faded to 1/e at the start; None for the length.
      skip: Whether the token's own value is added.
      activation: "gelu" applies it to the normalized heads.
      kq_init: Factor of W_query and W_key at the start.
      implementation: As in `hrrformer.hrr_memory`.

    Raises:
      ValueError: If `poles` is less than 1, `taps` is even or negative, or `horizon` at most 2.
    """

    def __init__(
        self,
        spec: MixerSpec,
        *,
        rngs: nnx.Rngs,
        bind: bool = True,
        position: bool = True,
        decay: Literal["none", "head", "coefficient"] = "coefficient",
        poles: int = 1,
        taps: int = 0,
        gate: bool = False,
        norm: Literal["none", "unitary"] = "none",
        phases: Literal["turn", "lin"] = "turn",
        horizon: int | None = None,
        skip: bool = True,
        activation: Literal["none", "gelu"] = "none",
        kq_init: float = 1.0,
        implementation: Literal["fft", "matmul"] | None = None,
    ) -> None:
        check_positive(poles=poles)
        if taps:
            check_odd(taps=taps)
        projections = 2 + 2 * bind + gate
        size = max(1, round(4 * spec.qkv_features / (projections * spec.num_heads)))
        self.heads = heads = (spec.num_heads, size)
        self.poles, self.norm, self.activation = poles, norm, activation
        self.implementation: Literal["fft", "matmul"] | None = implementation
        self.length = spec.length

        # Projections. Streams of keys are used in the order of HRRMemory.
        linear = functools.partial(nnx.LinearGeneral, use_bias=False, dtype=spec.dtype, rngs=rngs)

        def scaled(*args: Any, **options: Any) -> Array:
            return kq_init * default_kernel_init(*args, **options)

        cue = functools.partial(linear, spec.width, heads, kernel_init=scaled)
        self.query, self.key = (cue(), cue()) if bind else (None, None)
        self.value = linear(spec.width, heads)
        self.out = linear(heads, spec.width, axis=(-2, -1))

        # Poles, stored flat as (M, 2, N, K), or (M, 2, N, 1) for a rate per head.
        rows, longest = poles * spec.num_heads, max(spec.length, 3) if horizon is None else horizon
        columns = 1 if decay == "head" else size
        log_rate = initial_log_rate(rngs.params(), rows, columns, longest, jnp.float32)
        self.log_rate = None if decay == "none" else nnx.Param(log_rate)
        each = jnp.broadcast_to(self._as_poles(log_rate), (poles, 2, spec.num_heads, size // 2 + 1))
        turning = initial_phase(rngs.params(), jnp.ravel(each))
        start = turning if phases == "turn" else linear_phases(each.shape)
        self.phase = nnx.Param(start) if position else None
        self.weight = nnx.Param(jnp.full(each.size, poles**-0.5)) if poles > 1 else None

        # Everything around the memory.
        self.skip = nnx.Param(jnp.ones(math.prod(heads))) if skip else None
        self.gate = linear(spec.width, heads) if gate else None
        features = (1 + 2 * bind) * math.prod(heads)
        normal = nnx.initializers.normal(max(taps, 1) ** -0.5)
        self.kernel = nnx.Param(normal(rngs.params(), (taps, features), jnp.float32)) if taps else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        del deterministic, rngs  # no dropout inside
        inputs = [project(x) for project in (self.query, self.key, self.value) if project is not None]
        if self.kernel is not None:
            joined = jnp.concatenate([each.reshape(*x.shape[:2], -1) for each in inputs], axis=-1)
            joined = long_convolution(joined, self.kernel[::-1].T, mask).astype(inputs[0].dtype)
            split = jnp.split(joined, len(inputs), axis=-1)
            inputs = [each.reshape(*x.shape[:2], *self.heads) for each in split]
        *cues, value = inputs
        value = jnp.where(mask[..., None, None], value, 0)
        query, key = cues or [jnp.zeros_like(value)] * 2
        mixed = self._retrieve(query, key, value, mask)
        if self.skip is not None:
            mixed = mixed + value.astype(mixed.dtype) * self.skip[...].reshape(self.heads)
        mixed = mixed * jax.lax.rsqrt(jnp.mean(jnp.square(mixed), axis=-1, keepdims=True) + EPSILON)
        if self.activation == "gelu":
            mixed = nnx.gelu(mixed)
        mixed = mixed.astype(value.dtype)
        if self.gate is not None:
            mixed = mixed * nnx.silu(self.gate(x))
        return self.out(mixed)

    def _retrieve(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T N H"],
        value: Float[Array, "B T N H"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B T N H"]:
        """Returns the sum over the memories, which are poles of one, in float32."""
        size = value.shape[-1]
        impulse = jnp.eye(1, size, dtype=value.dtype)
        query, key = (impulse + x / math.sqrt(size) for x in (query, key))
        if self.norm == "unitary":
            query, key = unitary_projection(query), unitary_projection(key)

        rate, phase, gain = (x[0] if self.poles == 1 else jnp.moveaxis(x, 0, -1) for x in self._poles())
        found = hrr_memory(
            query,
            key,
            value,
            rate=rate,
            phase=phase,
            gain=gain,
            mask=mask,
            implementation=self.implementation,
        )
        return found.astype(jnp.float32)

    def _poles(self) -> tuple[Float[Array, "M 2 N K"], Float[Array, "M 2 N K"], Float[Array, "M 2 N K"]]:
        """Returns rates, phases and gains."""
        shape = (self.poles, 2, self.heads[0], self.heads[1] // 2 + 1)
        if self.log_rate is None:
            rate, gain = jnp.full(shape, ENDLESS), jnp.full(shape, self.length**-0.5)
        else:
            rate = jnp.exp(SCALE * self._as_poles(self.log_rate[...]))
            gain = jnp.sqrt(-jnp.expm1(-2.0 * rate))
        if self.weight is not None:
            gain = gain * self._as_poles(self.weight[...])
        phase = 0.0 if self.phase is None else SCALE * self._as_poles(self.phase[...])
        rate, phase, gain = (jnp.broadcast_to(x, shape) for x in (rate, phase, gain))
        return rate, phase, gain

    def _as_poles(self, flat: Float[Array, " S"]) -> Float[Array, "M 2 N K"]:
        return flat.reshape(self.poles, 2, self.heads[0], -1)


def linear_phases(shape: Sequence[int]) -> Float[Array, " S"]:
    """Returns the stored phases of "lin", alike on both sides, for poles of the shape (M, 2, N, K).

    They are π i / (K·M·N) for i = 0 … K·M·N - 1; coefficient k begins with i = k·M·N.
    """
    memories, sides, heads, coefficients = shape
    number = coefficients * memories * heads
    phase = (math.pi / SCALE / number) * jnp.arange(number).reshape(coefficients, memories, 1, heads)
    return jnp.ravel(jnp.broadcast_to(jnp.moveaxis(phase, 0, -1), (memories, sides, heads, coefficients)))


def _rung(*options: str) -> str:
    return ":".join(["experiments.memory_ladder:Rung", *filter(None, [",".join(options)])])


EVERYTHING = ("poles=4", "taps=5", "gate=True")

LADDER = {
    # Without a memory.
    "none": "none",
    "conv5": "conv:kernel=5",
    "conv33": "conv:kernel=33",
    "softmax": "softmax",
    "rotary": "softmax:rotary=True",
    # HRR attention, which does not move values; then one memory for all tokens, and every part in turn.
    "hrr": "hrr",
    "hrr-rescaled": "hrr:rescale=True",
    "unbound": _rung("decay=none", "position=False"),
    "position": _rung("decay=none"),
    "head-decay": _rung("decay=head"),
    "memory": _rung(),
    # The memory with one part more, and with all of them.
    "poles": _rung("poles=4"),
    "taps": _rung("taps=5"),
    "gate": _rung("gate=True"),
    "taps-gate": _rung("taps=5", "gate=True"),
    "everything": _rung(*EVERYTHING),
    # Queries and keys δ, so without binding: diagonal state spaces.
    "memory-delta": _rung("bind=False"),
    "gate-delta": _rung("bind=False", "gate=True"),
    "taps-gate-delta": _rung("bind=False", "taps=5", "gate=True"),
    "everything-delta": _rung("bind=False", *EVERYTHING),
    # The memory with other starts, and other functions of what it finds.
    "unitary": _rung("norm=unitary"),
    "lin": _rung("phases=lin"),
    "small-cues": _rung("kq_init=0.1"),
    "no-skip": _rung("skip=False"),
    "gelu": _rung("activation=gelu"),
}


@dataclasses.dataclass
class Arguments:
    """Trains rungs of the ladder on one task, and prints their table. Other flags: `lra compare --help`."""

    task: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
    """Name of the task, see `lra list`, or your own as module:TASK."""
    rungs: tuple[str, ...] = tuple(LADDER)
    """Names of rungs, in the order of the table."""


def main() -> None:
    """Runs the command line."""
    with exit_codes():
        arguments, others = tyro.cli(
            Arguments, prog="python -m experiments.memory_ladder", return_unknown_args=True
        )
        for name in arguments.rungs:
            if name not in LADDER:
                raise unknown_name("rung", name, LADDER)
    mixers = [LADDER[name] for name in arguments.rungs]
    lra.main(["compare", arguments.task, "--mixers", *mixers, *others])


if __name__ == "__main__":
    main()
