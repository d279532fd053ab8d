"""`lra doctor`: what it finds, what it advises, and that nothing broken makes it crash."""

import json
import os
import shutil
import stat
import sys

import pytest
from helpers import arena

from lra_tasks.cli import doctor as looks
from lra_tasks.cli.doctor import Accelerator, Attempt, Line, doctor

H100 = Accelerator("NVIDIA H100 (driver 580.1)", "gpu", "cuda13")
CPU = Attempt(False, json.dumps(["cpu", ["cpu"] * 4]))


@pytest.fixture
def quick(monkeypatch):
    """Every import works at once, and four CPU devices are seen."""
    monkeypatch.setattr(looks, "_try", lambda code: CPU)
    monkeypatch.setattr(looks, "_accelerators", list)


def found(lines):
    return {line.what: line for line in lines}


def test_all_is_well(smoke_data, tmp_path):
    """In earnest: every package is imported."""
    result = arena.lra("doctor", "--data-dir", smoke_data, cwd=tmp_path, env={"COLUMNS": "80"})
    assert result.returncode == 0, result.stdout + result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout
    for words in ("Python", "orbax-checkpoint", "4 × cpu", "lra_listops/smoke/1.0.0", "Training can begin."):
        assert words in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["raise RuntimeError('sky')", "import os; os._exit(3)", "1 +"])
