"""`lra show`: texts in the terminal, pictures as PNG, and nothing that a terminal would obey."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import arena
from PIL import Image
from rich.console import Console

from lra_tasks.cli.show import harmless, show, wrapped
from lra_tasks.data.dataset import Source, load
from lra_tasks.data.prepare import prepare
from lra_tasks.errors import UsageError
from lra_tasks.tasks.image import task as image
from lra_tasks.tasks.pathfinder import task as pathfinder
from lra_tasks.tasks.retrieval import task as retrieval
from lra_tasks.tasks.text import task as text

ESCAPE = "\x1b"
EVIL = "\x1b]0;owned\x07 \x1b[2J $x_2$ café \u202e \x9b31m 中文 ".encode() + b"\xff\r\rend"


def make_evil(folder):
    """Files whose bytes, and a class whose name, are commands of a terminal."""
    for kind in ("plain", "\x1b[31mred"):
        for number in range(40):
            path = folder / "files" / kind / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(EVIL + f" {kind[-3:]} {number} ".encode() * 12)
    prepare("bytes", folder, variant="evil", manual_dir=folder / "files")


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    return arena.shared(tmp_path_factory, "evil", make_evil)


@pytest.fixture
def given(monkeypatch):
    """Makes `show` find stored examples of the test's own."""

    def give(task, *stored, **metadata):
        source = Source(task, "train", {"dataset": "given", "metadata": metadata}, list(stored))
        monkeypatch.setattr("lra_tasks.cli.show.load", lambda *arguments, **options: source)
        return source

    return give


@pytest.fixture(params=[image.TASK, pathfinder.PATHX], ids=["image", "pathx"])
def pictures(request, given):
    """Seven pictures of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, request.param.length), np.uint8)
    classes = {"classes": list(image.CLASSES)} if request.param.name == "image" else {}
    stored = [{"tokens": row, "label": number % 2} for number, row in enumerate(pixels)]
    return given(request.param, *stored, **classes)


def ids(content):
    return np.frombuffer(content, np.uint8)


def printed(task, *, width=80, colour=False, encoding="utf-8", **options):
    """What `show` prints, decoded."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="")
    console = Console(
        file=file,
        width=width,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        highlight=False,
        legacy_windows=False,
    )
    show(task, console=console, **options)
    file.flush()
    return raw.getvalue().decode(encoding)


# Harmlessness


def test_no_control_character_is_left():
    for character in (*map(chr, range(32)), *map(chr, range(127, 160)), *"\u2028\u202e\u2066\ufeff"):
        shown = harmless(f"a{character}b")
        if character == "\n":
            assert shown == "a\nb"
        else:
            assert shown.isprintable()
            assert shown == "a b" or shown.startswith("a\\")


def test_what_can_be_read_stays():
    assert harmless("café, 中文: €1 [bold]\r\nline") == "café, 中文: €1 [bold]\nline"


@pytest.mark.parametrize("width", [20, 60, 80])
def test_escape_sequences_are_not_sent(evil, width):
    shown = printed("bytes", variant="evil", data_dir=evil, width=width, characters=None)
    assert shown.replace("\n", "").isprintable()
    assert max(map(len, shown.splitlines())) <= width
    joined = re.sub(r"\n +", "", shown)
    assert r"\x1b]0;owned\x07" in joined
    assert r"\x1b[31mred" in joined  # the class


def test_a_text_that_would_act_on_the_terminal(given):
    given(text.TASK, {"tokens": ids(EVIL), "label": 1})
    shown = printed("text", examples=1)
    assert shown.replace("\n", "").isprintable()
    assert r"\x1b]0;owned\x07 \x1b[2J $x_2$ café \u202e \x9b31m 中文 �\r" in shown
    assert r"\x1b" in printed("text", examples=1, encoding="ascii")


# Texts


@pytest.mark.parametrize("width", [60, 80])
def test_text_fits(smoke_data, width):
    shown = printed("listops", variant="smoke", data_dir=smoke_data, width=width, examples=3)
    assert max(map(len, shown.splitlines())) <= width
    assert ESCAPE not in shown


