"""Verifies prepared datasets: their files and their contents.

The manifest alone is not trusted. The code knows the number of examples, the splits that may repeat each
other, whether labels are balanced, and every label that follows from its input. Of a drawn dataset the first
examples of every split are drawn again.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lra_tasks.data.contents import contents, violations
from lra_tasks.data.dataset import load
from lra_tasks.data.location import MANIFEST, DatasetDir, damage, data_root, read_manifest
from lra_tasks.data.prepare import count_records, make_builder
from lra_tasks.errors import UsageError
from lra_tasks.files import is_added
from lra_tasks.progress import Progress, Silent
from lra_tasks.sources.builder import Example
from lra_tasks.tasks import SPLITS, TASKS, Task, get_task

NAMED = 3  # wrong examples of one split that are named
REDRAWN = 1_000  # examples of each split that are drawn again


@dataclass
class Finding:
    """The result of `check` for one dataset.

    Attributes:
      dataset: Builder, variant and version, as in the folder's path.
      problems: One sentence per problem; empty if the dataset is correct.
      num_examples: Split → count, as read; empty if it was not read.
      labels: Split → label → count.
      size: Size of the files in bytes.
      mend: The command that mends the problems.
    """

    dataset: str
    problems: list[str] = field(default_factory=list)
    num_examples: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    size: int = 0
    mend: str = ""

    def shares(self) -> str:
        """The least and the most frequent label's share of a split, over all splits, in percent."""
        shares = [
            100 * count / sum(counts.values()) for counts in self.labels.values() for count in counts.values()
        ]
        return f"{min(shares):.1f} to {max(shares):.1f}" if shares else ""


def check(
    data_dir: str | os.PathLike[str] | None = None,
    tasks: Iterable[str] | None = None,
    *,
    progress: Progress | None = None,
) -> list[Finding]:
    """Verifies every prepared dataset in a folder; a damaged one does not stop the others.

    Verified are: the size and SHA-256 of every file; its examples against the manifest; their number;
    repeated examples, where the task forbids them; the balance of the labels, where it is known; every label
    that follows from its input; and the first examples of every split of a drawn dataset, drawn again.

    Args:
      data_dir: Same as in `lra_tasks.prepare`.
      tasks: Names of tasks; None selects every task. A task that is named must have a dataset.
      progress: Where progress is shown; None shows nothing.

    Returns:
      One finding per dataset, in the order of the tasks; and one per folder in the place of a dataset that
      does not belong to this version of `lra_tasks`. Nothing is written.

    Raises:
      UsageError: If a task is unknown.

    Cost: some 100 µs per example, and reading all files twice.
    """
    progress = progress or Silent()
    wanted = list(TASKS.values()) if tasks is None else [get_task(name) for name in tasks]
    known_tasks = list({task.key: task for task in (*TASKS.values(), *wanted)}.values())
    root = data_root(data_dir)
    folders = list(dataset_folders(root, known_tasks))
    places = {folder: _place(folder, data_dir, known_tasks) for folder in folders}
    findings = []
    for task in wanted:
        own = [place for place in places.values() if place is not None and place.task.key == task.key]
        findings += [_check(place, progress) for place in own]
        if tasks is not None and not own:
            place = DatasetDir(task, task.variant, data_dir)
            finding = Finding(task.name, [f"{task.name} is not prepared in {root}."])
            finding.mend = f"{_command(place, {})} makes its dataset."
            findings.append(finding)
    if tasks is None:
        for folder in folders:
            if places[folder] is None:
                known = ", ".join(sorted({str(_relative(task)) for task in TASKS.values()}))
                findings.append(
                    Finding(
                        str(folder.relative_to(root)),
                        [f"{folder} is not a dataset of this version of lra_tasks, which has {known}."],
                        mend="Move it away, or prepare the task again.",
                    )
                )
    return findings


def dataset_folders(root: Path, tasks: Iterable[Task] = ()) -> Iterator[Path]:
    """Yields the folders BUILDER/VARIANT/VERSION of the arena and of the tasks, except hidden ones."""
    names = {task.builder_class().name for task in tasks}
    for folder in sorted(root.glob("*/*/*")):
        if not folder.parts[-3].startswith("lra_") and folder.parts[-3] not in names:
            continue
        if folder.is_dir() and not any(part.startswith(".") for part in folder.relative_to(root).parts):
            yield folder


def _relative(task: Task) -> Path:
    builder = task.builder_class()
    return Path(builder.name, "VARIANT", str(builder.VERSION))


def _place(folder: Path, data_dir: str | os.PathLike[str] | None, known: Iterable[Task]) -> DatasetDir | None:
    """Returns the dataset of a folder; None if it does not belong to a known task."""
    name, variant, version = folder.parts[-3:]
    tasks = [task for task in known if task.builder_class().name == name]
    if not tasks or str(tasks[0].builder_class().VERSION) != version:
        return None
    try:
        place = DatasetDir(tasks[0], variant, data_dir)
    except UsageError:
        return None
    # Pathfinder and Path-X share a builder; a variant belongs to the task with pictures of its size.
    pixels = getattr(place.builder_class.config_named(variant), "size", 0) ** 2
    owner = next((task for task in tasks if task.is_arena(variant) or task.length == pixels), tasks[0])
    return DatasetDir(owner, variant, data_dir)


