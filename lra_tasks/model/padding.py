"""A test of mixers: does the content of padding change their results?"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from lra_tasks.config import Config
from lra_tasks.model.encoder import Block

TOLERANCE = 0.01  # of the largest number that a mixer returns


def reads_padding(config: Config) -> bool:
    """Whether the content of padding changes a mixer's results for real tokens; it should not.

    The test runs one untrained block. It adds random numbers to the initial parameters, since some of them
    may be zeros. The input is a random sequence, and its second half is padding: first filled with random
    numbers, then with one large vector in every place.
    """
    model = config.settings.model
    if config.mixer == "none":
        return False

    def difference(key: Array) -> Array:
        streams = nnx.Rngs(params=jax.random.fold_in(key, 3), dropout=jax.random.fold_in(key, 4))
        block = Block(model, config.mixer_name, config.settings.length, rngs=streams)
        keys = nnx.Rngs(jax.random.fold_in(key, 1))
        for _, parameter in nnx.iter_graph(block):
            if isinstance(parameter, nnx.Param):
                noise = jax.random.normal(keys(), parameter.shape, parameter.dtype)
                parameter[...] = parameter[...] + 0.05 * noise
        x = jax.random.normal(key, (1, block.length, model.width), jnp.dtype(model.dtype))
        other = 4.0 * jax.random.normal(jax.random.fold_in(key, 2), x.shape[-1:], x.dtype)
        mask = jnp.arange(block.length)[None] < (block.length + 1) // 2
        first, second = (
            jnp.where(mask[..., None], block.mixer(given, mask, deterministic=True, rngs=None), 0.0)
            for given in (x, jnp.where(mask[..., None], x, other))
        )
        first, second = first.astype(jnp.float32), second.astype(jnp.float32)
        largest = jnp.maximum(jnp.max(jnp.abs(first)), jnp.finfo(jnp.float32).tiny)
        return jnp.max(jnp.abs(first - second)) / largest

    return not float(jax.jit(difference)(jax.random.key(0))) <= TOLERANCE  # NaN proves nothing
