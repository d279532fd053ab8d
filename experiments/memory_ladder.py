"""Which part of a holographic memory makes it mix?

Question. HRR attention leaves values where they are, and `hrrformer.nnx.HRRMemory` moves them. Between the
two are unbinding, positions, and a decay per head or per coefficient. Beyond are more poles, a short
convolution and a gate. How much does each add, and does binding add anything once all others are there?

    python -m experiments.memory_ladder order                       every rung, with the preset "quick"
    python -m experiments.memory_ladder image --preset cpu --rungs decay poles memory memory-delta
    python -m experiments.memory_ladder image --preset small --rates 1e-3 4e-3 --seeds 0 1 2

`LADDER` names the rungs. All further flags are those of `lra compare`, which trains them. The runs and the
report are in its folder.

Setting. Every rung is a mixer in the same encoder, with at most 10 % more parameters than softmax for a width
of 64, 4 heads and 2 layers. An output gate has the parameters of a fifth projection, and so does an input
gate; without binding the projections of keys and queries go. Heads are as much narrower or wider, so that all
projections together keep their parameters. `Rung` defines the layers; without options it is the mixer
`holographic`, to the last bit.
"""

import dataclasses
import functools
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from jaxtyping import Array, Bool, Complex, Float

from hrrformer import hrr_memory, unitary_projection
from hrrformer.adapter import EPSILON, SCALE, initial_log_rate, initial_turn, initial_weight
from lra_tasks.cli import main as lra
from lra_tasks.cli.exit_codes import exit_codes
from lra_tasks.errors import unknown_name
from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.mixers.checks import check_odd, check_positive
from lra_tasks.model.operations import long_convolution

ENDLESS = 1e-12  # nepers per token: a memory that does not fade within any sequence of the arena