def _command(place: DatasetDir, metadata: dict[str, Any], *options: str) -> str:
    """Returns the command that makes a dataset of such metadata, with the options for reading files."""
    builder = make_builder(place)
    official = getattr(builder, "official", None)
    downloaded = official is not None and metadata.get("origin", official.url) == official.url
    if builder.drawn() is None and not downloaded:
        options = (*options, "--manual-dir", "FOLDER")
    if "unofficial" in metadata:
        options = (*options, "--unofficial")
    return place.command(*options)


def _check(place: DatasetDir, progress: Progress) -> Finding:
    finding = Finding(str(place.relative), mend=f"{_command(place, {}, '--overwrite')} makes it again.")
    name = f"checking {place.relative}"
    progress.show(name)
    try:
        manifest = read_manifest(place)
        finding.mend = f"{_command(place, manifest['metadata'], '--overwrite')} makes it again."
        finding.size = sum(path.stat().st_size for path in place.folder.iterdir())
        finding.problems += damage(place.folder, manifest, verify=True)
        strays = {path.name for path in place.folder.iterdir()} - {MANIFEST, *manifest["files"]}
        finding.problems += [
            f"{stray} is not in the manifest." for stray in sorted(strays) if not is_added(stray)
        ]
        if not finding.problems:
            for problem in _check_contents(place, manifest, finding, lambda *n: progress.show(name, *n)):
                finding.problems.append(problem)  # one by one: an error keeps those before it
    except UsageError as error:
        shorter = f"{place.command('--overwrite')} makes it again."  # the end of `lra_tasks.data`'s errors
        finding.problems.append(str(error).removesuffix(shorter).rstrip())
    except Exception as error:  # noqa: BLE001 (a damaged dataset may raise anything; the next one is still checked)
        finding.problems.append(f"It cannot be read: {error!r}.")
    return finding


def _check_contents(
    place: DatasetDir, manifest: dict[str, Any], finding: Finding, tell: Callable[[int, int], None]
) -> Iterator[str]:
    """Yields the problems of the examples of a dataset whose files match the manifest."""
    import tensorflow_datasets as tfds

    builder = make_builder(place)
    drawn = builder.drawn()
    finding.num_examples = count_records(tfds.builder_from_directory(place.folder))
    expected = builder.builder_config.num_examples or manifest["num_examples"]
    for whose, counts in (("The manifest", manifest["num_examples"]), ("The dataset", finding.num_examples)):
        if counts != expected:
            yield f"{whose} has {counts} examples, expected {expected}."
            return  # they could not be read in order
    num_classes = place.task.num_classes or len(manifest["metadata"]["classes"])
    splits = {}
    for split in SPLITS:
        source = load(place.task, split, place.data_dir, variant=place.variant, verify=False)
        again = itertools.islice(drawn[split][1], REDRAWN) if drawn else iter(())
        splits[split] = _Watched(place.task, split, source, num_classes, again)
    total = sum(finding.num_examples.values())
    found = json.loads(json.dumps(contents(splits, lambda done: tell(done, total))))
    finding.labels = {split: found["splits"][split]["labels"] for split in SPLITS}
    recorded = manifest["contents"]
    for split in SPLITS:
        for key, value in found["splits"][split].items():
            if value != recorded["splits"][split][key]:
                yield f"The {key} of {split}: {value}; the manifest has {recorded['splits'][split][key]}."
    if found["repeats"] != recorded["repeats"]:
        yield f"Repeated examples: {found['repeats']}; the manifest has {recorded['repeats']}."
    for violation in violations(found, may_repeat=builder.may_repeat, balanced=builder.balanced):
        yield f"{violation}."
    for watched in splits.values():
        yield from _first(watched.problems)


def _first(problems: Sequence[str]) -> Iterator[str]:
    yield from problems[:NAMED]
    if len(problems) > NAMED:
        yield f"And {len(problems) - NAMED:,} more of this kind."


class _Watched:
    """The examples of a split, each verified as it passes."""

    def __init__(
        self, task: Task, split: str, source: Any, num_classes: int, again: Iterator[Example]
    ) -> None:
        self.task, self.split, self.source, self.again = task, split, source, again
        self.num_classes = num_classes
        self.problems: list[str] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for example in self.source:
            problem = self._problem(example, next(self.again, None))
            if problem:
                self.problems.append(f"Example {example['index']} of {self.split}: {problem}")
            yield example

    def _problem(self, example: dict[str, Any], drawn: Example | None) -> str | None:
        tokens, label = example["tokens"], example["label"]
        if not 0 <= label < self.num_classes:
            return f"The label is {label}, expected 0 to {self.num_classes - 1}."
        if drawn is not None and tokens.tobytes() != bytes(drawn[0]):
            return "The tokens differ from those drawn for it."
        if drawn is not None and drawn[1] != label:
            return f"The label is {label}; it is drawn with {drawn[1]}."
        sequences = tokens if isinstance(tokens, tuple) else (tokens,)
        return next(filter(None, (self.task.validate(sequence, label) for sequence in sequences)), None)
