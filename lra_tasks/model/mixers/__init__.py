"""Mixers: modules that exchange information between positions, by name or as `package.module:Class`.

A mixer is an `nnx.Module` class, constructed from a `MixerSpec` and called on the sequence:

    class MyMixer(nnx.Module):
        def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs, state: int = 16): ...
        def __call__(self, x, mask, *, deterministic, rngs): ...

`x` is (B, T, D), already normalized; `mask` is (B, T), True for real tokens; `rngs` contains the stream
`dropout` during training and is None otherwise. The result has the shape of `x`; the encoder adds the
residual. Parameters are `nnx.Param`; a mixer keeps no other state and takes randomness from `rngs` only.

Further keyword arguments of `__init__` are options: `my_mixers:MyMixer:state=64` on the command line. Their
values are numbers, strings, True, False or None, and each has a default.

The class attribute `sequence_parallel = True` declares that the mixer combines tokens by sums only, so that
devices can share the sequence: `lra train --mesh sequence=2`.
"""

import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from lra_tasks.config import parse_mixer
from lra_tasks.errors import UsageError, unknown_name
from lra_tasks.plugins import import_object

ALL = "all"  # in place of names of mixers


@dataclasses.dataclass(frozen=True)
class MixerSpec:
    """The sizes that a mixer receives from the model.

    Attributes:
      width: Size D of the last axis of input and output.
      num_heads: Number N of heads.
      qkv_features: Size N·H of queries, keys and values over all heads.
      length: Length of the longest sequence.
      dropout_rate: Dropout rate inside the mixer; the encoder also applies dropout to its output.
      dtype: Dtype of the computation; parameters are float32.
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


class Entry(NamedTuple):
    """A built-in mixer.

    Attributes:
      path: `module:Class`, or None for a model without the attention branch.
      about: Description of the implementation, which reports print beside every result.
      cost: Growth of the computing time with T.
      variants: Descriptions in place of `about` by option, for example "implementation=cudnn".
    """

    path: str | None
    about: str
    cost: Literal["0", "T", "T log T", "T²"]
    variants: Mapping[str, str] = {}


MIXERS: dict[str, Entry] = {
    "hrr": Entry("lra_tasks.model.mixers.hrr:HRRMixer", "hrrformer.nnx.HRRAttention, the paper's layer", "T"),
    "holographic": Entry(
        "lra_tasks.model.mixers.holographic:HolographicMixer",
        "hrrformer.nnx.HRRMemory, a memory of pairs bound to their positions",
        "T",
    ),
    "softmax": Entry(
        "lra_tasks.model.mixers.softmax:SoftmaxMixer",
        "jax.nn.dot_product_attention by XLA, which holds all T × T weights in memory",
        "T²",
        {
            "implementation=chunked": "exact softmax attention in blocks of queries, without T × T weights",
            "implementation=cudnn": "jax.nn.dot_product_attention by cuDNN's fused kernel",
        },
    ),
    "linear": Entry(
        "lra_tasks.model.mixers.linear:LinearMixer",
        "linear attention of Katharopoulos et al. 2020, with features elu + 1",
        "T",
    ),
    "conv": Entry(
        "lra_tasks.model.mixers.conv:ConvMixer",
        "a gated depthwise convolution over 5 tokens unless set",
        "T log T",
    ),
    "local": Entry(
        "lra_tasks.model.mixers.local:LocalMixer",
        "softmax attention to the 64 tokens on each side unless set",
        "T",
    ),
    "fnet": Entry(
        "lra_tasks.model.mixers.fnet:FNetMixer",
        "FNet's Fourier transform over the real tokens, without parameters",
        "T log T",
    ),
    "linformer": Entry(
        "lra_tasks.model.mixers.linformer:LinformerMixer",
        "Linformer: softmax attention to learned mixtures of keys and values",
        "T",
    ),
    "performer": Entry(
        "lra_tasks.model.mixers.performer:PerformerMixer",
        "Performer: softmax attention estimated by positive random features, FAVOR+",
        "T",
    ),
    "luna": Entry(
        "lra_tasks.model.mixers.luna:LunaMixer",
        "Luna without its carried memory: attention through 16 learned vectors unless set",
        "T",
    ),
    "nystrom": Entry(
        "lra_tasks.model.mixers.nystrom:NystromMixer",
        "Nyströmformer: softmax attention through 64 landmarks unless set, and a convolution",
        "T",
    ),
    "s4d": Entry(
        "lra_tasks.model.mixers.s4d:S4DMixer", "bidirectional S4D, a diagonal state space by FFT", "T log T"
    ),
    "retention": Entry(
        "lra_tasks.model.mixers.retention:RetentionMixer",
        "LION-D, linear attention with one decay per head, in both directions",
        "T",
    ),
    "mamba2": Entry(
        "lra_tasks.model.mixers.mamba2:Mamba2Mixer",
        "Mamba-2, a state space with an input-dependent decay, read in both directions",
        "T log T",
    ),
    "mega": Entry(
        "lra_tasks.model.mixers.mega:MegaMixer",
        "MEGA, gated attention with one head over moving averages in both directions",
        "T²",
    ),
    "hgconv": Entry(
        "lra_tasks.model.mixers.hgconv:HGConvMixer",
        "HGConv, a convolution between a binding and an unbinding, without its wrap-around",
        "T log T",
    ),
    "none": Entry(None, "the same model without the attention branch", "0"),
}


def about(name: str) -> str:
    """Returns the description of a mixer for reports; its name may have options.

    >>> about("softmax:implementation=chunked")
    'exact softmax attention in blocks of queries, without T × T weights'
    """
    name, options = parse_mixer(name)
    if name not in MIXERS:
        return "your own mixer"
    chosen = (MIXERS[name].variants.get(f"{option}={value}") for option, value in options.items())
    return next(filter(None, chosen), MIXERS[name].about)


def every_mixer(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names, with those of all built-in mixers in place of "all".

    >>> every_mixer(["all"]) == tuple(MIXERS), every_mixer(["hrr", "none"])
    (True, ('hrr', 'none'))
    """
    return tuple(each for name in names for each in (MIXERS if name == ALL else (name,)))


