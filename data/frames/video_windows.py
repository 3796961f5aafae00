"""Windows of videos: all runs of T frames of the videos in a folder, in one size.

Folders of splits are kept (``train``, ``validation`` or ``val``, ``test``, anywhere in the path
below the root); otherwise whole videos are drawn, or each video is cut in time.
"""

import dataclasses
import itertools
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data.batches import FrameExample
from data.datasets.labelled_files import FOREIGN, VIDEO_ENDINGS
from data.datasets.list_file import SPLIT_NAMES
from data.files import normal_name
from data.frames.sequences import SPLITS, frame_example
from data.loader import available_cpus, describe_examples
from data.series.sequences import check_index
from data.video.clips import explain_failure
from data.video.decoding import VideoError, decode, decode_all, probe
from data.video.streams import grey
from data.video.transforms import SpatialTransform

SPLIT_KINDS = ("video", "time")
"""By whole videos, or each video cut into consecutive parts."""
CACHE_BYTES = 2**30
"""Default of the memory for resized videos; videos beyond it are decoded for each window."""

_NAMES_TOLD = 3
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FrameFormat:
    """Form of the frames of videos: size and colour.

    A frame of another aspect ratio is cut to the centre.

    Attributes:
        height: pixels, at least 1.
        width: pixels, at least 1.
        grey: one channel, luma, in place of RGB.
    """

    height: int
    width: int
    grey: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H,W,C) of the frames."""
        return self.height, self.width, 1 if self.grey else 3

    def __call__(self, video: np.ndarray) -> np.ndarray:
        """Returns frames (T,h,w,3) uint8, RGB, as (T,H,W,C) uint8."""
        resized = SpatialTransform((self.height, self.width))(video)
        return np.round(grey(resized)).astype(np.uint8)[..., None] if self.grey else resized

    def read_last(self, path: str | Path, num_frames: int, stride: int) -> np.ndarray:
        """Returns the last frames of a video, (T,H,W,C) uint8.

        Args:
            path: the video.
            num_frames: T.
            stride: frames of the video from one to the next.

        Raises:
            FileNotFoundError: there is no such file.
            VideoError: it cannot be decoded.
            ValueError: it is too short.
        """
        count = probe(path).num_frames
        span = (num_frames - 1) * stride + 1
        if count < span:
            raise ValueError(
                f"{path}: expected at least the {span} frames that {num_frames} inputs at stride "
                f"{stride} span, received {count}"
            )
        return self(decode(path, count - span + stride * np.arange(num_frames)))


@dataclasses.dataclass(frozen=True)
class Videos:
    """Videos of a folder with their numbers of frames; equal positions belong together.

    Attributes:
        paths: the files.
        names: path of each file relative to the root, "/" between folders, in NFC.
        splits: "train", "validation" or "test" of each; "" of those outside such folders.
        num_frames: of each video; 0 of one that cannot be decoded.
        reasons: why a video cannot be decoded, by its position.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    splits: tuple[str, ...]
    num_frames: tuple[int, ...]
    reasons: Mapping[int, str]


