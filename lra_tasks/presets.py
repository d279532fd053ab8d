"""The presets: what every task is trained with, from seconds on a CPU to the arena's and the paper's sizes.

Importing this module costs nothing: it needs the standard library only, so `lra --help` stays quick.
"""

import hashlib
from collections.abc import Callable

from lra_tasks.config import Config, ModelConfig, OptimizerConfig, Settings, flat
from lra_tasks.errors import unknown_name

PRESETS = {
    "smoke": "seconds on a CPU: proves that everything runs, learns nothing",
    "quick": "minutes on two CPU cores: small widths, few steps; Text and Retrieval at 1,000 tokens",
    "small": "minutes on one GPU",
    "lra": "the sizes and schedule of the arena's base Transformer, with mean pooling",
    "paper": "the sizes and schedule of the Hrrformer authors' multi-layer models",
}
LONGEST_NAME = 150  # of a folder; file systems take 255 bytes


def _smoke(dataset: str, length: int) -> Settings:
    return Settings(
        dataset=dataset,
        length=length,
        model=ModelConfig(width=16, num_heads=2, num_layers=1, mlp_features=16, dropout_rate=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        batch_size=8,
        num_steps=12,
        eval_every=6,
        eval_examples=32,
        save_every=4,
        log_every=3,
    )


def _quick(
    dataset: str, length: int, *, batch_size: int = 16, num_steps: int = 300, eval_examples: int = 512
) -> Settings:
    return Settings(
        dataset=dataset,
        length=length,
        model=ModelConfig(width=64, num_heads=1, num_layers=1, mlp_features=128, dropout_rate=0.0),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50),
        batch_size=batch_size,
        num_steps=num_steps,
        eval_every=60,
        eval_examples=eval_examples,
        save_every=50,
        log_every=10,
    )


def _listops_quick() -> Settings:
    # Pooled over all tokens, so few examples teach no mixer anything: one token of a thousand decides, see
    # experiments/listops_race.py. The first token is the root operator.
    return Settings(
        model=ModelConfig(
            width=32,
            num_heads=1,
            num_layers=1,
            mlp_features=64,
            positions="sinusoidal",
            pooling="first",
            dropout_rate=0.0,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=20),
        batch_size=8,
        num_steps=250,
        eval_every=50,
        eval_examples=256,
        save_every=25,
        log_every=10,
    )


def _small(dataset: str, length: int, batch_size: int = 32, num_steps: int = 5000) -> Settings:
    return Settings(
        dataset=dataset,
        length=length,
        model=ModelConfig(width=128, num_heads=4, num_layers=2, mlp_features=256, dtype="bfloat16"),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200, weight_decay=0.01),
        batch_size=batch_size,
        num_steps=num_steps,
    )


def _lra_documents(length: int, model: ModelConfig, warmup_steps: int, num_steps: int) -> Settings:
    return Settings(
        length=length,
        model=model,
        optimizer=OptimizerConfig(
            learning_rate=0.05, schedule="rsqrt", warmup_steps=warmup_steps, weight_decay=0.1, clip_norm=None
        ),
        batch_size=32,
        num_steps=num_steps,
    )


def _lra_pictures(
    dataset: str,
    length: int,
    model: ModelConfig,
    *,
    learning_rate: float,
    batch_size: int,
    epoch: int,
    clip_norm: float | None = None,
) -> Settings:
    """200 epochs of `epoch` steps, the first of them for the warm-up."""
    return Settings(
        dataset=dataset,
        length=length,
        model=model,
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_steps=epoch, clip_norm=clip_norm),
        batch_size=batch_size,
        num_steps=200 * epoch,
        eval_every=epoch,
        save_every=epoch,
    )


def _paper(
    dataset: str,
    length: int,
    model: ModelConfig,
    *,
    batch_size: int,
    epoch: int,
    decay_rate: float,
    weight_decay: float = 0.0,
) -> Settings:
    """20 epochs of `epoch` steps; the rate decays once an epoch.

    The authors' batches are a few examples on each of a number of devices they do not tell: `batch_size` is
    ours.
    """
    return Settings(
        dataset=dataset,
        length=length,
        model=model,
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="exponential",
            decay_rate=decay_rate,
            decay_steps=epoch,
            final_learning_rate=1e-5,
            weight_decay=weight_decay,
            b2=0.999,
            clip_norm=None,
        ),
        label_smoothing=0.1,
        batch_size=batch_size,
        num_steps=20 * epoch,
        eval_every=epoch,
        save_every=1000,
    )


