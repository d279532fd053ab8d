"""The encoder every mixer is put into: embedding, positions, blocks, pooling, classifier."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lra_tasks.errors import UsageError
from lra_tasks.mixers import MixerSpec, get_mixer


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The encoder, the same for every mixer.

    Attributes:
      width: D, the size of embeddings and residual stream.
      num_heads: N, heads of the mixer; divides `qkv_features`.
      qkv_features: size of queries, keys and values over all heads; None means `width`.
      num_layers: number of blocks.
      mlp_features: size of the hidden layer of each block's MLP, and of the classifier's.
      positions: a learned table, or sines and cosines of fixed frequencies.
      pooling: mean over the real tokens, or the state of a token put before the sequence. A mixer that
        never moves values between tokens (hrr, none) can learn nothing with "cls".
      dropout_rate: after the embedding, after each branch, and inside the mixer.
      dtype: of the computation; parameters, normalisation statistics and logits are float32.
    """

    width: int = 512
    num_heads: int = 8
    qkv_features: int | None = None
    num_layers: int = 4
    mlp_features: int = 1024
    positions: Literal["learned", "sinusoidal"] = "learned"
    pooling: Literal["mean", "cls"] = "mean"
    dropout_rate: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"


def sinusoidal_positions(length: int, width: int) -> np.ndarray:
    """Returns the table of Vaswani et al. 2017, (length, width) float32.

    Sines in the first half of the width and cosines in the second, at frequencies 10000^(-2i/width).
    """
    frequencies = np.exp(-np.log(10000.0) * np.arange(0, width, 2) / width)
    angles = np.outer(np.arange(length), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)[:, :width].astype(np.float32)


class Block(nnx.Module):
    """One pre-norm encoder block: x + mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, mixer: str, length: int, *, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(config.dtype)
        norm = functools.partial(nnx.LayerNorm, config.width, dtype=dtype, rngs=rngs)
        linear = functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
        mixer_class = get_mixer(mixer)
        self.mixer_name = mixer
        if mixer_class is not None:
            self.mixer_norm = norm()
            self.mixer = mixer_class(
                MixerSpec(
                    width=config.width,
                    num_heads=config.num_heads,
                    qkv_features=config.qkv_features or config.width,
                    length=length,
                    dropout_rate=config.dropout_rate,
                    dtype=dtype,
                ),
                rngs=rngs,
            )
        self.has_mixer = mixer_class is not None
        self.mlp_norm = norm()
        self.mlp_in = linear(config.width, config.mlp_features)
        self.mlp_out = linear(config.mlp_features, config.width)
        self.dropout = nnx.Dropout(config.dropout_rate)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        drop = functools.partial(self.dropout, deterministic=deterministic, rngs=rngs)
        if self.has_mixer:
            mixed = self.mixer(self.mixer_norm(x), mask, deterministic=deterministic, rngs=rngs)
            got = getattr(mixed, "shape", None)
            if got != x.shape:
                raise UsageError(
                    f"The mixer '{self.mixer_name}' must return an array of the shape of its input,"
                    f" {x.shape} (batch, length, width); it returned"
                    f" {got if got is not None else type(mixed).__name__}."
                )
            x = x + drop(mixed)
        return x + drop(self.mlp_out(nnx.gelu(self.mlp_in(self.mlp_norm(x)))))


class Classifier(nnx.Module):
    """A sequence classifier: embedding + positions → blocks → norm → pooling → Dense-GELU-Dense.

    Args:
      config: sizes and choices.
      mixer: name of the mixer, see `lra_tasks.mixers`.
      vocab_size: number of token ids, the padding's 0 included.
      num_classes: number of logits.
      length: number of positions; longer sequences are refused.
      rngs: the stream `params`.

    Raises:
      UsageError: if the heads do not divide the width, or the mixer is unknown.
    """

    def __init__(
        self,
        config: ModelConfig,
        mixer: str,
        *,
        vocab_size: int,
        num_classes: int,
        length: int,
        rngs: nnx.Rngs,
    ) -> None:
        features = config.qkv_features or config.width
        if config.num_heads < 1 or features % config.num_heads:
            raise UsageError(
                f"The number of heads must divide the width of queries, keys and values ({features}); got"
                f" {config.num_heads} heads. Change --model.num-heads, --model.width or"
                " --model.qkv-features."
            )
        dtype = jnp.dtype(config.dtype)
        self.length = length
        self.dtype = dtype
        self.pooling = config.pooling
        normal = nnx.initializers.normal(0.02)
        self.embedding = nnx.Embed(vocab_size, config.width, embedding_init=normal, dtype=dtype, rngs=rngs)
        self.learned_positions = config.positions == "learned"
        if self.learned_positions:
            self.positions = nnx.Param(normal(rngs.params(), (length, config.width), jnp.float32))
        if config.pooling == "cls":
            self.cls = nnx.Param(normal(rngs.params(), (1, 1, config.width), jnp.float32))
        self.dropout = nnx.Dropout(config.dropout_rate)
        tokens = length + (config.pooling == "cls")
        self.blocks = nnx.List([Block(config, mixer, tokens, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = nnx.LayerNorm(config.width, dtype=dtype, rngs=rngs)
        self.head_in = nnx.Linear(config.width, config.mlp_features, dtype=dtype, rngs=rngs)
        self.head_out = nnx.Linear(config.mlp_features, num_classes, dtype=jnp.float32, rngs=rngs)

    def encode(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B D"]:
        """Returns one vector a sequence; padding changes nothing.

        Args:
          tokens: ids in [0, vocab_size).
          mask: True for real tokens.
          deterministic: no dropout.
          rngs: the stream `dropout`; needed unless deterministic.

        Raises:
          UsageError: if T exceeds the number of positions, or the mixer returns a wrong shape.
        """
        if tokens.shape[1] > self.length:
            raise UsageError(
                f"The model has {self.length} positions; it was given sequences of {tokens.shape[1]} tokens."
                " Train it with a --length that covers the longest sequence, or evaluate at its own."
            )
        x = self.embedding(tokens)
        if self.learned_positions:
            positions = self.positions[: x.shape[1]]
        else:
            positions = jnp.asarray(sinusoidal_positions(*x.shape[1:]))
        x = x + positions[None].astype(self.dtype)
        if self.pooling == "cls":
            cls = jnp.broadcast_to(self.cls[...].astype(self.dtype), (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([cls, x], axis=1)
            mask = jnp.concatenate([jnp.ones_like(mask[:, :1]), mask], axis=1)
        x = self.dropout(x, deterministic=deterministic, rngs=rngs)
        for block in self.blocks:
            x = block(x, mask, deterministic=deterministic, rngs=rngs)
        x = self.norm(x)
        if self.pooling == "cls":
            return x[:, 0]
        weights = mask.astype(jnp.float32) / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        return jnp.einsum("bt,btd->bd", weights, x.astype(jnp.float32))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B C"]:
        """Returns float32 logits (B, num_classes); arguments and errors as in `encode`."""
        pooled = self.encode(tokens, mask, deterministic=deterministic, rngs=rngs)
        return self.head_out(nnx.gelu(self.head_in(pooled)))


def num_parameters(params: object) -> int:
    """Returns how many numbers a tree of parameters holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
