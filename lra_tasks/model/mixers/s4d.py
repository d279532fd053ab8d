"""S4D: a diagonal state space per feature, as a convolution over the whole sequence."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.operations import SlowParam, exponential_kernel, long_convolution


class S4DMixer(nnx.Module):
    """The bidirectional S4D layer: every feature d is convolved with a sum of M = state / 2 decaying waves.

        κ_τ = 2 Re Σ_m C_m (exp(Δ λ_m) - 1) / λ_m · exp(τ Δ λ_m),   λ_m = -exp(ν_m) + i ω_m
        y_t = Σ_{s ≤ t} κ_{t-s} x_s + Σ_{s > t} κ'_{s-t-1} x_s + D x_t
        out = a ⊙ σ(b),   [a, b] = W gelu(y),   or W gelu(y) without the gate

    C (2, D, M) has one half for κ and one for κ'; λ is common to all features, and Δ and D are vectors of D
    numbers. Source: Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space
    Models", with the zero-order hold. Both directions and the gate are those of the authors' LRA models. Here
    there are no biases, and padding is not convolved, as it is there.

    Cost: O(T log T) time, O(T) memory. Parameters: 2D² + 2·state·D for C and the projection, and few more.
    As many states as softmax has parameters for, from 8 to 64, are the default; the authors use 64 on
    pictures and 4 on texts.

    Args:
      spec: Sizes from the model.
      rngs: Streams of random keys; `params` is used.
      state: Number of real states per feature, even; two of them are one complex mode.
      init: Frequencies ω at the start: "lin" πm, "inv" (state / π)(state / (2m + 1) - 1), or "legs" the
        eigenvalues of HiPPO-LegS.
      gate: Whether the output is gated.

    Raises:
      ValueError: If `state` is odd or less than 2.
    """

    def __init__(
        self,
        spec: MixerSpec,
        *,
        rngs: nnx.Rngs,
        state: int | None = None,
        init: Literal["lin", "inv", "legs"] = "lin",
        gate: bool = True,
    ) -> None:
        width = spec.width
        # C has 2·state·D numbers, and softmax and the projection have 4DQ and 2D².
        state = min(64, max(8, (2 * spec.qkv_features - width) // 2 * 2)) if state is None else state
        if state < 2 or state % 2:
            raise ValueError(f"state must be even and at least 2; got {state}.")
        uniform, normal = nnx.initializers.uniform(1.0), nnx.initializers.normal(1.0)
        low, high = np.log(1e-3), np.log(1e-1)
        self.log_step = SlowParam(low + (high - low) * uniform(rngs.params(), (width,)))
        self.log_decay = SlowParam(jnp.full(state // 2, np.log(0.5)))
        self.frequency = SlowParam(jnp.asarray(frequencies(init, state)))
        self.readout = nnx.Param(normal(rngs.params(), (2, width, state // 2, 2)) * 0.5**0.5)
        self.skip = nnx.Param(normal(rngs.params(), (width,)))
        self.gate = gate
        self.out = nnx.Linear(width, width * (1 + gate), use_bias=False, dtype=spec.dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        del deterministic, rngs  # no dropout inside
        eigenvalue = jax.lax.complex(-jnp.exp(self.log_decay()), self.frequency())
        log_base = jnp.exp(self.log_step())[:, None] * eigenvalue
        readout = jax.lax.complex(self.readout[..., 0], self.readout[..., 1])
        weight = 2 * readout * jnp.expm1(log_base) / eigenvalue
        forward, backward = exponential_kernel(weight, log_base, x.shape[1])
        kernel = jnp.concatenate([jnp.flip(backward[:, :-1], axis=-1), forward], axis=-1)
        y = long_convolution(x, kernel, mask) + self.skip[...] * x
        y = self.out(nnx.gelu(y).astype(x.dtype))
        return nnx.glu(y) if self.gate else y


def frequencies(init: str, state: int) -> np.ndarray:
    """Returns the frequencies ω at the start, float32 (state / 2,); see `S4DMixer`."""
    m = np.arange(state // 2)
    if init == "lin":
        found = np.pi * m
    elif init == "inv":
        found = state / np.pi * (state / (2 * m + 1) - 1)
    else:  # the normal part of LegS, -1/2 + a skew-symmetric matrix, has pairs of eigenvalues
        root = np.sqrt(2 * np.arange(state) + 1)
        skew = np.triu(np.outer(root, root), 1) / 2
        found = np.linalg.eigvalsh(1j * (skew - skew.T))[state // 2 :]
    return found.astype(np.float32)
