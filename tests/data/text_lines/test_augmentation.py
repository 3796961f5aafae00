"""Random distortion of lines: what it changes, and what it never does."""

import pickle
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from data.loader import Loader
from data.text_lines.augmentation import LineAugmentation
from data.text_lines.synthetic_lines import SyntheticLines
from data.width_buckets import WidthBuckets

RATES = [field.name for field in fields(LineAugmentation) if field.name.endswith("_rate")]
OPERATIONS = [name.removesuffix("_rate") for name in RATES]


def example(width: int = 60, height: int = 24, padding: int = 0) -> dict[str, Any]:
    """A line with a dark bar on paper of level 230."""
    image = np.full((height, width + padding, 1), 230, np.uint8)
    image[6:18, 10:14] = 20
    image[6:18, 40:50] = 20
    image[:, width:] = 0
    return {
        "image": image,
        "lengths": np.asarray(width, np.int32),
        "tokens": np.array([1, 2], np.int32),
        "token_lengths": np.asarray(2, np.int32),
        "mask": np.asarray(True),
        "index": np.asarray(3, np.int32),
    }


def only(*operations: str) -> LineAugmentation:
    rates: dict[str, Any] = {
        name: float(name.removesuffix("_rate") in operations) for name in RATES
    }
    return LineAugmentation(**rates)


def test_the_same_random_numbers_make_the_same_line() -> None:
    transform = pickle.loads(pickle.dumps(only(*OPERATIONS)))
    first, again, other = (
        transform(example(), np.random.default_rng(seed))["image"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or (first != other).any()


def test_widths_stay_within_the_stated_factor() -> None:
    transform = only(*OPERATIONS)
    assert transform.max_stretch == 1.1
    assert only("slant").max_stretch == 1.0
    rng = np.random.default_rng(0)
    widths = []
    for _ in range(100):
        found = transform(example(), rng)
        widths.append(found["image"].shape[1])
        assert found["image"].shape == (24, widths[-1], 1)
        assert found["image"].dtype == np.uint8
        assert found["lengths"] == widths[-1]
        assert found["lengths"].dtype == np.int32
        assert found["index"] == 3
        np.testing.assert_array_equal(found["tokens"], [1, 2])
    assert 54 <= min(widths) < 58
    assert 62 < max(widths) <= 66
    assert transform(example(width=51), rng)["lengths"] <= 51 * transform.max_stretch


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_distortion_alone_keeps_the_ink_and_the_paper(operation: str) -> None:
    changed = 0
    for seed in range(8):
        image = only(operation)(example(), np.random.default_rng(seed))["image"]
        changed += image.shape != (24, 60, 1) or bool((image != example()["image"]).any())
        assert abs(int(np.median(image)) - 230) <= (40 if operation == "contrast" else 3)
        dark = (image < np.median(image) - 70).mean() * image.shape[1] / 60
        assert dark == pytest.approx(12 * 14 / (24 * 60), abs=0.06)
    assert changed >= 4  # Weak ones are rounded away.


def test_nothing_changes_without_rates() -> None:
    found = only()(example(padding=9), np.random.default_rng(0))
    np.testing.assert_array_equal(found["image"], example()["image"])


def test_padding_does_not_enter_the_line() -> None:
    transform = only(*OPERATIONS)
    plain, padded = (
        transform(example(padding=size), np.random.default_rng(0))["image"] for size in (0, 20)
    )
    np.testing.assert_array_equal(plain, padded)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_lines_of_a_few_columns(width: int) -> None:
    line = {**example(), "image": np.full((24, width, 1), 9, np.uint8), "lengths": np.int32(width)}
    for seed in range(10):
        found = only(*OPERATIONS)(line, np.random.default_rng(seed))
        assert found["lengths"] == found["image"].shape[1] >= 1


def test_undecodable_lines_stay_as_they_are() -> None:
    line = {**example(), "mask": np.asarray(False)}
    assert only(*OPERATIONS)(line, np.random.default_rng(0)) == line


@pytest.mark.parametrize(
    ("name", "value"),
    [("slant", -0.1), ("noise_rate", 1.5), ("stretch", 0.6), ("blur", float("nan"))],
)
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        LineAugmentation(**{name: value})


def test_batches_of_width_buckets_hold_what_it_makes() -> None:
    lines = SyntheticLines("train", 24, height=24)
    transform = only(*OPERATIONS)
    plan = WidthBuckets(
        np.ceil(lines.lengths() * transform.max_stretch).astype(np.int64),
        batch_width=400,
        num_buckets=3,
        token_lengths=lines.token_lengths(),
        train=True,
    )
    loader = Loader(lines, batch_size=2, transform=transform, plan=plan, train=True, num_threads=1)
    with loader.batches() as batches:
        found = [next(batches) for _ in range(6)]
    for batch in found:
        assert batch["mask"].all()
        widths = batch["lengths"]
        assert widths.max() <= batch["image"].shape[2]
        np.testing.assert_array_equal(batch["token_lengths"], (batch["tokens"] > 0).sum(1))
        for image, width in zip(batch["image"], widths, strict=True):
            assert image[:, width - 1].any()
            assert not image[:, width:].any()
    with loader.batches(4) as batches:
        np.testing.assert_array_equal(next(batches)["image"], found[4]["image"])
