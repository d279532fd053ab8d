"""HRR attention against softmax attention and no mixing, on ListOps at 2,000 tokens.

Question. What does holographic attention cost in accuracy against quadratic attention, and what does it
save, at the arena's full length?

    make compare                                        the configuration "quick", on two CPU cores
    python -m experiments.listops_race quick --record   the same, kept in experiments/results
    python -m experiments.listops_race small --record   on one GPU

Hardware and time. Two CPU cores: "quick" takes four minutes where the data are prepared, nearly all of it
softmax attention; "mean" half a minute; "seeds" three times "quick". "small", "lra" and "paper" want a GPU
and have not been run.

Results, in experiments/results with their environment:
- quick: hrr, softmax and none all learn what the root operator tells, and no more; hrr trains an order of
  magnitude more examples a second than softmax, and its memory grows linearly with T, softmax's as T².
- mean: with mean pooling, the same number of examples leaves hrr and none at the majority class. One token
  among a thousand decides, its share of the mean is a thousandth, and neither mixer can raise it by more than
  a factor of e². That is why "quick" reads the state of the first token, which is the root operator.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lra_tasks import Config, Progress, Settings, compare, preset
from lra_tasks.benchmark import compiled_temp_bytes
from lra_tasks.cli import exit_codes, print_report, print_table
from lra_tasks.files import write_json

LENGTHS = (1024, 2048, 4096, 8192)
RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Race:
    """One configuration of this experiment: settings of ListOps, mixers and seeds."""

    settings: Settings
    seeds: tuple[int, ...] = (0,)
    mixers: tuple[str, ...] = ("hrr", "softmax", "none")


QUICK = preset("listops", "quick")
RACES = {
    "quick": Race(QUICK),
    "seeds": Race(QUICK, seeds=(0, 1, 2)),
    "mean": Race(
        dataclasses.replace(QUICK, model=dataclasses.replace(QUICK.model, pooling="mean")),
        mixers=("hrr", "none"),
    ),
    "small": Race(preset("listops", "small"), seeds=(0, 1, 2)),
    "lra": Race(preset("listops", "lra"), seeds=(0, 1, 2)),
    "paper": Race(preset("listops", "paper"), seeds=(0, 1, 2)),
}


def main(
    race: Annotated[
        Literal["quick", "seeds", "mean", "small", "lra", "paper"], tyro.conf.Positional
    ] = "quick",
    *,
    data_dir: Path | None = None,
    out_dir: Path | None = None,
    record: bool = False,
) -> None:
    """Runs one configuration, or goes on with it, and prints its tables.

    Args:
        race: which configuration.
        data_dir: folder of all datasets; TFDS_DATA_DIR, or else ~/tensorflow_datasets, if not given.
        out_dir: folder of the runs; runs/listops-RACE if not given.
        record: keep the result in experiments/results.
    """
    chosen = RACES[race]
    settings = chosen.settings
    out_dir = out_dir or Path("runs", f"listops-{race}")
    with Progress() as progress:
        report = compare(
            "listops",
            chosen.mixers,
            settings,
            out_dir,
            seeds=chosen.seeds,
            data_dir=data_dir,
            progress=progress,
        )
        temp_bytes = {
            mixer: compiled_temp_bytes(
                Config(task="listops", mixer=mixer, **vars(settings)), LENGTHS, progress=progress
            )
            for mixer in chosen.mixers
            if mixer != "none"
        }
    print_report(report, out_dir)
    print("\nTemporary memory of one compiled training step:")
    print_table(("T", *temp_bytes), _memory_rows(temp_bytes), numbers=True)
    if record:
        path = RESULTS / f"listops_race-{race}.json"
        write_json(path, {"report": report.json(), "temp_bytes": temp_bytes})
        report.plot(path.with_suffix(".png"))
        print(f"\nRecorded in {path}")


def _memory_rows(temp_bytes: dict[str, dict[int, int]]) -> Sequence[Sequence[str]]:
    return [
        (f"{length:,}", *(f"{sizes[length] / 1e6:,.0f} MB" for sizes in temp_bytes.values()))
        for length in LENGTHS
    ]


if __name__ == "__main__":
    with exit_codes():
        tyro.cli(main)
