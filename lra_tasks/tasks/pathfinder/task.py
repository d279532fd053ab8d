"""Pathfinder and Path-X: are two discs in a picture joined by a dashed line?

The tasks of the Long Range Arena (Tay et al. 2021, arXiv 2011.04006) after Linsley et al. (2018, arXiv
1805.08315): a gray picture in raster order, one pixel per token, with label 1 if both discs mark the ends of
one snake of paddles. Pathfinder has 32 × 32 pixels and Path-X 128 × 128, both with snakes of 14 paddles.
`drawing.py` draws the pictures; `release.py` reads those of the arena's release.

Token ids are the gray values 0 .. 255. Nothing is padded: 0 is a black pixel.
"""

from collections.abc import Sequence
from typing import Any

from lra_tasks.config import ModelConfig
from lra_tasks.task import Task
from lra_tasks.tasks import published, recipes
from lra_tasks.tasks.pathfinder.references import references
from lra_tasks.tasks.pathfinder.sizes import LEVELS, SIZES


def validate(tokens: Sequence[int], label: int) -> str | None:
    """Returns the fault of an example, an unknown size or label, or None if there is none."""
    if len(tokens) not in {size * size for size in SIZES}:
        return f"The picture has {len(tokens)} pixels, expected the square of one of {SIZES}."
    return None if label in (0, 1) else f"The label is {label}, expected 0 or 1."


def _task(name: str, size: int, **more: Any) -> Task:
    return Task(
        name=name,
        description=f"Predict whether two discs in {size} × {size} pixels mark the ends of one dashed line.",
        length=size * size,
        vocab_size=LEVELS,
        num_classes=2,
        num_examples={"train": 160_000, "validation": 20_000, "test": 20_000},
        builder="lra_tasks.tasks.pathfinder.builder:Pathfinder",
        references=references,
        labels=("not joined", "joined"),
        variant=f"{size}-14",
        equivalent_variants=(f"release-{size}-14",),
        is_image=True,
        validate=validate,
        **more,
    )


PATHFINDER = _task(
    "pathfinder",
    32,
    disk_bytes=250_000_000,
    published=published.of("pathfinder"),
    presets={
        "smoke": recipes.smoke("smoke-32", 1024),
        "quick": recipes.quick("32-14", 1024),
        "cpu": recipes.cpu("32-6", 1024, pixels="value"),
        "small": recipes.small("32-14", 1024, batch_size=128, num_steps=12_500),
        "arena": recipes.arena_images(
            "32-14",
            1024,
            ModelConfig(
                width=32,
                qkv_features=16,
                num_heads=4,
                num_layers=4,
                mlp_features=32,
                positions="sinusoidal",
                dropout_rate=0.2,
                mixer_dropout_rate=0.1,
            ),
            learning_rate=1e-3,
            batch_size=512,
            epoch=312,
        ),
        "paper": recipes.paper(
            "32-14",
            1024,
            ModelConfig(width=1024, num_heads=8, num_layers=2, mlp_features=256),
            batch_size=128,
            epoch=1250,
            decay_rate=0.95,
        ),
    },
)
PATHX = _task(
    "pathx",
    128,
    disk_bytes=1_500_000_000,
    published=published.of("pathx"),
    presets={
        "smoke": recipes.smoke("smoke-128", 16_384),
        "quick": recipes.quick("128-14", 16_384, batch_size=2, num_steps=200, eval_examples=64),
        "cpu": recipes.cpu("128-14", 16_384, pixels="value", batch_size=4, num_steps=700),
        "small": recipes.small("128-14", 16_384, batch_size=32, num_steps=10_000),
        "arena": recipes.arena_images(
            "128-14",
            16_384,
            ModelConfig(width=32, qkv_features=16, num_heads=2, num_layers=1, mlp_features=32),
            learning_rate=1e-3,
            batch_size=64,
            epoch=2500,
            clip_norm=1.0,
        ),
        "paper": recipes.paper(
            "128-14",
            16_384,
            ModelConfig(width=1024, num_heads=8, num_layers=1, mlp_features=256),
            batch_size=32,
            epoch=5000,
            decay_rate=0.95,
            weight_decay=5e-4,
        ),
    },
)
