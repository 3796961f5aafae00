"""Errors of predicted frames: squared, absolute, PSNR, SSIM, and scores of events in fields.

All are of single frames, so that sums over a split are exact however its batches are cut.
"""

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.typing import Array

SSIM_WINDOW = 7
"""Side of the window of ``ssim``, pixels; smaller frames have no SSIM."""
SMALLEST_MSE = 1e-10
"""``psnr`` of a frame that is predicted exactly is that of this error: 100 dB."""


def squared_errors(predictions: Array, targets: Array) -> Array:
    """Returns the squared errors of each frame, summed over its pixels and channels.

    The literature's MSE of Moving MNIST is the mean of these over frames; "per pixel" is this
    divided by H·W·C.

    >>> squared_errors(jnp.zeros((1, 2, 4, 4, 1)), jnp.ones((1, 2, 4, 4, 1))).tolist()
    [[16.0, 16.0]]

    Args:
      predictions: (...,H,W,C) float.
      targets: the same shape.

    Returns:
      (...) float32.
    """
    return jnp.sum(jnp.square(predictions - targets), axis=(-3, -2, -1), dtype=jnp.float32)


def absolute_errors(predictions: Array, targets: Array) -> Array:
    """Returns the absolute errors of each frame, summed as ``squared_errors``."""
    return jnp.sum(jnp.abs(predictions - targets), axis=(-3, -2, -1), dtype=jnp.float32)


def psnr(predictions: Array, targets: Array) -> Array:
    r"""Returns the peak signal-to-noise ratio of each frame in dB, of values in [0,1].

    .. math:: -10 \log_{10} \mathrm{MSE}

    with the mean over the frame's pixels and channels, at least ``SMALLEST_MSE``.

    >>> round(float(psnr(jnp.zeros((2, 2, 1)), jnp.full((2, 2, 1), 0.1))), 3)
    20.0

    Args:
      predictions: (...,H,W,C) float in [0,1].
      targets: the same shape.
    """
    mse = jnp.mean(jnp.square(predictions - targets), axis=(-3, -2, -1), dtype=jnp.float32)
    return -10 * jnp.log10(jnp.maximum(mse, SMALLEST_MSE))


def ssim(predictions: Array, targets: Array, data_range: float = 1.0) -> Array:
    r"""Returns the structural similarity of each frame (Wang et al. 2004), in [-1,1].

    .. math::
        \frac{(2 μ_x μ_y + c_1)(2 σ_{xy} + c_2)}{(μ_x^2 + μ_y^2 + c_1)(σ_x^2 + σ_y^2 + c_2)},
        \quad c_1 = (0.01 L)^2, c_2 = (0.03 L)^2

    averaged over all windows of 7×7 pixels that lie within the frame, and over channels, with
    unbiased (co)variances: the defaults of scikit-image's ``structural_similarity``, not the
    paper's Gaussian window.

    >>> frame = jax.random.uniform(jax.random.key(0), (8, 8, 1))
    >>> round(float(ssim(frame, frame)), 4)
    1.0

    Args:
      predictions: (...,H,W,C) float, H and W at least 7.
      targets: the same shape.
      data_range: L, of the values: 1 for [0,1]. Tables made with OpenSTL have 2, scikit-image's
        guess for floats at the time, which gives higher values.

    Raises:
      ValueError: smaller frames.
    """
    if min(predictions.shape[-3:-1]) < SSIM_WINDOW:
        raise ValueError(
            f"predictions: expected frames of at least {SSIM_WINDOW}×{SSIM_WINDOW} pixels, "
            f"received shape {predictions.shape}"
        )
    count = SSIM_WINDOW**2
    leading = (1,) * (predictions.ndim - 3)

    def mean(x: Array) -> Array:
        window = (*leading, SSIM_WINDOW, SSIM_WINDOW, 1)
        total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1,) * x.ndim, "VALID")
        return total / count

    x, y = predictions.astype(jnp.float32), targets.astype(jnp.float32)
    mean_x, mean_y = mean(x), mean(y)
    unbiased = count / (count - 1)
    var_x = unbiased * (mean(x * x) - mean_x**2)
    var_y = unbiased * (mean(y * y) - mean_y**2)
    covariance = unbiased * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return jnp.mean(numerator / denominator, axis=(-3, -2, -1))


def count_events(predictions: Array, targets: Array, threshold: float) -> Array:
    """Returns the contingency table of each frame: hits, misses, false alarms, correct negatives.

    An event is a value of at least the threshold, as rain above a rate.

    >>> values = jnp.array([0.0, 1.0, 1.0, 0.0]).reshape(2, 2, 1)
    >>> count_events(values, jnp.array([0.0, 1.0, 0.0, 1.0]).reshape(2, 2, 1), 0.5).tolist()
    [1, 1, 1, 1]

    Args:
      predictions: (...,H,W,C) float.
      targets: the same shape.
      threshold: in the units of both.

    Returns:
      (...,4) int32.
    """
    predicted, happened = predictions >= threshold, targets >= threshold
    cells = (
        predicted & happened,
        ~predicted & happened,
        predicted & ~happened,
        ~predicted & ~happened,
    )
    return jnp.stack([jnp.sum(x, axis=(-3, -2, -1), dtype=jnp.int32) for x in cells], axis=-1)


def critical_success_index(table: np.ndarray) -> float:
    """Returns hits / (hits + misses + false alarms); NaN without any of them.

    >>> critical_success_index(np.array([1, 1, 2, 6]))
    0.25

    Args:
      table: (4,) counts of a whole split, as ``count_events`` gives them.
    """
    hits, misses, false_alarms, _ = (float(x) for x in table)
    events = hits + misses + false_alarms
    return hits / events if events else float("nan")


def heidke_skill_score(table: np.ndarray) -> float:
    r"""Returns the share of correct values beyond those of chance; NaN of a constant split.

    .. math:: \frac{2 (ad - bc)}{(a + b)(b + d) + (a + c)(c + d)}

    with hits a, misses b, false alarms c, correct negatives d.

    >>> heidke_skill_score(np.array([5, 0, 0, 5])), heidke_skill_score(np.array([1, 1, 1, 1]))
    (1.0, 0.0)

    Args:
      table: (4,) counts of a whole split, as ``count_events`` gives them.
    """
    a, b, c, d = (float(x) for x in table)
    denominator = (a + b) * (b + d) + (a + c) * (c + d)
    return 2 * (a * d - b * c) / denominator if denominator else float("nan")
