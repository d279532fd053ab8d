"""The folder of a run: its owner, and the files that it holds before the first step."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lra_tasks.config import Config, differences, read_config, to_json
from lra_tasks.errors import UsageError
from lra_tasks.files import replace, write_json
from lra_tasks.training.metrics import environment

LOCK = ".lock"
BEFORE = {LOCK, "config.json.new"}  # files that a killed process may leave before the folder is a run's


def check_folder(run_dir: Path, config: Config) -> None:
    """Refuses a folder that holds another run, or anything else; changes nothing."""
    if (run_dir / "config.json").is_file():
        changed = differences(read_config(run_dir), config)
        if changed:
            raise UsageError(
                f"{run_dir} holds a run of another configuration; nothing was changed. It differs in"
                f" (there, here): {'; '.join(changed)}. Give another folder, or delete that one."
            )
    elif run_dir.exists() and (not run_dir.is_dir() or {p.name for p in run_dir.iterdir()} - BEFORE):
        raise UsageError(f"{run_dir} holds something other than a run. Give another folder for this one.")


def check_data(run_dir: Path, origin: dict[str, Any]) -> None:
    """Refuses a run on other data than it began with."""
    path = run_dir / "data.json"
    if path.is_file() and json.loads(path.read_text())["identity"] != origin["identity"]:
        raise UsageError(
            f"The run in {run_dir} began on other examples than {origin['dataset']} now holds; nothing was"
            " changed. Give another folder for a run on these, or prepare the earlier ones again."
        )


def claim(run_dir: Path, config: Config, origin: dict[str, Any]) -> None:
    """Fills the folder, with its configuration first: from then on it is known as this run's."""
    with unwritable(run_dir):
        replace(run_dir / "config.json", to_json(config))
        write_json(run_dir / "data.json", origin)
        write_json(run_dir / "env.json", environment())
        (run_dir / "checkpoints").mkdir(exist_ok=True)


@contextlib.contextmanager
def unwritable(run_dir: Path) -> Iterator[None]:
    """Turns the system's refusal to write into a `UsageError`."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"The run's folder {run_dir} cannot be written: {error}.") from error
