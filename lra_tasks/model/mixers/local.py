"""Softmax attention within a window around each token."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.mixers.attention import AttentionMixer
from lra_tasks.model.mixers.checks import check_positive, check_rotary
from lra_tasks.model.positions import rotate


class LocalMixer(AttentionMixer):
    """Multi-head softmax attention to the tokens at most `window` away, in time O(T · window · N·H).

    Per head, y_t = Σ_s a_ts v_s with a_ts ∝ m_s exp(q_t · k_s / √H) for |t - s| ≤ window, and 0 otherwise,
    where m is the mask. A real token always sees itself. Blocks of `window` queries meet the keys of their
    own block and of its two neighbors, so that no T × T array exists.

    Source: Beltagy et al. 2020, Longformer, section 3.1, without global tokens. The arena's local attention
    is another operation: each of its blocks has tokens at equal distances over the whole sequence, and its
    mask belongs to other tokens.

    Options:
      window: Number of visible tokens on each side.
      rotary: Whether to rotate queries and keys by their positions (Su et al. 2021).
    """

    def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs, window: int = 64, rotary: bool = False) -> None:
        check_positive(window=window)
        if rotary:
            check_rotary(spec)
        super().__init__(spec, rngs=rngs)
        self.window, self.rotary = window, rotary

    def mix(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T N H"],
        value: Float[Array, "B T N H"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B T N H"]:
        if self.rotary:
            query, key = rotate(query), rotate(key)
        size, shape = self.window, query.shape
        queries = _blocks(query, size)
        keys, values, seen = (_with_neighbors(_blocks(x, size)) for x in (key, value, mask))
        distance = jnp.arange(3 * size) - size - jnp.arange(size)[:, None]
        near = jnp.abs(distance) <= size  # (window, 3 · window)
        mixed = jax.nn.dot_product_attention(
            *(x.reshape(-1, *x.shape[2:]) for x in (queries, keys, values)),
            mask=(near & seen[:, :, None]).reshape(-1, 1, size, 3 * size),
            implementation="xla",
        )
        return mixed.reshape(shape[0], -1, *shape[2:])[:, : shape[1]]


def _blocks(x: Array, size: int) -> Array:
    """Splits T into blocks, the last one filled with zeros: (B, T, ...) → (B, blocks, size, ...)."""
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *((0, 0),) * (x.ndim - 2)))
    return padded.reshape(x.shape[0], -1, size, *x.shape[2:])


def _with_neighbors(blocks: Array) -> Array:
    """Returns each block between its neighbors: (B, blocks, size, ...) → (B, blocks, 3 · size, ...)."""
    around = jnp.pad(blocks, ((0, 0), (1, 1), *((0, 0),) * (blocks.ndim - 2)))
    return jnp.concatenate([around[:, :-2], blocks, around[:, 2:]], axis=2)
