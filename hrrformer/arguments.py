"""Arguments of HRR attention: checks, messages, and one form of every array."""

from typing import Any, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Complex, Float

from hrrformer.causal import CausalState
from hrrformer.spectral import accumulation_dtype, complex_dtype
from hrrformer.variant import Inverse, Output, Variant

INVERSES: tuple[str, ...] = get_args(Inverse)
OUTPUTS: tuple[str, ...] = get_args(Output)
Mask: TypeAlias = Bool[Array, "..."] | Float[Array, "..."]  # Flax's (*B, 1, T, T) masks are float32


class Given(NamedTuple):
    """The checked arrays of a call: query, key and value in one dtype, the others with all axes.

    Attributes:
      query, key, value: Arrays (*B, T, N, H).
      valid: True for valid tokens; None if all are valid.
      temperature: Temperature of the softmax; None where it is 1.
    """

    query: Float[Array, "*B T N H"]
    key: Float[Array, "*B T N H"]
    value: Float[Array, "*B T N H"]
    valid: Bool[Array, "*#B T"] | None
    temperature: Float[Array, "*#B 1 #N"] | None


class GivenMemory(NamedTuple):
    """The checked arrays of a call to a holographic memory, in the dtypes of its sums.

    Attributes:
      query, key, value: Arrays (*B, T, N, H) in one dtype.
      rate, phase, gain: Arrays (sides, M, N, K): past and future, or the past alone for a causal memory; M
        poles, 1 for a memory without an axis of poles.
      state: State before the first token, (*B, M, N, K); None for zeros.
      valid: True for valid tokens; None if all are valid.
    """

    query: Float[Array, "*B T N H"]
    key: Float[Array, "*B T N H"]
    value: Float[Array, "*B T N H"]
    rate: Float[Array, "sides M N K"]
    phase: Float[Array, "sides M N K"]
    gain: Complex[Array, "sides M N K"]
    state: Complex[Array, "*B M N K"] | None
    valid: Bool[Array, "*B T"] | None


def check(
    variant: Variant,
    query: Array,
    key: Array,
    value: Array,
    mask: Mask | None,
    temperature: float | Array,
    *,
    is_causal: bool,
) -> Given:
    """Returns the arrays of a call as `Given`, or raises the errors that `hrr_attention` lists."""
    _check_inputs(query, key, value)
    for name, x in (("query", query), ("key", key), ("value", value)):
        _check_sharding(name, x, is_causal)
    if variant.inverse not in INVERSES:
        raise ValueError(f"inverse must be one of {INVERSES}; got {variant.inverse!r}.")
    if variant.output not in OUTPUTS:
        raise ValueError(f"output must be one of {OUTPUTS}; got {variant.output!r}.")
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
    return Given(query, key, value, None if mask is None else key_padding(mask, query.shape), tau)


def check_memory(
    query: Array,
    key: Array,
    value: Array,
    rate: float | Array,
    phase: float | Array,
    gain: float | Array | None,
    state: Array | None,
    mask: Mask | None,
    *,
    is_causal: bool,
) -> GivenMemory:
    """Returns the arrays of a call as `GivenMemory`, or raises the errors that `hrr_memory` lists."""
    query, key, value = map(jnp.asarray, (query, key, value))
    _check_inputs(query, key, value)
    for name, x in (("query", query), ("key", key), ("value", value)):
        _check_sharding(name, x, is_causal=False)
    query, key, value = (x.astype(jnp.result_type(query, key, value)) for x in (query, key, value))
    dtype = accumulation_dtype(query.dtype)
    *batch, _, heads, size = query.shape
    given = {"rate": rate, "phase": phase, "gain": 1.0 if gain is None else gain}
    shape = (heads, size // 2 + 1) if is_causal else (2, heads, size // 2 + 1)
    numbers = {jnp.shape(x)[-1] for x in given.values() if jnp.ndim(x) == len(shape) + 1} - {1}
    if 0 in numbers:
        raise ValueError("rate, phase and gain must have at least one pole; got none.")
    if len(numbers) > 1:
        shapes = ", ".join(f"{name} {jnp.shape(x)}" for name, x in given.items())
        raise ValueError(f"rate, phase and gain must have one number of poles; got the shapes {shapes}.")
    num_poles = max(numbers, default=1)

    def poles(name: str) -> Array:
        x = given[name]
        if name == "rate" and isinstance(x, (int, float)) and not 0 < x < float("inf"):
            raise ValueError(f"rate must be positive and finite; got {x}.")
        expected = (*shape, num_poles) if jnp.ndim(x) > len(shape) else shape
        if not _broadcasts(jnp.shape(x), expected):
            raise ValueError(
                f"{name} must broadcast to {shape}, or to {shape} and an axis of poles; got shape"
                f" {jnp.shape(x)}."
            )
        if name != "gain" and jnp.iscomplexobj(x):
            raise TypeError(f"{name} must be real; got dtype {jnp.asarray(x).dtype}.")
        x = jnp.asarray(x, complex_dtype(dtype) if name == "gain" else dtype)
        x = jnp.broadcast_to(x if expected != shape else x[..., None], (*shape, num_poles))
        x = jnp.moveaxis(x, -1, -3)
        return x[None] if is_causal else x

    if state is not None:
        state = jnp.asarray(state)
        if not jnp.issubdtype(state.dtype, jnp.complexfloating):
            raise TypeError(f"state must be complex, as init_memory_state makes it; got dtype {state.dtype}.")
        if dtype == jnp.float64 and state.dtype != jnp.complex128:
            raise ValueError(
                f"state must be complex128 for inputs of float64; got {state.dtype}. Make it with"
                " dtype=jnp.float64."
            )
        expected = (*batch, *shape[-2:], num_poles)
        if state.shape != expected:
            shown = [x[:-1] if x[-1:] == (1,) else x for x in (expected, state.shape)]
            raise ValueError(
                f"state (in a layer cached_state) must have shape {shown[0]}; got {shown[1]}. Make"
                " a state for this number of sequences and poles by init_memory_state, or by a layer's"
                " init_cache."
            )
        state = jnp.moveaxis(state, -1, -3).astype(complex_dtype(dtype))
    return GivenMemory(
        query,
        key,
        value,
        poles("rate"),
        poles("phase"),
        poles("gain"),
        state,
        None if mask is None else jnp.broadcast_to(key_padding(mask, query.shape), query.shape[:-2]),
    )


def check_state(state: CausalState, query: Array) -> None:
    """Raises ValueError for a state of another shape or of a narrower dtype than the query requires."""
    *batch, _, heads, size = query.shape
    shapes = {"memory": (*batch, heads, size), "log_normalizer": (*batch, heads), "num_tokens": tuple(batch)}
    for name, shape in shapes.items():
        found = getattr(state, name)
        if found.shape != shape:
            raise ValueError(
                f"state.{name} (in a layer cached_{name}) must have shape {shape}; got {found.shape}. Make a"
                " state for this number of sequences by init_causal_state, or by a layer's init_cache."
            )
    if query.dtype == jnp.float64 and state.memory.dtype != jnp.float64:
        raise ValueError(
            f"state.memory must be float64 as the inputs are; got {state.memory.dtype}. Make the state with"
            " dtype=jnp.float64."
        )


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
                    " HRR attention compares the value of token t with the vector that the query of token t"
                    " retrieves, so queries cannot come from a sequence of another length (cross-attention)."
                )
            raise ValueError(f"{name} must have the shape of query, {query.shape}; got {x.shape}.{reason}")


