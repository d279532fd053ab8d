"""Mixers: what exchanges information between positions. Found by name, or as `package.module:Class`.

A mixer is an `nnx.Module` class that is built from a `MixerSpec` and called on the sequence:

    class MyMixer(nnx.Module):
        def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs): ...
        def __call__(self, x, mask, *, deterministic, rngs): ...

`x` is (B, T, D), already normalised; `mask` is (B, T), True for real tokens; `rngs` holds the stream
`dropout` while training and is None otherwise. The result has the shape of `x`; the encoder adds the
residual. Parameters are `nnx.Param`; a mixer keeps no other state, and takes randomness from `rngs` only.
"""

import dataclasses
import importlib
import inspect
from typing import Any, Protocol

from lra_tasks.errors import UsageError, unknown_name


@dataclasses.dataclass(frozen=True)
class MixerSpec:
    """What a mixer is told about its place in the model.

    Attributes:
      width: D, the size of the last axis of input and output.
      num_heads: N.
      qkv_features: N·H, the size of queries, keys and values over all heads.
      length: the longest T the mixer will be called with.
      dropout_rate: for whatever the mixer drops inside; the encoder drops its output besides.
      dtype: dtype of the computation; parameters are float32.
    """

    width: int
    num_heads: int
    qkv_features: int
    length: int
    dropout_rate: float
    dtype: Any


class Mixer(Protocol):
    """The calling convention; see the module's docstring."""

    def __init__(self, spec: MixerSpec, *, rngs: Any) -> None: ...
    def __call__(self, x: Any, mask: Any, *, deterministic: bool, rngs: Any) -> Any: ...


# Name → `module:Class`, or None for no mixing at all: the encoder then has no attention branch.
MIXERS: dict[str, str | None] = {
    "hrr": "lra_tasks.model.mixers.hrr:HRRMixer",
    "softmax": "lra_tasks.model.mixers.softmax:SoftmaxMixer",
    "none": None,
}

# Which implementation stands behind a name: said beside every result.
ABOUT: dict[str, str] = {
    "hrr": "hrrformer.nnx.HRRAttention, the paper's layer",
    "softmax": "jax.nn.dot_product_attention by XLA, which holds all T × T weights in memory",
    "none": "the same model without the attention branch",
}


def get_mixer(name: str) -> type[Mixer] | None:
    """Returns the mixer class of that name (None for "none"), importing it only now.

    Raises:
      UsageError: for a name that is neither in `MIXERS` nor an importable `package.module:Class`, or a class
        that cannot be called as `Mixer` is.
    """
    if ":" not in name and name not in MIXERS:
        raise unknown_name("mixer", name, [*MIXERS, "package.module:Class"])
    path = MIXERS.get(name, name)
    if path is None:
        return None
    module_name, _, class_name = path.partition(":")
    try:
        if module_name.startswith("."):
            raise ImportError("the module's name must be absolute")
        mixer = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"The mixer '{name}' cannot be imported: {error}. A mixer of your own is named"
            " package.module:Class; the module must be importable from here (installed, or in the current"
            " directory or on PYTHONPATH)."
        ) from error
    if not isinstance(mixer, type):
        raise UsageError(
            f"The mixer '{name}' is no class but {mixer!r}; see lra_tasks.model.mixers for what it must be."
        )
    _check_calls(name, mixer)
    return mixer


def _check_calls(name: str, mixer: type) -> None:
    """Refuses a class whose methods do not take what the encoder gives them."""
    for method, arguments, keywords in (
        ("__init__", ("self", "spec"), ("rngs",)),
        ("__call__", ("self", "x", "mask"), ("deterministic", "rngs")),
    ):
        # Not by `getattr`, which also finds what every object and every class has.
        bases = mixer.__mro__[:-1]
        function = next((vars(base)[method] for base in bases if method in vars(base)), None)
        wanted = f"{method}({', '.join((*arguments, '*', *keywords))})"
        if function is None:
            raise UsageError(f"The mixer '{name}' must have a method {wanted}; it has none.")
        if not inspect.isfunction(function):  # some wrapper, that knows for itself what it takes
            continue
        signature = inspect.signature(function)
        try:
            signature.bind(*arguments, **dict.fromkeys(keywords))
        except TypeError as error:
            raise UsageError(
                f"The mixer '{name}' must have a method {wanted}; its own is {method}{signature}: {error}."
            ) from error
