"""Set-up of the tests: four CPU devices, run-time type checks, hypothesis profiles, runs to share."""

import atexit
import errno
import os
import pathlib
import shutil
import tempfile

# Before jax is imported; flags of the caller win. Optimizing small programs takes longer than running them.
for flag in ("--xla_force_host_platform_device_count=4", "--xla_backend_optimization_level=0"):
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

# Tests, workers and the processes that they start share compiled programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="hrrformer-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jaxtyping  # noqa: E402

jaxtyping.install_import_hook("hrrformer", "beartype.beartype")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from helpers import arena  # noqa: E402

from lra_tasks.training import preflight  # noqa: E402
from lra_tasks.training.step import Trainer  # noqa: E402

collect_ignore = ["helpers/plain.py"]  # a program for an environment without the arena, and no tests

# The same examples on every run; HYPOTHESIS_PROFILE=search looks for new ones.
hypothesis.settings.register_profile("same", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="module")
def strict_promotion():
    """No implicit promotion of dtypes or ranks: what the library promotes, it promotes on purpose."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def untyped():
    """Switches the run-time type checks off, for tests of the messages that a user sees without them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def x64():
    """Allows float64 in jax."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unreadable(monkeypatch):
    """Makes `Path.open` refuse one path, as the system refuses it to all but root."""

    def refuse(path):
        def opened(self, *arguments, **options):
            if self == path:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
            return opening(self, *arguments, **options)

        monkeypatch.setattr(pathlib.Path, "open", opened)

    opening = pathlib.Path.open
    return refuse


@pytest.fixture(scope="session", autouse=True)
def shared_trainers():
    """Lets runs of one configuration share their compiled steps, which depend on nothing else."""
    with arena.sharing_trainers():
        yield


@pytest.fixture
def own_trainers(monkeypatch):
    """Compiles every run's steps again, for tests of that."""
    monkeypatch.setattr(preflight, "Trainer", Trainer)


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory):
    """The folder of the smoke dataset; not to be changed."""
    return arena.shared(tmp_path_factory, "smoke_data", arena.make_data)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory, smoke_data):
    """The folder of a finished run of `arena.CONFIG`; not to be changed."""
    return arena.shared(tmp_path_factory, "smoke_run", lambda folder: arena.make_run(folder, smoke_data))


@pytest.fixture(scope="session")
def smoke_race(tmp_path_factory, smoke_data):
    """The folder of an undisturbed `lra compare` at smoke size; not to be changed."""
    return arena.shared(tmp_path_factory, "smoke_race", lambda folder: arena.make_race(folder, smoke_data))
