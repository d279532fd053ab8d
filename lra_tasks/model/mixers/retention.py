"""Retention: linear attention with weights that decay with the distance, in both directions."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.operations import SlowParam, decayed_linear_attention

EPSILON = 1e-6  # far below the weight of a token for itself, which is never 0


class RetentionMixer(nnx.Module):
    """LION-D, or LION-S with the option `selective`: linear attention with one decay per head.

        y_t = Σ_s M_ts ⟨φ(q_t), φ(k_s)⟩ v_s / Σ_s M_ts ⟨φ(q_t), φ(k_s)⟩,   φ(x) = f / ‖f‖,  f = silu(x) + 1/2
        M_ts = a_{s+1} ⋯ a_t for s ≤ t,   a_t ⋯ a_{s-1} for s > t
        a_t = σ(c),   or σ(c + W x_t) with `selective`

    q, k, v are (B, T, N, H), and c has N numbers. At the start σ(c) is the decay of RetNet, 1 - 1/32 to
    1 - 1/512 over the heads. Sources: Afzal et al. 2025, "Linear Attention for Efficient Bidirectional
    Sequence Modeling", for both forms; Sun et al. 2023, "Retentive Network", for decays per head. RetNet is
    causal, and normalizes heads where LION divides by the sum of the weights. The best results of LION have
    decays per feature, which are not offered here.

    Cost: O(T) time and memory. Parameters: 4DQ + N as softmax and N more; `selective` adds DN.

    Args:
      spec: Sizes from the model.
      rngs: Streams of random keys; `params` is used.
      selective: Whether the decay depends on the token.
    """

    def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs, selective: bool = False) -> None:
        heads = (spec.num_heads, spec.qkv_features // spec.num_heads)
        linear = functools.partial(nnx.LinearGeneral, use_bias=False, dtype=spec.dtype, rngs=rngs)
        self.query, self.key, self.value = (linear(spec.width, heads) for _ in range(3))
        self.out = linear(heads, spec.width, axis=(-2, -1))
        horizon = jnp.geomspace(32.0, 512.0, spec.num_heads)
        self.decay = SlowParam(jnp.log(horizon - 1))  # σ of it is 1 - 1 / horizon
        self.selection = (
            linear(spec.width, spec.num_heads, kernel_init=nnx.initializers.normal(0.1))
            if selective
            else None
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
        query, key = features(self.query(x)), features(self.key(x))
        value = self.value(x).astype(jnp.float32)
        value = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)  # ones add up to weights
        decay = self.decay()
        if self.selection is not None:
            decay = decay + self.selection(x).astype(jnp.float32)
        y = decayed_linear_attention(query, key, value, jax.nn.log_sigmoid(decay), mask)
        y = y[..., :-1] / jnp.maximum(y[..., -1:], EPSILON)
        return self.out(y.astype(x.dtype))


def features(x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    """Returns positive features of norm 1 in float32: f / ‖f‖ with f = silu(x) + 1/2."""
    f = nnx.silu(x.astype(jnp.float32)) + 0.5
    return f / jnp.linalg.norm(f, axis=-1, keepdims=True)
