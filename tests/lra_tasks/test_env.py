"""`lra env`: a report about the machine that also works where JAX does not."""

import importlib.metadata
import sys

import jax
import pytest
from helpers import arena

from lra_tasks.cli import env


def test_report(smoke_data):
    found = env.environment(smoke_data)
    assert found["jax"] == jax.__version__
    assert found["devices"].startswith("cpu: ")
    assert "GB" in found["memory"]
    assert found["data folder"] == f"{smoke_data}, prepared: lra_listops/smoke/1.0.0"


def test_nothing_is_prepared(tmp_path):
    assert env.environment(tmp_path / "none")["data folder"] == f"{tmp_path / 'none'}, prepared: nothing"


@pytest.mark.parametrize("wrong", ["0.11.1", "0.11.2"])
def test_incompatible_versions_are_named(monkeypatch, wrong):
    monkeypatch.setattr(env, "version", lambda name: wrong if name == "jaxlib" else "1.0")
    found = env.environment()
    assert found["jaxlib"].startswith(f"{wrong}, INCOMPATIBLE: ")
    assert not any("INCOMPATIBLE" in found[name] for name in env.PACKAGES if name != "jaxlib")


def test_jaxlib_requirement_excludes_them():
    (jaxlib,) = (line for line in importlib.metadata.requires("hrrformer") if line.startswith("jaxlib"))
    assert all(f"!={version}" in jaxlib for _, version in env.INCOMPATIBLE)


def test_missing_package(monkeypatch):
    monkeypatch.setattr(env, "PACKAGES", ("no-such-package",))
    assert "pip install" in env.environment()["no-such-package"]


def test_broken_jax(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend")

    monkeypatch.setattr(jax, "devices", fail)
    assert env.environment()["devices"] == "none, since JAX fails: Unable to initialize backend"
    monkeypatch.setitem(sys.modules, "jax", None)
    assert env.environment()["devices"].startswith("none, since JAX fails: ")


def test_command(smoke_data):
    result = arena.lra("env", "--data-dir", smoke_data, env={"COLUMNS": "50"})
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 50
    for word in ("Python:", "jaxlib:", "devices:", "memory:", "data folder:"):
        assert word in result.stdout
