"""Past runs: their states and results, and the differences between some of them."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from lra_tasks.config import Config, flat, from_json
from lra_tasks.errors import UsageError
from lra_tasks.files import is_locked, local_path
from lra_tasks.presets import preset_of
from lra_tasks.progress import duration
from lra_tasks.tasks import get_task
from lra_tasks.training.metrics import Metrics
from lra_tasks.training.run_folder import read_failure

State = Literal["finished", "running", "resumable", "failed", "unreadable"]


@dataclasses.dataclass(frozen=True)
class PastRun:
    """One run, as read from its folder.

    Attributes:
      folder: Folder of the run.
      state: "finished"; "running" if a process of this machine trains it; "resumable" if the command that
        began it resumes it; "failed" if it could not finish; "unreadable" if its files are damaged.
      changed: Time of the last change of its files.
      config: Configuration; None if unreadable.
      preset: Name of the preset with exactly these settings, or None.
      step: Steps done; for a resumable run, steps saved.
      test_accuracy: Test accuracy in percent; None if not finished.
      validation_accuracy: Best validation accuracy so far in percent; None before the first validation.
      seconds: Time in training steps and validations; None before the first validation.
      problem: The reason why it failed or is unreadable.
    """

    folder: Path
    state: State
    changed: datetime
    config: Config | None = None
    preset: str | None = None
    step: int = 0
    test_accuracy: float | None = None
    validation_accuracy: float | None = None
    seconds: float | None = None
    problem: str = ""


def runs(*folders: str | os.PathLike[str]) -> list[PastRun]:
    """Returns the runs in folders and in all folders below them, the latest first.

    Links below are not followed, and unreadable folders are left out.

    Args:
      folders: Folders to search, or folders of runs; `runs` if none is given.

    Raises:
      UsageError: If a folder does not exist.

    >>> import tempfile
    >>> runs(tempfile.mkdtemp())
    []
    """
    found: dict[Path, PastRun] = {}
    for folder in _paths(folders or ("runs",)):
        if not folder.is_dir():
            raise UsageError(f"The folder {folder} does not exist. `lra train` and `lra compare` make runs.")
        for path in _run_folders(folder):
            found.setdefault(path.resolve(), _read(path))
    return sorted(found.values(), key=lambda run: run.changed, reverse=True)


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is the folder of a run, and not one that contains runs."""
    return _is_run(local_path(folder, "folder", flag=False))


def compared(folders: Sequence[str | os.PathLike[str]]) -> dict[str, list[tuple[str, ...]]]:
    """Compares runs.

    Args:
      folders: Folders of two or more runs.

    Returns:
      The differences under "settings", "versions and machine" and "data", and the outcomes under "results":
      lines of a name and one cell per run, "-" if a run lacks the value.

    Raises:
      UsageError: If a folder is not the folder of a run, or the run cannot be read.
    """
    paths = _paths(folders)
    for path in paths:
        if not _is_run(path):
            raise UsageError(f"{path} is not the folder of a run: config.json is missing.")
    past = [_read(path) for path in paths]
    for run in past:
        if run.config is None:
            raise UsageError(f"The run in {run.folder} cannot be read: {run.problem}")
    summaries = [_json(path / "summary.json") for path in paths]
    results: list[tuple[str, ...]] = [
        ("state", *(run.state for run in past)),
        ("steps", *(steps(run) for run in past)),
        ("test accuracy, %", *(percent(run.test_accuracy) for run in past)),
        ("best validation, %", *(percent(run.validation_accuracy) for run in past)),
        ("at step", *(_cell(summary.get("best_step", "-")) for summary in summaries)),
        ("parameters", *(_cell(summary.get("num_parameters", "-")) for summary in summaries)),
        ("examples/s", *(_scaled(summary.get("examples_per_second")) for summary in summaries)),
        ("memory, MB", *(_scaled(summary.get("peak_bytes"), 1e-6) for summary in summaries)),
        ("time", *("-" if run.seconds is None else duration(run.seconds) for run in past)),
        ("date", *(f"{run.changed:%Y-%m-%d %H:%M}" for run in past)),
    ]
    environments = [_json(path / "env.json") for path in paths]
    origins = [_json(path / "data.json") for path in paths]
    for origin in origins:
        origin |= {"identity": origin["identity"][:12]} if "identity" in origin else {}
    for environment in environments:
        environment |= environment.pop("versions", {}) | environment.pop("jax_settings", {})
    return {
        "settings": _differing([flat(run.config) for run in past if run.config is not None]),
        "versions and machine": _differing(environments),
        "data": _differing(origins),
        "results": [line for line in results if set(line[1:]) != {"-"}],
    }


