"""Scores of forecasts and of remaining lives against definitions written as loops."""

import numpy as np
import pytest

from data.series.scores import FORECAST_SCORES, forecast_scores, phm_score


def test_forecast_scores_equal_the_definitions() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(20, 2, 3)) * [1, 5, 0.1] + [0, 100, -3]
    forecasts = targets + rng.normal(size=targets.shape)
    mask = rng.random(targets.shape) < 0.8
    y, x = targets[mask], forecasts[mask]
    found = forecast_scores(np.where(mask, forecasts, np.nan), np.where(mask, targets, 9), mask)
    assert tuple(found) == FORECAST_SCORES
    assert found["rse"] == pytest.approx(
        np.sqrt(((y - x) ** 2).sum()) / np.sqrt(((y - y.mean()) ** 2).sum())
    )
    assert found["rmse"] == pytest.approx(np.sqrt(((y - x) ** 2).mean()))
    assert found["mae"] == pytest.approx(np.abs(y - x).mean())
    columns = [
        np.corrcoef(targets[m, h, c], forecasts[m, h, c])[0, 1]
        for h in range(2)
        for c in range(3)
        for m in [mask[:, h, c]]
    ]
    assert found["corr"] == pytest.approx(np.mean(columns))


def test_constant_channels_have_no_correlation() -> None:
    y = np.stack([np.arange(5.0), np.full(5, 0.1)], axis=1)[:, None]
    ones = np.ones(y.shape, bool)
    assert forecast_scores(y, y, ones)["corr"] == pytest.approx(1)
    assert forecast_scores(np.full(y.shape, 0.3), y, ones)["corr"] == 0
    constant = forecast_scores(y[..., 1:], y[..., 1:], ones[..., 1:])
    assert np.isnan(constant["corr"])
    assert np.isnan(constant["rse"])
    assert constant["rmse"] == 0


def test_wrong_arrays_are_refused() -> None:
    y = np.zeros((4, 1, 2))
    with pytest.raises(ValueError, match=r"expected one shape \(N,H,C\), received \(4, 1\)"):
        forecast_scores(y[..., 0], y, np.ones(y.shape, bool))
    with pytest.raises(ValueError, match="expected at least one target that is not missing"):
        forecast_scores(y, y, np.zeros(y.shape, bool))


def test_late_predictions_cost_more_than_early_ones() -> None:
    lives = np.full(3, 50.0)
    early, right, late = phm_score(lives + np.array([-20, 0, 20]), lives)
    assert right == 0
    assert early == pytest.approx(np.exp(20 / 13) - 1)
    assert late == pytest.approx(np.exp(2) - 1)
