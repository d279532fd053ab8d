"""The holographic memory: each token retrieves values of other tokens, by content and distance."""

from typing import Literal

from flax import nnx
from jaxtyping import Array, Bool, Float

from hrrformer.nnx import HRRMemory
from lra_tasks.model.mixers import MixerSpec


class HolographicMixer(nnx.Module):
    """`hrrformer.nnx.HRRMemory` without biases, with horizons up to the length of the sequences: O(T log T).

    It knows the order of tokens, so a model can do without other positions. Dropout does not apply inside.
    """

    def __init__(
        self, spec: MixerSpec, *, rngs: nnx.Rngs, implementation: Literal["fft", "matmul"] | None = None
    ) -> None:
        self.memory = HRRMemory(
            spec.num_heads,
            spec.width,
            spec.qkv_features,
            horizon=max(spec.length, 3),
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
