"""HRR attention and the holographic memory as Flax Linen layers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.linear import default_kernel_init
from flax.typing import Initializer, PrecisionLike
from jaxtyping import Array, Float, PRNGKeyArray

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


class HRRAttention(nn.Module):
    """Multi-head holographic attention: `flax.linen.MultiHeadDotProductAttention` with HRR inside.

        o = W_out · concat_heads(hrr_attention(W_query x, W_key x, W_value x))

    Takes the arguments of `flax.linen.MultiHeadDotProductAttention` and builds its parameter tree:
    `query`, `key` and `value` with kernels (D, N, H) and `out` with kernel (N, H, D), so parameters move
    freely between the two and `hrrformer.nnx.HRRAttention`. Linen infers D from the input, so unlike the
    NNX layer this one does not take `in_features`. The authors' code has no biases: `use_bias=False`. For
    partitioned parameters give initializers made by `nn.with_partitioning`.

    Attributes:
      num_heads: Number of heads N, a divisor of `qkv_features`.
      qkv_features: Size N·H over all heads; None means the input's last axis.
      out_features: Size of the output's last axis; None means the input's.
      inverse, implementation, rescale, output, axis_name: As in `hrrformer.hrr_attention`.
      temperature: Initial temperature of the softmax; constant without `learn_temperature`.
      learn_temperature: Parameter `log_temperature` (N,), one temperature per head.
      dtype: Dtype of the computation; None infers it from input and parameters.
      param_dtype: Dtype of the parameters.
      broadcast_dropout: One dropout mask for the whole batch.
      dropout_rate: Probability that a weight, one per head and token, is dropped.
      deterministic: Evaluation without dropout; may be given at the call instead.
      precision: Precision of all matrix products, see `jax.lax.Precision`.
      kernel_init, bias_init, out_kernel_init, out_bias_init: Initializers; the `out_` ones default to
        the others.
      use_bias: Biases in the four projections.
      normalize_qk: Layer normalization of queries and keys over H (parameters `query_ln`, `key_ln`).
      decode: Continuation of the sequences in the collection `cache` at every call. `init` creates it for
        the number of sequences in the inputs. For each sequence it has H + 1 numbers per head and a count,
        whatever the length: `cached_memory` (*B, N, H), `cached_log_normalizer` (*B, N) and
        `cached_num_tokens` (*B,).

    Source: Alam et al., ICML 2023. `hrrformer.hrr_attention` has the formula and the differences.

    >>> import jax, jax.numpy as jnp
    >>> from hrrformer.linen import HRRAttention
    >>> layer = HRRAttention(num_heads=4)
    >>> x, mask = jnp.ones((2, 7, 32)), jnp.arange(7) < jnp.array([[7], [4]])
    >>> variables = layer.init(jax.random.key(0), x, mask=mask)
    >>> layer.apply(variables, x, mask=mask).shape
    (2, 7, 32)
    """

    num_heads: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    qkv_features: int | None = None
    out_features: int | None = None
    broadcast_dropout: bool = True
    dropout_rate: float = 0.0
    deterministic: bool | None = None
    precision: PrecisionLike = None
    kernel_init: Initializer = default_kernel_init
    out_kernel_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros_init()
    out_bias_init: Initializer | None = None
    use_bias: bool = True
    normalize_qk: bool = False
    decode: bool = False
    inverse: Inverse = "approximate"
    implementation: Implementation | None = None
    rescale: bool = False
    temperature: float = 1.0
    learn_temperature: bool = False
    output: Output = "weighted"
    axis_name: AxisName | None = None

    @nn.compact
    def __call__(
        self,
        inputs_q: Float[Array, "*B T D"],
        inputs_k: Float[Array, "*B T D"] | None = None,
        inputs_v: Float[Array, "*B T D"] | None = None,
        *,
        mask: Mask | None = None,
        deterministic: bool | None = None,
        dropout_rng: PRNGKeyArray | None = None,
        sow_weights: bool = False,
        is_causal: bool = False,
    ) -> Float[Array, "*B T O"]:
        """Applies holographic attention.

        Args:
          inputs_q: Array (*B, T, D).
          inputs_k: Array of the same shape; None means `inputs_q`.
          inputs_v: Array of the same shape; None means `inputs_k`.
          mask: Key-padding mask (*B, T) or (*B, 1, 1, T), True for real tokens; other forms as in
            `hrrformer.hrr_attention`.
          deterministic: Evaluation without dropout; required here or as an attribute if `dropout_rate` is
            not 0.
          dropout_rng: Random key for dropout, instead of that of the `dropout` collection.
          sow_weights: Sowing of the weights (*B, N, T) as `attention_weights` into `intermediates`.
          is_causal: Attention of each token to itself and to earlier tokens; always so while decoding.

        Returns:
          Output (*B, T, out_features).

        Raises:
          ValueError: If `num_heads` does not divide `qkv_features`, for `inputs_v` without `inputs_k`, a
            temperature of 0 or less, decoding without a cache; and as `hrrformer.hrr_attention`.
        """
        inputs_q, inputs_k, inputs_v = three_inputs(inputs_q, inputs_k, inputs_v)
        features = inputs_q.shape[-1]
        qkv_features = features if self.qkv_features is None else self.qkv_features
        head_dim = check_heads(self.num_heads, qkv_features, self.temperature)
        if self.dropout_rate > 0.0:
            deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
            if not deterministic and dropout_rng is None:
                dropout_rng = self.make_rng("dropout")
        else:
            deterministic = True
        linear = functools.partial(
            nn.DenseGeneral,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
        )
        project = functools.partial(
            linear,
            (self.num_heads, head_dim),
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        query = project(name="query")(inputs_q)
        key = project(name="key")(inputs_k)
        value = project(name="value")(inputs_v)
        if self.normalize_qk:
            norm = functools.partial(
                nn.LayerNorm, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype
            )
            query, key = norm(name="query_ln")(query), norm(name="key_ln")(key)
        temperature: float | Array = self.temperature
        if self.learn_temperature:
            start = nn.initializers.constant(jnp.log(self.temperature))
            temperature = jnp.exp(self.param("log_temperature", start, (self.num_heads,), self.param_dtype))
        # As in Flax's own layer, `init` creates the cache and reads no token into it.
        started = self.has_variable("cache", "cached_memory")
        cache = self._cache(query, started) if self.decode else []
        state = CausalState(*(variable.value for variable in cache)) if self.decode and started else None
        variant = Variant(
            self.inverse, self.implementation, self.rescale, self.output, self.precision, self.axis_name
        )
        x, after = attend(
            variant,
            query,
            key,
            value,
            state,
            mask=mask,
            temperature=temperature,
            is_causal=is_causal or self.decode,
            broadcast_dropout=self.broadcast_dropout,
            dropout_rng=dropout_rng,
            dropout_rate=self.dropout_rate,
            deterministic=deterministic,
            dtype=self.dtype,
            module=self if sow_weights else None,
        )
        if after is not None:
            for variable, part in zip(cache, after, strict=True):
                variable.value = part
        return linear(
            self.out_features or features,
            axis=(-2, -1),
            kernel_init=self.out_kernel_init or self.kernel_init,
            bias_init=self.out_bias_init or self.bias_init,
            name="out",
        )(x)

    def _cache(self, query: Float[Array, "*B T N H"], started: bool) -> list[nn.Variable[Any]]:
        """Returns the variables of the cache, in the order of `CausalState`."""
        if not started and not self.is_initializing():
            raise ValueError(
                "decode=True needs the collection 'cache'; got none. Take it from init of this layer."
            )
        *batch, _, heads, size = query.shape
        start = init_causal_state(tuple(batch), heads, size, accumulation_dtype(query.dtype))
        return [
            self.variable("cache", f"cached_{name}", lambda x=x: x) for name, x in start._asdict().items()
        ]


class HRRMemory(nn.Module):
    """Multi-head holographic memory: each token retrieves values of other tokens, by content and distance.

    The formula, the parameters and their meaning are those of `hrrformer.nnx.HRRMemory`. Linen infers D from
    the input. For partitioned parameters give initializers made by `nn.with_partitioning`.

    Attributes:
      num_heads: Number of heads N, a divisor of `qkv_features`.
      qkv_features: Size N·H over all heads; None means the input's last axis.
      out_features: Size of the output's last axis; None means the input's.
      horizon: Longest time, in tokens, after which a pair has faded to 1/e before training.
      num_poles: Number M of poles of a coefficient.
      cue_scale: Factor of W_query and W_key at the start, on what `kernel_init` returns.
      gate: Whether the output is gated; `out` then has twice as many columns.
      implementation, axis_name: As in `hrrformer.hrr_memory`.
      dtype: Dtype of the computation; None infers it from input and parameters.
      param_dtype: Dtype of the parameters.
      precision: Precision of all matrix products, see `jax.lax.Precision`.
      kernel_init, bias_init, out_kernel_init, out_bias_init: Initializers; the `out_` ones default to
        the others.
      use_bias: Biases in the four projections.
      decode: Continuation of the sequences in the collection `cache` at every call. `init` creates it for
        the number of sequences in the inputs: `cached_state` (*B, N, K, M), complex.

    >>> import jax, jax.numpy as jnp
    >>> from hrrformer.linen import HRRMemory
    >>> layer = HRRMemory(num_heads=4, horizon=100)
    >>> x, mask = jnp.ones((2, 7, 32)), jnp.arange(7) < jnp.array([[7], [4]])
    >>> variables = layer.init(jax.random.key(0), x, mask=mask)
    >>> layer.apply(variables, x, mask=mask).shape
    (2, 7, 32)
    """

    num_heads: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    qkv_features: int | None = None
    out_features: int | None = None
    horizon: int = 1024
    num_poles: int = 8
    cue_scale: float = 0.1
    gate: bool = True
    precision: PrecisionLike = None
    kernel_init: Initializer = default_kernel_init
    out_kernel_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros_init()
    out_bias_init: Initializer | None = None
    use_bias: bool = False
    decode: bool = False
    implementation: Method | None = None
    axis_name: AxisName | None = None

    @nn.compact
    def __call__(
        self,
        inputs_q: Float[Array, "*B T D"],
        inputs_k: Float[Array, "*B T D"] | None = None,
        inputs_v: Float[Array, "*B T D"] | None = None,
        *,
        mask: Mask | None = None,
        is_causal: bool = False,
    ) -> Float[Array, "*B T O"]:
        """Applies the memory.

        Args:
          inputs_q: Array (*B, T, D).
          inputs_k: Array of the same shape; None means `inputs_q`.
          inputs_v: Array of the same shape; None means `inputs_k`.
          mask: Key-padding mask (*B, T) or (*B, 1, 1, T), True for real tokens. Pad prompts on the left:
            masked tokens count as distance.
          is_causal: Retrieval from the token itself and earlier ones; always so while decoding.

        Returns:
          Output (*B, T, out_features).

        Raises:
          ValueError: If `num_heads` does not divide `qkv_features`, for `inputs_v` without `inputs_k`, a
            horizon of 2 or less, or decoding without a cache; and as `hrrformer.hrr_memory`.
        """
        inputs_q, inputs_k, inputs_v = three_inputs(inputs_q, inputs_k, inputs_v)
        features = inputs_q.shape[-1]
        qkv_features = features if self.qkv_features is None else self.qkv_features
        heads = (self.num_heads, check_heads(self.num_heads, qkv_features))
        linear = functools.partial(
            nn.DenseGeneral,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
        )

        def small(*arguments: Any) -> Any:  # what initializers return may be a box with metadata
            return jax.tree.map(lambda kernel: self.cue_scale * kernel, self.kernel_init(*arguments))

        project = functools.partial(linear, heads, bias_init=self.bias_init)
        query = project(name="query", kernel_init=small)(inputs_q)
        key = project(name="key", kernel_init=small)(inputs_k)
        value = project(name="value", kernel_init=self.kernel_init)(inputs_v)
        dtype = self.param_dtype
        log_rate = self.param("log_rate", initial_log_rate, *heads, self.num_poles, self.horizon, dtype)
        turn = self.param("turn", initial_turn, log_rate, self.num_poles)
        weight = self.param("weight", initial_weight, log_rate, self.num_poles)
        skip = self.param("skip", nn.initializers.ones, (qkv_features,), dtype)
        # As in Flax's own layers, `init` creates the cache and reads no token into it.
        started = self.has_variable("cache", "cached_state")
        cache = None
        if self.decode:
            if not started and not self.is_initializing():
                raise ValueError(
                    "decode=True needs the collection 'cache'; got none. Take it from init of this layer."
                )
            batch, complex_of = tuple(query.shape[:-3]), accumulation_dtype(query.dtype)
            start = init_memory_state(batch, *heads, complex_of, num_poles=self.num_poles)
            cache = self.variable("cache", "cached_state", lambda: start)
        found, state = retrieve(
            query,
            key,
            value,
            Poles(log_rate, turn, weight),
            skip,
            cache.value if cache is not None and started else None,
            mask=mask,
            is_causal=is_causal or self.decode,
            implementation=self.implementation,
            precision=self.precision,
            axis_name=self.axis_name,
        )
        if cache is not None and state is not None:
            cache.value = state
        out = linear(
            (self.out_features or features) * (1 + self.gate),
            axis=(-2, -1),
            kernel_init=self.out_kernel_init or self.kernel_init,
            bias_init=self.out_bias_init or self.bias_init,
            name="out",
        )
        return nn.glu(out(nn.gelu(found))) if self.gate else out(found)
