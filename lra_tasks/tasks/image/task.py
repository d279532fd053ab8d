"""Image: classification of small gray photographs, read pixel by pixel.

The task of the Long Range Arena (Tay et al. 2021, arXiv 2011.04006) on CIFAR-10 (Krizhevsky 2009, "Learning
multiple layers of features from tiny images"): 32 × 32 pixels in raster order, one gray value per token,
without augmentation. The arena validates on the last tenth of the training split; this project validates on a
tenth of every class, see `lra_tasks.sources.carving.carve`.

Token ids are the gray values 0 .. 255. Nothing is padded: 0 is a black pixel, which the arena masks.
"""

from collections.abc import Sequence
from typing import Any

from lra_tasks.config import ModelConfig
from lra_tasks.task import Examples, Task, chance
from lra_tasks.tasks import published, recipes

SIDE = 32
PIXELS = SIDE * SIDE
LEVELS = 256
CLASSES = (  # label i is the i-th class
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
RIDGE = 0.1  # times the mean variance of a pixel


def gray(red: Any, green: Any, blue: Any) -> Any:
    """Returns the gray values of colors, as TensorFlow's `rgb_to_grayscale` defines them.

    The value is floor(255.5 · (0.2989 R + 0.5870 G + 0.1140 B) / 255), computed exactly in integers.
    TensorFlow computes in float32, and its rounding may shift colors next to a whole number by one level.

    Args:
      red: uint8 array of any shape.
      green: uint8 array of the same shape.
      blue: uint8 array of the same shape.

    Returns:
      Gray values, uint8, of the same shape.
    """
    import numpy as np

    # 255.5 / (255 · 10,000) = 511 / 5,100,000; the largest numerator, 511 · 9,999 · 255, is below 2³².
    weighted = sum(
        np.multiply(plane, weight, dtype=np.uint32)
        for plane, weight in ((red, 2989), (green, 5870), (blue, 1140))
    )
    return (weighted * np.uint32(511) // np.uint32(5_100_000)).astype(np.uint8)


def validate(tokens: Sequence[int], label: int) -> str | None:
    """Returns the fault of an example, a wrong number of pixels, or None if there is none."""
    return None if len(tokens) == PIXELS else f"The picture has {len(tokens)} pixels, expected {PIXELS}."


def references(train: Examples, test: Examples) -> dict[str, float]:
    """Measures the accuracy of linear rules, with and without the positions of the pixels.

    Each rule is fitted on `train` and scored on `test`: naive Bayes on the counts of the gray values,
    smoothed by one; the class with the nearest mean picture; and linear least squares from pixels to the ten
    classes, with a ridge of a tenth of a pixel's variance. Cost: some 6 seconds for 55,000 pictures.

    Args:
      train: Examples with "tokens", integers (1024,), and "label", 0 .. 9.
      test: Examples of the same form.

    Returns:
      Name of the rule → accuracy on `test` in percent.
    """
    import numpy as np

    def read(examples: Examples) -> tuple[Any, Any]:
        """Returns pixels (number of examples, 1024) and labels."""
        pixels = np.zeros((len(examples), PIXELS), np.uint8)
        labels = np.zeros(len(examples), np.int64)
        for i, example in enumerate(examples):
            pixels[i], labels[i] = example["tokens"], example["label"]
        return pixels, labels

    def histograms(pixels: Any) -> Any:
        return np.stack([np.bincount(row, minlength=LEVELS) for row in pixels]).astype(np.float32)

    def accuracy(scores: Any) -> float:
        return 100 * float(np.mean(scores.argmax(1) == asked_labels))

    (fitted, fitted_labels), (asked, asked_labels) = read(train), read(test)
    of_class = np.eye(len(CLASSES), dtype=np.float32)[fitted_labels]

    counts = of_class.T @ histograms(fitted) + 1
    naive_bayes = histograms(asked) @ np.log(counts / counts.sum(1, keepdims=True)).T

    x, y = fitted.astype(np.float32) / 255, asked.astype(np.float32) / 255
    means = of_class.T @ x / np.maximum(of_class.sum(0), 1)[:, None]
    nearest = y @ means.T - (means**2).sum(1) / 2

    center = x.mean(0)
    x, y = x - center, y - center
    squares = (x.T @ x).astype(np.float64)
    squares[np.diag_indices(PIXELS)] += RIDGE * np.trace(squares) / PIXELS
    least_squares = y @ np.linalg.solve(squares, x.T @ of_class) + of_class.mean(0)

    labels = [[{"label": label} for label in split.tolist()] for split in (fitted_labels, asked_labels)]
    return chance(*labels) | {
        "naive Bayes on gray values": accuracy(naive_bayes),
        "nearest mean picture": accuracy(nearest),
        "linear least squares on pixels": accuracy(least_squares),
    }


TASK = Task(
    name="image",
    description="Predict which of ten classes a gray photograph of 32 × 32 pixels shows.",
    length=PIXELS,
    vocab_size=LEVELS,
    num_classes=len(CLASSES),
    num_examples={"train": 45_000, "validation": 5_000, "test": 10_000},
    builder="lra_tasks.tasks.image.builder:Image",
    references=references,
    disk_bytes=250_000_000,
    is_image=True,
    validation_from_train=True,
    validate=validate,
    published=published.of("image"),
    presets={
        "smoke": recipes.smoke("smoke", 1024),
        "quick": recipes.quick("default", 1024),
        "cpu": recipes.cpu("default", 1024, pixels="value"),
        "small": recipes.small("default", 1024, batch_size=128, num_steps=7000),
        "arena": recipes.arena_images(
            "default",
            1024,
            ModelConfig(
                width=128,
                qkv_features=64,
                num_heads=8,
                num_layers=1,
                mlp_features=128,
                dropout_rate=0.3,
                mixer_dropout_rate=0.2,
            ),
            learning_rate=5e-4,
            batch_size=256,
            epoch=175,
        ),
        "paper": recipes.paper(
            "default",
            1024,
            ModelConfig(width=256, num_heads=4, num_layers=3, mlp_features=128, positions="sinusoidal"),
            batch_size=32,
            epoch=1406,
            decay_rate=0.95,
        ),
    },
)
