"""Configurations: the golden ones, what is refused, and that reading them costs no import.

After a wanted change of a preset, write the golden files anew:  python tests/lra_tasks/test_config.py
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from lra_tasks.config import Config, ModelConfig, Settings, differences, from_json, read_config, to_json
from lra_tasks.errors import UsageError
from lra_tasks.model.mixers import get_mixer
from lra_tasks.presets import PRESETS, preset
from lra_tasks.tasks import TASKS

GOLDEN = Path(__file__).parent / "golden"
NAMES = [(task, name) for task in TASKS for name in TASKS[task].presets]
CONFIG = Config(task="listops", **vars(preset("listops", "smoke")))


def resolved(task, name):
    return to_json(Config(task=task, **vars(preset(task, name))))


@pytest.mark.parametrize(("task", "name"), NAMES)
def test_resolved_presets_are_golden(task, name):
    assert resolved(task, name) == (GOLDEN / f"{task}-{name}.json").read_text()


def test_every_task_has_every_preset_and_a_golden_file():
    assert set(NAMES) == {(task, name) for task in TASKS for name in PRESETS}
    assert {path.stem for path in GOLDEN.iterdir()} == {f"{task}-{name}" for task, name in NAMES}


@pytest.mark.parametrize(("task", "name"), NAMES)
def test_round_trip(task, name):
    config = Config(task=task, mixer="a.b:C", seed=7, **vars(preset(task, name)))
    assert from_json(to_json(config)) == config
    assert differences(config, from_json(to_json(config))) == []


def test_differences_are_named():
    other = dataclasses.replace(
        CONFIG,
        seed=1,
        eval_examples=None,
        model=dataclasses.replace(CONFIG.model, width=64, dtype="bfloat16"),
    )
    assert differences(CONFIG, other) == [
        "model.width: 16, 64",
        "model.dtype: 'float32', 'bfloat16'",
        "eval_examples: 32, None",
        "seed: 0, 1",
    ]


def test_name_is_fit_for_a_folder():
    assert dataclasses.replace(CONFIG, mixer="my.mixers:Mean", seed=3).name == "my.mixers.Mean-seed3"


SIZES = ["length", "batch_size", "num_steps", "eval_every", "eval_examples", "save_every", "log_every"]
MODEL_SIZES = ["width", "num_layers", "mlp_features"]


@pytest.mark.parametrize("value", [0, -3])
@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_positive(name, value):
    with pytest.raises(UsageError, match=rf"--{name.replace('_', '-')} must be at least 1; got {value}\."):
        dataclasses.replace(CONFIG, **{name: value})


@pytest.mark.parametrize("value", [0, -16])
@pytest.mark.parametrize("name", MODEL_SIZES)
def test_sizes_of_the_model_are_positive(name, value):
    flag = f"--model.{name.replace('_', '-')}"
    with pytest.raises(UsageError, match=rf"{flag} must be at least 1; got {value}\."):
        Settings(model=dataclasses.replace(CONFIG.model, **{name: value}))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 3.0])
def test_dropout_rate(rate):
    with pytest.raises(UsageError, match=rf"--model.dropout-rate must be .*got {rate}"):
        Settings(model=ModelConfig(dropout_rate=rate))


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(width=30, num_heads=4),
        ModelConfig(width=32, num_heads=4, qkv_features=30),
        ModelConfig(num_heads=0),
        ModelConfig(num_heads=-2),
    ],
)
def test_heads_divide_the_width(model):
    width = model.qkv_features or model.width
    with pytest.raises(UsageError, match=rf"must divide .*, {width}; got {model.num_heads}\."):
        Settings(model=model)
    assert Settings(model=ModelConfig(width=30, num_heads=4, qkv_features=32)).model.width == 30


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seed(seed):
    with pytest.raises(UsageError, match=f"--seed must be between 0 and 2147483647; got {seed}"):
        dataclasses.replace(CONFIG, seed=seed)
    assert dataclasses.replace(CONFIG, seed=2**31 - 1).seed == 2**31 - 1


def test_unknown_names():
    with pytest.raises(UsageError, match=r"There is no preset 'quik'. Did you mean 'quick'"):
        preset("listops", "quik")
    with pytest.raises(UsageError, match=r"There is no task 'lisstops'. Did you mean 'listops'"):
        preset("lisstops", "quick")
    with pytest.raises(UsageError, match=r"There is no mixer 'softmx'. Did you mean 'softmax'"):
        get_mixer("softmx")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        to_json(CONFIG).replace('"seed"', '"sead"'),
        to_json(CONFIG).replace('"width"', '"breadth"'),
        to_json(CONFIG).replace('"length": 256', '"length": "x"'),
        to_json(CONFIG)[:-40],
    ],
)
def test_what_is_no_configuration(text):
    with pytest.raises(UsageError):
        from_json(text)


def test_folder_without_a_run(tmp_path):
    with pytest.raises(UsageError, match=rf"There is no run in {tmp_path}: it holds no config.json"):
        read_config(tmp_path)


HEAVY = ("jax", "flax", "optax", "orbax", "numpy", "tensorflow", "tensorflow_datasets", "grain", "matplotlib")


@pytest.mark.parametrize(
    "code",
    [
        "import lra_tasks",
        "import lra_tasks.config",
        "import lra_tasks.cli.main",
        "import lra_tasks.reporting.history",
        "from lra_tasks.cli.main import main; main([])",
        "from lra_tasks.cli.main import main; main(['--help'])",
        "from lra_tasks.cli.main import main; main(['list'])",
        "from lra_tasks.cli.main import main; main(['--tyro-print-completion', 'bash'])",
        "from lra_tasks.cli.main import main; main(['train', '--help'])",
        "from lra_tasks.cli.main import main; main(['compare', 'listops', '--help'])",
    ],
)
def test_what_must_be_quick_imports_nothing_heavy(code):
    script = f"""
import atexit, sys
heavy = {HEAVY!r}
atexit.register(lambda: print("LOADED", *(name for name in heavy if name in sys.modules)))
{code}
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "LOADED"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for task, name in NAMES:
        (GOLDEN / f"{task}-{name}.json").write_text(resolved(task, name))
