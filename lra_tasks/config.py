"""Settings of a run, as frozen dataclasses.

This module imports the standard library only, so that `lra --help` answers at once.
"""

import ast
import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lra_tasks.errors import UsageError

NAME_LENGTH = 120  # characters of a folder's name; a digest replaces the rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder, which is the same for every mixer.

    Attributes:
      width: Size D of embeddings and residual stream.
      num_heads: Number N of heads of the mixer, a divisor of `qkv_features`.
      qkv_features: Size of queries, keys and values over all heads; None means `width`.
      num_layers: Number of blocks.
      mlp_features: Size of the hidden layer of each MLP, and of the classifier's.
      pixels: Input where the tokens are pixels: "embedding", one vector per gray level; or "value", a linear
        map of the level g of V levels, scaled to 2g / (V - 1) - 1.
      positions: Kind of position embedding: a learned table, sines and cosines of fixed frequencies, or none.
        Without positions, a mixer that treats all tokens alike (hrr, softmax, none) cannot see their order.
      pooling: Kind of pooling: "mean" over the real tokens, the state of the "first" token, or the state of a
        token "cls" before the sequence. A mixer that never moves values between tokens (hrr, none) learns
        nothing with "cls".
      dropout_rate: Dropout rate after the embedding and after each branch.
      tie_dropout: Whether this dropout has one mask per sequence and channel, the same for all tokens.
      mixer_dropout_rate: Dropout rate inside the mixer; None means `dropout_rate`. Most have none.
      dtype: Dtype of the computation; parameters, normalization statistics and logits are float32.
    """

    width: int = 512
    num_heads: int = 8
    qkv_features: int | None = None
    num_layers: int = 4
    mlp_features: int = 1024
    pixels: Literal["embedding", "value"] = "embedding"
    positions: Literal["learned", "sinusoidal", "none"] = "learned"
    pooling: Literal["mean", "first", "cls"] = "mean"
    dropout_rate: float = 0.1
    tie_dropout: bool = False
    mixer_dropout_rate: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam with decoupled weight decay, under a schedule.

    Attributes:
      learning_rate: Highest learning rate; for "rsqrt", the factor before the schedule.
      schedule: Schedule after a linear warm-up: "constant"; "cosine", which would reach 0 one step after the
        last; "rsqrt", the arena's rate · min(1, s / warmup) / sqrt(max(s, warmup)); or "exponential", which
        multiplies by `decay_rate` per `decay_steps` steps, down to `final_learning_rate`.
      warmup_steps: Number of steps of the warm-up.
      decay_rate: Factor of "exponential".
      decay_steps: Number of steps in which "exponential" decays by `decay_rate`.
      staircase: Whether "exponential" decays once every `decay_steps` steps, and not a little in each step.
      final_learning_rate: Lowest rate of "exponential".
      weight_decay: Rate of decoupled weight decay, on all parameters with more than one axis.
      b2: Adam's decay of the second moment.
      clip_norm: Largest global norm of the gradient; None for no limit.
    """

    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "rsqrt", "exponential"] = "cosine"
    warmup_steps: int = 0
    decay_rate: float = 0.9
    decay_steps: int = 1000
    staircase: bool = True
    final_learning_rate: float = 1e-5
    weight_decay: float = 0.0
    b2: float = 0.98
    clip_norm: float | None = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that the mixers of a comparison share.

    Attributes:
      variant: Dataset of the task, for example "smoke".
      protocol: Use of the splits. "held-out" chooses the step on the validation split and uses the test split
        once. "paper" trains on the validation split too, and chooses the step on the test split, as the arena
        and its followers do; only for tasks with a validation split cut from the training split.
      length: Number T of tokens per input, which is padded or cut, and the model's number of positions.
      model: Configuration of the encoder.
      optimizer: Configuration of the optimizer and its schedule.
      label_smoothing: Share of the target that is spread evenly over the classes.
      batch_size: Number of examples per step, over all devices.
      buckets: Number n of lengths that batches are padded to: T/n, 2T/n, …, T. With more than one, a batch
        has examples of similar length, and a step is compiled per length.
      num_steps: Number of training steps.
      eval_every: Number of steps between validations; the last step is always validated.
      eval_examples: Number of validation examples used each time; None means all.
      save_every: Number of steps between checkpoints, the most that a killed run loses.
      log_every: Number of steps between rows in metrics.jsonl.
    """

    variant: str = "default"
    protocol: Literal["held-out", "paper"] = "held-out"
    length: int = 2000
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    label_smoothing: float = 0.0
    batch_size: int = 32
    buckets: int = 1
    num_steps: int = 5000
    eval_every: int = 500
    eval_examples: int | None = None
    save_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        for owner, kind in {"": Settings, "model.": ModelConfig, "optimizer.": OptimizerConfig}.items():
            for name, hint in typing.get_type_hints(kind).items():
                if typing.get_origin(hint) is Literal:
                    choices = typing.get_args(hint)
                    self._require(f"{owner}{name}", f"one of {choices}", choices.__contains__)
        at_least_one = {
            "": (
                "length",
                "batch_size",
                "buckets",
                "num_steps",
                "eval_every",
                "eval_examples",
                "save_every",
                "log_every",
            ),
            "model.": ("width", "qkv_features", "num_layers", "mlp_features"),
            "optimizer.": ("decay_steps",),
        }
        for owner, names in at_least_one.items():
            for name in names:
                self._require(f"{owner}{name}", "at least 1", lambda value: value is None or value >= 1)
        for name in ("optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.weight_decay"):
            self._require(name, "at least 0", lambda value: value >= 0)
        for name in ("label_smoothing", "optimizer.b2", "model.dropout_rate"):
            self._require(name, "at least 0 and less than 1", lambda value: 0 <= value < 1)
        self._require(
            "model.mixer_dropout_rate",
            "None, or at least 0 and less than 1",
            lambda value: value is None or 0 <= value < 1,
        )
        features = self.model.qkv_features or self.model.width
        self._require(
            "model.num_heads",
            f"a divisor of the size of queries, keys and values, {features}",
            lambda value: value >= 1 and features % value == 0,
        )

    def _require(self, name: str, expected: str, holds: Any) -> None:
        value = flat(self)[name]
        if not holds(value):
            raise UsageError(f"{name} must be {expected}; got {value}.", argument=name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of one run: shared settings, task, mixer and seed.

    Attributes:
      settings: Settings that the runs of a comparison share.
      task: Name of the task, or `package.module:TASK`.
      mixer: Name of the mixer, or `package.module:Class`. Options may follow the name, as on the command
        line: "hrr:rescale=True" is the mixer "hrr" with the options {"rescale": True}.
      mixer_options: Keyword arguments of the mixer's class: numbers, strings, True, False or None.
      seed: Seed of the parameters, the order of the examples and the dropout.

    Raises:
      UsageError: If the seed is out of range, or the options cannot be read.

    >>> config = Config(settings=Settings(), task="listops", mixer="hrr:temperature=0.5,rescale=True")
    >>> config.mixer, config.mixer_options
    ('hrr', {'rescale': True, 'temperature': 0.5})
    >>> config.mixer_name, config.name
    ('hrr:rescale=True,temperature=0.5', 'hrr.rescale=True,temperature=0.5-seed0')
    """

    settings: Settings
    task: str
    mixer: str = "hrr"
    mixer_options: Mapping[str, bool | int | float | str | None] = dataclasses.field(
        default_factory=dict[str, Any]
    )
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"seed must be between 0 and {2**31 - 1}; got {self.seed}.", argument="seed")
        mixer, options = parse_mixer(self.mixer)
        options |= self.mixer_options
        for name, value in options.items():
            if not isinstance(value, bool | int | float | str | None):
                raise UsageError(
                    f"mixer_options must be numbers, strings, True, False or None; got {name}={value!r}."
                )
        object.__setattr__(self, "mixer", mixer)
        object.__setattr__(self, "mixer_options", dict(sorted(options.items())))

    @property
    def mixer_name(self) -> str:
        """The mixer with its options, as tables and the command line show it."""
        options = ",".join(f"{name}={value!r}" for name, value in self.mixer_options.items())
        return f"{self.mixer}:{options}" if options else self.mixer

    @property
    def name(self) -> str:
        """The name of the run's folder within a comparison: `hrr-seed0`."""
        return f"{folder_name(self.mixer_name)}-seed{self.seed}"


