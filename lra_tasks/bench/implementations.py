"""Attention layers that `lra bench attention` measures, as plain functions.

Letters in shapes: B batch, T length, D width, N heads, H = D / N. An implementation maps query, key and
value, each (B, T, N, H), to an output of that shape. The level "core" has it alone. The level "layer" adds
four D × D projections without biases, as in the paper's layer:

    y = o W_o,    o = implementation(x W_q, x W_k, x W_v),    x and y (B, T, D).

"forward" computes y (or o). "both", forward and backward, computes the loss ⟨y, c⟩ with a random cotangent c
and its gradient with respect to all inputs: parameters and x, or query, key and value.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hrrformer import hrr_attention
from hrrformer.attention import IMPLEMENTATIONS
from lra_tasks.bench.settings import AttentionSettings
from lra_tasks.config import parse_mixer
from lra_tasks.errors import UsageError, unknown_name
from lra_tasks.model.mixers import get_mixer

Implementation: TypeAlias = Callable[[Array, Array, Array], Array]
PASSES = ("forward", "both")
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


def implementation(name: str) -> Implementation:
    """Returns the implementation of a name in `known()`, with options as for mixers: "hrr:rescale=True".

    Raises:
      UsageError: If the name is not in `known()`, or it does not take the options.
    """
    base, options = parse_mixer(name)
    if base not in known():
        raise unknown_name("implementation", base, known())
    if options:
        if base != "hrr":
            raise UsageError(f"Only hrr has options, as in hrr:rescale=True; got '{name}'.")
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


def program(level: str, direction: str, attend: Implementation, num_heads: int) -> Callable[..., Any]:
    """Returns the function to compile; it takes `inputs`, and for "both" the cotangent after them."""

    def layer(parameters: dict[str, Array], x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        heads = (*x.shape[:-1], num_heads, x.shape[-1] // num_heads)
        query, key, value = ((x @ parameters[name]).reshape(heads) for name in ("query", "key", "value"))
        return attend(query, key, value).reshape(x.shape) @ parameters["out"]

    function: Callable[..., Array] = layer if level == "layer" else attend
    if direction == "forward":
        return function

    def loss(*arguments: Any) -> Array:
        *given, cotangent = arguments
        return jnp.vdot(function(*given), cotangent, preferred_element_type=jnp.float32)

    return jax.value_and_grad(loss, argnums=(0, 1) if level == "layer" else (0, 1, 2))


def inputs(level: str, direction: str, length: int, settings: AttentionSettings) -> tuple[Any, ...]:
    """Returns the shapes and dtypes of a program's arguments, as `jax.ShapeDtypeStruct`s."""
    batch_size, width, num_heads = settings.batch_size, settings.width, settings.num_heads

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(settings.dtype))

    if level == "layer":
        given: tuple[Any, ...] = (
            {name: array(width, width) for name in ("query", "key", "value", "out")},
            array(batch_size, length, width),
        )
    else:
        given = (array(batch_size, length, num_heads, width // num_heads),) * 3
    return given if direction == "forward" else (*given, given[-1])


def draw(shapes: Any, seed: int) -> Any:
    """Returns random normal arrays of these shapes, square matrices with variance 1 / D."""
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))

    def one(key: Array, leaf: jax.ShapeDtypeStruct) -> Array:
        scale = leaf.shape[0] ** -0.5 if len(leaf.shape) == 2 else 1.0
        return jax.random.normal(key, leaf.shape, leaf.dtype) * jnp.asarray(scale, leaf.dtype)

    return jax.tree.unflatten(tree, [one(*pair) for pair in zip(keys, leaves, strict=True)])
