"""Comparison of mixers on the same data, with the same seeds and budget, on one task or several."""

import dataclasses
import itertools
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lra_tasks.config import Config, Settings, folder_name, to_json
from lra_tasks.data.dataset import completed_task, open_dataset
from lra_tasks.data.prepare import prepare
from lra_tasks.errors import Diverged, MissingData, RunFailed, UsageError
from lra_tasks.files import local_path, replace, write_json
from lra_tasks.model.mixers import get_mixer
from lra_tasks.progress import Progress, Silent
from lra_tasks.reporting.collect import ORDER, TRIALS
from lra_tasks.reporting.grid import Grid
from lra_tasks.reporting.report import report, report_grid
from lra_tasks.reporting.results import Report, Trial, best
from lra_tasks.tasks import get_task
from lra_tasks.training import processes
from lra_tasks.training.loop import train
from lra_tasks.training.run_folder import check_folder, check_place, read_failure
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
    time_limit: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """Trains every mixer with every seed, and writes a report.

    Runs are stored in `run_dir/<mixer>-seed<seed>`. Finished runs are reused and interrupted ones resume, so
    that the same call after a kill produces the same table. A missing dataset is prepared first.

    A run that cannot finish (its loss is not finite, it does not fit into memory, it would exceed the time
    limit) is a cell of the table with the reason, and the next one begins. If the call is repeated, a run
    whose loss was not finite is not tried again; delete its folder for that.

    With `rates`, every mixer is first trained at every learning rate with the first seed. The best validation
    accuracy chooses the mixer's rate, the first of equal ones, and the other seeds use it. A rate at which
    the run cannot finish is not chosen. These runs are stored in `run_dir/rates/<rate>/<mixer>-seed<seed>`,
    and `run_dir/rates.json` has the accuracies.

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
      time_limit: Longest time of one run in seconds, as in `lra_tasks.train`.
      progress: Display of the progress; None for silence.

    Returns:
      Report of the comparison; its files are in `run_dir`, see `lra_tasks.report`.

    Raises:
      UsageError: If `mixers` or `seeds` is empty, if several processes are joined, if the folder contains a
        comparison with `rates` and this one has none or the reverse, if no run can finish, and as
        `lra_tasks.train`.
      Interrupted: As `lra_tasks.train`.
    """
    progress = progress or Silent()
    if tensorboard:
        check_installed()
    plan = _Plan.made(task, mixers, settings, run_dir, seeds, rates)
    check_place(plan.run_dir)

    # All mixers are checked before the first one trains.
    found = completed_task(task, settings.variant, data_dir)
    progress.show(f"{found.title(settings.variant)}: checking the mixers")
    for mixer in plan.mixers:
        Trainer(plan.configure(mixer, plan.seeds[0], plan.rates[0]), found, mesh).check()
    for config in plan.configs():
        check_folder(plan.place(config), config)

    # Data, opened once for all runs.
    prepare(found, data_dir, variant=settings.variant, progress=progress)
    dataset = open_dataset(found, settings.variant, data_dir)

    def run(config: Config) -> dict[str, Any] | None:
        """Returns the summary of a run; None, with a line that says why, if it cannot finish."""
        failure = read_failure(plan.place(config))
        if failure.get("reason") != Diverged.reason:
            try:
                return train(
                    config,
                    plan.place(config),
                    dataset=dataset,
                    mesh=mesh,
                    tensorboard=tensorboard,
                    time_limit=time_limit,
                    progress=progress,
                )
            except RunFailed as error:
                failure = {"reason": error.reason, "message": str(error)}
        rate = f" at the learning rate {config.settings.optimizer.learning_rate}" if rates else ""
        label = f"{config.task} {config.mixer_name} seed {config.seed}{rate}"
        progress.say(f"{label}: {failure['reason']}. {failure['message']}")
        return None

    # Learning rates, runs, and a report with the baseline scores on the same data. A seed is done with all
    # mixers before the next one begins: a long comparison has a whole table early.
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, float | None] = dict.fromkeys(plan.mixers, plan.rates[0])
    if plan.chooses:
        chosen = {mixer: _choose_rate(plan, mixer, run) for mixer in plan.mixers}
    rows = {
        mixer: [plan.configure(mixer, seed, rate) for seed in plan.seeds]
        # A mixer that finishes at no rate is shown by its first run.
        if rate is not None
        else [plan.configure(mixer, plan.seeds[0], plan.rates[0])]
        for mixer, rate in chosen.items()
    }
    order = [str(plan.place(config).relative_to(plan.run_dir)) for row in rows.values() for config in row]
    write_json(plan.run_dir / ORDER, order)
    for configs in itertools.zip_longest(*rows.values()):
        for config in filter(None, configs):
            run(config)
    return report(plan.run_dir, dataset=dataset, progress=progress)


