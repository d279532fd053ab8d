"""HRR attention as a function: what it computes, what it accepts, which implementation runs.

Letters in shapes, as in `jax.nn.dot_product_attention`: B batch (any number of leading axes, none
included), T length, N heads, H head size. K = H // 2 + 1 is the number of Fourier coefficients.
"""

import functools
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hrrformer import causal, passes, spectral
from hrrformer.causal import CausalState
from hrrformer.passes import Options, Passes
from hrrformer.spectral import accumulation_dtype

Implementation: TypeAlias = Literal["fft", "matmul", "pallas"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
INVERSES = ("approximate", "exact")
OUTPUTS = ("weighted", "unbound")
AxisName: TypeAlias = str | tuple[str, ...]


@overload
def hrr_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    *,
    mask: Bool[Array, "..."] | None = ...,
    inverse: Literal["approximate", "exact"] = ...,
    implementation: Implementation | None = ...,
    rescale: bool = ...,
    temperature: float | Float[Array, "..."] = ...,
    output: Literal["weighted", "unbound"] = ...,
    is_causal: bool = ...,
    return_weights: Literal[False] = ...,
    precision: jax.lax.PrecisionLike = ...,
    axis_name: AxisName | None = ...,
) -> Float[Array, "*B T N H"]: ...


@overload
def hrr_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    *,
    mask: Bool[Array, "..."] | None = ...,
    inverse: Literal["approximate", "exact"] = ...,
    implementation: Implementation | None = ...,
    rescale: bool = ...,
    temperature: float | Float[Array, "..."] = ...,
    output: Literal["weighted", "unbound"] = ...,
    is_causal: bool = ...,
    return_weights: Literal[True],
    precision: jax.lax.PrecisionLike = ...,
    axis_name: AxisName | None = ...,
) -> tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"]]: ...


def hrr_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    *,
    mask: Bool[Array, "..."] | None = None,
    inverse: Literal["approximate", "exact"] = "approximate",
    implementation: Implementation | None = None,
    rescale: bool = False,
    temperature: float | Float[Array, "..."] = 1.0,
    output: Literal["weighted", "unbound"] = "weighted",
    is_causal: bool = False,
    return_weights: bool = False,
    precision: jax.lax.PrecisionLike = None,
    axis_name: AxisName | None = None,
) -> Float[Array, "*B T N H"] | tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"]]:
    """Holographic self-attention, linear in the length of the sequence.

    For every head, with sums over the valid tokens (all of them without a mask; with `is_causal`, of those
    only the ones up to t):

        β   = Σ_t k_t ⊛ v_t                    binding, superposed: the sequence's memory, one H-vector
        v̂_t = q_t* ⊛ β                         unbinding (q_t⁻¹ ⊛ β with inverse="exact")
        a_t = cos(v_t, v̂_t)                    in [-1, 1]
        w_t = exp(a_t / τ) / Σ_s exp(a_s / τ)   (times the number of summed tokens with rescale=True)
        o_t = w_t v_t                          (v̂_t / rms(v̂_t) with output="unbound")

    ⊛ is circular convolution over H, * the involution. A token's output is its own value times one
    number that the whole sequence decides: no token receives another token's value unless
    output="unbound". Weights differ by at most a factor e^(2/τ).

    Args:
      query, key, value: (*B, T, N, H) with the same shape; float16, bfloat16, float32 or float64.
        Sums, spectra and scores are kept in float32 (float64 for float64 input).
      mask: boolean key-padding mask, True for valid tokens: (*B, T) or (*B, 1, 1, T), where an axis of B
        may be 1. It enters β, the softmax and the output: masked tokens, which must hold finite numbers
        of ordinary size, change nothing and get 0, and a sequence without a valid token gets 0
        everywhere. Gradients are finite in both cases.
      inverse: "approximate" is the involution of the authors' code; "exact" is the inverse of the
        paper's text, guarded where |F(q)| vanishes, see `hrrformer.inverse`.
      implementation: how β and v̂ are computed: "matmul" by products with H × H matrices, "fft" by real
        FFTs, "pallas" by fused kernels for GPU and TPU, untimed so far, see `hrrformer.pallas`. None picks
        one of the first two by H and platform.
      rescale: multiply the weights by the number of valid tokens, so that their mean is 1 and the
        output keeps the size of the values at every length. The paper's weights sum to 1.
      temperature: τ > 0; a number or an array that broadcasts to (*B, 1, N), such as (N,) for one a head.
      output: "weighted" is the paper's; "unbound" returns the unbound vectors, scaled to root mean
        square 1 (0 where v̂_t = 0); the weights do not enter it.
      is_causal: token t sums over tokens up to itself, in β and in the softmax: no output depends on a later
        token. Not with "pallas". For a sequence that comes in pieces see `hrr_attention_step`.
      return_weights: also return the weights w.
      precision: of the matrix products. None means full float32 products, except where 16-bit inputs are
        bound and unbound by "matmul" or "pallas": those take the platform's default. Norms and cosines are
        always of full precision.
      axis_name: inside `jax.shard_map`, the mesh axes that share out T: sums over tokens, of H + 1 numbers a
        head (H + 2 with a temperature), then go over these devices. None, under `jax.jit` too, where XLA
        does that by itself. Not with `is_causal`.

    Returns:
      The output o, (*B, T, N, H) in the dtype of `value`; with return_weights=True also the weights
      (*B, N, T) in float32 (float64 for float64 input).

    Raises:
      TypeError: for inputs that are not real floating point, or a mask that is not boolean.
      ValueError: for shapes that differ (cross-attention with another length included), a mask or temperature
        of any other shape, an unknown inverse, implementation or output, or `is_causal` with an axis name or
        "pallas". Each message says what came.

    Cost: O(T·H²) time by products, O(T·H log H) by FFT, and O(T·H) memory per head and sequence, to which
    products add a few H². For the gradient, q, k, v, β and the scores are kept, and cotangents are written
    over what they are made of.

    Derivatives are in closed form: reverse mode, and forward over reverse (`jax.hessian`) or reverse over
    reverse. Forward mode alone (`jax.jvp`, `jax.jacfwd`) is refused by JAX, but for `is_causal`.

    The weights depend on the scale of neither query, key nor value: norms and cosines are guarded relative to
    magnitude, β is normalised per head, and only the sums of k ⊛ v and of v̂ must lie within float32.

    Source: Alam et al., "Recasting Self-Attention with Holographic Reduced Representations", ICML 2023,
    equations 1 to 4. Differs from the authors' code in that the mask also enters β, that the cosine is
    guarded where it is singular, and that nothing is done to NaN gradients, since there are none. The causal
    form is ours.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 16))
    >>> mask = jnp.arange(5) < jnp.array([[5], [3]])
    >>> out, weights = hrr_attention(q, k, v, mask=mask, return_weights=True)
    >>> out.shape, weights.shape, weights.sum(-1).round(5).min().item()
    ((2, 5, 4, 16), (2, 4, 5), 1.0)
    """
    if is_causal and axis_name is not None:
        raise ValueError("axis_name must be None with is_causal=True: the past would be on other devices.")
    given = _check(query, key, value, mask, temperature, inverse, output)
    if is_causal and implementation == "pallas":
        raise ValueError("implementation must be None, 'fft' or 'matmul' with is_causal=True; got 'pallas'.")
    chosen = spectral.resolve_implementation(implementation, query.shape[-1], IMPLEMENTATIONS)
    options = Options(chosen, inverse, rescale, output, precision, axis_name)
    if is_causal:
        first, dtype = given.query[..., 0, :, :], accumulation_dtype(given.query.dtype)
        # Of no token yet; made from the query, to be laid over devices, or to vary over them, as it does.
        state = CausalState(
            memory=jnp.zeros_like(first, dtype=dtype),
            log_normalizer=jnp.zeros_like(jnp.sum(first, axis=-1), dtype=dtype),
            num_tokens=jnp.zeros_like(jnp.sum(first, axis=(-2, -1)), dtype=jnp.int32),
        )
        out, weights, _ = causal.attend(options, state, **given._asdict())
    else:
        out, weights = _attend_both_ways(options, given)
    out = out.astype(value.dtype)
    return (out, weights) if return_weights else out


