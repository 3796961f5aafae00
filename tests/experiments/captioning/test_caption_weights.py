"""Captions of similar images as further references of self-critical training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import scst
from experiments.captioning.caption_weights import add_captions, find_neighbours
from experiments.captioning.data import read_split
from tests.launch.captioners import CAPTIONS, make_config, make_flickr8k

SCST = "experiments/scst.py"


def maps_of(vectors: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Returns feature maps (2,3,D) float16 whose means over space are the vectors."""
    noise = np.random.default_rng(1).normal(size=(len(vectors), 2, 3, vectors.shape[1]))
    noise -= noise.mean((1, 2), keepdims=True)
    return [
        {"features": features.astype(np.float16)} for features in vectors[:, None, None] + noise
    ]


def test_neighbours_are_the_most_similar_images_and_never_the_image_itself() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(4, 16))
    # More images than SIMILARITY_ROWS; each kind has a quarter of them.
    vectors = np.tile(kinds, (300, 1)) * rng.uniform(1, 1.2, (1200, 1))
    found = find_neighbours(maps_of(vectors + 0.01 * rng.normal(size=(1200, 16))), 5)
    assert found.shape == (1200, 5)
    rows = np.arange(1200)[:, None]
    assert (found % 4 == rows % 4).all()
    assert (found != rows).all()
    assert (np.diff(np.sort(found)) > 0).all()


def test_the_most_similar_comes_first() -> None:
    angles = np.radians([0, 10, 35, 80, 170, 260])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    maps = [{"features": np.tile(v, (1, 1, 1)).astype(np.float32)} for v in vectors]
    standard = (vectors - vectors.mean(0)) / (vectors.std(0) + 0.05)
    standard /= np.linalg.norm(standard, axis=1, keepdims=True)
    similarities = standard @ standard.T
    expected = np.argsort(-similarities, axis=1)
    assert (expected[:, 0] == np.arange(6)).all()
    np.testing.assert_array_equal(find_neighbours(maps, 5), expected[:, 1:])
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"data.num_neighbours: expected 0 to 5, .* {count}"):
            find_neighbours(maps, count)


def test_neighbours_captions_together_weigh_their_share() -> None:
    captions = [("a", "b"), ("c",), ("d", "e", "f")]
    joined, weights = add_captions(captions, np.array([[1, 2], [0, 2], [0, 1]]), 0.25)
    assert joined[0] == ("a", "b", "c", "d", "e", "f")
    assert joined[1] == ("c", "a", "b", "d", "e", "f")
    np.testing.assert_allclose(weights[0], [0.375] * 2 + [0.0625] * 4)
    np.testing.assert_allclose(weights[1], [0.75] + [0.05] * 5)
    with pytest.raises(ValueError, match=r"data.neighbour_share: expected 0 to 1, received 1\.5"):
        add_captions(captions, np.array([[1], [0], [0]]), 1.5)


@pytest.mark.slow
def test_training_batches_have_the_neighbours_captions_and_others_do_not(tmp_path: Path) -> None:
    config = make_config(make_flickr8k(tmp_path), SCST)
    config.data.num_neighbours, config.data.neighbour_share = 2, 0.4
    batches: dict[str, Any] = {}
    for split in ("train", "validation"):
        with config.make_data(split).batches() as stream:
            batches[split] = next(stream)
    own = len(CAPTIONS)
    weights = batches["train"]["caption_weights"]
    assert batches["train"]["tokens"].shape[:2] == (8, 3 * own)
    np.testing.assert_allclose(weights[:, :own], 0.6 / own, rtol=1e-6)
    np.testing.assert_allclose(weights[:, own:], 0.4 / (2 * own), rtol=1e-6)
    assert batches["validation"]["tokens"].shape[1] == own
    assert "caption_weights" not in batches["validation"]
    # The split itself, and with it vocabulary and frequencies, is unchanged.
    assert {len(texts) for texts in read_split(config.data, "train").captions} == {own}


@pytest.mark.parametrize(
    ("experiment", "changes"),
    [
        ("experiments/show_attend_tell.py", {}),
        (SCST, {"frozen": False}),
        (SCST, {"consensus": 1.0}),
        (f"{SCST}:smoke", {"kind": "moving_shapes"}),
    ],
)
def test_only_rewards_on_cached_features_have_neighbours(
    tmp_path: Path, experiment: str, changes: dict[str, Any]
) -> None:
    config = make_config(make_flickr8k(tmp_path), experiment)
    config.data.num_neighbours = 2
    for name, value in changes.items():
        setattr(config.model.encoder if name == "frozen" else config.data, name, value)
    with pytest.raises(
        ValueError, match=r"data.num_neighbours: expected 0, received 2: neighbours"
    ):
        config.make_data("train")


def test_flickr8k_s_rewards_have_neighbours_and_no_other_variant_s() -> None:
    counts = {
        variant: scst.get_config(variant).data.num_neighbours
        for variant in (None, "flickr8k", "coco", "moving_shapes", "smoke", "cross_entropy")
    }
    assert counts == {None: 3, "flickr8k": 3} | dict.fromkeys(list(counts)[2:], 0)