class Rung(nnx.Module):
    """The mixer `holographic`, each part of which is an option.

        q = δ + W_query x / √H,   k = δ + W_key x / √H,   v = W_value x
        h = norm(hrr_memory(q, k, v) + skip · v)
        o = a ⊙ σ(b),   [a, b] = W_out · concat_heads(gelu(h))

    The memory has M poles per coefficient: in a sum over tokens the weight of a pair at the distance τ is
    Σ_m w_m gain_m exp((-rate_m + i phase_m) |τ|), with the gain √(1 - exp(-2 rate_m)). The complex weights w
    are learned. Without decay the gain is 1/√T for sequences of up to T tokens, so that a sum of independent
    pairs has the same size.

    The head size H is such that all projections have 4·D·Q parameters as those of softmax, to the nearest
    whole number.

    Cost: O(T·(log C + M)) time and O(T) memory, in blocks of C tokens.

    Args:
      spec: Sizes from the model.
      rngs: Streams of random keys; `params` is used.
      bind: Whether queries and keys depend on the tokens; otherwise both are δ, the identity of binding.
      position: Whether pairs turn with the distance; otherwise the phases are 0.
      decay: Rates per coefficient, side and pole, or per head, side and pole; "none" lets no pair fade.
      poles: Number M of poles.
      taps: Number of taps of a depthwise convolution of W_query x, W_key x and W_value x over the tokens,
        odd; 0 for none. Padding is not convolved.
      gate: "output" gates the output as above; "none" has o = W_out · concat_heads(h); "input" is that with
        silu(W_gate x) ⊙ h in place of h.
      gelu: Whether gelu applies to the heads; None means with gate="output" only.
      norm: "heads" divides the vector of each head by its root mean square. "cues" also projects q and k to
        vectors with coefficients of modulus 1.
      horizon: Longest time, in tokens, after which a pair has faded to 1/e at the start; None for the length.
      skip: Whether the token's own value is added.
      cue_scale: Factor of W_query and W_key at the start.
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
        poles: int = 8,
        taps: int = 0,
        gate: Literal["none", "input", "output"] = "output",
        gelu: bool | None = None,
        norm: Literal["none", "heads", "cues"] = "heads",
        horizon: int | None = None,
        skip: bool = True,
        cue_scale: float = 0.1,
        implementation: Literal["fft", "matmul"] | None = None,
    ) -> None:
        check_positive(poles=poles)
        if taps:
            check_odd(taps=taps)
        projections = 2 + 2 * bind + (gate != "none")
        size = max(1, round(4 * spec.qkv_features / (projections * spec.num_heads)))
        self.heads = heads = (spec.num_heads, size)
        self.norm, self.gelu = norm, gate == "output" if gelu is None else gelu
        self.implementation: Literal["fft", "matmul"] | None = implementation
        self.length = spec.length

        # Projections. Streams of keys are used in the order of HRRMemory.
        linear = functools.partial(nnx.LinearGeneral, use_bias=False, dtype=spec.dtype, rngs=rngs)
        self.query, self.key = (
            (linear(spec.width, heads), linear(spec.width, heads)) if bind else (None, None)
        )
        for cue in filter(None, (self.query, self.key)):
            cue.kernel[...] *= cue_scale
        self.value = linear(spec.width, heads)
        self.gate_out = gate == "output"
        self.out = linear(heads, spec.width * (1 + self.gate_out), axis=(-2, -1))

        # Poles, stored flat as (2, N, K, M), or with K = 1 for rates per head.
        longest = max(spec.length, 3) if horizon is None else horizon
        log_rate = initial_log_rate(
            rngs.params(), spec.num_heads, 1 if decay == "head" else size, poles, longest, jnp.float32
        )
        shape = (2, spec.num_heads, size // 2 + 1, poles)
        each = jnp.ravel(jnp.broadcast_to(log_rate.reshape(2, spec.num_heads, -1, poles), shape))
        turn = initial_turn(rngs.params(), each, poles)
        self.shape = shape
        self.log_rate = None if decay == "none" else nnx.Param(log_rate)
        # Without decay a phase per token is stored; what it begins as is that of a fading pair.
        start = turn * jnp.exp(SCALE * each) if decay == "none" else turn
        self.turn = nnx.Param(start) if position else None
        self.weight = nnx.Param(initial_weight(rngs.params(), each, poles))

        # Everything around the memory.
        self.skip = nnx.Param(jnp.ones(math.prod(heads))) if skip else None
        self.gate_in = linear(spec.width, heads) if gate == "input" else None
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
        if self.norm != "none":
            mixed = mixed * jax.lax.rsqrt(jnp.mean(jnp.square(mixed), axis=-1, keepdims=True) + EPSILON)
        mixed = mixed.astype(value.dtype)
        if self.gelu:
            mixed = nnx.gelu(mixed)
        if self.gate_in is not None:
            mixed = mixed * nnx.silu(self.gate_in(x))
        return nnx.glu(self.out(mixed)) if self.gate_out else self.out(mixed)

    def _retrieve(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T N H"],
        value: Float[Array, "B T N H"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B T N H"]:
        """Returns the result of the memory in float32."""
        size = value.shape[-1]
        impulse = jnp.eye(1, size, dtype=value.dtype)
        query, key = (impulse + x / math.sqrt(size) for x in (query, key))
        if self.norm == "cues":
            query, key = unitary_projection(query), unitary_projection(key)
        rate, phase, gain = self._poles()
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

    def _poles(self) -> tuple[Float[Array, "2 N K M"], Float[Array, "2 N K M"], Complex[Array, "2 N K M"]]:
        """Returns rates, phases and gains."""
        *sides, _, poles = self.shape
        turn = jnp.zeros(self.shape) if self.turn is None else SCALE * self.turn[...].reshape(self.shape)
        if self.log_rate is None:
            rate, phase, size = jnp.full(self.shape, ENDLESS), turn, jnp.full(self.shape, self.length**-0.5)
        else:
            rate = jnp.exp(SCALE * self.log_rate[...]).reshape(*sides, -1, poles)
            rate = jnp.broadcast_to(rate, self.shape)
            phase, size = turn * rate, jnp.sqrt(-jnp.expm1(-2.0 * rate))
        parts = self.weight[...].reshape(*self.shape, 2) * size[..., None]
        return rate, phase, jax.lax.complex(parts[..., 0], parts[..., 1])


def _rung(*options: str) -> str:
    return ":".join(["experiments.memory_ladder:Rung", *filter(None, [",".join(options)])])


ONE = ("poles=1", "gate=none")  # a single pole and no gate
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
    "unbound": _rung("decay=none", "position=False", *ONE),
    "position": _rung("decay=none", "poles=8", "gate=none"),
    "head-decay": _rung("decay=head", *ONE),
    "decay": _rung(*ONE),
    "poles": _rung("gate=none"),
    "memory": _rung(),
    "taps": _rung("taps=5"),
    # Queries and keys δ, so without binding: diagonal state spaces. Wider heads have more poles each.
    "decay-delta": _rung("bind=False", *ONE),
    "poles-delta": _rung("bind=False", "gate=none", "poles=4"),
    "memory-delta": _rung("bind=False"),
    "taps-delta": _rung("bind=False", "taps=5"),
    # The memory without a part, or with another one.
    "one-pole": _rung("poles=1"),
    "gate-in": _rung("gate=input"),
    "no-gelu": _rung("gelu=False"),
    "no-norm": _rung("norm=none"),
    "unitary": _rung("norm=cues"),
    "large-cues": _rung("cue_scale=1.0"),
    "no-skip": _rung("skip=False"),
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
