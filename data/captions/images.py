"""Decoding of image files into RGB, resizing and cropping to one size."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from data.files import open_file, require_file

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

_LONGEST = 16  # short sides; longer images are cropped before they are resized

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are read, as Pillow names them. Others start foreign programs (EPS), are no
photographs, or may decode into more pixels than their header says (AVIF)."""
MAX_PIXELS = 50_000_000
"""Default limit of an image's pixels. Decoding takes at most 8 bytes a pixel, 14 if it is a
progressive JPEG, 20 if it is WebP."""
_BAND = 1 << 20  # pixels that are converted at once, so that conversion needs no further copies
_MAX_SCANS = 100  # Encoders write about ten, and each takes time for all pixels.
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF


class ImageError(OSError):
    """Unreadable image file; the message is "path: reason"."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return type(self), (self.path, self.reason)


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image file into RGB.

    Grey, palette, CMYK and other colour modes are converted, transparency is blended with white, 16
    bits are scaled to 8, an animation yields its first frame, and the EXIF orientation is applied.

    Args:
        path: the file, in one of ``FORMATS``, whatever its name ends with.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        (H,W,3) uint8 in [0,255].

    Raises:
        FileNotFoundError: there is no such file, or it is a folder or pipe.
        ImageError: the file cannot be opened, is no image in one of the formats, is truncated or
            damaged, or has more than ``max_pixels``.
    """
    try:
        require_file(path, "an image file")
        with open_file(path) as file:
            return decode_image(file, str(path), max_pixels=max_pixels)
    except (FileNotFoundError, ImageError):
        raise
    except OSError as error:
        raise ImageError(path, f"cannot be opened ({error.strerror})") from error


