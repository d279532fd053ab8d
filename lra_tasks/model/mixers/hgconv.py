"""HGConv: holographic global convolution, a convolution between bindings with learned roles."""

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from hrrformer import bind, hrr_normal, unbind, unit, unitary_projection
from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.operations import long_convolution


class HGConvMixer(nnx.Module):
    """Binds the features of tokens to a role, convolves over tokens, and unbinds another role.

        b_s = x_s ⊛ e,   y_t = gelu(Σ_s κ_{t-s} ⊙ b_s + w ⊙ b_t),   κ_τ for |τ| ≤ taps / 2
        out = a ⊙ σ(g),   [a, g] = W LayerNorm(u* ⊛ y_t),   u = the unitary projection of d

    ⊛ is circular convolution over the D features. The roles e and d and the weights w are vectors of D
    numbers; κ is (D, taps), scaled to norm 1 per feature. Source: Alam et al. 2024, "Holographic Global
    Convolutional Networks for Long-Range Prediction Tasks in Malware Detection", with the authors' code.

    In that code the convolution is circular, so the end of a padded sequence leaks into its start, and
    padding is convolved from the second layer on. Its unbinding inverts d exactly, which amplifies noise
    without limit. Here the convolution is linear and centered, padding is not convolved, and the inverse is
    that of the unitary projection of d. Roles have variance 1/D, so that binding keeps norms. The norm is a
    LayerNorm, as theirs on Image and Retrieval; elsewhere they use BatchNorm.

    Cost: O(T log T) time, O(T) memory. Parameters: 2D² + taps · D + 5D.

    Args:
      spec: Sizes from the model.
      rngs: Streams of random keys; `params` is used.
      taps: Number of tokens that a kernel covers, odd. The default is 63, or 7 where more would exceed the
        number of parameters of softmax. The authors use 7 on Text, 64 on ListOps and 128 on pictures.

    Raises:
      ValueError: If `taps` is even or less than 1.
    """

    def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs, taps: int | None = None) -> None:
        width = spec.width
        taps = (63 if 4 * spec.qkv_features - 2 * width > 63 else 7) if taps is None else taps
        if taps < 1 or taps % 2 == 0:
            raise ValueError(f"taps must be odd and at least 1; got {taps}.")
        normal = jax.random.normal
        self.role = nnx.Param(hrr_normal(rngs.params(), (width,)))
        self.cue = nnx.Param(hrr_normal(rngs.params(), (width,)))
        self.kernel = nnx.Param(normal(rngs.params(), (width, taps)))
        self.skip = nnx.Param(normal(rngs.params(), (width,)))
        self.norm = nnx.LayerNorm(width, dtype=spec.dtype, rngs=rngs)
        self.out = nnx.Linear(width, 2 * width, use_bias=False, dtype=spec.dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        del deterministic, rngs  # no dropout inside
        bound = bind(x, self.role[...])
        y = nnx.gelu(long_convolution(bound, unit(self.kernel[...]), mask) + self.skip[...] * bound)
        y = self.norm(unbind(y, unitary_projection(self.cue[...])))
        return nnx.glu(self.out(y))
