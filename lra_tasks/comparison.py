"""Comparison of mixers on the same data, with the same seeds and budget, and one report."""

import os
from collections.abc import Mapping, Sequence

from lra_tasks.config import Config, Settings
from lra_tasks.data.dataset import completed_task, open_dataset
from lra_tasks.data.prepare import prepare
from lra_tasks.errors import UsageError
from lra_tasks.files import local_path, write_json
from lra_tasks.progress import Progress, Silent
from lra_tasks.reporting.report import ORDER, report
from lra_tasks.reporting.results import Report
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
    data_dir: str | os.PathLike[str] | None = None,
    mesh: Mapping[str, int] | str | None = None,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Trains every mixer with every seed, and writes a report.

    Runs are stored in `run_dir/<mixer>-seed<seed>`. Finished runs are reused and interrupted ones resume, so
    that the same call after a kill produces the same table. A missing dataset is prepared first.

    Args:
      task: Name of the task, or `package.module:TASK`.
      mixers: Names of mixers with their options, or `package.module:Class`, in the order of the table:
        ["hrr", "hrr:rescale=True", "none"].
      settings: Settings that all runs share; see `lra_tasks.preset`.
      run_dir: Folder of the comparison; created if it is missing.
      seeds: Seeds of the runs; every mixer is trained once per seed.
      data_dir: Folder of all datasets, as in `lra_tasks.prepare`.
      mesh: Devices per axis, as in `lra_tasks.train`.
      tensorboard: Whether to write curves for every run, as in `lra_tasks.train`.
      progress: Display of the progress; None for silence.

    Returns:
      Report of the comparison; its files are in `run_dir`, see `lra_tasks.report`.

    Raises:
      UsageError: If `mixers` or `seeds` is empty, if several processes are joined, and as `lra_tasks.train`.
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
    configs = [
        Config(settings=settings, task=task, mixer=mixer, seed=seed)
        for mixer in dict.fromkeys(mixers)
        for seed in dict.fromkeys(seeds)
    ]

    # All mixers are checked before the first one trains.
    found = completed_task(task, settings.variant, data_dir)
    title = found.title(settings.variant)
    progress.show(f"{title}: checking the mixers")
    for config in configs:
        if config.seed == configs[0].seed:
            Trainer(config, found, mesh).check()
        check_folder(run_dir / config.name, config)

    # Data, opened once for all runs.
    prepare(found, data_dir, variant=settings.variant, progress=progress)
    dataset = open_dataset(found, settings.variant, data_dir)

    # Runs, and a report with the baseline scores on the same data.
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / ORDER, [config.name for config in configs])
    for config in configs:
        train(
            config,
            run_dir / config.name,
            dataset=dataset,
            mesh=mesh,
            tensorboard=tensorboard,
            progress=progress,
        )
    return report(run_dir, dataset=dataset, progress=progress)
