"""Arguments of HRR attention, checked and brought into one form."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hrrformer.causal import CausalState
from hrrformer.spectral import accumulation_dtype

INVERSES = ("approximate", "exact")
OUTPUTS = ("weighted", "unbound")


class Given(NamedTuple):
    """The arrays of a call, checked: query, key and value in one dtype, the others with all axes."""

    query: Float[Array, "*B T N H"]
    key: Float[Array, "*B T N H"]
    value: Float[Array, "*B T N H"]
    valid: Bool[Array, "*#B T"] | None
    temperature: Float[Array, "*#B 1 #N"] | None  # None where it is 1


def check(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    temperature: float | Array,
    inverse: str,
    output: str,
) -> Given:
    """Returns the arrays of a call as `Given` has them, or raises as `hrr_attention` says."""
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
    return Given(query, key, value, None if mask is None else _key_padding(mask, query.shape), tau)


def check_state(state: CausalState, query: Array) -> None:
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