def test_listops_shows_the_whole_expression_and_its_value(smoke_data):
    (example,) = load("listops", "test", smoke_data, variant="smoke").__getitems__([5])
    options = {"variant": "smoke", "data_dir": smoke_data, "split": "test", "start": 5, "examples": 1}
    shown = printed("listops", characters=None, **options)
    task = load("listops", "test", smoke_data, variant="smoke").task
    assert f"#5  value {example['label']}  {len(example['tokens']):,} tokens" in shown
    whole = task.render(example["tokens"])
    assert shown.split("tokens\n")[1].split() == whole.split()
    cut = printed("listops", characters=100, **options)
    assert f"... {len(whole) - 100:,} more characters" in cut
    assert "".join(cut.split("tokens\n")[1].split("...")[0].split()) == whole[:100].replace(" ", "")


def test_pairs_show_both_texts(given):
    given(retrieval.TASK, {"tokens1": ids(b"Parsing " * 9), "tokens2": ids(b"Chunking " * 5000), "label": 1})
    lines = printed("retrieval", examples=1, characters=30).splitlines()
    assert lines[2:] == [
        "#0  citation  72 and 45,000 tokens",
        "  first:",
        "    Parsing Parsing Parsing Parsin",
        "    ... 42 more characters",
        "  second:",
        "    Chunking Chunking Chunking Chu",
        "    ... 44,970 more characters",
    ]


# Pictures


@pytest.mark.parametrize("width", [20, 80])
def test_pictures_in_a_terminal(pictures, width):
    """Label and size, and how to see them."""
    shown = printed(pictures.task, width=width, examples=3)
    assert max(map(len, shown.splitlines())) <= width
    side = round(pictures.task.length**0.5)
    label = {"image": "automobile", "pathx": "joined"}[pictures.task.name]
    assert (
        f"#1  {label}  {side} × {side} pixels" in " ".join(shown.split("\n")).replace("   ", "  ")
        or width == 20
    )
    assert "--png FILE" in shown


@pytest.mark.parametrize("count", [1, 5])
def test_contact_sheet_shows_every_picture(given, tmp_path, count):
    levels = np.arange(40, 40 + 30 * count, 30, dtype=np.uint8)
    stored = [{"tokens": np.full(1024, level, np.uint8), "label": 0} for level in levels]
    given(image.TASK, *stored, classes=["$a_1$", *image.CLASSES[1:]])
    for file in ("sheet.png", "again.png"):
        show(image.TASK, examples=count, png=tmp_path / file)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    areas = [(sheet == level).sum() for level in levels]
    assert min(areas) > 150**2
    assert max(areas) < 1.1 * min(areas)
    assert (sheet[:, -4:] == 255).all()
    assert (tmp_path / "sheet.png").read_bytes() == (tmp_path / "again.png").read_bytes()


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": 9_990, "examples": 20}, ["train examples, 0 to", "ask for 9990 to 10009"]),
        ({"start": -1}, ["--start -1"]),
        ({"examples": 0}, ["--examples must be at least 1; got 0"]),
        ({"characters": 0}, ["--characters must be at least 1; got 0"]),
        ({"split": "tests"}, ["'tests'", "'test'"]),
        ({"variant": "smok"}, ["'smok'", "'smoke'"]),
        ({"variant": "default"}, ["not prepared", "`lra prepare listops"]),
        ({"png": Path("x.png")}, ["--png draws pictures", "listops"]),
    ],
)
def test_what_is_refused(smoke_data, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        printed("listops", **({"variant": "smoke", "data_dir": smoke_data} | options))
    for word in words:
        assert word in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_sheets_that_are_refused(pictures, tmp_path):
    with pytest.raises(UsageError, match=r"no/where/x.png cannot be written"):
        show(pictures.task, examples=1, png=tmp_path / "no/where/x.png")
    with pytest.raises(UsageError, match="at most 400 pictures; got --examples 401"):
        show(pictures.task, examples=401, png=tmp_path / "x.png")


def test_wrapped_never_exceeds_the_width():
    assert all(len(line) <= 10 for line in wrapped("word " * 9 + "x" * 35 + " end", 10))


def test_the_command(smoke_data):
    flags = ("--variant", "smoke", "--data-dir", smoke_data, "--examples", "1")
    result = arena.lra("show", "listops", *flags, env={"COLUMNS": "60"})
    assert result.returncode == 0, result.stderr
    assert "#0  value" in result.stdout
    assert "more characters" in result.stdout
    assert ESCAPE not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 60
    whole = arena.lra("show", "listops", *flags, "--all")
    assert "more characters" not in whole.stdout
