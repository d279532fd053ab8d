"""The `lra bench` commands and what they print. JAX is imported when one runs."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lra_tasks.cli.console import print_paragraphs, print_table
from lra_tasks.errors import UsageError
from lra_tasks.reporting.style import short
from lra_tasks.tasks import TASKS

Positional = tyro.conf.Positional
UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "GB": 10**9, "MB": 10**6, "kB": 10**3}
DIRECTIONS = {"forward": "forward", "both": "forward + backward"}
SWEEP_ONLY = ("level", "lengths", "width", "heads", "batch_size", "repeats", "memory", "plot")


class Bench:
    """Measure what attention and training cost, and how fast data come."""


@dataclasses.dataclass
class BenchData:
    """Measure how fast data come and are made, against the training step."""

    tasks: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="TASK")] = ()
    """Names of tasks; all if not given."""
    mixer: str = "hrr"
    """Name of the mixer, or package.module:Class."""
    preset: Literal["smoke", "quick", "small", "arena", "paper"] = "small"
    """Where length, batch size and model come from."""
    steps: int = 30
    """Training steps measured for each task."""
    seconds: float = 30.0
    """Time for them, their compilation left out; two are measured in any case."""
    json: Path | None = None
    """Write all numbers, and the environment, to this file too."""
    data_dir: Path | None = None
    """Folder of all datasets; TFDS_DATA_DIR, or else ~/tensorflow_datasets, if not given."""

    def run(self) -> None:
        from lra_tasks.bench.data import bench_data
        from lra_tasks.progress import Progress

        _check_paths(self.json)
        with Progress() as progress:
            result = bench_data(
                self.tasks or tuple(TASKS),
                preset_name=self.preset,
                mixer=self.mixer,
                steps=self.steps,
                seconds=self.seconds,
                data_dir=self.data_dir,
                progress=progress,
            )
        print_rates(result)
        _write(result, self.json)


@dataclasses.dataclass
class BenchAttention:
    """Time, memory and operations of one attention layer against T."""

    level: tuple[Literal["layer", "core"], ...] = ("layer", "core")
    """layer: with its four projections; core: query, key and value to output."""
    contestants: tuple[str, ...] = ()
    """hrr, hrr-IMPLEMENTATION, authors, softmax, softmax-cudnn, projections; all that run if not given."""
    lengths: tuple[int, ...] = tuple(1 << n for n in range(10, 18))
    """Values of T."""
    width: int = 512
    """D."""
    heads: int = 8
    """N."""
    batch_size: int = 1
    """Sequences at once."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of parameters and inputs."""
    repeats: int = 7
    """Rounds at most; in each, every contestant runs once, in an order shuffled anew. softmax has its own,
    after all others, which the memory it leaves behind would slow."""
    seconds: float = 30.0
    """Time for the rounds of a length, of which three are made in any case; what takes longer for one call is
    left out."""
    seed: int = 0
    """Of parameters, inputs and the order."""
    memory: str | None = None
    """Find the longest T that fits, too, 24GiB for example; compiles, and runs nothing."""
    million: bool = False
    """Instead of all that: one layer of width 64 and one head at T = 1,048,576 in a process of its own.
    Takes --contestants (hrr if not given), --dtype, --seconds, --seed and --json."""
    json: Path | None = None
    """Write all numbers, and the environment, to this file too."""
    plot: Path | None = None
    """Draw time and memory against T into this PNG file."""

    def run(self) -> None:
        from lra_tasks.bench.attention import AttentionSettings, bench_attention
        from lra_tasks.bench.plot import plot_attention
        from lra_tasks.progress import Progress

        if self.million:
            for field in dataclasses.fields(self):
                if field.name in SWEEP_ONLY and getattr(self, field.name) != field.default:
                    flag = field.name.replace("_", "-")
                    raise UsageError(f"--{flag} is for the sweep over lengths: it goes without --million.")
        _check_paths(self.json, self.plot)
        settings = AttentionSettings(
            levels=("layer",) if self.million else self.level,
            contestants=self.contestants,
            lengths=self.lengths,
            width=self.width,
            num_heads=self.heads,
            batch_size=self.batch_size,
            dtype=self.dtype,
            repeats=self.repeats,
            seconds=self.seconds,
            seed=self.seed,
        )
        memory = None if self.memory is None else num_bytes(self.memory)
        with Progress() as progress:
            result = bench_attention(settings, memory=memory, million=self.million, progress=progress)
        print_attention(result)
        _write(result, self.json)
        if self.plot is not None:
            plot_attention(result, self.plot)
            print(f"\nDrawn in {self.plot}")


