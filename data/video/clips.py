"""Clips of videos: the choice of their frames, the source of files, and the decoding transform."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from data.batches import UNKNOWN_LABEL, VideoExample
from data.features import digest_file
from data.video.decoding import VideoError, VideoInfo, decode, decode_all, probe
from data.video.transforms import SpatialTransform, pad_clip


class ClipSampler(Protocol):
    """Clip-sampler interface; a video that is too short yields a shorter clip."""

    @property
    def num_frames(self) -> int:
        """T, greatest number of frames in a clip."""

    def sample(
        self, num_video_frames: int, rate: float, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Returns the frame numbers of one clip.

        Args:
            num_video_frames: number of frames in the video, at least 1.
            rate: frames/s of the video.
            rng: random numbers for training; None takes the middle.

        Returns:
            (T',) int64 in [0, num_video_frames), ascending, 1 <= T' <= ``num_frames``.
        """

    def views(self, num_video_frames: int, rate: float, num_views: int) -> np.ndarray:
        """Returns the frame numbers of V = ``num_views`` evenly spaced clips, for test.

        Returns:
            (V,T') int64 in [0, num_video_frames), each row ascending.
        """


@dataclass(frozen=True)
class UniformClip:
    """Sampler over the whole video: one frame of each of ``num_frames`` equal segments.

    In training a random frame of each segment (TSN, Wang et al., 2016, arXiv:1608.00859,
    section 3.1), otherwise the middle one.

    >>> UniformClip(4).sample(20, rate=25.0)
    array([ 2,  7, 12, 17])

    Attributes:
        num_frames: T, the number of segments, at least 1.
    """

    num_frames: int

    def __post_init__(self) -> None:
        _check_positive("num_frames", self.num_frames)

    def sample(
        self, num_video_frames: int, rate: float, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Returns one clip as ``ClipSampler.sample``; ``rate`` is not used."""
        edges = self._edges(num_video_frames)
        if rng is None:
            return (edges[:-1] + edges[1:] - 1) // 2
        return rng.integers(edges[:-1], edges[1:])

    def views(self, num_video_frames: int, rate: float, num_views: int) -> np.ndarray:
        """Returns clips as ``ClipSampler.views``; view v is at (v + 1/2) / V of each segment."""
        _check_positive("num_views", num_views)
        edges = self._edges(num_video_frames)
        share = (np.arange(num_views) + 0.5)[:, None] / num_views
        return edges[:-1] + np.floor(share * np.diff(edges)).astype(np.int64)

    def _edges(self, num_video_frames: int) -> np.ndarray:
        _check_positive("num_video_frames", num_video_frames)
        segments = min(self.num_frames, num_video_frames)
        return np.arange(segments + 1, dtype=np.int64) * num_video_frames // segments


@dataclass(frozen=True)
class DenseClip:
    """Sampler of a window of the video at a constant frame rate.

    In training the window starts at a random frame; otherwise it is the middle one.

    >>> DenseClip(4, stride=2).sample(20, rate=25.0)
    array([ 6,  8, 10, 12])

    Attributes:
        num_frames: T, at least 1.
        stride: takes every ``stride``-th frame of the video, whatever its rate.
        rate: frames/s of the clip, in place of ``stride``, so that videos of several rates agree;
            frames of a slower video are repeated.
    """

    num_frames: int
    stride: int = 1
    rate: float | None = None

    def __post_init__(self) -> None:
        _check_positive("num_frames", self.num_frames)
        _check_positive("stride", self.stride)
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"rate: expected more than 0 frames/s, received {self.rate}")
        if self.rate is not None and self.stride != 1:
            raise ValueError(
                f"expected stride or rate, received both: stride {self.stride}, rate {self.rate}"
            )

    def sample(
        self, num_video_frames: int, rate: float, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Returns one clip as ``ClipSampler.sample``."""
        offsets, last_start = self._window(num_video_frames, rate)
        start = last_start // 2 if rng is None else rng.integers(last_start + 1)
        return start + offsets

    def views(self, num_video_frames: int, rate: float, num_views: int) -> np.ndarray:
        """Returns clips as ``ClipSampler.views``, from the first window to the last."""
        _check_positive("num_views", num_views)
        offsets, last_start = self._window(num_video_frames, rate)
        if num_views == 1:
            return (last_start // 2 + offsets)[None]
        starts = np.arange(num_views, dtype=np.int64) * last_start // (num_views - 1)
        return starts[:, None] + offsets

    def _window(self, num_video_frames: int, rate: float) -> tuple[np.ndarray, int]:
        """Returns the frames' offsets from the window's start, and the last possible start."""
        _check_positive("num_video_frames", num_video_frames)
        if self.rate is not None and not rate > 0:
            raise ValueError(f"rate: expected the video's frames/s, received {rate}")
        step = self.stride if self.rate is None else rate / self.rate
        offsets = np.floor(np.arange(self.num_frames) * step + 1e-6).astype(np.int64)
        offsets = offsets[offsets < num_video_frames]
        return offsets, num_video_frames - 1 - int(offsets[-1])


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, received {value}")


class VideoReader(Protocol):
    """Interface of what gives the images of a path: its frames, or its optical flow; picklable.

    The methods raise ``FileNotFoundError`` or ``VideoError`` where there is nothing to read.
    """

    def probe(self, path: str) -> VideoInfo:
        """Returns number, rate and size of the images of a path."""

    def decode(
        self, path: str, frames: Sequence[int] | np.ndarray, *, short_side: int | None = None
    ) -> np.ndarray:
        """Returns chosen images as ``data.video.decoding.decode``, (T,H,W,3) uint8."""

    def decode_all(self, path: str, *, short_side: int | None = None) -> Iterator[np.ndarray]:
        """Yields all images in order, each (H,W,3) uint8."""

    def digest(self, path: str) -> str:
        """Returns a SHA-256 of what the images are read from."""


@dataclass(frozen=True)
class VideoFiles:
    """Reader of video files (``data.video.decoding``)."""

    def probe(self, path: str) -> VideoInfo:
        """Returns the properties of a file."""
        return probe(path)

    def decode(
        self, path: str, frames: Sequence[int] | np.ndarray, *, short_side: int | None = None
    ) -> np.ndarray:
        """Returns chosen frames of a file, (T,H,W,3) uint8."""
        return decode(path, frames, short_side=short_side)

    def decode_all(self, path: str, *, short_side: int | None = None) -> Iterator[np.ndarray]:
        """Yields all frames of a file, each (H,W,3) uint8."""
        return decode_all(path, short_side=short_side)

    def digest(self, path: str) -> str:
        """Returns the SHA-256 of a file."""
        return digest_file(path)


VIDEO_FILES = VideoFiles()


class FileRecord(TypedDict):
    """One file of a ``FileSource``, with its label (-1: unknown) and its index."""

    path: str
    label: int
    index: int
    reader: NotRequired[VideoReader]
    """Of a video; absent: ``VIDEO_FILES``."""


@dataclass(frozen=True)
class FileSource:
    """Random access to files and their labels, undecoded.

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

    def __getitem__(self, index: int, /) -> FileRecord:
        label = UNKNOWN_LABEL if self.labels is None else self.labels[index]
        return FileRecord(path=self.paths[index], label=label, index=index)


@dataclass(frozen=True)
class VideoSource(FileSource):
    """Random access to videos and their labels, undecoded.

    Attributes:
        reader: gives the images of each path: of video files by default, of folders of frames
            (``data.video.frame_folders``), or optical flow in their place (``data.video.flow``).
    """

    reader: VideoReader = VIDEO_FILES

    def __getitem__(self, index: int, /) -> FileRecord:
        return {**super().__getitem__(index), "reader": self.reader}

    def explain(self, index: int) -> str:
        """Returns why video ``index`` cannot be decoded, by decoding all of it."""
        path, reader = self.paths[index], self.reader
        return explain_failure(
            path, lambda: reader.decode(path, [reader.probe(path).num_frames - 1])
        )


def explain_failure(path: str, read: Callable[[], object]) -> str:
    """Returns why a video cannot be read, by calling ``read`` once more."""
    try:
        read()
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

    def __call__(self, record: FileRecord, rng: np.random.Generator) -> VideoExample:
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

    def explain(self, record: FileRecord) -> str:
        """Returns why the video of ``record`` cannot be decoded as this transform does."""
        if self.train:
            rng = np.random.default_rng(0)
            return explain_failure(record["path"], lambda: self._train_clip(record, rng))
        return explain_failure(record["path"], lambda: self._views(record))

    def _train_clip(
        self, record: FileRecord, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        reader = record.get("reader", VIDEO_FILES)
        info = reader.probe(record["path"])
        frames = self.sampler.sample(info.num_frames, info.rate, rng)
        clip = reader.decode(record["path"], frames, short_side=self.short_side)
        return pad_clip(self.transform(clip, rng), self.sampler.num_frames)

    def _views(self, record: FileRecord) -> tuple[np.ndarray, np.ndarray]:
        reader = record.get("reader", VIDEO_FILES)
        info = reader.probe(record["path"])
        if self.num_clips == 1:
            frames = self.sampler.sample(info.num_frames, info.rate)[None]
        else:
            frames = self.sampler.views(info.num_frames, info.rate, self.num_clips)
        clips = reader.decode(record["path"], frames.ravel(), short_side=self.short_side)
        views = [
            pad_clip(view, self.sampler.num_frames)
            for clip in np.split(clips, self.num_clips)
            for view in self.transform.test_views(clip)
        ]
        if len(views) == 1:
            return views[0]
        videos, lengths = zip(*views, strict=True)
        return np.stack(videos), np.stack(lengths)
