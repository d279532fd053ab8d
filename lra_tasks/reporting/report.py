"""Reports on the runs in folders: of one task, or of a grid of tasks."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lra_tasks.data.dataset import Dataset
from lra_tasks.errors import UsageError
from lra_tasks.files import local_path, replace, write_json
from lra_tasks.progress import Progress, Silent
from lra_tasks.reporting import plots
from lra_tasks.reporting.collect import Comparison, collect
from lra_tasks.reporting.grid import Grid
from lra_tasks.reporting.page import write_page
from lra_tasks.reporting.results import Report
from lra_tasks.tasks import TASKS
from lra_tasks.training.run_folder import read_failure


def report(
    folder: str | os.PathLike[str],
    *,
    dataset: Dataset | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Collects the finished runs in the subfolders of a folder, and writes the report beside them.

    Writes `report.md`, `report.csv`, `report.json` and `report.png`, and `baselines.json` if the baseline
    scores are new; they need the prepared data. Runs of `compare` are listed in its order, others by name. Of
    a comparison that chose learning rates, only the runs with the chosen ones are rows.

    Args:
      folder: Folder of a comparison.
      dataset: Dataset that is open already, for the baseline scores; None opens it where it is needed.
      data_dir: Folder of all datasets, as in `lra_tasks.prepare`.
      progress: Display of the current step; None for silence.

    Raises:
      UsageError: No finished run, two runs of one mixer and seed, or runs that differ in more than mixer and
        seed, or in their data.
    """
    folder = _existing(folder)
    found = Comparison.read(folder)
    if not found.run_dirs:
        raise UsageError(
            f"There is no finished run in the subfolders of {folder}. Name the folder that contains runs."
        )
    result = collect([found], dataset, data_dir, progress or Silent())
    replace(folder / "report.md", result.markdown())
    replace(folder / "report.csv", result.csv())
    write_json(folder / "report.json", result.json())
    plots.draw(result, folder / "report.png")
    return result


def report_grid(
    folders: Sequence[str | os.PathLike[str]],
    *,
    output: str | os.PathLike[str] | None = None,
    missing: Mapping[str, str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Grid:
    """Collects all runs in some folders and below, over tasks, and writes one report.

    The folders may come from several machines: the runs of one task become one column, wherever they are.
    Writes `report.md`, `report.csv`, `report.json`, `report.tex`, `report.png` and `report.html`, a page in
    one file.

    Args:
      folders: Folders of comparisons, or folders with comparisons below.
      output: Folder for the report; None means the deepest folder that contains all the others.
      missing: Tasks that were not run, and the reasons; those of an earlier report in the folders are kept.
      data_dir: Folder of all datasets, for the baseline scores that are not measured yet.
      progress: Display of the current step; None for silence.

    Raises:
      UsageError: No finished run, the same run twice, or runs of one task that differ in more than mixer and
        seed, or in their data.
    """
    places = [_existing(folder) for folder in folders]
    known = _missing_before(places) | dict(missing or {})
    grid = collect_grid(places, missing=known, data_dir=data_dir, progress=progress)
    target = common_folder(places) if output is None else local_path(output, "output")
    target.mkdir(parents=True, exist_ok=True)
    replace(target / "report.md", grid.markdown())
    replace(target / "report.csv", grid.csv())
    replace(target / "report.tex", grid.latex())
    write_json(target / "report.json", grid.json())
    plots.draw_grid(grid, target / "report.png")
    write_page(grid, target / "report.html")
    return grid


def collect_grid(
    places: Sequence[Path],
    *,
    missing: Mapping[str, str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Grid:
    """Collects the runs as `report_grid` does; writes baseline scores that are new, and nothing else."""
    unique = {found.folder.resolve(): found for place in places for found in _comparisons(place)}
    columns: dict[str, list[Comparison]] = {}
    for found in sorted(unique.values(), key=_column):
        columns.setdefault(found.title, []).append(found)
    reports: list[Report] = []
    unfinished = {title: reason for title, reason in (missing or {}).items() if title not in columns}
    for title, comparisons in columns.items():
        run_dirs = [run_dir for found in comparisons for run_dir in found.run_dirs]
        if any((run_dir / "summary.json").is_file() for run_dir in run_dirs):
            reports.append(collect(comparisons, None, data_dir, progress or Silent()))
        else:
            reasons = (f"{run_dir.name}: {read_failure(run_dir)['message']}" for run_dir in run_dirs)
            unfinished[title] = " ".join(reasons)
    if not reports:
        raise UsageError(f"There is no finished run in {', '.join(map(str, places))} or below.")
    return Grid(tuple(reports), unfinished)


def _missing_before(places: Sequence[Path]) -> dict[str, str]:
    """Returns the tasks that reports in the folders name as not run, and the reasons."""
    reports = [json.loads(path.read_text()) for place in places if (path := place / "report.json").is_file()]
    return {title: reason for found in reports for title, reason in found.get("missing", {}).items()}


def common_folder(folders: Sequence[str | os.PathLike[str]]) -> Path:
    """Returns the deepest folder that contains all the given ones; one folder contains itself.

    >>> common_folder(["runs/listops", "runs/image"])
    PosixPath('runs')
    """
    found = Path(os.path.commonpath([local_path(folder, "folder").absolute() for folder in folders]))
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def is_comparison(folder: str | os.PathLike[str]) -> bool:
    """Whether the runs in a folder and below are those of one comparison, which `report` makes a table of."""
    path = _existing(folder)
    return [found.folder for found in _comparisons(path)] == [path]


def _comparisons(folder: Path) -> Iterator[Comparison]:
    """Yields the comparisons in a folder and below, by name."""
    found = Comparison.read(folder)
    if found.run_dirs:
        yield found
    for path in sorted(folder.glob("*/")):
        # The checkpoints of a run are many folders, and runs that choose a rate are no rows.
        if not (path / "config.json").is_file() and path.name != "rates":
            yield from _comparisons(path)


def _column(found: Comparison) -> int:
    """Returns the place of a task among the columns: the arena's order, then tasks of the user's own."""
    names = [*TASKS]
    return names.index(found.task) if found.task in names else len(names)


def _existing(folder: str | os.PathLike[str]) -> Path:
    folder = local_path(folder, "folder", flag=False)
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.")
    return folder
