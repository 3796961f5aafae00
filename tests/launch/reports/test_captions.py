"""Galleries: the correct examples in each, with their images, references and attention."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch.reports.captions import CaptionAttention, highlight, make_galleries

COUNT = 40
SCORES = list(np.random.default_rng(0).permutation(COUNT) / 10)
REFERENCES = [(f"caption {index} of a person", "another") for index in range(COUNT)]


def make_records(count: int = COUNT) -> list[dict[str, Any]]:
    return [
        {"index": i, "caption": f"dog {i}", "log_probability": -1.0 - i, "ended": i != 3}
        for i in range(count)
    ]


def load_image(index: int) -> np.ndarray:
    return np.full((1, 480, 640, 3), index, np.uint8)


def test_best_worst_and_random_examples_are_others() -> None:
    best, worst, drawn = make_galleries(make_records(), REFERENCES, SCORES, load_image)
    order = np.argsort(SCORES)
    assert [picture.index for picture in best.pictures] == list(order[::-1][:6])
    assert [picture.index for picture in worst.pictures] == list(order[:6])
    shown = [p.index for gallery in (best, worst, drawn) for p in gallery.pictures]
    assert len(shown) == len(set(shown)) == 18
    again = make_galleries(make_records(), REFERENCES, SCORES, load_image)[2]
    assert again == drawn
    for gallery in (best, worst, drawn):
        for picture in gallery.pictures:
            assert picture.caption == f"dog {picture.index}"
            assert picture.score == SCORES[picture.index]
            assert picture.references == REFERENCES[picture.index]
            assert picture.log_probability == -1.0 - picture.index
            assert picture.ended == (picture.index != 3)
            (frame,) = picture.frames
            assert (frame.width, frame.height) == (320, 240)


def test_examples_that_were_skipped_leave_the_others_in_place() -> None:
    records = make_records()[5:]  # The first could not be decoded.
    best, *_ = make_galleries(records, REFERENCES, SCORES[5:], load_image)
    first = best.pictures[0]
    assert first.references == REFERENCES[first.index]
    assert first.score == max(SCORES[5:])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 17])
def test_a_few_examples_are_shown_once_each(count: int) -> None:
    galleries = make_galleries(make_records(count), REFERENCES, SCORES[:count], load_image)
    shown = [picture.index for gallery in galleries for picture in gallery.pictures]
    assert len(shown) == len(set(shown)) == count
    assert galleries[0].pictures


def test_an_unreadable_image_costs_only_itself() -> None:
    def fail(index: int) -> np.ndarray:
        if index == int(np.argmax(SCORES)):
            raise OSError("damaged")
        return load_image(index)

    best, *_ = make_galleries(make_records(), REFERENCES, SCORES, fail)
    assert best.pictures[0].problem == "could not be loaded: damaged"
    assert best.pictures[0].caption
    assert all(picture.frames for picture in best.pictures[1:])


def decode(source: str) -> np.ndarray:
    file = io.BytesIO(base64.b64decode(source.partition(",")[2]))
    return np.asarray(Image.open(file), int)


def test_attention_of_some_is_drawn() -> None:
    image = np.full((96, 96, 3), 200, np.uint8)
    asked: list[int] = []

    def find_attention(indices: Sequence[int]) -> Mapping[int, CaptionAttention]:
        asked.extend(indices)
        attention = {}
        for index in indices[:-1]:  # The last could not be told.
            weights = np.random.default_rng(index).dirichlet(np.ones(49), 2).reshape(2, 7, 7)
            attention[index] = CaptionAttention(("dog", str(index)), weights, image)
        # Another checkpoint found other words.
        attention[indices[0]] = CaptionAttention(("cat",), np.ones((1, 7, 7)), image)
        return attention

    galleries = make_galleries(make_records(), REFERENCES, SCORES, load_image, find_attention)
    firsts = [picture.index for gallery in galleries for picture in gallery.pictures[:2]]
    assert asked == firsts
    for gallery in galleries:
        for picture in gallery.pictures:
            if picture.index not in firsts[1:-1]:
                assert picture.tiles == ()
                continue
            assert [tile.word for tile in picture.tiles] == ["dog", str(picture.index)]
            rng = np.random.default_rng(picture.index)
            expected = rng.dirichlet(np.ones(49), 2).reshape(2, 7, 7)
            for tile, weights in zip(picture.tiles, expected, strict=True):
                assert tile.peak == weights.max()
                difference = decode(tile.frame.source) - highlight(image, weights)
                assert np.abs(difference).max() <= 12


def test_a_video_has_a_film_strip_and_weights_of_its_steps() -> None:
    weights = np.random.default_rng(1).dirichlet(np.ones(16), 2)
    galleries = make_galleries(
        make_records(),
        REFERENCES,
        SCORES,
        lambda index: np.full((16, 12, 20, 3), index, np.uint8),
        lambda indices: {
            index: CaptionAttention(("dog", str(index)), weights) for index in indices
        },
    )
    first = galleries[0].pictures[0]
    assert len(first.frames) == 8
    assert [word for word, _ in first.steps] == first.caption.split()
    np.testing.assert_array_equal([values for _, values in first.steps], weights)
