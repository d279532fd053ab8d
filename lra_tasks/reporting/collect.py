"""Collection of the runs of one task, from their folders, into a `Report`."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lra_tasks.config import Config, flat, read_config
from lra_tasks.data.dataset import Dataset, open_dataset
from lra_tasks.errors import RunFailed, UsageError
from lra_tasks.files import write_json
from lra_tasks.model.mixers import about
from lra_tasks.presets import preset_of
from lra_tasks.progress import Progress
from lra_tasks.reporting.results import Failure, Report, Row, Run, Trial, base_of
from lra_tasks.tasks import get_task
from lra_tasks.training.metrics import Metrics
from lra_tasks.training.run_folder import FAILURE, read_failure

EXPLANATION = (
    "Accuracy is that on the test split; several seeds give mean ± sample standard deviation, as for"
    " examples/s. Examples/s are those of the median training step. Memory is that of the compiled training"
    " step: arguments, outputs and temporaries. Time covers training and validation."
)
ORDER = "comparison.json"  # names of the runs' folders, in the order of the table
TRIALS = "rates.json"  # the learning rates that `compare` tried; their runs are below the folder `rates`
BASELINES = "baselines.json"  # baseline scores, and the identity of the data they were measured on


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The runs in the subfolders of a folder.

    Attributes:
      folder: The folder.
      run_dirs: Folders of the runs that finished, or could not finish, in the order of the table.
      unfinished: Folders of the other runs.
      trials: Learning rates that `compare` tried.
    """

    folder: Path
    run_dirs: tuple[Path, ...]
    unfinished: tuple[Path, ...]
    trials: tuple[Trial, ...]

    @classmethod
    def read(cls, folder: Path) -> "Comparison":
        """Returns what is in a folder; without runs for a folder that is no comparison's."""
        order = json.loads((folder / ORDER).read_text()) if (folder / ORDER).is_file() else []
        names = dict.fromkeys([*order, *sorted(path.name for path in folder.glob("*/"))])
        runs = [folder / name for name in names if (folder / name / "config.json").is_file()]
        ended = [run_dir for run_dir in runs if _has_ended(run_dir)]
        others = [run_dir for run_dir in runs if run_dir not in ended]
        tried = json.loads((folder / TRIALS).read_text()) if (folder / TRIALS).is_file() else []
        return cls(folder, tuple(ended), tuple(others), tuple(Trial(**fields) for fields in tried))

    @property
    def task(self) -> str:
        """The name of the task."""
        return read_config(self.run_dirs[0]).task

    @property
    def title(self) -> str:
        """The name of the task, with the variant where that is another task."""
        config = read_config(self.run_dirs[0])
        return get_task(config.task).title(config.settings.variant)


def _has_ended(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("summary.json", FAILURE))


