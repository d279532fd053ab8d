"""Executes the notebooks: each `.py` of this folder becomes the `.ipynb` beside it, with outputs.

    python -m colab.execute                  all of them
    python -m colab.execute 1 3              those whose names begin so
    python -m colab.execute --out-dir DIR    writes to another folder

The `.py`, in jupytext's percent format, is what people edit. A notebook holds nothing that changes from one
execution to the next but for what its cells print and draw: cells are numbered, and no times are kept.
"""

import argparse
import time
from pathlib import Path

import jupytext
import nbclient
import nbformat

FOLDER = Path(__file__).parent
CELL_SECONDS = 1800


def sources() -> list[Path]:
    """Returns the notebooks' `.py` files, in order."""
    return sorted(FOLDER.glob("[0-9]_*.py"))


def read(path: Path) -> nbformat.NotebookNode:
    """Returns the notebook that a `.py` file describes, without outputs."""
    notebook = jupytext.read(path)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
    return notebook


def execute(notebook: nbformat.NotebookNode) -> None:
    """Runs all cells in a new kernel of this Python, in the repository's root, and keeps their outputs.

    Raises:
      nbclient.exceptions.CellExecutionError: if a cell raises.
    """
    client = nbclient.NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER.parent)}},
    )
    client.execute()
    # The kernel tells its own version; a notebook is for any.
    notebook.metadata.language_info = {"name": "python"}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m colab.execute", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="beginnings of names; all if not given")
    parser.add_argument("--out-dir", type=Path, default=FOLDER, help="folder of the notebooks")
    arguments = parser.parse_args()
    chosen = [p for p in sources() if not arguments.names or p.name.startswith(tuple(arguments.names))]
    unknown = [name for name in arguments.names if not any(p.name.startswith(name) for p in sources())]
    if unknown:
        parser.error(f"NAME must begin a name of {', '.join(p.stem for p in sources())}; got {unknown}.")
    for path in chosen:
        began = time.monotonic()
        notebook = read(path)
        execute(notebook)
        nbformat.write(notebook, arguments.out_dir / f"{path.stem}.ipynb")
        print(f"{path.stem}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
