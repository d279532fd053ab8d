"""Attention layers that `lra bench attention` measures, as plain functions.

Letters in shapes: B batch, T length, D width, N heads, H = D / N. An implementation maps query, key and
value, each (B, T, N, H), to an output of that shape. The level "core" has it alone. The level "layer" adds
four D × D projections without biases, as in the paper's layer:

    y = o W_o,    o = implementation(x W_q, x W_k, x W_v),    x and y (B, T, D).

"forward" computes y (or o). "both", forward and backward, computes the loss ⟨y, c⟩ with a random cotangent c
and its gradient with respect to all inputs: parameters and x, or query, key and value.

A mixer of the arena, "s4d", is a layer with projections of its own.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hrrformer import hrr_attention
from hrrformer.attention import IMPLEMENTATIONS
from lra_tasks.bench.settings import AttentionSettings
from lra_tasks.config import parse_mixer
from lra_tasks.errors import UsageError, unknown_name
from lra_tasks.model.mixers import MIXERS, MixerSpec, get_mixer

Implementation: TypeAlias = Callable[[Array, Array, Array], Array]
PASSES = ("forward", "both")
PROJECTIONS = ("query", "key", "value", "out")
REFERENCE = {"layer": "projections", "core": "authors"}  # the ratios of a level are to its times
EPSILON = 1e-8  # of the authors' cosine


def authors(
    query: Float[Array, "B T N H"], key: Float[Array, "B T N H"], value: Float[Array, "B T N H"]
) -> Float[Array, "B T N H"]:
    """HRR attention in the authors' formulation, differentiated automatically.

    Full complex FFTs, the involution as conj F(q), a cosine with an epsilon, a softmax over T. Two costs of
    the authors' code are left out, in its favor: it transforms the binding and the involution of every token
    back from the spectrum, which nearly doubles the FFTs, and it transposes heads before tokens. Forward and
    backward of the layer with D = 512 take 14.1 T·D floats of temporaries on CPU.

    Source: the formulation published with Alam et al., ICML 2023; this code is new.
    """
    dtype = value.dtype
    query, key, value = (x.astype(jnp.promote_types(dtype, jnp.float32)) for x in (query, key, value))
    memory = jnp.sum(jnp.fft.fft(key) * jnp.fft.fft(value), axis=-3, keepdims=True)
    unbound = jnp.fft.ifft(jnp.conj(jnp.fft.fft(query)) * memory).real
    lengths = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (unbound, value)]
    scores = jnp.sum(unbound * value, axis=-1, keepdims=True) / (lengths[0] * lengths[1] + EPSILON)
    return (jax.nn.softmax(scores, axis=-3) * value).astype(dtype)


def projections(query: Array, key: Array, value: Array) -> Array:
    """q k + v: the projections without attention.

    This function uses all three inputs, which keeps XLA from removing a projection or its gradient. For
    T = 4,096, D = 512 on CPU the layer does the 24 T·D² FLOPs of four projections forward and backward. It
    takes 2.0 T·D floats of temporaries forward, 6.0 forward and backward. q (k + v) would not do: its
    gradients in k and v are equal, and XLA computes them once.
    """
    return query * key + value


def softmax(query: Array, key: Array, value: Array) -> Array:
    """Quadratic attention, `jax.nn.dot_product_attention` by XLA, with all T × T weights in memory."""
    return jax.nn.dot_product_attention(query, key, value, implementation="xla")


def softmax_cudnn(query: Array, key: Array, value: Array) -> Array:
    """Quadratic attention by cuDNN's fused kernel, without T × T weights in memory: GPU only, in bfloat16."""
    inputs = (x.astype(jnp.bfloat16) for x in (query, key, value))
    return jax.nn.dot_product_attention(*inputs, implementation="cudnn").astype(value.dtype)


CUDNN = "softmax-cudnn"
OTHERS: dict[str, Implementation] = {
    "authors": authors,
    "softmax": softmax,
    CUDNN: softmax_cudnn,
    "projections": projections,
}


def known() -> tuple[str, ...]:
    """Returns all names: "hrr", which chooses its implementation, one per implementation, and the others."""
    return ("hrr", *(f"hrr-{name}" for name in IMPLEMENTATIONS), *OTHERS)


def default_names() -> tuple[str, ...]:
    """Returns the names measured by default: those of `known` that this platform runs.

    "hrr" is left out, since it equals one of its implementations, and "hrr-pallas" on CPU, where Pallas
    interprets it.
    """
    platform = jax.default_backend()
    absent = {"hrr", *(["hrr-pallas"] if platform == "cpu" else []), *([CUDNN] if platform != "gpu" else [])}
    return tuple(name for name in known() if name not in absent)


