"""Holographic attention: the paper's layer."""

from flax import nnx
from jaxtyping import Array, Bool, Float

from hrrformer.nnx import HRRAttention
from lra_tasks.model.mixers import MixerSpec


class HRRMixer(nnx.Module):
    """`hrrformer.nnx.HRRAttention` with the paper's defaults: no biases, weights that sum to 1."""

    def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs) -> None:
        self.attention = HRRAttention(
            spec.num_heads,
            spec.width,
            spec.qkv_features,
            dropout_rate=spec.dropout_rate,
            use_bias=False,
            dtype=spec.dtype,
            rngs=rngs,
            keep_rngs=False,
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        return self.attention(x, mask=mask, deterministic=deterministic, rngs=rngs)
