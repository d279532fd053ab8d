"""HRR attention and the holographic memory as Flax NNX layers."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.linear import default_kernel_init
from flax.typing import Initializer, PrecisionLike
from jaxtyping import Array, Float

from hrrformer.adapter import (
    Poles,
    attend,
    check_heads,
    initial_log_rate,
    initial_turn,
    initial_weight,
    retrieve,
    three_inputs,
)
from hrrformer.arguments import Mask
from hrrformer.causal import CausalState, init_causal_state
from hrrformer.memory import Method, init_memory_state
from hrrformer.spectral import accumulation_dtype
from hrrformer.variant import AxisName, Implementation, Inverse, Output, Variant

default_bias_init: Initializer = nnx.initializers.zeros_init()
NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class HRRAttention(nnx.Module):
    """Multi-head holographic attention: `flax.nnx.MultiHeadAttention` with HRR attention inside.

        o = W_out · concat_heads(hrr_attention(W_query x, W_key x, W_value x))

    Takes the arguments of `flax.nnx.MultiHeadAttention` and builds its parameter tree: `query`, `key` and
    `value` with kernels (D, N, H) and `out` with kernel (N, H, D), so parameters move freely between the
    two and `hrrformer.linen.HRRAttention`. The authors' code has no biases: `use_bias=False`.

    Args:
      num_heads: Number of heads N, a divisor of `qkv_features`.
      in_features: Size D of the input's last axis.
      qkv_features: Size N·H over all heads; None means `in_features`.
      out_features: Size of the output's last axis; None means `in_features`.
      inverse, implementation, rescale, output, axis_name: As in `hrrformer.hrr_attention`.
      temperature: Initial temperature of the softmax; constant without `learn_temperature`.
      learn_temperature: Parameter `log_temperature` (N,), one temperature per head.
      dtype: Dtype of the computation; None infers it from input and parameters.
      param_dtype: Dtype of the parameters.
      broadcast_dropout: One dropout mask for the whole batch.
      dropout_rate: Probability that a weight, one per head and token, is dropped.
      deterministic: Evaluation without dropout; the argument of the call takes precedence.
      precision: Precision of all matrix products, see `jax.lax.Precision`.
      kernel_init, bias_init, out_kernel_init, out_bias_init: Initializers; the `out_` ones default to
        the others.
      use_bias: Biases in the four projections.
      normalize_qk: Layer normalization of queries and keys over H (parameters `query_ln`, `key_ln`).
      decode: Continuation of the sequences in the cache at every call, see `init_cache`; the argument of
        the call takes precedence.
      rngs: Random keys for the parameters, and for dropout if it is used.
      keep_rngs: Storage of a fork of the dropout stream in the layer; otherwise pass `rngs` at each call.
      kernel_metadata, bias_metadata, out_kernel_metadata, out_bias_metadata: Metadata of the parameters,
        such as `{"out_sharding": (None, "model", None)}`.

    Raises:
      ValueError: If `num_heads` does not divide `qkv_features`, or for a temperature of 0 or less.

    Source: Alam et al., ICML 2023. `hrrformer.hrr_attention` has the formula and the differences.

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
        inverse: Inverse = "approximate",
        implementation: Implementation | None = None,
        rescale: bool = False,
        temperature: float = 1.0,
        learn_temperature: bool = False,
        output: Output = "weighted",
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
        head_dim = check_heads(num_heads, qkv_features, temperature)
        self.num_heads = num_heads
        self.in_features = in_features
        self.qkv_features = qkv_features
        self.out_features: int = in_features if out_features is None else out_features
        self.dtype = dtype
        self.broadcast_dropout = broadcast_dropout
        self.dropout_rate = dropout_rate
        self.deterministic = deterministic
        self.temperature = temperature
        self.variant: Variant = Variant(inverse, implementation, rescale, output, precision, axis_name)
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
        mask: Mask | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        sow_weights: bool = False,
        decode: bool | None = None,
        is_causal: bool = False,
    ) -> Float[Array, "*B T O"]:
        """Applies holographic attention.

        Args:
          inputs_q: Array (*B, T, D).
          inputs_k: Array of the same shape; None means `inputs_q`.
          inputs_v: Array of the same shape; None means `inputs_k`.
          mask: Key-padding mask (*B, T) or (*B, 1, 1, T), True for real tokens; other forms as in
            `hrrformer.hrr_attention`.
          deterministic: Evaluation without dropout; required here or in the constructor if `dropout_rate` is
            not 0.
          rngs: Random keys for dropout, instead of the layer's own.
          sow_weights: Sowing of the weights (*B, N, T) as the `nnx.Intermediate` `attention_weights`;
            `nnx.capture(layer, nnx.Intermediate)` collects it.
          decode: Inputs that are the next token, or tokens, of the sequences in the cache, which the call
            updates.
          is_causal: Attention of each token to itself and to earlier tokens; always so while decoding.

        Returns:
          Output (*B, T, out_features).

        Raises:
          ValueError: For a wrong last axis, `inputs_v` without `inputs_k`, decoding without a cache, dropout
            without keys, `deterministic` not set with dropout; and as `hrrformer.hrr_attention`.
        """
        inputs_q, inputs_k, inputs_v = three_inputs(inputs_q, inputs_k, inputs_v)
        if inputs_q.shape[-1] != self.in_features:
            raise ValueError(
                f"inputs_q must have {self.in_features} features (in_features); got shape {inputs_q.shape}."
            )
        state = self._cached() if (self.decode if decode is None else decode) else None
        dropout_rng = None
        if self.dropout_rate > 0.0:
            deterministic = self.deterministic if deterministic is None else deterministic
            if deterministic is None:
                raise ValueError(
                    "deterministic must be set, at the call or in the constructor, with dropout."
                )
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
            self.variant,
            query,
            key,
            value,
            state,
            mask=mask,
            temperature=temperature,
            is_causal=is_causal,
            broadcast_dropout=self.broadcast_dropout,
            dropout_rng=dropout_rng,
            dropout_rate=self.dropout_rate,
            deterministic=dropout_rng is None,
            dtype=self.dtype,
            module=self if sow_weights else None,
        )
        if state is not None:
            self._cache(state)
        return self.out(mixed)

    def init_cache(self, input_shape: tuple[int, ...], dtype: Any = None) -> None:
        """Creates an empty cache; call it before decoding, and again before other sequences.

        The cache has, for each sequence, H + 1 numbers per head and a count, whatever its length: the
        `nnx.Cache` variables `cached_memory` (*B, N, H), `cached_log_normalizer` (*B, N) and
        `cached_num_tokens` (*B,). The axes of layers that `nnx.vmap` has stacked for `nnx.scan` come first.

        Args:
          input_shape: Shape (*B, T, D) of inputs; only *B matters.
          dtype: Dtype of the sums; None means float32, or float64 where the layer computes in it.

        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from hrrformer.nnx import HRRAttention
        >>> layer = HRRAttention(num_heads=4, in_features=32, decode=True, rngs=nnx.Rngs(0))
        >>> layer.init_cache((2, 1, 32))
        >>> layer(jnp.ones((2, 1, 32))).shape, layer(jnp.ones((2, 3, 32))).shape
        ((2, 1, 32), (2, 3, 32))
        """
        kernel = self.query.kernel
        if dtype is None:
            dtype = accumulation_dtype(self.dtype or kernel.dtype)
        stacked = kernel.shape[:-3]
        self._cache(init_causal_state((*stacked, *input_shape[:-2]), self.num_heads, self.head_dim, dtype))

    def set_view(
        self,
        deterministic: bool | None = None,
        decode: bool | None = None,
        batch_size: int | tuple[int, ...] | None = None,
    ) -> None:
        """Sets the modes that `nnx.view` passes on.

        Args:
          deterministic: Evaluation without dropout.
          decode: Continuation of the sequences in the cache at every call.
          batch_size: Batch shape *B of a new, empty cache.
        """
        self.deterministic = self.deterministic if deterministic is None else deterministic
        self.decode = self.decode if decode is None else decode
        if batch_size is not None:
            batch = (batch_size,) if isinstance(batch_size, int) else batch_size
            self.init_cache((*batch, 1, self.in_features))

    def _cached(self) -> CausalState:
        cached = (self.cached_memory, self.cached_log_normalizer, self.cached_num_tokens)
        if cached[0] is None or cached[1] is None or cached[2] is None:
            raise ValueError(
                "init_cache must be called before decoding; the layer has no cache yet. For a whole model use"
                " nnx.view(model, decode=True, batch_size=B)."
            )
        return CausalState(cached[0][...], cached[1][...], cached[2][...])

    def _cache(self, state: CausalState) -> None:
        """Writes the state into the variables of the cache, or creates them."""
        if self.cached_memory is None or self.cached_memory.shape != state.memory.shape:
            self.cached_memory = nnx.Cache(state.memory)
            self.cached_log_normalizer = nnx.Cache(state.log_normalizer)
            self.cached_num_tokens = nnx.Cache(state.num_tokens)
        else:
            self.cached_memory[...] = state.memory
            self.cached_log_normalizer[...] = state.log_normalizer  # type: ignore[index]
            self.cached_num_tokens[...] = state.num_tokens  # type: ignore[index]


