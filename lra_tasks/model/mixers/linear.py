"""Linear attention: the kernel of queries and keys is a product of positive features."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers.attention import AttentionMixer


class LinearMixer(AttentionMixer):
    """Multi-head linear attention over all real tokens, in time O(T · N·H²).

    Per head, y_t = φ(q_t)ᵀ S / φ(q_t)ᵀ z with S = Σ_s m_s φ(k_s) v_sᵀ (H, H) and z = Σ_s m_s φ(k_s) (H,).
    The features are φ(x) = elu(x) + 1, and m is the mask.

    Source: Katharopoulos et al. 2020, "Transformers are RNNs", sections 3.2 and 3.2.1. The arena's version
    takes no mask, so that padding enters both sums.
    """

    sequence_parallel = True

    def mix(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T N H"],
        value: Float[Array, "B T N H"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B T N H"]:
        query, key = (jax.nn.elu(x.astype(jnp.float32)) + 1 for x in (query, key))
        return linear_attention(query, jnp.where(mask[..., None, None], key, 0.0), value)


def linear_attention(
    query: Float[Array, "B T N M"], key: Float[Array, "B T N M"], value: Float[Array, "B T N H"]
) -> Float[Array, "B T N H"]:
    """Returns q_tᵀ (Σ_s k_s v_sᵀ) / q_tᵀ Σ_s k_s in float32, for features that are not negative.

    The features of padded keys are zeros. A denominator is at least 1e-12, so that a row of padding gives
    zeros.
    """
    memory = jnp.einsum("bsnm,bsnh->bnmh", key, value.astype(jnp.float32))
    weight = jnp.einsum("btnm,bnm->btn", query, jnp.sum(key, axis=1))[..., None]
    return jnp.einsum("btnm,bnmh->btnh", query, memory) / jnp.maximum(weight, 1e-12)
