"""Images a few at a time, inside one jitted function."""

from collections.abc import Callable

import jax

from flaxnets.typing import Array


def map_in_chunks(encode: Callable[[Array], Array], images: Array, chunk_size: int = 2) -> Array:
    """Encodes a batch a few images at a time, inside one jitted function.

    On a CPU the maps of a few images stay in the cache, which makes the encoder 1.1 to 1.4 times as
    fast at 224²; on an accelerator the whole batch at once is faster.

    Args:
      encode: (n,H,W,C) to (n,...), each image by itself (BatchNorm not in training).
      images: (N,H,W,C).
      chunk_size: images at a time, >= 1.

    Returns:
      (N,...), equal to ``encode(images)``.

    Raises:
      ValueError: a chunk size below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, received {chunk_size}")
    return jax.lax.map(lambda image: encode(image[None])[0], images, batch_size=chunk_size)
