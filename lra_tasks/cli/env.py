"""Versions, devices and data of this machine, as a bug report needs them."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lra_tasks.data.location import MANIFEST, data_root
from lra_tasks.errors import UsageError
from lra_tasks.files import folder_problem
from lra_tasks.training.jax_settings import NUMERICS

PACKAGES = (
    "hrrformer",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
)
INCOMPATIBLE = {  # package and version → reason
    ("jaxlib", "0.11.1"): "its FFTs on CPU can hang",
    ("jaxlib", "0.11.2"): "its FFTs on CPU can hang",
}
VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", *map(str.upper, NUMERICS))


def environment(data_dir: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """Returns name → description of everything that a bug report should contain.

    Args:
      data_dir: Folder of all datasets, as in `lra_tasks.prepare`.
    """
    found = {"Python": platform.python_version(), "platform": platform.platform()}
    found |= {name: _version(name) for name in PACKAGES}
    try:
        import jax

        from lra_tasks.training.memory import total_and_free

        kinds = [device.device_kind for device in jax.devices()]
        names = ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
        found["devices"] = f"{jax.default_backend()}: {names}"
        total, free = total_and_free()
        found["memory"] = f"{total / 1e9:,.1f} GB" + ("" if free is None else f", {free / 1e9:,.1f} GB free")
    except (ImportError, RuntimeError) as error:  # a broken package or driver is part of the report
        found["devices"] = f"none, since JAX fails: {error}"
    try:
        root = data_root(data_dir)
        manifests = sorted(root.glob(f"lra_*/*/*/{MANIFEST}"))
        datasets = ", ".join(str(path.parent.relative_to(root)) for path in manifests)
        found["data folder"] = f"{_described(root)}, prepared: {datasets or 'nothing'}"
    except UsageError as error:  # TFDS_DATA_DIR is a URL
        found["data folder"] = str(error)
    found["current folder"] = _described(Path.cwd())  # `runs` is made there
    return found | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def _described(folder: Path) -> str:
    problem = folder_problem(folder)
    return f"{folder}, {problem}" if problem else str(folder)


def _version(name: str) -> str:
    try:
        found = version(name)
    except PackageNotFoundError:
        return "not installed: pip install 'hrrformer[lra]'"
    reason = INCOMPATIBLE.get((name, found))
    return found if reason is None else f"{found}, INCOMPATIBLE: {reason}; install another version"
