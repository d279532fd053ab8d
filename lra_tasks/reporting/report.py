"""From the folders of runs to one table, as text, Markdown, CSV and JSON, and one picture."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lra_tasks.config import flat, read_config
from lra_tasks.errors import UsageError
from lra_tasks.files import replace, write_json, writing
from lra_tasks.model.mixers import about
from lra_tasks.presets import preset_of
from lra_tasks.reporting.results import Report, Row, Run, rounded
from lra_tasks.training.metrics import Metrics

ORDER = "comparison.json"  # the names of the runs' folders, in the order of the table
REFERENCES = "references.json"  # the reference lines, and the identity of the data they were measured on


def report(out_dir: str | os.PathLike[str]) -> Report:
    """Collects the finished runs in the subfolders of a folder, and writes the report beside them.

    Writes `report.md`, `report.csv`, `report.json` and `report.png`. Runs that `compare` made stand in the
    order given to it, others after them by name.

    Args:
      out_dir: folder of a comparison.

    Raises:
      UsageError: if there is no finished run, or runs differ in more than mixer and seed, or in their data.
    """
    out_dir = Path(out_dir)
    if not out_dir.is_dir():
        raise UsageError(f"There is no folder {out_dir}.")
    order = json.loads((out_dir / ORDER).read_text()) if (out_dir / ORDER).is_file() else []
    names = dict.fromkeys([*order, *sorted(path.name for path in out_dir.glob("*/"))])
    folders = [out_dir / name for name in names if (out_dir / name / "summary.json").is_file()]
    if not folders:
        raise UsageError(
            f"There is no finished run in the subfolders of {out_dir}. Name the folder that holds the runs."
        )
    shared = [_shared_settings(folder) for folder in folders]
    for folder, settings in zip(folders, shared, strict=True):
        changed = [name for name in settings if settings[name] != shared[0][name]]
        if changed:
            raise UsageError(
                f"{folder} differs from {folders[0]} in {', '.join(changed)}: these runs cannot stand in one"
                " table. Report on them apart."
            )
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    for summary, folder in zip(summaries, folders, strict=True):
        if summary["data"]["identity"] != summaries[0]["data"]["identity"]:
            raise UsageError(
                f"{folder} and {folders[0]} were trained on different examples: these runs cannot stand in"
                " one table. Report on them apart."
            )
    groups: dict[str, list[tuple[dict[str, Any], Run]]] = {}
    for summary, folder in zip(summaries, folders, strict=True):
        groups.setdefault(summary["mixer"], []).append((summary, _run(summary, folder)))
    rows = tuple(
        Row(mixer, tuple(run for _, run in group), group[0][0]["num_parameters"], group[0][0]["peak_bytes"])
        for mixer, group in groups.items()
    )
    result = Report(
        task=summaries[0]["task"],
        title=summaries[0]["title"],
        rows=rows,
        references=_references(out_dir, summaries[0]["data"]["identity"]),
        notes=(*_ratios(rows), *_parameter_rule(rows), *_notes(rows, summaries), *_smoke_rule(folders[0])),
        environment=summaries[0]["environment"],
        data=summaries[0]["data"],
    )
    replace(out_dir / "report.md", result.markdown())
    replace(out_dir / "report.csv", result.csv())
    write_json(out_dir / "report.json", result.json())
    with writing(out_dir / "report.png"):
        result.plot(out_dir / "report.png")
    return result


def _references(out_dir: Path, identity: str) -> dict[str, float]:
    """Returns the lines measured on these data, if there are any."""
    path = out_dir / REFERENCES
    content = json.loads(path.read_text()) if path.is_file() else {}
    return content["lines"] if content.get("data") == identity else {}


def _run(summary: dict[str, Any], folder: Path) -> Run:
    validations = [row for row in Metrics(folder / "metrics.jsonl").rows() if row["split"] == "validation"]
    return Run(
        curve=tuple((row["step"], row["accuracy"], row["seconds"]) for row in validations),
        **{name: summary[name] for name in ("seed", "test_accuracy", "examples_per_second", "seconds")},
    )


def _shared_settings(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    return {"task": config.task, **flat(config.settings)}


def _ratios(rows: Sequence[Row]) -> list[str]:
    """Returns a sentence for every row after the first: the first's speed and memory against its."""
    first, *others = rows
    return [
        f"{first.mixer} trains {rounded(first.examples_per_second / other.examples_per_second)} times the"
        f" examples per second of {other.mixer}, in {rounded(first.peak_bytes / other.peak_bytes)} times its"
        " memory."
        for other in others
    ]


def _parameter_rule(rows: Sequence[Row]) -> list[str]:
    """Returns a sentence on the arena's rule, where its base Transformer's mixer is among the rows."""
    numbers = {row.mixer: row.num_parameters for row in rows}
    base = numbers.pop("softmax", None)
    if base is None or not numbers:
        return []
    shares = ", ".join(f"{mixer} {100 * (number / base - 1):+.1f} %" for mixer, number in numbers.items())
    return [f"Parameters against softmax, of which the arena allows 10 % more: {shares}."]


def _smoke_rule(folder: Path) -> list[str]:
    """Returns a warning where a run, and so all, has the settings of the preset that is no race."""
    config = read_config(folder)
    if preset_of(config.task, config.settings) != "smoke":
        return []
    return ["Preset smoke: a proof that everything runs. Its few steps teach a model nothing."]


def _notes(rows: Sequence[Row], summaries: Sequence[dict[str, Any]]) -> list[str]:
    summary, environment = summaries[0], summaries[0]["environment"]
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("jax", "flax", "optax"))
    seeds = {row.mixer: ", ".join(str(run.seed) for run in row.runs) for row in rows}
    same = len(set(seeds.values())) == 1
    notes = [
        f"T = {summary['length']:,} tokens, {summary['num_steps']:,} steps of {summary['batch_size']}"
        " examples, pooling "
        + summary["pooling"]
        + ", seeds "
        + (seeds[rows[0].mixer] if same else "; ".join(f"{mixer} {seeds[mixer]}" for mixer in seeds))
        + ". Accuracy is that of the test split, the mean over the seeds, ± the sample standard deviation"
        " where there are several. Examples/s are those of the median training step. Memory is that of the"
        " compiled training step: arguments, outputs and temporaries. Time is that of training and"
        " validation.",
        "; ".join(f"{row.mixer} is {about(row.mixer)}" for row in rows) + ".",
        f"Measured on {environment['devices'][0]} ({len(environment['devices'])} device(s),"
        f" {environment['cpus']} CPUs), Python {environment['python']}, {versions};"
        f" data: {summary['data']['dataset']}, {summary['data'].get('origin', 'unknown origin')}.",
    ]
    if "unofficial" in summary["data"]:
        notes.append(f"Unofficial source of data: {summary['data']['unofficial']}.")
    if summary["protocol"] == "paper":
        notes.append(
            "Protocol paper: trained on the validation examples too, and the step chosen on the test split."
        )
    readers = dict.fromkeys(other["mixer"] for other in summaries if other.get("reads_padding"))
    if readers:
        notes.append(
            f"What stands in padding changes what {', '.join(readers)} makes of the real tokens: its results"
            " depend on the length that inputs are padded to."
        )
    if any(other["environment"] != environment for other in summaries):
        notes.append("Some runs were made with other versions or on another machine: see their env.json.")
    return notes
