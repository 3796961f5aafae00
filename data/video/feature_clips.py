"""Whole videos for a frozen encoder, and the clips cut from its cached features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from data.batches import UNKNOWN_LABEL, Source, VideoExample
from data.video.clips import ClipSampler, VideoSource, explain_failure
from data.video.decoding import VideoError
from data.video.transforms import SpatialTransform, pad_clip


@dataclass(frozen=True)
class WholeVideos:
    """Random access to all frames of videos, cropped as at test.

    Attributes:
      videos: the files and their labels.
      transform: part and size of the frames; with ``flip`` each video is also seen mirrored.
      short_side: pixels to which the decoder scales the frames; None leaves them.
    """

    videos: VideoSource
    transform: SpatialTransform
    short_side: int | None = None

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Returns ``video`` (V,T,h,w,3) uint8 of all T frames, V = 2 with ``transform.flip``.

        ``rate`` () float32 is the video's frames/s; the other entries are as in ``VideoExample``. A
        video that cannot be decoded gives one blank frame and ``mask`` False.
        """
        record = self.videos[index]
        label, rate, readable = record["label"], 1.0, True
        try:
            views, rate = self._read(record["path"])
        except (VideoError, FileNotFoundError):
            views = np.zeros((1 + self.transform.flip, 1, *self.transform.size, 3), np.uint8)
            label, readable = UNKNOWN_LABEL, False
        return {
            "video": views,
            "lengths": np.full(len(views), views.shape[1], np.int32),
            "rate": np.asarray(rate, np.float32),
            "label": np.asarray(label, np.int32),
            "mask": np.asarray(readable),
            "index": np.asarray(index, np.int32),
        }

    def explain(self, index: int) -> str:
        """Returns why video ``index`` cannot be read, by reading all of it."""
        path = self.videos.paths[index]
        return explain_failure(path, lambda: self._read(path))

    def _read(self, path: str) -> tuple[np.ndarray, float]:
        """Returns the views (V,T,h,w,3) uint8 and the frames/s; holds no other whole video."""
        reader = self.videos.reader
        info = reader.probe(path)
        shape = (1 + self.transform.flip, info.num_frames, *self.transform.size, 3)
        views = np.empty(shape, np.uint8)
        for t, frame in enumerate(reader.decode_all(path, short_side=self.short_side)):
            views[0, t] = self.transform.test_views(frame[None])[0, 0]
        if self.transform.flip:
            views[1] = self.transform.mirrored(views[0])
        return views, info.rate


class Explains(Protocol):
    """Source of videos that tells why one of them is unreadable."""

    def explain(self, index: int) -> str:
        """Returns why video ``index`` cannot be read."""


@dataclass(frozen=True)
class VideoFeatures:
    """Encoded videos under the labels of a list, which can explain why one is unreadable.

    Attributes:
      features: the examples.
      videos: the source that was encoded, in the same order.
      labels: class indices, in the same order; cached features may have been encoded under others.
        None: those of ``features``.
    """

    features: Source | Sequence[Mapping[str, np.ndarray]] = field(repr=False)
    videos: Explains
    labels: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        example = dict(self.features[index])
        if self.labels is not None and example["mask"]:
            example["label"] = np.asarray(self.labels[index], np.int32)
        return example

    def explain(self, index: int) -> str:
        """Returns why video ``index`` cannot be read."""
        return self.videos.explain(index)


@dataclass(frozen=True)
class FeatureClip:
    """Cuts clips from the cached features of ``WholeVideos``.

    Attributes:
      sampler: chooses the frames.
      train: a random clip of a random view; False: fixed clips of every view.
      num_clips: clips of each view at test. With more than one clip or view, the example has an
        axis of them, the views of the first clip first.
    """

    sampler: ClipSampler
    train: bool
    num_clips: int = 1

    def __call__(self, example: Mapping[str, np.ndarray], rng: np.random.Generator) -> VideoExample:
        """Returns the example with ``features`` (T,...), or (V,T,...) at test; ``rng`` trains."""
        features, rate = example["features"], float(example["rate"])
        num_frames = features.shape[1]
        if self.train:
            view = int(rng.integers(len(features)))
            frames = self.sampler.sample(num_frames, rate, rng)
            clips = [features[view, frames]]
        else:
            times = self.sampler.views(num_frames, rate, self.num_clips)
            clips = [view[frames] for frames in times for view in features]
        padded, lengths = zip(
            *(pad_clip(clip, self.sampler.num_frames) for clip in clips), strict=True
        )
        single = len(padded) == 1
        return VideoExample(
            features=padded[0] if single else np.stack(padded),
            lengths=lengths[0] if single else np.stack(lengths),
            label=example["label"],
            mask=example["mask"],
            index=example["index"],
        )
