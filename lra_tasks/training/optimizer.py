"""Adam with decoupled weight decay, and the schedules of its learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lra_tasks.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of completed steps; see `OptimizerConfig`."""
    rate, warmup = config.learning_rate, config.warmup_steps

    def rsqrt(step: Any) -> Any:
        s = step + 1.0
        return rate * jnp.minimum(1.0, s / max(warmup, 1)) / jnp.sqrt(jnp.maximum(s, warmup))

    if config.schedule == "rsqrt":
        return rsqrt
    after = {
        "constant": lambda: optax.constant_schedule(rate),
        "cosine": lambda: optax.cosine_decay_schedule(rate, max(num_steps - warmup, 1)),
        "exponential": lambda: optax.exponential_decay(
            rate,
            config.decay_steps,
            config.decay_rate,
            staircase=config.staircase,
            end_value=config.final_learning_rate,
        ),
    }[config.schedule]()
    before = optax.linear_schedule(rate / max(warmup, 1), rate, max(warmup - 1, 1))
    return optax.join_schedules([before, after], [warmup])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Returns Adam with decoupled weight decay under the configured schedule; see `OptimizerConfig`."""
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(
        clip,
        optax.adamw(
            make_schedule(config, num_steps),
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )
