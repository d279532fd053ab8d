"""The mesh of devices: the axis `data` shares examples, the axis `sequence` shares tokens."""

import re
from collections.abc import Mapping

import jax
from jax.sharding import AxisType

from lra_tasks.config import Config
from lra_tasks.errors import UsageError
from lra_tasks.model.mixers import mixer_class

AXES = ("data", "sequence")


def parse_mesh(text: str) -> dict[str, int]:
    """Parses the sizes of the axes as they are written on the command line.

    Raises:
      UsageError: If an axis is neither `data` nor `sequence`, or a size is not a positive integer.

    >>> parse_mesh("data=2,sequence=4")
    {'data': 2, 'sequence': 4}
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        found = re.fullmatch(rf"\s*({'|'.join(AXES)})=([1-9][0-9]*)\s*", part)
        if found is None:
            raise UsageError(f"mesh must be like 'data=2,sequence=2'; got '{text}'.", argument="mesh")
        sizes[found[1]] = int(found[2])
    return sizes


def make_mesh(sizes: Mapping[str, int] | str | None = None) -> jax.sharding.Mesh:
    """Returns a mesh of all devices of all processes.

    Args:
      sizes: Size of each axis, as a mapping or as text. A missing `sequence` is 1; a missing `data` takes the
        remaining devices.

    Raises:
      UsageError: If the product of the sizes is not the number of devices, or processes would share a
        sequence.
    """
    devices = jax.device_count()
    given = parse_mesh(sizes) if isinstance(sizes, str) else dict(sizes or {})
    sequence = given.get("sequence", 1)
    data = given.get("data", devices // max(sequence, 1))
    if set(given) - set(AXES) or sequence < 1 or data * sequence != devices:
        raise UsageError(
            "mesh must have the axes data and sequence, and the product of their sizes must be the number of"
            f" devices, {devices}; got {sizes}.",
            argument="mesh",
        )
    mesh = jax.make_mesh((data, sequence), AXES, axis_types=(AxisType.Auto,) * 2)
    if any(len({device.process_index for device in row}) > 1 for row in mesh.devices):
        raise UsageError(
            f"The sequence axis of mesh must lie within a process, which has {jax.local_device_count()}"
            f" devices; got {sequence}.",
            argument="mesh",
        )
    return mesh


def check_mesh(mesh: jax.sharding.Mesh, config: Config) -> None:
    """Refuses a batch, length, pooling or mixer that the devices of a mesh cannot share.

    Raises:
      UsageError: If the devices cannot share the batch or the sequence. The message names the setting.
    """
    settings, (data, sequence) = config.settings, (mesh.shape[axis] for axis in AXES)
    if settings.batch_size % data:
        raise UsageError(
            f"batch_size must be a multiple of the {data} devices that share it; got {settings.batch_size}.",
            argument="batch_size",
        )
    if sequence == 1:
        return
    if settings.length % (sequence * settings.buckets):
        buckets = f", times {settings.buckets} buckets" if settings.buckets > 1 else ""
        raise UsageError(
            f"length must be a multiple of the {sequence} devices that share a sequence{buckets}; got"
            f" {settings.length}.",
            argument="length",
        )
    if settings.model.pooling == "cls":
        raise UsageError(
            "model.pooling must be 'mean' or 'first' where devices share a sequence; got 'cls', which"
            " prepends a token.",
            argument="model.pooling",
        )
    mixer = mixer_class(config.mixer)
    if mixer is not None and not getattr(mixer, "sequence_parallel", False):
        raise UsageError(
            f"The mixer '{config.mixer}' does not declare that devices can share a sequence; use mesh"
            f" data={data * sequence}. A new mixer declares it by the attribute sequence_parallel = True.",
            argument="mesh",
        )
