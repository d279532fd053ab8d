"""Softmax attention estimated from landmarks: the Nyström method."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.mixers.attention import AttentionMixer
from lra_tasks.model.mixers.checks import check_odd, check_positive
from lra_tasks.model.operations import long_convolution

ITERATIONS = 6  # of the pseudo-inverse, as in the authors' code


class NystromMixer(AttentionMixer):
    """Multi-head attention through M landmarks, in time O(T · M · N·H + M³ · N).

    Per head, Y = σ(Q K̃ᵀ) σ(Q̃ K̃ᵀ)⁺ σ(Q̃ Kᵀ) V + κ ∗ V, where σ is the softmax over the last axis after a
    division by √H, and the last factor sums over real tokens. Row j of Q̃ and of K̃, (M, H), is the mean of
    segment j of the n real tokens; token t belongs to segment ⌊t · min(M, n) / n⌋, and the landmarks from
    min(M, n) are left out. κ is a kernel over T per head. The parameters are 4·D·N·H + kernel·N.

    Source: Xiong et al. 2021, Nyströmformer, with the convolution of the authors' code for the arena. That
    code lays segments over padding too, and starts the iteration for ⁺ from a maximum over the whole batch,
    so that examples change each other. Here both belong to the example.

    Options:
      landmarks: Number M of landmarks.
      kernel: Number of taps of κ, odd.
    """

    def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs, landmarks: int = 64, kernel: int = 35) -> None:
        check_positive(landmarks=landmarks)
        check_odd(kernel=kernel)
        super().__init__(spec, rngs=rngs)
        self.landmarks = landmarks
        init = nnx.initializers.normal(kernel**-0.5)
        self.kernel = nnx.Param(init(rngs.params(), (kernel, spec.num_heads), jnp.float32))

    def mix(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T N H"],
        value: Float[Array, "B T N H"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B T N H"]:
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
        filled = jnp.arange(self.landmarks) < jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        means = _segment_means(mask, self.landmarks)
        queries, keys = (jnp.einsum("btm,btnh->bmnh", means, x) for x in (query, key))

        read = jax.nn.dot_product_attention(
            queries, key, value, mask=mask[:, None, None], implementation="xla"
        )
        between = jnp.where(
            filled[:, None, :, None], _weights(queries, keys, filled), jnp.eye(self.landmarks)
        )
        read = jnp.einsum("bnml,blnh->bmnh", pseudo_inverse(between), read)
        mixed = jnp.einsum("bntm,bmnh->btnh", _weights(query, keys, filled), read)

        taps = jnp.repeat(self.kernel[::-1].T, value.shape[-1], axis=0)
        return mixed + long_convolution(value.reshape(*mask.shape, -1), taps, mask).reshape(value.shape)


def _segment_means(mask: Bool[Array, "B T"], landmarks: int) -> Float[Array, "B T M"]:
    """Returns the matrix that maps tokens to the means of their segments; unused segments have zeros."""
    number = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    segment = (jnp.cumsum(mask, axis=1) - 1) * jnp.minimum(number, landmarks) // number
    belongs = jnp.where(mask[..., None], jax.nn.one_hot(segment, landmarks), 0.0)
    return belongs / jnp.maximum(jnp.sum(belongs, axis=1, keepdims=True), 1.0)


def _weights(
    query: Float[Array, "B T N H"], key: Float[Array, "B M N H"], filled: Bool[Array, "B M"]
) -> Float[Array, "B N T M"]:
    """Returns the softmax over the landmarks in use."""
    scores = jnp.einsum("btnh,bmnh->bntm", query, key) / jnp.sqrt(query.shape[-1])
    return jax.nn.softmax(jnp.where(filled[:, None, None], scores, -jnp.inf), axis=-1)


def pseudo_inverse(matrix: Float[Array, "*B M M"]) -> Float[Array, "*B M M"]:
    """Returns an estimate of the Moore-Penrose inverse of each matrix, by six steps of third order."""
    identity = jnp.eye(matrix.shape[-1])
    size = jnp.abs(matrix)
    norms = jnp.max(jnp.sum(size, axis=-1), axis=-1) * jnp.max(jnp.sum(size, axis=-2), axis=-1)
    inverse = jnp.swapaxes(matrix, -1, -2) / norms[..., None, None]
    for _ in range(ITERATIONS):
        product = matrix @ inverse
        inner = 15 * identity - product @ (7 * identity - product)
        inverse = inverse @ (13 * identity - product @ inner) / 4
    return inverse
