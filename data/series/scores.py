"""Scores of forecasts and of remaining lives, of whole splits, in the units of the series."""

import numpy as np

FORECAST_SCORES = ("rse", "corr", "rmse", "mae")
"""Names of what ``forecast_scores`` returns."""


def forecast_scores(
    forecasts: np.ndarray, targets: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    """Returns relative error, correlation, root mean squared and mean absolute error.

    With Y the targets and Ŷ the forecasts of a split, as LSTNet (Lai et al., 1703.07015, section
    4.2, equations 8 and 9) and its code have them::

        rse  = √ Σ (Y − Ŷ)² / √ Σ (Y − mean(Y))²     over all windows, horizons and channels
        corr = mean over horizons and channels of the correlation of Y and Ŷ over the windows

    The mean in ``rse`` is that of all channels together. Channels that are constant in the targets
    have no correlation and are left out of ``corr``; a constant forecast of one that varies counts
    as 0. Where none varies, ``rse`` and ``corr`` are NaN.

    >>> y = np.array([1.0, 2.0, 3.0])[:, None, None]
    >>> scores = forecast_scores(y + 1, y, np.ones(y.shape, bool))
    >>> [round(scores[name], 3) for name in FORECAST_SCORES]
    [1.225, 1.0, 1.0, 1.0]

    Args:
        forecasts: (N,H,C) float.
        targets: (N,H,C) float.
        mask: (N,H,C) bool, False where a target is missing.

    Returns:
        ``FORECAST_SCORES`` by name.

    Raises:
        ValueError: arrays of different shapes, or no target at all.
    """
    if not forecasts.shape == targets.shape == mask.shape or targets.ndim != 3:
        raise ValueError(
            f"forecasts, targets, mask: expected one shape (N,H,C), received {forecasts.shape}, "
            f"{targets.shape} and {mask.shape}"
        )
    count = int(mask.sum())
    if not count:
        raise ValueError("mask: expected at least one target that is not missing, received none")
    y = np.where(mask, targets, 0).astype(np.float64)
    error = np.where(mask, forecasts, 0).astype(np.float64) - y
    spread = np.where(mask, y - y.sum() / count, 0)
    squared, total = float((error**2).sum()), float((spread**2).sum())
    return {
        "rse": float(np.sqrt(squared / total)) if total else float("nan"),
        "corr": _mean_correlation(y + error, y, mask),
        "rmse": float(np.sqrt(squared / count)),
        "mae": float(np.abs(error).sum() / count),
    }


def phm_score(predicted: np.ndarray, lives: np.ndarray) -> np.ndarray:
    """Returns the penalty of each predicted remaining life, (N,) float64 (Saxena et al., 2008).

    With the error d = predicted − true: exp(−d/13) − 1 where d < 0, which is early, and
    exp(d/10) − 1 where it is late. The challenge's score is the sum over the engines.

    >>> phm_score(np.array([87.0, 110.0]), np.array([100.0, 100.0])).round(3).tolist()
    [1.718, 1.718]

    Args:
        predicted: (N,) cycles.
        lives: (N,) cycles, the true ones.
    """
    late = np.asarray(predicted, np.float64) - np.asarray(lives, np.float64)
    return np.asarray(np.expm1(np.where(late < 0, -late / 13, late / 10)))


def _mean_correlation(forecasts: np.ndarray, targets: np.ndarray, mask: np.ndarray) -> float:
    """Returns the mean correlation over the first axis of the columns that vary; NaN of none."""
    count = np.maximum(mask.sum(0), 1)

    def centred(values: np.ndarray) -> np.ndarray:
        # Rounding errors of the mean are no variation.
        deviations = values - np.where(mask, values, 0).sum(0) / count
        small = np.abs(deviations) <= 1e-12 * np.abs(values)
        return np.where(mask & ~small, deviations, 0)

    y, x = centred(targets), centred(forecasts)
    varies = (y**2).sum(0) > 0
    if not varies.any():
        return float("nan")
    norm = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    correlation = (x * y).sum(0) / np.where(norm > 0, norm, 1)
    return float(correlation[varies].mean())