@dataclasses.dataclass
class BenchTrain:
    """Training steps of the whole model against T, on random bytes."""

    mixers: tuple[str, ...] = ("hrr", "softmax", "none")
    """Names of mixers, or package.module:Class."""
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """Values of T."""
    batch_size: int = 32
    """Examples of a step."""
    preset: Literal["smoke", "quick", "small", "arena", "paper"] = "quick"
    """Of the task text, where the model comes from."""
    repeats: int = 10
    """Rounds at most; in each, every mixer makes a step, in an order shuffled anew. softmax has its own,
    after the others, which the memory it leaves behind would slow."""
    seconds: float = 30.0
    """Time for the rounds of a length, of which three are made in any case; what takes longer for one step is
    left out."""
    seed: int = 0
    """Of parameters, tokens and the order."""
    json: Path | None = None
    """Write all numbers, and the environment, to this file too."""
    plot: Path | None = None
    """Draw time and memory against T into this PNG file."""

    def run(self) -> None:
        from lra_tasks.bench.plot import plot_train
        from lra_tasks.bench.train import TrainSettings, bench_train
        from lra_tasks.progress import Progress

        _check_paths(self.json, self.plot)
        settings = TrainSettings(
            mixers=self.mixers,
            lengths=self.lengths,
            batch_size=self.batch_size,
            preset=self.preset,
            repeats=self.repeats,
            seconds=self.seconds,
            seed=self.seed,
        )
        with Progress() as progress:
            result = bench_train(settings, progress=progress)
        print_train(result)
        _write(result, self.json)
        if self.plot is not None:
            plot_train(result, self.plot)
            print(f"\nDrawn in {self.plot}")


BENCHES: dict[str, type[Any]] = {"data": BenchData, "attention": BenchAttention, "train": BenchTrain}


