"""Preprocessing of images and videos as at test, from the settings in a model's ``model.json``.

``{"kind": "image", …}`` makes one image of a file (``ImagePreprocessing``), ``"clip"`` cuts clips
of a video into crops (``ClipPreprocessing``), ``"streams"`` makes images of motion
(``StreamPreprocessing``); ``"line"`` and ``"log_mel"`` are in ``columns.py``. It is the test-time
half of the training's preprocessing, whose pixels are equal.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .columns import LinePreprocessing, SoundPreprocessing
from .media import Video

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
STREAMS = ("rgb_whole", "rgb_square", "difference_whole", "difference_square")
SAMPLERS = ("uniform", "dense")

_MOST = {
    **{"size": 8192, "short_side": 8192, "num_clips": 4096, "num_views": 4096},
    **{"height": 1024, "sample_rate": 1 << 20, "high": 1 << 19, "max_seconds": 1 << 20},
    **{"window": 10, "hop": 10, "num_mels": 4096, "num_windows": 4096},
}
"""Greatest values of settings; others are at most ``_MOST_OTHERS``."""
_MOST_OTHERS = 65_536
_MOST_PIXELS = 1 << 32  # of all clips of a video, 12 GiB
_LONGEST = 16  # short sides; longer images are cropped before they are resized
# ITU-R BT.601 luma.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Views(NamedTuple):
    """Clips of one video, whose predictions are averaged."""

    frames: np.ndarray
    """(V,T,H,W,3) uint8, or (V,T,S,H,W,3) of S streams; zeros in the padding."""
    lengths: np.ndarray
    """(V,) int32 in [1,T]."""
    times: np.ndarray
    """(V,T) float32, seconds from the start of the video; meaningless in the padding."""


@dataclasses.dataclass(frozen=True)
class ImagePreprocessing:
    """Resize of an image to one size: short side and centre crop, or stretch."""

    size: int = 224
    """Height and width of the result, pixels."""
    short_side: int | None = None
    """Length of the short side before the crop, pixels; None: ``size``."""
    resampling: str = "bilinear"
    """``bilinear`` or ``bicubic``, antialiased."""
    stretch: bool = False
    """Resize the whole image to the square, whatever its aspect ratio."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H,W,3) of the result."""
        return self.size, self.size, 3

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """(T,H,W,3) of the image as a clip of one frame."""
        return 1, *self.image_shape

    def __post_init__(self) -> None:
        if self.resampling not in RESAMPLING:
            expected = " or ".join(RESAMPLING)
            raise ValueError(f"resampling: expected {expected}, received {self.resampling!r}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns (size,size,3) uint8 of an image (H,W,3) uint8."""
        if self.stretch:
            return self._resize(image, self.size, self.size)
        target = self.short_side or self.size
        image = _cut_long(image)
        height, width = image.shape[:2]
        if height <= width:
            height, width = target, target * width // height
        else:
            height, width = target * height // width, target
        return _centre(self._resize(image, height, width), self.size)

    def crop(self, image: np.ndarray) -> np.ndarray:
        """Returns the part of an image (H,W,3) uint8 that the model sees, to draw on."""
        return image if self.stretch else self(image)

    def _resize(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        if (height, width) == image.shape[:2]:
            return image
        resized = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(resized.resize((width, height), RESAMPLING[self.resampling]))


@dataclasses.dataclass(frozen=True)
class ClipPreprocessing:
    """Clips of a video, cropped and resized.

    With ``sampler`` ``uniform`` a clip has one frame of each of ``num_frames`` equal parts of the
    video, with ``dense`` a window of every ``stride``-th frame, or of frames at ``rate``.
    """

    size: tuple[int, int]
    """Height and width of the frames, pixels."""
    num_frames: int
    """T, frames of a clip; a video that is too short gives a shorter one, which is padded."""
    sampler: str = "dense"
    """``uniform`` or ``dense``."""
    stride: int = 1
    """``dense`` only: takes every ``stride``-th frame, whatever the video's rate."""
    rate: float | None = None
    """``dense`` only: frames/s of the clip, in place of ``stride``."""
    num_clips: int = 1
    """Clips of each video, evenly spaced."""
    middle: bool = True
    """``uniform`` with one clip only: the middle frame of each part is (n - 1) // 2 of n instead of
    n // 2."""
    short_side: int | None = None
    """Pixels to which frames are scaled while they are decoded; None: not at all."""
    scale: float = 1.0
    """Area of a crop as a share of the largest centred box of the result's aspect ratio."""
    keep_aspect: bool = True
    """Crop to the aspect ratio of ``size``; False: the whole frame is the box."""
    crops: int = 1
    """1: the centre; 5: also the four corners."""
    mirror: bool = False
    """Each crop is also seen mirrored."""

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """(T,H,W,3) of a clip."""
        return self.num_frames, *self.size, 3

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(
                f"sampler: expected {' or '.join(SAMPLERS)}, received {self.sampler!r}"
            )
        if self.crops not in (1, 5):
            raise ValueError(f"crops: expected 1 or 5, received {self.crops}")

    def __call__(self, video: Video) -> Views:
        """Returns the clips of a video, the crops of the first clip first.

        Raises:
          MediaError: the video cannot be read.
        """
        info = video.probe()
        numbers = self.frame_numbers(info.num_frames, info.rate)  # (N,T')
        row = {number: k for k, number in enumerate(np.unique(numbers).tolist())}
        crops: np.ndarray | None = None  # (C,len(row),h,w,3)
        for number, frame in video.frames(row, short_side=self.short_side):
            views = self.crop_frame(frame)
            if crops is None:
                crops = np.zeros((len(views), len(row), *views.shape[1:]), np.uint8)
            crops[:, row[number]] = views
        assert crops is not None  # A video has at least one frame.
        length = numbers.shape[1]
        picked = np.array([[row[number] for number in clip] for clip in numbers.tolist()])
        clips = crops[:, picked]  # (C,N,T',h,w,3)
        count = clips.shape[0] * clips.shape[1]
        frames = np.zeros((count, self.num_frames, *self.size, 3), np.uint8)
        frames[:, :length] = clips.swapaxes(0, 1).reshape(count, *clips.shape[2:])
        times = np.zeros((len(numbers), self.num_frames), np.float32)
        times[:, :length] = numbers / info.rate
        return Views(
            frames, np.full(count, length, np.int32), np.repeat(times, clips.shape[0], axis=0)
        )

    def frame_numbers(self, num_frames: int, rate: float) -> np.ndarray:
        """Returns (N,T') int64, the numbers of the frames of N clips of a video.

        Args:
          num_frames: of the video.
          rate: frames/s of the video.
        """
        clips = self.num_clips
        if self.sampler == "uniform":
            parts = min(self.num_frames, num_frames)
            edges = np.arange(parts + 1, dtype=np.int64) * num_frames // parts
            if clips == 1 and self.middle:
                return ((edges[:-1] + edges[1:] - 1) // 2)[None]
            share = (np.arange(clips) + 0.5)[:, None] / clips
            return edges[:-1] + np.floor(share * np.diff(edges)).astype(np.int64)
        step = self.stride if self.rate is None else rate / self.rate
        offsets = np.floor(np.arange(self.num_frames) * step + 1e-6).astype(np.int64)
        offsets = offsets[offsets < num_frames]
        last = num_frames - 1 - int(offsets[-1])  # the last possible start
        if clips == 1:
            return (last // 2 + offsets)[None]
        starts = np.arange(clips, dtype=np.int64) * last // (clips - 1)
        return starts[:, None] + offsets

    def crop_frame(self, frame: np.ndarray) -> np.ndarray:
        """Returns (C,h,w,3) uint8 crops of a frame (H,W,3) uint8, the centre first."""
        height, width = frame.shape[:2]
        base_height, base_width = self._base_box(height, width)
        share = self.scale**0.5
        crop_height, crop_width = _whole(base_height * share), _whole(base_width * share)
        boxes = [((height - crop_height) // 2, (width - crop_width) // 2)]
        if self.crops == 5:
            boxes += [(y, x) for y in (0, height - crop_height) for x in (0, width - crop_width)]
        image = Image.fromarray(np.ascontiguousarray(frame))
        views = np.empty((len(boxes), *self.size, 3), np.uint8)
        for view, (top, left) in zip(views, boxes, strict=True):
            box = (left, top, left + crop_width, top + crop_height)
            view[:] = np.asarray(image.resize(self.size[::-1], RESAMPLING["bilinear"], box=box))
        return np.concatenate([views, views[:, :, ::-1]]) if self.mirror else views

    def _base_box(self, height: int, width: int) -> tuple[float, float]:
        if not self.keep_aspect:
            return height, width
        scale = min(height / self.size[0], width / self.size[1])
        return scale * self.size[0], scale * self.size[1]


@dataclasses.dataclass(frozen=True)
class StreamPreprocessing:
    """Clips of S streams of images spread over a whole video.

    A stream holds ``rgb`` or ``difference`` images, whose channels are three successive differences
    of grey frames, of the ``whole`` frame or of the full-height ``square`` around the motion.
    """

    streams: tuple[str, ...]
    """S of ``STREAMS``."""
    num_steps: int
    """T, steps of a clip."""
    stored_steps: int
    """Images of each stream, spread evenly over the video, of which clips are cut."""
    num_views: int
    """Samplings in time."""
    mirror: bool = True
    """Each is also seen mirrored."""
    size: int = 224
    """Height and width of the images, pixels."""
    gap: int = 8
    """Distance of the subtracted frames, frames."""

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """(T,S,H,W,3) of a clip."""
        return self.num_steps, len(self.streams), self.size, self.size, 3

    def __post_init__(self) -> None:
        unknown = [stream for stream in self.streams if stream not in STREAMS]
        if unknown or not self.streams:
            raise ValueError(
                f"streams: expected some of {', '.join(STREAMS)}, received {self.streams}"
            )

    def __call__(self, video: Video) -> Views:
        """Returns ``num_views`` clips (V,T,S,size,size,3) of a video, or twice as many.

        Raises:
          MediaError: the video cannot be read.
        """
        info = video.probe()
        count = info.num_frames
        shares = (np.arange(self.stored_steps) + 0.5) / self.stored_steps
        numbers = (shares * count).astype(int)
        plain = self._images(video, numbers, count)  # (S,stored_steps,size,size,3)
        seen = [plain, plain[:, :, :, ::-1]] if self.mirror else [plain]
        phases = (np.arange(self.num_views) + 0.5) / self.num_views
        clips, times = [], []
        for phase in phases:
            share = (np.arange(self.num_steps) + phase) / self.num_steps
            steps = np.clip((share * self.stored_steps).astype(int), 0, self.stored_steps - 1)
            for images in seen:
                clips.append(images[:, steps].swapaxes(0, 1))  # (T,S,…)
                times.append(numbers[steps] / info.rate)
        return Views(
            np.stack(clips),
            np.full(len(clips), self.num_steps, np.int32),
            np.array(times, np.float32),
        )

    def _images(self, video: Video, numbers: np.ndarray, count: int) -> np.ndarray:
        """Returns the plain images (S,T,size,size,3); keeps only the frames that they show."""
        offsets = self.gap // 2 * np.array([-3, -1, 1, 3])
        compared = np.clip(numbers[:, None] + offsets, 0, count - 1)  # (T,4)
        contents, parts = zip(*(stream.split("_") for stream in self.streams), strict=True)
        shown = set(numbers.tolist()) if "rgb" in contents else set()
        if "difference" in contents:
            shown |= set(compared.ravel().tolist())
        kept: dict[int, np.ndarray] = {}

        def luma() -> Iterator[np.ndarray]:
            for number, frame in video.frames():
                if number in shown:
                    kept[number] = frame
                yield grey(frame)

        if "square" in parts:
            centre = motion_centre(luma(), gap=self.gap)
        else:
            centre = 0
            deque(luma(), maxlen=0)
        images = np.empty((len(parts), len(numbers), self.size, self.size, 3), np.uint8)
        for stream, (content, part) in enumerate(zip(contents, parts, strict=True)):
            for step, number in enumerate(numbers):
                if content == "rgb":
                    image = kept[int(number)]
                else:
                    image = difference_image(grey(np.stack([kept[n] for n in compared[step]])))
                if part == "square":
                    image = square_around(image, centre)
                images[stream, step] = _stretch(image, self.size)
        return images


Preprocessing = ImagePreprocessing | ClipPreprocessing | StreamPreprocessing
KINDS: Mapping[str, type[Any]] = {
    "image": ImagePreprocessing,
    "clip": ClipPreprocessing,
    "streams": StreamPreprocessing,
    "line": LinePreprocessing,
    "log_mel": SoundPreprocessing,
}


def make_preprocessing(settings: Mapping[str, Any]) -> Any:
    """Returns the preprocessing that the settings describe.

    Args:
      settings: ``kind``, a key of ``KINDS``, and the fields of its class, as JSON has them.

    Raises:
      ValueError: an unknown kind or field, or a value out of range.

    >>> make_preprocessing({"kind": "image", "size": 64, "stretch": True}).size
    64
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"preprocessing: expected an object, received {settings!r:.80}")
    given = {name: value for name, value in settings.items() if name != "kind"}
    kind: Any = settings.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"preprocessing: expected one of {', '.join(KINDS)}, received {kind!r}")
    given = {k: tuple(value) if isinstance(value, list) else value for k, value in given.items()}
    for field in dataclasses.fields(KINDS[kind]):
        if field.name in given:
            _check_setting(kind, field, given[field.name])
    try:
        made = KINDS[kind](**given)
    except TypeError as error:
        raise ValueError(f"preprocessing: {kind}: {error}") from error
    if isinstance(made, LinePreprocessing | SoundPreprocessing):
        return made
    height, width = made.size if isinstance(made.size, tuple) else (made.size, made.size)
    counts = ("num_frames", "num_clips", "num_steps", "num_views", "crops")
    pixels = math.prod(getattr(made, name, 1) for name in counts) * height * width
    pixels *= len(getattr(made, "streams", ("rgb",)))
    if pixels > _MOST_PIXELS:
        raise ValueError(
            f"preprocessing: expected clips of at most {_MOST_PIXELS} pixels, received {pixels}"
        )
    return made


def _check_setting(kind: str, field: "dataclasses.Field[Any]", value: Any) -> None:
    """Checks the type and range of a setting; those that are words are checked by their class."""
    most = _MOST.get(field.name, _MOST_OTHERS)

    def is_count(number: Any) -> bool:
        return type(number) is int and 1 <= number <= most

    def is_number(number: Any) -> bool:
        if field.name == "low" and number == 0:  # Bands may begin at 0 Hz.
            return True
        return type(number) in (int, float) and 0 < number <= (1 if field.name == "scale" else most)

    def is_texts(texts: Any) -> bool:
        return isinstance(texts, tuple) and all(isinstance(text, str) for text in texts)

    number = f"a whole number of 1 to {most}"
    rules: Mapping[str, tuple[Any, str]] = {
        "int": (is_count, number),
        "int | None": (lambda v: v is None or is_count(v), f"{number}, or null"),
        "float": (is_number, f"above 0 to {1 if field.name == 'scale' else most}"),
        "float | None": (lambda v: v is None or is_number(v), f"above 0 to {most}, or null"),
        "bool": (lambda v: isinstance(v, bool), "true or false"),
        "str": (lambda v: isinstance(v, str), "a word"),
        "tuple[int, int]": (
            lambda v: isinstance(v, tuple) and len(v) == 2 and all(map(is_count, v)),
            f"two whole numbers of 1 to {most}",
        ),
        "tuple[str, ...]": (is_texts, "a list of words"),
    }
    # The annotation as it is written in the class.
    annotation = field.type if isinstance(field.type, str) else _written(field.type)
    check, expected = rules[annotation]
    if not check(value):
        raise ValueError(
            f"preprocessing: {kind}: {field.name}: expected {expected}, received {value!r:.80}"
        )


def _written(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def grey(video: np.ndarray) -> np.ndarray:
    """Returns the luma of (...,H,W,3) uint8 RGB frames: (...,H,W) float32 in [0,255]."""
    return video.astype(np.float32) @ _LUMA


def difference_image(luma: np.ndarray) -> np.ndarray:
    """Returns the image (H,W,3) uint8 of the differences of four frames, (4,H,W) float32."""
    differences = np.moveaxis(luma[1:] - luma[:-1], 0, -1)
    return np.clip(differences / 2 + 127, 0, 255).astype(np.uint8)


def motion_centre(luma: Iterator[np.ndarray], *, gap: int, threshold: float = 20.0) -> int:
    """Returns the column with half of the clip's motion to its left; the middle one if none.

    Args:
      luma: frames (H,W) float32 in [0,255], at least one; ``gap`` of them are kept at a time.
      gap: distance of the compared frames, frames.
      threshold: grey levels; smaller differences count as noise.
    """
    recent: deque[np.ndarray] = deque(maxlen=gap)
    energy = np.zeros(0, np.float32)  # (W,)
    for frame in luma:
        if not energy.size:
            energy = np.zeros(frame.shape[1], np.float32)
        if len(recent) == gap:
            moved = np.clip(np.abs(frame - recent[0]) - threshold, 0, None)
            # Row by row, as in training: the same rounding.
            energy = np.concatenate([energy[None], moved]).sum(0)
        recent.append(frame)
    if not energy.any():
        return len(energy) // 2
    cumulated = np.cumsum(energy.astype(np.float64))
    return int(np.searchsorted(cumulated, cumulated[-1] / 2))


def square_around(image: np.ndarray, column: int) -> np.ndarray:
    """Returns the full-height square (H,H,3) around a column, within the image (H,W,3).

    An image narrower than high is widened by repeating its edge columns.
    """
    height, width = image.shape[:2]
    if width < height:
        left = (height - width) // 2
        return np.pad(image, [(0, 0), (left, height - width - left), (0, 0)], "edge")
    start = min(max(column - height // 2, 0), width - height)
    return image[:, start : start + height]


def _stretch(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(
        (size, size), Image.Resampling.BILINEAR, box=(0, 0, width, height)
    )
    return np.asarray(resized)


def _cut_long(image: np.ndarray) -> np.ndarray:
    """Returns the centre of a long strip; resized as a whole, it could fill the memory."""
    height, width = image.shape[:2]
    longest = _LONGEST * min(height, width)
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    return image[top : top + longest, left : left + longest]


def _centre(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def _whole(pixels: float) -> int:
    return max(1, round(float(pixels)))