def steps(run: PastRun) -> str:
    """Returns the steps done, and the total if some are missing.

    >>> steps(PastRun(Path("a"), "unreadable", datetime.now()))
    '-'
    """
    if run.config is None:
        return "-"
    total = run.config.settings.num_steps
    return f"{run.step:,}" if run.step == total else f"{run.step:,}/{total:,}"


def title(run: PastRun) -> str:
    """Returns the name of the run's task, with the variant if it is not the arena's."""
    if run.config is None:
        return "-"
    try:
        return get_task(run.config.task).title(run.config.settings.variant)
    except UsageError:  # a task of the user's own that cannot be imported from here
        return run.config.task


def _paths(folders: Sequence[str | os.PathLike[str]]) -> list[Path]:
    return [local_path(folder, "folder", flag=False) for folder in folders]


def _is_run(folder: Path) -> bool:
    return os.path.isfile(folder / "config.json")  # False for a folder that cannot be read


def _run_folders(folder: Path) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
        return  # its checkpoints below are thousands of files
    try:
        inner = sorted(path for path in folder.iterdir() if os.path.isdir(path) and not path.is_symlink())
    except PermissionError:
        return
    for path in inner:
        yield from _run_folders(path)


def _read(folder: Path) -> PastRun:
    files = [folder / name for name in ("config.json", "metrics.jsonl", "summary.json")]
    changed = datetime.fromtimestamp(max(path.stat().st_mtime for path in files if path.exists()))
    try:
        config = from_json((folder / "config.json").read_text())
        summary = _json(folder / "summary.json")
        running = not summary and is_locked(folder / ".lock")
        saved = _saved(folder / "checkpoints")
        rows = list(Metrics(folder / "metrics.jsonl").rows())
        if not summary and not running:  # a resumed run drops the rows after its last checkpoint
            rows = [row for row in rows if row["step"] <= saved]
        validations = [row for row in rows if row["split"] == "validation"]
        known: dict[str, Any] = {"config": config, "preset": preset_of(config.task, config.settings)}
        if validations:
            known["validation_accuracy"] = max(row["accuracy"] for row in validations)
            known["seconds"] = validations[-1]["seconds"]
        if summary:
            return PastRun(
                folder,
                "finished",
                changed,
                step=summary["num_steps"],
                test_accuracy=summary["test_accuracy"],
                **known | {name: summary[name] for name in ("validation_accuracy", "seconds")},
            )
        if running:
            return PastRun(
                folder, "running", changed, step=max((row["step"] for row in rows), default=0), **known
            )
        failure = read_failure(folder)
        return PastRun(
            folder,
            "failed" if failure else "resumable",
            changed,
            step=saved,
            problem=failure.get("message", ""),
            **known,
        )
    except (UsageError, OSError, ValueError, KeyError, TypeError) as error:  # errors of damaged files
        return PastRun(folder, "unreadable", changed, problem=str(error) or repr(error))


def _saved(checkpoints: Path) -> int:
    """The step of the newest checkpoint, which is the name of its folder."""
    folders = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return max((int(path.name) for path in folders if path.name.isdigit()), default=0)


def _json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if the file is missing."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must contain a JSON object; got {type(content).__name__}.")
    return content


def _differing(contents: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Lines of the values that are not equal in all."""
    names = dict.fromkeys(name for content in contents for name in content)
    lines = ((name, *(_cell(content.get(name, "-")) for content in contents)) for name in names)
    return [line for line in lines if len(set(line[1:])) > 1]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def percent(value: float | None) -> str:
    """Returns a percentage with two decimals, or "-" for None."""
    return "-" if value is None else f"{value:.2f}"


def _scaled(value: float | None, scale: float = 1.0) -> str:
    return "-" if value is None else f"{scale * value:,.0f}"
