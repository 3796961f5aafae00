"""Captioning examples and batches of image files, features and videos."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.captions.examples import CaptionSource, ImageSource
from data.captions.images import ImageTransform, RandomCrop, read_image
from data.captions.length_buckets import LengthBuckets, choose_boundaries
from data.captions.vocabulary import EOS, Vocabulary
from data.features import write_features
from data.loader import Loader
from data.moving_shapes.source import MovingShapes

CAPTIONS = (
    ("A dog runs .", "The dog", "..."),
    ("A cat",),
    ("the cat runs to a dog", "a dog and a cat", "dogs", "a zebra runs"),
)
VOCABULARY = Vocabulary(("a", "dog", "cat", "the", "runs", "to", "and"))
TRANSFORM = ImageTransform(8)


@pytest.fixture
def paths(tmp_path: Path) -> tuple[str, ...]:
    """Writes three images of several sizes; number 1 is truncated."""
    found = []
    for number, shape in enumerate([(20, 12, 3), (16, 16, 3), (9, 14)]):
        path = tmp_path / f"{number}.jpg"
        pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(path)
        if number == 1:
            path.write_bytes(path.read_bytes()[:-60])
        found.append(str(path))
    return tuple(found)


def make_source(paths: tuple[str, ...], **changes: Any) -> CaptionSource:
    settings: dict[str, Any] = {"pairs": True, **changes}
    inputs = settings.pop("inputs", ImageSource(paths, TRANSFORM))
    captions = settings.pop("captions", CAPTIONS)
    return CaptionSource(inputs, captions, VOCABULARY, **settings)


def test_pairs(paths: tuple[str, ...]) -> None:
    source = make_source(paths)
    assert (len(source), source.dropped) == (7, 1)
    assert (source.num_captions, source.num_tokens) == (1, 7)
    assert source.example_lengths.tolist() == [4, 3, 3, 7, 6, 2, 4]
    assert [source.input_of(i) for i in range(7)] == [0, 0, 1, 2, 2, 2, 2]
    said = [VOCABULARY.decode(source[i]["tokens"][0]) for i in range(7)]
    assert said == [
        "a dog runs",
        "the dog",
        "a cat",
        "the cat runs to a dog",
        "a dog and a cat",
        "<unk>",
        "a <unk> runs",
    ]
    for index in range(7):
        example: Any = source[index]
        number = source.input_of(index)
        shapes = {name: (array.shape, array.dtype.name) for name, array in example.items()}
        assert shapes == {
            "image": ((8, 8, 3), "uint8"),
            "tokens": ((1, 7), "int32"),
            "token_lengths": ((1,), "int32"),
            "mask": ((), "bool"),
            "index": ((), "int32"),
        }
        length = int(example["token_lengths"][0])
        assert example["tokens"][0, length - 1] == EOS
        assert not example["tokens"][0, length:].any()
        assert example["index"] == index
        assert example["mask"] == (number != 1)
        if number != 1:
            np.testing.assert_array_equal(example["image"], TRANSFORM(read_image(paths[number])))


def test_all_captions_of_an_image(paths: tuple[str, ...]) -> None:
    source = make_source(paths, pairs=False)
    assert (len(source), source.dropped) == (3, 1)
    assert (source.num_captions, source.num_tokens) == (4, 7)
    assert source.example_lengths.tolist() == [4, 3, 7]
    pairs = make_source(paths)
    for index, first in enumerate([0, 2, 3]):
        example = source[index]
        count = (2, 1, 4)[index]
        assert example["tokens"].shape == (4, 7)
        assert (example["token_lengths"] > 0).tolist() == [i < count for i in range(4)]
        for row in range(4):
            if row < count:
                pair = pairs[first + row]
                np.testing.assert_array_equal(example["tokens"][row], pair["tokens"][0])
                assert example["token_lengths"][row] == pair["token_lengths"][0]
            else:
                assert not example["tokens"][row].any()
        assert example["index"] == source.input_of(index) == index


def test_long_captions_are_cut(paths: tuple[str, ...]) -> None:
    source = make_source(paths, max_words=3)
    assert source.num_tokens == 4
    assert VOCABULARY.decode(source[3]["tokens"][0]) == "the cat runs"
    assert source[3]["tokens"][0].tolist() == [7, 6, 8, EOS]
    assert source.example_lengths.tolist() == [4, 3, 3, 4, 4, 2, 4]


@pytest.mark.parametrize("pairs", [True, False])
def test_weights_are_those_of_the_captions_that_are_there(
    paths: tuple[str, ...], pairs: bool
) -> None:
    weights = ((0.5, 1.5, 9), (1,), (2, 0, 1.25, 0.75))
    source = make_source(paths, pairs=pairs, weights=weights)
    found: list[Any] = [source[i]["caption_weights"] for i in range(len(source))]
    expected = [[0.5, 1.5, 0, 0], [1, 0, 0, 0], [2, 0, 1.25, 0.75]]
    if pairs:
        expected = [[0.5], [1.5], [1], [2], [0], [1.25], [0.75]]
    assert [row.tolist() for row in found] == expected
    assert found[0].dtype == np.float32
    assert repr(source) != repr(make_source(paths, pairs=pairs))


def test_a_source_can_be_pickled(paths: tuple[str, ...]) -> None:
    source = make_source(paths)
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source)
    np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])


def test_why_an_image_is_left_out(paths: tuple[str, ...]) -> None:
    source = make_source(paths)
    assert source.explain(2).startswith(f"{paths[1]}: image file is truncated")
    assert source.explain(0) == "image 0: decoding failed before, but succeeds now"
    Path(paths[1]).unlink()
    assert not source[2]["mask"]
    assert paths[1] in source.explain(2)


def test_cached_features(paths: tuple[str, ...], tmp_path: Path) -> None:
    key = dict.fromkeys(("encoder", "weights", "preprocessing", "source"), "x")
    images = ImageSource(paths, TRANSFORM)
    features = write_features(
        tmp_path / "cache", images, lambda x: x.reshape(-1, 4, 2, 8, 3).mean((2, 3)), key=key
    )
    source = make_source(paths, inputs=features, names=paths)
    for index in (0, 2, 6):
        example, number = source[index], source.input_of(index)
        assert sorted(example) == ["features", "index", "mask", "token_lengths", "tokens"]
        assert example["features"].dtype == np.float16
        expected = images[number]["image"].reshape(4, 2, 8, 3).mean((1, 2))
        np.testing.assert_allclose(example["features"], expected * (number != 1), rtol=1e-3)
        assert example["mask"] == (number != 1)
        assert example["index"] == index
    assert source.explain(2) == f"{paths[1]}: could not be read when its features were extracted"
    assert make_source(paths, inputs=features).explain(2).startswith("input 1: could not")


@pytest.mark.parametrize("pairs", [True, False])
def test_captions_of_videos(pairs: bool) -> None:
    shapes = MovingShapes("train", 3)
    captions = [shapes.captions(i) for i in range(3)]
    vocabulary = Vocabulary.from_captions((text for texts in captions for text in texts), 1)
    source = CaptionSource(shapes, captions, vocabulary, pairs=pairs)
    example = source[len(source) - 1]
    expected = {"video", "lengths", "tokens", "token_lengths", "mask", "index"}
    assert set(example) == expected
    assert (len(source), example["tokens"].shape[0]) == ((15, 1) if pairs else (3, 5))
    np.testing.assert_array_equal(example["video"], shapes[2]["video"])
    said = vocabulary.decode(example["tokens"][-1])
    assert said == captions[2][4].lower().replace(",", "").replace(";", "").rstrip(".")


def test_training_batches_of_pairs_with_crops(
    paths: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    source = make_source(paths)
    boundaries = choose_boundaries(source.example_lengths, 2)
    order = LengthBuckets(source.example_lengths, boundaries, batch_size=2)

    def make(**changes: Any) -> Loader:
        return Loader(
            source,
            batch_size=2,
            transform=RandomCrop(6, flip=True),
            train=True,
            order=order,
            max_bad_share=0.2,
            **{"num_threads": 1, **changes},
        )

    loader = make()
    with caplog.at_level(logging.WARNING), loader.batches() as batches:
        read = [next(batches) for _ in range(7)]
        state = json.loads(json.dumps(batches.get_state()))
        following = next(batches)
    assert np.bincount(np.concatenate([b["index"] for b in read])).tolist() == [2] * 7
    assert {b["tokens"].shape[-1] for b in read} <= set(boundaries)
    assert all(b["image"].shape == (2, 6, 6, 3) for b in read)
    assert list(loader.bad) == [2]
    assert loader.bad[2].startswith(f"{paths[1]}: image file is truncated")
    assert len(caplog.records) == 1
    with make(num_threads=0).batches() as batches:
        batches.set_state(state)
        resumed = next(batches)
    for name in following:
        np.testing.assert_array_equal(resumed[name], following[name])


def test_evaluation_batches_are_filled_up(paths: tuple[str, ...]) -> None:
    source = make_source(paths, pairs=False)
    loader = Loader(source, batch_size=2, train=False, num_threads=0, max_bad_share=1)
    first, last = loader.batches()
    assert first["tokens"].shape == (2, 4, 7)
    assert first["mask"].tolist() == [True, False]
    assert last["mask"].tolist() == [True, False]
    assert last["index"].tolist() == [2, -1]
    assert (last["token_lengths"] > 0).tolist() == [[True] * 4, [False] * 4]
    assert not last["tokens"][1].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": CAPTIONS[:2]}, r"captions: expected those of each of 3 inputs .*received 2"),
        ({"captions": (), "inputs": []}, r"of 0 inputs \(at least 1\), received 0"),
        ({"captions": (("a",), (" .", ""), ("b",))}, r"words about input 1, received \[' \.', ''"),
        ({"captions": (("a",), (), ("b",)), "names": "abc"}, r"words about b, received \[\]"),
        ({"names": "ab"}, "names: expected 3, received 2"),
        ({"max_words": 0}, "max_words: expected at least 1, received 0"),
    ],
)
def test_wrong_arguments(paths: tuple[str, ...], changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_source(paths, **changes)


def test_wrong_use(paths: tuple[str, ...]) -> None:
    for index in (-1, 7):
        with pytest.raises(IndexError, match=f"expected 0 to 6, received {index}"):
            make_source(paths)[index]
    both = {"image": np.zeros((2, 2, 3), np.uint8), "features": np.zeros(3)}
    for example in ({"index": np.asarray(0)}, both):
        with pytest.raises(ValueError, match="inputs: expected one of image, features, video"):
            make_source(paths, inputs=[example] * 3)[0]
