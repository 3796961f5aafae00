"""Images a few at a time, inside one jitted function."""

from collections.abc import Callable
from typing import Any

import jax

from flaxnets.typing import Array


def map_in_chunks(encode: Callable[[Array], Any], images: Array, chunk_size: int = 2) -> Any:
    """Encodes a batch a few images at a time, inside one jitted function.

    On a CPU the maps of a few images stay in the cache, which makes the encoder 1.1 to 1.4 times as
    fast at 224²; on an accelerator the whole batch at once is faster.

    Args:
      encode: (n,H,W,C) to (n,...), or a dictionary of such, each image by itself (BatchNorm not in
        training). With ``jax.checkpoint`` around it the gradient keeps no more than the images.
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


def split_batch(maps: Array, limit: int) -> Array:
    """(N,...) to chunks (N/n,n,...) of the largest n up to ``limit`` that divides N."""
    n = len(maps)
    size = max(size for size in range(1, min(n, limit) + 1) if n % size == 0)
    return maps.reshape(n // size, size, *maps.shape[1:])
