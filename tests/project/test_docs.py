"""Tests of the README and the pages: Python runs, commands parse, names and files exist, the site builds."""

import importlib
import importlib.util
import os
import pkgutil
import re
import runpy
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest
from flax import nnx

import hrrformer.linen
import hrrformer.nnx
from lra_tasks import Config, preset
from lra_tasks.cli import main
from lra_tasks.model.mixers import MixerSpec

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
FENCE = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block, and the name of the file that it defines, if there is one."""

    page: Path
    language: str
    file: str
    text: str


BLOCKS = [Block(page, *found) for page in PAGES for found in FENCE.findall(page.read_text())]


def in_language(language: str) -> list:
    """Returns the blocks in a language as parameters, named by page and number."""
    named: dict[str, int] = {}
    found = []
    for block in BLOCKS:
        if block.language == language:
            named[block.page.stem] = number = named.get(block.page.stem, 0) + 1
            found.append(pytest.param(block, id=f"{block.page.stem}-{number}"))
    return found


@pytest.fixture
def files_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Writes the files that the blocks of a page define, and makes them importable."""

    def write(page: Path) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        for block in BLOCKS:
            if block.page == page and block.file:
                (tmp_path / block.file).write_text(block.text)
                monkeypatch.delitem(sys.modules, Path(block.file).stem, raising=False)

    return write


@pytest.mark.parametrize("block", in_language("python"))
def test_python_runs(
    block: Block, files_of: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files_of(block.page)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    if block.file:
        importlib.import_module(Path(block.file).stem)
    elif "jax.distributed" in block.text:  # it must come before any other use of JAX
        with socket.socket() as free:
            free.bind(("localhost", 0))
            text = block.text.replace(":9876", f":{free.getsockname()[1]}")
        subprocess.run([sys.executable, "-c", text], check=True, env=os.environ | {"XLA_FLAGS": ""})
    else:
        exec(compile(block.text, block.page.name, "exec"), {"__name__": block.page.stem})


def test_own_mixer_mixes() -> None:
    (source,) = (block.text for block in BLOCKS if block.file == "my_mixers.py")
    names: dict[str, Any] = {}
    exec(source, names)
    spec = MixerSpec(width=4, num_heads=1, qkv_features=4, length=3, dropout_rate=0.0, dtype=jnp.float32)
    mixer = names["MeanMixer"](spec, rngs=nnx.Rngs(0))
    x = jnp.arange(12.0).reshape(1, 3, 4)
    y = mixer(x, jnp.array([[True, True, False]]), deterministic=True, rngs=None)
    assert y.shape == x.shape
    assert jnp.allclose(y[0, 0], mixer.out(x[0, :2].mean(0)), atol=1e-5)


def commands(text: str) -> Iterator[list[str]]:
    """Yields the words of every command, including quoted ones, with 0 for each variable."""
    for line in re.sub(r"\\\n", " ", re.sub(r"\$\w+", "0", text)).splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if word.startswith("lra "):
                yield shlex.split(word)
            if word.strip(";&|()") and word != "do":
                command.append(word)
            elif command:
                yield command
                command = []


def test_commands_are_found() -> None:
    text = 'A=1 lra train $T & # no\nfor i in 0; do lra \\\n list; done\nssh --command "lra check"\n'
    found = [words[words.index("lra") :] for words in commands(text) if "lra" in words]
    assert found == [["lra", "train", "0"], ["lra", "list"], ["lra", "check"]]


@pytest.mark.parametrize("block", in_language("bash"))
def test_commands_parse(
    block: Block, files_of: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    files_of(block.page)
    monkeypatch.chdir(ROOT)
    config = Config(settings=preset("listops", "quick"), task="listops")
    monkeypatch.setattr(main, "read_config", lambda path: config)  # of a run that no test has made
    for words in commands(block.text):
        if "lra" in words:
            arguments = words[words.index("lra") + 1 :]
            assert main._parse(arguments) is not None or arguments == ["help"], words
        elif words[0] == "make":
            subprocess.run([*words, "--dry-run"], check=True, capture_output=True)
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]) is not None, words


def test_commands_in_text_name_modules_that_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`python -m (experiments\.\w+)", page.read_text()):
            module = name.replace("TASK", "text")
            assert importlib.util.find_spec(module) is not None, f"{page.name}: {name}"


@pytest.mark.parametrize("page", [*PAGES, CONTRIBUTING], ids=lambda page: page.stem)
def test_files_named_in_text_exist(page: Path) -> None:
    folders = "hrrformer|lra_tasks|experiments|docs|colab|tests"
    for name in re.findall(rf"`((?:{folders})/[\w/.]*)`", page.read_text()):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_layout_names_the_folders_of_the_arena() -> None:
    (layout,) = re.findall(r"^## The layout\n(.*?)^## ", CONTRIBUTING.read_text(), re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"`([\w/]+/|\w+\.py)`", layout))
    places = [ROOT, ROOT / "hrrformer", ROOT / "lra_tasks", ROOT / "experiments"]
    assert not {name for name in named if not any((place / name).exists() for place in places)}
    folders = {f"{path.parent.name}/" for path in (ROOT / "lra_tasks").glob("*/__init__.py")}
    assert folders <= named


def test_every_public_name_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    documented = {id(pkgutil.resolve_name(name)) for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in ("hrrformer", "lra_tasks")
        for path in (ROOT / package).rglob("*.py")
        if "__all__ = " in path.read_text()
    ]
    public = {
        f"{module}.{name}": pkgutil.resolve_name(f"{module}:{name}")
        for module in modules
        for name in importlib.import_module(module).__all__
    }
    public |= {
        "hrrformer.nnx.HRRAttention": hrrformer.nnx.HRRAttention,
        "hrrformer.linen.HRRAttention": hrrformer.linen.HRRAttention,
    }
    assert len(public) > 40
    assert not {name for name, value in public.items() if id(value) not in documented}


def test_pictures_are_drawn_and_shown(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "docs" / "pictures.py"))["main"](tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "pictures").iterdir()}
    shown = {name for page in PAGES for name in re.findall(r"\(pictures/([\w.]+)\)", page.read_text())}
    assert drawn == shown


def test_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="make docs installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    pages = list(tmp_path.glob("*.html"))
    assert len(pages) == len(PAGES)  # without the README, and with 404
    for page in pages:
        text = page.read_text()
        assert "arithmatex" not in text, f"{page.name}: a formula is still TeX"
        fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', text)
        assert not fetched, f"{page.name} fetches {fetched}"