_SETTINGS: dict[str, dict[str, Callable[[], Settings]]] = {
    "listops": {
        "smoke": lambda: _smoke("smoke", 256),
        "quick": _listops_quick,
        "small": lambda: _small("default", 2000),
        "lra": lambda: _lra_documents(
            2000, ModelConfig(width=512, num_heads=8, num_layers=4, mlp_features=1024), 1000, 5000
        ),
        "paper": lambda: _paper(
            "default",
            2000,
            ModelConfig(width=512, num_heads=8, num_layers=6, mlp_features=256),
            batch_size=32,
            epoch=3000,
            decay_rate=0.9,
        ),
    },
    "text": {
        "smoke": lambda: _smoke("smoke", 256),
        "quick": lambda: _quick("default", 1000),
        "small": lambda: _small("default", 4000),
        "lra": lambda: _lra_documents(
            4000, ModelConfig(width=256, num_heads=4, num_layers=4, mlp_features=1024), 8000, 20_000
        ),
        "paper": lambda: _paper(
            "default",
            4000,
            ModelConfig(width=512, num_heads=8, num_layers=6, mlp_features=1024, positions="sinusoidal"),
            batch_size=32,
            epoch=704,
            decay_rate=0.9,
        ),
    },
    "retrieval": {
        "smoke": lambda: _smoke("smoke", 256),
        "quick": lambda: _quick("acl", 1000, batch_size=8),
        "small": lambda: _small("default", 4000),
        "lra": lambda: _lra_documents(
            4000, ModelConfig(width=128, num_heads=4, num_layers=4, mlp_features=512), 8000, 5000
        ),
        "paper": lambda: _paper(
            "default",
            4000,
            ModelConfig(width=128, num_heads=4, num_layers=4, mlp_features=64, positions="sinusoidal"),
            batch_size=32,
            epoch=4597,
            decay_rate=0.9,
        ),
    },
    "image": {
        "smoke": lambda: _smoke("smoke", 1024),
        "quick": lambda: _quick("default", 1024),
        "small": lambda: _small("default", 1024, batch_size=128, num_steps=7000),
        "lra": lambda: _lra_pictures(
            "default",
            1024,
            ModelConfig(
                width=128, qkv_features=64, num_heads=8, num_layers=1, mlp_features=128, dropout_rate=0.3
            ),
            learning_rate=5e-4,
            batch_size=256,
            epoch=175,
        ),
        "paper": lambda: _paper(
            "default",
            1024,
            ModelConfig(width=256, num_heads=4, num_layers=3, mlp_features=128, positions="sinusoidal"),
            batch_size=32,
            epoch=1407,
            decay_rate=0.95,
        ),
    },
    "pathfinder": {
        "smoke": lambda: _smoke("smoke-32", 1024),
        "quick": lambda: _quick("32-14", 1024),
        "small": lambda: _small("32-14", 1024, batch_size=128, num_steps=12_500),
        "lra": lambda: _lra_pictures(
            "32-14",
            1024,
            ModelConfig(
                width=32, qkv_features=16, num_heads=4, num_layers=4, mlp_features=32, positions="sinusoidal"
            ),
            learning_rate=1e-3,
            batch_size=512,
            epoch=312,
        ),
        "paper": lambda: _paper(
            "32-14",
            1024,
            ModelConfig(width=1024, num_heads=8, num_layers=2, mlp_features=256),
            batch_size=128,
            epoch=1250,
            decay_rate=0.95,
        ),
    },
    "pathx": {
        "smoke": lambda: _smoke("smoke-128", 16_384),
        "quick": lambda: _quick("128-14", 16_384, batch_size=2, num_steps=200, eval_examples=64),
        "small": lambda: _small("128-14", 16_384, batch_size=32, num_steps=10_000),
        "lra": lambda: _lra_pictures(
            "128-14",
            16_384,
            ModelConfig(width=32, qkv_features=16, num_heads=2, num_layers=1, mlp_features=32),
            learning_rate=1e-3,
            batch_size=64,
            epoch=2500,
            clip_norm=1.0,
        ),
        "paper": lambda: _paper(
            "128-14",
            16_384,
            ModelConfig(width=1024, num_heads=8, num_layers=1, mlp_features=256),
            batch_size=32,
            epoch=5000,
            decay_rate=0.95,
            weight_decay=5e-4,
        ),
    },
    "bytes": {
        "smoke": lambda: _smoke("default", 256),
        "quick": lambda: _quick("default", 4096, batch_size=4),
        "small": lambda: _small("default", 16_384, batch_size=16),
        "lra": lambda: _lra_documents(
            4096, ModelConfig(width=256, num_heads=4, num_layers=4, mlp_features=1024), 8000, 20_000
        ),
        # The paper gives no table for its malware experiment: the sizes of its Text model.
        "paper": lambda: _paper(
            "default",
            16_384,
            ModelConfig(width=512, num_heads=8, num_layers=6, mlp_features=1024, positions="sinusoidal"),
            batch_size=32,
            epoch=1000,
            decay_rate=0.9,
        ),
    },
}


def preset(task: str, name: str) -> Settings:
    """Returns the settings of a task's preset.

    >>> preset("listops", "quick").length
    2000

    Raises:
      UsageError: for an unknown task or preset, with the nearest right name.
    """
    if task not in _SETTINGS:
        raise unknown_name("task", task, _SETTINGS)
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return _SETTINGS[task][name]()


def preset_of(config: Config) -> str | None:
    """Returns the name of its task's preset whose settings a run has, every one of them, or None.

    >>> preset_of(Config(task="listops", seed=3, **vars(preset("listops", "lra"))))
    'lra'
    """
    settings = Settings(**{name: getattr(config, name) for name in Settings.__dataclass_fields__})
    if config.task not in _SETTINGS:  # a task of the user's own
        return None
    return next((name for name in PRESETS if preset(config.task, name) == settings), None)


def folder_name(task: str, name: str, settings: Settings) -> str:
    """Returns a name for the folder of runs with a preset's settings, and what was changed of them.

    Runs with other settings get another folder, in which `lra_tasks.report` finds only what it may compare.

    >>> folder_name("listops", "quick", preset("listops", "quick"))
    'listops-quick'
    >>> import dataclasses
    >>> folder_name("listops", "quick", dataclasses.replace(preset("listops", "quick"), num_steps=1000))
    'listops-quick-num_steps=1000'
    """
    own = flat(preset(task, name))
    changed = [f"{key}={value}" for key, value in flat(settings).items() if value != own[key]]
    result = "-".join([f"{task}-{name}", *changed]).replace("/", "_")
    if len(result) > LONGEST_NAME:
        result = f"{result[:LONGEST_NAME]}-{hashlib.sha256(result.encode()).hexdigest()[:8]}"
    return result
