"""`lra show`: pictures and text in the terminal and as PNG, and nothing that a terminal would obey."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import arena
from PIL import Image
from rich.console import Console

from lra_tasks.cli.show import RAMP, harmless, reduced, show, wrapped
from lra_tasks.data.dataset import Source, load
from lra_tasks.data.prepare import prepare
from lra_tasks.errors import UsageError
from lra_tasks.tasks.image import task as image
from lra_tasks.tasks.pathfinder import task as pathfinder
from lra_tasks.tasks.retrieval import task as retrieval
from lra_tasks.tasks.text import task as text

ESCAPE = "\x1b"
TOP = 53  # pixels of a sheet above its first picture: a line of title and the captions
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
    options = {"config": "smoke", "data_dir": smoke_data, "split": "test", "start": 5, "examples": 1}
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


@pytest.mark.parametrize("side", [1, 2, 31, 60, 80, 127, 128])
def test_reduced_keeps_the_mean(side):
    picture = np.random.default_rng(side).integers(0, 256, (128, 128))
    small = reduced(picture, side)
    assert small.shape == (side, side)
    assert abs(small.mean() - picture.mean()) < 1e-9


def test_reduced_is_the_mean_of_areas():
    picture = np.arange(16.0).reshape(4, 4)
    np.testing.assert_allclose(reduced(picture, 2), [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(reduced(picture, 4), picture)
    np.testing.assert_allclose(reduced(np.diag([3.0, 6.0, 9.0]), 2)[0], [(4 * 3 + 6) / 9, 2 * 0 + 6 * 1 / 9])


@pytest.mark.parametrize("width", [20, 61, 80])
@pytest.mark.parametrize("colour", [False, True])
def test_pictures_fit(pictures, width, colour):
    shown = printed(pictures.task, width=width, colour=colour, examples=3)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert max(map(len, plain.splitlines())) <= width
    assert (ESCAPE in shown) == colour == ("▀" in shown)


@pytest.mark.parametrize("width", [128, 300])
def test_colours_are_the_pixels(pictures, width):
    side = round(pictures.task.length**0.5)
    shown = printed(pictures.task, width=width, colour=True, examples=1, start=3)
    found = re.findall(r"\x1b\[38;2;(\d+);\1;\1;48;2;(\d+);\2;\2m▀", shown)
    # A style stands once for neighbours that share it, which noise hardly has.
    blocks = re.findall(r"\x1b\[38;2;(\d+);\d+;\d+;48;2;(\d+);\d+;\d+m(▀+)", shown)
    assert len(found) == len(blocks)
    pairs = [(int(top), int(bottom)) for top, bottom, run in blocks for _ in run]
    tops, bottoms = np.array(pairs).reshape(side // 2, side, 2).transpose(2, 0, 1)
    picture = pictures[3]["tokens"].reshape(side, side)
    np.testing.assert_array_equal(tops, picture[::2])
    np.testing.assert_array_equal(bottoms, picture[1::2])


def test_brighter_pixels_take_more_ink(pictures):
    side = round(pictures.task.length**0.5)
    lines = printed(pictures.task, width=300, examples=2).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("#0")) + 1
    names = {"image": ("#0  airplane", "#1  automobile"), "pathx": ("#0  not joined", "#1  joined")}
    first, second = names[pictures.task.name]
    assert lines[start - 1].rstrip() == f"{first:{side}}  {second}"
    for number, left in enumerate((0, side + 2)):
        picture = pictures[number]["tokens"].reshape(side // 2, 2, side).mean(1)
        rows = [line[left : left + side] for line in lines[start : start + side // 2]]
        ink = [[RAMP.index(letter) for letter in row] for row in rows]
        np.testing.assert_array_equal(ink, (picture * len(RAMP) // 256).astype(int))


def test_no_color_means_letters(pictures, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    shown = printed(pictures.task, colour=True, examples=1)
    assert "▀" not in shown
    assert "38;2" not in shown


def test_an_ascii_terminal_gets_letters(pictures):
    shown = printed(pictures.task, colour=True, encoding="ascii", examples=1)
    assert "38;2" not in shown
    assert "=+" in shown


# PNGs


def test_contact_sheet_has_the_pixels(pictures, tmp_path):
    side = round(pictures.task.length**0.5)
    show(pictures.task, examples=5, start=2, png=tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    zoom, across = (5, 5) if side == 32 else (2, 3)  # five of 256 pixels stand in two rows
    for number in range(5):
        y = TOP + number // across * (zoom * side + 28)
        x = 8 + number % across * (zoom * side + 8)
        found = sheet[y : y + zoom * side, x : x + zoom * side]
        wanted = np.kron(pictures[2 + number]["tokens"].reshape(side, side), np.ones((zoom, zoom)))
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["listops", "bytes"])
def test_a_page_of_text(smoke_data, evil, tmp_path, name):
    config, folder = ("smoke", smoke_data) if name == "listops" else ("evil", evil)
    for file in ("page.png", "again.png"):
        show(name, variant=config, data_dir=folder, examples=2, png=tmp_path / file)
    page = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    assert page.shape[1] == 816
    assert 0.01 < (page < 128).mean() < 0.3
    assert (page[:, -8:] == 255).all()  # nothing runs out of it
    assert (tmp_path / "page.png").read_bytes() == (tmp_path / "again.png").read_bytes()


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": 9_990, "examples": 20}, ["train examples, 0 to", "ask for 9990 to 10009"]),
        ({"start": -1}, ["--start -1"]),
        ({"examples": 0}, ["--examples must be at least 1; got 0"]),
        ({"characters": 0}, ["--characters must be at least 1; got 0"]),
        ({"split": "tests"}, ["'tests'", "'test'"]),
        ({"config": "smok"}, ["'smok'", "'smoke'"]),
        ({"config": "default"}, ["not prepared", "`lra prepare listops"]),
        ({"png": Path("no/where/x.png")}, ["no/where/x.png cannot be written"]),
        ({"png": Path("x.png"), "examples": 256, "characters": None}, ["pixels high", "--examples"]),
    ],
)
def test_what_is_refused(smoke_data, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        printed("listops", **({"config": "smoke", "data_dir": smoke_data} | options))
    for word in words:
        assert word in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_wrapped_never_exceeds_the_width():
    assert all(len(line) <= 10 for line in wrapped("word " * 9 + "x" * 35 + " end", 10))


def test_the_command(smoke_data, tmp_path):
    flags = ("--variant", "smoke", "--data-dir", smoke_data, "--examples", "1")
    result = arena.lra("show", "listops", *flags, env={"COLUMNS": "60"})
    assert result.returncode == 0, result.stderr
    assert "#0  value" in result.stdout
    assert "more characters" in result.stdout
    assert ESCAPE not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 60
    whole = arena.lra("show", "listops", *flags, "--all")
    assert "more characters" not in whole.stdout
    png = arena.lra("show", "listops", *flags, "--png", "page.png", cwd=tmp_path)
    assert (png.stdout, png.stderr) == ("page.png\n", "")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
