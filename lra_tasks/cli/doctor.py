"""Looks at what training needs: packages, devices, memory, data, disk, environment; says what to do.

What may be broken in any way, an import or a driver, is tried in a process of its own.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from lra_tasks.tasks import ARENA
from lra_tasks.training.memory import total_and_free

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

# Distribution → the module whose import shows that it works, each a process of its own.
PACKAGES = {
    "hrrformer": "hrrformer.nnx",
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax.nnx",
    "numpy": "numpy",
    "optax": "optax",
    "orbax-checkpoint": "orbax.checkpoint",
    "grain": "grain",
    "packaging": "packaging.requirements",
    "protobuf": "google.protobuf",
    "tensorflow-datasets": "tensorflow_datasets",
}
OPTIONAL = {"tensorboardX": ("tensorboard", "writes curves for TensorBoard")}  # → extra, what it is for
VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "TFDS_DATA_DIR", "NO_COLOR", "JAX_ENABLE_X64")
SECONDS = 120  # what does not answer until then hangs
CUDA13_DRIVER = 580  # the oldest driver, by its major version, that runs CUDA 13
LITTLE = 10**9  # bytes of disk or memory below which hardly anything goes

PLUGINS = {  # extra of hrrformer → the distribution by which JAX uses such a device
    "cuda12": "jax-cuda12-plugin",
    "cuda13": "jax-cuda13-plugin",
    "tpu": "libtpu",
}

DEVICES = """
import json, jax
devices = jax.devices()
print(json.dumps([jax.default_backend(), [device.device_kind for device in devices]]))
"""


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
      what: its name.
      found: what was found.
      advice: what to do; empty where nothing is wrong.
      fatal: whether nothing can be trained before that is done.
    """

    what: str
    found: str
    advice: str = ""
    fatal: bool = False


@dataclass(frozen=True)
class Attempt:
    """What came of a process: whether it failed, and the last lines it printed."""

    failed: bool
    output: str = ""
    error: str = ""


@dataclass(frozen=True)
class Accelerator:
    """A device of this machine, whether JAX uses it or not.

    Attributes:
      name: what it is.
      platform: "gpu" or "tpu", as JAX calls it.
      extra: of hrrformer, by which JAX uses it.
    """

    name: str
    platform: str
    extra: str


def doctor(
    data_dir: str | os.PathLike[str] | None = None, runs_dir: str | os.PathLike[str] = "runs"
) -> list[Line]:
    """Looks at all that training needs; changes nothing, and raises nothing for what is broken.

    Args:
      data_dir: folder of all datasets, as in `lra_tasks.prepare`.
      runs_dir: folder of all runs.

    Returns:
      A line for each thing. One can train if none of them is fatal.

    Cost: an import of every package, in processes side by side.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        devices = threads.submit(_try, DEVICES)
        codes = (f"import {module}" for module in PACKAGES.values())
        imported = dict(zip(PACKAGES, threads.map(_try, codes), strict=True))
    lines = [Line("Python", f"{platform.python_version()}, {sys.executable}")]
    needed = _needed()
    lines += [_package(name, imported[name], needed.get(name)) for name in PACKAGES]
    lines += [_optional(name, *OPTIONAL[name]) for name in OPTIONAL]
    if not imported["jax"].failed:
        lines += _devices(devices.result(), _accelerators(), os.environ)
    lines += [_memory(), _processors()]
    if imported["numpy"].failed:
        lines.append(Line("data, runs", "not looked at, since NumPy is broken"))
    else:
        lines += _data(data_dir)
        lines.append(_runs(Path(runs_dir)))
    return lines + _variables(os.environ)


def _try(code: str) -> Attempt:
    try:
        child = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Attempt(True, error=f"no answer for {SECONDS} seconds")
    error = _last(child.stderr)
    if child.returncode:
        return Attempt(True, error=error or f"it ended with exit status {child.returncode}")
    return Attempt(False, _last(child.stdout), error)


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _needed() -> "dict[str, SpecifierSet]":
    """Which versions of its packages the arena needs, as its own metadata say."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(line) for line in requires("hrrformer") or ()]
    except (ImportError, PackageNotFoundError):  # their lines say so
        return {}
    return {
        requirement.name: requirement.specifier
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": "lra"})
    }


def _package(name: str, imported: Attempt, needed: "SpecifierSet | None") -> Line:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Line(name, "missing", "Run: pip install 'hrrformer[lra]'", fatal=True)
    if imported.failed:
        advice = f"It cannot be imported. Run: pip install --force-reinstall {name}"
        return Line(name, f"{found}, broken: {imported.error}", advice, fatal=True)
    if needed is not None and not needed.contains(found, prereleases=True):
        plugins = [extra for extra, plugin in PLUGINS.items() if _version(plugin)]  # each fits one JAX
        advice = f"Run: pip install --upgrade 'hrrformer[{','.join(['lra', *plugins])}]' '{name}{needed}'"
        return Line(name, f"{found}, where {needed} is needed", advice, fatal=True)
    return Line(name, found)


def _optional(name: str, extra: str, purpose: str) -> Line:
    try:
        return Line(name, version(name))
    except PackageNotFoundError:
        return Line(name, f"not installed; {purpose}: pip install 'hrrformer[{extra}]'")