def num_bytes(text: str) -> int:
    """Returns the bytes of a size with a unit.

    >>> num_bytes("24GiB"), num_bytes("1.5 GB")
    (25769803776, 1500000000)

    Raises:
      UsageError: for anything else.
    """
    found = re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?) ?({'|'.join(UNITS)})", text)
    if found is None:
        raise UsageError(f"--memory is '{text}'; expected a number with {', '.join(UNITS)}, such as 24GiB.")
    return round(float(found[1]) * UNITS[found[2]])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _digits(value: float) -> str:
    """Three digits, or a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _check_paths(json: Path | None, plot: Path | None = None) -> None:
    """Raises what would keep results from being written, before there are any.

    Raises:
      UsageError: if a folder does not exist, or the picture's name does not end in .png.
    """
    for flag, path in (("--json", json), ("--plot", plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{flag} {path}: there is no folder {path.parent}; make it, or name another.")
    if plot is not None and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot must name a .png file; got {plot}.")


def _write(result: dict[str, Any], path: Path | None) -> None:
    from lra_tasks.files import write_json

    if path is not None:
        write_json(path, result)
        print(f"\nWritten to {path}")


def _print_by_length(
    title: str, rows: Sequence[dict[str, Any]], name: str, quantity: str, scale: float = 1.0
) -> None:
    """Prints one quantity, a contestant a line and a length a column."""
    values = {(row[name], row["length"]): row for row in rows}
    names = list(dict.fromkeys(row[name] for row in rows))
    lengths = sorted({row["length"] for row in rows})

    def cell(row: dict[str, Any]) -> str:
        value = row[quantity]
        return (row["missing"] or "-") if value is None else _digits(scale * value)

    print_paragraphs(title)
    lines = [(each, *(cell(values[each, length]) for length in lengths)) for each in names]
    print_table(("T =", *map(short, lengths)), lines, numbers=True)


def _notes(rows: Iterable[dict[str, Any]], name: str) -> list[str]:
    """Returns why times are missing: for each contestant and pass a sentence on the shortest such T."""
    notes: dict[tuple[str, ...], str] = {}
    for row in rows:
        if row["note"]:
            words = (row[name], DIRECTIONS[row["direction"]]) if "direction" in row else (row[name],)
            key = (*words, row["missing"])
            notes.setdefault(key, f"{', '.join(words)}, T = {row['length']:,}: {row['note']}.")
    return list(notes.values())


def print_attention(result: dict[str, Any]) -> None:
    """Prints what `lra_tasks.bench.attention.bench_attention` measured."""
    from lra_tasks.bench.baselines import REFERENCE

    rows = result["rows"]
    for level in dict.fromkeys(row["level"] for row in rows):
        for direction, words in DIRECTIONS.items():
            some = [row for row in rows if (row["level"], row["direction"]) == (level, direction)]
            head = f"{level}, {words}"
            _print_by_length(f"{head}: milliseconds", some, "contestant", "seconds", 1e3)
            title = f"{head}: times the time of {REFERENCE[level]}"
            if any(row["ratio"] is not None for row in some):
                _print_by_length(title, some, "contestant", "ratio")
            _print_by_length(f"{head}: temporary memory, T·D floats", some, "contestant", "temp_floats")
        _print_floor([row for row in rows if row["level"] == level], result)
        print_paragraphs(*_notes((row for row in rows if row["level"] == level), "contestant"))
    if rows:
        rates = result["rates"]
        print_paragraphs(
            "Times are medians; T·D floats are units of B·T·D·4 bytes. The floor is the time in which this"
            f" machine could at best do the FLOPs ({rates['flops_per_second'] / 1e9:,.0f} GFLOP/s measured)"
            f" and move the bytes ({rates['bytes_per_second'] / 1e9:,.1f} GB/s) that HRR attention needs: see"
            " lra_tasks/bench/roofline.py for the formulas. Short sequences fit caches that are faster than"
            " that memory, so that their share may be above 100 %.",
        )
    if any(row["uncounted"] for row in rows):
        names = dict.fromkeys(row["contestant"] for row in rows if row["uncounted"])
        reasons = dict.fromkeys(row["uncounted"] for row in rows if row["uncounted"])
        print_paragraphs(
            f"No FLOPs and bytes where XLA would count too few, for {', '.join(names)}: {'; '.join(reasons)}."
        )
    _print_longest(result["longest"])
    print_apart(result["million"], "contestant")


def _print_floor(rows: Sequence[dict[str, Any]], result: dict[str, Any]) -> None:
    """Prints forward and backward at the longest T that each contestant was run at, against the floor."""
    settings = result["settings"]
    last = {row["contestant"]: row for row in rows if row["direction"] == "both" and row["seconds"]}
    if not last:
        return
    level = rows[0]["level"]
    powers = result["exponents"][level]["both"]
    lines = []
    for name, row in last.items():
        size = settings["batch_size"] * row["length"] * settings["width"]
        first, third = row["quartiles"]
        power = powers[name]["seconds"]
        lines.append(
            (
                name,
                short(row["length"]),
                _digits(1e3 * row["seconds"]),
                f"{_digits(1e3 * first)}-{_digits(1e3 * third)}",
                "-" if power is None else f"T^{power:.2f}",
                "-" if row["flops"] is None else _digits(row["flops"] / size / settings["width"]),
                "-" if row["bytes_accessed"] is None else _digits(row["bytes_accessed"] / size / 4),
                f"{row['floor_share']:.0f} %",
            )
        )
    print_paragraphs(
        f"{level}, forward + backward at the longest T: spread, growth, FLOPs in T·D², bytes accessed in T·D"
        " floats, and the floor's share of the time"
    )
    head = ("", "T", "ms", "quartiles", "grows", "FLOPs", "bytes", "floor")
    print_table(head, lines, numbers=True)


def _print_longest(longest: Sequence[dict[str, Any]]) -> None:
    if not longest:
        return
    gib = longest[0]["memory"] / 2**30
    print_paragraphs(f"Longest T whose forward and backward fit into {gib:,.1f} GiB, from compiled programs")
    print_table(
        ("level", "contestant", "longest T", "GiB"),
        [
            (
                row["level"],
                row["contestant"],
                "-" if row["length"] is None else f"{row['length']:,}",
                "-" if row["total_bytes"] is None else f"{row['total_bytes'] / 2**30:.2f}",
            )
            for row in longest
        ],
    )
    print_paragraphs(
        *(f"{row['level']}, {row['contestant']}: {row['note']}." for row in longest if row["note"])
    )


def print_apart(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Prints what was run in processes of its own."""
    if not rows:
        return
    print_paragraphs("Forward and backward in a process of its own; peak is all that the process ever held")
    print_table(
        (name, "T", "D", "seconds", "compiled, GiB", "peak, GiB"),
        [
            (
                row[name],
                f"{row['length']:,}",
                str(row["width"]),
                (row["missing"] or "-") if row["seconds"] is None else _digits(row["seconds"]),
                "-" if row["total_bytes"] is None else f"{row['total_bytes'] / 2**30:.2f}",
                "-" if row["peak_rss_bytes"] is None else f"{row['peak_rss_bytes'] / 2**30:.2f}",
            )
            for row in rows
        ],
        numbers=True,
    )
    print_paragraphs(*_notes(rows, name))


