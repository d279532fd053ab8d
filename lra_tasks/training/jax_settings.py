"""Settings of JAX: those that change the numbers of a run, and those under which nothing can be trained."""

from collections.abc import Mapping
from typing import Any

from lra_tasks.errors import UsageError

NUMERICS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_default_matmul_precision",
)
TRANSFERS = "disallow", "JAX, Optax and Orbax transfer data implicitly"
REFUSED = {  # setting → beginning of the values, and the reason
    "jax_disable_jit": ("True", "training steps are compiled before they run"),
    "jax_numpy_dtype_promotion": ("strict", "Flax and Optax promote dtypes implicitly"),
    "jax_transfer_guard_host_to_device": TRANSFERS,
    "jax_transfer_guard_device_to_device": TRANSFERS,
    "jax_transfer_guard_device_to_host": TRANSFERS,
}


def numerics() -> dict[str, Any]:
    """Returns the settings that change the numbers of a run, by name."""
    import jax

    return {name: getattr(jax.config, name) for name in NUMERICS}


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Returns the settings that are not equal: `jax_enable_x64: True, False`."""
    pairs = ((name, there[name], here.get(name)) for name in there)
    return "; ".join(f"{name}: {first}, {second}" for name, first, second in pairs if first != second)


def check_modes() -> None:
    """Refuses the modes of JAX for debugging that compiled steps or the libraries around them do not support.

    Raises:
      UsageError: In one of these modes.
    """
    import jax

    for name, (refused, reason) in REFUSED.items():
        value = str(getattr(jax.config, name))
        if value.startswith(refused):
            raise UsageError(
                f"{name} cannot be {value} here, since {reason}. Unset this mode of JAX, or debug the model"
                " alone in it."
            )
