"""Source of video files, and the transform that decodes one into an example."""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from data.batches import UNKNOWN_LABEL, VideoExample
from data.video.decoding import VideoError, decode, probe
from data.video.sampling import ClipSampler
from data.video.transforms import SpatialTransform, pad_clip


class VideoRecord(TypedDict):
    """One video file of a ``VideoSource``, with its label (-1: unknown) and its index."""

    path: str
    label: int
    index: int


@dataclass(frozen=True)
class VideoSource:
    """Random access to video files and their labels, undecoded.

    Attributes:
        paths: the files.
        labels: class indices >= 0; None if they are unknown (prediction).
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.paths):
            raise ValueError(
                f"labels: expected one for each of {len(self.paths)} paths, "
                f"received {len(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> VideoRecord:
        label = UNKNOWN_LABEL if self.labels is None else self.labels[index]
        return VideoRecord(path=self.paths[index], label=label, index=index)

    def explain(self, index: int) -> str:
        """Returns why video ``index`` cannot be decoded, by decoding all of it."""
        path = self.paths[index]
        try:
            decode(path, [probe(path).num_frames - 1])
        except (VideoError, FileNotFoundError) as error:
            return str(error)
        return f"{path}: decoding failed before, but succeeds now"


@dataclass(frozen=True)
class DecodeClip:
    """Decodes a record of a ``VideoSource`` into a ``VideoExample``.

    An unreadable video becomes an example with ``mask`` False, excluded from loss and metrics.

    Attributes:
        sampler: chooses the frames.
        transform: crops and resizes the frames.
        train: random frames and crops; False takes fixed ones for testing.
        num_clips: clips per video at test. If V = ``num_clips`` × ``transform.test_crops`` > 1, the
            example has a leading axis of V views, the crops of the first clip first.
        short_side: pixels to which the decoder scales the frames' short side; None does not scale.
    """

    sampler: ClipSampler
    transform: SpatialTransform
    train: bool
    num_clips: int = 1
    short_side: int | None = None

    def __post_init__(self) -> None:
        if self.num_clips < 1 or (self.train and self.num_clips != 1):
            raise ValueError(
                f"num_clips: expected 1 in training and at least 1 at test, "
                f"received {self.num_clips}"
            )

    def __call__(self, record: VideoRecord, rng: np.random.Generator) -> VideoExample:
        """Returns the example of ``record``; ``rng`` is not used at test.

        Returns:
            ``video`` (T,h,w,3) or (V,T,h,w,3) uint8 with the other entries of ``VideoExample``.
        """
        label, readable = record["label"], True
        try:
            video, lengths = self._train_clip(record, rng) if self.train else self._views(record)
        except (VideoError, FileNotFoundError):
            num_views = self.num_clips * self.transform.test_crops
            views = () if self.train or num_views == 1 else (num_views,)
            shape = (*views, self.sampler.num_frames, *self.transform.size, 3)
            video, lengths = np.zeros(shape, np.uint8), np.ones(views, np.int32)
            label, readable = UNKNOWN_LABEL, False
        return VideoExample(
            video=video,
            lengths=lengths,
            label=np.asarray(label, np.int32),
            mask=np.asarray(readable),
            index=np.asarray(record["index"], np.int32),
        )

    def _train_clip(
        self, record: VideoRecord, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        info = probe(record["path"])
        frames = self.sampler.sample(info.num_frames, info.rate, rng)
        clip = decode(record["path"], frames, short_side=self.short_side)
        return pad_clip(self.transform(clip, rng), self.sampler.num_frames)

    def _views(self, record: VideoRecord) -> tuple[np.ndarray, np.ndarray]:
        info = probe(record["path"])
        if self.num_clips == 1:
            frames = self.sampler.sample(info.num_frames, info.rate)[None]
        else:
            frames = self.sampler.views(info.num_frames, info.rate, self.num_clips)
        clips = decode(record["path"], frames.ravel(), short_side=self.short_side)
        views = [
            pad_clip(view, self.sampler.num_frames)
            for clip in np.split(clips, self.num_clips)
            for view in self.transform.test_views(clip)
        ]
        if len(views) == 1:
            return views[0]
        videos, lengths = zip(*views, strict=True)
        return np.stack(videos), np.stack(lengths)
