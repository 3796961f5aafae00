"""Videos drawn at random are read exactly, or refused for the true reason."""

import logging
from pathlib import Path

import numpy as np
import pytest

from data.video.decoding import VideoError, decode, probe
from tests.data.generated_videos import (
    CUTS,
    GeneratedVideo,
    decode_plainly,
    draw_video,
    write_generated,
)

NUM_QUICK, NUM_ALL = 24, 200

SEEDS = [
    pytest.param(seed, marks=[pytest.mark.stress] * (seed >= NUM_QUICK)) for seed in range(NUM_ALL)
]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_video_is_read_exactly_or_refused(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = draw_video(seed)
    path = write_generated(video, tmp_path)
    pictures, lost = decode_plainly(path)
    if video.damage in CUTS and _is_refused(video, path):
        return
    info = probe(path)
    expected = video.num_frames * (2 if video.damage == "joined" else 1)
    if video.damage == "joined":
        # MPEG-2's decoder drops the picture that it held back when the size changes.
        assert len(pictures) in (expected, expected - 1)
    elif video.damage in ("none", "null_frames", "hidden_frames"):
        assert len(pictures) == expected
    assert info.num_frames == len(pictures)
    assert info.rate > 0
    decoded = decode(path, range(info.num_frames))
    first = video.upright(pictures[0][None]).shape[1:]
    assert decoded.shape == (len(pictures), *first)
    assert (info.height, info.width) == first[:2]
    same_size = [n for n, picture in enumerate(pictures) if picture.shape == pictures[0].shape]
    shown = video.upright(np.stack([pictures[n] for n in same_size]))
    np.testing.assert_array_equal(decoded[same_size], shown)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) <= 1
    if video.damage == "none":
        assert not warnings
    if lost:
        assert "gave no frame" in warnings[0].getMessage()


def _is_refused(video: GeneratedVideo, path: Path) -> bool:
    """Returns False if the file says nothing of its end, so that the rest is a whole video."""
    try:
        probe(path)
    except VideoError as error:
        refused = error
    else:
        assert not video.declares_end
        return False
    assert "truncated" in refused.reason
    assert refused.path == str(path)
    return True


def test_the_draw_depends_on_the_seed_alone_and_varies(tmp_path: Path) -> None:
    videos = [draw_video(seed) for seed in range(NUM_ALL)]
    assert videos == [draw_video(seed) for seed in range(NUM_ALL)]
    for name, least in (("container", 11), ("codec", 14), ("rate", 8), ("damage", 8)):
        assert len({getattr(video, name) for video in videos}) >= least, name
    for name in ("start", "b_frames", "rotation"):
        assert len({getattr(video, name) for video in videos}) == 4 - (name == "start"), name
    (tmp_path / "again").mkdir()
    video = next(video for video in videos if video.container == "mp4" and video.rotation)
    first, again = write_generated(video, tmp_path), write_generated(video, tmp_path / "again")
    assert first.read_bytes() == again.read_bytes()
