"""What a run is made of, as frozen dataclasses.

Importing this module costs nothing: it needs the standard library only, so `lra --help` stays quick.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from lra_tasks.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder, the same for every mixer.

    Attributes:
      width: D, the size of embeddings and residual stream.
      num_heads: N, heads of the mixer; divides `qkv_features`.
      qkv_features: size of queries, keys and values over all heads; None means `width`.
      num_layers: number of blocks.
      mlp_features: size of the hidden layer of each block's MLP, and of the classifier's.
      positions: a learned table, or sines and cosines of fixed frequencies.
      pooling: "mean" over the real tokens; the state of the "first" token; or that of a token "cls" put
        before the sequence, from which a mixer that never moves values between tokens (hrr, none) learns
        nothing.
      dropout_rate: after the embedding, after each branch, and inside the mixer.
      dtype: of the computation; parameters, normalisation statistics and logits are float32.
    """

    width: int = 512
    num_heads: int = 8
    qkv_features: int | None = None
    num_layers: int = 4
    mlp_features: int = 1024
    positions: Literal["learned", "sinusoidal"] = "learned"
    pooling: Literal["mean", "first", "cls"] = "mean"
    dropout_rate: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam with decoupled weight decay, under a schedule.

    Attributes:
      learning_rate: the highest rate; for "rsqrt" the factor before the schedule.
      schedule: after a linear warm-up: "constant"; "cosine" towards 0, which one step more would reach;
        "rsqrt", the arena's rate · min(1, s / warmup) / sqrt(max(s, warmup)); "exponential", times
        `decay_rate` every `decay_steps` steps, not below `final_learning_rate`.
      warmup_steps: steps of the warm-up.
      decay_rate, decay_steps, final_learning_rate: of "exponential".
      weight_decay: decoupled from the gradient, on all parameters of more than one axis.
      b2: Adam's second-moment decay.
      clip_norm: largest global norm of the gradient; None for no limit.
    """

    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "rsqrt", "exponential"] = "cosine"
    warmup_steps: int = 0
    decay_rate: float = 0.9
    decay_steps: int = 1000
    final_learning_rate: float = 1e-5
    weight_decay: float = 0.0
    b2: float = 0.98
    clip_norm: float | None = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that the mixers of a comparison share.

    Attributes:
      variant: which dataset of the task, "smoke" for example.
      protocol: "held-out" chooses the step on the validation split and uses the test split once. "paper" is
        the habit of the arena and its followers, for tasks whose validation split is cut from the training
        split: it trains on both, and chooses the step on the test split.
      length: tokens an input is padded or cut to, T; also the model's number of positions.
      model: the encoder.
      optimizer: the optimiser and its schedule.
      label_smoothing: share of the target spread evenly over the classes.
      batch_size: examples a step, over all devices.
      num_steps: training steps.
      eval_every: steps between validations; the last step is always validated.
      eval_examples: validation examples used each time; None means all.
      save_every: steps between checkpoints, the most that a killed run loses.
      log_every: steps between rows in metrics.jsonl.
    """

    variant: str = "default"
    protocol: Literal["held-out", "paper"] = "held-out"
    length: int = 2000
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    label_smoothing: float = 0.0
    batch_size: int = 32
    num_steps: int = 5000
    eval_every: int = 500
    eval_examples: int | None = None
    save_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        model = self.model
        sizes = (
            "length",
            "batch_size",
            "num_steps",
            "eval_every",
            "eval_examples",
            "save_every",
            "log_every",
        )
        for prefix, owner, names in (
            ("", self, sizes),
            ("model.", model, ("width", "qkv_features", "num_layers", "mlp_features")),
        ):
            for name in names:
                value = getattr(owner, name)
                if value is not None and value < 1:
                    flag = f"--{prefix}{name.replace('_', '-')}"
                    raise UsageError(f"{flag} must be at least 1; got {value}.")
        optimizer = self.optimizer
        for flag, fine, wanted in (
            ("--label-smoothing", 0 <= self.label_smoothing < 1, "at least 0 and less than 1"),
            ("--optimizer.learning-rate", optimizer.learning_rate >= 0, "at least 0"),
            ("--optimizer.warmup-steps", optimizer.warmup_steps >= 0, "at least 0"),
            ("--optimizer.decay-steps", optimizer.decay_steps >= 1, "at least 1"),
            ("--optimizer.weight-decay", optimizer.weight_decay >= 0, "at least 0"),
            ("--optimizer.b2", 0 <= optimizer.b2 < 1, "at least 0 and less than 1"),
            ("--model.dropout-rate", 0 <= model.dropout_rate < 1, "at least 0 and less than 1"),
        ):
            if not fine:
                owner, _, field = flag.removeprefix("--").replace("-", "_").rpartition(".")
                value = getattr(getattr(self, owner) if owner else self, field)
                raise UsageError(f"{flag} must be {wanted}; got {value}.")
        features = model.qkv_features or model.width
        if model.num_heads < 1 or features % model.num_heads:
            raise UsageError(
                f"The number of heads must divide the width of queries, keys and values, {features}; got"
                f" {model.num_heads}. Change --model.num-heads, --model.width or --model.qkv-features."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """One run: the shared settings, and what tells it from its neighbours in a comparison.

    Attributes:
      task: name of the task.
      mixer: name of the mixer, or `package.module:Class`.
      seed: of the parameters, the order of the examples and the dropout.
    """

    task: str
    mixer: str = "hrr"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed must be between 0 and {2**31 - 1}; got {self.seed}.")

    @property
    def name(self) -> str:
        """The run's name within a comparison, fit for a folder: `hrr-seed0`."""
        return f"{self.mixer.replace(':', '.')}-seed{self.seed}"


def to_json(config: Settings) -> str:
    """Returns the resolved configuration as indented JSON, in the order of the fields."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Returns the configuration that `to_json` wrote.

    Raises:
      UsageError: if a field is missing, unknown or holds what it cannot.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        fields["model"] = ModelConfig(**fields["model"])
        fields["optimizer"] = OptimizerConfig(**fields["optimizer"])
        return Config(**fields)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UsageError(f"This is no configuration that this version wrote: {error}.") from error


def flat(settings: Settings) -> dict[str, Any]:
    """Returns all fields by name, those of the model and the optimizer as `model.width`."""
    result: dict[str, Any] = {}
    for name, value in dataclasses.asdict(settings).items():
        inner = value if isinstance(value, dict) else {}
        result |= {f"{name}.{key}": item for key, item in inner.items()} if inner else {name: value}
    return result


def differences(ours: Config, theirs: Config) -> list[str]:
    """Returns one line for each field in which two configurations differ, such as `model.width: 64, 128`."""
    first, second = flat(ours), flat(theirs)
    return [f"{name}: {first[name]!r}, {second[name]!r}" for name in first if first[name] != second[name]]


def read_config(run_dir: Path) -> Config:
    """Returns the configuration of the run in `run_dir`.

    Raises:
      UsageError: if there is none.
    """
    path = run_dir / "config.json"
    if not path.is_file():
        raise UsageError(f"There is no run in {run_dir}: it holds no config.json. `lra train` makes one.")
    try:
        return from_json(path.read_text())
    except UsageError as error:
        raise UsageError(f"{path} cannot be used: {error}") from error
