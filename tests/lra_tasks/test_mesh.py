"""The mesh: a sequence shared by devices gives the results of one device, and gathers no activations."""

import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import arena

from lra_tasks import UsageError, train
from lra_tasks.tasks import get_task
from lra_tasks.training.mesh import make_mesh, parse_mesh
from lra_tasks.training.step import Trainer

CONFIG = arena.change(model={"dropout_rate": 0.0})
TASK = get_task("listops")


def random_batch(config, seed=0):
    draw, settings = np.random.default_rng(seed), config.settings
    sizes = draw.integers(100, settings.length, (settings.batch_size, 1))
    mask = np.arange(settings.length) < sizes
    tokens = np.where(mask, draw.integers(1, TASK.vocab_size, mask.shape), 0).astype(np.int32)
    return {"tokens": tokens, "mask": mask, "label": draw.integers(0, 10, len(mask)).astype(np.int32)}


def test_sizes_are_parsed():
    assert parse_mesh("data=2,sequence=4") == {"data": 2, "sequence": 4}
    assert parse_mesh("sequence=2") == {"sequence": 2}
    assert dict(make_mesh().shape) == {"data": 4, "sequence": 1}
    assert dict(make_mesh("sequence=2").shape) == {"data": 2, "sequence": 2}
    assert dict(make_mesh({"data": 1, "sequence": 4}).shape) == {"data": 1, "sequence": 4}


@pytest.mark.parametrize("text", ["", "data", "data=0", "model=2", "data=2;sequence=2", "sequence=two"])
def test_text_that_is_not_a_mesh_is_refused(text):
    with pytest.raises(UsageError, match=r"mesh must be like 'data=2,sequence=2'; got"):
        parse_mesh(text)


@pytest.mark.parametrize(
    "sizes", ["data=2,sequence=3", "data=8", {"model": 4}, {"data": 2}, {"sequence": 0}, "sequence=3"]
)
def test_sizes_that_do_not_match_the_devices_are_refused(sizes):
    with pytest.raises(UsageError, match="product of their sizes must be the number of devices, 4;"):
        make_mesh(sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixer": "softmax"}, r"'softmax' does not declare .*use mesh data=4.*sequence_parallel = True"),
        ({"length": 255}, r"length must be a multiple of the 2 devices that share a sequence; got 255"),
        ({"buckets": 3}, r"length must be a multiple of the 2 devices .*, times 3 buckets; got 256"),
        ({"batch_size": 7}, r"batch_size must be a multiple of the 2 devices that share it; got 7"),
        ({"model": {"pooling": "cls"}}, r"model\.pooling must be 'mean' or 'first' .*; got 'cls'"),
    ],
)
def test_runs_that_cannot_share_a_sequence_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        Trainer(arena.change(CONFIG, **change), TASK, "sequence=2")


@pytest.mark.parametrize("mixer", ["hrr", "hrr:rescale=True,learn_temperature=True,output=unbound", "none"])
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_shared_sequence_gathers_no_activations(mixer, pooling):
    trainer = Trainer(
        arena.change(CONFIG, mixer=mixer, model={"pooling": pooling}), TASK, "data=2,sequence=2"
    )
    text = trainer.compile_training(jax.eval_shape(trainer.init)).as_text()
    assert "all-reduce" in text
    settings = CONFIG.settings
    activations = settings.batch_size // 2 * settings.length // 2 * settings.model.width  # on one device
    for operation in ("all-gather", "all-to-all", "collective-permute"):
        for shape in re.findall(rf"\[([0-9,]*)\]\S* {operation}", text):
            assert np.prod([int(size) for size in shape.split(",")]) < activations, (operation, shape)


EIGHT = """
import sys
import jax, numpy as np
from helpers import arena
from test_mesh import CONFIG, TASK, random_batch
from lra_tasks.training.step import Trainer

assert jax.device_count() == 8
for mixer in ("hrr:rescale=True", "hrr:implementation=fft", "none"):
    config = arena.change(CONFIG, mixer=mixer)
    results = {}
    for mesh in ("data=2,sequence=4", "data=8"):
        trainer = Trainer(config, TASK, mesh)
        state = trainer.init()
        batch = trainer.shard(random_batch(config))
        assert len({shard.device for shard in batch["tokens"].addressable_shards}) == 8
        state, measured = trainer.compile_training(state)(state, batch)
        results[mesh] = [*map(float, measured), *map(np.asarray, jax.tree.leaves(state.params))]
    for ours, theirs in zip(*results.values(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=2e-3)
print("equal")
"""


def test_eight_devices_share_batch_and_sequence():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EIGHT],
        env=arena.environment(devices=8),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr


def test_a_run_over_a_mesh_resumes_without_it(smoke_data, tmp_path):
    """The mesh is not part of the run: its checkpoints open on any other."""
    settings = {"num_steps": 3, "eval_every": 3, "save_every": 1}
    config = arena.change(CONFIG, **settings)
    alone = train(config, tmp_path / "alone", data_dir=smoke_data)
    shared = train(config, tmp_path / "shared", data_dir=smoke_data, mesh={"data": 2, "sequence": 2})
    assert shared["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-4)
    (tmp_path / "shared" / "summary.json").unlink()
    again = train(config, tmp_path / "shared", data_dir=smoke_data)
    assert again["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-4)