def compare_tasks(
    tasks: Sequence[tuple[str, Settings]],
    mixers: Sequence[str],
    run_dir: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (0,),
    rates: Sequence[float] = (),
    data_dir: str | os.PathLike[str] | None = None,
    mesh: Mapping[str, int] | str | None = None,
    tensorboard: bool = False,
    time_limit: float | None = None,
    skip_missing: bool = False,
    progress: Progress | None = None,
) -> Grid:
    """Compares mixers on several tasks, and writes one report with a row per mixer and a column per task.

    Each task is a comparison of its own, by `compare` in `run_dir/<task>`: repeated, the call resumes.

    Args:
      tasks: Name and settings of every task: [("listops", lra_tasks.preset("listops", "quick"))].
      mixers, seeds, rates, data_dir, mesh, tensorboard, time_limit, progress: As in `compare`.
      run_dir: Folder of the grid; created if it is missing.
      skip_missing: Whether a task without its data is left out, with a note; if not, it is an error.

    Returns:
      Results of the grid; its files are in `run_dir`, see `lra_tasks.report_grid`.

    Raises:
      UsageError: As `compare`; data are missing; or a task is given twice.
    """
    progress = progress or Silent()
    run_dir = local_path(run_dir, "run_dir")
    check_place(run_dir)
    missing: dict[str, str] = {}
    ready: dict[str, tuple[str, Settings]] = {}
    for task, settings in tasks:
        found = get_task(task)
        title = found.title(settings.variant)
        if title in ready:
            raise UsageError(f"tasks must name every task once; got {title} twice.")
        try:
            prepare(found, data_dir, variant=settings.variant, progress=progress)
        except MissingData as error:
            if not skip_missing:
                raise
            missing[title] = str(error)
            progress.say(f"{title}: left out. {error}")
        else:
            ready[title] = task, settings
    if not ready:
        raise UsageError(f"No task has its data. {' '.join(missing.values())}")
    # What one task cannot have is found before another one trains.
    for task, settings in ready.values():
        plan = _Plan.made(task, mixers, settings, task_folder(run_dir, task, settings), seeds, rates)
        found = completed_task(task, settings.variant, data_dir)
        for config in plan.configs():
            check_folder(plan.place(config), config)
        for mixer in plan.mixers:
            progress.show(f"{found.title(settings.variant)} {mixer}: checking the settings")
            Trainer(plan.configure(mixer, plan.seeds[0], plan.rates[0]), found, mesh)
    for title, (task, settings) in ready.items():
        try:
            compare(
                task,
                mixers,
                settings,
                task_folder(run_dir, task, settings),
                seeds=seeds,
                rates=rates,
                data_dir=data_dir,
                mesh=mesh,
                tensorboard=tensorboard,
                time_limit=time_limit,
                progress=progress,
            )
        except RunFailed as error:
            progress.say(f"{title}: {error}")
    folders = [task_folder(run_dir, task, settings) for task, settings in ready.values()]
    return report_grid(folders, output=run_dir, missing=missing, data_dir=data_dir, progress=progress)


def task_folder(run_dir: str | os.PathLike[str], task: str, settings: Settings) -> Path:
    """Returns the folder of a task's comparison within `compare_tasks`."""
    return local_path(run_dir, "run_dir") / folder_name(get_task(task).title(settings.variant))


