"""Settings of the benchmarks, which are the options of `lra bench` too; imports no JAX."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

import tyro

from lra_tasks.errors import UsageError

Level: TypeAlias = Literal["layer", "core"]
Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
PresetName: TypeAlias = Literal["smoke", "quick", "cpu", "small", "arena", "paper"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that the benchmarks of attention and of training share."""

    lengths: tuple[int, ...]
    """Sequence lengths T."""
    batch_size: int = 1
    """Number of sequences per call."""
    repeats: int = 10
    """Maximum number of rounds. A round calls each implementation once, in random order. Those of cost
    T² run last, in rounds with the reference alone: the memory that they leave would slow the others."""
    seconds: float = 30.0
    """Time limit for the rounds of one length, of which at least three run, and for a single call."""
    seed: int = 0
    """Seed of parameters, inputs and the order within each round."""

    def check(self) -> None:
        """Refuses settings that nothing can be measured with.

        Raises:
          UsageError: A number is not positive, or a tuple is empty.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int) and number < 1 and field.name != "seed":
                    raise UsageError(f"{field.name} must be at least 1; got {number}.")
        for name, value in vars(self).items():
            if value == () and name != "implementations":
                raise UsageError(f"{name} must name at least one; got none.")
        if not self.seconds > 0:
            raise UsageError(f"seconds must be positive; got {self.seconds:g}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSettings(Settings):
    """Settings of `lra_tasks.bench.attention.bench_attention`."""

    implementations: tuple[str, ...] = ()
    """hrr, hrr-IMPLEMENTATION, authors, softmax, softmax-cudnn, projections; by default all that run here.
    With --levels layer also mixers of the arena: holographic, s4d, softmax:implementation=chunked."""
    levels: tuple[Level, ...] = ("layer", "core")
    """layer: attention with its four projections; core: attention alone."""
    lengths: tuple[int, ...] = tuple(1 << n for n in range(10, 18))
    width: int = 512
    """Width D of the layer."""
    num_heads: int = 8
    """Number of heads N."""
    dtype: Dtype = "float32"
    """Dtype of parameters and inputs."""

    def check(self) -> None:
        super().check()
        if self.width % self.num_heads:
            raise UsageError(f"num_heads must divide width, {self.width}; got {self.num_heads}.")
        for name, known, given in (("levels", Level, self.levels), ("dtype", Dtype, (self.dtype,))):
            for value in given:
                if value not in get_args(known):
                    raise UsageError(f"{name} must be one of {', '.join(get_args(known))}; got '{value}'.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """Settings of `lra_tasks.bench.train.bench_train`.

    The efficiency protocol of the Long Range Arena has 32 examples of 1,000 to 4,000 bytes.
    """

    mixers: tuple[str, ...] = ("hrr", "softmax", "none")
    """Names of mixers, or package.module:Class. all, for every built-in mixer."""
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    batch_size: int = 32
    """Number of examples per step."""
    preset: PresetName = "quick"
    """Preset of the task text that configures the model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Settings of `lra_tasks.bench.data.bench_data`."""

    tasks: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TASK")] = ()
    """Names of tasks; all by default."""
    mixer: str = "hrr"
    """Name of the mixer, or package.module:Class."""
    preset: PresetName = "small"
    """Preset for length, batch size, model and dataset."""
    steps: int = 30
    """Number of training steps measured per task."""
    seconds: float = 30.0
    """Time limit for these steps, without compilation; at least two are measured."""
    data_dir: Path | None = None
    """Folder of all datasets; by default TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
