"""The `lra bench` commands and their output. JAX is imported when one runs."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lra_tasks.bench.settings import AttentionSettings, DataSettings, TrainSettings
from lra_tasks.cli.console import print_paragraphs, print_table
from lra_tasks.errors import UsageError
from lra_tasks.reporting.style import short

DIRECTIONS = {"forward": "forward", "both": "forward + backward"}
MILLION_TAKES = ("million", "implementations", "dtype", "seed", "json")


class Bench:
    """Measure the cost of attention and training, and the rates of the data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchData(DataSettings):
    """Measure the rate of the data pipeline beside that of the training step."""

    json: Path | None = None
    """File for all numbers and the environment."""

    def run(self) -> None:
        from lra_tasks.bench.data import bench_data

        _run(functools.partial(bench_data, _only(DataSettings, self)), print_rates, self.json)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchAttention(AttentionSettings):
    """Measure time and memory of one attention layer as T grows."""

    memory: float | None = None
    """Find the longest T that fits into this memory too, in GiB; compiles programs and runs none."""
    million: bool = False
    """Measure only one layer of width 64 and one head at T = 1,048,576, in a process of its own. Takes
    --implementations (by default hrr), --dtype, --seed and --json."""
    json: Path | None = None
    """File for all numbers and the environment."""
    plot: Path | None = None
    """PNG file for a picture of time and memory against T."""

    def run(self) -> None:
        from lra_tasks.bench.attention import bench_attention

        for field in dataclasses.fields(self) if self.million else ():
            if field.name not in MILLION_TAKES and getattr(self, field.name) != field.default:
                flag = field.name.replace("_", "-")
                raise UsageError(f"--{flag} has no effect with --million: leave one of the two out.")
        memory = None if self.memory is None else round(self.memory * 2**30)
        settings = _only(AttentionSettings, self)
        bench = functools.partial(bench_attention, settings, memory=memory, million=self.million)
        _run(bench, print_attention, self.json, self.plot)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchTrain(TrainSettings):
    """Measure training steps of the whole model as T grows, on random bytes."""

    json: Path | None = None
    """File for all numbers and the environment."""
    plot: Path | None = None
    """PNG file for a picture of time and memory against T."""

    def run(self) -> None:
        from lra_tasks.bench.train import bench_train

        _run(functools.partial(bench_train, _only(TrainSettings, self)), print_train, self.json, self.plot)


BENCHES: dict[str, type[Any]] = {"data": BenchData, "attention": BenchAttention, "train": BenchTrain}


def _only(kind: Any, command: Any) -> Any:
    """Returns the settings of a kind that a command has."""
    return kind(**{field.name: getattr(command, field.name) for field in dataclasses.fields(kind)})