def find_videos(root: str | os.PathLike[str]) -> Videos:
    """Returns the videos of a folder and of those below it, by name; decodes each once, to count.

    Raises:
        FileNotFoundError: there is no such folder, or no video in it.
        ValueError: some videos stand in folders of splits and others do not.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder of videos, which does not exist")
    found = sorted(
        (normal_name(os.path.relpath(path, folder)).replace(os.sep, "/"), path)
        for path in _walk(folder)
    )
    if not found:
        raise FileNotFoundError(
            f"{root}: expected videos ({', '.join(VIDEO_ENDINGS[:4])}, …), received none"
        )
    names, paths = zip(*found, strict=True)
    splits = tuple(map(_split_of, names))
    if any(splits) and not all(splits):
        raise ValueError(
            f"{root}: expected all videos in folders of splits (train, validation, test) or none, "
            f"received {names[splits.index('')]} outside of them"
        )
    with ThreadPoolExecutor(available_cpus()) as pool:
        counts = list(pool.map(_count_frames, paths))
    reasons = {i: count for i, count in enumerate(counts) if isinstance(count, str)}
    if reasons:
        _logger.warning(
            "%d of %d videos cannot be decoded and are skipped: %s",
            len(reasons),
            len(paths),
            "; ".join(itertools.islice(reasons.values(), _NAMES_TOLD)),
        )
    return Videos(
        paths, names, splits, tuple(0 if isinstance(n, str) else n for n in counts), reasons
    )


@dataclasses.dataclass(frozen=True)
class Section:
    """Frames ``begin`` to ``end`` (exclusive) of video ``video``."""

    video: int
    begin: int
    end: int


def split_videos(
    videos: Videos,
    *,
    split_by: str = "video",
    shares: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> dict[str, tuple[Section, ...]]:
    """Returns the sections of each split; folders of splits come before ``split_by``.

    Args:
        videos: of one folder.
        split_by: "video": whole videos are drawn; "time": each is cut into consecutive parts.
        shares: of train, validation and, if there are three, test; above 0, their sum at most 1.
        seed: of the draw, which depends on the names of the videos and not on their order.

    Raises:
        ValueError: an unknown way, shares out of range, or too few videos.
    """
    if split_by not in SPLIT_KINDS:
        raise ValueError(
            f"split_by: expected one of {', '.join(SPLIT_KINDS)}, received {split_by!r}"
        )
    check_shares(shares)
    names = SPLITS[: len(shares)]
    readable = [i for i, count in enumerate(videos.num_frames) if count]
    if not readable:
        raise ValueError(
            f"root: expected videos that can be decoded, received {len(videos.paths)} that cannot: "
            f"{next(iter(videos.reasons.values()))}"
        )
    if any(videos.splits):
        whole = {split: [i for i in readable if videos.splits[i] == split] for split in SPLITS}
    elif split_by == "video":
        whole = _draw_videos([videos.names[i] for i in readable], readable, names, shares, seed)
    else:
        sections: dict[str, list[Section]] = {name: [] for name in names}
        for video in readable:
            for name, (begin, end) in zip(
                names, cut_in_time(videos.num_frames[video], shares), strict=True
            ):
                sections[name].append(Section(video, begin, end))
        return {name: tuple(found) for name, found in sections.items()}
    return {
        split: tuple(Section(i, 0, videos.num_frames[i]) for i in members)
        for split, members in whole.items()
        if members
    }


class VideoWindows:
    """Windows of T frames of videos, a source of ``FrameExample``; picklable.

    ``frames`` (T,H,W,C) uint8. Videos are decoded, resized and kept in memory when a window of
    theirs is first read, as long as all of them fit into ``cache_bytes``.

    Args:
        videos: of one folder.
        sections: of one split; windows lie wholly in a section.
        num_frames: T, at least 1.
        form: size and colour of the frames.
        stride: frames of a video from one frame of a window to the next, at least 1.
        window_stride: frames from one window to the next, at least 1; 0: windows do not overlap.
        cache_bytes: memory for resized videos; 0: none is kept.

    Attributes:
        windows: (N,2) int64, number of the video and of the first frame.
        skipped: names of the videos without a window, and why.

    Raises:
        ValueError: numbers out of range, or no video that is long enough.
    """

    scaling = None

    def __init__(
        self,
        videos: Videos,
        sections: Sequence[Section],
        *,
        num_frames: int,
        form: FrameFormat,
        stride: int = 1,
        window_stride: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ):
        if num_frames < 1 or stride < 1 or window_stride < 0 or cache_bytes < 0:
            raise ValueError(
                "num_frames, stride, window_stride, cache_bytes: expected at least 1, 1, 0 and 0, "
                f"received {num_frames}, {stride}, {window_stride} and {cache_bytes}"
            )
        self.videos = videos
        self.num_frames = num_frames
        self.form = form
        self.stride = stride
        self.window_stride = window_stride
        span = (num_frames - 1) * stride + 1
        firsts, skipped = [], dict[str, str]()
        for section in sections:
            found = np.arange(section.begin, section.end - span + 1, window_stride or span)
            firsts.append(np.stack([np.full(len(found), section.video), found], 1))
            if not len(found):
                length = section.end - section.begin
                skipped[videos.names[section.video]] = f"{length} of {span} frames"
        self.windows = np.concatenate(firsts) if firsts else np.zeros((0, 2), np.int64)
        self.skipped = skipped
        if not len(self.windows):
            longest = max((section.end - section.begin for section in sections), default=0)
            raise ValueError(
                f"num_inputs + num_outputs: expected windows of {num_frames} frames at stride "
                f"{stride}, which span {span}, to fit into a video, received {len(sections)} whose "
                f"longest has {longest}; take a shorter horizon or stride"
            )
        if skipped:
            _logger.warning(
                "%d of %d videos are too short for a window and skipped: %s",
                len(skipped),
                len(sections),
                _tell(skipped),
            )
        used = {int(video) for video in self.windows[:, 0]}
        size = sum(videos.num_frames[video] for video in used) * int(np.prod(form.shape))
        self._cached = size <= cache_bytes
        self._make_cache()

    def _make_cache(self) -> None:
        self._kept: dict[int, np.ndarray] = {}
        self._locks: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_kept", "_locks", "_lock")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_cache()

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H,W,C) of the frames."""
        return self.form.shape

    def __len__(self) -> int:
        return len(self.windows)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"VideoWindows({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        names = [f"{self.videos.names[video]}@{first}" for video, first in self.windows.tolist()]
        return {
            **describe_examples(names, [""] * len(names)),
            "num_frames": self.num_frames,
            "stride": self.stride,
            "form": dataclasses.asdict(self.form),
        }

    def explain(self, index: int) -> str:
        """Returns why a window cannot be decoded."""
        video, first = map(int, self.windows[index])
        return explain_failure(self.videos.paths[video], lambda: self._read(video, first))

    def __getitem__(self, index: int, /) -> FrameExample:
        """Returns window ``index``: ``frames`` (T,H,W,C) uint8.

        Raises:
            IndexError: the index is out of range.
        """
        number = check_index(index, len(self))
        video, first = map(int, self.windows[number])
        try:
            return frame_example(self._read(video, first), number)
        except (VideoError, FileNotFoundError):
            blank = np.zeros((self.num_frames, *self.frame_shape), np.uint8)
            return frame_example(blank, number, readable=False)

    def _read(self, video: int, first: int) -> np.ndarray:
        numbers = first + self.stride * np.arange(self.num_frames)
        if not self._cached:
            return self.form(decode(self.videos.paths[video], numbers))
        with self._lock:
            lock = self._locks.setdefault(video, threading.Lock())
        with lock:  # Threads that read the same video decode it once.
            if video not in self._kept:
                self._kept[video] = self._decode_whole(video)
        return self._kept[video][numbers]

    def _decode_whole(self, video: int) -> np.ndarray:
        path, count = self.videos.paths[video], self.videos.num_frames[video]
        frames = np.empty((count, *self.frame_shape), np.uint8)
        number = -1
        for number, frame in enumerate(itertools.islice(decode_all(path), count)):
            frames[number] = self.form(frame[None])[0]
        if number + 1 < count:
            raise VideoError(path, f"the stream ends after {number + 1} of {count} frames")
        return frames


