"""Additive attention over the regions of an image or the steps of a video.

    e_r = w · tanh(W_k v_r + b + W_q h),   α = softmax(e)

(Bahdanau et al., 1409.0473, appendix A.1.2). The keys W_k v_r + b do not depend on the query W_q h:
they are computed once for all time steps and all captions of an image.
"""

import math

import jax
import jax.numpy as jnp

from flaxnets.typing import Array


def flatten_regions(features: Array, mask: Array | None) -> tuple[Array, Array | None]:
    """Returns features of any layout as regions.

    Args:
      features: (B,R,D), maps (B,h,w,D) or vectors (B,D), float.
      mask: (B,R) bool, regions that exist; None: all.

    Returns:
      Regions (B,R,D), zero where the mask is False, and the mask. R is 1 for vectors.

    Raises:
      ValueError: features of another rank or not float, a mask of another shape or dtype.
    """
    if features.ndim not in (2, 3, 4):
        raise ValueError(
            f"features: expected (B,D), (B,R,D) or (B,h,w,D), received shape {features.shape}"
        )
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise ValueError(f"features: expected a float dtype, received {features.dtype}")
    regions = features.reshape(
        features.shape[0], math.prod(features.shape[1:-1]), features.shape[-1]
    )
    if mask is None:
        return regions, None
    if mask.shape != regions.shape[:2] or mask.dtype != jnp.bool_:
        raise ValueError(
            f"mask: expected {regions.shape[:2]} bool, received {mask.shape} {mask.dtype}"
        )
    # Selected, not multiplied: NaN in the padding must not reach the sums.
    return jnp.where(mask[..., None], regions, 0), mask


def average_regions(regions: Array, mask: Array | None) -> Array:
    """Returns the mean over the regions that exist, summed in at least float32.

    Args:
      regions: (B,R,D), not read where the mask is False.
      mask: (B,R) bool; None: all.

    Returns:
      (B,D) in the dtype of ``regions``; zero where no region exists.
    """
    if mask is not None:
        regions = jnp.where(mask[..., None], regions, 0)
    total = jnp.sum(regions, axis=1, dtype=jnp.promote_types(regions.dtype, jnp.float32))
    if mask is None:
        return (total / max(regions.shape[1], 1)).astype(regions.dtype)
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return (total / count).astype(regions.dtype)


def attend(keys: Array, query: Array, vector: Array, mask: Array | None) -> Array:
    """Returns the attention weights of C queries per image.

    Args:
      keys: (B,R,A), W_k v + b; not read where masked.
      query: (B,C,A), W_q h.
      vector: (A,), w.
      mask: (B,R), above zero where a region exists; None: all do.

    Returns:
      α: (B,C,R), at least float32; sums to one, zero where masked, and all zero where no region
      exists.

    >>> mask = jnp.array([[1, 1, 0], [0, 0, 0]])
    >>> attend(jnp.ones((2, 3, 4)), jnp.ones((2, 1, 4)), jnp.ones(4), mask).tolist()
    [[[0.5, 0.5, 0.0]], [[0.0, 0.0, 0.0]]]
    """
    exists = None if mask is None else mask[:, None] > 0
    if exists is not None:
        keys = jnp.where(exists[:, 0, :, None], keys, 0)
    hidden = jnp.tanh(keys[:, None] + query[:, :, None])  # (B,C,R,A)
    energies = hidden @ vector.astype(hidden.dtype)
    energies = energies.astype(jnp.promote_types(energies.dtype, jnp.float32))
    # A softmax by hand: jax.nn.softmax of a row that is masked throughout is NaN, and so is its
    # gradient. Masked energies are the least finite number, not minus infinity, since
    # -inf - (-inf) is NaN. The shift by the maximum does not change α, so it needs no gradient.
    if not energies.shape[-1]:
        return energies  # Of no regions there is no maximum.
    if exists is not None:
        energies = jnp.where(exists, energies, jnp.finfo(energies.dtype).min)
    powers = jnp.exp(energies - jax.lax.stop_gradient(energies.max(-1, keepdims=True)))
    if exists is not None:
        powers = jnp.where(exists, powers, 0)
    total = powers.sum(-1, keepdims=True)
    return powers / (total if exists is None else jnp.where(total > 0, total, 1))
