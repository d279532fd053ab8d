"""Comparison of mixers on the same data, with the same seeds and budget, and one report."""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lra_tasks.config import Config, Settings
from lra_tasks.data.dataset import completed_task, open_dataset
from lra_tasks.data.prepare import prepare
from lra_tasks.errors import Diverged, UsageError
from lra_tasks.files import local_path, write_json
from lra_tasks.progress import Progress, Silent
from lra_tasks.reporting.report import ORDER, TRIALS, report
from lra_tasks.reporting.results import Report, Trial, best
from lra_tasks.training import processes
from lra_tasks.training.loop import train
from lra_tasks.training.run_folder import check_folder, check_place
from lra_tasks.training.step import Trainer
from lra_tasks.training.tensorboard import check_installed


def compare(
    task: str,
    mixers: Sequence[str],
    settings: Settings,
    run_dir: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (0,),
    rates: Sequence[float] = (),
    data_dir: str | os.PathLike[str] | None = None,
    mesh: Mapping[str, int] | str | None = None,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Trains every mixer with every seed, and writes a report.

    Runs are stored in `run_dir/<mixer>-seed<seed>`. Finished runs are reused and interrupted ones resume, so
    that the same call after a kill produces the same table. A missing dataset is prepared first.

    With `rates`, every mixer is first trained at every learning rate with the first seed. The best validation
    accuracy chooses the mixer's rate, the first of equal ones, and the other seeds use it. A rate at which
    the loss becomes infinite or NaN is not chosen. These runs are stored in
    `run_dir/rates/<rate>/<mixer>-seed<seed>`, and `run_dir/rates.json` has the accuracies.

    Args:
      task: Name of the task, or `package.module:TASK`.
      mixers: Names of mixers with their options, or `package.module:Class`, in the order of the table:
        ["hrr", "hrr:rescale=True", "none"].
      settings: Settings that all runs share; see `lra_tasks.preset`.
      run_dir: Folder of the comparison; created if it is missing.
      seeds: Seeds of the runs; every mixer is trained once per seed.
      rates: Learning rates to choose from, in place of that of the settings; empty for no choice.
      data_dir: Folder of all datasets, as in `lra_tasks.prepare`.
      mesh: Devices per axis, as in `lra_tasks.train`.
      tensorboard: Whether to write curves for every run, as in `lra_tasks.train`.
      progress: Display of the progress; None for silence.

    Returns:
      Report of the comparison; its files are in `run_dir`, see `lra_tasks.report`.

    Raises:
      UsageError: If `mixers` or `seeds` is empty, if several processes are joined, if the folder contains a
        comparison with `rates` and this one has none or the reverse, if a mixer diverges at every rate, and
        as `lra_tasks.train`.
      Interrupted: As `lra_tasks.train`.
    """
    progress = progress or Silent()
    run_dir = local_path(run_dir, "run_dir")
    if processes.count() > 1:
        raise UsageError(
            "A comparison is for one process. With several processes, train its runs one by one, and call"
            " `lra report`."
        )
    if not mixers or not seeds:
        raise UsageError("A comparison needs at least one mixer and one seed.")
    if tensorboard:
        check_installed()
    check_place(run_dir)
    mixers, seeds = list(dict.fromkeys(mixers)), list(dict.fromkeys(seeds))
    candidates = list(dict.fromkeys(map(float, rates))) or [settings.optimizer.learning_rate]
    _check_kind(run_dir, rates)

    def configure(mixer: str, seed: int, rate: float) -> Config:
        optimizer = dataclasses.replace(settings.optimizer, learning_rate=rate)
        shared = dataclasses.replace(settings, optimizer=optimizer)
        return Config(settings=shared, task=task, mixer=mixer, seed=seed)

    def place(config: Config) -> str:
        rate = config.settings.optimizer.learning_rate
        return f"rates/{rate}/{config.name}" if rates else config.name

    # All mixers are checked before the first one trains.
    found = completed_task(task, settings.variant, data_dir)
    title = found.title(settings.variant)
    progress.show(f"{title}: checking the mixers")
    for mixer in mixers:
        Trainer(configure(mixer, seeds[0], candidates[0]), found, mesh).check()
        for seed, rate in itertools.product(seeds, candidates):
            config = configure(mixer, seed, rate)
            check_folder(run_dir / place(config), config)

    # Data, opened once for all runs.
    prepare(found, data_dir, variant=settings.variant, progress=progress)
    dataset = open_dataset(found, settings.variant, data_dir)

    def run(config: Config) -> dict[str, Any]:
        return train(
            config,
            run_dir / place(config),
            dataset=dataset,
            mesh=mesh,
            tensorboard=tensorboard,
            progress=progress,
        )

    # Learning rates, runs, and a report with the baseline scores on the same data.
    run_dir.mkdir(parents=True, exist_ok=True)
    chosen = dict.fromkeys(mixers, candidates[0])
    if rates:
        for mixer in mixers:
            tried = [configure(mixer, seeds[0], rate) for rate in candidates]
            chosen[mixer] = _best_rate(tried, run, run_dir / TRIALS, progress)
    configs = [configure(mixer, seed, chosen[mixer]) for mixer in mixers for seed in seeds]
    write_json(run_dir / ORDER, [place(config) for config in configs])
    for config in configs:
        run(config)
    return report(run_dir, dataset=dataset, progress=progress)


def _check_kind(run_dir: Path, rates: Sequence[float]) -> None:
    """Refuses to mix runs of a comparison with learning rates and of one without in a folder."""
    kind = "without" if rates else "with"
    other = next(run_dir.glob("*/config.json" if rates else "rates/*/*/config.json"), None)
    if other is not None:
        raise UsageError(
            f"run_dir must not contain runs of a comparison {kind} rates; got {run_dir}, which contains"
            f" {other.parent}. Give another folder.",
            argument="run_dir",
        )


def _best_rate(
    tried: Sequence[Config], run: Callable[[Config], dict[str, Any]], path: Path, progress: Progress
) -> float:
    """Trains one mixer at every learning rate, writes its trials to a file, and returns the best rate.

    A trial that diverged and is in the file already is not repeated.
    """
    known = [Trial(**fields) for fields in json.loads(path.read_text())] if path.is_file() else []
    trials: list[Trial] = []
    for config in tried:
        mixer, rate = config.mixer_name, config.settings.optimizer.learning_rate
        trial = Trial(mixer, rate, config.seed, validation_accuracy=None, seconds=None)
        if trial not in known:
            try:
                summary = run(config)
                measured = {name: summary[name] for name in ("validation_accuracy", "seconds")}
                trial = dataclasses.replace(trial, **measured)
            except Diverged:
                progress.say(
                    f"{config.task} {mixer} seed {config.seed}: diverged at the learning rate {rate}"
                )
        trials.append(trial)
    others = [trial for trial in known if trial.mixer != tried[0].mixer_name]
    write_json(path, [dataclasses.asdict(trial) for trial in others + trials])
    chosen = best(trials)
    if chosen is None:
        raise UsageError(
            f"rates must include one at which {tried[0].mixer_name} does not diverge; got"
            f" {', '.join(str(trial.rate) for trial in trials)}. Try lower ones; finished runs are kept.",
            argument="rates",
        )
    return chosen.rate
