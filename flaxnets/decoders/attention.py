"""Additive attention: where among the regions of an image, or the steps of a video, to look.

    e_r = w · tanh(W_k v_r + b + W_q h),   α = softmax(e)        (Bahdanau et al., 1409.0473)

The keys W_k v_r + b do not depend on what is asked and are computed once for all steps of time, and
once for all captions of an image.
"""

import jax
import jax.numpy as jnp

from flaxnets.typing import Array


def flatten_regions(features: Array, mask: Array | None) -> tuple[Array, Array | None]:
    """Features of any layout as regions.

    Args:
      features: (B,R,D), maps (B,h,w,D) or vectors (B,D), float.
      mask: (B,R) bool, regions that exist; None: all.

    Returns:
      (B,R,D), zero where the mask is False, and the mask.

    Raises:
      ValueError: features of another rank or not float, a mask of another shape or dtype.
    """
    if features.ndim not in (2, 3, 4):
        raise ValueError(
            f"features: expected (B,D), (B,R,D) or (B,h,w,D), received shape {features.shape}"
        )
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise ValueError(f"features: expected a float dtype, received {features.dtype}")
    regions = features.reshape(len(features), -1, features.shape[-1])
    if mask is None:
        return regions, None
    if mask.shape != regions.shape[:2] or mask.dtype != jnp.bool_:
        raise ValueError(
            f"mask: expected {regions.shape[:2]} bool, received {mask.shape} {mask.dtype}"
        )
    return jnp.where(mask[..., None], regions, 0), mask


def average_regions(regions: Array, mask: Array | None) -> Array:
    """The mean over regions that exist, summed in float32 at least.

    Args:
      regions: (B,R,D), zero where the mask is False.
      mask: (B,R) bool; None: all.

    Returns:
      (B,D) in the dtype of ``regions``; zero where no region exists.
    """
    total = jnp.sum(regions, axis=1, dtype=jnp.promote_types(regions.dtype, jnp.float32))
    if mask is None:
        return (total / regions.shape[1]).astype(regions.dtype)
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return (total / count).astype(regions.dtype)


def attend(keys: Array, query: Array, vector: Array, mask: Array | None) -> Array:
    """Weights of the regions, for each of C queries an image.

    Args:
      keys: (B,R,A), W_k v + b.
      query: (B,C,A), W_q h.
      vector: (A,), w.
      mask: (B,R), above zero where a region exists; None: all do.

    Returns:
      α: (B,C,R), at least float32; sums to one, zero where masked, and all zero where no region
      exists.
    """
    hidden = jnp.tanh(keys[:, None] + query[:, :, None])  # (B,C,R,A)
    scores = hidden @ vector.astype(hidden.dtype)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    exists = None if mask is None else mask[:, None] > 0
    # By hand, as jax.nn.softmax gives NaN where no region exists. The shift leaves α as it is.
    if exists is not None:
        scores = jnp.where(exists, scores, jnp.finfo(scores.dtype).min)
    powers = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    if exists is not None:
        powers = jnp.where(exists, powers, 0)
    total = powers.sum(-1, keepdims=True)
    return powers / (total if exists is None else jnp.where(total > 0, total, 1))
