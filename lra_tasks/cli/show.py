"""Shows examples of a prepared dataset: pictures or text, in the terminal or as a PNG.

What stands in a dataset was written by strangers. Before it is printed, every character that a terminal
could take for a command is replaced by its Python escape.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.cells import set_cell_size
from rich.console import Console
from rich.style import Style
from rich.text import Text

from lra_tasks.data.dataset import Source, load
from lra_tasks.errors import UsageError
from lra_tasks.files import writing
from lra_tasks.tasks import Task, get_task

RAMP = " .:-=+*#%@"  # from black to white
BLANKS = "\t\u00a0\u2009\u200a\u202f\u3000"
GAP = 2  # columns between pictures
INDENT = 4  # columns before a text
LABELS = {  # of tasks whose data do not name their classes
    "retrieval": ("no citation", "citation"),
    "pathfinder": ("not joined", "joined"),
    "pathx": ("not joined", "joined"),
}

# Of PNGs, in pixels.
DPI = 100
MARGIN, CAPTION = 8, 20
PICTURE_SIDE, LEAST_WIDTH, SHEET_WIDTH, PAGE_COLUMNS = 160, 500, 1200, 100
LETTER_WIDTH, LINE_HEIGHT, POINTS = 8, 17, 9.6  # DejaVu Sans Mono: a letter is 0.602 of its size wide
MAX_HEIGHT = 30_000


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
    """Prints examples of a prepared dataset, or writes them to a PNG.

    Pictures fill the terminal's width at most, two rows of pixels a line where it shows colours; elsewhere
    they are drawn with ASCII characters, brighter ones with more ink.

    Args:
      task: The task or its name.
      variant: As in `lra_tasks.prepare`.
      split: "train", "validation" or "test".
      start: Number of the first example.
      examples: How many.
      characters: Of each text, the rest is counted; None shows all.
      png: File to write instead of printing.
      data_dir: As in `lra_tasks.prepare`.
      console: Where to print; None means standard output.

    Raises:
      UsageError: As `lra_tasks.load`; there are no such examples; they are too many for one PNG; the file
        cannot be written.
    """
    task = get_task(task) if isinstance(task, str) else task
    for flag, number in (("--examples", examples), ("--characters", characters)):
        if number is not None and number < 1:
            raise UsageError(f"{flag} must be at least 1; got {number}.")
    source = load(task, split, data_dir, variant=variant, verify=False)  # a look need not wait for SHA-256
    if not 0 <= start <= len(source) - examples:
        raise UsageError(
            f"{source.manifest['dataset']} has {len(source):,} {split} examples, 0 to {len(source) - 1};"
            f" --start {start} and --examples {examples} ask for {start} to {start + examples - 1}."
        )
    chosen = source.__getitems__(range(start, start + examples))
    title = _title(source, chosen)
    if png is not None:
        draw = _contact_sheet if task.is_image else _page
        figure = draw(task, title, chosen, [_caption(source, example) for example in chosen], characters)
        with writing(Path(png)):
            figure.savefig(png, dpi=DPI, format="png", metadata={"Software": None})
        return
    console = console or Console(highlight=False)
    lines = [Text(line, "bold") for line in wrapped(title, console.width)]
    if task.is_image:
        lines += _picture_lines(source, chosen, console)
    else:
        for example in chosen:
            caption, *body = _text_lines(task, example, _caption(source, example), console.width, characters)
            lines += [Text(), Text(caption, "bold"), *map(Text, body)]
    for line in lines:
        line.plain = line.plain.encode(console.encoding, "backslashreplace").decode(console.encoding)
        console.print(line, soft_wrap=True)


def harmless(text: str) -> str:
    r"""Returns text without a character that a terminal could act upon; line breaks stay.

    Tabs and blanks of other widths become spaces. What else cannot be printed, and whatever changes the
    direction of writing, becomes its Python escape.

    >>> print(harmless("caf\xe9 \x1b[2J"))
    café \x1b[2J
    """

    def replaced(character: str) -> str:
        if character == "\n" or character.isprintable():
            return character
        return " " if character in BLANKS else character.encode("unicode_escape").decode()

    return "".join(map(replaced, text.replace("\r\n", "\n")))


def wrapped(text: str, width: int) -> list[str]:
    """Returns lines of at most `width` columns, broken between words where that can be."""
    console = Console(width=width)
    return [line.plain.rstrip() for line in Text(text).wrap(console, width, overflow="fold")]


def reduced(picture: np.ndarray, side: int) -> np.ndarray:
    """Returns a square picture at a smaller size; a pixel becomes the mean of the area it takes.

    Args:
      picture: Numbers (S, S).
      side: s ≤ S; need not divide it.

    Returns:
      float64 (s, s), with the picture's mean.
    """
    size = len(picture)
    edges = np.arange(side + 1) * (size / side)
    pixels = np.arange(size)
    shares = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shares = np.maximum(shares, 0) * (side / size)
    return shares @ picture @ shares.T


def _title(source: Source, examples: Sequence[dict[str, Any]]) -> str:
    manifest = source.manifest
    first, last = examples[0]["index"], examples[-1]["index"]
    numbers = f"example {first:,}" if first == last else f"examples {first:,} to {last:,}"
    origin = ", not from the official files" if manifest["metadata"].get("unofficial") else ""
    return harmless(f"{manifest['dataset']}, {source.split}: {numbers} of {len(source):,}{origin}")


def _caption(source: Source, example: dict[str, Any]) -> str:
    """The example's number and what its label means."""
    label, task = example["label"], source.task
    names = source.manifest["metadata"].get("classes") or LABELS.get(task.name)
    plain = "value" if task.name == "listops" else "label"
    meaning = names[label] if names else f"{plain} {label}"
    return harmless(f"#{example['index']}  {meaning}").replace("\n", " ")


def _squares(examples: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    """The pictures of examples, uint8 (S, S)."""
    side = round(len(examples[0]["tokens"]) ** 0.5)
    return [np.asarray(example["tokens"], np.uint8).reshape(side, side) for example in examples]


def _picture_lines(source: Source, examples: Sequence[dict[str, Any]], console: Console) -> list[Text]:
    pictures = _squares(examples)
    side = min(len(pictures[0]), console.width)
    side -= side % 2  # two rows of pixels a line
    coloured = console.is_terminal and not console.no_color and console.color_system in ("256", "truecolor")
    draw = _blocks if coloured and console.encoding.startswith("utf") else _letters
    in_a_row = max(1, (console.width + GAP) // (side + GAP))
    gap = Text(" " * GAP)
    lines = []
    for begin in range(0, len(examples), in_a_row):
        captions = [
            Text(set_cell_size(_caption(source, example), side), "bold")
            for example in examples[begin : begin + in_a_row]
        ]
        columns = [draw(reduced(picture, side)) for picture in pictures[begin : begin + in_a_row]]
        lines += [Text(), gap.join(captions)]
        lines += [gap.join(row) for row in zip(*columns, strict=True)]
    return lines


def _blocks(picture: np.ndarray) -> list[Text]:
    """Lines of half blocks: the upper pixel is the colour of the block, the lower one that behind it."""
    levels = np.rint(picture).astype(int)
    return [
        Text.assemble(*(("▀", _style(top, bottom)) for top, bottom in zip(upper, lower, strict=True)))
        for upper, lower in zip(levels[::2].tolist(), levels[1::2].tolist(), strict=True)
    ]


def _style(top: int, bottom: int) -> Style:
    return Style(color=f"rgb({top},{top},{top})", bgcolor=f"rgb({bottom},{bottom},{bottom})")


def _letters(picture: np.ndarray) -> list[Text]:
    """Lines of ASCII characters, each for two pixels one above the other."""
    means = (picture[::2] + picture[1::2]) / 2
    places = np.minimum(means * len(RAMP) / 256, len(RAMP) - 1).astype(int)
    return [Text("".join(RAMP[place] for place in row)) for row in places.tolist()]


def _text_lines(
    task: Task,
    example: dict[str, Any],
    caption: str,
    width: int,
    characters: int | None,
    readable: Callable[[str], str] = harmless,
) -> list[str]:
    """The caption with the length, and the beginning of each text, in lines of at most `width` columns."""
    sequences = example["tokens"] if task.num_inputs == 2 else (example["tokens"],)
    lengths = " and ".join(f"{len(sequence):,}" for sequence in sequences)
    lines = wrapped(f"{caption}  {lengths} tokens", width)
    for name, sequence in zip(("first:", "second:"), sequences, strict=False):
        text = readable(task.render(sequence))
        shown = text[:characters]
        if len(sequences) == 2:
            lines.append(f"  {name}")
        lines += [" " * INDENT + line for line in wrapped(shown, max(width - INDENT, 1))]
        if len(shown) < len(text):
            more = f"... {len(text) - len(shown):,} more characters"
            lines += [" " * INDENT + line for line in wrapped(more, max(width - INDENT, 1))]
    return lines


def _contact_sheet(
    task: Task,
    title: str,
    examples: Sequence[dict[str, Any]],
    captions: Sequence[str],
    characters: int | None,
) -> Any:
    """A figure with every pixel of the pictures as a square of several."""
    pictures = _squares(examples)
    zoom = max(2, PICTURE_SIDE // len(pictures[0]))
    side = zoom * len(pictures[0])
    across = max(1, (SHEET_WIDTH - MARGIN) // (side + MARGIN))
    rows = -(-len(pictures) // across)
    across = -(-len(pictures) // rows)  # as many in each row
    step = side + CAPTION + MARGIN
    width = max(MARGIN + across * (side + MARGIN), LEAST_WIDTH)
    titles = wrapped(title, (width - 2 * MARGIN) // LETTER_WIDTH)
    top = len(titles) * LINE_HEIGHT + 2 * MARGIN
    figure, height = _figure(width, top + rows * step)
    for number, line in enumerate(titles, 1):
        _write(figure, MARGIN, height - MARGIN - number * LINE_HEIGHT, line, bold=True)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(number, across)
        left = MARGIN + column * (side + MARGIN)
        bottom = height - top - row * step - CAPTION - side
        _write(figure, left, bottom + side + 4, caption[: side // LETTER_WIDTH])
        enlarged = np.kron(picture, np.ones((zoom, zoom), np.uint8))
        colours = np.repeat(enlarged[:, :, None], 3, 2)  # a map from grey to colours would round
        figure.figimage(colours, left, bottom, origin="upper")
    return figure


def _page(
    task: Task,
    title: str,
    examples: Sequence[dict[str, Any]],
    captions: Sequence[str],
    characters: int | None,
) -> Any:
    """A figure with the texts, one under the other."""
    lines = [(line, True) for line in wrapped(title, PAGE_COLUMNS)]
    for example, caption in zip(examples, captions, strict=True):
        first, *rest = _text_lines(task, example, caption, PAGE_COLUMNS, characters, _drawable)
        lines += [("", False), (first, True), *((line, False) for line in rest)]
    figure, height = _figure(PAGE_COLUMNS * LETTER_WIDTH + 2 * MARGIN, len(lines) * LINE_HEIGHT + 2 * MARGIN)
    for number, (line, bold) in enumerate(lines, 1):
        _write(figure, MARGIN, height - MARGIN - number * LINE_HEIGHT, line, bold=bold)
    return figure


def _figure(width: int, height: int) -> tuple[Any, int]:
    """A white figure of so many pixels, and its height."""
    from matplotlib.figure import Figure  # without pyplot: a notebook keeps its own backend

    if height > MAX_HEIGHT:
        raise UsageError(
            f"The PNG would be {height:,} pixels high, more than {MAX_HEIGHT:,}: ask for fewer --examples, or"
            " fewer --characters."
        )
    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white"), height


def _write(figure: Any, x: int, y: int, line: str, *, bold: bool = False) -> None:
    """Writes a line of text whose lower left corner is at pixel (x, y), counted from the lower left."""
    width, height = figure.bbox.width, figure.bbox.height
    figure.text(x / width, y / height, _drawable(line), font=_font(bold), parse_math=False)


def _font(bold: bool) -> Any:
    from matplotlib.font_manager import FontProperties

    return FontProperties(family="DejaVu Sans Mono", size=POINTS, weight="bold" if bold else "normal")


def _drawable(text: str) -> str:
    """Returns text that is harmless, with escapes too for what the font lacks."""
    from matplotlib import font_manager

    known = font_manager.get_font(font_manager.findfont(_font(bold=True))).get_charmap()
    return "".join(
        c if c == "\n" or ord(c) in known else c.encode("unicode_escape").decode() for c in harmless(text)
    )
