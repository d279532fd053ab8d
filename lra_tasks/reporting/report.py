"""Reports on the runs in a folder: text, Markdown, CSV, JSON and one picture."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lra_tasks.config import Config, flat, read_config
from lra_tasks.data.dataset import Dataset, open_dataset
from lra_tasks.errors import UsageError
from lra_tasks.files import local_path, replace, write_json
from lra_tasks.model.mixers import about
from lra_tasks.presets import preset_of
from lra_tasks.progress import Progress, Silent
from lra_tasks.reporting import plots
from lra_tasks.reporting.results import Report, Row, Run, Trial, base_of
from lra_tasks.training.metrics import Metrics

EXPLANATION = (
    "Accuracy is that on the test split; several seeds give mean ± sample standard deviation, as for"
    " examples/s. Examples/s are those of the median training step. Memory is that of the compiled training"
    " step: arguments, outputs and temporaries. Time covers training and validation."
)
ORDER = "comparison.json"  # names of the runs' folders, in the order of the table
TRIALS = "rates.json"  # the learning rates that `compare` tried; their runs are below the folder `rates`
BASELINES = "baselines.json"  # baseline scores, and the identity of the data they were measured on


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
    folder = local_path(folder, "folder", flag=False)
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.")
    order = json.loads((folder / ORDER).read_text()) if (folder / ORDER).is_file() else []
    names = dict.fromkeys([*order, *sorted(path.name for path in folder.glob("*/"))])
    folders = [folder / name for name in names if (folder / name / "summary.json").is_file()]
    if not folders:
        raise UsageError(
            f"There is no finished run in the subfolders of {folder}. Name the folder that contains runs."
        )
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    tried = json.loads((folder / TRIALS).read_text()) if (folder / TRIALS).is_file() else []
    trials = tuple(Trial(**fields) for fields in tried if fields["mixer"] in {x["mixer"] for x in summaries})
    _check_alike(folders, summaries, {"optimizer.learning_rate"} if trials else set())
    groups: dict[str, list[tuple[dict[str, Any], Run]]] = {}
    for summary, run_dir in zip(summaries, folders, strict=True):
        groups.setdefault(summary["mixer"], []).append((summary, _run(summary, run_dir)))
    rows = tuple(
        Row(mixer, tuple(run for _, run in group), group[0][0]["num_parameters"], group[0][0]["peak_bytes"])
        for mixer, group in groups.items()
    )
    config = read_config(folders[0])

    def opened() -> Dataset:
        return dataset or open_dataset(config.task, config.settings.variant, data_dir, verify=False)

    baselines, num_test, missing = _baselines(
        folder / BASELINES, summaries[0], config, opened, progress or Silent()
    )
    result = Report(
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
            *_smoke_rule(folders[0]),
            *_choice(trials),
        ),
        environment=summaries[0]["environment"],
        data=summaries[0]["data"],
        trials=trials,
    )
    replace(folder / "report.md", result.markdown())
    replace(folder / "report.csv", result.csv())
    write_json(folder / "report.json", result.json())
    plots.draw(result, folder / "report.png")
    return result


def _check_alike(folders: Sequence[Path], summaries: Sequence[dict[str, Any]], chosen: set[str]) -> None:
    """Refuses runs that do not belong into one table; settings chosen per mixer may differ."""
    first, settings = folders[0], _shared_settings(folders[0])
    seen: dict[tuple[str, int], Path] = {}
    for folder, summary in zip(folders, summaries, strict=True):
        own = _shared_settings(folder)
        changed = [name for name in settings if own[name] != settings[name] and name not in chosen]
        if changed:
            raise UsageError(
                f"{folder} differs from {first} in {', '.join(changed)}: one table cannot compare these runs."
                " Move them to folders of their own."
            )
        if summary["data"]["identity"] != summaries[0]["data"]["identity"]:
            raise UsageError(
                f"{folder} and {first} were trained on different examples: one table cannot compare these"
                " runs. Move them to folders of their own."
            )
        mixer, seed = summary["mixer"], summary["seed"]
        if (mixer, seed) in seen:
            raise UsageError(
                f"{seen[mixer, seed]} and {folder} are the same run: {mixer}, seed {seed}. Move one of"
                " them to another folder."
            )
        seen[mixer, seed] = folder


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
        **{name: summary[name] for name in ("seed", "test_accuracy", "examples_per_second", "seconds")},
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
