"""Detection of sharded batches while tracing, and batches in chunks.

Under ``jax.jit`` with sharded arguments XLA partitions a program along the batch, and each device
computes its own rows. Two rewrites that are fast on one device force an all-gather there:

- A loop over chunks of the batch: every device iterates over the chunks of all devices.
- Merging a leading axis into the batch axis, as (T,B,F) to (T·B,F): the rows of a device become
  b, b + B, b + 2B, …, a layout that no XLA sharding describes.

Layers therefore ask here, while they are traced, whether the batch axis is sharded. The trainer
provides the mesh through ``jax.sharding.use_abstract_mesh``; without one the answer is unknown, and
both functions return False on more than one device.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flaxnets.typing import Array


def is_batch_known_sharded() -> bool:
    """Returns whether the current abstract mesh shards the program that is being traced.

    False within ``jax.shard_map`` and ``jax.pmap``, where a program sees the rows of one device,
    and without a mesh. Loops over chunks of the batch are a mere matter of speed, so they are used
    unless this is True.
    """
    return _num_shards() > 1


def is_batch_known_unsharded() -> bool:
    """Returns whether the program that is being traced sees unsharded rows for certain.

    True if the current abstract mesh shards nothing, within ``jax.shard_map``, or with a single
    device. Merging axes into the batch axis is only used where this is True, since without a mesh
    the arguments may be sharded.
    """
    has_mesh = not jax.sharding.get_abstract_mesh().empty
    return _num_shards() == 1 if has_mesh else jax.device_count() == 1


def _num_shards() -> int:
    """Returns the number of parts that XLA may partition the program into; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    # Manual axes are those of shard_map: inside it, arrays are already one device's share.
    return math.prod(
        size
        for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind != jax.sharding.AxisType.Manual
    )


def map_in_chunks(encode: Callable[[Array], Any], images: Array, chunk_size: int = 2) -> Any:
    """Encodes a batch a few images at a time, inside one jitted function.

    On a CPU the feature maps of a few images fit into the cache, which makes an encoder 1.1 to 1.4
    times as fast at 224²; on an accelerator the whole batch at once is faster.

    >>> import jax.numpy as jnp
    >>> images = jnp.arange(5.0).reshape(5, 1, 1, 1)
    >>> map_in_chunks(lambda x: x.sum((1, 2, 3)) ** 2, images, chunk_size=2).tolist()
    [0.0, 1.0, 4.0, 9.0, 16.0]

    Args:
      encode: (n,H,W,C) to (n,...), or a dictionary of such arrays, each image independently
        (BatchNorm in evaluation). Wrapped in ``jax.checkpoint``, the backward pass stores nothing
        but the images.
      images: (N,H,W,C).
      chunk_size: images at a time, >= 1.

    Returns:
      (N,...), equal to ``encode(images)``.

    Raises:
      ValueError: a chunk size below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, received {chunk_size}")
    return jax.lax.map(
        lambda image: jax.tree.map(lambda outputs: outputs[0], encode(image[None])),
        images,
        batch_size=chunk_size,
    )


def split_batch(batch: Array, limit: int) -> Array:
    """Splits a batch into chunks of equal size, the last of which is padded with zeros.

    Of the sizes above half of ``limit`` it takes the one with the least padding: a batch of a prime
    number of images is padded by a few instead of split into single images.

    >>> import jax.numpy as jnp
    >>> [split_batch(jnp.zeros(n), 8).shape for n in (7, 16, 17)]
    [(1, 7), (2, 8), (3, 6)]

    Args:
      batch: (N,...).
      limit: largest number of images in a chunk, >= 1.

    Returns:
      (N',n,...) with N' · n >= N: the batch, then zeros.
    """
    n = len(batch)
    sizes = [n] if 0 < n <= limit else range(limit, limit // 2, -1)
    size = min(sizes, key=lambda size: -n % size)  # Of equals the first, which is the largest.
    if -n % size:
        batch = jnp.pad(batch, [(0, -n % size), *[(0, 0)] * (batch.ndim - 1)])
    return batch.reshape(-(-n // size), size, *batch.shape[1:])