class HRRMemory(nnx.Module):
    """Multi-head holographic memory: each token retrieves values of other tokens, by content and distance.

        q = δ + W_query x / √H,   k = δ + W_key x / √H,   v = W_value x
        h = norm(hrr_memory(q, k, v) + skip · v)
        o = a ⊙ σ(b),   [a, b] = W_out · concat_heads(gelu(h)),   or o = W_out · concat_heads(h) without gate

    δ, the unit impulse, is the identity of binding. W_query and W_key start small, so that the layer begins
    as a mixer by distance. norm divides the vector of each head by its root mean square. The layer knows the
    order of its tokens: a model does not need other positions.

    The parameters are `query`, `key`, `value` and `out` as in `HRRAttention`, and flat arrays, which weight
    decay spares where it applies to matrices alone. For each of the 2·N·K coefficients (both sides, N heads,
    K = H // 2 + 1) there are M poles. `log_rate` is the logarithm of the rates, and `turn` the phases over
    the rates; both are stored ten times as large, so that a step of Adam changes them by a tenth. `weight`
    has the real and the imaginary part of the weight w of each pole, whose gain is w √(1 - exp(-2 rate)).
    `skip` has N·H numbers.

    Args:
      num_heads: Number of heads N, a divisor of `qkv_features`.
      in_features: Size D of the input's last axis.
      qkv_features: Size N·H over all heads; None means `in_features`.
      out_features: Size of the output's last axis; None means `in_features`.
      horizon: Longest time, in tokens, after which a pair has faded to 1/e before training. Times are
        log-uniform from 2 tokens to it; take the length of the sequences.
      num_poles: Number M of poles. Those of a coefficient begin with one rate and turn by 0, 1, -1, 2, -2 …
        whole turns while they fade to 1/e.
      cue_scale: Factor of W_query and W_key at the start, on what `kernel_init` returns.
      gate: Whether the output is gated; `out` then has twice as many columns.
      implementation, axis_name: As in `hrrformer.hrr_memory`.
      dtype: Dtype of the computation; None infers it from input and parameters.
      param_dtype: Dtype of the parameters.
      precision: Precision of all matrix products, see `jax.lax.Precision`.
      kernel_init, bias_init, out_kernel_init, out_bias_init: Initializers; the `out_` ones default to
        the others.
      use_bias: Biases in the four projections.
      decode: Continuation of the sequences in the cache at every call, see `init_cache`; the argument of
        the call takes precedence.
      rngs: Random keys for the parameters.
      kernel_metadata, bias_metadata: Metadata of the parameters of query, key and value, such as
        `{"out_sharding": (None, "model", None)}`.
      out_kernel_metadata, out_bias_metadata: The same for `out`.

    Raises:
      ValueError: If `num_heads` does not divide `qkv_features`, for a horizon of 2 or less, or fewer poles
        than one.

    Source: ours; `hrrformer.hrr_memory` has the formula and its relatives. The poles begin as those of
    S4D-Lin (Gu et al. 2022).

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from hrrformer.nnx import HRRMemory
    >>> layer = HRRMemory(num_heads=4, in_features=32, horizon=100, rngs=nnx.Rngs(0))
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
        horizon: int = 1024,
        num_poles: int = 8,
        cue_scale: float = 0.1,
        gate: bool = True,
        implementation: Method | None = None,
        axis_name: AxisName | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: PrecisionLike = None,
        kernel_init: Initializer = default_kernel_init,
        out_kernel_init: Initializer | None = None,
        bias_init: Initializer = default_bias_init,
        out_bias_init: Initializer | None = None,
        use_bias: bool = False,
        decode: bool | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        out_kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        out_bias_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        qkv_features = in_features if qkv_features is None else qkv_features
        self.head_dim: int = check_heads(num_heads, qkv_features)
        self.num_heads = num_heads
        self.num_poles = num_poles
        self.in_features = in_features
        self.implementation: Method | None = implementation
        self.axis_name = axis_name
        self.dtype = dtype
        self.precision = precision
        self.decode = decode
        linear = functools.partial(
            nnx.LinearGeneral,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )
        heads = (num_heads, self.head_dim)
        project = functools.partial(
            linear,
            in_features,
            heads,
            kernel_init=kernel_init,
            bias_init=bias_init,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.query: nnx.LinearGeneral = project()
        self.key: nnx.LinearGeneral = project()
        for cue in (self.query, self.key):
            cue.kernel[...] *= cue_scale
        self.value: nnx.LinearGeneral = project()
        self.gate = gate
        self.out: nnx.LinearGeneral = linear(
            heads,
            (in_features if out_features is None else out_features) * (1 + gate),
            axis=(-2, -1),
            kernel_init=out_kernel_init or kernel_init,
            bias_init=out_bias_init or bias_init,
            kernel_metadata=out_kernel_metadata,
            bias_metadata=out_bias_metadata,
        )
        log_rate = initial_log_rate(rngs.params(), *heads, num_poles, horizon, param_dtype)
        self.log_rate: nnx.Param[Array] = nnx.Param(log_rate)
        self.turn: nnx.Param[Array] = nnx.Param(initial_turn(rngs.params(), log_rate, num_poles))
        self.weight: nnx.Param[Array] = nnx.Param(initial_weight(rngs.params(), log_rate, num_poles))
        self.skip: nnx.Param[Array] = nnx.Param(jnp.ones((qkv_features,), param_dtype))
        self.cached_state: nnx.Cache[Array] | None = nnx.data(None)

    def __call__(
        self,
        inputs_q: Float[Array, "*B T D"],
        inputs_k: Float[Array, "*B T D"] | None = None,
        inputs_v: Float[Array, "*B T D"] | None = None,
        *,
        mask: Mask | None = None,
        decode: bool | None = None,
        is_causal: bool = False,
    ) -> Float[Array, "*B T O"]:
        """Applies the memory.

        Args:
          inputs_q: Array (*B, T, D).
          inputs_k: Array of the same shape; None means `inputs_q`.
          inputs_v: Array of the same shape; None means `inputs_k`.
          mask: Key-padding mask (*B, T) or (*B, 1, 1, T), True for real tokens. Pad prompts on the left:
            masked tokens count as distance.
          decode: Inputs that are the next token, or tokens, of the sequences in the cache, which the call
            updates.
          is_causal: Retrieval from the token itself and earlier ones; always so while decoding.

        Returns:
          Output (*B, T, out_features).

        Raises:
          ValueError: For a wrong last axis, `inputs_v` without `inputs_k`, or decoding without a cache; and
            as `hrrformer.hrr_memory`.
        """
        inputs_q, inputs_k, inputs_v = three_inputs(inputs_q, inputs_k, inputs_v)
        if inputs_q.shape[-1] != self.in_features:
            raise ValueError(
                f"inputs_q must have {self.in_features} features (in_features); got shape {inputs_q.shape}."
            )
        decode = self.decode if decode is None else decode
        if decode and self.cached_state is None:
            raise ValueError(
                "init_cache must be called before decoding; the layer has no cache yet. For a whole model use"
                " nnx.view(model, decode=True, batch_size=B)."
            )
        state = self.cached_state[...] if decode and self.cached_state is not None else None
        found, state = retrieve(
            self.query(inputs_q),
            self.key(inputs_k),
            self.value(inputs_v),
            Poles(self.log_rate[...], self.turn[...], self.weight[...]),
            self.skip[...],
            state,
            mask=mask,
            is_causal=is_causal,
            implementation=self.implementation,
            precision=self.precision,
            axis_name=self.axis_name,
        )
        if state is not None and self.cached_state is not None:
            self.cached_state[...] = state
        return nnx.glu(self.out(nnx.gelu(found))) if self.gate else self.out(found)

    def init_cache(self, input_shape: tuple[int, ...], dtype: Any = None) -> None:
        """Creates an empty cache; call it before decoding, and again before other sequences.

        For each sequence the cache has N·K·M complex numbers, whatever its length: the `nnx.Cache` variable
        `cached_state` (*B, N, K, M).

        Args:
          input_shape: Shape (*B, T, D) of inputs; only *B matters.
          dtype: Dtype of real and imaginary part; None means float32, or float64 where the layer computes in
            it.

        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from hrrformer.nnx import HRRMemory
        >>> layer = HRRMemory(num_heads=4, in_features=32, decode=True, rngs=nnx.Rngs(0))
        >>> layer.init_cache((2, 1, 32))
        >>> layer(jnp.ones((2, 1, 32))).shape, layer(jnp.ones((2, 3, 32))).shape
        ((2, 1, 32), (2, 3, 32))
        """
        kernel = self.query.kernel
        dtype = accumulation_dtype(self.dtype or kernel.dtype) if dtype is None else dtype
        batch = (*kernel.shape[:-3], *input_shape[:-2])
        self.cached_state = nnx.Cache(
            init_memory_state(batch, self.num_heads, self.head_dim, dtype, num_poles=self.num_poles)
        )

    def set_view(self, decode: bool | None = None, batch_size: int | tuple[int, ...] | None = None) -> None:
        """Sets the modes that `nnx.view` passes on: `decode`, and a new cache for `batch_size` sequences."""
        self.decode = self.decode if decode is None else decode
        if batch_size is not None:
            batch = (batch_size,) if isinstance(batch_size, int) else batch_size
            self.init_cache((*batch, 1, self.in_features))
