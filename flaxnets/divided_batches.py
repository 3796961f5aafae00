"""What may be done to a batch that XLA divides over devices.

Under ``jax.jit`` with divided arguments XLA divides a program along the batch, and each device
computes its rows. Two things that are fast on one device make it gather the rows of all instead:

- A loop over chunks of the batch, in which every device walks through the images of all.
- Merging the batch with an axis before it, as (T,B,F) to (T·B,F): the rows of a device are then
  b, b + B, b + 2B, …, which is no division that XLA knows.

The trainer tells the mesh through ``jax.sharding.use_abstract_mesh``.
"""

import math

import jax


def may_loop() -> bool:
    """Whether loops over chunks of the batch are of use where this is traced.

    They are unless the mesh that is told divides the program. A program of which nothing is told is
    taken for one on one device.
    """
    return _divisor() == 1


def may_merge() -> bool:
    """Whether an axis before the batch's may be merged with it where this is traced.

    It may where the mesh that is told divides nothing, within ``jax.shard_map`` also, or where
    there is but one device. A program of which nothing is told may be divided.
    """
    told = not jax.sharding.get_abstract_mesh().empty
    return _divisor() == 1 if told else jax.device_count() == 1


def _divisor() -> int:
    """Into how many parts the mesh that is told divides a program; 1 where none is told."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(
        size
        for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind != jax.sharding.AxisType.Manual
    )
