"""MEGA: gated attention with one head, over moving averages of the tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from lra_tasks.model.mixers import MixerSpec
from lra_tasks.model.operations import SlowParam, exponential_kernel, long_convolution


class MegaMixer(nnx.Module):
    """The gated attention of MEGA, over exponential moving averages in both directions.

        e_t = Σ_{s ≤ t} κ_{t-s} x_s + Σ_{s ≥ t} κ'_{s-t} x_s,   κ_τ = Σ_j p_j β_j η_j (1 - p_j α_j)^τ / √M
        x' = silu(e + ω ⊙ x),   z = silu(W_z x'),   q = γ ⊙ z + b,   k = γ' ⊙ z + b',   v = silu(W_v x)
        o = f(q, k) v,   f = softmax(q kᵀ / √Z + bias),   or (1 + erf((q kᵀ / n + bias - μ) / (σ √2))) / 2
        h = silu(W_h x' + W_o (silu(W_r x') ⊙ o)),   u = σ(W_u x'),   out = u ⊙ (h - x)

    p, α, β and η have M numbers per feature and direction, and p and α are between 0 and 1. q, k are
    (B, T, Z) and v is (B, T, E). bias_ts = ⟨R_t a, R_s b⟩ with rotations R depends on t - s alone. The second
    f is the Laplace function for pictures, with μ = √(1/2), σ = 1/√(4π), and n real tokens. Source: Ma et al.
    2023, "Mega: Moving Average Equipped Gated Attention", with the code of its authors for both directions.

    Differences: Z = Q / 4, E = Q / 2 and M = 4 are smaller than theirs, 16 for M, and projections have no
    biases. The positions are those that the authors call rotary; their models for the arena learn 2T - 1
    numbers instead. The encoder adds the residual, so the gate mixes h with the normalized x.

    Cost: O(T²) time and memory, O(T log T) and O(T) with `chunk`. Parameters: 2D² + D (3E + Z + 8M + 1) and
    few more, which is about 4DQ for Q = D. For Q = D / 2 the gates alone have 4DQ: with the preset `arena` of
    Pathfinder the model has 30 % more parameters than that with softmax, against the rule of the arena.

    Args:
      spec: Sizes from the model; there is one head whatever `num_heads` is.
      rngs: Streams of random keys; `params` is used.
      laplace: Whether f is the Laplace function.
      chunk: Tokens attend only within chunks of this number of tokens; None for all tokens.
      modes: Number M of moving averages per feature and direction.

    Raises:
      ValueError: If `chunk` or `modes` is less than 1.
    """

    def __init__(
        self,
        spec: MixerSpec,
        *,
        rngs: nnx.Rngs,
        laplace: bool = False,
        chunk: int | None = None,
        modes: int = 4,
    ) -> None:
        for name, number in (("chunk", chunk), ("modes", modes)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1; got {number}.")
        width, inner = spec.width, max(1, spec.qkv_features // 2)
        features = 2 * max(1, spec.qkv_features // 8)  # even, for rotations
        self.laplace, self.chunk = laplace, chunk
        small = nnx.initializers.normal(0.02)
        linear = functools.partial(nnx.Linear, use_bias=False, kernel_init=small, dtype=spec.dtype, rngs=rngs)
        self.shared, self.value = linear(width, features), linear(width, inner)
        self.reset, self.attended = linear(width, inner), linear(inner, width)
        self.update, self.candidate = linear(width, width), linear(width, width)

        def normal(scale: float, *shape: int) -> Float[Array, "..."]:
            return scale * jax.random.normal(rngs.params(), shape)

        # Moving averages, with two directions first.
        averages = (2, width, modes)
        self.damping, self.decay = SlowParam(normal(0.2, *averages)), SlowParam(normal(0.2, *averages))
        self.expansion = nnx.Param(normal(0.02, *averages) + (-1.0) ** jnp.arange(modes))
        self.projection = nnx.Param(normal(1.0, *averages))
        self.skip = nnx.Param(normal(1.0, width))

        # Queries and keys, and their positions.
        self.scale = nnx.Param(normal(0.02, 2, features))
        self.bias = nnx.Param(jnp.zeros((2, features)))
        self.positions = nnx.Param(normal(0.02, 2, features))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        del deterministic, rngs  # no dropout inside
        averaged = long_convolution(x, self._kernel(x.shape[1]), mask)
        averaged = nnx.silu(averaged + self.skip[...] * x).astype(x.dtype)
        value = nnx.silu(self.value(x))
        attended = self._attend(nnx.silu(self.shared(averaged)), value, mask).astype(x.dtype)
        gated = self.attended(nnx.silu(self.reset(averaged)) * attended)
        candidate = nnx.silu(self.candidate(averaged) + gated)
        return nnx.sigmoid(self.update(averaged)) * (candidate - x)

    def _kernel(self, length: int) -> Float[Array, "D L"]:
        damping, decay = nnx.sigmoid(self.damping()), nnx.sigmoid(self.decay())
        weight = damping * self.expansion[...] * self.projection[...] / damping.shape[-1] ** 0.5
        log_base = jnp.log1p(-jnp.minimum(damping * decay, 1 - 1e-6))
        forward, backward = exponential_kernel(weight, log_base, length)
        both = forward[:, :1] + backward[:, :1]
        return jnp.concatenate([jnp.flip(backward[:, 1:], axis=-1), both, forward[:, 1:]], axis=-1)

    def _attend(
        self, shared: Float[Array, "B T Z"], value: Float[Array, "B T E"], mask: Bool[Array, "B T"]
    ) -> Float[Array, "B T E"]:
        length = mask.shape[1]
        chunk = min(self.chunk or length, length)

        def split(x: Array) -> Array:
            """Splits tokens into chunks: (B, T, …) becomes (B, J, C, …)."""
            x = jnp.pad(x, ((0, 0), (0, -length % chunk)) + ((0, 0),) * (x.ndim - 2))
            return x.reshape(x.shape[0], -1, chunk, *x.shape[2:])

        seen = split(mask)[:, :, None]
        value = split(jnp.where(mask[..., None], value, 0).astype(jnp.float32))
        shared = split(shared.astype(jnp.float32))
        query, key = (
            shared * scale + bias for scale, bias in zip(self.scale[...], self.bias[...], strict=True)
        )
        left, right = (rotated(position, chunk) for position in self.positions[...])
        scores, bias = query @ key.mT, left @ right.T
        if self.laplace:
            scores = scores / jnp.maximum(jnp.sum(seen, axis=-1, keepdims=True), 1) + bias
            weights = (1 + jax.scipy.special.erf((scores - np.sqrt(0.5)) * np.sqrt(2 * np.pi))) / 2
        else:
            scores = scores * shared.shape[-1] ** -0.5 + bias
            weights = nnx.softmax(jnp.where(seen, scores, jnp.finfo(jnp.float32).min))
        y = jnp.where(seen, weights, 0.0) @ value
        return y.reshape(y.shape[0], -1, y.shape[-1])[:, :length]


def rotated(x: Float[Array, " Z"], length: int) -> Float[Array, "{length} Z"]:
    """Rotates a vector by every position t: its pairs (i, i + Z / 2) turn by t · 10000^(-2i / Z)."""
    half = x.shape[0] // 2
    angles = jnp.arange(length)[:, None] * 10000.0 ** (-jnp.arange(half) / half)
    (a, b), cos, sin = jnp.split(x, 2), jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
