"""`attention_fn`, HRR attention for Flax's multi-head attention layers, and the common part of our own."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from hrrformer import attention
from hrrformer.arguments import Mask, key_padding
from hrrformer.causal import CausalState
from hrrformer.memory import Method, hrr_memory, hrr_memory_step
from hrrformer.spectral import accumulation_dtype
from hrrformer.variant import AxisName, Implementation, Inverse, Output, Variant

# Stored poles are multiplied by it: a step of the optimizer moves them by a tenth.
SCALE = 0.1
EPSILON = 1e-6  # of mean squares: tokens that receive rounding errors alone stay near 0


def attention_fn(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    bias: Array | None = None,
    mask: Mask | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: PRNGKeyArray | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
    module: Any = None,
    is_causal: bool = False,
    *,
    inverse: Inverse = "approximate",
    implementation: Implementation | None = None,
    rescale: bool = False,
    temperature: float | Float[Array, "..."] = 1.0,
    output: Output = "weighted",
    axis_name: AxisName | None = None,
) -> Float[Array, "*B T N H"]:
    """Computes HRR attention as the `attention_fn` argument of Flax's own layers, Linen and NNX.

    It promotes the inputs to one dtype, calls `hrrformer.hrr_attention` and drops weights. For a variant,
    bind its arguments: `functools.partial(attention_fn, inverse="exact", rescale=True)`.

    Args:
      query, key, value, mask, precision: As in `hrrformer.hrr_attention`.
      bias: None, because HRR attention does not have T × T scores.
      broadcast_dropout: One dropout mask (N, T) for the whole batch instead of one per sequence.
      dropout_rng: Random key; required while dropout is active.
      dropout_rate: Probability, less than 1, that the weight of a head and token is set to 0. With
        output="unbound" the unbound vector of that head and token is dropped instead.
      deterministic: Evaluation without dropout.
      dtype: Dtype of the inputs after promotion; None takes the promoted dtype of the three.
      module: Flax module (Linen or NNX) that sows the weights (*B, N, T), after dropout, as
        `attention_weights`; None to sow nothing.
      is_causal: Attention of each token to itself and to earlier tokens.
      inverse, implementation, rescale, temperature, output, axis_name: As in `hrrformer.hrr_attention`.

    Returns:
      Output (*B, T, N, H) in the promoted dtype.

    Raises:
      ValueError: For a bias, a dropout rate outside [0, 1), or dropout without a key; and as
        `hrrformer.hrr_attention`.

    While decoding, Flax's layers cache keys and values and pass different numbers of queries and keys, an
    error here: decode with the layers of this package.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> layer = nnx.MultiHeadAttention(4, 32, attention_fn=attention_fn, decode=False, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 7, 32))).shape
    (2, 7, 32)
    """
    if bias is not None:
        raise ValueError("bias must be None: HRR attention does not have (T, T) scores. Leave bias out.")
    out, _ = attend(
        Variant(inverse, implementation, rescale, output, precision, axis_name),
        query,
        key,
        value,
        None,
        mask=mask,
        temperature=temperature,
        is_causal=is_causal,
        broadcast_dropout=broadcast_dropout,
        dropout_rng=dropout_rng,
        dropout_rate=dropout_rate,
        deterministic=deterministic,
        dtype=dtype,
        module=module,
    )
    return out


def attend(
    variant: Variant,
    query: Array,
    key: Array,
    value: Array,
    state: CausalState | None,
    *,
    mask: Mask | None,
    temperature: float | Array,
    is_causal: bool,
    broadcast_dropout: bool,
    dropout_rng: PRNGKeyArray | None,
    dropout_rate: float,
    deterministic: bool,
    dtype: DTypeLike | None,
    module: Any,
) -> tuple[Float[Array, "*B T N H"], CausalState | None]:
    """Computes `attention_fn`; with a state, for the next tokens, and returns the state after them."""
    if not 0.0 <= dropout_rate < 1.0:
        raise ValueError(f"dropout_rate must be at least 0 and less than 1; got {dropout_rate}.")
    dtype = dtype or jnp.result_type(query, key, value)
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    axis_name = variant.axis_name
    if state is None:
        out, weights = attention.attend(variant, query, key, value, mask, temperature, is_causal=is_causal)
    else:
        if axis_name is not None:
            raise ValueError(
                f"axis_name must be None while decoding, since a token is on one device; got {axis_name!r}."
            )
        out, weights, state = attention.attend_step(variant, query, key, value, state, mask, temperature)
    if dropout_rate > 0.0 and not deterministic:
        if dropout_rng is None:
            raise ValueError("dropout_rng must be a random key while dropout is active; got None.")
        if axis_name is not None:  # tokens on different devices are dropped independently
            dropout_rng = jax.random.fold_in(dropout_rng, jax.lax.axis_index(axis_name))
        shape = weights.shape[-2:] if broadcast_dropout else weights.shape
        kept = jax.random.bernoulli(dropout_rng, 1.0 - dropout_rate, shape)
        factor = kept.astype(weights.dtype) / (1.0 - dropout_rate)
        factor = jnp.expand_dims(factor, range(weights.ndim - factor.ndim))
        weights = weights * factor
        out = out * jnp.swapaxes(factor, -1, -2)[..., None].astype(out.dtype)
    if module is not None:
        _sow(module, weights)
    return out, state


class Poles(NamedTuple):
    """The stored poles of a layer `HRRMemory`, flat.

    Attributes:
      log_rate: Logarithm of the rates (2, N, K, M), over `SCALE`.
      turn: Radians (2, N, K, M) by which a pair turns until it has faded to 1/e, over `SCALE`.
      weight: Real and imaginary part of the weights of the poles, (2, N, K, M, 2).
    """

    log_rate: Float[Array, " S"]
    turn: Float[Array, " S"]
    weight: Float[Array, " W"]


def retrieve(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    poles: Poles,
    skip: Float[Array, " N_H"],
    state: Complex[Array, "*B N K M"] | None,
    *,
    mask: Mask | None,
    is_causal: bool,
    implementation: Method | None,
    precision: jax.lax.PrecisionLike,
    axis_name: AxisName | None,
) -> tuple[Float[Array, "*B T N H"], Complex[Array, "*B N K M"] | None]:
    """Computes the heads of the layer `HRRMemory` from its projections and stored parameters."""
    heads, size = value.shape[-2:]
    dtype = accumulation_dtype(value.dtype)
    shape = (2, heads, size // 2 + 1, -1)
    log_rate, turn, weight = (x.astype(dtype) for x in poles)
    rate = jnp.exp(SCALE * log_rate).reshape(shape)
    phase = SCALE * turn.reshape(shape) * rate
    # Pairs without correlation then sum to one size, whatever the rate.
    parts = weight.reshape(*shape, 2) * jnp.sqrt(-jnp.expm1(-2.0 * rate))[..., None]
    gain = jax.lax.complex(parts[..., 0], parts[..., 1])
    if is_causal or state is not None:
        rate, phase, gain = rate[0], phase[0], gain[0]
    options: dict[str, Any] = {
        "rate": rate,
        "phase": phase,
        "gain": gain,
        "mask": mask,
        "implementation": implementation,
        "precision": precision,
    }
    # The identity of binding, plus a vector whose coefficients have the size of the features.
    impulse = jnp.expand_dims(jnp.eye(1, size, dtype=value.dtype), range(value.ndim - 2))
    query, key = (impulse + x / math.sqrt(size) for x in (query, key))
    if state is None:
        found = hrr_memory(query, key, value, is_causal=is_causal, axis_name=axis_name, **options)
    else:
        if axis_name is not None:
            raise ValueError(
                f"axis_name must be None while decoding, since a token is on one device; got {axis_name!r}."
            )
        found, state = hrr_memory_step(query, key, value, state, **options)
    value = value.astype(dtype)
    skipped = value * jnp.expand_dims(skip.reshape(heads, size).astype(dtype), range(value.ndim - 2))
    if mask is not None:
        skipped = jnp.where(key_padding(mask, value.shape)[..., None, None], skipped, 0.0)
    mixed = found.astype(dtype) + skipped
    square = jnp.mean(jnp.square(mixed), axis=-1, keepdims=True)
    return (mixed * jax.lax.rsqrt(square + EPSILON)).astype(found.dtype), state


def check_heads(num_heads: int, qkv_features: int, temperature: float = 1.0) -> int:
    """Returns the head size of a layer, or raises ValueError for arguments that a layer refuses."""
    if num_heads < 1 or qkv_features % num_heads:
        raise ValueError(f"num_heads must divide qkv_features ({qkv_features}); got {num_heads}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
    return qkv_features // num_heads


def initial_log_rate(
    key: PRNGKeyArray, num_heads: int, head_size: int, num_poles: int, horizon: int, dtype: DTypeLike
) -> Float[Array, " S"]:
    """Returns the stored log rates of a layer `HRRMemory`: times 1 / rate log-uniform from 2 to `horizon`.

    The poles of a coefficient have one rate.
    """
    if num_poles < 1:
        raise ValueError(f"num_poles must be at least 1; got {num_poles}.")
    if not horizon > 2:
        raise ValueError(f"horizon must be more than 2 tokens; got {horizon}.")
    shape = (2 * num_heads * (head_size // 2 + 1), 1)
    log_time = jax.random.uniform(key, shape, _of_poles(dtype), math.log(2.0), math.log(horizon))
    return jnp.ravel(jnp.broadcast_to(-log_time / SCALE, (shape[0], num_poles)))


def initial_turn(key: PRNGKeyArray, log_rate: Float[Array, " S"], num_poles: int) -> Float[Array, " S"]:
    """Returns the stored turns: 0, 1, -1, 2, -2 … whole turns until a pair has faded to 1/e.

    So the poles of a coefficient begin as Fourier's functions on a window, as in S4D-Lin.
    """
    del key  # Linen passes one to every initializer
    number = jnp.arange(num_poles)
    turns = jnp.where(number % 2 == 1, (number + 1) // 2, -(number // 2))
    return jnp.tile(turns.astype(log_rate.dtype) * (2.0 * math.pi / SCALE), log_rate.size // num_poles)


def initial_weight(key: PRNGKeyArray, log_rate: Float[Array, " S"], num_poles: int) -> Float[Array, " W"]:
    """Returns the stored weights: complex normal numbers, whose squares have the mean 1 / M."""
    return (0.5 / num_poles) ** 0.5 * jax.random.normal(key, (2 * log_rate.size,), log_rate.dtype)


def _of_poles(dtype: DTypeLike) -> DTypeLike:
    """Returns the dtype of stored poles: 16 bits would lose most steps of the optimizer."""
    return jnp.promote_types(dtype, jnp.float32)


def three_inputs(
    inputs_q: Array, inputs_k: Array | None, inputs_v: Array | None
) -> tuple[Array, Array, Array]:
    """Returns the inputs of a layer with Flax's defaults: keys are queries, values are keys."""
    if inputs_k is None and inputs_v is not None:
        raise ValueError("inputs_k must be given with inputs_v; for both the same, give inputs_k alone.")
    inputs_k = inputs_q if inputs_k is None else inputs_k
    return inputs_q, inputs_k, inputs_k if inputs_v is None else inputs_v


def _sow(module: Any, weights: Float[Array, "*B N T"]) -> None:
    from flax import nnx  # imported here so that the function alone does not load Flax

    collection = nnx.Intermediate if isinstance(module, nnx.Module) else "intermediates"
    module.sow(collection, "attention_weights", weights)
