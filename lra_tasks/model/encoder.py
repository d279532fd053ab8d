"""The encoder around every mixer: embedding, positions, blocks, pooling, classifier."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lra_tasks.config import ModelConfig
from lra_tasks.errors import UsageError
from lra_tasks.model.mixers import MixerSpec, get_mixer
from lra_tasks.model.positions import sinusoidal_positions


def make_dropout(config: ModelConfig) -> nnx.Dropout:
    """Returns the dropout of the encoder's states (B, T, D); a tied mask is (B, 1, D)."""
    return nnx.Dropout(config.dropout_rate, broadcast_dims=(1,) if config.tie_dropout else ())


class Block(nnx.Module):
    """One pre-norm encoder block: x + mixer(norm(x)), then x + mlp(norm(x)).

    Args:
      config: Sizes of the encoder.
      mixer: Name of the mixer, which may have options.
      length: Length of the longest sequence, without the token of the pooling "cls".
      rngs: Streams of random keys; `params` is used.
    """

    def __init__(self, config: ModelConfig, mixer: str, length: int, *, rngs: nnx.Rngs) -> None:
        width, dtype = config.width, jnp.dtype(config.dtype)
        norm = functools.partial(nnx.LayerNorm, width, dtype=dtype, rngs=rngs)
        linear = functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
        make_mixer = get_mixer(mixer)
        self.mixer_name = mixer
        self.length = length + (config.pooling == "cls")
        self.has_mixer = make_mixer is not None
        if make_mixer is not None:
            inside = config.mixer_dropout_rate
            self.mixer_norm = norm()
            self.mixer = make_mixer(
                MixerSpec(
                    width=width,
                    num_heads=config.num_heads,
                    qkv_features=config.qkv_features or width,
                    length=self.length,
                    dropout_rate=config.dropout_rate if inside is None else inside,
                    dtype=dtype,
                ),
                rngs=rngs,
            )
        self.mlp_norm = norm()
        self.mlp_in = linear(width, config.mlp_features)
        self.mlp_out = linear(config.mlp_features, width)
        self.dropout = make_dropout(config)

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
                    f" {x.shape} (batch, length, width); got"
                    f" {got if got is not None else type(mixed).__name__}."
                )
            x = x + drop(mixed)
        return x + drop(self.mlp_out(nnx.gelu(self.mlp_in(self.mlp_norm(x)))))


class Classifier(nnx.Module):
    """A sequence classifier: embedding + positions → blocks → pooling → norm → Dense-GELU-Dense.

    The same encoder and norm map both sequences of a pair to x₁ and x₂, and the Dense layers receive
    [x₁, x₂, x₁ · x₂, x₁ - x₂].

    Args:
      config: Sizes of the encoder.
      mixer: Name of the mixer, which may have options: "hrr:rescale=True".
      length: Number of positions: the length of the longest sequence.
      vocab_size: Number of token ids, including the id 0 of padding.
      num_classes: Number of logits.
      num_inputs: Number of sequences per example, 1 or 2.
      rngs: Streams of random keys; `params` is used.

    Raises:
      UsageError: If the mixer is unknown or does not take its options.
    """

    def __init__(
        self,
        config: ModelConfig,
        mixer: str,
        *,
        length: int,
        vocab_size: int,
        num_classes: int,
        num_inputs: int = 1,
        rngs: nnx.Rngs,
    ) -> None:
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.config = config
        self.num_inputs = num_inputs
        self.length = length
        self.vocab_size = vocab_size
        self.dtype = dtype
        # The arena's scales: tokens have the size of sinusoidal positions; learned positions start small.
        unit_normal, normal = nnx.initializers.normal(1.0), nnx.initializers.normal(0.02)
        if config.pixels == "value":
            self.embedding = nnx.Linear(1, width, dtype=dtype, rngs=rngs)
        else:
            self.embedding = nnx.Embed(vocab_size, width, embedding_init=unit_normal, dtype=dtype, rngs=rngs)
        if config.positions == "learned":
            self.positions = nnx.Param(normal(rngs.params(), (length, width), jnp.float32))
        if config.pooling == "cls":
            self.cls = nnx.Param(normal(rngs.params(), (1, 1, width), jnp.float32))
        self.dropout = make_dropout(config)
        self.blocks = nnx.List([Block(config, mixer, length, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        features = width if num_inputs == 1 else 4 * width
        self.head_in = nnx.Linear(features, config.mlp_features, dtype=dtype, rngs=rngs)
        self.head_out = nnx.Linear(config.mlp_features, num_classes, rngs=rngs)

    def encode(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B D"]:
        """Returns one vector per sequence, independent of padding.

        Args:
          tokens: Token ids in [0, vocab_size).
          mask: Mask that is True for real tokens.
          deterministic: Whether to disable dropout.
          rngs: Streams of random keys; `dropout` is used unless `deterministic`.

        Raises:
          UsageError: If T exceeds the number of positions, or the mixer returns an array of the wrong shape.
        """
        if tokens.shape[1] > self.length:
            raise UsageError(
                f"tokens must have at most {self.length} positions, the model's; got {tokens.shape[1]}. Train"
                " with a length that covers the longest sequence, or evaluate at the length of the run."
            )
        if self.config.pixels == "value":
            x = self.embedding((2.0 / (self.vocab_size - 1) * tokens - 1.0)[..., None])  # from -1 to 1
        else:
            x = self.embedding(tokens)
        if self.config.positions == "learned":
            x = x + self.positions[None, : x.shape[1]].astype(self.dtype)
        elif self.config.positions == "sinusoidal":
            x = x + jnp.asarray(sinusoidal_positions(*x.shape[1:]))[None].astype(self.dtype)
        if self.config.pooling == "cls":
            cls = jnp.broadcast_to(self.cls[...].astype(self.dtype), (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([cls, x], axis=1)
            mask = jnp.concatenate([jnp.ones_like(mask[:, :1]), mask], axis=1)
        x = self.dropout(x, deterministic=deterministic, rngs=rngs)
        for block in self.blocks:
            x = block(x, mask, deterministic=deterministic, rngs=rngs)
        if self.config.pooling != "mean":
            # Not x[:, 0]: the gradient of a slice is a pad, for which XLA on CPU repeats some work.
            first = jnp.arange(x.shape[1])[:, None] == 0
            return jnp.sum(jnp.where(first, x.astype(jnp.float32), 0.0), axis=1)
        weights = mask.astype(jnp.float32) / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        return jnp.einsum("bt,btd->bd", weights, x.astype(jnp.float32))

    def __call__(
        self,
        tokens: Int[Array, "B *inputs T"],
        mask: Bool[Array, "B *inputs T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B C"]:
        """Returns float32 logits (B, num_classes).

        Arguments and errors are those of `encode`; for pairs, tokens and mask are (B, 2, T).
        """
        if self.num_inputs == 2:
            rows, _, length = tokens.shape
            tokens, mask = tokens.reshape(2 * rows, length), mask.reshape(2 * rows, length)
        x = self.norm(self.encode(tokens, mask, deterministic=deterministic, rngs=rngs))
        if self.num_inputs == 2:
            first, second = x[0::2], x[1::2]
            x = jnp.concatenate([first, second, first * second, first - second], axis=-1)
        return self.head_out(nnx.gelu(self.head_in(x)))


def num_parameters(params: object) -> int:
    """Returns the number of parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