def _check_sharding(name: str, x: Array, is_causal: bool) -> None:
    """Raises ValueError if the type of an array, on an explicit mesh, shards an axis that must be whole."""
    spec = jax.typeof(x).sharding.spec
    for axis, shown in ((-1, "features"), (-3, "tokens of causal attention")):
        if spec[axis] is not None and (axis == -1 or is_causal):
            whole = tuple(None if i == x.ndim + axis else s for i, s in enumerate(spec))
            raise ValueError(
                f"{name} must have the {shown}, axis {axis}, whole on every device; got sharding {spec}."
                f" Shard another axis, or gather it: jax.sharding.reshard({name}, PartitionSpec{whole})."
            )


def _broadcasts(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to `expected` without widening it."""
    last = expected[len(expected) - len(shape) :]
    return len(shape) <= len(expected) and all(g in (1, w) for g, w in zip(shape, last, strict=True))


def key_padding(mask: Any, shape: tuple[int, ...]) -> Bool[Array, "*#B T"]:
    """Returns the mask with the axes of the inputs, or raises if it is not a key-padding mask."""
    if not hasattr(mask, "ndim"):
        mask = jnp.asarray(mask)  # nested lists
    *batch, length = shape[:-2]
    two, four, pairs = (*batch, length), (*batch, 1, 1, length), (*batch, 1, length, length)
    keys, note = None, ""
    if _fits(mask, four):
        keys = mask.reshape(*mask.shape[:-3], length)
    elif _fits(mask, pairs):
        keys = _common_keys(mask)
        note = " without known values (traced, as under jax.jit)" if _values(mask) is None else ""
    elif _fits(mask, two):
        keys = None if _is_causal(mask) else mask
        note = f" with the values of a causal mask (for padding of these lengths reshape it to {four})"
    if keys is None:
        raise ValueError(
            f"mask must be a key-padding mask of shape {two} or {four}; got {mask.shape}{note}. HRR attention"
            " sums the pairs of a sequence into one vector, so a mask marks real tokens and cannot select the"
            " keys of each query. For padding give the (B, T) mask itself, `tokens != 0`; for causal"
            " attention is_causal=True and no mask; for padding and causal both `mask=` and `is_causal=True`."
        )
    if keys.dtype != jnp.bool_:
        raise TypeError(f"mask must be boolean, True for valid tokens; got dtype {keys.dtype}.")
    return keys


def _fits(mask: Array, expected: tuple[int, ...]) -> bool:
    """Whether a mask has all axes of `expected` and its last size; its other sizes may be 1."""
    return mask.ndim == len(expected) and mask.shape[-1] == expected[-1] and _broadcasts(mask.shape, expected)


def _values(mask: Array) -> np.ndarray | None:
    """Returns the values of a mask; None where JAX traces, or where other processes have a part."""
    if isinstance(mask, Tracer) or not getattr(mask, "is_fully_addressable", True):
        return None
    return np.asarray(mask)


def _is_causal(mask: Array) -> bool:
    """Whether a mask is square and known to be the causal one."""
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1] or mask.shape[0] == 1:
        return False
    values = _values(mask)
    return values is not None and np.array_equal(values, np.tri(len(values)))


def _common_keys(mask: Array) -> Bool[Array, "*#B T"] | None:
    """Returns the keys that a mask (*#B, 1, T, T) shows to every real query; None if queries differ.

    In `flax.linen.make_attention_mask(m, m)` the rows of padded queries are empty, and 0 and 1 are float32.
    """
    values = _values(mask)
    if values is None or not np.all((values == 0) | (values == 1)):
        return None
    pairs = values[..., 0, :, :].astype(bool)
    keys = np.any(pairs, axis=-2)
    same = np.all(pairs == keys[..., None, :], axis=-1)
    padded = ~keys & ~np.any(pairs, axis=-1)
    return jnp.asarray(keys) if np.all(same | padded) else None
