"""Checks of the options that several mixers have."""

from lra_tasks.model.mixers import MixerSpec


def check_positive(**options: int) -> None:
    """Refuses options below 1."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}.")


def check_odd(**options: int) -> None:
    """Refuses numbers of taps without a center."""
    for name, value in options.items():
        if value < 1 or value % 2 == 0:
            raise ValueError(f"{name} must be odd and positive, so that it has a center; got {value}.")


def check_rotary(spec: MixerSpec) -> None:
    """Refuses a head size that `lra_tasks.model.positions.rotate` cannot split into pairs."""
    size = spec.qkv_features // spec.num_heads
    if size % 2:
        raise ValueError(f"rotary needs an even head size, qkv_features / num_heads; got {size}.")
