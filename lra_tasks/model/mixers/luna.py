"""Nested attention: a short learned sequence reads all tokens, and all tokens read it."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.mixers.checks import check_positive


class LunaMixer(nnx.Module):
    """Multi-head attention through a memory of p vectors, in time O(T · p · N·H).

    Per head, pack: P' = softmax(P C'ᵀ / √H) C' over real tokens, with C' = x W_c. Unpack:
    y_t = softmax(q_t · C''ᵀ / √H) C'' with C'' = P' W_u, then W_o. As in the authors' code, keys and values
    are one projection. P is (p, N, H), W_u mixes the heads, (N·H, N·H), and the parameters are
    3·D·N·H + (N·H)² + p·N·H.

    Source: Ma et al. 2021, Luna, section 3.1. There the packed P' is the P of the next layer. A mixer
    sees its own layer only, so here every layer learns a P of its own, and the projection of P is a part of
    it. This is Luna without the carried memory.

    Options:
      memory: Number p of vectors. The paper has 16, 128 and 256; 16 keeps the arena's rule on parameters.
    """

    sequence_parallel = True

    def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs, memory: int = 16) -> None:
        check_positive(memory=memory)
        heads = (spec.num_heads, spec.qkv_features // spec.num_heads)
        linear = functools.partial(nnx.LinearGeneral, use_bias=False, dtype=spec.dtype, rngs=rngs)
        self.query, self.context = (linear(spec.width, heads) for _ in range(2))
        self.unpack = linear(heads, heads, axis=(-2, -1))
        self.out = linear(heads, spec.width, axis=(-2, -1))
        self.memory = nnx.Param(jax.random.normal(rngs.params(), (memory, *heads)))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        del deterministic, rngs  # no dropout inside
        attend = functools.partial(jax.nn.dot_product_attention, implementation="xla")
        memory = jnp.broadcast_to(self.memory[...], (len(x), *self.memory.shape))
        context = self.context(x).astype(jnp.float32)
        packed = self.unpack(attend(memory, context, context, mask=mask[:, None, None, :]))
        return self.out(attend(self.query(x), packed, packed))
