"""HRR attention over whole sequences, with derivatives in closed form.

The formulas are those of `hrrformer.reference`. The forward pass keeps the inputs, the memory and the
scores; the backward pass computes every other array again.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hrrformer import passes
from hrrformer.passes import Passes
from hrrformer.variant import Variant


def attend(
    variant: Variant,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    valid: Bool[Array, "*#B T"] | None,
    temperature: Float[Array, "*#B 1 #N"] | None,
) -> tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"]]:
    """Computes output and weights; the arguments are those of `hrrformer.arguments.Given`."""
    segments = passes.num_segments(query)
    query, key, value = (passes.cut(x, -3, segments) for x in passes.varying_alike(query, key, value))
    results: Any = _attend(
        variant,
        query,
        key,
        value,
        None if valid is None else passes.cut(valid, -1, segments),
        None if temperature is None else temperature[..., None],
    )
    out, weights = results
    return passes.join(out, -4), passes.join(jnp.moveaxis(weights, -3, -2), -2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    variant: Variant,
    query: Array,
    key: Array,
    value: Array,
    valid: Bool[Array, "*#B P L"] | None,
    temperature: Array | None,
) -> tuple[Float[Array, "*B P L N H"], Float[Array, "*B P N L"]]:
    """Computes output and weights; query, key and value are (*B, P, L, N, H), see `hrrformer.passes`."""
    results, _ = _forward(variant, query, key, value, valid, temperature)
    return results


def _forward(
    variant: Variant,
    query: Array,
    key: Array,
    value: Array,
    valid: Array | None,
    temperature: Array | None,
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    """Computes output and weights, and the residuals of the backward pass."""
    run = _passes(variant, query, valid)
    memory, peak = _normalize(_sum_over_devices(run.superpose(key, value), variant.axis_name))
    scores, out = run.scores(query, value, memory, unbound=variant.output == "unbound")
    weights = _softmax(variant, scores, valid, temperature)
    if out is None:
        out = (jnp.swapaxes(weights, -1, -2)[..., None] * value.astype(weights.dtype)).astype(value.dtype)
    return (out, weights), (query, key, value, valid, temperature, memory, peak, scores)


def _backward(
    variant: Variant, kept: tuple[Any, ...], bars: tuple[Array, Array]
) -> tuple[Array, Array, Array, None, Array | None]:
    """Computes the cotangents of query, key, value, valid (None) and temperature."""
    query, key, value, valid, temperature, memory, peak, scores = kept
    out_bar, weights_bar = bars
    run = _passes(variant, query, valid)
    weights, pull = jax.vjp(lambda a, tau: _softmax(variant, a, valid, tau), scores, temperature)
    weighted = variant.output == "weighted"
    if weighted:
        weights_bar = weights_bar + jnp.swapaxes(passes.inner(out_bar, value), -1, -2)
    scores_bar, temperature_bar = pull(weights_bar)
    query_bar, value_bar, memory_bar = run.pull_scores(
        query, value, memory, scores, scores_bar, weights if weighted else None, out_bar
    )
    # A cosine does not depend on the memory's norm, so its divisor is a constant.
    memory_bar = _sum_over_devices(memory_bar, variant.axis_name) / peak
    key_bar, value_bar = run.pull_superposition(key, value, memory_bar, value_bar)
    return query_bar, key_bar, value_bar, None, temperature_bar


_attend.defvjp(_forward, _backward)


def _passes(variant: Variant, query: Array, valid: Array | None) -> Passes:
    kind = Passes
    if variant.implementation == "pallas":
        # Imported here: Pallas is slow to import and rarely needed.
        from hrrformer.experimental.pallas import FusedPasses as kind
    return kind(variant, query.shape, query.dtype, valid)


def _sum_over_devices(x: Array, axis_name: Any) -> Array:
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def _normalize(memory: Float[Array, "*B 1 N H"]) -> tuple[Float[Array, "*B 1 N H"], Float[Array, "*B 1 N 1"]]:
    """Divides each head's memory by its largest entry: no overflow later, and the same cosines."""
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(memory), axis=-1, keepdims=True))
    peak = jnp.where(peak >= jnp.finfo(peak.dtype).tiny, peak, 1.0)
    return memory / peak, peak


def _softmax(
    variant: Variant,
    scores: Float[Array, "*B P N L"],
    valid: Bool[Array, "*#B P L"] | None,
    temperature: Float[Array, "*#B 1 #N 1"] | None,
) -> Float[Array, "*B P N L"]:
    """Computes the softmax over the valid tokens; masked tokens get 0, and all if none is valid."""
    valid = None if valid is None else valid[..., None, :]
    over: dict[str, Any] = {"axis": (-3, -1), "keepdims": True}
    if temperature is not None:
        # A score is at most 1, so only a temperature requires the subtraction of the maximum.
        shown = scores if valid is None else jnp.where(valid, scores, -1.0)
        peak = jax.lax.stop_gradient(jnp.max(shown, **over))
        if variant.axis_name is not None:
            peak = jax.lax.pmax(peak, variant.axis_name)
        scores = (scores - peak) / temperature
        # XLA may compute one score twice, an ulp apart; divided by a tiny τ, the difference would overflow.
        scores = scores - jax.lax.stop_gradient(jnp.maximum(scores, 0.0))
    if valid is None:
        exponentials = jnp.exp(scores)
    else:
        exponentials = jnp.where(valid, jnp.exp(jnp.where(valid, scores, 0.0)), 0.0)
    total = _sum_over_devices(jnp.sum(exponentials, **over), variant.axis_name)
    weights = exponentials / jnp.where(total > 0.0, total, 1.0)
    if not variant.rescale:
        return weights
    tokens = jnp.ones_like(scores[..., :1, :]) if valid is None else valid.astype(weights.dtype)
    return weights * _sum_over_devices(jnp.sum(tokens, **over), variant.axis_name)