def parse_mixer(text: str) -> tuple[str, dict[str, Any]]:
    """Parses the name and the options of a mixer as they are written on the command line.

    Options are `name=value`, separated by commas. Values are Python's numbers, strings, True, False and None;
    a bare word is a string.

    Raises:
      UsageError: If the text has another form.

    >>> parse_mixer("my_mixers:Mine:state=64,kind=wide")
    ('my_mixers:Mine', {'state': 64, 'kind': 'wide'})
    """
    found = re.fullmatch(r"(?P<name>[\w.-]+(?::\w+)?)(?::(?P<options>.+))?", text, re.DOTALL)
    expected = "NAME or package.module:Class, optionally followed by :OPTION=VALUE,..."
    if found is None:
        raise UsageError(f"A mixer must be {expected}; got '{text}'.", argument="mixer")
    if not found["options"]:
        return found["name"], {}
    try:
        call = ast.parse(f"f({found['options']})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
            raise ValueError("an option has no name")
        options = {str(word.arg): _literal(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise UsageError(
            f"The options of a mixer must be name=value, separated by commas; got '{text}'.", argument="mixer"
        ) from error
    return found["name"], options


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def folder_name(text: str) -> str:
    """Returns a folder name without characters that are special to file systems or shells.

    >>> folder_name("my.mixers:Mean:kind='a/b'")
    'my.mixers.Mean.kind=a_b'
    """
    import hashlib

    name = text.replace(":", ".").replace("/", "_").replace("'", "").replace(" ", "_")
    if len(name) <= NAME_LENGTH:
        return name
    return f"{name[:NAME_LENGTH]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def to_json(config: Config) -> str:
    """Returns the configuration as indented JSON, in the order of the fields."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Returns the configuration that `to_json` wrote.

    A run that began before a setting existed lacks it, and was trained with its default.

    Raises:
      UsageError: If the text lacks the settings or the task, or has an unknown field or an invalid value.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        settings = fields["settings"]
        settings["model"] = ModelConfig(**settings["model"])
        settings["optimizer"] = OptimizerConfig(**settings["optimizer"])
        fields["settings"] = Settings(**settings)
        return Config(**fields)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UsageError(f"This version does not write such a configuration: {error!r}.") from error


def flat(settings: Settings | Config) -> dict[str, Any]:
    """Returns all fields by name; fields of the model and the optimizer are named like `model.width`."""
    fields = dataclasses.asdict(settings)
    if isinstance(settings, Config):
        fields = fields.pop("settings") | fields | {"mixer": settings.mixer_name}
        del fields["mixer_options"]
    result: dict[str, Any] = {}
    for name, value in fields.items():
        inner: dict[str, Any] = value if isinstance(value, dict) else {}
        result |= {f"{name}.{key}": item for key, item in inner.items()} if inner else {name: value}
    return result


def differences(ours: Config, theirs: Config) -> list[str]:
    """Returns one line per field in which two configurations differ, such as `model.width: 64, 128`."""
    first, second = flat(ours), flat(theirs)
    return [f"{name}: {first[name]!r}, {second[name]!r}" for name in first if first[name] != second[name]]


def read_config(path: Path) -> Config:
    """Reads the configuration in a file, or of the run in a folder.

    Raises:
      UsageError: If the configuration is missing or cannot be read.
    """
    file = path / "config.json" if path.is_dir() or path.suffix != ".json" else path
    if not file.is_file():
        raise UsageError(f"There is no run in {path}: {file} does not exist. Create a run by `lra train`.")
    try:
        return from_json(file.read_text())
    except UsageError as error:
        raise UsageError(f"{file} cannot be used: {error}") from error
