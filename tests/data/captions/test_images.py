"""Image files of every kind as RGB; resizing and cropping against the filter written out."""

import io
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.captions import images
from data.captions.images import (
    ImageError,
    ImageTransform,
    RandomCrop,
    read_image,
    resize_crop,
)
from tests.data.pictures import random_image

ROOT = Path(__file__).parents[3]


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    image = random_image()
    read = read_image(save(tmp_path / "a.png", Image.fromarray(image)))
    np.testing.assert_array_equal(read, image)
    assert read.flags.writeable


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_grey(tmp_path: Path, suffix: str) -> None:
    grey = np.full((6, 5), 120, np.uint8)
    read = read_image(save(tmp_path / f"a.{suffix}", Image.fromarray(grey)))
    np.testing.assert_allclose(read, np.repeat(grey[..., None], 3, -1), atol=1)


def test_black_and_white(tmp_path: Path) -> None:
    bits = np.asarray([[True, False], [False, True]])
    read = read_image(save(tmp_path / "a.png", Image.fromarray(bits)))
    np.testing.assert_array_equal(read, np.repeat(bits[..., None], 3, -1) * np.uint8(255))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_lies_on_white(tmp_path: Path, mode: str) -> None:
    pixels = np.zeros((3, 4, len(mode)), np.uint8)
    pixels[1, ..., -1], pixels[2, ..., -1] = 51, 255
    read = read_image(save(tmp_path / "a.png", Image.fromarray(pixels, mode)))
    assert read.shape == (3, 4, 3)
    assert [row.mean() for row in read] == [255, 204, 0]


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.asarray([[0, 1, 2]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    expected = np.asarray([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", image)), expected)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.gif", image)), expected)
    expected[0, 1] = 255
    for name in ("b.png", "b.gif"):
        read = read_image(save(tmp_path / name, image, transparency=1))
        np.testing.assert_array_equal(read, expected)


def test_one_colour_of_rgb_is_transparent(tmp_path: Path) -> None:
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = 9, 8, 7
    path = save(tmp_path / "a.png", Image.fromarray(image), transparency=(9, 8, 7))
    assert read_image(path).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_cmyk(tmp_path: Path) -> None:
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[:, :, 1:3] = 255  # magenta and yellow
    read = read_image(save(tmp_path / "a.jpg", Image.fromarray(ink, "CMYK"), quality=95))
    np.testing.assert_allclose(read, np.broadcast_to([255, 0, 0], read.shape), atol=3)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, suffix: str) -> None:
    values = np.asarray([[0, 128, 129, 257 * 100, 65407, 65535]], np.uint16)
    read = read_image(save(tmp_path / f"a.{suffix}", Image.fromarray(values)))
    assert read[..., 0].tolist() == [[0, 0, 1, 100, 255, 255]]
    assert (read == read[..., :1]).all()


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1.0, np.float32, "floating-point numbers of unknown range"),
        (65536, np.int32, "integers beyond 16 bits, of unknown range"),
        (-1, np.int32, "integers beyond 16 bits, of unknown range"),
    ],
)
def test_unknown_ranges_are_refused(
    tmp_path: Path, value: float, dtype: type, message: str
) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.full((2, 2), value, dtype)))
    with pytest.raises(ImageError, match=message):
        read_image(path)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(
        tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options
    )
    read = read_image(path)
    np.testing.assert_array_equal(read, np.broadcast_to(np.uint8([255, 0, 0]), (6, 8, 3)))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: x.swapaxes(0, 1)[::-1, ::-1]),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_pictures_stand_upright(tmp_path: Path, orientation: int, upright: Callable) -> None:
    image, exif = random_image(), Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "tif", "webp"):
        options = {"lossless": True} if suffix == "webp" else {}
        path = save(tmp_path / f"a.{suffix}", Image.fromarray(image), exif=exif, **options)
        read = read_image(path)
        np.testing.assert_array_equal(read, upright(image))
        assert read.flags.c_contiguous


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random_image(64, 64)).save(buffer, "JPEG")
    return buffer.getvalue()


