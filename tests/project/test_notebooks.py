"""The notebooks: they run, they match their sources, and their outputs contain no noise."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from colab import execute

ROOT = Path(__file__).parents[2]
SOURCES = execute.sources()
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
LARGEST = 1_000_000  # bytes of a notebook
# The beginning of an absolute path, not a part of an address or of a relative path.
ABSOLUTE = re.compile(r"(?<![\w.:/~-])/(?:content|home|mnt|opt|private|root|srv|tmp|usr|Users|var|work)/")

each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def kept(source: Path) -> nbformat.NotebookNode:
    """Returns the notebook in the repository."""
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """Returns all text in the outputs."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    streams = [output.text for output in outputs if output.output_type == "stream"]
    shown = [output.data for output in outputs if "data" in output]
    return streams + [value for data in shown for kind, value in data.items() if kind.startswith("text/")]


def assert_clean(notebook: nbformat.NotebookNode) -> None:
    """Asserts that all cells ran in order, without errors, standard error output or absolute paths."""
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in texts(notebook) if ABSOLUTE.search(text)]


def test_five_notebooks_exist() -> None:
    assert [path.name[:2] for path in SOURCES] == ["1_", "2_", "3_", "4_", "5_"]
    assert [path.stem for path in sorted(execute.FOLDER.glob("*.ipynb"))] == [path.stem for path in SOURCES]


@each
def test_a_notebook_runs_at_small_size(source: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "colab.execute", source.stem, "--out-dir", str(tmp_path)],
        env=os.environ | {"HRRFORMER_NOTEBOOK_SIZE": "small"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    executed = nbformat.read(tmp_path / f"{source.stem}.ipynb", as_version=4)
    assert_clean(executed)
    # The same cells have outputs here and in the stored notebook.
    assert [bool(cell.outputs) for cell in code(executed)] == [
        bool(cell.outputs) for cell in code(kept(source))
    ]


@each
def test_source_and_notebook_agree(source: Path) -> None:
    written, notebook = execute.read(source), kept(source)
    assert [(c.cell_type, c.id, c.source) for c in written.cells] == [
        (c.cell_type, c.id, c.source) for c in notebook.cells
    ], "make notebooks"
    assert written.metadata.kernelspec == notebook.metadata.kernelspec


@each
def test_outputs_are_kept(source: Path) -> None:
    notebook = kept(source)
    nbformat.validate(notebook)
    assert_clean(notebook)
    kinds = {kind for cell in code(notebook) for output in cell.outputs for kind in output.get("data", {})}
    assert "image/png" in kinds
    assert source.with_suffix(".ipynb").stat().st_size < LARGEST


@each
def test_begins_with_badge_and_installation(source: Path) -> None:
    badge, install, *_ = execute.read(source).cells
    owner_and_name = ADDRESS.removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{owner_and_name}/blob/main/colab/{source.stem}.ipynb"
    assert badge.source.startswith("[![Open in Colab][badge]][colab]\n\n# ")
    assert f"\n[colab]: {colab}" in badge.source
    assert f'"hrrformer[lra] @ git+{ADDRESS}"' in install.source
    assert install.source == execute.read(SOURCES[0]).cells[1].source
    assert install.source.count('if "google.colab" in sys.modules:') == 1


@each
def test_size_is_read_in_one_place(source: Path) -> None:
    cells = [cell.source for cell in code(execute.read(source))]
    assert sum(cell.count('os.environ.get("HRRFORMER_NOTEBOOK_SIZE", "default")') for cell in cells) == 1


@each
def test_links_work(source: Path) -> None:
    prose = "\n".join(cell.source for cell in execute.read(source).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\((?!https://)([^)]+)\)", prose):
        assert (execute.FOLDER / target).is_file(), target


def test_an_unknown_name_is_refused() -> None:
    command = [sys.executable, "-m", "colab.execute", "9"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert "1_holographic_memory" in ran.stderr
    assert "got ['9']" in ran.stderr


def test_a_missing_notebook_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["execute", "1", "9"])
    with pytest.raises(SystemExit):
        execute.main()
    assert "got ['9']" in capsys.readouterr().err
