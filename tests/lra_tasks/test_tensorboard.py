"""Curves for TensorBoard: every row once, after any interruption, without other changes to the run."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import arena
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from lra_tasks import UsageError, compare, preset, train
from lra_tasks.progress import Silent
from lra_tasks.training.tensorboard import Curves


def records(path):
    """Yields the records of a TFRecord file: length, its checksum, the record, its checksum."""
    content, start = path.read_bytes(), 0
    while start < len(content):
        (size,) = struct.unpack_from("<Q", content, start)
        record = content[start + 12 : start + 12 + size]
        assert struct.unpack_from("<I", content, start + 8) == (masked_crc32c(content[start : start + 8]),)
        assert struct.unpack_from("<I", content, start + 12 + size) == (masked_crc32c(record),)
        yield record
        start += 16 + size


def points(folder):
    """Returns the points (curve, step, value) in the only event file of a folder, after its header."""
    (path,) = folder.iterdir()
    assert "tfevents" in path.name  # TensorBoard searches for this name
    version, start, *events = map(event_pb2.Event.FromString, records(path))
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (event_pb2.SessionLog.START, 0)
    times = [event.wall_time for event in (version, start, *events)]
    assert times == sorted(times)
    return [(value.tag, event.step, value.simple_value) for event in events for value in event.summary.value]


def assert_curves_are_the_rows(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert points(run_dir / "tensorboard") == [
        (f"{row['split']}/{name}", row["step"], np.float32(value))
        for row in rows
        for name, value in row.items()
        if name not in ("step", "split")
    ]
    assert {row["split"] for row in rows} == {"train", "validation"}


def test_curves_show_the_rows_and_do_not_change_the_run(smoke_run, smoke_data, tmp_path):
    train(arena.CONFIG, tmp_path / "run", data_dir=smoke_data, tensorboard=True)
    assert_curves_are_the_rows(tmp_path / "run")
    curves = {curve for curve, _, _ in points(tmp_path / "run" / "tensorboard")}
    assert {"train/loss", "train/accuracy", "validation/loss", "validation/accuracy"} <= curves
    arena.assert_same_run(tmp_path / "run", smoke_run)
    assert (tmp_path / "run" / "config.json").read_text() == (smoke_run / "config.json").read_text()


class Killer(Silent):
    """Kills a run before a step."""

    def show(self, message, done=0, total=0, note=""):
        if message.endswith("training") and done == 8:
            raise ZeroDivisionError


def test_unsaved_points_are_drawn_once(smoke_data, tmp_path):
    """The row of step 8 is written, the checkpoint of step 6 is the latest; the kill tears a record."""
    with pytest.raises(ZeroDivisionError):
        train(arena.CONFIG, tmp_path, data_dir=smoke_data, tensorboard=True, progress=Killer())
    assert ("train/loss", 8) in {(curve, step) for curve, step, _ in points(tmp_path / "tensorboard")}
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    train(arena.CONFIG, tmp_path, data_dir=smoke_data, tensorboard=True)
    assert_curves_are_the_rows(tmp_path)


def test_curves_can_be_requested_later(smoke_data, tmp_path):
    """Curves of a run that began without them, and of a finished run."""
    with pytest.raises(ZeroDivisionError):
        train(arena.CONFIG, tmp_path, data_dir=smoke_data, progress=Killer())
    assert not (tmp_path / "tensorboard").exists()
    train(arena.CONFIG, tmp_path, data_dir=smoke_data, tensorboard=True)
    assert_curves_are_the_rows(tmp_path)
    for path in (tmp_path / "tensorboard").iterdir():
        path.unlink()
    before = arena.snapshot(tmp_path)
    train(arena.CONFIG, tmp_path, data_dir=smoke_data, tensorboard=True)
    assert_curves_are_the_rows(tmp_path)
    after = arena.snapshot(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1


def test_a_comparison_draws_every_run(smoke_data, tmp_path):
    settings = preset("listops", "smoke")
    compare("listops", ["hrr", "none"], settings, tmp_path, data_dir=smoke_data, tensorboard=True)
    for name in ("hrr-seed0", "none-seed0"):
        assert_curves_are_the_rows(tmp_path / name)


def test_missing_tensorboardx_is_reported(smoke_data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    message = r"--tensorboard needs tensorboardX.*pip install 'hrrformer\[tensorboard\]'"
    with pytest.raises(UsageError, match=message):
        train(arena.CONFIG, tmp_path / "run", data_dir=smoke_data, tensorboard=True)
    with pytest.raises(UsageError, match=message):
        compare("listops", ["none"], preset("listops", "smoke"), tmp_path / "runs", tensorboard=True)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_reported(tmp_path):
    (tmp_path / "tensorboard").touch()
    with pytest.raises(UsageError, match=r"tensorboard/events.* cannot be written: .*Free disk space or fix"):
        Curves(tmp_path / "tensorboard", [])


def test_a_full_disk_is_reported(tmp_path):
    curves = Curves(tmp_path, [])
    curves._file._writer.close()
    curves._file._writer = Path("/dev/full").open("wb")  # noqa: SIM115
    with pytest.raises(UsageError, match=r"events.* cannot be written: No space left on device"):
        curves.write({"step": 1, "split": "train", "loss": 0.5})
    with pytest.raises(UsageError, match="No space left on device"):
        curves.close()