def hrr_attention_step(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    state: CausalState,
    *,
    mask: Bool[Array, "..."] | None = None,
    inverse: Literal["approximate", "exact"] = "approximate",
    implementation: Literal["fft", "matmul"] | None = None,
    rescale: bool = False,
    temperature: float | Float[Array, "..."] = 1.0,
    output: Literal["weighted", "unbound"] = "weighted",
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"], CausalState]:
    """Goes on with causal holographic attention: the next token or tokens of sequences.

    Reading a sequence in pieces of any sizes gives what `hrr_attention` with `is_causal=True` gives for the
    whole. The state has H + 1 numbers a head, and the cost of a token does not depend on how many came
    before.

    Args:
      query, key, value: of the next T tokens, (*B, T, N, H).
      state: `init_causal_state(B, N, H)` before the first token, and then what the last call returned.
      mask, inverse, implementation, rescale, temperature, output, precision: as in `hrr_attention`; the same
        at every call of a sequence. Masked tokens leave the state as it is.

    Returns:
      Output (*B, T, N, H) in the dtype of `value`, weights (*B, N, T), and the state after these tokens, in
      the dtype of the one given.

    Raises:
      ValueError: for a state of other sizes, or of float32 with inputs of float64; and as `hrr_attention`.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 6, 4, 16))
    >>> from hrrformer import init_causal_state
    >>> state = init_causal_state((2,), 4, 16)
    >>> first, _, state = hrr_attention_step(q[:, :5], k[:, :5], v[:, :5], state)
    >>> last, _, state = hrr_attention_step(q[:, 5:], k[:, 5:], v[:, 5:], state)
    >>> whole = hrr_attention(q, k, v, is_causal=True)
    >>> bool(jnp.allclose(jnp.concatenate([first, last], axis=1), whole, atol=1e-5))
    True
    """
    given = _check(query, key, value, mask, temperature, inverse, output)
    _check_state(state, given.query)
    chosen = spectral.resolve_implementation(implementation, query.shape[-1])
    options = Options(chosen, inverse, rescale, output, precision, None)
    out, weights, after = causal.attend(options, state, **given._asdict())
    after = CausalState(*(new.astype(old.dtype) for new, old in zip(after, state, strict=True)))
    return out.astype(value.dtype), weights, after


class _Given(NamedTuple):
    """The arrays of a call, checked: query, key and value in one dtype, the others with all axes."""

    query: Float[Array, "*B T N H"]
    key: Float[Array, "*B T N H"]
    value: Float[Array, "*B T N H"]
    valid: Bool[Array, "*#B T"] | None
    temperature: Float[Array, "*#B 1 #N"] | None  # None where it is 1


def _attend_both_ways(options: Options, given: _Given) -> tuple[Array, Array]:
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
        from hrrformer.pallas import FusedPasses as kind  # takes a while to import, and not everyone needs it
    return kind(options, query.shape, query.dtype, valid)


def _sum_over_devices(x: Array, axis_name: Any) -> Array:
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def _check(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    temperature: float | Array,
    inverse: str,
    output: str,
) -> _Given:
    """Returns the arrays of a call as `_Given` has them, or raises as `hrr_attention` says."""
    _check_inputs(query, key, value)
    if inverse not in INVERSES:
        raise ValueError(f"inverse must be one of {INVERSES}; got {inverse!r}.")
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {OUTPUTS}; got {output!r}.")
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
    expected = (*query.shape[:-3], 1, query.shape[-2])
    if not _broadcasts(jnp.shape(temperature), expected):
        raise ValueError(f"temperature must broadcast to {expected}; got shape {jnp.shape(temperature)}.")
    dtype = jnp.promote_types(jnp.promote_types(query.dtype, key.dtype), value.dtype)
    tau = None
    if not (isinstance(temperature, (int, float)) and temperature == 1):
        tau = jnp.asarray(temperature, accumulation_dtype(dtype))
        tau = jnp.expand_dims(tau, range(len(expected) - tau.ndim))
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    return _Given(query, key, value, None if mask is None else _key_padding(mask, query.shape), tau)


def _check_state(state: CausalState, query: Array) -> None:
    *batch, _, heads, size = query.shape
    shapes = {"memory": (*batch, heads, size), "log_normalizer": (*batch, heads), "num_tokens": tuple(batch)}
    for name, shape in shapes.items():
        found = getattr(state, name)
        if found.shape != shape:
            raise ValueError(
                f"state.{name} (in a layer cached_{name}) must have shape {shape}; got {found.shape}. A state"
                " is made for a number of sequences, by init_causal_state or a layer's init_cache."
            )
    if query.dtype == jnp.float64 and state.memory.dtype != jnp.float64:
        raise ValueError(f"state.memory must be float64 as the inputs are; got {state.memory.dtype}.")


def _check_inputs(query: Array, key: Array, value: Array) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name} must be real floating point; got dtype {x.dtype}.")
        if x.ndim < 3:
            raise ValueError(f"{name} must have shape (..., T, N, H); got {x.shape}.")
        if 0 in x.shape[-3:]:
            raise ValueError(f"{name} must have at least one token, head and feature; got shape {x.shape}.")
    for name, x in (("key", key), ("value", value)):
        if x.shape != query.shape:
            reason = ""
            if x.ndim == query.ndim and x.shape[-3] != query.shape[-3]:
                reason = (
                    " HRR attention compares the value of token t with what the query of token t retrieves,"
                    " so queries cannot come from a sequence of another length (cross-attention)."
                )
            raise ValueError(f"{name} must have the shape of query, {query.shape}; got {x.shape}.{reason}")


def _broadcasts(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to `expected` without widening it."""
    last = expected[len(expected) - len(shape) :]
    return len(shape) <= len(expected) and all(g in (1, w) for g, w in zip(shape, last, strict=True))


def _key_padding(mask: Array, shape: tuple[int, ...]) -> Bool[Array, "*#B T"]:
    """Returns the mask with the axes of the inputs, or raises where it is no key-padding mask."""
    *batch, length = shape[:-2]
    squeezed = mask
    if mask.ndim == len(batch) + 3 and mask.shape[-3:-1] == (1, 1):
        squeezed = mask.reshape(*mask.shape[:-3], mask.shape[-1])
    expected = (*batch, length)
    fits = squeezed.ndim == len(expected) and squeezed.shape[-1] == length
    if not fits or not _broadcasts(squeezed.shape, expected):
        four = (*batch, 1, 1, length)
        raise ValueError(
            f"mask must be a key-padding mask of shape {expected} or {four}; got {mask.shape}. HRR attention"
            " sums all bindings of a sequence into one vector, so a mask can say which tokens are real but"
            " not which token may see which. For causal attention give is_causal=True, and no (T, T) mask."
        )
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be boolean, True for valid tokens; got dtype {mask.dtype}.")
    return squeezed


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
