"""Settings of JAX: those that change the numbers of a run, and modes for debugging."""

import json
import shutil

import jax
import pytest
from helpers import arena

from lra_tasks import UsageError, compare, train
from lra_tasks.bench.attention import bench_attention
from lra_tasks.tasks import get_task
from lra_tasks.training import preflight, processes
from lra_tasks.training.jax_settings import NUMERICS, numerics
from lra_tasks.training.mesh import make_mesh
from lra_tasks.training.step import Trainer

OTHERS = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 3,
    "jax_default_matmul_precision": "highest",
}


@pytest.fixture
def setting(request):
    """Sets a setting of JAX for all threads, and returns its name."""
    name, value = request.param
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    yield name
    jax.config.update(name, before)


def test_a_run_records_them(smoke_run):
    assert json.loads((smoke_run / "env.json").read_text())["jax_settings"] == numerics()
    assert OTHERS.keys() == set(NUMERICS)


@pytest.mark.parametrize("setting", OTHERS.items(), indirect=True, ids=OTHERS.keys())
def test_a_run_under_other_settings_is_refused(setting, smoke_run, smoke_data, tmp_path):
    there = json.loads((smoke_run / "env.json").read_text())["jax_settings"][setting]
    shutil.copytree(smoke_run, tmp_path / "resumable")
    (tmp_path / "resumable" / "summary.json").unlink()
    for run_dir in (smoke_run, tmp_path / "resumable"):
        before = arena.snapshot(run_dir)
        with pytest.raises(UsageError) as caught:
            train(arena.CONFIG, run_dir, data_dir=smoke_data)
        for words in (
            f"The run in {run_dir} began with other settings of JAX; nothing was changed.",
            f"(there, here): {setting}: {there}, {OTHERS[setting]}.",
            f"by the environment variable {setting.upper()}, or give another folder.",
        ):
            assert words in str(caught.value)
        assert arena.snapshot(run_dir) == before


def test_a_run_of_an_earlier_version_resumes(smoke_run, smoke_data, tmp_path):
    shutil.copytree(smoke_run, tmp_path / "run")
    (tmp_path / "run" / "env.json").write_text("{}")
    assert train(arena.CONFIG, tmp_path / "run", data_dir=smoke_data)


def test_processes_with_other_settings_are_refused(monkeypatch):
    def gather(own):
        return [own, [*own[:-1], own[-1] | {"jax_enable_x64": True}]]

    monkeypatch.setattr(processes, "gather", gather)
    with pytest.raises(UsageError, match=r"^Process 1 .* than process 0: jax_enable_x64: False, True\. Give"):
        preflight._check_alike(arena.CONFIG, {"identity": ""}, make_mesh())


@pytest.mark.parametrize(
    "setting",
    [
        ("jax_disable_jit", True),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_transfer_guard_host_to_device", "disallow"),
        ("jax_transfer_guard_device_to_device", "disallow_explicit"),
        ("jax_transfer_guard_device_to_host", "disallow"),
    ],
    indirect=True,
)
def test_modes_that_training_does_not_support_are_refused(setting, smoke_data, tmp_path):
    for call in (
        lambda: train(arena.CONFIG, tmp_path / "run", data_dir=smoke_data),
        lambda: compare("listops", ["none"], arena.SMOKE, tmp_path / "run", data_dir=smoke_data),
        bench_attention,
    ):
        with pytest.raises(UsageError, match=f"^{setting} cannot be .*, since .*Unset this mode of JAX"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [jax.checking_leaks, lambda: jax.transfer_guard("log")])
def test_modes_that_training_supports(mode):
    with mode():
        Trainer(arena.CONFIG, get_task("listops")).check()
