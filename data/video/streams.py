"""Streams of images of whole videos for a frozen encoder, and clips cut from its features."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data.batches import UNKNOWN_LABEL, VideoExample
from data.video.clips import VideoSource
from data.video.decoding import VideoError, decode, probe
from data.video.motion import difference_images, grey, motion_centre, square_around
from data.video.transforms import Crop

STREAMS = ("rgb_whole", "rgb_square", "difference_whole", "difference_square")
"""``rgb`` or ``difference`` images (``data.video.motion``) of the ``whole`` frame, resized without
regard to its aspect ratio, or of the full-height ``square`` around the clip's motion."""


@dataclasses.dataclass(frozen=True)
class StreamSource:
    """Random access to videos as images of S streams, each plain and mirrored.

    Attributes:
      videos: the files and their labels.
      streams: S members of ``STREAMS``.
      num_steps: T, number of images, spread evenly over a video.
      size: height and width of the images, pixels.
      gap: distance of the subtracted frames, frames.
    """

    videos: VideoSource
    streams: tuple[str, ...]
    num_steps: int = 32
    size: int = 224
    gap: int = 8

    def __post_init__(self) -> None:
        unknown = [stream for stream in self.streams if stream not in STREAMS]
        if unknown or not self.streams:
            raise ValueError(
                f"streams: expected some of {', '.join(STREAMS)}, received {self.streams}"
            )

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int, /) -> VideoExample:
        """Returns example ``index``: ``video`` (2·S,T,size,size,3) uint8 and the other entries.

        View 2s is the plain stream s, view 2s+1 the mirrored one. ``mask`` is False if the video
        cannot be decoded.
        """
        shape = (2 * len(self.streams), self.num_steps, self.size, self.size, 3)
        record = self.videos[index]
        path, label = record["path"], record["label"]
        try:
            video = decode(path, np.arange(probe(path).num_frames))
            images, readable = self.images(video), True
        except (VideoError, FileNotFoundError):
            images, readable, label = np.zeros(shape, np.uint8), False, UNKNOWN_LABEL
        return VideoExample(
            video=images,
            lengths=np.full(len(images), self.num_steps, np.int32),
            label=np.asarray(label, np.int32),
            mask=np.asarray(readable),
            index=np.asarray(index, np.int32),
        )

    def images(self, video: np.ndarray) -> np.ndarray:
        """Returns the views (2·S,T,size,size,3) uint8 of a whole video (T',H,W,3) uint8."""
        times = segment_centres(self.num_steps, len(video))
        luma = grey(video)
        centre = motion_centre(luma, gap=self.gap)
        views = []
        for stream in self.streams:
            content, _, view = stream.partition("_")
            x = video[times] if content == "rgb" else difference_images(luma, times, gap=self.gap)
            if view == "square":
                x = square_around(x, centre)
            height, width = x.shape[1:3]
            plain = Crop(0, 0, height, width).apply(x, (self.size, self.size))
            views += [plain, plain[:, :, ::-1]]
        return np.stack(views)


@dataclasses.dataclass(frozen=True)
class CutFeatures:
    """Transform that cuts clips of T steps from the cached features of a ``StreamSource``.

    Attributes:
      train: a random part of the video, mirrored with probability 1/2, with a random step in each
        of T segments; False takes fixed views.
      num_steps: T.
      max_trim: greatest share of the video cut off at each end in training.
      num_views: samplings in time at test, each both plain and mirrored.
    """

    train: bool
    num_steps: int = 16
    max_trim: float = 0.15
    num_views: int = 4

    def __call__(
        self, example: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Returns the example with ``features`` (T,S,D), or (2·num_views,T,S,D) at test, float32.

        Args:
          example: with ``features`` (2·S,T',D).
          rng: random numbers; not used at test.
        """
        features = example["features"]
        streams, available = len(features) // 2, features.shape[1]
        by_mirror = features.reshape(streams, 2, available, -1)
        if self.train:
            trim = rng.uniform(0, self.max_trim, 2)
            steps = self._steps(available, trim[0], trim[1], rng.uniform(0, 1, self.num_steps))
            clip = by_mirror[:, int(rng.integers(2)), steps]  # (S,T,D)
            clip, lengths = clip.swapaxes(0, 1), np.asarray(self.num_steps, np.int32)
        else:
            phases = (np.arange(self.num_views) + 0.5) / self.num_views
            views = [
                by_mirror[:, mirror, self._steps(available, 0.0, 0.0, phase)].swapaxes(0, 1)
                for phase in phases
                for mirror in range(2)
            ]
            clip = np.stack(views)
            lengths = np.full(len(clip), self.num_steps, np.int32)
        return {**example, "features": clip.astype(np.float32), "lengths": lengths}

    def _steps(
        self, available: int, start: float, end: float, phase: float | np.ndarray
    ) -> np.ndarray:
        share = start + (1 - start - end) * (np.arange(self.num_steps) + phase) / self.num_steps
        return np.clip((share * available).astype(int), 0, available - 1)


def segment_centres(num_steps: int, num_frames: int) -> np.ndarray:
    """Returns the middle frame of ``num_steps`` equal parts of a video, (num_steps,) int."""
    return ((np.arange(num_steps) + 0.5) / num_steps * num_frames).astype(int)


def select_examples(
    examples: Sequence[dict[str, np.ndarray]], indices: Sequence[int]
) -> list[dict]:
    """Returns the examples with these indices; their ``index`` counts from 0 again."""
    return [
        {**examples[index], "index": np.asarray(number, np.int32)}
        for number, index in enumerate(indices)
    ]
