"""Standard quadratic attention, by three implementations."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.mixers.attention import AttentionMixer
from lra_tasks.model.mixers.checks import check_rotary
from lra_tasks.model.positions import rotate


class SoftmaxMixer(AttentionMixer):
    """Multi-head softmax attention over all real tokens, in time O(T² · N·H).

    Per head, y_t = Σ_s m_s exp(q_t · k_s / √H) v_s / Σ_s m_s exp(q_t · k_s / √H), where m is the mask.

    Source: Vaswani et al. 2017, section 3.2.

    Options:
      rotary: Whether to rotate queries and keys by their positions (Su et al. 2021).
      implementation: "xla" holds all T × T weights in memory. "chunked" is exact, runs everywhere and holds
        the weights of 64 queries. "cudnn" is the fused kernel of NVIDIA's GPUs. It requires a model.dtype of
        bfloat16, and padding at the end.
    """

    def __init__(
        self,
        spec: MixerSpec,
        *,
        rngs: nnx.Rngs,
        rotary: bool = False,
        implementation: Literal["xla", "chunked", "cudnn"] = "xla",
    ) -> None:
        super().__init__(spec, rngs=rngs)
        self.rotary, self.implementation = rotary, implementation
        if rotary:
            check_rotary(spec)
        if implementation == "cudnn":
            _check_cudnn(spec)

    def mix(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T N H"],
        value: Float[Array, "B T N H"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B T N H"]:
        if self.rotary:
            query, key = rotate(query), rotate(key)
        if self.implementation == "chunked":
            return chunked_attention(query, key, value, mask)
        if self.implementation == "cudnn":
            lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
            return jax.nn.dot_product_attention(
                query, key, value, key_value_seq_lengths=jnp.maximum(lengths, 1), implementation="cudnn"
            )
        return _attention(query, key, value, mask)


def _attention(query: Array, key: Array, value: Array, mask: Array) -> Array:
    return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None, :], implementation="xla")


def chunked_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    mask: Bool[Array, "B T"],
    *,
    block: int = 64,
) -> Float[Array, "B T N H"]:
    """Returns softmax attention, computed for `block` queries at a time, also in the backward pass.

    It holds block · T weights per head instead of T². On two CPU cores blocks of 32 to 128 queries are faster
    than "xla" at T = 2,000.
    """
    batch, length, *heads = query.shape
    padded = jnp.pad(query, ((0, 0), (0, -length % block), (0, 0), (0, 0)))
    blocks = padded.reshape(batch, -1, block, *heads).swapaxes(0, 1)
    attend = jax.checkpoint(lambda queries: _attention(queries, key, value, mask))
    return jax.lax.map(attend, blocks).swapaxes(0, 1).reshape(batch, -1, *heads)[:, :length]


def _check_cudnn(spec: MixerSpec) -> None:
    """Refuses a device, dtype or head size for which cuDNN has no kernel."""
    device, size = jax.devices()[0].device_kind, spec.qkv_features // spec.num_heads
    if "NVIDIA" not in device:
        wrong = f"a GPU of NVIDIA; got the device '{device}'"
    elif spec.dtype != jnp.bfloat16:
        wrong = f"model.dtype bfloat16; got {jnp.dtype(spec.dtype)}"
    elif size % 8 or size > 128:
        wrong = f"a head size, qkv_features / num_heads, that is a multiple of 8 up to 128; got {size}"
    else:
        return
    raise ValueError(f"The implementation 'cudnn' needs {wrong}. Use 'chunked', which runs everywhere.")
