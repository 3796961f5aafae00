"""Videos in use are read by the rules of training, of which the runtime has a copy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.video import containers, decoding
from flaxnets.inference.runtime import containers as runtime_containers
from flaxnets.inference.runtime.media import MediaError, Video
from tests.data.video_files import write_video

FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    "a.avi": ("mpeg4", {}),
    "a.mp4": ("libx264", {}),
    "fragments.mp4": ("libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "a.mkv": ("libx264", {}),
    "a.webm": ("libvpx", {}),
    "a.ts": ("mpeg2video", {}),
    "a.flv": ("flv", {}),
    "a.mpg": ("mpeg2video", {}),
    "a.wmv": ("wmv2", {}),
    "a.nut": ("mpeg4", {}),
    "a.h264": ("libx264", {}),
    "a.m4v": ("mpeg4", {}),
    "a.gif": ("gif", {}),
}


def test_the_structure_of_containers_is_read_by_one_code() -> None:
    # An export holds the code that it runs, so the file stands in both packages.
    assert Path(runtime_containers.__file__).read_text() == Path(containers.__file__).read_text()


@pytest.mark.parametrize("name", FORMATS)
def test_what_training_refuses_is_not_predicted(tmp_path: Path, name: str) -> None:
    codec, options = FORMATS[name]
    pixels = "rgb8" if codec == "gif" else "yuv420p"
    path = write_video(tmp_path / name, codec=codec, options=options, pixels=pixels)
    content = path.read_bytes()
    variants = {"whole": content, "few": content[:-3]}
    for share in (0.2, 0.5, 0.8, 0.97):
        variants[f"cut at {share}"] = content[: int(len(content) * share)]
    for share in (0.3, 0.7):
        end = int(len(content) * share)
        variants[f"zeros from {share}"] = content[:end] + bytes(len(content) - end)
    hole = len(content) // 20
    middle = len(content) // 2
    variants["hole"] = content[:middle] + bytes(hole) + content[middle + hole :]
    refused = []
    for variant, written in variants.items():
        path.write_bytes(written)
        expected: Any
        found: Any
        try:
            info = decoding.probe(path)
            expected = info.num_frames, info.rate, info.height, info.width
        except decoding.VideoError:
            expected = "refused"
            refused.append(variant)
        try:
            read = Video(path).probe()
            found = read.num_frames, read.rate, read.height, read.width
        except MediaError:
            found = "refused"
        assert found == expected, variant
        if expected != "refused":
            numbers = [0, expected[0] // 2, expected[0] - 1]
            frames = [frame for _, frame in Video(path).frames(set(numbers), short_side=24)]
            kept = decoding.decode(path, numbers, short_side=24)
            np.testing.assert_array_equal(np.stack(frames), kept, err_msg=variant)
        else:
            with pytest.raises(MediaError):
                for _ in Video(path).timed_frames():
                    pass
    assert "whole" not in refused
    assert refused, "no variant is refused"