def is_mixer(name: str) -> bool:
    """Whether a name is that of an arena's mixer, measured with its own projections, and not in `known()`.

    >>> is_mixer("holographic"), is_mixer("softmax:rotary=True"), is_mixer("softmax"), is_mixer("hrr")
    (True, True, False, False)
    """
    base, options = parse_mixer(name)
    return base not in known() or (bool(options) and base in MIXERS and base != "hrr")


def check_name(name: str, levels: Sequence[str]) -> None:
    """Refuses a name that is unknown, takes other options, or cannot be measured at the levels.

    Raises:
      UsageError: As above.
    """
    base, _ = parse_mixer(name)
    if not is_mixer(name):
        implementation(name)
    elif base in MIXERS or ":" in base:
        if get_mixer(name) is None:
            raise UsageError(f"{name} is a model without a layer: name another implementation.")
        if set(levels) != {"layer"}:
            raise UsageError(
                f"{name} is a mixer of the arena, whose projections belong to it: measure --levels layer."
            )
    else:
        raise unknown_name("implementation", base, {*known(), *MIXERS})


def implementation(name: str) -> Implementation:
    """Returns the implementation of a name in `known()`, with options as for mixers: "hrr:rescale=True".

    Raises:
      UsageError: If the name does not take the options.
    """
    base, options = parse_mixer(name)
    if options:
        if base != "hrr":
            raise UsageError(f"{base} has no options; got '{name}'.")
        get_mixer(name)  # refuses a wrong name or type
        of_layers = set(options) - inspect.signature(hrr_attention).parameters.keys()
        if of_layers:
            raise UsageError(
                f"{', '.join(sorted(of_layers))} belongs to the layer's parameters; got '{name}'."
            )
        return functools.partial(hrr_attention, **options)
    if base in OTHERS:
        return OTHERS[base]
    chosen: Any = base.removeprefix("hrr").removeprefix("-") or None
    return functools.partial(hrr_attention, implementation=chosen)


def subject(
    level: str, name: str, length: int, settings: AttentionSettings
) -> tuple[Callable[..., Array], Callable[[], tuple[Any, ...]]]:
    """Returns a function to measure, and one that draws its arguments.

    The arguments are query, key and value at the level "core"; parameters and x at the level "layer", and for
    a mixer of the arena its other state.
    """
    batch_size, width, num_heads = settings.batch_size, settings.width, settings.num_heads
    dtype = jnp.dtype(settings.dtype)
    heads = (batch_size, length, num_heads, width // num_heads)
    *keys, last = jax.random.split(jax.random.key(settings.seed), 5)

    def normal(key: Array, *shape: int) -> Array:
        return jax.random.normal(key, shape, dtype)

    mixer = get_mixer(name) if is_mixer(name) else None
    if mixer is not None:
        spec = MixerSpec(width, num_heads, width, length, dropout_rate=0.0, dtype=dtype)
        structure = nnx.graphdef(nnx.eval_shape(lambda: mixer(spec, rngs=nnx.Rngs(settings.seed))))

        def mixed(parameters: Any, x: Array, others: Any) -> Array:
            layer = nnx.merge(structure, parameters, others)
            return layer(x, jnp.ones(x.shape[:2], bool), deterministic=True, rngs=None)

        def drawn() -> tuple[Any, ...]:
            layer = mixer(spec, rngs=nnx.Rngs(settings.seed))
            _, parameters, others = nnx.split(layer, nnx.Param, ...)
            return parameters, normal(last, batch_size, length, width), others

        return mixed, drawn

    attend = implementation(name)
    if level == "core":
        return attend, lambda: tuple(normal(key, *heads) for key in keys[:3])

    def layer(parameters: dict[str, Array], x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        query, key, value = ((x @ parameters[each]).reshape(heads) for each in PROJECTIONS[:3])
        return attend(query, key, value).reshape(x.shape) @ parameters["out"]

    def projected() -> tuple[Any, ...]:
        scale = jnp.asarray(width**-0.5, dtype)
        matrices = (normal(key, width, width) * scale for key in keys)
        return dict(zip(PROJECTIONS, matrices, strict=True)), normal(last, batch_size, length, width)

    return layer, projected


def program(level: str, direction: str, function: Callable[..., Array]) -> Callable[..., Any]:
    """Returns the function to compile; for "both" it takes a cotangent after the arguments."""
    if direction == "forward":
        return function

    def loss(*arguments: Any) -> Array:
        *given, cotangent = arguments
        return jnp.vdot(function(*given), cotangent, preferred_element_type=jnp.float32)

    return jax.value_and_grad(loss, argnums=(0, 1) if level == "layer" else (0, 1, 2))
