"""The arrays that captioning decoders take, remember and give."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.decoders.caption_cells import InnerCell
from flaxnets.recurrent.products import ScanWeights
from flaxnets.typing import Array

Memory = dict[str, Array]
"""(B,...) by name: what the steps read of an image. A mask of regions is bool."""


Product = Callable[[Array, Array], Array]
"""(...,F) and (F,G) to (...,G)."""


class CaptionOutputs(NamedTuple):
    """What a decoder says of C captions of L words for each of B images."""

    logits: Array
    """(B,C,L,V) float32; [..., t, :] scores the word t after reading the words before it."""
    attention: Array | None = None
    """(B,C,L,R) at least float32, of each step's regions; zero at padded steps."""
    log_probabilities: Array | None = None
    """(B,C,L) at least float32, hard attention in training: of the regions that were sampled."""
    entropies: Array | None = None
    """(B,C,L) at least float32, nats, hard attention in training: of the regions' weights."""
    baseline: Array | None = None
    """() float32, hard attention: the moving average of captions' log-likelihoods before this."""


class DecoderWeights(NamedTuple):
    """A decoder's parameters by the part that reads them."""

    embedding: Array
    """(V,E)."""
    fixed: dict[str, Array]
    """Read outside of the scan."""
    scan: ScanWeights
    """Read within it, without what belongs to an image."""
    cells: dict[str, InnerCell]
    """Whose kernels are among those of ``scan``."""


def attach_regions(scanned: ScanWeights, memory: Memory) -> ScanWeights:
    """With ``regions`` as the kernel ``context``, and ``keys`` and ``mask`` as others."""
    kernels, biases, others = scanned
    mask = memory.get("mask")
    # As a float, since differentiation knows no gradient of a bool.
    exists = None if mask is None else mask.astype(jnp.float32)
    kernels = kernels | {"context": memory["regions"]}
    return ScanWeights(kernels, biases, (*others, memory["keys"], exists))


def check_captions(
    tokens: Array, token_lengths: Array, batch_size: int, vocabulary_size: int
) -> None:
    """Refuses captions and lengths that do not go together.

    Raises:
      ValueError: tokens that are not (B,C,L) integers or, where they are known, not in [0,V);
        lengths that are not (B,C) integers or, where they are known, not in [0,L].
    """
    if tokens.ndim != 3 or len(tokens) != batch_size or 0 in tokens.shape[1:]:
        raise ValueError(
            f"tokens: expected (B,C,L) with B = {batch_size}, received shape {tokens.shape}"
        )
    if token_lengths.shape != tokens.shape[:2]:
        raise ValueError(
            f"token_lengths: expected shape {tokens.shape[:2]}, received {token_lengths.shape}"
        )
    ranges = (
        ("tokens", tokens, vocabulary_size - 1),
        ("token_lengths", token_lengths, tokens.shape[2]),
    )
    for name, values, largest in ranges:
        if not jnp.issubdtype(values.dtype, jnp.integer):
            raise ValueError(f"{name}: expected integers, received {values.dtype}")
        if isinstance(values, jax.core.Tracer) or not values.size:
            continue
        known = np.asarray(values)
        low, high = known.min(), known.max()
        if low < 0 or high > largest:
            raise ValueError(f"{name}: expected 0 to {largest}, received {low} to {high}")
