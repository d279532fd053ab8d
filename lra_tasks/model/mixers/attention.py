"""The frame of attention mixers: projections to queries, keys and values, and back."""

import functools

from flax import nnx
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers import MixerSpec


class AttentionMixer(nnx.Module):
    """y = mix(x W_q, x W_k, x W_v) W_o without biases: 4·D·N·H parameters, the number of `hrr`.

    A subclass defines `mix`, the function of queries, keys and values. Dropout does not apply inside; the
    encoder applies it to the branch's output, as for every mixer.
    """

    def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs) -> None:
        heads = (spec.num_heads, spec.qkv_features // spec.num_heads)
        linear = functools.partial(nnx.LinearGeneral, use_bias=False, dtype=spec.dtype, rngs=rngs)
        self.query, self.key, self.value = (linear(spec.width, heads) for _ in range(3))
        self.out = linear(heads, spec.width, axis=(-2, -1))

    def mix(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T N H"],
        value: Float[Array, "B T N H"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B T N H"]:
        """Combines the values of real tokens; the output of padding is free."""
        raise NotImplementedError

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        del deterministic, rngs  # no dropout inside
        return self.out(self.mix(self.query(x), self.key(x), self.value(x), mask))