def commands(
    task: str,
    mixers: Sequence[str],
    settings: Settings,
    run_dir: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (0,),
    rates: Sequence[float] = (),
    options: Sequence[str] = (),
) -> list[str]:
    """Returns one command line per unfinished run of `compare`, each independent of the others.

    Writes the configuration of every run into its folder, which the command names. With `rates` these are the
    runs that choose the learning rates; `compare` itself then trains the other seeds.

    Args:
      task, mixers, settings, run_dir, seeds, rates: As in `compare`.
      options: Further words of each command: ["--data-dir", "data"].

    Raises:
      UsageError: If a mixer is unknown, or a folder contains another run.
    """
    plan = _Plan.made(task, mixers, settings, run_dir, seeds, rates)
    if not plan.chooses:
        plan.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(plan.run_dir / ORDER, [plan.place(config).name for config in plan.configs()])
    lines: list[str] = []
    for config in plan.configs(only_first_seed=plan.chooses):
        get_mixer(config.mixer_name)
        place = plan.place(config)
        check_folder(place, config)
        if (place / "summary.json").is_file() or read_failure(place).get("reason") == Diverged.reason:
            continue
        if not (place / "config.json").is_file():
            place.mkdir(parents=True, exist_ok=True)
            replace(place / "config.json", to_json(config))
        lines.append(shlex.join(["lra", "train", "--from", str(place), "--run-dir", str(place), *options]))
    return lines


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The runs of a comparison on one task.

    Attributes:
      rates: Learning rates to choose from, or that of the settings.
      chooses: Whether the learning rate is chosen per mixer.
    """

    task: str
    mixers: tuple[str, ...]
    settings: Settings
    run_dir: Path
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    chooses: bool

    @classmethod
    def made(
        cls,
        task: str,
        mixers: Sequence[str],
        settings: Settings,
        run_dir: str | os.PathLike[str],
        seeds: Sequence[int],
        rates: Sequence[float],
    ) -> "_Plan":
        """Returns the plan for the arguments of `compare`, or refuses them."""
        if processes.count() > 1:
            raise UsageError(
                "A comparison is for one process. With several processes, train its runs one by one, and call"
                " `lra report`."
            )
        if not mixers or not seeds:
            raise UsageError("A comparison needs at least one mixer and one seed.")
        run_dir = local_path(run_dir, "run_dir")
        kind = "without" if rates else "with"
        other = next(run_dir.glob("*/config.json" if rates else "rates/*/*/config.json"), None)
        if other is not None:
            raise UsageError(
                f"run_dir must not contain runs of a comparison {kind} rates; got {run_dir}, which contains"
                f" {other.parent}. Give another folder.",
                argument="run_dir",
            )
        candidates = tuple(dict.fromkeys(map(float, rates))) or (settings.optimizer.learning_rate,)
        unique = tuple(dict.fromkeys(mixers)), tuple(dict.fromkeys(seeds))
        return cls(task, unique[0], settings, run_dir, unique[1], candidates, bool(rates))

    def configure(self, mixer: str, seed: int, rate: float) -> Config:
        optimizer = dataclasses.replace(self.settings.optimizer, learning_rate=rate)
        shared = dataclasses.replace(self.settings, optimizer=optimizer)
        return Config(settings=shared, task=self.task, mixer=mixer, seed=seed)

    def place(self, config: Config) -> Path:
        """Returns the folder of a run."""
        if not self.chooses:
            return self.run_dir / config.name
        return self.run_dir / "rates" / str(config.settings.optimizer.learning_rate) / config.name

    def configs(self, *, only_first_seed: bool = False) -> list[Config]:
        """Returns every run that the comparison may train."""
        seeds = self.seeds[:1] if only_first_seed else self.seeds
        return [self.configure(*run) for run in itertools.product(self.mixers, seeds, self.rates)]


def _choose_rate(plan: _Plan, mixer: str, run: Callable[[Config], dict[str, Any] | None]) -> float | None:
    """Trains one mixer at every learning rate, writes its trials, and returns the best rate.

    Returns None if the mixer finishes at none of them.
    """
    path = plan.run_dir / TRIALS
    others = [Trial(**fields) for fields in json.loads(path.read_text())] if path.is_file() else []
    others = [trial for trial in others if trial.mixer != mixer]
    trials: list[Trial] = []
    for rate in plan.rates:
        config = plan.configure(mixer, plan.seeds[0], rate)
        summary, reason = run(config), read_failure(plan.place(config)).get("reason", "")
        accuracy, seconds = ((summary or {}).get(name) for name in ("validation_accuracy", "seconds"))
        trials.append(Trial(mixer, rate, plan.seeds[0], accuracy, seconds, reason))
    write_json(path, [dataclasses.asdict(trial) for trial in others + trials])
    chosen = best(trials)
    return chosen and chosen.rate