def collect(
    comparisons: Sequence[Comparison],
    dataset: Dataset | None,
    data_dir: str | os.PathLike[str] | None,
    progress: Progress,
) -> Report:
    """Returns the report on the runs of one task."""
    run_dirs = [run_dir for found in comparisons for run_dir in found.run_dirs]
    finished = [run_dir for run_dir in run_dirs if (run_dir / "summary.json").is_file()]
    done = {_run_of(run_dir) for run_dir in finished}
    failed = [path for path in run_dirs if path not in finished and _run_of(path) not in done]
    begun = {_run_of(path): None for found in comparisons for path in found.unfinished}
    run_dirs = [run_dir for run_dir in run_dirs if run_dir in finished or run_dir in failed]
    if not finished:
        raise RunFailed(
            "No run could finish. " + " ".join(f"{path}: {read_failure(path)['message']}" for path in failed)
        )
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in finished]
    trials = tuple(trial for found in comparisons for trial in found.trials)
    trials = tuple(trial for trial in trials if trial.mixer in {x["mixer"] for x in summaries})
    _check_alike(run_dirs, {"optimizer.learning_rate"} if trials else set())
    if trials:
        _check_rates(finished)
    groups: dict[str, list[tuple[dict[str, Any], Run]]] = {}
    for summary, run_dir in zip(summaries, finished, strict=True):
        groups.setdefault(summary["mixer"], []).append((summary, _run(summary, run_dir)))
    rows = tuple(
        Row(mixer, tuple(run for _, run in group), group[0][0]["num_parameters"], group[0][0]["peak_bytes"])
        for mixer, group in groups.items()
    )
    config = read_config(finished[0])

    def opened() -> Dataset:
        return dataset or open_dataset(config.task, config.settings.variant, data_dir, verify=False)

    baselines, num_test, missing = _baselines(
        comparisons[0].folder / BASELINES, summaries[0], config, opened, progress
    )
    return Report(
        task=summaries[0]["task"],
        title=summaries[0]["title"],
        rows=rows,
        baselines=baselines,
        num_test=num_test,
        notes=(
            *missing,
            f"Speed × and memory × are relative to {base_of(rows).mixer}.",
            *_parameter_rule(rows),
            *_notes(rows, summaries),
            *_smoke_rule(finished[0]),
            *_choice(trials),
        ),
        environment=summaries[0]["environment"],
        data=summaries[0]["data"],
        trials=trials,
        failures=tuple(map(_failure, failed)),
        num_steps=summaries[0]["num_steps"],
        unfinished=tuple(f"{mixer} seed {seed}" for mixer, seed in begun if (mixer, seed) not in done),
        order=tuple(dict.fromkeys(read_config(run_dir).mixer_name for run_dir in run_dirs)),
    )


def _run_of(run_dir: Path) -> tuple[str, int]:
    config = read_config(run_dir)
    return config.mixer_name, config.seed


def _check_rates(run_dirs: Sequence[Path]) -> None:
    """Refuses runs of one mixer at several learning rates, as comparisons with other seeds may choose."""
    rates: dict[str, tuple[float, Path]] = {}
    for run_dir in run_dirs:
        config = read_config(run_dir)
        rate = config.settings.optimizer.learning_rate
        first, where = rates.setdefault(config.mixer_name, (rate, run_dir))
        if rate != first:
            raise UsageError(
                f"{where} and {run_dir} have different learning rates, {first} and {rate}: one row cannot"
                f" join runs of {config.mixer_name} at both. Choose the rate with all seeds in one"
                " comparison."
            )


def _failure(run_dir: Path) -> Failure:
    config = read_config(run_dir)
    return Failure(config.mixer_name, config.seed, **read_failure(run_dir))


def _check_alike(run_dirs: Sequence[Path], chosen: set[str]) -> None:
    """Refuses runs that do not belong into one table; settings chosen per mixer may differ."""
    first, settings = run_dirs[0], _shared_settings(run_dirs[0])
    seen: dict[tuple[str, int], Path] = {}
    trained_on: dict[str, Path] = {}
    for run_dir in run_dirs:
        config, own = read_config(run_dir), _shared_settings(run_dir)
        changed = [name for name in settings if own[name] != settings[name] and name not in chosen]
        if changed:
            raise UsageError(
                f"{run_dir} differs from {first} in {', '.join(changed)}: one table cannot compare these"
                " runs. Move them to folders of their own."
            )
        run = config.mixer_name, config.seed
        if run in seen:
            raise UsageError(
                f"{seen[run]} and {run_dir} are the same run: {run[0]}, seed {run[1]}. Move one of them to"
                " another folder."
            )
        seen[run] = run_dir
        if (run_dir / "summary.json").is_file():
            summary = json.loads((run_dir / "summary.json").read_text())
            trained_on.setdefault(summary["data"]["identity"], run_dir)
    if len(trained_on) > 1:
        one, other, *_ = trained_on.values()
        raise UsageError(
            f"{other} and {one} were trained on different examples: one table cannot compare these runs. Move"
            " them to folders of their own."
        )


