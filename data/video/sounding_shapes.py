"""Embedded audio-visual data set: clips whose label needs both their frames and their sound.

A square moves to the right, to the left, or up, while a tone rises, falls, or holds. The label is
the pair of both, nine classes. Motion and tone are drawn independently, and of each nine successive
examples every pair occurs once: whoever sees the frames alone, or hears the sound alone, knows one
of three, and is right in at most a third of the cases (``BEST_OF_ONE_STREAM``).

Neither the place of the square nor the pitch of the tone at one moment tells the class: both are
drawn from the same range for all classes, at the middle of the clip.
"""

import operator
from pathlib import Path
from typing import Any

import av
import numpy as np

from data.audio.log_mel import LogMel, log_mel_patches
from data.batches import VideoExample

MOTIONS = ("right", "left", "up")
TONES = ("rising", "falling", "steady")
CLASSES = tuple(f"{motion}, {tone}" for motion in MOTIONS for tone in TONES)
BEST_OF_ONE_STREAM = 1 / 3
"""Greatest expected accuracy of a classifier of the frames alone, or of the sound alone."""

NUM_FRAMES, SIZE, FRAME_RATE = 8, 32, 8.0
"""Frames of a clip, their height and width in pixels, and frames/s."""
SAMPLE_RATE = 8_000
PATCH_WIDTH = 12
"""Columns of the log-mel patch around a frame."""
LOG_MEL = LogMel(SAMPLE_RATE, num_mels=24, low=125.0, high=3_800.0)

_SPLITS = ("train", "validation", "test")
_DIRECTIONS = {"right": (0, 1), "left": (0, -1), "up": (-1, 0)}
_SLOPES = {"rising": 1.0, "falling": -1.0, "steady": 0.0}


class SoundingShapes:
    """One split of the embedded data set.

    Example ``i`` depends only on (seed, split, ``i``), not on the number of examples.

    >>> clips = SoundingShapes("train", 9)
    >>> example = clips[4]
    >>> example["video"].shape, example["audio"].shape, CLASSES[int(example["label"])]
    ((8, 32, 32, 3), (8, 24, 12, 1), 'left, falling')

    Args:
      split: "train", "validation" or "test".
      num_examples: number of clips, at least 0.
      seed: of the whole data set, at least 0.

    Raises:
      ValueError: the split is unknown, or ``num_examples`` or ``seed`` is negative.
    """

    class_names: tuple[str, ...] = CLASSES

    def __init__(self, split: str = "train", num_examples: int = 900, seed: int = 0) -> None:
        if split not in _SPLITS:
            raise ValueError(f"split: expected one of {', '.join(_SPLITS)}, received {split!r}")
        for name, value in (("num_examples", num_examples), ("seed", seed)):
            if value < 0:
                raise ValueError(f"{name}: expected at least 0, received {value}")
        self.split, self.num_examples, self.seed = split, num_examples, seed

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"SoundingShapes({self.split!r}, {self.num_examples}, seed={self.seed})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON."""
        return {
            "class_names": list(self.class_names),
            "split": self.split,
            "num_examples": self.num_examples,
            "clip_seed": self.seed,
        }

    def __getitem__(self, index: int, /) -> VideoExample:
        """Returns example ``index``, 0..len-1, with ``video`` and ``audio``.

        ``video`` is (8,32,32,3) uint8, ``audio`` (8,24,12,1) float32, the log-mel patches around
        the frames.

        Raises:
          IndexError: the index is out of range.
        """
        video, samples = self.clip(index)
        times = np.arange(NUM_FRAMES) / FRAME_RATE
        patches = log_mel_patches(LOG_MEL(samples).T, times, PATCH_WIDTH, hop=LOG_MEL.hop)
        return VideoExample(
            video=video,
            audio=patches,
            lengths=np.asarray(NUM_FRAMES, np.int32),
            label=np.asarray(index % len(CLASSES), np.int32),
            mask=np.asarray(True),
            index=np.asarray(index, np.int32),
        )

    def clip(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns frames (8,32,32,3) uint8 and sound (8000,) float32 in [-1,1] of an example.

        The frames depend on the motion and a random stream of their own, likewise the sound.

        Raises:
          IndexError: the index is out of range.
        """
        number = operator.index(index)
        if not 0 <= number < self.num_examples:
            raise IndexError(f"index: expected 0..{self.num_examples - 1}, received {number}")
        motion, tone = divmod(number % len(CLASSES), len(TONES))
        key = (_SPLITS.index(self.split), number)
        pictures, sounds = (
            np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(*key, stream)))
            for stream in range(2)
        )
        return draw_frames(MOTIONS[motion], pictures), draw_sound(TONES[tone], sounds)


def draw_frames(motion: str, rng: np.random.Generator) -> np.ndarray:
    """Returns a square in a motion of ``MOTIONS`` before noise, (8,32,32,3) uint8."""
    side = int(rng.integers(6, 11))
    middle = rng.uniform(0.5 * side + 4, SIZE - 0.5 * side - 4, 2)  # At half time, pixels.
    step = rng.uniform(1.5, 3.0)  # pixels a frame
    colour = rng.integers(140, 256, 3)
    frames = rng.integers(0, 90, (NUM_FRAMES, SIZE, SIZE, 3))
    for time in range(NUM_FRAMES):
        shift = (time - (NUM_FRAMES - 1) / 2) * step
        corner = middle + shift * np.array(_DIRECTIONS[motion]) - side / 2
        top, left = (round(float(value)) for value in corner)
        frames[time, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = colour
    return frames.astype(np.uint8)


def draw_sound(tone: str, rng: np.random.Generator) -> np.ndarray:
    """Returns a tone of ``TONES`` in noise, one second, (8000,) float32 in [-1,1]."""
    seconds = np.arange(round(NUM_FRAMES / FRAME_RATE * SAMPLE_RATE)) / SAMPLE_RATE
    octaves = rng.uniform(0.8, 1.4) * _SLOPES[tone] * (seconds / seconds[-1] - 0.5)
    pitch = 2 ** rng.uniform(np.log2(500), np.log2(1200)) * 2**octaves  # Hz
    phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    noise = rng.normal(0, 0.02, len(seconds))
    return (rng.uniform(0.2, 0.8) * np.sin(phase) + noise).clip(-1, 1).astype(np.float32)


def write_clips(clips: SoundingShapes, folder: str | Path) -> list[Path]:
    """Writes clips as videos with sound, ``FOLDER/CLASS/NUMBER.mkv``, and returns their paths.

    Pictures are lossless (FFV1) and the sound is not compressed, so that the files hold the clips.
    """
    paths = []
    for index in range(len(clips)):
        path = Path(folder, CLASSES[index % len(CLASSES)].replace(", ", "_"), f"{index:04d}.mkv")
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, *clips.clip(index))
        paths.append(path)
    return paths


def _write(path: Path, video: np.ndarray, samples: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        pictures: Any = container.add_stream("ffv1", rate=round(FRAME_RATE))
        pictures.height, pictures.width, pictures.pix_fmt = *video.shape[1:3], "bgr0"
        sound: Any = container.add_stream("pcm_s16le", rate=SAMPLE_RATE)
        sound.layout = "mono"
        for frame in video:
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        whole = av.AudioFrame.from_ndarray(
            np.round(samples * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        whole.sample_rate = SAMPLE_RATE
        container.mux(sound.encode(whole))
        for stream in (pictures, sound):
            container.mux(stream.encode())
