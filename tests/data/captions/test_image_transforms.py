"""The resizing and cutting of images, against the filter written out."""

import numpy as np
import pytest

from data.captions.images import ImageTransform, RandomCrop, resize_crop
from tests.data.pictures import random_image


def triangle_weights(old: int, new: int) -> np.ndarray:
    """(new,old): antialiased linear interpolation, half-pixel centres, written out."""
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
