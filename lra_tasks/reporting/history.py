"""Past runs: what lies in their folders, and in what two of them differ."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from lra_tasks.config import Config, flat, from_json
from lra_tasks.errors import UsageError
from lra_tasks.presets import preset_of
from lra_tasks.progress import duration
from lra_tasks.tasks import get_task
from lra_tasks.training.metrics import Metrics

State = Literal["finished", "running", "resumable", "unreadable"]


@dataclasses.dataclass(frozen=True)
class PastRun:
    """One run as its folder shows it.

    Attributes:
      folder: of the run.
      state: "finished"; "running" where a process of this machine trains it; "resumable" where the same
        command goes on with it, be it that it was ended or that it failed; "unreadable" where its files do
        not tell.
      changed: when a file of it was last written.
      config: its configuration; None where it is unreadable.
      preset: the preset with just these settings, or None.
      step: steps done; of a resumable run, those that it keeps.
      test_accuracy: percent; None where it is not finished.
      validation_accuracy: the best so far, percent; None before the first validation.
      seconds: in training steps and validations; None before the first validation.
      problem: why it is unreadable.
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
    """Finds the runs in folders and in all folders below them, the latest first.

    Links below are not followed, and folders that may not be looked into are left out.

    Args:
      folders: where to look, a run's own folder among them; `runs` if none is given.

    Raises:
      UsageError: if there is no such folder.

    >>> import tempfile
    >>> runs(tempfile.mkdtemp())
    []
    """
    found: dict[Path, PastRun] = {}
    for folder in map(Path, folders or ("runs",)):
        if not folder.is_dir():
            raise UsageError(f"There is no folder {folder}. `lra train` and `lra compare` make runs.")
        for path in _run_folders(folder):
            found.setdefault(path.resolve(), _read(path))
    return sorted(found.values(), key=lambda run: run.changed, reverse=True)


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is that of a run, and not one that holds runs."""
    return os.path.isfile(Path(folder, "config.json"))


def compared(folders: Sequence[str | os.PathLike[str]]) -> dict[str, list[tuple[str, ...]]]:
    """Sets runs side by side.

    Args:
      folders: of two runs or more.

    Returns:
      Under "settings", "versions and machine" and "data" what differs, under "results" what each reached:
      lines of a name and a cell for each run, "-" where a run does not have it.

    Raises:
      UsageError: if a folder holds no run, or one that cannot be read.
    """
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not is_run(path):
            raise UsageError(f"There is no run in {path}: it holds no config.json.")
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
        environment |= environment.pop("versions", {})
    return {
        "settings": _differing([flat(run.config) for run in past if run.config is not None]),
        "versions and machine": _differing(environments),
        "data": _differing(origins),
        "results": [line for line in results if set(line[1:]) != {"-"}],
    }


def steps(run: PastRun) -> str:
    """The steps done, and of how many where some are missing.

    >>> steps(PastRun(Path("a"), "unreadable", datetime.now()))
    '-'
    """
    if run.config is None:
        return "-"
    return f"{run.step:,}" if run.step == run.config.num_steps else f"{run.step:,}/{run.config.num_steps:,}"


def title(run: PastRun) -> str:
    """The name of the run's task, with that of the dataset where it is not the arena's."""
    return "-" if run.config is None else get_task(run.config.task).title(run.config.variant)


def _run_folders(folder: Path) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return  # below are its checkpoints, thousands of files
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
        running = not summary and _is_locked(folder / ".lock")
        saved = _saved(folder / "checkpoints")
        rows = list(Metrics(folder / "metrics.jsonl").rows())
        if not summary and not running:  # rows that were not saved are dropped where the run is gone on with
            rows = [row for row in rows if row["step"] <= saved]
        validations = [row for row in rows if row["split"] == "validation"]
        known: dict[str, Any] = {"config": config, "preset": preset_of(config)}
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
        return PastRun(folder, "resumable", changed, step=saved, **known)
    except (UsageError, OSError, ValueError, KeyError, TypeError) as error:  # what damaged files bring about
        return PastRun(folder, "unreadable", changed, problem=str(error) or repr(error))


def _is_locked(path: Path) -> bool:
    """Whether a process holds the run's lock; of one on another machine the file system may not tell."""
    if not path.is_file():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # freed where the file is closed, at once
        except BlockingIOError:
            return True
        except OSError:  # a file system without such locks
            return False
    return False


def _saved(checkpoints: Path) -> int:
    """The step of the newest checkpoint; Orbax names its folder by it."""
    folders = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return max((int(path.name) for path in folders if path.name.isdigit()), default=0)


def _json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, and nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a JSON object; got {type(content).__name__}.")
    return content


def _differing(contents: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Lines of the names whose values are not the same in all."""
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
