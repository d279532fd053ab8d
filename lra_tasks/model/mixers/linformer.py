"""Softmax attention to a few learned mixtures of all keys and values."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.mixers.attention import AttentionMixer
from lra_tasks.model.mixers.checks import check_positive


class LinformerMixer(AttentionMixer):
    """Multi-head softmax attention to `rank` projected keys and values, in time O(T · rank · N·H).

    Per head, y_t = softmax(q_t · K'ᵀ / √H) V' with K' = Σ_s m_s E_s k_sᵀ and V' = Σ_s m_s E_s v_sᵀ, both
    (rank, H). E, (length, rank), is learned, belongs to positions, and serves keys, values and all heads.

    Source: Wang et al. 2020, equation 7, with the key-value sharing of section 4. The arena's version, of
    rank 16 to 32, takes no mask.

    E has length · rank parameters on top of the 4·D·N·H of softmax. By default `rank` is at most 16, and
    small enough to keep the arena's rule of 10 %. Two presets have room for less than one row, and their
    models have more parameters: `quick` for ListOps 17 %, `arena` for Pathfinder 15 %. With rank 1 all tokens
    get the same vector.

    Options:
      rank: Number of projected keys and values; None means min(16, D·N·H / length), at least 1.
    """

    sequence_parallel = True

    def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs, rank: int | None = None) -> None:
        super().__init__(spec, rngs=rngs)
        if rank is None:
            rank = max(1, min(16, spec.width * spec.qkv_features // spec.length))
        check_positive(rank=rank)
        init = nnx.initializers.normal(spec.length**-0.5)
        self.projection = nnx.Param(init(rngs.params(), (spec.length, rank), jnp.float32))

    def mix(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T N H"],
        value: Float[Array, "B T N H"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B T N H"]:
        weights = jnp.where(mask[..., None], self.projection[: mask.shape[1]], 0.0)
        keys, values = (
            jnp.einsum("bsr,bsnh->brnh", weights, x.astype(jnp.float32)).astype(x.dtype) for x in (key, value)
        )
        return jax.nn.dot_product_attention(query, keys, values, implementation="xla")