def _run(
    bench: Callable[..., dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
    json: Path | None,
    picture: Path | None = None,
) -> None:
    """Measures, prints and writes; files that cannot be written are refused first."""
    from lra_tasks.bench.plot import plot
    from lra_tasks.files import local_path, write_json
    from lra_tasks.progress import Progress

    json = json and local_path(json, "json")
    picture = picture and local_path(picture, "plot")
    for flag, path in (("--json", json), ("--plot", picture)):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{flag} {path}: the folder {path.parent} does not exist; make it first.")
    if picture is not None and picture.suffix.lower() != ".png":
        raise UsageError(f"--plot must name a .png file; got {picture}.")
    with Progress() as progress:
        result = bench(progress=progress)
    show(result)
    if json is not None:
        write_json(json, result)
        print(f"\nWritten to {json}")
    if picture is not None:
        plot(result, picture)
        print(f"\nDrawn in {picture}")


def _cell(value: float | None, scale: float = 1.0, otherwise: str = "-") -> str:
    """Two digits after the point, one, or none."""
    if value is None:
        return otherwise
    value *= scale
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _print_by_length(
    title: str, rows: Sequence[dict[str, Any]], name: str, quantity: str, scale: float = 1.0
) -> None:
    """Prints one quantity, with one line per name and one column per length."""
    values = {(row[name], row["length"]): row for row in rows}
    lengths = sorted({row["length"] for row in rows})

    def cell(row: dict[str, Any]) -> str:
        return _cell(row[quantity], scale, row["missing"] or "-")

    if any(row[quantity] is not None for row in rows) or quantity != "ratio":
        print_paragraphs(title)
        names = dict.fromkeys(row[name] for row in rows)
        lines = [(each, *(cell(values[each, length]) for length in lengths)) for each in names]
        print_table(("T =", *map(short, lengths)), lines, numbers=True)


def _power(rows: Iterable[dict[str, Any]]) -> str:
    """Returns the fitted growth of the time, or "-" with too few lengths."""
    from lra_tasks.bench.measure import exponent

    power = exponent({row["length"]: row["seconds"] for row in rows if row["seconds"] is not None})
    return "-" if power is None else f"T^{power:.1f}"


def _notes(rows: Iterable[dict[str, Any]], name: str) -> list[str]:
    """Returns the reasons for missing times, each once, with the shortest T that it applies to."""
    notes: dict[tuple[str, ...], str] = {}
    for row in rows:
        if row["note"]:
            words = (row[name], DIRECTIONS[row["direction"]]) if "direction" in row else (row[name],)
            note = f"{', '.join(words)}, T = {row['length']:,}: {row['note']}."
            notes.setdefault((*words, row["missing"]), note)
    return list(notes.values())


def print_attention(result: dict[str, Any]) -> None:
    """Prints the result of `lra_tasks.bench.attention.bench_attention`."""
    from lra_tasks.bench.implementations import REFERENCE

    rows, name = result["rows"], "implementation"
    for level in dict.fromkeys(row["level"] for row in rows):
        at_level = [row for row in rows if row["level"] == level]
        for direction, words in DIRECTIONS.items():
            some = [row for row in at_level if row["direction"] == direction]
            _print_by_length(f"{level}, {words}: milliseconds", some, name, "seconds", 1e3)
            _print_by_length(f"{level}, {words}: time relative to {REFERENCE[level]}", some, name, "ratio")
            _print_by_length(f"{level}, {words}: temporary memory, T·D floats", some, name, "temp_floats")
        _print_roofline([row for row in at_level if row["direction"] == "both"])
        print_paragraphs(*_notes(at_level, name))
    if rows:
        rates = result["rates"]
        print_paragraphs(
            "Times are medians; T·D floats are units of B·T·D·4 bytes. The roofline is the least time in"
            f" which this machine can do the FLOPs ({rates['flops_per_second'] / 1e9:,.0f} GFLOP/s) and move"
            f" the bytes ({rates['bytes_per_second'] / 1e9:,.1f} GB/s) of HRR attention; see"
            " lra_tasks/bench/roofline.py. Short sequences can exceed 100 %: caches are faster than memory."
        )
    _print_longest(result["longest"])
    print_apart(result["million"], name)


def _print_roofline(rows: Sequence[dict[str, Any]]) -> None:
    """Prints forward and backward at the longest T measured per implementation, beside the roofline."""
    lines = []
    for name, row in {row["implementation"]: row for row in rows if row["seconds"]}.items():
        spread = "-".join(_cell(value, 1e3) for value in row["quartiles"])
        grows = _power(other for other in rows if other["implementation"] == name)
        share = f"{row['roofline_share']:.0f} %"
        lines.append((name, short(row["length"]), _cell(row["seconds"], 1e3), spread, grows, share))
    if lines:
        level = rows[0]["level"]
        print_paragraphs(f"{level}, forward + backward at the longest T: roofline in % of the time")
        print_table(("", "T", "ms", "quartiles", "grows", "roofline"), lines, numbers=True)


def _print_longest(longest: Sequence[dict[str, Any]]) -> None:
    if longest:
        gib = longest[0]["memory"] / 2**30
        print_paragraphs(f"Longest T with forward and backward in {gib:,.1f} GiB, from compiled programs")
        lines = [
            (row["level"], row["implementation"], _count(row["length"]), _cell(row["total_bytes"], 2**-30))
            for row in longest
        ]
        print_table(("level", "implementation", "longest T", "GiB"), lines)
        notes = (f"{row['level']}, {row['implementation']}: {row['note']}." for row in longest if row["note"])
        print_paragraphs(*notes)


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def print_apart(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Prints the results of processes of their own."""
    if rows:
        print_paragraphs("Forward and backward in a process of its own; peak is that of the whole process")
        lines = [
            (
                row[name],
                _count(row["length"]),
                str(row["width"]),
                _cell(row["seconds"], otherwise=row["missing"] or "-"),
                _cell(row["total_bytes"], 2**-30),
                _cell(row["peak_rss_bytes"], 2**-30),
            )
            for row in rows
        ]
        print_table((name, "T", "D", "seconds", "compiled, GiB", "peak, GiB"), lines, numbers=True)
        print_paragraphs(*_notes(rows, name))


def print_train(result: dict[str, Any]) -> None:
    """Prints the result of `lra_tasks.bench.train.bench_train`."""
    rows, settings = result["rows"], result["settings"]
    for title, quantity, scale in (
        ("Examples per second", "examples_per_second", 1.0),
        ("Time relative to none", "ratio", 1.0),
        ("Memory of the compiled step, MB", "total_bytes", 1e-6),
        ("Temporary part of that memory, MB", "temp_bytes", 1e-6),
    ):
        _print_by_length(title, rows, "mixer", quantity, scale)
    powers = {mixer: _power(row for row in rows if row["mixer"] == mixer) for mixer in settings["mixers"]}
    growth = ", ".join(f"{mixer} {power}" for mixer, power in powers.items() if power != "-")
    print_paragraphs(
        *_notes(rows, "mixer"),
        f"Model of text's preset {settings['preset']}; {settings['batch_size']} examples of random bytes per"
        " step; median step over rounds in which each mixer trains one.",
        *([f"Growth of the time: {growth}."] if growth else []),
    )


def print_rates(result: dict[str, Any]) -> None:
    """Prints the result of `lra_tasks.bench.data.bench_data`."""
    rates = result["tasks"]
    if rates:
        lines = [
            (
                rate["task"],
                _count(rate["length"]),
                _cell(rate["data"]),
                _cell(rate["step"]),
                "-" if rate["waiting"] is None else f"{rate['waiting']:.1f} %",
            )
            for rate in rates
        ]
        print_table(("task", "tokens", "data", "step", "waiting"), lines, numbers=True)
        print_paragraphs(
            "Data and step are the examples/s of the pipeline alone and of the training step alone. Waiting"
            " is the share of a training loop's time that passes until the next batch is ready."
        )
    notes = {rate["task"]: rate["note"] for rate in rates if rate["note"]} | result["not_prepared"]
    print_paragraphs(*(f"{name}: {note}" for name, note in notes.items()))