def _accelerators() -> list[Accelerator]:
    found = [Accelerator("a TPU", "tpu", "tpu")] if list(Path("/dev").glob("accel[0-9]*")) else []
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # no such program, or a driver that does not answer
        told = ""
    name, _, driver = told.partition("\n")[0].rpartition(", ")
    major = driver.partition(".")[0]
    if name and major.isdigit():
        extra = "cuda13" if int(major) >= CUDA13_DRIVER else "cuda12"
        found.append(Accelerator(f"{name} (driver {driver})", "gpu", extra))
    elif list(Path("/dev").glob("nvidia[0-9]*")):
        found.append(Accelerator("an NVIDIA GPU, of which nvidia-smi tells nothing", "gpu", "cuda12"))
    return found


def _devices(attempt: Attempt, accelerators: Sequence[Accelerator], environ: Mapping[str, str]) -> list[Line]:
    asked = environ.get("JAX_PLATFORMS", "")
    unset = f"JAX_PLATFORMS is '{asked}': unset it, or name a platform that is here."
    if attempt.failed:
        advice = unset if asked else "See to what JAX says; reinstalling JAX for this device often helps."
        return [Line("devices", f"JAX finds none: {attempt.error}", advice, fatal=True)]
    used, kinds = json.loads(attempt.output)
    names = ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
    lines = [Line("devices", names if names.endswith(used) else f"{used}: {names}")]
    for accelerator in accelerators:
        if accelerator.platform == used:
            continue
        installed = _installed(accelerator)
        if asked:
            advice = unset
        elif installed:
            advice = f"{installed} is installed, but JAX says: {attempt.error or 'nothing'}. Run: pip install"
            advice += f" --upgrade 'hrrformer[{accelerator.extra}]'"
        else:
            advice = f"Run: pip install 'hrrformer[{accelerator.extra}]'"
        lines.append(Line(accelerator.platform.upper(), f"{accelerator.name}; JAX does not use it", advice))
    return lines


def _installed(accelerator: Accelerator) -> str:
    """The distribution that should bring JAX to the device, or nothing."""
    for extra, name in PLUGINS.items():
        if (extra == "tpu") == (accelerator.platform == "tpu") and (found := _version(name)):
            return f"{name} {found}"
    return ""


def _version(name: str) -> str:
    """That of an installed distribution, or nothing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _memory() -> Line:
    total, free = total_and_free()
    if free is None:
        return Line("memory", _gigabytes(total))
    advice = "End what else is running, or train on another machine." if free < LITTLE else ""
    return Line("memory", f"{_gigabytes(total)}, {_gigabytes(free)} of them free", advice)


def _processors() -> Line:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    more = f" of {os.cpu_count()}" if allowed != os.cpu_count() else ""
    return Line("CPUs", f"{allowed}{more}")


def _data(data_dir: str | os.PathLike[str] | None) -> list[Line]:
    """The folder of all datasets, and each: is every file there, and as long as it should be?"""
    from lra_tasks.data.location import DatasetDir, data_root
    from lra_tasks.data.verify import dataset_folders

    root = data_root(data_dir)
    found, free, problem, _ = _disk(root)
    small = [
        task.name
        for task in ARENA
        if task.disk_bytes > free and not os.path.isdir(DatasetDir(task, task.variant, data_dir).folder)
    ]
    if small and not problem:
        problem = f"There is no room to prepare {', '.join(small)}: give --data-dir, or set TFDS_DATA_DIR."
    datasets = [_dataset(folder, root) for folder in dataset_folders(root)]
    if not datasets and not problem:
        problem = "Nothing is prepared: `lra prepare listops` makes a dataset; `lra compare` makes its own."
    return [Line("data folder", found, problem), *datasets]


def _dataset(folder: Path, root: Path) -> Line:
    from lra_tasks.data.location import MANIFEST, damage

    name, advice = str(folder.relative_to(root)), "`lra check` says what is wrong, and what makes it again."
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        problems = list(damage(folder, manifest, verify=False))
        number = sum(manifest["num_examples"].values())
        size = sum(file["size"] for file in manifest["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # whatever stands in there
        return Line(name, f"not whole: its {MANIFEST} cannot be read ({error!r})", advice)
    if problems:
        return Line(name, f"not whole: {' '.join(problems)}", advice)
    return Line(name, f"{number:,} examples, {size / 1e6:,.1f} MB")


def _runs(folder: Path) -> Line:
    from lra_tasks.reporting.history import runs

    found, _, problem, unwritable = _disk(folder)
    states = [run.state for run in runs(folder)] if os.path.isdir(folder) else []
    counts = "".join(f", {states.count(state)} {state}" for state in dict.fromkeys(states))
    return Line("runs folder", found + counts, problem, fatal=unwritable)


def _disk(folder: Path) -> tuple[str, int, str, bool]:
    """What there is to say of a folder, its free bytes, what to do, and whether it cannot be written."""
    # Those of `os.path` say no where a folder above may not be looked into; those of `Path` raise.
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    free = shutil.disk_usage(there).free
    found = f"{folder}{'' if os.path.exists(folder) else ' (not there yet)'}, {_gigabytes(free)} free"
    if not os.path.isdir(there) or not os.access(there, os.W_OK):
        return found, free, f"{there} is no folder that can be written: name another, or mend it.", True
    advice = "Make room: checkpoints and datasets will not fit." if free < LITTLE else ""
    return found, free, advice, False


def _variables(environ: Mapping[str, str]) -> list[Line]:
    lines = []
    for name in VARIABLES:
        advice = ""
        if name == "JAX_ENABLE_X64" and environ.get(name, "").lower() in ("1", "t", "true", "y", "yes", "on"):
            advice = "Unset it: what is asked for in float64 takes twice the memory and more time."
        lines.append(Line(name, environ.get(name, "not set"), advice))
    return lines


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
