"""Rate of reading clips of converted videos, against that of their files.

    python -m experiments.benchmarks.converted ROOT --size=112

Clips of 16 frames, spread over the whole video, are decoded and cropped as
``experiments/video_classification.py`` does to fine-tune an encoder: from the files, from the same
bytes in shards, and from JPEG frames in shards, whose short side is 240 pixels and that of the
clips. Ways take turns, video by video, in one thread; the rate is in clips a second of CPU time.
The first epoch of files counts their frames, too; shards hold the number.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.convert import convert
from data.datasets.labelled_files import read_labelled_files
from data.video.clips import DecodeClip, UniformClip, VideoSource
from data.video.transforms import SpatialTransform

EPOCHS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.converted")
    parser.add_argument("root", metavar="ROOT", help="folder of videos with labels")
    parser.add_argument("--size", type=int, default=112, help="height and width of clips, pixels")
    parser.add_argument("--frames", type=int, default=16, help="frames of a clip")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        ways = {"files": Path(options.root), "bytes in shards": Path(folder, "bytes")}
        # In a process of its own: this one shall not know yet how many frames the files have.
        convert(options.root, ways["bytes in shards"], workers=1)
        for side in sorted({240, options.size}):
            ways[f"JPEG frames of {side} pixels"] = path = Path(folder, str(side))
            convert(options.root, path, frames="jpeg", short_side=side, workers=1)
        rates = measure(ways, options.size, options.frames)
        sizes = {name: _size(path) for name, path in ways.items()}
    print("| read from | MB | clips/s, first epoch | later | times as fast as files |")
    print("| --- | --- | --- | --- | --- |")
    for name, (first, later) in rates.items():
        ratio = later / rates["files"][1]
        ratios = f"{first / rates['files'][0]:.2f}, later {ratio:.2f}"
        print(f"| {name} | {sizes[name] / 1e6:.1f} | {first:.1f} | {later:.1f} | {ratios} |")
    return 0


def measure(ways: Mapping[str, Path], size: int, num_frames: int) -> dict[str, tuple[float, float]]:
    """Returns clips a second of CPU time in the first epoch, and in later ones, of each folder.

    Raises:
      ValueError: shards of bytes give other clips than the files.
    """
    transform = DecodeClip(
        UniformClip(num_frames),
        SpatialTransform((size, size), keep_aspect=False),
        train=True,
        short_side=size,
    )
    found = {name: read_labelled_files(path) for name, path in ways.items()}
    sources = {name: VideoSource(files.paths, files.labels) for name, files in found.items()}
    count = len(sources["files"])
    seconds = {name: np.zeros((EPOCHS, count)) for name in ways}
    for epoch in range(EPOCHS):
        for index in range(count):
            clips: dict[str, Any] = {}
            for name, source in sources.items():
                begin = time.process_time()
                clips[name] = transform(source[index], np.random.default_rng((epoch, index)))
                seconds[name][epoch, index] = time.process_time() - begin
            if not np.array_equal(clips["files"]["video"], clips["bytes in shards"]["video"]):
                raise ValueError(f"{sources['files'].paths[index]}: its bytes give another clip")
    return {
        name: (count / spent[0].sum(), (EPOCHS - 1) * count / spent[1:].sum())
        for name, spent in seconds.items()
    }


def _size(folder: Path) -> int:
    return sum(
        os.path.getsize(os.path.join(parent, name))
        for parent, _, names in os.walk(folder)
        for name in names
    )


if __name__ == "__main__":
    sys.exit(main())
