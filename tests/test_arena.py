"""The six tasks as a user meets them: prepared, trained and reported on by name, from small sources."""

import dataclasses
import json

import arena
import numpy as np
import pytest
import stand_ins

from lra_tasks import Config, data, preset, train
from lra_tasks.errors import UsageError
from lra_tasks.preparation import prepare
from lra_tasks.tasks import ARENA, TASKS

NAMES = [task.name for task in ARENA]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A data folder with the smoke dataset of every task; not to be changed."""

    def make(folder):
        stand_ins.write(folder / "sources")
        for name in NAMES:
            config = preset(name, "smoke").dataset
            prepare(
                name, folder, config=config, manual_dir=folder / "sources", unofficial=True, num_workers=1
            )

    return arena.shared(tmp_path_factory, "arena", make)


def test_names():
    assert NAMES == ["listops", "text", "retrieval", "image", "pathfinder", "pathx"]
    assert [*TASKS] == [*NAMES, "bytes"]


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
    assert summary["title"] == f"{name}/{preset(name, 'smoke').dataset}"
    assert 0 <= summary["test_accuracy"] <= 100
    assert np.isfinite(summary["test_loss"])
    unofficial = name in ("text", "image")
    assert ("unofficial" in summary["data"]) == unofficial
    assert ("from an unofficial source: the archive" in result.stderr) == unofficial


def settings(task, **changes):
    return vars(dataclasses.replace(preset(task, "smoke"), **changes))


def test_protocols(datasets):
    def opened(protocol):
        config = Config(task="text", **settings("text", protocol=protocol))
        return data.open_splits(config, datasets)

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
    config = Config(task="listops", **settings("listops", protocol="paper"))
    with pytest.raises(UsageError, match=r"--protocol paper is for tasks .*listops has one of its own"):
        data.open_splits(config, datasets)


def test_a_run_of_protocol_paper_says_so(datasets, tmp_path):
    config = Config(
        task="text", mixer="none", **settings("text", protocol="paper", num_steps=2, eval_every=2)
    )
    summary = train(config, tmp_path / "run", data_dir=datasets)
    assert summary["protocol"] == "paper"
    assert summary["validation_accuracy"] >= 0


@pytest.mark.parametrize("length", [1023, 1025, 4096])
def test_pictures_are_neither_cut_nor_padded(datasets, length):
    config = Config(task="pathfinder", **settings("pathfinder", length=length))
    with pytest.raises(UsageError, match=rf"have 1,024 pixels; --length is {length:,}. It has to be 1024"):
        data.open_splits(config, datasets)
