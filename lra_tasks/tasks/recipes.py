"""Recipes: settings of the presets, as functions of a task's length and sizes."""

import dataclasses
from typing import Literal

from lra_tasks.config import ModelConfig, OptimizerConfig, Settings

ARENA_TEXT = ModelConfig(width=256, num_heads=4, num_layers=4, mlp_features=1024, positions="sinusoidal")
PAPER_TEXT = ModelConfig(width=512, num_heads=8, num_layers=6, mlp_features=1024, positions="sinusoidal")


def smoke(variant: str, length: int) -> Settings:
    """Returns settings with a tiny model and a few steps, which check that everything runs."""
    return Settings(
        variant=variant,
        length=length,
        model=ModelConfig(width=16, num_heads=2, num_layers=1, mlp_features=16, dropout_rate=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        batch_size=8,
        num_steps=12,
        eval_every=6,
        eval_examples=32,
        save_every=4,
        log_every=3,
    )


def quick(
    variant: str, length: int, *, batch_size: int = 16, num_steps: int = 300, eval_examples: int = 512
) -> Settings:
    """Returns settings with one layer of width 64, for minutes on two CPU cores."""
    return Settings(
        variant=variant,
        length=length,
        model=ModelConfig(width=64, num_heads=1, num_layers=1, mlp_features=128, dropout_rate=0.0),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50),
        batch_size=batch_size,
        num_steps=num_steps,
        eval_every=60,
        eval_examples=eval_examples,
        save_every=50,
        log_every=10,
    )


def cpu(
    variant: str,
    length: int,
    *,
    positions: Literal["learned", "sinusoidal"] = "learned",
    pixels: Literal["embedding", "value"] = "embedding",
    pooling: Literal["mean", "first"] = "mean",
    batch_size: int = 32,
    buckets: int = 1,
    num_steps: int = 1400,
) -> Settings:
    """Returns settings with two layers of width 64, for tens of minutes per run on two CPU cores."""
    return Settings(
        variant=variant,
        length=length,
        model=ModelConfig(
            width=64,
            num_heads=2,
            num_layers=2,
            mlp_features=128,
            pixels=pixels,
            positions=positions,
            pooling=pooling,
            dropout_rate=0.0,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=num_steps // 10),
        batch_size=batch_size,
        buckets=buckets,
        num_steps=num_steps,
        eval_every=num_steps // 7,
        eval_examples=1000,
        save_every=100,
        log_every=25,
    )


def small(variant: str, length: int, batch_size: int = 32, num_steps: int = 5000) -> Settings:
    """Returns settings with two layers of width 128 in bfloat16, for minutes on one GPU."""
    return Settings(
        variant=variant,
        length=length,
        model=ModelConfig(width=128, num_heads=4, num_layers=2, mlp_features=256, dtype="bfloat16"),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200, weight_decay=0.01),
        batch_size=batch_size,
        num_steps=num_steps,
    )


def first_token(settings: Settings) -> Settings:
    """Returns the settings with a classifier that reads the first token's state, for the diagnostic tasks.

    The mean over all tokens contains the places of single ones, which then need no mixer.
    """
    model = dataclasses.replace(settings.model, pooling="first", positions="sinusoidal", num_heads=4)
    return dataclasses.replace(settings, model=model)


def arena_documents(
    length: int, model: ModelConfig, warmup_steps: int, num_steps: int, variant: str = "default"
) -> Settings:
    """Returns settings with the optimizer of the arena's base Transformer on texts."""
    return Settings(
        variant=variant,
        length=length,
        model=model,
        optimizer=OptimizerConfig(
            learning_rate=0.05, schedule="rsqrt", warmup_steps=warmup_steps, weight_decay=0.1, clip_norm=None
        ),
        batch_size=32,
        num_steps=num_steps,
    )


def arena_images(
    variant: str,
    length: int,
    model: ModelConfig,
    *,
    learning_rate: float,
    batch_size: int,
    epoch: int,
    clip_norm: float | None = None,
) -> Settings:
    """Returns settings with the arena's schedule on images: 200 epochs of `epoch` steps, one of warm-up."""
    return Settings(
        variant=variant,
        length=length,
        model=model,
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_steps=epoch, clip_norm=clip_norm),
        batch_size=batch_size,
        num_steps=200 * epoch,
        eval_every=epoch,
        save_every=epoch,
    )


def paper(
    variant: str,
    length: int,
    model: ModelConfig,
    *,
    batch_size: int,
    epoch: int,
    decay_rate: float,
    weight_decay: float = 0.0,
) -> Settings:
    """Returns settings with the authors' schedule: 20 epochs of `epoch` steps, each a decay by `decay_rate`.

    The authors train on a few examples per device and do not publish the number of devices, so `batch_size`
    is a choice of this project. Their attention has no dropout inside.
    """
    return Settings(
        variant=variant,
        length=length,
        model=dataclasses.replace(model, mixer_dropout_rate=0.0),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="exponential",
            decay_rate=decay_rate,
            decay_steps=epoch,
            staircase=False,
            final_learning_rate=1e-5,
            weight_decay=weight_decay,
            b2=0.999,
            clip_norm=None,
        ),
        label_smoothing=0.1,
        batch_size=batch_size,
        num_steps=20 * epoch,
        eval_every=epoch,
        save_every=1000,
    )


def generic(variant: str, length: int) -> dict[str, Settings]:
    """Returns presets for a task without its own: those of Text at another length."""
    return {
        "smoke": smoke(variant, length),
        "quick": quick(variant, length),
        "cpu": cpu(variant, length, positions="sinusoidal", batch_size=16, buckets=4, num_steps=700),
        "small": small(variant, length),
        "arena": arena_documents(length, ARENA_TEXT, 8000, 20_000, variant),
        "paper": paper(variant, length, PAPER_TEXT, batch_size=32, epoch=1000, decay_rate=0.9),
    }