def get_mixer(name: str) -> Callable[..., Any] | None:
    """Returns the constructor of a mixer with its options bound; None for "none".

    Args:
      name: Name in `MIXERS` or `package.module:Class`, with options as in "hrr:rescale=True".

    Returns:
      Function that maps a `MixerSpec` and `rngs` to the module.

    Raises:
      UsageError: If the name is unknown, the class cannot be imported or does not follow the convention of
        `Mixer`, or the class does not accept the options. The message shows its options.
    """
    name, options = parse_mixer(name)
    mixer = mixer_class(name)
    if mixer is None:
        if options:
            raise UsageError(f"The mixer '{name}' has no options; got {', '.join(options)}.")
        return None
    if not options:
        return mixer
    _check_options(name, mixer, options)
    return functools.partial(_build, name, mixer, options)


def mixer_class(name: str) -> type[Mixer] | None:
    """Imports and returns the class of a mixer by its name without options; None for "none".

    Raises:
      UsageError: If the class cannot be imported, or does not follow the convention of `Mixer`.
    """
    if ":" not in name and name not in MIXERS:
        raise unknown_name("mixer", name, [*MIXERS, "package.module:Class"])
    path = MIXERS[name].path if name in MIXERS else name
    if path is None:
        return None
    mixer = import_object("mixer", path)
    if not isinstance(mixer, type):
        raise UsageError(f"The mixer '{name}' must be a class, see lra_tasks.model.mixers; got {mixer!r}.")
    _check_calls(name, mixer)
    return mixer


def _build(name: str, mixer: type[Any], options: Mapping[str, Any], spec: MixerSpec, *, rngs: Any) -> Any:
    try:
        return mixer(spec, rngs=rngs, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"The mixer '{name}' rejects the options {dict(options)}: {error} Its options are:"
            f" {_signature(mixer)}."
        ) from error


def _options(mixer: type[Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(mixer.__init__).parameters.values()
    return {x.name: x for x in parameters if x.kind == x.KEYWORD_ONLY and x.name != "rngs"}


def _signature(mixer: type[Any]) -> str:
    return ", ".join(_plain(parameter) for parameter in _options(mixer).values())


def _plain(annotated: Any) -> str:
    """Returns an annotation as it was written; Python prints Literal[…] | None as Optional[Literal[…]]."""
    return re.sub(r"Optional\[(.*)\]", r"\1 | None", str(annotated).replace("typing.", ""))


def _check_options(name: str, mixer: type[Any], options: Mapping[str, Any]) -> None:
    """Refuses options that the class does not accept, by name or by type."""
    hints = typing.get_type_hints(mixer.__init__)
    known = _options(mixer)
    for option, value in options.items():
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
            wrong = f"has no option '{option}'." + (f" Did you mean '{near[0]}'?" if near else "")
        elif not _fits(value, hint := hints.get(option, _type_of(known[option].default))):
            wrong = f"needs {_shown(hint)} for its option '{option}'; got {value!r}."
        else:
            continue
        options_of = f"Its options are: {_signature(mixer)}." if known else "It takes no options."
        raise UsageError(f"The mixer '{name}' {wrong} {options_of}")


def _type_of(default: Any) -> Any:
    """The type that an option without an annotation has by its default."""
    return type(default) if isinstance(default, bool | int | float | str) else Any


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the annotated type; hints other than scalars, unions and literals accept any."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return any(value == known and type(value) is type(known) for known in typing.get_args(hint))
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint in (bool, int, str, types.NoneType):
        return type(value) is hint
    return type(value) in (int, float) if hint is float else True


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else _plain(hint)


def _check_calls(name: str, mixer: type) -> None:
    """Refuses a class if its methods do not accept the encoder's arguments."""
    for method, arguments, keywords in (
        ("__init__", ("self", "spec"), ("rngs",)),
        ("__call__", ("self", "x", "mask"), ("deterministic", "rngs")),
    ):
        # Not `getattr`, which also finds the methods of `object` and `type`.
        bases = mixer.__mro__[:-1]
        function = next((vars(base)[method] for base in bases if method in vars(base)), None)
        wanted = f"{method}({', '.join((*arguments, '*', *keywords))})"
        if function is None:
            raise UsageError(f"The mixer '{name}' must have a method {wanted}; got none.")
        if not inspect.isfunction(function):  # a wrapper, with a signature that cannot be checked
            continue
        signature = inspect.signature(function)
        try:
            signature.bind(*arguments, **dict.fromkeys(keywords))
        except TypeError as error:
            raise UsageError(
                f"The mixer '{name}' must have a method {wanted}; got {method}{signature}: {error}."
            ) from error
