"""Softmax attention estimated by random features: FAVOR+."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.mixers.attention import AttentionMixer
from lra_tasks.model.mixers.checks import check_positive
from lra_tasks.model.mixers.linear import linear_attention

EPSILON = 1e-6  # the authors' stabilizer, relative to the largest feature


class PerformerMixer(AttentionMixer):
    """Multi-head attention with M positive random features, in time O(T · M · N·H).

    Per head, y_t = φ(q_t)ᵀ Σ_s m_s φ(k_s) v_sᵀ / φ(q_t)ᵀ Σ_s m_s φ(k_s), where m is the mask and
    φ_i(x) = exp(w_i · x' - |x'|²/2) with x' = x / H^(1/4). The w_i are normal vectors, orthogonal in blocks
    of H, so that φ(q)·φ(k) / M estimates exp(q · k / √H). A constant is subtracted before exp, per query and
    per row of keys, and 1e-6 is added after it. The constants and 1/M cancel.

    Source: Choromanski et al. 2021, Rethinking attention with Performers, sections 2.3 and 2.4. The authors
    draw new features every few thousand steps; here a layer keeps its draw. The arena's version has two
    features on ListOps, and elsewhere features relu(x) + 0.001 without a draw. It takes no mask.

    Options:
      features: Number M of random features; None means H ln H, as many as the paper suggests.
    """

    sequence_parallel = True

    def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs, features: int | None = None) -> None:
        super().__init__(spec, rngs=rngs)
        size = spec.qkv_features // spec.num_heads
        self.features = max(1, round(size * math.log(size))) if features is None else features
        check_positive(features=self.features)
        # A whole number that never changes: it has no gradient, and weight decay leaves out single axes.
        self.seed = nnx.Param(jax.random.randint(rngs.params(), (1,), 0, 2**24).astype(jnp.float32))

    def mix(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T N H"],
        value: Float[Array, "B T N H"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B T N H"]:
        seed = jax.lax.stop_gradient(self.seed[0]).astype(jnp.int32)
        directions = orthogonal_directions(jax.random.key(seed), self.features, query.shape[-1])
        real = mask[..., None, None]
        logs = jnp.where(real, _log_features(key, directions), -jnp.inf)
        largest = jnp.max(logs, axis=(1, 3), keepdims=True, initial=jnp.finfo(jnp.float32).min)
        of_key = jnp.where(real, jnp.exp(logs - jax.lax.stop_gradient(largest)) + EPSILON, 0.0)
        logs = _log_features(query, directions)
        largest = jnp.max(logs, axis=3, keepdims=True)
        of_query = jnp.exp(logs - jax.lax.stop_gradient(largest)) + EPSILON
        return linear_attention(of_query, of_key, value)


def _log_features(x: Float[Array, "B T N H"], directions: Float[Array, "M H"]) -> Float[Array, "B T N M"]:
    x = x.astype(jnp.float32) * x.shape[-1] ** -0.25
    return jnp.einsum("btnh,mh->btnm", x, directions) - jnp.sum(x * x, axis=-1, keepdims=True) / 2


def orthogonal_directions(key: Array, number: int, size: int) -> Float[Array, "M H"]:
    """Returns `number` vectors with the lengths of normal vectors, orthogonal within each `size` of them."""
    key, other = jax.random.split(key)
    blocks = jax.random.orthogonal(key, size, (-(-number // size),))
    lengths = jnp.linalg.norm(jax.random.normal(other, (number, size)), axis=1, keepdims=True)
    return blocks.reshape(-1, size)[:number] * lengths
