"""`attention_fn`: HRR attention behind the calling convention of Flax's multi-head attention layers."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from hrrformer.attention import AxisName, hrr_attention, hrr_attention_step
from hrrformer.causal import CausalState


def attention_fn(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    bias: Array | None = None,
    mask: Bool[Array, "..."] | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: PRNGKeyArray | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
    module: Any = None,
    is_causal: bool = False,
    **variant: Any,
) -> Float[Array, "*B T N H"]:
    """HRR attention for the `attention_fn` argument of Flax's own layers, linen and nnx.

    Computes `hrrformer.hrr_attention` after promoting the inputs to one dtype, then drops weights. For a
    variant, bind its arguments: `functools.partial(attention_fn, inverse="exact", rescale=True)`.

    Args:
      query, key, value, mask, precision: as in `hrrformer.hrr_attention`.
      bias: must be None: HRR attention has no T × T scores to add one to.
      broadcast_dropout: one dropout mask (N, T) for the whole batch, or one for each sequence.
      dropout_rng: key for dropout; needed when dropout is active.
      dropout_rate: probability, less than 1, with which a weight (one a head and token) is set to 0. With
        output="unbound" the unbound vector of that head and token is dropped in its place.
      deterministic: no dropout.
      dtype: dtype of the inputs after promotion; None takes the promoted dtype of the three.
      module: the Flax module (linen or nnx) into which the weights (*B, N, T), after dropout, are sown as
        `attention_weights`; None for none.
      is_causal: tokens attend to themselves and to what came before.
      **variant: `inverse`, `implementation`, `rescale`, `temperature`, `output` and `axis_name` of
        `hrr_attention`.

    Returns:
      (*B, T, N, H) in the promoted dtype.

    Raises:
      ValueError: for a bias, a dropout rate outside [0, 1), or dropout without a key; and as `hrr_attention`.

    Flax's layers keep a cache of keys and values while decoding and then ask for more queries than there are
    keys, or fewer, which is refused: decode with the layers of this package.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> layer = nnx.MultiHeadAttention(4, 32, attention_fn=attention_fn, decode=False, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 7, 32))).shape
    (2, 7, 32)
    """
    if bias is not None:
        raise ValueError("bias must be None: HRR attention has no (T, T) scores to which it could be added.")
    out, _ = attend(
        query,
        key,
        value,
        None,
        mask=mask,
        broadcast_dropout=broadcast_dropout,
        dropout_rng=dropout_rng,
        dropout_rate=dropout_rate,
        deterministic=deterministic,
        dtype=dtype,
        precision=precision,
        module=module,
        is_causal=is_causal,
        **variant,
    )
    return out


def attend(
    query: Array,
    key: Array,
    value: Array,
    state: CausalState | None,
    *,
    broadcast_dropout: bool,
    dropout_rng: PRNGKeyArray | None,
    dropout_rate: float,
    deterministic: bool,
    dtype: DTypeLike | None,
    module: Any,
    is_causal: bool,
    axis_name: AxisName | None = None,
    **variant: Any,
) -> tuple[Float[Array, "*B T N H"], CausalState | None]:
    """`attention_fn`, or, given the state of a sequence, its next tokens and the state after them."""
    if not 0.0 <= dropout_rate < 1.0:
        raise ValueError(f"dropout_rate must be at least 0 and less than 1; got {dropout_rate}.")
    dtype = dtype or jnp.result_type(query, key, value)
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    if state is None:
        variant.update(is_causal=is_causal, axis_name=axis_name)
        out, weights = hrr_attention(query, key, value, return_weights=True, **variant)
    else:
        if axis_name is not None:
            raise ValueError("axis_name must be None while decoding: a token is on one device.")
        out, weights, state = hrr_attention_step(query, key, value, state, **variant)
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


def _sow(module: Any, weights: Float[Array, "*B N T"]) -> None:
    from flax import nnx  # imported here so that the function alone does not load Flax

    collection = nnx.Intermediate if isinstance(module, nnx.Module) else "intermediates"
    module.sow(collection, "attention_weights", weights)
