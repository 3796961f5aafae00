"""Reports of predicted frames: errors over the horizon, and sequences."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from launch.reports.forecasts import MAX_FRAMES, make_forecasts
from launch.reports.run_page import Run, build_page
from tests.launch.reports.pages import Page

NUM_INPUTS, NUM_OUTPUTS = 3, 4


def _records(count: int = 9) -> list[dict[str, Any]]:
    """Records whose error grows with the step, and from sequence to sequence."""
    steps = np.arange(1, NUM_OUTPUTS + 1)
    return [
        {
            "index": index,
            "mse_frame": (index * steps).tolist(),
            "copy_mse_frame": (20 * steps).tolist(),
            "ssim": [0.5] * NUM_OUTPUTS,
        }
        for index in reversed(range(count))
    ]


class Forecaster:
    """Predicts the last frame, and knows no sequence 8."""

    def __init__(self, dtype: type = np.uint8) -> None:
        self.config = SimpleNamespace(
            horizon=(NUM_INPUTS, NUM_OUTPUTS),
            load_frames=self._load,
            in_units=lambda frames: 10 * frames,
        )
        self._dtype = dtype

    def _load(self, split: str, index: int) -> np.ndarray:
        assert split == "test"
        if index == 8:
            raise OSError("8.avi: damaged")
        shape = (NUM_INPUTS + NUM_OUTPUTS, 8, 8, 1)
        return np.random.default_rng(index).integers(0, 99, shape).astype(self._dtype)

    def predict(self, frames: np.ndarray, num_outputs: int) -> np.ndarray:
        assert frames.shape[:2] == (1, NUM_INPUTS)
        scale = 255 if frames.dtype == np.uint8 else 1
        return np.repeat(frames[:, -1:], num_outputs, axis=1).astype(np.float32) / scale


def _forecasts(dtype: type = np.uint8) -> Any:
    return make_forecasts(_records(), "test", Forecaster(dtype))


def test_the_errors_are_means_over_sequences_at_each_step() -> None:
    found = _forecasts()
    assert [(tile.name, tile.value, tile.copied) for tile in found.tiles] == [
        ("squared error a frame", 4 * 2.5, 20 * 2.5),
        ("SSIM", 0.5, None),
    ]
    chart = found.charts[0]
    assert [(line.split, line.last) for line in chart.lines] == [
        ("predicted", "16"),
        ("last frame repeated", "80"),
    ]
    assert "predicted 4 at 1, 8 at 2, 12 at 3, 16 at 4" in chart.description
    assert found.limits is None


def test_sequences_are_the_median_ones_and_the_worst() -> None:
    typical, worst = _forecasts().selections
    assert [strip.index for strip in typical.strips] == [3, 4, 5]
    assert [strip.index for strip in worst.strips] == [7, 8]
    assert worst.strips[1].problem == "could not be loaded: 8.avi: damaged"
    strip = typical.strips[0]
    assert [frame.number for frame in strip.given[0].frames] == [-2, -1, 0]
    assert [row.name for row in strip.rows] == ["truth", "prediction", "difference"]
    assert [frame.number for frame in strip.rows[0].frames] == [1, 2, 3, 4]
    assert strip.errors == (3.0, 6.0, 9.0, 12.0)
    assert strip.given[0].frames[0].width == 64


def test_long_rows_show_some_frames_and_fields_their_limits() -> None:
    records = [{"index": 0, "mse_frame": [1.0] * 40, "copy_mse_frame": [2.0] * 40}]
    forecaster: Any = Forecaster(np.float32)
    forecaster.config.load_frames = lambda split, index: (
        np.linspace(-1, 3, 43, dtype=np.float32).reshape(43, 1, 1, 1).repeat(8, 1).repeat(8, 2)
    )
    found = make_forecasts(records, "test", forecaster)
    numbers = [frame.number for frame in found.selections[0].strips[0].rows[0].frames]
    assert len(numbers) == MAX_FRAMES
    # Evenly spaced, as the steps are.
    ticks = {int(tick.text): tick.position for tick in found.charts[0].x_ticks}
    assert ticks == {step: pytest.approx(100 * (step - 1) / 39, abs=0.01) for step in ticks}
    assert len(ticks) > 2
    assert (numbers[0], numbers[-1]) == (1, 40)
    assert found.limits == pytest.approx((-10, 30))


def _page(**values: Any) -> Page:
    run = Run(
        experiment="experiments/conv_lstm.py",
        workdir="runs/a",
        config={"best_metric": "mse_frame"},
        metrics=[{"step": 5, "split": "train", "mse_frame": 30.0}],
        split="test",
        predictions=_records(),
        **values,
    )
    return Page(build_page(run))


def test_the_page_shows_truth_beside_prediction() -> None:
    page = _page(forecasts=_forecasts())
    pictures = page.attributes("img", "alt")
    assert len(pictures) == 4 * (NUM_INPUTS + 3 * NUM_OUTPUTS)
    assert pictures.count("truth, frame 2") == pictures.count("prediction, frame 2") == 4
    assert all(str(source).startswith("data:image/png") for source in page.attributes("img", "src"))
    text = page.text.replace("\u00a0", " ")
    assert "test squared error a frame 10 last frame repeated: 50; mean over 9 sequences" in text
    assert "Squared error a frame predicted 16 last frame repeated 80" in text
    assert "could not be loaded: 8.avi: damaged" in text
    assert "Confusion" not in text
    assert "Black is" not in text
    assert "Black is 0 and white 980 " in _page(forecasts=_forecasts(np.float32)).text


def test_without_data_the_errors_remain() -> None:
    found = make_forecasts(_records(), "test", None)
    page = _page(forecasts=found)
    assert page.attributes("img", "alt") == []
    assert "Error over the horizon" in page.text