def _baselines(
    path: Path, summary: dict[str, Any], config: Config, opened: Callable[[], Dataset], progress: Progress
) -> tuple[dict[str, float], int | None, list[str]]:
    """Returns baseline scores, the number of test examples, and a sentence where they are unknown."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if content.get("data") != summary["data"]["identity"]:
        try:
            dataset = opened()
            if dataset.identity != summary["data"]["identity"]:
                raise UsageError("The prepared dataset has other examples than the runs.")
        except UsageError as error:
            return {}, None, [f"Baseline scores are not measured. {error}"]
        progress.show(f"{summary['title']}: measuring the baseline scores")
        splits = dataset.for_run(config.settings)
        scores = dataset.task.references(splits["train"], splits["test"])
        content = {"data": dataset.identity, "num_test": len(splits["test"]), "scores": scores}
        write_json(path, content)
    return content["scores"], content["num_test"], []


def _run(summary: dict[str, Any], folder: Path) -> Run:
    validations = [row for row in Metrics(folder / "metrics.jsonl").rows() if row["split"] == "validation"]
    return Run(
        curve=tuple((row["step"], row["accuracy"], row["seconds"]) for row in validations),
        **{
            name: summary[name]
            for name in ("seed", "test_accuracy", "examples_per_second", "seconds", "best_step")
        },
    )


def _shared_settings(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    return {"task": config.task, **flat(config.settings)}


def _parameter_rule(rows: Sequence[Row]) -> list[str]:
    """Returns a sentence on the arena's rule, if the mixer of its base Transformer is among the rows."""
    numbers = {row.mixer: row.num_parameters for row in rows}
    base = numbers.pop("softmax", None)
    if base is None or not numbers:
        return []
    shares = ", ".join(f"{mixer} {100 * (number / base - 1):+.1f} %" for mixer, number in numbers.items())
    return [f"Parameters relative to softmax (LRA allows up to +10 %): {shares}."]


def _choice(trials: Sequence[Trial]) -> list[str]:
    """Returns a sentence on the choice of the learning rates."""
    if not trials:
        return []
    return [
        f"Every mixer was trained at every learning rate with seed {trials[0].seed}; the best validation"
        " accuracy chose its rate for all seeds. The time of the choice covers the runs that did not diverge."
    ]


def _smoke_rule(folder: Path) -> list[str]:
    """Returns a warning for runs with the settings of the preset smoke."""
    config = read_config(folder)
    if preset_of(config.task, config.settings) != "smoke":
        return []
    return ["Preset smoke: a test that everything runs. Its few steps teach a model nothing."]


def _notes(rows: Sequence[Row], summaries: Sequence[dict[str, Any]]) -> list[str]:
    summary, environment = summaries[0], summaries[0]["environment"]
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("jax", "flax", "optax"))
    seeds = {row.mixer: ", ".join(str(run.seed) for run in row.runs) for row in rows}
    same = len(set(seeds.values())) == 1
    notes = [
        f"T = {summary['length']:,} tokens, {summary['num_steps']:,} steps of {summary['batch_size']}"
        f" examples, pooling {summary['pooling']}, seeds "
        + (seeds[rows[0].mixer] if same else "; ".join(f"{mixer} {seeds[mixer]}" for mixer in seeds))
        + f". {EXPLANATION}",
        "; ".join(f"{row.mixer} is {about(row.mixer)}" for row in rows) + ".",
        f"Measured on {environment['devices'][0]} ({len(environment['devices'])} device(s),"
        f" {environment['cpus']} CPUs), Python {environment['python']}, {versions};"
        f" data: {summary['data']['dataset']}, {summary['data'].get('origin', 'unknown origin')}.",
    ]
    if "unofficial" in summary["data"]:
        notes.append(f"Unofficial source of data: {summary['data']['unofficial']}.")
    if summary["protocol"] == "paper":
        notes.append(
            "Protocol paper: the training set includes the validation examples, and the best step is chosen"
            " on the test split."
        )
    readers = dict.fromkeys(other["mixer"] for other in summaries if other.get("reads_padding"))
    if readers:
        notes.append(
            f"Padding changes the outputs of {', '.join(readers)} for real tokens: the results depend on the"
            " length that inputs are padded to."
        )
    if any(other["environment"] != environment for other in summaries):
        notes.append("Some runs have other versions, machines or settings of JAX: see their env.json.")
    return notes
