"""The holographic memory: each token retrieves values of other tokens, by content and distance."""

from typing import Literal

from flax import nnx
from jaxtyping import Array, Bool, Float

from hrrformer.nnx import HRRMemory
from lra_tasks.model.mixers import MixerSpec


class HolographicMixer(nnx.Module):
    """`hrrformer.nnx.HRRMemory` without biases, with horizons up to the length of the sequences: O(T log T).

    It knows the order of tokens, so a model can do without other positions. Dropout does not apply inside.

    The gate takes as many parameters as a fifth projection. So heads are 4/5 as large as those of the other
    mixers, to the nearest whole number, and all projections together have their parameters.

    Args:
      spec: Sizes from the model.
      rngs: Streams of random keys; `params` is used.
      num_poles, cue_scale, gate, implementation: As in `HRRMemory`.
    """

    def __init__(
        self,
        spec: MixerSpec,
        *,
        rngs: nnx.Rngs,
        num_poles: int = 8,
        cue_scale: float = 0.1,
        gate: bool = True,
        implementation: Literal["fft", "matmul"] | None = None,
    ) -> None:
        size = max(1, round(4 * spec.qkv_features / ((4 + gate) * spec.num_heads)))
        self.memory = HRRMemory(
            spec.num_heads,
            spec.width,
            spec.num_heads * size,
            horizon=max(spec.length, 3),
            num_poles=num_poles,
            cue_scale=cue_scale,
            gate=gate,
            implementation=implementation,
            dtype=spec.dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        del deterministic, rngs  # no dropout inside
        return self.memory(x, mask=mask)
