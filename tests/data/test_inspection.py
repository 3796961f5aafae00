"""Properties of files: videos are decoded once, and any file whatever gives a row."""

import io
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.inspection import (
    Inspection,
    inspect_all,
    inspect_image,
    inspect_sound,
    inspect_video,
)
from data.video.decoding import VideoError, probe, survey
from tests.data.audio.wavs import write_wav
from tests.data.video_files import frame_numbers, truncate, write_video


@pytest.mark.parametrize(
    ("num_frames", "num_pictures", "expected"),
    [
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (20, 2, [4, 14]),
        (3, 6, [0, 0, 1, 1, 2, 2]),
        (1, 4, [0, 0, 0, 0]),
    ],
)
def test_pictures_of_a_survey_are_spread_over_the_video(
    num_frames: int, num_pictures: int, expected: list[int], tmp_path: Path
) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames, size=(64, 80), b_frames=2)
    found = survey(path, num_pictures, short_side=32)
    assert found.info == probe(path)
    assert (found.container.split(",")[0], found.codec) == ("mov", "mpeg4")
    assert found.pictures.shape == (num_pictures, 32, 40, 3)
    # Exact where all frames are candidates, else within half the distance of two of these.
    off = 0 if num_frames <= 4 * num_pictures else num_frames / (4 * num_pictures)
    assert np.abs(frame_numbers(found.pictures) - expected).max() <= off


def test_a_survey_refuses_what_a_probe_refuses(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi")
    truncate(path, 5)
    with pytest.raises(VideoError) as probed:
        probe(path)
    with pytest.raises(VideoError) as surveyed:
        survey(path)
    assert str(surveyed.value) == str(probed.value)


def test_properties_of_a_video_and_of_an_image(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.avi", 20, size=(48, 64), rate=25)
    found = inspect_video(str(video))
    assert (found.num_frames, found.rate, found.height, found.width) == (20, 25, 48, 64)
    assert found.seconds == pytest.approx(0.8)
    assert found.codec == "mpeg4 in avi"
    assert found.num_bytes == video.stat().st_size
    assert found.signature is not None
    assert found.signature.shape == (8, 16, 16)

    image = Image.new("RGB", (40, 30), (200, 10, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "a.png", "JPEG", exif=exif)
    found = inspect_image(str(tmp_path / "a.png"))
    assert (found.error, found.codec, found.height, found.width) == ("", "JPEG", 40, 30)
    assert found.signature is not None
    assert found.signature.shape == (1, 16, 16)


@pytest.mark.parametrize("inspect", [inspect_video, inspect_image])
def test_a_file_that_cannot_be_read_is_a_row_with_the_reason(
    inspect: Callable[[str], Inspection], tmp_path: Path
) -> None:
    (tmp_path / "text.avi").write_text("no media")
    (tmp_path / "empty.avi").touch()
    os.mkfifo(tmp_path / "pipe.avi")
    (tmp_path / "link.avi").symlink_to("nowhere")
    for name in ("text.avi", "empty.avi", "pipe.avi", "link.avi", "none.avi", "."):
        found = inspect(str(tmp_path / name))
        assert found.error
        assert str(tmp_path) + "/text" not in found.error
        assert "\n" not in found.error
        assert found.signature is None


def media() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        video = write_video(Path(folder) / "a.mp4", 6).read_bytes()
    image = io.BytesIO()
    Image.effect_noise((40, 30), 60).save(image, "JPEG")
    return {"video": video, "image": image.getvalue()}


MEDIA = media()


@given(
    kind=st.sampled_from(["video", "image"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=20),
    end=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_damage_never_raises(kind: str, changes: list[tuple[float, int]], end: float) -> None:
    content = bytearray(MEDIA[kind])
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content[: max(1, int(end * len(content)))])
        for inspect in (inspect_video, inspect_image):
            found = inspect(str(path))
            assert (found.signature is None) == bool(found.error)


def test_every_file_is_inspected_once_and_few_at_a_time() -> None:
    waiting: list[int] = []

    def inspect(path: str) -> Inspection:
        return Inspection(num_bytes=int(path))

    with ThreadPoolExecutor(3) as executor:
        submit = executor.submit

        def count(*arguments: object) -> object:
            waiting.append(executor._work_queue.qsize())
            return submit(*arguments)

        executor.submit = count  # type: ignore[assignment, method-assign]
        found = dict(inspect_all([str(i) for i in range(200)], inspect, executor, ahead=5))
    assert {index: row.num_bytes for index, row in found.items()} == {i: i for i in range(200)}
    assert max(waiting) <= 5


def test_properties_of_a_sound(tmp_path: Path) -> None:
    samples = np.stack([np.linspace(-0.5, 0.25, 4_410), np.linspace(0, 0.25, 4_410)], axis=1)
    path = write_wav(tmp_path / "a.wav", samples, 44_100)
    found = inspect_sound(path)
    assert (found.error, found.num_frames, found.rate, found.channels) == ("", 4_410, 44_100, 2)
    assert found.seconds == pytest.approx(0.1)
    assert found.peak == pytest.approx(0.25, abs=1e-4)  # Of the mean of the channels.
    assert found.codec == "pcm_s16le in wav"
    assert found.describe()["channels"] == 2
    Path(path).write_bytes(b"")
    assert inspect_sound(path).error.startswith("its sound is not readable")
    assert inspect_sound(str(tmp_path / "b.wav")).num_bytes == -1
