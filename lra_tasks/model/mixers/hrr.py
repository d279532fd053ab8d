"""HRR attention: the paper's layer, and its variants as options."""

from typing import Literal

from flax import nnx
from jaxtyping import Array, Bool, Float

from hrrformer.nnx import HRRAttention
from lra_tasks.model.mixers import MixerSpec


class HRRMixer(nnx.Module):
    """`hrrformer.nnx.HRRAttention`, by default as in the paper: no biases, weights that sum to 1.

    The options are arguments of `HRRAttention`: `hrr:rescale=True,temperature=0.5`.
    """

    sequence_parallel = True

    def __init__(
        self,
        spec: MixerSpec,
        *,
        rngs: nnx.Rngs,
        rescale: bool = False,
        temperature: float = 1.0,
        learn_temperature: bool = False,
        output: Literal["weighted", "unbound"] = "weighted",
        inverse: Literal["approximate", "exact"] = "approximate",
        implementation: Literal["fft", "matmul", "pallas", "reference"] | None = None,
        normalize_qk: bool = False,
        use_bias: bool = False,
    ) -> None:
        self.attention = HRRAttention(
            spec.num_heads,
            spec.width,
            spec.qkv_features,
            rescale=rescale,
            temperature=temperature,
            learn_temperature=learn_temperature,
            output=output,
            inverse=inverse,
            implementation=implementation,
            normalize_qk=normalize_qk,
            use_bias=use_bias,
            dropout_rate=spec.dropout_rate,
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
