"""The folder of a run: its owner, and its files before the first step."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lra_tasks.config import Config, differences, read_config, to_json
from lra_tasks.errors import RunFailed, UsageError
from lra_tasks.files import folder_problem, is_added, replace, write_json
from lra_tasks.training.jax_settings import differing, numerics
from lra_tasks.training.metrics import environment

LOCK = ".lock"
FAILURE = "failure.json"  # the reason why the run could not finish; `claim` removes it
LIGHT = ("config.json", "data.json", "env.json", "metrics.jsonl", "summary.json", FAILURE)  # for reports
BEFORE = {LOCK, "config.json.new"}  # files that a killed process may leave in a folder without a run


def check_folder(run_dir: Path, config: Config) -> None:
    """Refuses a folder that contains another run or other files; changes nothing."""
    if (run_dir / "config.json").is_file():
        changed = differences(read_config(run_dir), config)
        if changed:
            raise UsageError(
                f"{run_dir} contains a run with another configuration; nothing was changed. The differences"
                f" (there, here): {'; '.join(changed)}. Give another folder, or delete that one. `lra train"
                f" --from {run_dir} --run-dir {run_dir}` resumes that run."
            )
        _check_jax_settings(run_dir)
    elif run_dir.exists() and (
        not run_dir.is_dir()
        or any(path.name not in BEFORE and not is_added(path.name) for path in run_dir.iterdir())
    ):
        raise UsageError(f"{run_dir} contains files that are not part of a run. Give another folder.")


def _check_jax_settings(run_dir: Path) -> None:
    """Refuses settings of JAX that would change the numbers of a run from here."""
    path = run_dir / "env.json"
    began: dict[str, Any] = json.loads(path.read_text()).get("jax_settings", {}) if path.is_file() else {}
    if changed := differing(began, numerics()):
        raise UsageError(
            f"The run in {run_dir} began with other settings of JAX; nothing was changed. The differences"
            f" (there, here): {changed}. Set them as they were, for example by the environment variable"
            f" {changed.partition(':')[0].upper()}, or give another folder."
        )


def check_place(run_dir: Path) -> None:
    """Refuses a folder in which checkpoints cannot be written; Orbax needs file locks for them."""
    if problem := folder_problem(run_dir):
        raise UsageError(
            f"run_dir must be a folder that can be written, on a file system with locks; {run_dir} is"
            f" {problem}. Give another folder; Lustre has locks if it is mounted with -o flock.",
            argument="run_dir",
        )


def check_data(run_dir: Path, origin: dict[str, Any]) -> None:
    """Refuses data that are not those on which the run began."""
    path = run_dir / "data.json"
    if path.is_file() and json.loads(path.read_text())["identity"] != origin["identity"]:
        raise UsageError(
            f"The run in {run_dir} began on other examples than {origin['dataset']} now contains; nothing was"
            " changed. Give another folder for a run on these, or prepare the earlier ones again."
        )


def claim(run_dir: Path, config: Config, origin: dict[str, Any]) -> None:
    """Writes the first files of a run; the configuration comes first and marks the folder as this run's."""
    with unwritable(run_dir):
        replace(run_dir / "config.json", to_json(config))
        (run_dir / FAILURE).unlink(missing_ok=True)
        write_json(run_dir / "data.json", origin)
        write_json(run_dir / "env.json", environment())
        (run_dir / "checkpoints").mkdir(exist_ok=True)


def record_failure(run_dir: Path, config: Config, error: RunFailed) -> None:
    """Writes why a run could not finish, for reports; a run that did not begin gets its configuration too."""
    with unwritable(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        if not (run_dir / "config.json").is_file():
            replace(run_dir / "config.json", to_json(config))
        write_json(run_dir / FAILURE, {"reason": error.reason, "message": str(error)})


def read_failure(run_dir: Path) -> dict[str, str]:
    """Returns the reason and the message of a run that could not finish; empty for other runs."""
    path = run_dir / FAILURE
    if not path.is_file() or (run_dir / "summary.json").is_file():
        return {}
    return json.loads(path.read_text())


@contextlib.contextmanager
def unwritable(run_dir: Path) -> Iterator[None]:
    """Converts an `OSError` on writing into a `UsageError`."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"The folder {run_dir} of the run cannot be written: {error}.") from error