def check_shares(shares: Sequence[float]) -> None:
    """Refuses shares of a split.

    Raises:
        ValueError: not two or three shares above 0 whose sum is at most 1.
    """
    fits = len(shares) in (2, 3) and all(0 < share < 1 for share in shares)
    if not fits or sum(shares) > 1 + 1e-9:
        raise ValueError(
            "shares: expected two or three shares above 0 with a sum of at most 1, as "
            f"(0.8,0.1,0.1), received {tuple(shares)}"
        )


def cut_in_time(count: int, shares: Sequence[float]) -> list[tuple[int, int]]:
    """Returns (begin, end) of consecutive parts of ``count`` steps.

    >>> cut_in_time(10, (0.6, 0.2, 0.2))
    [(0, 6), (6, 8), (8, 10)]
    """
    # 0.6 + 0.2 is a little less than 0.8.
    ends = [int(end * count + 1e-6) for end in itertools.accumulate(shares)]
    return list(itertools.pairwise([0, *ends]))


def _draw_videos(
    names: Sequence[str],
    numbers: Sequence[int],
    splits: Sequence[str],
    shares: Sequence[float],
    seed: int,
) -> dict[str, list[int]]:
    """Returns the videos of each split, at least one of each."""
    if len(names) < len(splits):
        raise ValueError(
            f"split_by: expected at least {len(splits)} videos that can be decoded for a split by "
            f"video, received {len(names)}; split by time"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    by_name = [numbers[i] for i in np.argsort(np.array(names, object))]
    drawn = [by_name[i] for i in order]
    sides: dict[str, list[int]] = {}
    for split, share in zip(splits[1:], shares[1:], strict=True):
        size = max(1, round(len(names) * share))
        sides[split], drawn = sorted(drawn[:size]), drawn[size:]
    if not drawn:
        raise ValueError(
            f"shares: expected to leave a video for train, received {tuple(shares)} of "
            f"{len(names)} videos"
        )
    return {"train": sorted(drawn), **sides}


def _walk(folder: Path) -> list[str]:
    found: list[str] = []
    for current, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in FOREIGN)
        found += [
            os.path.join(current, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_ENDINGS
        ]
    return found


def _split_of(name: str) -> str:
    """Returns the split that a folder of the path names; "" without."""
    folders = name.lower().split("/")[:-1]
    return next((SPLIT_NAMES[folder] for folder in folders if folder in SPLIT_NAMES), "")


def _count_frames(path: str) -> int | str:
    try:
        return probe(path).num_frames
    except (VideoError, FileNotFoundError) as error:
        return str(error)


def _tell(skipped: Mapping[str, str]) -> str:
    told = [f"{name} ({why})" for name, why in itertools.islice(skipped.items(), _NAMES_TOLD)]
    return ", ".join(told) + (", …" if len(skipped) > _NAMES_TOLD else "")
