"""Set-up of the tests: four CPU devices, run-time type checks of the library, hypothesis profiles."""

import os

# Before jax is imported; the caller's own flags stay, and a device count among them wins.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    ).strip()

import jaxtyping

jaxtyping.install_import_hook("hrrformer", "beartype.beartype")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile("dev", deadline=None, max_examples=30)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


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