def enormous_png(side: int = 60_000) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = side.to_bytes(4) * 2
    checksum = zlib.crc32(content[12:29])
    content[29:33] = checksum.to_bytes(4)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no image in a format"),
        (b"<html>not found</html>", "no image in a format"),
        (jpeg()[:20], "a.jpg: ."),
        (jpeg()[: len(jpeg()) // 2], "truncated"),
        (
            enormous_png(),
            r"expected at most 50000000 pixels; .*\(3600000000 pixels\) exceeds limit",
        ),
    ],
)
def test_what_does_not_decode(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as raised:
        read_image(path)
    assert str(raised.value).startswith(f"{path}: ")
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (copy.path, copy.reason, str(copy)) == (
        str(path),
        raised.value.reason,
        str(raised.value),
    )


@pytest.mark.parametrize(
    ("save_as", "name"),
    [("EPS", "a.jpg"), ("PCX", "a.jpg"), ("ICO", "a.png"), ("AVIF", "a.webp"), ("PDF", "a.png")],
)
def test_other_formats_are_refused_whatever_their_name(
    tmp_path: Path, save_as: str, name: str
) -> None:
    path = tmp_path / name
    Image.fromarray(random_image(16, 16)).save(path, save_as)
    with pytest.raises(ImageError, match=rf"{name}: no image in a format that is read \(JPEG, PNG"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif", "ppm"])
def test_images_beyond_the_limit_are_refused(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(random_image(20, 30)))
    assert read_image(path, max_pixels=600).shape == (20, 30, 3)
    message = rf"a\.{suffix}: expected at most 599 pixels, received 30 × 20; a larger max_pixels"
    with pytest.raises(ImageError, match=message):
        read_image(path, max_pixels=599)


def tiff_of_one_tile(height: int, width: int, tile: int) -> bytes:
    """Returns a grey TIFF that is smaller than its only, compressed tile."""
    data = zlib.compress(bytes(tile * tile), 9)
    numbers = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1}
    numbers |= {322: tile, 323: tile, 324: 8, 325: len(data)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in numbers.items()]
    start = b"II*\0" + struct.pack("<I", 8 + len(data))
    return start + data + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def gif_header(width: int, height: int) -> bytes:
    """Returns a GIF of 35 bytes with any size."""
    size = struct.pack("<HH", width, height)
    colours = b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    return b"GIF89a" + size + colours + b",\0\0\0\0" + size + b"\0\x02\x02\x4c\x01\0;"


def palette_png(side: int) -> bytes:
    image = Image.new("P", (side, side))
    image.putpalette([255, 0, 0, 0, 255, 0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=1)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "megabytes"),
    [
        (lambda: gif_header(13_000, 13_000), 20),
        (lambda: enormous_png(13_000), 20),
        (lambda: tiff_of_one_tile(16, 16, 8_000), 20),
        # Decoded, with a transparent palette: 1 byte a pixel in Pillow, 3 in the array.
        (lambda: palette_png(5_000), 25 * 5),
    ],
)
def test_memory_is_bounded_before_an_image_is_decoded(
    tmp_path: Path, content: Callable[[], bytes], megabytes: int
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content())
    code = (
        "import resource, sys\n"
        "from data.captions.images import ImageError, read_image\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try: read_image(sys.argv[1])\n"
        "except ImageError: pass\n"
        "print(peak() - before)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 < megabytes


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "I;16"])
def test_images_are_converted_band_by_band_as_at_once(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (21, 10), np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (21, 10, 4), np.uint8), "RGBA").convert(mode)
    path = save(tmp_path / "a.png", image, **({"transparency": 3} if mode == "P" else {}))
    expected = read_image(path)
    for pixels in (1, 30, 100):
        monkeypatch.setattr(images, "_BAND", pixels)
        np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("max_pixels", [0, -1, 10**9])
def test_limits_that_pillow_does_not_have(max_pixels: int) -> None:
    with pytest.raises(ValueError, match=r"max_pixels: expected 1 to 178956970, .* received"):
        images.check_max_pixels(max_pixels)


def test_damaged_bytes_decode_or_raise_the_one_error(tmp_path: Path) -> None:
    rng, path, failures = np.random.default_rng(0), tmp_path / "a", 0
    for suffix in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        buffer = io.BytesIO()
        Image.fromarray(random_image(16, 16)).save(buffer, suffix)
        for _ in range(60):
            content = np.frombuffer(buffer.getvalue(), np.uint8).copy()
            content[rng.integers(0, len(content), 5)] = rng.integers(0, 256, 5)
            path.write_bytes(content.tobytes())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert read_image(path).shape[2] == 3
                except ImageError:
                    failures += 1
    assert 0 < failures < 360


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "a.jpg")


def triangle_weights(old: int, new: int) -> np.ndarray:
    """Returns (new,old) weights of antialiased linear interpolation, half-pixel centres."""
    scale = max(old / new, 1)
    centres = (np.arange(new) + 0.5) * old / new
    distance = np.abs(np.arange(old) + 0.5 - centres[:, None]) / scale
    weights = np.maximum(0, 1 - distance)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("height", "width", "size", "short_side"),
    [(40, 61, 16, 20), (61, 40, 16, 20), (33, 33, 16, None), (10, 13, 16, 17), (20, 35, 16, 20)],
)
def test_resizing_against_the_filter(
    height: int, width: int, size: int, short_side: int | None
) -> None:
    image = random_image(height, width)
    short = short_side or size
    if height <= width:
        new_height, new_width = short, int(short * width / height)
    else:
        new_height, new_width = int(short * height / width), short
    expected = np.einsum(
        "hy,yxc,wx->hwc",
        triangle_weights(height, new_height),
        image.astype(float),
        triangle_weights(width, new_width),
    )
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    expected = expected[top : top + size, left : left + size]
    result = resize_crop(image, size, short_side=short_side)
    assert result.shape == (size, size, 3)
    np.testing.assert_allclose(result, expected, atol=1.01)
    np.testing.assert_array_equal(ImageTransform(size, short_side)(image), result)


