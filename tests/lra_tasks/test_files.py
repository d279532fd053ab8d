"""Paths of the user, and file systems or systems that lack locks."""

import errno
import fcntl
import os
import re
import runpy
import stat
import sys
from pathlib import Path

import pytest
from helpers import arena

import lra_tasks
from lra_tasks import UsageError, compare, evaluate, prepare, report, restore, runs, train
from lra_tasks import files as files_module
from lra_tasks.cli import bench, env, main
from lra_tasks.cli.show import show
from lra_tasks.config import to_json
from lra_tasks.data import prepare as preparation
from lra_tasks.data.location import data_root
from lra_tasks.files import folder_problem, is_locked, local_path, locked
from lra_tasks.progress import Silent
from lra_tasks.reporting.history import compared, is_run

CALLS = {
    "train": lambda path: train(arena.CONFIG, path),
    "compare": lambda path: compare("listops", ["none"], arena.SMOKE, path),
    "evaluate": evaluate,
    "restore": restore,
    "report": report,
    "runs": runs,
    "compared": lambda path: compared([path, path]),
    "load": lambda path: lra_tasks.load("listops", "train", path),
    "prepare": lambda path: prepare("listops", path),
    "bench": lambda path: bench._run(dict, print, Path(path, "file.json")),
}
ONLY_URLS = {
    "is_run": is_run,
    "check": lra_tasks.check,
    "manual_dir": lambda path: prepare("text", manual_dir=path),
    "png": lambda path: show("image", png=path),
    "--from": lambda path: main._parse(["train", "--from", str(path)]),
    "--plot": lambda path: bench._run(dict, print, None, path),
}


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("call", [*CALLS, *ONLY_URLS])
def test_a_url_is_refused_at_once(call, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"must be a path of this machine; got gs:/+bucket.*That is a URL"):
        (CALLS | ONLY_URLS)[call](kind("gs://bucket/folder"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", CALLS)
def test_the_home_folder_is_named_in_full(call, tmp_path, monkeypatch):
    """Every call refuses a file in the place of a folder, and names it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").touch()
    with pytest.raises(UsageError, match=f"{tmp_path}/home/file"):
        CALLS[call]("~/file")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_files_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.json").write_text(to_json(arena.CONFIG))
    assert main._parse(["train", "--from", "~/config.json"]).settings == arena.CONFIG.settings
    assert is_run("~")
    bench._run(lambda progress: {"rates": 1}, print, Path("~/rates.json"))
    assert (tmp_path / "rates.json").is_file()


def test_the_data_folder_of_the_environment(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "~/data")
    assert data_root(None) == Path.home() / "data"
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/data")
    with pytest.raises(
        UsageError, match=r"^TFDS_DATA_DIR must be a path of this machine; got gs://bucket/data"
    ):
        data_root(None)
    assert "got gs://bucket/data" in env.environment()["data folder"]


def test_other_paths_are_kept():
    for text in ("a:b", "runs/x:/y", "./gs:/x", "C:/x", "/a~b", ""):
        assert local_path(text, "run_dir") == Path(text)
    with pytest.raises(UsageError, match="There is no user of the name after ~"):
        local_path("~no-such-user/x", "run_dir")


@pytest.fixture
def no_locks(monkeypatch):
    """The answer of Lustre that is mounted without "-o flock"."""

    def flock(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("no_locks")
def test_data_are_prepared_without_locks(tmp_path, monkeypatch):
    """Nor does this file system flush folders."""

    def fsync(descriptor, fsync=os.fsync):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    progress, said = Silent(), []
    progress.say = said.append
    assert prepare("listops", tmp_path, variant="smoke", progress=progress).is_dir()
    assert re.fullmatch(r".*without file locks \(Function not implemented\): do not prepare listops.*", *said)


@pytest.mark.usefixtures("no_locks")
def test_a_run_without_locks_is_refused_at_once(smoke_data, tmp_path):
    for call in (
        lambda: train(arena.CONFIG, tmp_path / "run", data_dir=smoke_data),
        lambda: compare("listops", ["none"], arena.SMOKE, tmp_path / "run", data_dir=smoke_data),
    ):
        with pytest.raises(UsageError, match=r"^run_dir must .*/run is without file locks .*-o flock"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_locks")
def test_the_report_for_bug_reports_names_missing_locks(tmp_path):
    found = env.environment(tmp_path / "new")
    assert found["data folder"].startswith(f"{tmp_path / 'new'}, without file locks (")
    assert found["current folder"].startswith(f"{Path.cwd()}, without file locks (")
    assert not is_locked(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    assert folder_problem(tmp_path) == folder_problem(tmp_path / "not" / "yet") == ""
    assert folder_problem(tmp_path / "file" / "run") == "not writable (Not a directory)"
    with pytest.raises(UsageError, match=r"run_dir must .*file/run is not writable"):
        compare("listops", ["none"], arena.SMOKE, tmp_path / "file" / "run")


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_other_faults_of_a_file_system_are_kept(code, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(code)), locked(tmp_path / "lock", "taken"):
        pass
    with pytest.raises(OSError, match=os.strerror(code)):
        preparation._flush_to_disk(tmp_path)


def test_a_system_without_locks_is_refused_in_a_sentence(monkeypatch, capsys):
    """As on Windows, where Python has no fcntl."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ImportError, match="lra_tasks runs on Linux and macOS"):
        runpy.run_path(files_module.__file__)
    monkeypatch.delitem(sys.modules, "lra_tasks.files")
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(main.__file__)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"lra: lra_tasks runs on Linux and macOS; [^\n]*\n", err)
