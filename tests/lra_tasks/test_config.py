"""Configurations: published presets, refusals, and no costly import."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.arena import change

from lra_tasks.config import (
    Config,
    ModelConfig,
    Settings,
    differences,
    flat,
    from_json,
    parse_mixer,
    read_config,
    to_json,
)
from lra_tasks.errors import UsageError
from lra_tasks.model.mixers import get_mixer
from lra_tasks.presets import PRESETS, preset
from lra_tasks.tasks import ARENA, TASKS

GOLDEN = Path(__file__).parents[2] / "docs" / "presets.md"
NAMES = [(task, name) for task in TASKS for name in PRESETS]
PUBLISHED = ("arena", "paper")
CONFIG = Config(settings=preset("listops", "smoke"), task="listops")


def value_in(cell):
    try:
        return ast.literal_eval(cell.replace(",", ""))
    except (SyntaxError, ValueError):
        return cell


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets_are_golden(name):
    """The page lists every setting with its source, and gives a reason where the source has another value."""
    section = GOLDEN.read_text().partition(f"## `{name}`\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line] for line in lines]
    tasks = [task.name for task in ARENA]
    assert header == ["setting", "source", *tasks]
    golden, departures = {task: {} for task in tasks}, set()
    for quoted, source, *cells in rows:
        setting = quoted.strip("`")
        assert source, setting
        for task, cell in zip(tasks, cells, strict=True):
            ours, _, theirs = cell.partition(" (")
            golden[task][setting] = value_in(ours)
            departures |= {setting} if theirs else set()
    assert golden == {task: flat(preset(task, name)) for task in tasks}
    reasons = re.findall(r"^- \*\*(.*)\*\*: ", section, re.MULTILINE)
    assert departures == {setting.strip("`") for reason in reasons for setting in reason.split(", ")}


@pytest.mark.parametrize(("task", "name"), NAMES)
def test_json_round_trip(task, name):
    config = Config(settings=preset(task, name), task=task, mixer="a.b:C:state=64,kind=wide", seed=7)
    assert from_json(to_json(config)) == config
    assert differences(config, from_json(to_json(config))) == []


def test_differences_are_listed():
    other = change(CONFIG, seed=1, eval_examples=None, model={"width": 64, "dtype": "bfloat16"})
    assert differences(CONFIG, change(other, mixer="hrr:rescale=True")) == [
        "model.width: 16, 64",
        "model.dtype: 'float32', 'bfloat16'",
        "eval_examples: 32, None",
        "mixer: 'hrr', 'hrr:rescale=True'",
        "seed: 0, 1",
    ]


def test_a_name_is_valid_for_a_folder():
    assert dataclasses.replace(CONFIG, mixer="my.mixers:Mean", seed=3).name == "my.mixers.Mean-seed3"


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("hrr", "hrr", {}),
        ("hrr:rescale=True,temperature=0.5", "hrr", {"rescale": True, "temperature": 0.5}),
        ("hrr:output=unbound", "hrr", {"output": "unbound"}),
        ("my_mixers:Mine", "my_mixers:Mine", {}),
        ("my.mixers:Mine:state=64,rate=-1e-3,kind='a,b:c',more=None", "my.mixers:Mine",
         {"state": 64, "rate": -1e-3, "kind": "a,b:c", "more": None}),
    ],
)  # fmt: skip
def test_options_of_a_mixer_are_read(text, name, options):
    assert parse_mixer(text) == (name, options)
    config = dataclasses.replace(CONFIG, mixer=text)
    assert (config.mixer, config.mixer_options) == (name, options)
    assert dataclasses.replace(CONFIG, mixer=name, mixer_options=options) == config
    assert parse_mixer(config.mixer_name) == (name, options)
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize("text", ["", "hrr:", "hrr:=1", "hrr:a=1,b", "hrr:a=f(1)", "hrr:**a", "a b"])
def test_unreadable_options_are_refused(text):
    with pytest.raises(UsageError, match=r"of a mixer must be|A mixer must be"):
        parse_mixer(text)


SIZES = ["length", "batch_size", "num_steps", "eval_every", "eval_examples", "save_every", "log_every"]
MODEL_SIZES = ["width", "num_layers", "mlp_features"]


@pytest.mark.parametrize("value", [0, -3])
@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_positive(name, value):
    with pytest.raises(UsageError, match=rf"{name} must be at least 1; got {value}\."):
        dataclasses.replace(CONFIG.settings, **{name: value})


@pytest.mark.parametrize("value", [0, -16])
@pytest.mark.parametrize("name", MODEL_SIZES)
def test_sizes_of_the_model_are_positive(name, value):
    with pytest.raises(UsageError, match=rf"model.{name} must be at least 1; got {value}\.") as caught:
        change(CONFIG, model={name: value})
    assert caught.value.argument == f"model.{name}"


@pytest.mark.parametrize(
    "options",
    [{"protocol": "heldout"}, {"model": {"pooling": "max"}}, {"optimizer": {"schedule": "linear"}}],
    ids=str,
)
def test_choices_are_checked(options):
    with pytest.raises(UsageError, match="must be one of"):
        change(CONFIG, **options)


@pytest.mark.parametrize("name", ["dropout_rate", "mixer_dropout_rate"])
@pytest.mark.parametrize("rate", [-0.1, 1.0, 3.0])
def test_a_dropout_rate_out_of_range_is_refused(rate, name):
    with pytest.raises(UsageError, match=rf"model.{name} must be .*got {rate}"):
        Settings(model=ModelConfig(**{name: rate}))


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
    with pytest.raises(UsageError, match=rf"must be a divisor of .*, {width}; got {model.num_heads}\."):
        Settings(model=model)
    assert Settings(model=ModelConfig(width=30, num_heads=4, qkv_features=32)).model.width == 30


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(UsageError, match=f"seed must be between 0 and 2147483647; got {seed}"):
        dataclasses.replace(CONFIG, seed=seed)
    assert dataclasses.replace(CONFIG, seed=2**31 - 1).seed == 2**31 - 1


def test_unknown_names_get_a_suggestion():
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
        to_json(CONFIG).replace('"mixer_options": {}', '"mixer_options": {"state": [1]}'),
        to_json(CONFIG)[:-40],
    ],
)
def test_other_text_is_not_a_configuration(text):
    with pytest.raises(UsageError):
        from_json(text)


def test_a_folder_without_a_run_is_reported(tmp_path):
    with pytest.raises(UsageError, match=rf"There is no run in {tmp_path}: .*config.json does not exist"):
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
def test_quick_commands_import_nothing_heavy(code):
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
