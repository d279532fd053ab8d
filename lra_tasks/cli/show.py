"""Shows examples of a prepared dataset: prints texts, draws pictures to a PNG.

Datasets contain text by strangers. Before it is printed, every character that a terminal could interpret as
a command is replaced by its Python escape.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from lra_tasks.data.dataset import Source, load
from lra_tasks.errors import UsageError
from lra_tasks.files import local_path, writing
from lra_tasks.tasks import Task, get_task

BLANKS = "\t\u00a0\u2009\u200a\u202f\u3000"
INDENT = 4  # columns before a text
ACROSS = 4  # pictures per row of a PNG
MOST_PICTURES = 400  # of a PNG


def show(
    task: Task | str,
    *,
    variant: str | None = None,
    split: str = "train",
    start: int = 0,
    examples: int = 8,
    characters: int | None = 400,
    png: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> None:
    """Prints examples of a prepared dataset, or draws its pictures to a PNG.

    Args:
      task: The task or its name.
      variant: Variant of the data, as in `lra_tasks.prepare`.
      split: "train", "validation" or "test".
      start: Number of the first example.
      examples: Number of examples.
      characters: Characters shown of each text; None shows all.
      png: PNG file for the pictures; None prints instead.
      data_dir: Folder of all datasets, as in `lra_tasks.prepare`.
      console: Console to print on; None uses standard output.

    Raises:
      UsageError: If the dataset or these examples do not exist; a PNG is requested of texts, or of too many
        pictures; the file cannot be written.
    """
    task = get_task(task) if isinstance(task, str) else task
    for flag, number in (("--examples", examples), ("--characters", characters)):
        if number is not None and number < 1:
            raise UsageError(f"{flag} must be at least 1; got {number}.")
    if png is not None and not task.is_image:
        raise UsageError(f"--png draws pictures, and {task.name} consists of texts: leave --png out.")
    if png is not None and examples > MOST_PICTURES:
        raise UsageError(f"A PNG shows at most {MOST_PICTURES} pictures; got --examples {examples}.")
    png = png if png is None else local_path(png, "png")
    source = load(task, split, data_dir, variant=variant, verify=False)  # SHA-256 takes too long for a look
    if not 0 <= start <= len(source) - examples:
        raise UsageError(
            f"{source.manifest['dataset']} has {len(source):,} {split} examples, 0 to {len(source) - 1};"
            f" --start {start} and --examples {examples} ask for {start} to {start + examples - 1}."
        )
    chosen = source.__getitems__(range(start, start + examples))
    if png is not None:
        _contact_sheet(source, chosen, png)
        return
    console = console or Console(highlight=False)
    lines = [Text(line, "bold") for line in wrapped(_title(source, chosen), console.width)]
    for example in chosen:
        caption = wrapped(_caption(source, example), console.width)
        if task.is_image:
            lines += map(Text, caption)
        else:
            lines += [Text(), *(Text(line, "bold") for line in caption)]
            lines += map(Text, _text_lines(task, example, console.width, characters))
    if task.is_image:
        lines += map(Text, wrapped("--png FILE draws the pictures.", console.width))
    for line in lines:
        line.plain = line.plain.encode(console.encoding, "backslashreplace").decode(console.encoding)
        console.print(line, soft_wrap=True)


def harmless(text: str) -> str:
    r"""Returns text without characters that a terminal could act upon; line breaks stay.

    Tabs and blanks of other widths become spaces. Every other unprintable character, and every character
    that changes the direction of writing, becomes its Python escape.

    >>> print(harmless("caf\xe9 \x1b[2J"))
    café \x1b[2J
    """

    def replaced(character: str) -> str:
        if character == "\n" or character.isprintable():
            return character
        return " " if character in BLANKS else character.encode("unicode_escape").decode()

    return "".join(map(replaced, text.replace("\r\n", "\n")))


def wrapped(text: str, width: int) -> list[str]:
    """Returns lines of at most `width` columns, broken between words where possible."""
    console = Console(width=width)
    return [line.plain.rstrip() for line in Text(text).wrap(console, width, overflow="fold")]


def _title(source: Source, examples: Sequence[dict[str, Any]]) -> str:
    manifest = source.manifest
    first, last = examples[0]["index"], examples[-1]["index"]
    numbers = f"example {first:,}" if first == last else f"examples {first:,} to {last:,}"
    origin = ", not from the official files" if manifest["metadata"].get("unofficial") else ""
    return harmless(f"{manifest['dataset']}, {source.split}: {numbers} of {len(source):,}{origin}")


def _caption(source: Source, example: dict[str, Any]) -> str:
    """Number, meaning of the label, and size of an example."""
    label, task = example["label"], source.task
    names = source.manifest["metadata"].get("classes") or task.labels
    meaning = names[label] if names else f"label {label}"
    sequences = example["tokens"] if task.num_inputs == 2 else (example["tokens"],)
    size = " and ".join(f"{len(sequence):,}" for sequence in sequences) + " tokens"
    if task.is_image:
        size = f"{_side(example)} × {_side(example)} pixels"
    return harmless(f"#{example['index']}  {meaning}  {size}").replace("\n", " ")


def _side(example: dict[str, Any]) -> int:
    return round(len(example["tokens"]) ** 0.5)


def _text_lines(task: Task, example: dict[str, Any], width: int, characters: int | None) -> list[str]:
    """The beginning of each text, in lines of at most `width` columns."""
    lines = []
    sequences = example["tokens"] if task.num_inputs == 2 else (example["tokens"],)
    for name, sequence in zip(("first:", "second:"), sequences, strict=False):
        text = harmless(task.render(sequence))
        paragraphs = [text[:characters]]
        if characters is not None and len(text) > characters:
            paragraphs.append(f"... {len(text) - characters:,} more characters")
        if len(sequences) == 2:
            lines.append(f"  {name}")
        for paragraph in paragraphs:
            lines += [" " * INDENT + line for line in wrapped(paragraph, max(width - INDENT, 1))]
    return lines


def _contact_sheet(source: Source, examples: Sequence[dict[str, Any]], png: Path) -> None:
    from matplotlib.figure import Figure  # without pyplot: a notebook keeps its own backend

    rows = -(-len(examples) // ACROSS)
    figure = Figure(figsize=(2 * ACROSS, 2.3 * rows + 0.5), layout="constrained")
    figure.suptitle(_title(source, examples), fontsize=9, parse_math=False)
    for axes, example in zip(figure.subplots(rows, ACROSS, squeeze=False).flat, examples, strict=False):
        picture = np.reshape(example["tokens"], (_side(example), -1))
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(_caption(source, example).rpartition("  ")[0], fontsize=8, parse_math=False)
    for axes in figure.axes:
        axes.axis("off")
    with writing(png):
        figure.savefig(png, dpi=150, format="png", metadata={"Software": None})