def test_an_image_of_the_size_is_left_alone() -> None:
    image = random_image(224, 224)
    np.testing.assert_array_equal(resize_crop(image, 224), image)
    np.testing.assert_array_equal(
        resize_crop(image, 224, resampling="bicubic", short_side=224), image
    )


@pytest.mark.parametrize("mirror", [False, True])
def test_the_whole_of_an_image_is_stretched_and_mirrored(mirror: bool) -> None:
    image = random_image(18, 40)
    expected = np.einsum(
        "hy,yxc,wx->hwc", triangle_weights(18, 12), image.astype(float), triangle_weights(40, 12)
    )
    result = ImageTransform(12, stretch=True, mirror=mirror)(image)
    np.testing.assert_allclose(result, expected[:, ::-1] if mirror else expected, atol=1.01)
    cut = ImageTransform(12)(image)
    np.testing.assert_array_equal(ImageTransform(12, mirror=True)(image), cut[:, ::-1])


@pytest.mark.parametrize("stretch", [False, True])
def test_a_window_of_an_image(stretch: bool) -> None:
    image = random_image(20, 50)
    transform = ImageTransform(8, stretch=stretch, window=(0.2, 0.0, 1.0, 0.8))
    expected = ImageTransform(8, stretch=stretch)(np.ascontiguousarray(image[4:, :40]))
    np.testing.assert_array_equal(transform(image), expected)
    point = ImageTransform(8, stretch=stretch, window=(0.5, 0.5, 0.501, 0.501))(image)
    np.testing.assert_array_equal(point, np.broadcast_to(image[10, 25], (8, 8, 3)))


@pytest.mark.parametrize(
    "window", [(0, 0, 1.1, 1), (0.5, 0, 0.5, 1), (-0.1, 0, 1, 1), (0, 1, 1, 1)]
)
def test_a_window_that_is_none(window: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"window: expected 0 <= top < bottom <= 1 .*received \("):
        ImageTransform(8, window=window)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_middle_of_a_strip(axis: int) -> None:
    strip = np.zeros((2, 200_000, 3), np.uint8)
    strip[:, 99_999:100_001] = 255
    result = resize_crop(strip.swapaxes(0, axis), 64)
    assert result.shape == (64, 64, 3)
    ramp = result.swapaxes(0, axis)[0, :, 0].astype(int)
    np.testing.assert_array_equal(ramp, ramp[::-1])
    assert ramp.min() > 120
    assert ramp.max() == 255


@pytest.mark.parametrize("flip", [False, True])
def test_random_crops(flip: bool) -> None:
    image = random_image(12, 10)
    crop = RandomCrop(8, flip)
    seen = set()
    for seed in range(200):
        example = crop({"image": image, "mask": 1}, np.random.default_rng(seed))
        assert example["mask"] == 1
        for top in range(5):
            for left in range(3):
                part = image[top : top + 8, left : left + 8]
                for mirrored, candidate in ((False, part), (True, part[:, ::-1])):
                    if np.array_equal(example["image"], candidate):
                        seen.add((top, left, mirrored))
    assert len(seen) == (30 if flip else 15)
    with pytest.raises(ValueError, match="at least 11 pixels high and wide, received 12 × 10"):
        RandomCrop(11)({"image": image}, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size: expected at least 1"),
        ({"size": 224, "short_side": 200}, "short_side: expected at least the size 224"),
        ({"short_side": 256, "stretch": True}, "short_side: expected None with stretch=True"),
        ({"resampling": "nearest"}, "resampling: expected one of bilinear, bicubic"),
    ],
)
def test_wrong_settings(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTransform(**arguments)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_wrong_images(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"image: expected \(H,W,3\) uint8"):
        resize_crop(image, 4)
    with pytest.raises(ValueError, match=r"image: expected \(H,W,3\) uint8"):
        ImageTransform(4, stretch=True)(image)


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (64, 48)).save(path, progressive=True)
    assert read_image(path).shape == (48, 64, 3)
    content = path.read_bytes()
    last_scan = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + 1000 * last_scan + content[-2:])
    with pytest.raises(ImageError, match="expected at most 100 scans of a JPEG, received 10"):
        read_image(path)
