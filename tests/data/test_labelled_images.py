"""Labelled images as examples and as clips of one frame."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.captions.images import ImageTransform, read_image
from data.labelled_images import DecodeImage, ImageFeatures, ImageSource, WholeImages
from data.video.transforms import SpatialTransform
from tests.data.pictures import random_image

RNG = np.random.default_rng(0)


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    Image.fromarray(random_image(20, 30)).save(tmp_path / "a.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    return ImageSource(
        tuple(str(tmp_path / name) for name in ("a.png", "broken.jpg", "gone.png")), (2, 1, 0)
    )


def test_whole_images(source: ImageSource) -> None:
    whole = WholeImages(source, ImageTransform(8))
    for images in (whole, pickle.loads(pickle.dumps(whole))):
        expected = ImageTransform(8)(read_image(source.paths[0]))
        np.testing.assert_array_equal(images[0]["image"], expected)
        assert [int(images[k]["label"]) for k in range(3)] == [2, -1, -1]
        assert [bool(images[k]["mask"]) for k in range(3)] == [True, False, False]
    assert "broken.jpg" in whole.explain(1)
    assert "gone.png" in whole.explain(2)
    assert "succeeds now" in whole.explain(0)


def test_features_are_clips_of_one_step(source: ImageSource) -> None:
    whole = WholeImages(source, ImageTransform(8))
    encoded = [{**whole[k], "features": np.full(4, k, np.float16)} for k in range(3)]
    features = ImageFeatures(encoded, whole, (5, 6, 7))
    assert features[0]["features"].shape == (1, 4)
    assert int(features[0]["lengths"]) == 1
    # Unreadable images keep the unknown label.
    assert [int(features[k]["label"]) for k in range(3)] == [5, -1, -1]
    assert "image" not in features[0]


def test_decoding(source: ImageSource) -> None:
    decode = DecodeImage(ImageTransform(8))
    example = decode(source[0], RNG)
    np.testing.assert_array_equal(
        example["video"][0], WholeImages(source, decode.transform)[0]["image"]
    )
    assert not decode(source[1], RNG)["mask"]
    random = DecodeImage(ImageTransform(8), SpatialTransform((8, 8), flip=True))
    crops = [random(source[0], np.random.default_rng(k))["video"] for k in range(3)]
    assert {crop.shape for crop in crops} == {(1, 8, 8, 3)}
    assert not np.array_equal(crops[0], crops[1])
    with pytest.raises(ValueError, match="one for each of 2 paths, received 1"):
        ImageSource(("a", "b"), (0,))
