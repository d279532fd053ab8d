"""A gated convolution over few neighbors: the control of locality."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.mixers.checks import check_odd
from lra_tasks.model.operations import long_convolution


class ConvMixer(nnx.Module):
    """A depthwise convolution between linear projections, in time O(T log T · Q).

    y = c W_o with c_t = Σ_i κ_i ⊙ u_{t + i - kernel // 2} and u_t = m_t (x_t W_v) ⊙ σ(x_t W_g), where m is
    the mask, zeros surround the sequence, κ is (kernel, Q), and Q = N·H. A token sees `kernel // 2` neighbors
    on each side in every block, and nothing else. The parameters are 3·D·Q + kernel·Q.

    Source: Wu et al. 2019, "Pay less attention with lightweight and dynamic convolutions", Figure 2b. The
    kernel is free and per channel, as in their DepthwiseConv; theirs is a softmax that 16 heads share. The
    kernel of 5 is that of the residual network of Miralles-González et al. 2025, "On the locality bias and
    results in the Long Range Arena".

    Options:
      kernel: Number of taps, odd.
    """

    def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs, kernel: int = 5) -> None:
        check_odd(kernel=kernel)
        features = spec.qkv_features
        linear = functools.partial(nnx.Linear, use_bias=False, dtype=spec.dtype, rngs=rngs)
        self.value, self.gate = (linear(spec.width, features) for _ in range(2))
        self.out = linear(features, spec.width)
        scale = nnx.initializers.normal(kernel**-0.5)
        self.kernel = nnx.Param(scale(rngs.params(), (kernel, features), jnp.float32))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        del deterministic, rngs  # no dropout inside
        gated = self.value(x) * jax.nn.sigmoid(self.gate(x))
        return self.out(long_convolution(gated, self.kernel[::-1].T, mask))
