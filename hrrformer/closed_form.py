"""HRR attention over a whole sequence, with its derivatives in closed form."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hrrformer import passes
from hrrformer.arguments import Given
from hrrformer.passes import Options, Passes


def attend(options: Options, given: Given) -> tuple[Array, Array]:
    """Output (*B, T, N, H) and weights (*B, N, T), by the closed form."""
    segments = passes.num_segments(given.query.shape[-3], given.query.shape[-1])
    tokens = _varying_alike(given.query, given.key, given.value)
    results: Any = _attend(
        options,
        *(passes.cut(x, -3, segments) for x in tokens),  # type: ignore[arg-type]
        None if given.valid is None else passes.cut(given.valid, -1, segments),
        None if given.temperature is None else given.temperature[..., None],
    )
    out, weights = results
    return passes.join(out, -4), passes.join(jnp.moveaxis(weights, -3, -2), -2)


def _varying_alike(*arrays: Array) -> list[Array]:
    """Lets all arrays vary over the axes of an enclosing `jax.shard_map` over which any of them does.

    Their cotangents are made together, and this sums them over the devices where an array is the same on all.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    missing = [tuple(frozenset().union(*varying) - axes) for axes in varying]
    return [
        jax.lax.pcast(x, axes, to="varying") if axes else x for x, axes in zip(arrays, missing, strict=True)
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    options: Options,
    query: Array,
    key: Array,
    value: Array,
    valid: Bool[Array, "*#B P L"] | None,
    temperature: Array | None,
) -> tuple[Float[Array, "*B P L N H"], Float[Array, "*B P N L"]]:
    """Output and weights; query, key and value are (*B, P, L, N, H), see `hrrformer.passes`."""
    results, _ = _forward(options, query, key, value, valid, temperature)
    return results


def _forward(
    options: Options,
    query: Array,
    key: Array,
    value: Array,
    valid: Array | None,
    temperature: Array | None,
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    """Output and weights, and what the backward needs: the inputs, the memory and the scores."""
    run = _passes(options, query, valid)
    memory, peak = _normalise(_sum_over_devices(run.superpose(key, value), options.axis_name))
    scores, out = run.scores(query, value, memory, unbound=options.output == "unbound")
    weights = _softmax(options, scores, valid, temperature)
    if out is None:
        out = (jnp.swapaxes(weights, -1, -2)[..., None] * value.astype(weights.dtype)).astype(value.dtype)
    return (out, weights), (query, key, value, valid, temperature, memory, peak, scores)


def _backward(
    options: Options, kept: tuple[Any, ...], bars: tuple[Array, Array]
) -> tuple[Array, Array, Array, None, Array | None]:
    query, key, value, valid, temperature, memory, peak, scores = kept
    out_bar, weights_bar = bars
    run = _passes(options, query, valid)
    weights, pull = jax.vjp(lambda a, tau: _softmax(options, a, valid, tau), scores, temperature)
    weighted = options.output == "weighted"
    if weighted:
        weights_bar = weights_bar + jnp.swapaxes(passes.inner(out_bar, value), -1, -2)
    scores_bar, temperature_bar = pull(weights_bar)
    query_bar, value_bar, memory_bar = run.pull_scores(
        query, value, memory, scores, scores_bar, weights if weighted else None, out_bar
    )
    # No cosine sees the memory's length, so what it was divided by counts as a constant.
    memory_bar = _sum_over_devices(memory_bar, options.axis_name) / peak
    key_bar, value_bar = run.pull_superposition(key, value, memory_bar, value_bar)
    return query_bar, key_bar, value_bar, None, temperature_bar


_attend.defvjp(_forward, _backward)


def _passes(options: Options, query: Array, valid: Array | None) -> Passes:
    kind = Passes
    if options.implementation == "pallas":
        from hrrformer.experimental.pallas import (
            FusedPasses as kind,
        )  # takes a while to import, and not everyone needs it
    return kind(options, query.shape, query.dtype, valid)


def _sum_over_devices(x: Array, axis_name: Any) -> Array:
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def _normalise(memory: Float[Array, "*B 1 N H"]) -> tuple[Float[Array, "*B 1 N H"], Float[Array, "*B 1 N 1"]]:
    """Divides each head's memory by its largest entry, which no cosine sees: no overflow later."""
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(memory), axis=-1, keepdims=True))
    peak = jnp.where(peak >= jnp.finfo(peak.dtype).tiny, peak, 1.0)
    return memory / peak, peak


def _softmax(
    options: Options,
    scores: Float[Array, "*B P N L"],
    valid: Bool[Array, "*#B P L"] | None,
    temperature: Float[Array, "*#B 1 #N 1"] | None,
) -> Float[Array, "*B P N L"]:
    """Softmax over the valid tokens; 0 for the others, and for all where none is valid."""
    valid = None if valid is None else valid[..., None, :]
    over: dict[str, Any] = {"axis": (-3, -1), "keepdims": True}
    if temperature is not None:
        # At temperature 1 a score is at most 1 and needs no maximum subtracted; here it may be anything.
        shown = scores if valid is None else jnp.where(valid, scores, -1.0)
        peak = jax.lax.stop_gradient(jnp.max(shown, **over))
        if options.axis_name is not None:
            peak = jax.lax.pmax(peak, options.axis_name)
        scores = (scores - peak) / temperature
        # XLA may compute the same score twice, an ulp apart; divided by a tiny τ that would overflow.
        scores = scores - jax.lax.stop_gradient(jnp.maximum(scores, 0.0))
    if valid is None:
        exponentials = jnp.exp(scores)
    else:
        exponentials = jnp.where(valid, jnp.exp(jnp.where(valid, scores, 0.0)), 0.0)
    total = _sum_over_devices(jnp.sum(exponentials, **over), options.axis_name)
    weights = exponentials / jnp.where(total > 0.0, total, 1.0)
    if not options.rescale:
        return weights
    tokens = jnp.ones_like(scores[..., :1, :]) if valid is None else valid.astype(weights.dtype)
    return weights * _sum_over_devices(jnp.sum(tokens, **over), options.axis_name)
