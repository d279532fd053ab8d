"""A comparison: the same data, seeds and budget for every mixer, one run each, one report."""

import os
from collections.abc import Sequence
from pathlib import Path

from lra_tasks.config import Config, Settings
from lra_tasks.data import dataset
from lra_tasks.data.prepare import prepare
from lra_tasks.errors import UsageError
from lra_tasks.files import write_json
from lra_tasks.progress import Progress, Silent
from lra_tasks.reporting.report import ORDER, report
from lra_tasks.reporting.results import Report
from lra_tasks.training import processes
from lra_tasks.training.loop import train
from lra_tasks.training.run_folder import check_folder
from lra_tasks.training.step import Program
from lra_tasks.training.tensorboard import check_installed


def compare(
    task: str,
    mixers: Sequence[str],
    settings: Settings,
    out_dir: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (0,),
    data_dir: str | os.PathLike[str] | None = None,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Trains every mixer with every seed, and reports on them.

    Runs lie in `out_dir/<mixer>-seed<seed>`. Finished runs are taken as they are and interrupted ones are
    gone on with, so calling this again after a kill ends in the same table. The dataset is prepared first
    if it is not there.

    Args:
      task: name of the task.
      mixers: names of mixers, or `package.module:Class`, in the order of the table.
      settings: what all runs share; see `lra_tasks.preset`.
      out_dir: folder of the comparison; made if need be.
      seeds: one run of each mixer for each of them.
      data_dir: folder of all datasets, as in `lra_tasks.prepare`.
      tensorboard: as of `lra_tasks.train`, for every run.
      progress: shows what is under way; None for silence.

    Returns:
      The report; its files lie in `out_dir`, see `lra_tasks.report`.

    Raises:
      UsageError, Interrupted: as `lra_tasks.train`.
    """
    progress = progress or Silent()
    out_dir = Path(out_dir)
    if processes.count() > 1:
        raise UsageError(
            "A comparison is for one process; several train its runs one by one, for `lra report`."
        )
    if not mixers or not seeds:
        raise UsageError("A comparison needs at least one mixer and one seed.")
    if tensorboard:
        check_installed()
    configs = [
        Config(task=task, mixer=mixer, seed=seed, **vars(settings))
        for mixer in dict.fromkeys(mixers)
        for seed in dict.fromkeys(seeds)
    ]
    record = dataset.record(task, settings.variant, data_dir)
    title = record.title(settings.variant)
    # What is wrong with the last mixer shows before the first one trains.
    progress.show(f"{title}: checking the mixers")
    for config in configs:
        if config.seed == configs[0].seed:
            Program(config, record).check()
        check_folder(out_dir / config.name, config)
    prepare(record, data_dir, variant=settings.variant, progress=progress.show)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(out_dir / ORDER, [config.name for config in configs])
    for config in configs:
        train(config, out_dir / config.name, data_dir=data_dir, tensorboard=tensorboard, progress=progress)
    return report(out_dir, data_dir=data_dir, progress=progress)
