"""The six tasks as a user runs them: prepared, trained and reported by name, from small sources."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import arena, stand_ins

from lra_tasks import Config, evaluate, preset, train
from lra_tasks.data.dataset import open_dataset
from lra_tasks.data.prepare import prepare
from lra_tasks.errors import UsageError
from lra_tasks.tasks import ARENA, TASKS
from lra_tasks.training import preflight

NAMES = [task.name for task in ARENA]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Returns a data folder with the smoke dataset of every task; tests must not change it."""

    def make(folder):
        stand_ins.write(folder / "sources")
        for name in NAMES:
            config = preset(name, "smoke").variant
            prepare(name, folder, variant=config, manual_dir=folder / "sources", unofficial=True)

    return arena.shared(tmp_path_factory, "arena", make)


def test_names_of_the_tasks():
    assert NAMES == ["listops", "text", "retrieval", "image", "pathfinder", "pathx"]
    assert [*TASKS] == [*NAMES, "recall", "order", "bytes"]


@pytest.mark.parametrize("name", NAMES)
def test_smoke_run(datasets, tmp_path, name):
    result = arena.lra(
        "train",
        name,
        "--preset",
        "smoke",
        "--num-steps",
        6,
        "--data-dir",
        datasets,
        "--run-dir",
        tmp_path / "run",
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["title"] == f"{name}/{preset(name, 'smoke').variant}"
    assert 0 <= summary["test_accuracy"] <= 100
    assert np.isfinite(summary["test_loss"])
    unofficial = name in ("text", "image", "retrieval")
    assert ("unofficial" in summary["data"]) == unofficial
    assert ("from an unofficial source: " in result.stderr) == unofficial
    assert ("unofficial source" in result.stdout) == unofficial


def settings(task, **changes):
    return dataclasses.replace(preset(task, "smoke"), **changes)


def test_protocols_choose_the_splits(datasets):
    def opened(protocol):
        return open_dataset("text", "smoke", datasets).for_run(settings("text", protocol=protocol))

    held_out, paper = opened("held-out"), opened("paper")
    assert [len(split) for split in held_out.values()] == [256, 64, 64]
    assert [len(split) for split in paper.values()] == [320, 64, 64]
    validation = [example["tokens"].tobytes() for example in held_out["validation"]]
    joined = list(paper["train"])
    assert [example["index"] for example in joined] == list(range(320))
    assert [example["tokens"].tobytes() for example in joined[256:]] == validation
    assert paper["validation"] is paper["test"]
    for indices in ([300, 3, 256, 255], [0]):
        found = paper["train"].__getitems__(indices)
        assert [example["index"] for example in found] == indices
        for index, example in zip(indices, found, strict=True):
            np.testing.assert_array_equal(example["tokens"], joined[index]["tokens"])
            np.testing.assert_array_equal(paper["train"][index]["tokens"], joined[index]["tokens"])


def test_protocol_paper_is_for_carved_splits(datasets):
    dataset = open_dataset("listops", "smoke", datasets)
    with pytest.raises(UsageError, match=r"must be 'held-out' for listops, .*; got 'paper'"):
        dataset.for_run(settings("listops", protocol="paper"))


def test_a_run_of_protocol_paper_chooses_on_the_test_split(datasets, tmp_path):
    changes = {"protocol": "paper", "num_steps": 4, "eval_every": 1, "eval_examples": None}
    config = Config(settings=settings("text", **changes), task="text", mixer="none")
    summary = train(config, tmp_path / "run", data_dir=datasets)
    assert summary["protocol"] == "paper"
    assert summary["validation_accuracy"] == summary["test_accuracy"]
    found = {
        split: evaluate(tmp_path / "run", split=split, data_dir=datasets) for split in ("train", "validation")
    }
    assert found["train"]["num_examples"] == 320  # including the validation examples
    assert found["validation"]["accuracy"] == summary["test_accuracy"]


def test_a_run_does_not_resume_on_other_data(datasets, tmp_path):
    config = Config(settings=settings("text", num_steps=2), task="text", mixer="none")
    train(config, tmp_path / "run", data_dir=datasets)
    (tmp_path / "run" / "summary.json").unlink()
    path = tmp_path / "run" / "data.json"
    assert "unofficial" in json.loads(path.read_text())
    train(config, tmp_path / "run", data_dir=datasets)
    (tmp_path / "run" / "summary.json").unlink()
    path.write_text(path.read_text().replace('"identity": "', '"identity": "0'))
    before = arena.snapshot(tmp_path)
    with pytest.raises(UsageError, match=r"began on other examples than lra_text/smoke/1.0.0 now contains"):
        train(config, tmp_path / "run", data_dir=datasets)
    assert arena.snapshot(tmp_path) == before


def test_a_step_that_does_not_fit_into_memory_is_refused(datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "free_bytes", lambda: 1000)
    config = Config(settings=settings("text"), task="text", mixer="none")
    with pytest.raises(
        UsageError, match=r"text with none needs .* GB of memory .*; 0.0 GB are free.*batch_size"
    ):
        train(config, tmp_path / "run", data_dir=datasets)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "failure.json"]


@pytest.mark.parametrize("length", [1023, 1025, 4096])
def test_pictures_are_neither_cut_nor_padded(datasets, length):
    dataset = open_dataset("pathfinder", "smoke-32", datasets)
    with pytest.raises(UsageError, match=rf"length must be 1,024, .*; got {length:,}\."):
        dataset.for_run(settings("pathfinder", length=length))
