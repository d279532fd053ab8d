"""Standard quadratic attention, through `jax.nn.dot_product_attention`."""

import functools

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers import MixerSpec


class SoftmaxMixer(nnx.Module):
    """Multi-head softmax attention over all real tokens: O(T²) time and memory.

    The projections are those of `HRRMixer`, without biases, so that both have the same number of parameters.
    Dropout does not apply to the weights, since `jax.nn.dot_product_attention` has none; the encoder applies
    it to the branch's output, as for every mixer. The XLA implementation runs on every platform; JAX does not
    choose the fused kernels of GPUs by itself.
    """

    def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs) -> None:
        heads = (spec.num_heads, spec.qkv_features // spec.num_heads)
        linear = functools.partial(nnx.LinearGeneral, use_bias=False, dtype=spec.dtype, rngs=rngs)
        self.query, self.key, self.value = (linear(spec.width, heads) for _ in range(3))
        self.out = linear(heads, spec.width, axis=(-2, -1))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        del deterministic, rngs  # no dropout inside
        mixed = jax.nn.dot_product_attention(
            self.query(x), self.key(x), self.value(x), mask=mask[:, None, None, :], implementation="xla"
        )
        return self.out(mixed)