def print_train(result: dict[str, Any]) -> None:
    """Prints what `lra_tasks.bench.train.bench_train` measured."""
    rows, settings = result["rows"], result["settings"]
    _print_by_length("Training steps per second", rows, "mixer", "steps_per_second")
    _print_by_length("Examples per second", rows, "mixer", "examples_per_second")
    if any(row["ratio"] is not None for row in rows):
        _print_by_length("Times the time of none", rows, "mixer", "ratio")
    _print_by_length("Memory of the compiled step, MB: all it holds", rows, "mixer", "total_bytes", 1e-6)
    _print_by_length("Of which temporaries, MB", rows, "mixer", "temp_bytes", 1e-6)
    growth = (
        f"{mixer} T^{powers['seconds']:.2f}"
        for mixer, powers in result["exponents"].items()
        if powers["seconds"] is not None
    )
    print_paragraphs(
        *_notes(rows, "mixer"),
        f"The model of text's preset {settings['preset']}, {settings['batch_size']} examples of random bytes"
        " a step. The median step, over rounds in which each mixer makes one. Time grows as "
        + (", ".join(growth) or "unknown")
        + ".",
    )


def print_rates(result: dict[str, Any]) -> None:
    """Prints what `lra_tasks.bench.data.bench_data` measured."""
    rates = result["tasks"]
    if rates:
        print_table(
            ("task", "tokens", "data", "cold", "step", "waiting"),
            [
                (
                    rate["task"],
                    f"{rate['length']:,}",
                    _number(rate["data"]),
                    _number(rate["cold"]),
                    _number(rate["step"]),
                    "-" if rate["waiting"] is None else f"{rate['waiting']:.1f} %",
                )
                for rate in rates
            ],
            numbers=True,
        )
        print_paragraphs(
            "Data, and cold (not in the system's memory yet), are the pipeline's examples/s by itself;"
            " step, the training step's. Waiting is the share of a training loop's time that goes into the"
            " next batch."
        )
    notes = {rate["task"]: rate["note"] for rate in rates if rate["note"]} | result["not_prepared"]
    print_paragraphs(*(f"{name}: {note}" for name, note in notes.items()))
    print()
    print_table(
        ("generated on one core", "examples/s"),
        [(name, _number(rate)) for name, rate in result["generation"].items()],
        numbers=True,
    )
