"""Pictures of frames and their files, and the continuation of a file."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flaxnets.inference.frame_files import (
    GIVEN,
    PREDICTED,
    draw_strip,
    limits_of,
    name_files,
    to_pictures,
    write_gif,
    write_mp4,
)
from flaxnets.inference.trained_forecaster import TrainedForecaster


def test_pictures_show_images_and_fields() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(1, 4, 6, 1)
    assert np.array_equal(to_pictures(images)[..., 0], images[..., 0])
    colour = np.arange(72, dtype=np.uint8).reshape(1, 4, 6, 3)
    assert np.array_equal(to_pictures(colour), colour)
    # Predictions of images, also those out of range.
    shares = np.array([-0.5, 0.0, 0.5, 1.0, 2.0], np.float32).reshape(1, 1, 5, 1)
    assert to_pictures(shares)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
    # Fields: the first channel, between its least and greatest value.
    fields = np.stack([np.linspace(-3, 1, 5), np.full(5, 99)], -1).reshape(1, 1, 5, 2)
    assert limits_of(fields) == (-3.0, 1.0)
    assert limits_of(images, shares) == (0.0, 1.0)
    assert to_pictures(fields, (-3.0, 1.0))[0, 0, :, 0].tolist() == [0, 64, 128, 191, 255]
    assert to_pictures(np.zeros((1, 2, 2, 1)), (0.0, 0.0)).max() == 0


def test_borders_and_repeated_pixels_keep_the_content() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 1), np.uint8)
    pictures = to_pictures(images, least_side=12, border=PREDICTED)
    assert pictures.shape == (2, 15 + 5, 21 + 5, 3)
    assert np.array_equal(pictures[:, 3:17:3, 3:23:3, 0], images[..., 0])
    for edge in (pictures[:, :2], pictures[:, -2:], pictures[:, :, :2], pictures[:, :, -2:]):
        assert (edge == PREDICTED).all()


def test_a_strip_has_a_row_for_each_kind() -> None:
    given, predicted = (np.full((n, 4, 6, 3), n, np.uint8) for n in (2, 3))
    strip = np.asarray(draw_strip([given, predicted]))
    assert strip.shape == (8, 18, 3)
    assert (strip[:4, :12] == 2).all()
    assert (strip[:4, 12:] == 255).all()
    assert (strip[4:] == 3).all()


def test_films_show_all_frames(tmp_path: Path) -> None:
    levels = np.arange(40, 240, 40, np.uint8)
    pictures = np.ones((5, 36, 48, 3), np.uint8) * levels[:, None, None, None]
    write_mp4(tmp_path / "a.mp4", pictures)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == 10
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.abs(np.stack(frames).astype(int) - pictures).max() <= 6
    write_gif(tmp_path / "a.gif", pictures)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 5  # type: ignore[attr-defined]
        assert image.info["duration"] == 100
        image.seek(3)
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - 160).max() <= 2


class Brighter:
    """Task whose prediction k is the last frame, k steps brighter."""

    def predict(self, model: Any, variables: Any, frames: Any, num_outputs: int) -> Any:
        assert frames.shape[-1] == 1, "a layer of one channel"
        last = frames[:, -1:].astype(jnp.float32) / 255
        steps = jnp.arange(1, num_outputs + 1).reshape(1, -1, 1, 1, 1)
        return last + variables["step"] * steps


class Config:
    """Configuration whose files are the arrays of NumPy."""

    name = "brighter"
    horizon = (3, 2)
    frame_shape = (8, 6, 1)

    def make_prediction_task(self) -> Brighter:
        return Brighter()

    def read_frames(self, path: str) -> np.ndarray:
        return np.load(path)[-3:]

    def load_frames(self, split: str, index: int) -> np.ndarray:
        raise NotImplementedError

    def in_units(self, frames: np.ndarray) -> np.ndarray:
        return np.round(255 * np.clip(frames, 0, 1)).astype(np.uint8)


def test_a_file_is_continued_beyond_the_horizon_of_training(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.full((4, 8, 6, 1), 51, np.uint8))
    model: Any = SimpleNamespace(config=Config(), model=None, variables={"step": jnp.array(0.11)})
    forecaster = TrainedForecaster(model)
    files = forecaster.continue_file(str(tmp_path / "in.npy"), 5, tmp_path, "out")
    assert sorted(files) == ["gif", "mp4", "npz", "png"]
    with np.load(files["npz"]) as arrays:
        assert arrays["inputs"].shape == (3, 8, 6, 1)
        assert arrays["prediction"].shape == (5, 8, 6, 1)
        assert arrays["prediction"][:, 0, 0, 0].tolist() == [79, 107, 135, 163, 191]
    with av.open(files["mp4"]) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3 + 5
    for frame, colour in ((frames[2], GIVEN), (frames[3], PREDICTED)):
        assert np.abs(frame[frame.shape[0] // 2, 0].astype(int) - colour).max() < 60
    levels = [int(frame[frame.shape[0] // 2, frame.shape[1] // 2, 0]) for frame in frames]
    assert np.abs(np.array(levels) - [51, 51, 51, 79, 107, 135, 163, 191]).max() <= 5
    with Image.open(files["png"]) as strip:
        assert strip.size == (5 * (22 * 6 + 4), 2 * (22 * 8 + 4))


def test_frames_that_the_network_cannot_read_are_told_by_their_file(tmp_path: Path) -> None:
    path = str(tmp_path / "in.npy")
    np.save(path, np.zeros((4, 8, 6, 2), np.uint8))
    model: Any = SimpleNamespace(config=Config(), model=None, variables={"step": jnp.array(0.11)})
    expected = rf"^{re.escape(path)}: expected frames \(8, 6, 1\), as in training, .*\(8, 6, 2\)"
    with pytest.raises(ValueError, match=expected):
        TrainedForecaster(model).continue_file(path, 5, tmp_path, "out")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["v/a.avi", "x/a.avi", "x/a-2.avi"], ["a", "a-3", "a-2"]),
        (["x/a-2.avi", "v/a.avi", "x/a.avi"], ["a-2", "a", "a-3"]),
        (["a.avi"] * 3 + ["a-2.npz"] * 2, ["a", "a-3", "a-4", "a-2", "a-2-2"]),
    ],
)
def test_no_continuation_takes_the_name_of_another(paths: list[str], names: list[str]) -> None:
    assert name_files(paths) == names


def test_a_run_of_another_task_is_refused() -> None:
    config = SimpleNamespace(name="lrcn", make_prediction_task=Brighter)
    model: Any = SimpleNamespace(config=config, model=None, variables={})
    with pytest.raises(ValueError, match=r"run that predicts frames.*received one of 'lrcn'"):
        TrainedForecaster(model)
