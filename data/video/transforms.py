"""Crops, mirroring and resizing of clips, equal for all frames of a clip; padding in time."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Crop:
    """Box of a frame, in pixels; fractions of pixels are interpolated.

    Attributes:
        top: distance from the upper edge.
        left: distance from the left edge.
        height: height of the box.
        width: width of the box.
        mirror: exchange left and right.
    """

    top: float
    left: float
    height: float
    width: float
    mirror: bool = False

    def apply(self, video: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Returns the box of each frame, resized to ``size`` (bilinear, antialiased).

        Args:
            video: (T,H,W,3) uint8.
            size: (height, width) of the result, pixels.

        Returns:
            (T,height,width,3) uint8.
        """
        box = (self.left, self.top, self.left + self.width, self.top + self.height)
        out = np.empty((len(video), *size, 3), np.uint8)
        for t, frame in enumerate(video):
            image = Image.fromarray(frame)
            out[t] = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, box=box))
        return np.ascontiguousarray(out[:, :, ::-1]) if self.mirror else out


@dataclass(frozen=True)
class SpatialTransform:
    """Crop and resize of frames to one size: random in training, fixed crops at test.

    Every crop is a share of the *base box*: the largest centred box of the result's aspect ratio in
    the frame, or, with ``keep_aspect=False``, the whole frame. For example, "227² out of 240×320"
    is ``size=(227, 227), scale=(s, s), stretch=1, test_scale=s`` with s = (227 / 240)².

    Mirroring exchanges left and right. If labels have a direction ("moving left", "passing to the
    right"), a mirrored clip is wrongly labelled, so ``flip`` is off by default.

    Attributes:
        size: (height, width) of the result, pixels.
        scale: least and greatest area of a random crop as a share of the base box, in (0,1].
        stretch: greatest change of the crop's aspect ratio in training, >= 1, log-uniform.
        flip: mirror a clip with probability 1/2 in training; required for ten crops at test.
        test_scale: area of a test crop as a share of the base box, in (0,1].
        test_crops: 1: the centre. 5: the centre and the four corners. 10: these and their mirror
            images (Krizhevsky et al., 2012, section 4.1).
        keep_aspect: crop to the aspect ratio of ``size``; False stretches the whole frame.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 1.0)
    stretch: float = 4 / 3
    flip: bool = False
    test_scale: float = 1.0
    test_crops: Literal[1, 5, 10] = 1
    keep_aspect: bool = True

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size: expected (height, width) in pixels, received {self.size}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: expected 0 < least <= greatest <= 1, received {self.scale}")
        if not self.stretch >= 1:
            raise ValueError(f"stretch: expected at least 1, received {self.stretch}")
        if not 0 < self.test_scale <= 1:
            raise ValueError(f"test_scale: expected a share in (0,1], received {self.test_scale}")
        if self.test_crops not in (1, 5, 10):
            raise ValueError(f"test_crops: expected 1, 5 or 10, received {self.test_crops}")
        if self.test_crops == 10 and not self.flip:
            raise ValueError("test_crops: 10 crops need mirroring, received flip=False")

    def __call__(self, video: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Returns a random crop, or the test's centre crop without ``rng``.

        Args:
            video: (T,H,W,3) uint8.
            rng: random numbers, or None.

        Returns:
            (T,height,width,3) uint8.
        """
        height, width = video.shape[1:3]
        if rng is None:
            return self._centre_crop(height, width).apply(video, self.size)
        crop = self.random_crop(height, width, rng)
        clip = replace(crop, mirror=False).apply(video, self.size)
        return np.ascontiguousarray(self.mirrored(clip)) if crop.mirror else clip

    def test_views(self, video: np.ndarray) -> np.ndarray:
        """Returns the crops for test.

        Args:
            video: (T,H,W,3) uint8.

        Returns:
            (test_crops,T,height,width,3) uint8: the centre, the corners, then these mirrored.
        """
        height, width = video.shape[1:3]
        centre = self._centre_crop(height, width)
        crops = [centre]
        if self.test_crops > 1:
            tops, lefts = (0.0, height - centre.height), (0.0, width - centre.width)
            crops += [Crop(t, x, centre.height, centre.width) for t in tops for x in lefts]
        views = np.stack([crop.apply(video, self.size) for crop in crops])
        if self.test_crops == 10:
            views = np.concatenate([views, np.stack([self.mirrored(view) for view in views])])
        return views

    def mirrored(self, video: np.ndarray) -> np.ndarray:
        """Returns a clip (T,H,W,3) uint8 with left and right exchanged."""
        return video[:, :, ::-1]

    def random_crop(self, height: int, width: int, rng: np.random.Generator) -> Crop:
        """Returns a random crop of a frame of ``height`` × ``width`` pixels."""
        base_height, base_width = self._base_box(height, width)
        share = rng.uniform(*self.scale)
        stretch = np.exp(rng.uniform(-1, 1) * np.log(self.stretch))
        crop_height = min(_whole(base_height * np.sqrt(share / stretch)), height)
        crop_width = min(_whole(base_width * np.sqrt(share * stretch)), width)
        top = int(rng.integers(height - crop_height + 1))
        left = int(rng.integers(width - crop_width + 1))
        mirror = bool(rng.random() < 0.5) and self.flip
        return Crop(top, left, crop_height, crop_width, mirror)

    def _centre_crop(self, height: int, width: int) -> Crop:
        base_height, base_width = self._base_box(height, width)
        crop_height = _whole(base_height * np.sqrt(self.test_scale))
        crop_width = _whole(base_width * np.sqrt(self.test_scale))
        return Crop((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)

    def _base_box(self, height: int, width: int) -> tuple[float, float]:
        if not self.keep_aspect:
            return height, width
        scale = min(height / self.size[0], width / self.size[1])
        return scale * self.size[0], scale * self.size[1]


def mirror_flow(video: np.ndarray) -> np.ndarray:
    """Returns images of optical flow with left and right, and their directions, exchanged.

    Args:
        video: (T,H,W,3) uint8, whose channel 0 is 128 plus the motion to the right
            (``data.video.flow``).
    """
    mirrored = video[:, :, ::-1].copy()
    mirrored[..., 0] = np.minimum(256 - mirrored[..., 0].astype(np.int16), 255)
    return mirrored


def pad_clip(video: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads a clip to ``num_frames`` with frames of zeros.

    Args:
        video: (T',...) of any dtype, 1 <= T' <= ``num_frames``.
        num_frames: T.

    Returns:
        The padded clip (T,...), and its length T', () int32.

    Raises:
        ValueError: the clip is empty or longer than ``num_frames``.
    """
    length = len(video)
    if not 1 <= length <= num_frames:
        raise ValueError(f"video: expected 1 to {num_frames} frames, received {length}")
    padded = np.zeros((num_frames, *video.shape[1:]), video.dtype)
    padded[:length] = video
    return padded, np.asarray(length, np.int32)


def _whole(pixels: float) -> int:
    return max(1, round(float(pixels)))