def decode_image(file: BinaryIO, name: str, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image as ``read_image`` does.

    Args:
        file: an open file, or bytes in an ``io.BytesIO``.
        name: the name of the image in the error.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        (H,W,3) uint8 in [0,255].

    Raises:
        ImageError: as ``read_image``.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_size(image, max_pixels)
            _check_scans(image, file)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except Exception as error:
        # On damaged files Pillow's parsers raise almost anything: SyntaxError, struct.error,
        # zlib.error, IndexError, DecompressionBombError ...
        raise ImageError(name, _reason(error, max_pixels)) from error


def check_max_pixels(max_pixels: int) -> None:
    """Raises ValueError unless Pillow opens images of so many pixels, at least 1."""
    most = 2 * (Image.MAX_IMAGE_PIXELS or max_pixels)
    if not 1 <= max_pixels <= most:
        raise ValueError(
            f"max_pixels: expected 1 to {most}, beyond which Pillow opens no image, received "
            f"{max_pixels}"
        )


def _check_size(image: Image.Image, max_pixels: int) -> None:
    """Refuses an image that is opened, but not yet decoded, for its size or that of its tiles."""
    sizes = [image.size]
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _TILE_WIDTH in image.tag_v2:
        # A tile is decoded as a whole, however little of it lies inside of the image.
        sizes.append((image.tag_v2[_TILE_WIDTH], image.tag_v2[_TILE_LENGTH]))
    width, height = max(sizes, key=math.prod)
    if width * height > max_pixels:
        raise ValueError(
            f"expected at most {max_pixels} pixels, received {width} × {height}; a larger "
            "max_pixels reads it"
        )


def _check_scans(image: Image.Image, file: BinaryIO) -> None:
    """Refuses a JPEG whose scans, of ten bytes each, would keep the decoder busy for minutes."""
    if image.format not in ("JPEG", "MPO"):
        return
    position = file.tell()
    file.seek(0)
    scans = file.read().count(b"\xff\xda")
    file.seek(position)
    if scans > _MAX_SCANS:
        raise ValueError(f"expected at most {_MAX_SCANS} scans of a JPEG, received {scans}")


def _reason(error: Exception, max_pixels: int) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"no image in a format that is read ({', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"expected at most {max_pixels} pixels; {error}"  # Pillow's own limits.
    return str(error) or type(error).__name__


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Returns (H,W,3) uint8, converted band by band."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(_BAND // width, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = _band_to_rgb(image.crop((0, top, width, bottom)))
    return pixels


def _band_to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        # Files of more than 8 bits (PNG, PGM, TIFF) use 0..65535; convert() would clip at 255.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels are integers beyond 16 bits, of unknown range")
        return ((values + 128) // 257).astype(np.uint8)[..., None]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class ImageTransform:
    """Deterministic transform of an image to one size: resize and centre crop, or stretch.

    The short side is resized and the centre cropped as in torchvision's evaluation (``Resize``,
    ``CenterCrop``), with its rounding; the resampling is antialiased.

    Attributes:
        size: height and width of the result, pixels.
        short_side: length of the short side before the crop, pixels, at least ``size``; None takes
            ``size``.
        resampling: "bilinear" or "bicubic".
        stretch: resize the whole image to the square, whatever its aspect ratio.
        mirror: exchange left and right.
        window: part of the image that is used: top, left, bottom, right as shares of its height and
            width; None takes the whole image.
    """

    size: int = 224
    short_side: int | None = None
    resampling: Literal["bilinear", "bicubic"] = "bilinear"
    stretch: bool = False
    mirror: bool = False
    window: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected at least 1 pixel, received {self.size}")
        if self.short_side is not None and self.short_side < self.size:
            raise ValueError(
                f"short_side: expected at least the size {self.size}, received {self.short_side}"
            )
        if self.short_side is not None and self.stretch:
            raise ValueError(
                f"short_side: expected None with stretch=True, received {self.short_side}"
            )
        if self.resampling not in _RESAMPLING:
            raise ValueError(
                f"resampling: expected one of {', '.join(_RESAMPLING)}, "
                f"received {self.resampling!r}"
            )
        if self.window is not None:
            top, left, bottom, right = self.window
            if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
                raise ValueError(
                    "window: expected 0 <= top < bottom <= 1 and 0 <= left < right <= 1, received "
                    f"{self.window}"
                )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns (size,size,3) uint8 of an image (H,W,3) uint8."""
        _require_image(image)
        if self.window is not None:
            image = _cut(image, self.window)
        if self.stretch:
            image = _resize(image, self.size, self.size, self.resampling)
        else:
            image = resize_crop(
                image, self.size, short_side=self.short_side, resampling=self.resampling
            )
        return np.ascontiguousarray(image[:, ::-1] if self.mirror else image)


def resize_crop(
    image: np.ndarray,
    size: int,
    *,
    short_side: int | None = None,
    resampling: Literal["bilinear", "bicubic"] = "bilinear",
) -> np.ndarray:
    """Resizes an image by its short side and crops the centre; see ``ImageTransform``.

    Args:
        image: (H,W,3) uint8.
        size: height and width of the result, pixels.
        short_side: length of the short side before the crop, pixels; None takes ``size``.
        resampling: "bilinear" or "bicubic", antialiased.

    Returns:
        (size,size,3) uint8.

    Raises:
        ValueError: another shape or dtype.
    """
    _require_image(image)
    target = size if short_side is None else short_side
    height, width = image.shape[:2]
    # Only the centre of a long strip is needed; resized as a whole, it could fill the memory.
    longest = _LONGEST * min(height, width)
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    image = image[top : top + longest, left : left + longest]
    height, width = image.shape[:2]
    if height <= width:
        height, width = target, target * width // height
    else:
        height, width = target * height // width, target
    image = _resize(image, height, width, resampling)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def _require_image(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"image: expected (H,W,3) uint8, received {image.shape} {image.dtype.name}"
        )


def _cut(image: np.ndarray, window: tuple[float, float, float, float]) -> np.ndarray:
    """Returns the window of an image, at least one pixel."""
    height, width = image.shape[:2]
    top, left, bottom, right = window
    first, last = int(top * height), max(round(bottom * height), int(top * height) + 1)
    begin, end = int(left * width), max(round(right * width), int(left * width) + 1)
    return image[first:last, begin:end]


def _resize(image: np.ndarray, height: int, width: int, resampling: str) -> np.ndarray:
    if (height, width) == image.shape[:2]:
        return image
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(
        (width, height), _RESAMPLING[resampling]
    )
    return np.asarray(resized)


@dataclass(frozen=True)
class RandomCrop:
    """Random crop of ``image``, a loader's ``transform`` for training its encoder.

    The source yields images slightly larger than the crop (usually 256 for 224). Mirroring makes
    "left" and "right" in captions wrong, so ``flip`` is off by default.

    Attributes:
        size: height and width of the crop, pixels.
        flip: mirror an image with probability 1/2.
    """

    size: int
    flip: bool = False

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Returns the example with a crop (size,size,3) of its ``image`` (H,W,3).

        Raises:
            ValueError: the image is smaller than the crop.
        """
        image = example["image"]
        height, width = image.shape[:2]
        if min(height, width) < self.size:
            raise ValueError(
                f"image: expected at least {self.size} pixels high and wide, "
                f"received {height} × {width}"
            )
        top = int(rng.integers(height - self.size + 1))
        left = int(rng.integers(width - self.size + 1))
        part = image[top : top + self.size, left : left + self.size]
        if rng.random() < 0.5 and self.flip:
            part = part[:, ::-1]
        return {**example, "image": np.ascontiguousarray(part)}
