"""HRR attention as a Flax NNX layer."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.linear import default_kernel_init
from flax.typing import Initializer, PrecisionLike
from jaxtyping import Array, Bool, Float

from hrrformer.adapter import attend
from hrrformer.attention import AxisName, Implementation
from hrrformer.causal import CausalState, init_causal_state
from hrrformer.spectral import accumulation_dtype

default_bias_init: Initializer = nnx.initializers.zeros_init()
NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class HRRAttention(nnx.Module):
    """Multi-head holographic attention: `flax.nnx.MultiHeadAttention` with HRR attention inside.

        o = W_out · concat_heads(hrr_attention(W_query x, W_key x, W_value x))

    Takes the arguments of `flax.nnx.MultiHeadAttention` and builds its parameter tree: `query`, `key` and
    `value` with kernels (D, N, H) and `out` with kernel (N, H, D), so parameters move freely between the
    two and `hrrformer.linen.HRRAttention`. The authors' code has no biases: `use_bias=False`.

    Args:
      num_heads: N, a divisor of `qkv_features`.
      in_features: size D of the input's last axis.
      qkv_features: N·H, over all heads; None means `in_features`.
      out_features: size of the output's last axis; None means `in_features`.
      inverse, implementation, rescale, output, axis_name: as in `hrrformer.hrr_attention`.
      temperature: initial (or, without `learn_temperature`, constant) temperature of the softmax.
      learn_temperature: add a parameter `log_temperature` (N,), one for each head.
      dtype: dtype of the computation; None infers it from input and parameters.
      param_dtype: dtype of the parameters.
      broadcast_dropout: one dropout mask for the whole batch.
      dropout_rate: probability with which a weight, one a head and token, is dropped.
      deterministic: no dropout; may also be given at the call, which then takes precedence.
      precision: of all matrix products, see `jax.lax.Precision`.
      kernel_init, bias_init, out_kernel_init, out_bias_init: initialisers; the `out_` ones default to
        the others.
      use_bias: whether the four projections have biases.
      normalize_qk: layer-normalise queries and keys over H (parameters `query_ln`, `key_ln`).
      decode: go on with the sequences in the cache at every call, see `init_cache`; may also be given at the
        call, which then takes precedence.
      rngs: keys for the parameters, and for dropout if it is used.
      keep_rngs: keep a fork of the dropout stream in the layer; otherwise pass `rngs` at each call.
      kernel_metadata, bias_metadata, out_kernel_metadata, out_bias_metadata: metadata of the parameters,
        such as `{"out_sharding": (None, "model", None)}`.

    Raises:
      ValueError: if `num_heads` does not divide `qkv_features`, or for a temperature of 0 or less.

    Source: Alam et al., ICML 2023. See `hrrformer.hrr_attention` for the formula and the differences.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from hrrformer.nnx import HRRAttention
    >>> layer = HRRAttention(num_heads=4, in_features=32, rngs=nnx.Rngs(0))
    >>> x, mask = jnp.ones((2, 7, 32)), jnp.arange(7) < jnp.array([[7], [4]])
    >>> layer(x, mask=mask).shape
    (2, 7, 32)
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        qkv_features: int | None = None,
        out_features: int | None = None,
        *,
        inverse: Literal["approximate", "exact"] = "approximate",
        implementation: Implementation | None = None,
        rescale: bool = False,
        temperature: float = 1.0,
        learn_temperature: bool = False,
        output: Literal["weighted", "unbound"] = "weighted",
        axis_name: AxisName | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        broadcast_dropout: bool = True,
        dropout_rate: float = 0.0,
        deterministic: bool | None = None,
        precision: PrecisionLike = None,
        kernel_init: Initializer = default_kernel_init,
        out_kernel_init: Initializer | None = None,
        bias_init: Initializer = default_bias_init,
        out_bias_init: Initializer | None = None,
        use_bias: bool = True,
        normalize_qk: bool = False,
        decode: bool | None = None,
        rngs: nnx.Rngs,
        keep_rngs: bool = True,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        out_kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        out_bias_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        qkv_features = in_features if qkv_features is None else qkv_features
        if num_heads < 1 or qkv_features % num_heads:
            raise ValueError(f"num_heads must divide qkv_features ({qkv_features}); got {num_heads}.")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive; got {temperature}.")
        head_dim = qkv_features // num_heads
        self.num_heads = num_heads
        self.in_features = in_features
        self.qkv_features = qkv_features
        self.out_features: int = in_features if out_features is None else out_features
        self.dtype = dtype
        self.broadcast_dropout = broadcast_dropout
        self.dropout_rate = dropout_rate
        self.deterministic = deterministic
        self.precision = precision
        self.temperature = temperature
        self.inverse = inverse
        self.implementation = implementation
        self.rescale = rescale
        self.output = output
        self.axis_name = axis_name
        self.decode = decode
        self.head_dim = head_dim
        linear = functools.partial(
            nnx.LinearGeneral,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )
        project = functools.partial(
            linear,
            in_features,
            (num_heads, head_dim),
            kernel_init=kernel_init,
            bias_init=bias_init,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.query: nnx.LinearGeneral = project()
        self.key: nnx.LinearGeneral = project()
        self.value: nnx.LinearGeneral = project()
        self.normalize_qk = normalize_qk
        if normalize_qk:
            norm = functools.partial(
                nnx.LayerNorm, head_dim, use_bias=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs
            )
            self.query_ln: nnx.LayerNorm = norm()
            self.key_ln: nnx.LayerNorm = norm()
        self.out: nnx.LinearGeneral = linear(
            (num_heads, head_dim),
            self.out_features,
            axis=(-2, -1),
            kernel_init=out_kernel_init or kernel_init,
            bias_init=out_bias_init or bias_init,
            kernel_metadata=out_kernel_metadata or kernel_metadata,
            bias_metadata=out_bias_metadata or bias_metadata,
        )
        self.learn_temperature = learn_temperature
        if learn_temperature:
            self.log_temperature: nnx.Param[Array] = nnx.Param(
                jnp.full((num_heads,), jnp.log(temperature), param_dtype)
            )
        self.rngs: nnx.RngStream | None = rngs.dropout.fork() if keep_rngs and dropout_rate > 0 else None
        self.cached_memory: nnx.Cache[Array] | None = nnx.data(None)
        self.cached_log_normalizer: nnx.Cache[Array] | None = nnx.data(None)
        self.cached_num_tokens: nnx.Cache[Array] | None = nnx.data(None)

    def __call__(
        self,
        inputs_q: Float[Array, "*B T D"],
        inputs_k: Float[Array, "*B T D"] | None = None,
        inputs_v: Float[Array, "*B T D"] | None = None,
        *,
        mask: Bool[Array, "..."] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        sow_weights: bool = False,
        decode: bool | None = None,
        is_causal: bool = False,
    ) -> Float[Array, "*B T O"]:
        """Applies holographic attention.

        Args:
          inputs_q: (*B, T, D).
          inputs_k: of the same shape; None means `inputs_q`.
          inputs_v: of the same shape; None means `inputs_k`.
          mask: key-padding mask (*B, T) or (*B, 1, 1, T), True for real tokens.
          deterministic: no dropout; needed here or in the constructor if `dropout_rate` is not 0.
          rngs: keys for dropout, in place of the layer's own.
          sow_weights: sow the weights (*B, N, T) as the `nnx.Intermediate` `attention_weights`, which
            `nnx.capture(layer, nnx.Intermediate)` collects.
          decode: the inputs are the next token, or the next few, of the sequences in the cache, which is
            brought up to date.
          is_causal: tokens attend to themselves and to what came before; while decoding they always do.

        Returns:
          (*B, T, out_features).

        Raises:
          ValueError: for a wrong last axis, `inputs_v` without `inputs_k`, decoding without a cache, dropout
            without keys or without a decision on it; and as `hrrformer.hrr_attention`.
        """
        if inputs_k is None and inputs_v is not None:
            raise ValueError("inputs_k must be given with inputs_v; for both the same, give inputs_k alone.")
        inputs_k = inputs_q if inputs_k is None else inputs_k
        inputs_v = inputs_k if inputs_v is None else inputs_v
        if inputs_q.shape[-1] != self.in_features:
            raise ValueError(
                f"inputs_q must have {self.in_features} features (in_features); got shape {inputs_q.shape}."
            )
        state = self._cached() if (self.decode if decode is None else decode) else None
        dropout_rng = None
        if self.dropout_rate > 0.0:
            deterministic = self.deterministic if deterministic is None else deterministic
            if deterministic is None:
                raise ValueError("deterministic must be set, here or in the constructor, with dropout.")
            if not deterministic:
                rngs = self.rngs if rngs is None else rngs
                if rngs is None:
                    raise ValueError("rngs must be given at the call to a layer made with keep_rngs=False.")
                dropout_rng = rngs.dropout() if isinstance(rngs, nnx.Rngs) else rngs()
        query, key, value = self.query(inputs_q), self.key(inputs_k), self.value(inputs_v)
        if self.normalize_qk:
            query, key = self.query_ln(query), self.key_ln(key)
        temperature = jnp.exp(self.log_temperature[...]) if self.learn_temperature else self.temperature
        mixed, state = attend(
            query,
            key,
            value,
            state,
            mask=mask,
            is_causal=is_causal,
            broadcast_dropout=self.broadcast_dropout,
            dropout_rng=dropout_rng,
            dropout_rate=self.dropout_rate,
            deterministic=dropout_rng is None,
            dtype=self.dtype,
            precision=self.precision,
            module=self if sow_weights else None,
            inverse=self.inverse,
            implementation=self.implementation,
            rescale=self.rescale,
            temperature=temperature,
            output=self.output,
            axis_name=self.axis_name,
        )
        if state is not None:
            self._cache(state)
        return self.out(mixed)

    def init_cache(self, input_shape: tuple[int, ...], dtype: Any = None) -> None:
        """Makes the cache of sequences of which nothing has been read yet; call it before decoding.

        The cache holds, for each sequence, H + 1 numbers a head and a count, whatever its length: the
        `nnx.Cache` variables `cached_memory` (*B, N, H), `cached_log_normalizer` (*B, N) and
        `cached_num_tokens` (*B,).

        Args:
          input_shape: (*B, T, D) of inputs; only *B matters.
          dtype: of the sums; None means float32, or float64 where the layer computes in that.

        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from hrrformer.nnx import HRRAttention
        >>> layer = HRRAttention(num_heads=4, in_features=32, decode=True, rngs=nnx.Rngs(0))
        >>> layer.init_cache((2, 1, 32))
        >>> layer(jnp.ones((2, 1, 32))).shape, layer(jnp.ones((2, 3, 32))).shape
        ((2, 1, 32), (2, 3, 32))
        """
        if dtype is None:
            dtype = accumulation_dtype(self.dtype or self.query.kernel.dtype)
        self._cache(init_causal_state(input_shape[:-2], self.num_heads, self.head_dim, dtype))

    def set_view(
        self,
        deterministic: bool | None = None,
        decode: bool | None = None,
        batch_size: int | tuple[int, ...] | None = None,
    ) -> None:
        """What `nnx.view` sets.

        Args:
          deterministic: no dropout.
          decode: go on with the sequences in the cache at every call.
          batch_size: *B of a cache to be made anew.
        """
        self.deterministic = self.deterministic if deterministic is None else deterministic
        self.decode = self.decode if decode is None else decode
        if batch_size is not None:
            batch = (batch_size,) if isinstance(batch_size, int) else batch_size
            self.init_cache((*batch, 1, self.in_features))

    def _cached(self) -> CausalState:
        cached = (self.cached_memory, self.cached_log_normalizer, self.cached_num_tokens)
        if cached[0] is None or cached[1] is None or cached[2] is None:
            raise ValueError("init_cache must be called before decoding; there is no cache yet.")
        return CausalState(cached[0][...], cached[1][...], cached[2][...])

    def _cache(self, state: CausalState) -> None:
        """Writes the state into the cache's variables, or makes them."""
        if self.cached_memory is None or self.cached_memory.shape != state.memory.shape:
            self.cached_memory = nnx.Cache(state.memory)
            self.cached_log_normalizer = nnx.Cache(state.log_normalizer)
            self.cached_num_tokens = nnx.Cache(state.num_tokens)
        else:
            self.cached_memory[...] = state.memory
            self.cached_log_normalizer[...] = state.log_normalizer  # type: ignore[index]
            self.cached_num_tokens[...] = state.num_tokens  # type: ignore[index]
