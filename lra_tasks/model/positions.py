"""Sines and cosines of positions: added to the embedding, or multiplied into queries and keys."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def sinusoidal_positions(length: int, width: int) -> np.ndarray:
    """Returns the position table of Vaswani et al. 2017, float32 (length, width).

    Sines fill the first half of the width and cosines the second, at frequencies 10000^(-2i/width).
    """
    frequencies = np.exp(-np.log(10000.0) * np.arange(0, width, 2) / width)
    angles = np.outer(np.arange(length), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)[:, :width].astype(np.float32)


def rotate(x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    """Rotates the pairs (x[i], x[i + H/2]) of token t by the angle t · 10000^(-2i/H).

    The product of a rotated query and a rotated key depends on their distance, not on their positions. H is
    even. The rotation is in float32, and the result has the dtype of `x`.

    Source: Su et al. 2021, RoFormer, section 3.2; the pairs are those of GPT-NeoX.
    """
    sine, cosine = jnp.split(jnp.asarray(sinusoidal_positions(x.shape[1], x.shape[3]))[:, None], 2, axis=-1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, first * sine + second * cosine], axis=-1)
    return turned.astype(x.dtype)
