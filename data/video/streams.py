"""Streams of images of whole videos for a frozen encoder, and clips cut from its features.

Beside the frames themselves a stream may hold images of motion, differences of grey frames or
optical flow, and crops around the motion.
"""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from data.batches import UNKNOWN_LABEL, Source, VideoExample
from data.video.clips import VideoReader, VideoSource, explain_failure
from data.video.decoding import MAX_PIXELS, VideoError
from data.video.transforms import Crop, mirror_flow

STREAMS = ("rgb_whole", "rgb_square", "difference_whole", "difference_square")
"""``rgb`` or ``difference`` images (``difference_images``) of the ``whole`` frame, resized without
regard to its aspect ratio, or of the full-height ``square`` around the clip's motion."""
FLOW_STREAMS = ("flow_whole", "flow_square")
"""Likewise of optical flow (``data.video.flow``), which a reader of its own gives."""

FLOW_TOLERANCE = 3
"""Greatest difference of the number of flow images from that of a video's frames less 1: the
decoder of published flow may have returned a few more or fewer."""

# ITU-R BT.601 luma.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclasses.dataclass(frozen=True)
class StreamSource:
    """Random access to videos as images of S streams, each plain and, by default, mirrored.

    Attributes:
      videos: the files and their labels.
      streams: S members of ``STREAMS`` and ``FLOW_STREAMS``.
      num_steps: T, number of images, spread evenly over a video.
      size: height and width of the images, pixels.
      gap: distance of the subtracted frames, frames.
      mirror: each stream is also seen mirrored, as a view of its own.
      flow: reader of the videos' optical flow, for streams of it.
    """

    videos: VideoSource
    streams: tuple[str, ...]
    num_steps: int = 32
    size: int = 224
    gap: int = 8
    mirror: bool = True
    flow: VideoReader | None = None

    def __post_init__(self) -> None:
        known = (*STREAMS, *FLOW_STREAMS)
        unknown = [stream for stream in self.streams if stream not in known]
        if unknown or not self.streams:
            raise ValueError(
                f"streams: expected some of {', '.join(known)}, received {self.streams}"
            )
        if self.flow is None and self.has_flow:
            raise ValueError(
                f"flow: expected the reader of the optical flow for {', '.join(self.streams)}, "
                "received None"
            )

    @property
    def has_flow(self) -> bool:
        """True if a stream is of optical flow."""
        return any(stream in FLOW_STREAMS for stream in self.streams)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int, /) -> VideoExample:
        """Returns example ``index``: ``video`` (2·S,T,size,size,3) uint8 and the other entries.

        View 2s is the plain stream s, view 2s+1 the mirrored one; without ``mirror`` there are S
        views. ``mask`` is False if the video cannot be decoded.
        """
        num_views = len(self.streams) * (2 if self.mirror else 1)
        shape = (num_views, self.num_steps, self.size, self.size, 3)
        record = self.videos[index]
        path, label = record["path"], record["label"]
        try:
            images, readable = self._read(path), True
        except (VideoError, FileNotFoundError):
            images, readable, label = np.zeros(shape, np.uint8), False, UNKNOWN_LABEL
        return VideoExample(
            video=images,
            lengths=np.full(len(images), self.num_steps, np.int32),
            label=np.asarray(label, np.int32),
            mask=np.asarray(readable),
            index=np.asarray(index, np.int32),
        )

    def explain(self, index: int) -> str:
        """Returns why video ``index`` cannot be read, by reading all of it."""
        path = self.videos.paths[index]
        return explain_failure(path, lambda: self._read(path))

    def digest(self, path: str) -> str:
        """Returns a SHA-256 of what the streams of a video are read from."""
        own = self.videos.reader.digest(path)
        if self.flow is None:
            return own
        try:
            return own + self.flow.digest(path)
        except (VideoError, FileNotFoundError):
            return own  # ``mask`` will be False.

    def _read(self, path: str) -> np.ndarray:
        reader = self.videos.reader
        info = reader.probe(path)
        if info.height**2 > MAX_PIXELS:  # ``square_around`` would widen them.
            raise VideoError(path, f"frames of {info.height} × {info.width} pixels are too high")
        video = reader.decode_all(path)
        if not self.has_flow:
            return self._images(video, info.num_frames)
        return self._images(video, info.num_frames, self._read_flow(path, info.num_frames))

    def _read_flow(self, path: str, num_frames: int) -> np.ndarray:
        """Returns the flow images (T,h,w,3) uint8 at the steps of a video."""
        assert self.flow is not None
        count = self.flow.probe(path).num_frames
        if abs(count - (num_frames - 1)) > FLOW_TOLERANCE:
            raise VideoError(
                path, f"expected {num_frames - 1} flow frames of {num_frames} frames, found {count}"
            )
        times = segment_centres(self.num_steps, num_frames)
        return self.flow.decode(path, np.minimum(times, count - 1))

    def images(self, video: np.ndarray) -> np.ndarray:
        """Returns the views (2·S,T,size,size,3) uint8 of a whole video (T',H,W,3) uint8.

        Without ``mirror`` there are S views.

        Raises:
          ValueError: a stream of optical flow, which the frames do not hold.
        """
        if self.has_flow:
            raise ValueError(
                f"streams: expected frames and differences alone, received {self.streams}"
            )
        return self._images(video, len(video))

    def _images(
        self, video: Iterable[np.ndarray], num_frames: int, flow: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns ``images`` of frames that come one by one, and of flow (T,h,w,3) uint8.

        Only those that the images show are kept, and ``gap`` grey ones.
        """
        times = segment_centres(self.num_steps, num_frames)
        compared = difference_frames(times, num_frames, gap=self.gap)
        contents, views_of_frames = zip(*(s.split("_") for s in self.streams), strict=True)
        shown = set(times.tolist()) if "rgb" in contents else set()
        if "difference" in contents:
            shown |= set(compared.ravel().tolist())
        kept: dict[int, np.ndarray] = {}
        width_of_frames = 0

        def frames() -> Iterator[np.ndarray]:
            nonlocal width_of_frames
            for number, frame in enumerate(video):
                width_of_frames = frame.shape[1]
                if number in shown:
                    kept[number] = frame
                yield frame

        if "square" in views_of_frames:
            centre = motion_centre(map(grey, frames()), gap=self.gap)
        else:
            centre = 0
            deque(frames(), maxlen=0)
        views: list[np.ndarray] = []
        for content, view in zip(contents, views_of_frames, strict=True):
            plain = np.empty((self.num_steps, self.size, self.size, 3), np.uint8)
            for step, (time, numbers) in enumerate(zip(times, compared, strict=True)):
                if content == "rgb":
                    image = kept[time]
                elif content == "flow" and flow is not None:
                    image = flow[step]
                else:
                    image = difference_image(grey(np.stack([kept[n] for n in numbers])))
                if view == "square":
                    # Flow may be of another size than the frames.
                    column = centre * image.shape[1] // width_of_frames
                    image = square_around(image[None], column)[0]
                height, width = image.shape[:2]
                crop = Crop(0, 0, height, width)
                plain[step] = crop.apply(image[None], (self.size, self.size))[0]
            mirrored = mirror_flow(plain) if content == "flow" else plain[:, :, ::-1]
            views += [plain, mirrored] if self.mirror else [plain]
        return np.stack(views)


@dataclasses.dataclass(frozen=True)
class CutFeatures:
    """Transform that cuts clips of T steps from the cached features of a ``StreamSource``.

    Attributes:
      train: a random part of the video, mirrored with probability 1/2 if ``mirror``, with a random
        step in each of T segments; False takes fixed views.
      num_steps: T.
      max_trim: greatest share of the video cut off at each end in training.
      num_views: samplings in time at test, each both plain and, if ``mirror``, mirrored.
      mirror: that of the ``StreamSource``: the features are of plain and mirrored streams.
    """

    train: bool
    num_steps: int = 16
    max_trim: float = 0.15
    num_views: int = 4
    mirror: bool = True

    def __call__(
        self, example: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Returns the example with ``features`` (T,S,…), or (2·num_views,T,S,…) at test, float32.

        Without ``mirror`` there are ``num_views`` at test, and no axis of them if it is 1.

        Args:
          example: with ``features`` (2·S,T',…), or (S,T',…) without ``mirror``: vectors or maps.
          rng: random numbers; not used at test.
        """
        features = example["features"]
        mirrors = 2 if self.mirror else 1
        streams, available = len(features) // mirrors, features.shape[1]
        by_mirror = features.reshape(streams, mirrors, *features.shape[1:])
        if self.train:
            trim = rng.uniform(0, self.max_trim, 2)
            steps = self._steps(available, trim[0], trim[1], rng.uniform(0, 1, self.num_steps))
            clip = by_mirror[:, int(rng.integers(mirrors)), steps]  # (S,T,D)
            clip, lengths = clip.swapaxes(0, 1), np.asarray(self.num_steps, np.int32)
        else:
            phases = (np.arange(self.num_views) + 0.5) / self.num_views
            views = [
                by_mirror[:, mirror, self._steps(available, 0.0, 0.0, phase)].swapaxes(0, 1)
                for phase in phases
                for mirror in range(mirrors)
            ]
            clip = np.stack(views)
            lengths = np.full(len(clip), self.num_steps, np.int32)
            if len(clip) == 1:
                clip, lengths = clip[0], lengths[0]
        return {**example, "features": clip.astype(np.float32), "lengths": lengths}

    def _steps(
        self, available: int, start: float, end: float, phase: float | np.ndarray
    ) -> np.ndarray:
        share = start + (1 - start - end) * (np.arange(self.num_steps) + phase) / self.num_steps
        return np.clip((share * available).astype(int), 0, available - 1)


@dataclasses.dataclass(frozen=True)
class JoinedFeatures:
    """Random access to several features of the same videos, as of several streams or endpoints.

    Attributes:
      features: cached features of all videos by name, in the same order, each of one stream.
      labels: class indices of all videos; cached features may have been encoded under others.
      positions: the videos of a split.
      videos: the source that was encoded, which can explain why a video is unreadable.
    """

    features: Mapping[str, Source | Sequence[Mapping[str, np.ndarray]]] = dataclasses.field(
        repr=False
    )
    labels: tuple[int, ...]
    positions: tuple[int, ...]
    videos: VideoSource

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Returns ``label``, ``mask``, ``index`` and the features (2,T',…) of each name."""
        number = self.positions[index]
        read = {name: source[number] for name, source in self.features.items()}
        mask = all(bool(example["mask"]) for example in read.values())
        return {
            **{name: example["features"] for name, example in read.items()},
            "label": np.asarray(self.labels[number] if mask else UNKNOWN_LABEL, np.int32),
            "mask": np.asarray(mask),
            "index": np.asarray(index, np.int32),
        }

    def explain(self, index: int) -> str:
        """Returns why video ``index`` of the split cannot be read, by reading all of it."""
        return self.videos.explain(self.positions[index])


@dataclasses.dataclass(frozen=True)
class CutJoined:
    """Transform that cuts the same steps from each of the ``JoinedFeatures``.

    Attributes:
      cut: the steps, of features of one stream.
      names: of the features.
    """

    cut: CutFeatures
    names: tuple[str, ...]

    def __call__(
        self, example: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Returns the example with (T,…) float32 of each name, or (V,T,…) at test; ``rng`` trains.

        Args:
          example: with (2,T',…) of each name, or (1,T',…) without ``mirror``.
          rng: random numbers.
        """
        seed = int(rng.integers(2**32))
        joined = {name: value for name, value in example.items() if name not in self.names}
        for name in self.names:
            own = self.cut({"features": example[name]}, np.random.default_rng(seed))
            axis = 2 if own["lengths"].ndim else 1  # Of the only stream.
            joined |= {name: own["features"].squeeze(axis), "lengths": own["lengths"]}
        return joined


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


def grey(video: np.ndarray) -> np.ndarray:
    """Returns the luma of (...,H,W,3) uint8 RGB frames: (...,H,W) float32 in [0,255]."""
    return video.astype(np.float32) @ _LUMA


def difference_images(
    luma: np.ndarray, times: Sequence[int] | np.ndarray, *, gap: int = 8
) -> np.ndarray:
    """Returns images whose channels are three successive frame differences.

    Channel k at time t is ``(g[t + (k-1/2)·gap] − g[t + (k-3/2)·gap]) / 2 + 127`` for k = 0, 1, 2,
    so an encoder of photographs sees motion as colour. The first and last frame extend beyond the
    ends of the clip.

    Args:
      luma: g, (T,H,W) float32 in [0,255].
      times: (n,) frame numbers t.
      gap: distance of the subtracted frames, frames; even, at least 2.

    Returns:
      (n,H,W,3) uint8; 127 where nothing moves.

    Raises:
      ValueError: ``gap`` is odd or below 2.
    """
    return np.stack(
        [difference_image(luma[frames]) for frames in difference_frames(times, len(luma), gap=gap)]
    )


def difference_frames(
    times: Sequence[int] | np.ndarray, num_frames: int, *, gap: int = 8
) -> np.ndarray:
    """Returns the numbers of the frames that ``difference_images`` compares, (n,4) int.

    Args:
      times: (n,) frame numbers t.
      num_frames: number of frames of the clip.
      gap: as in ``difference_images``.

    Raises:
      ValueError: ``gap`` is odd or below 2.
    """
    if gap < 2 or gap % 2:
        raise ValueError(f"gap: expected an even number of at least 2, received {gap}")
    offsets = gap // 2 * np.array([-3, -1, 1, 3])
    return np.clip(np.asarray(times)[:, None] + offsets, 0, num_frames - 1)


def difference_image(luma: np.ndarray) -> np.ndarray:
    """Returns the image (H,W,3) uint8 of the differences of four frames, (4,H,W) float32."""
    differences = np.moveaxis(luma[1:] - luma[:-1], 0, -1)
    return np.clip(differences / 2 + 127, 0, 255).astype(np.uint8)


def motion_centre(luma: Iterable[np.ndarray], *, gap: int = 8, threshold: float = 20.0) -> int:
    """Returns the column with half of the clip's motion to its left.

    Args:
      luma: frames (H,W) float32 in [0,255], at least one; ``gap`` of them are kept at a time.
      gap: distance of the compared frames, frames.
      threshold: grey levels; smaller differences count as noise.

    Returns:
      A column in [0,W); the middle one if nothing moves.

    Raises:
      ValueError: no frames.
    """
    recent: deque[np.ndarray] = deque(maxlen=gap)
    energy: np.ndarray | None = None  # (W,) float32
    for frame in luma:
        if energy is None:
            energy = np.zeros(frame.shape[1], np.float32)
        if len(recent) == gap:
            moved = np.clip(np.abs(frame - recent[0]) - threshold, 0, None)
            # Row by row, as a sum over all frames at once adds up: the same rounding.
            energy = np.concatenate([energy[None], moved]).sum(0)
        recent.append(frame)
    if energy is None:
        raise ValueError("luma: expected at least one frame, received none")
    if not energy.any():
        return len(energy) // 2
    cumulated = np.cumsum(energy.astype(np.float64))
    return int(np.searchsorted(cumulated, cumulated[-1] / 2))


def square_around(video: np.ndarray, column: int) -> np.ndarray:
    """Returns the full-height square around a column.

    Args:
      video: (T,H,W,...) of any dtype; if W < H, it is widened by repeating its edge columns.
      column: the desired centre; the square stays within the frame.

    Returns:
      (T,H,H,...), a view of ``video`` if W >= H.
    """
    height, width = video.shape[1:3]
    if width < height:
        left = (height - width) // 2
        widths = [(0, 0), (0, 0), (left, height - width - left), *[(0, 0)] * (video.ndim - 3)]
        return np.pad(video, widths, "edge")
    start = min(max(column - height // 2, 0), width - height)
    return video[:, :, start : start + height]
