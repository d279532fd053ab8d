"""Mamba-2: a state space with an input-dependent decay per head, in both directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.operations import SlowParam, decayed_linear_attention, long_convolution

TAPS = 5  # of the short convolution: an odd number


class Mamba2Mixer(nnx.Module):
    """The Mamba-2 block with its state space (SSD) read in both directions at once.

        [z, u, Δ] = W x,   [v, B, C] = silu(conv(u)),   Δ = softplus(Δ + b),   a = exp(-Δ exp(α))
        y_t = Σ_s M_ts ⟨C_t, B_s⟩ Δ_s v_s + d v_t,   M_ts = a_{s+1} ⋯ a_t for s ≤ t,   a_t ⋯ a_{s-1} for s > t
        out = W' RMSNorm(y ⊙ silu(z))

    z and v are (B, T, Q), in N heads of v with one a and Δ each; B and C are (B, T, S), common to all heads.
    conv is depthwise over five tokens and has a bias. Source: Dao & Gu 2024, "Transformers are SSMs". Mamba-2
    is causal, with Q = 2D and a convolution over the four last tokens. Here it is centered, one set of
    parameters serves both directions, and a token counts itself once. Its authors did not try the arena.

    Cost: O(T log T) time for conv, by FFT, and O(T) for the rest; O(T) memory. Parameters: 3DQ + 2SD and few
    more, which is 4DQ with the default S.

    Args:
      spec: Sizes from the model.
      rngs: Streams of random keys; `params` is used.
      state: Size S of B and C; the default is Q / 2, at most 128.

    Raises:
      ValueError: If `state` is less than 1.
    """

    def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs, state: int | None = None) -> None:
        inner, heads = spec.qkv_features, spec.num_heads
        state = min(128, max(1, inner // 2)) if state is None else state
        if state < 1:
            raise ValueError(f"state must be at least 1; got {state}.")
        self.splits = inner, inner + state
        linear = functools.partial(nnx.Linear, use_bias=False, dtype=spec.dtype, rngs=rngs)
        self.gate = linear(spec.width, inner)
        self.mixed = linear(spec.width, inner + 2 * state)
        self.step = linear(spec.width, heads)
        self.out = linear(inner, spec.width)
        features = inner + 2 * state
        # Not nnx.Conv: the gradient of its depthwise form is slow on CPU.
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (features, TAPS)) / TAPS**0.5)
        self.bias = nnx.Param(jnp.zeros(features))
        self.norm = nnx.RMSNorm(inner, dtype=spec.dtype, rngs=rngs)
        uniform = functools.partial(jax.random.uniform, shape=(heads,))
        steps = jnp.exp(uniform(rngs.params(), minval=np.log(1e-3), maxval=np.log(1e-1)))
        self.step_bias = SlowParam(jnp.log(jnp.expm1(steps)))  # softplus of it is the step
        self.log_rate = SlowParam(jnp.log(uniform(rngs.params(), minval=1.0, maxval=16.0)))
        self.skip = nnx.Param(jnp.ones(heads))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        del deterministic, rngs  # no dropout inside
        mixed = nnx.silu(long_convolution(self.mixed(x), self.kernel[...], mask) + self.bias[...])
        value, key, query = jnp.split(mixed, self.splits, axis=-1)
        step = nnx.softplus(self.step(x).astype(jnp.float32) + self.step_bias())  # (B, T, N)
        value = value.reshape(*step.shape, -1)
        key, query = (jnp.broadcast_to(a[:, :, None], (*step.shape, a.shape[-1])) for a in (key, query))
        y = decayed_linear_attention(
            query, key, step[..., None] * value, -step * jnp.exp(self.log_rate()), mask
        )
        y = y + self.skip[...][:, None] * value
        y = y.reshape(*x.shape[:2], -1).astype(x.dtype) * nnx.silu(self.gate(x))
        return self.out(self.norm(y))