def test_a_broken_package(tmp_path, smoke_data, broken):
    (tmp_path / "optax.py").write_text(broken)
    result = arena.lra("doctor", "--data-dir", smoke_data, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    text = " ".join(result.stdout.split())
    assert "optax: It cannot be imported. Run: pip install --force-reinstall optax" in text
    mended = text.partition("Nothing can be trained before this is mended: ")[2]
    assert "optax" in mended
    assert "jaxlib" not in mended
    assert ("sky" in text) == ("sky" in broken)


def test_a_missing_package(quick, monkeypatch):
    monkeypatch.setattr(looks, "PACKAGES", {"jax": "jax", "numpy": "numpy", "no-such-package": "nothing"})
    line = found(doctor())["no-such-package"]
    assert line == Line("no-such-package", "missing", "Run: pip install 'hrrformer[lra]'", fatal=True)


@pytest.mark.parametrize(("plugins", "extras"), [({}, "lra"), ({"cuda12": "numpy"}, "lra,cuda12")])
def test_a_version_that_does_not_go(quick, monkeypatch, plugins, extras):
    """A plugin fits one version of JAX, so that the two are installed together."""
    monkeypatch.setattr(looks, "PLUGINS", plugins)
    installed = looks.version
    monkeypatch.setattr(looks, "version", lambda name: "0.11.2" if name == "jaxlib" else installed(name))
    lines = found(doctor())
    assert lines["jaxlib"].found == "0.11.2, where !=0.11.1,!=0.11.2 is needed"
    command = f"pip install --upgrade 'hrrformer[{extras}]' 'jaxlib!=0.11.1,!=0.11.2'"
    assert lines["jaxlib"].advice == f"Run: {command}"
    assert [line.what for line in lines.values() if line.fatal] == ["jaxlib"]


def test_a_doctor_without_packaging(quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    assert not [line for line in doctor() if line.fatal]


def test_a_missing_optional_package(quick, monkeypatch):
    monkeypatch.setattr(looks, "OPTIONAL", {"no-such-package": ("extra", "what for")})
    line = found(doctor())["no-such-package"]
    assert "not installed; what for: pip install 'hrrformer[extra]'" in line.found
    assert not line.advice


@pytest.mark.parametrize(
    ("memory", "told", "advised"),
    [
        ((8 * 10**9, 5 * 10**9), "8.0 GB, 5.0 GB of them free", False),
        ((8 * 10**9, 5 * 10**8), "8.0 GB, 0.5 GB of them free", True),
        ((8 * 10**9, None), "8.0 GB", False),
    ],
)
def test_memory(quick, monkeypatch, memory, told, advised):
    monkeypatch.setattr(looks, "total_and_free", lambda: memory)
    line = found(doctor())["memory"]
    assert (line.found, bool(line.advice), line.fatal) == (told, advised, False)


@pytest.mark.parametrize(
    ("accelerators", "environ", "advice"),
    [
        ([], {}, None),
        ([H100], {}, "Run: pip install 'hrrformer[cuda13]'"),
        ([H100], {"JAX_PLATFORMS": "cpu"}, "JAX_PLATFORMS is 'cpu': unset it"),
        ([Accelerator("a TPU", "tpu", "tpu")], {}, "Run: pip install 'hrrformer[tpu]'"),
    ],
)
def test_devices_that_jax_does_not_use(accelerators, environ, advice, monkeypatch):
    monkeypatch.setattr(looks, "PLUGINS", {})
    first, *others = looks._devices(CPU, accelerators, environ)
    assert first == Line("devices", "4 × cpu")
    assert len(others) == len(accelerators)
    for line in others:
        assert line.advice.startswith(advice)
        assert not line.fatal


def test_a_device_that_jax_uses():
    gpu = Attempt(False, json.dumps(["gpu", ["NVIDIA H100"]]))
    assert looks._devices(gpu, [H100], {}) == [Line("devices", "gpu: 1 × NVIDIA H100")]


def test_a_plugin_that_does_not_work(monkeypatch):
    monkeypatch.setattr(looks, "PLUGINS", {"cuda13": "numpy"})
    attempt = Attempt(False, CPU.output, "no driver")
    (_, line) = looks._devices(attempt, [H100], {})
    assert "is installed, but JAX says: no driver" in line.advice
    assert "pip install --upgrade 'hrrformer[cuda13]'" in line.advice


@pytest.mark.parametrize("environ", [{}, {"JAX_PLATFORMS": "cuda"}])
def test_no_device(environ):
    (line,) = looks._devices(Attempt(True, error="Unable to initialize backend"), [], environ)
    assert line.fatal
    assert "Unable to initialize backend" in line.found
    assert ("JAX_PLATFORMS is 'cuda'" in line.advice) == bool(environ)


@pytest.mark.parametrize(
    ("script", "name", "extra"),
    [
        ("echo 'NVIDIA H100, 580.65.06'", "NVIDIA H100 (driver 580.65.06)", "cuda13"),
        ("echo 'NVIDIA A100, 40GB, 550.1'", "NVIDIA A100, 40GB (driver 550.1)", "cuda12"),
        ("echo failed because no driver; exit 9", None, None),
    ],
)
def test_what_nvidia_smi_tells(script, name, extra, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    gpus = [
        device for device in looks._accelerators() if "driver" in device.name and "tells" not in device.name
    ]
    assert gpus == ([] if name is None else [Accelerator(name, "gpu", extra)])


def test_data(quick, smoke_data, tmp_path):
    good = found(doctor(smoke_data))["lra_listops/smoke/1.0.0"]
    assert "examples" in good.found
    assert not good.advice
    shutil.copytree(smoke_data, tmp_path / "data")
    folder = tmp_path / "data" / "lra_listops" / "smoke" / "1.0.0"
    os.truncate(next(folder.glob("*test*")), 100)
    cut = found(doctor(tmp_path / "data"))["lra_listops/smoke/1.0.0"]
    assert "has 100 bytes" in cut.found
    assert "`lra check`" in cut.advice
    (folder / "manifest.json").write_text("[]")
    assert "cannot be read" in found(doctor(tmp_path / "data"))["lra_listops/smoke/1.0.0"].found


def test_nothing_is_prepared(quick, tmp_path):
    lines = found(doctor(tmp_path / "none", tmp_path / "runs"))
    assert "not there yet" in lines["data folder"].found
    assert "prepare" in lines["data folder"].advice
    assert not any(line.fatal for line in lines.values())
    assert list(tmp_path.iterdir()) == []


def test_runs(quick, smoke_race, tmp_path):
    assert "4 finished" in found(doctor(runs_dir=smoke_race))["runs folder"].found
    (tmp_path / "file").touch()
    line = found(doctor(runs_dir=tmp_path / "file" / "runs"))["runs folder"]
    assert line.fatal
    assert "cannot be written" in line.advice or "no folder that can be written" in line.advice


def test_little_room(quick, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    lines = found(doctor(tmp_path, tmp_path))
    assert "Make room" in lines["runs folder"].advice
    assert lines["data folder"].advice


def test_variables(quick, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = found(doctor())
    assert lines["JAX_ENABLE_X64"].advice
    assert lines["NO_COLOR"] == Line("NO_COLOR", "not set")


def test_what_hangs(monkeypatch):
    monkeypatch.setattr(looks, "SECONDS", 0.5)
    attempt = looks._try("import time; time.sleep(60)")
    assert attempt.failed
    assert "no answer" in attempt.error
