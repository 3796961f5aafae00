"""The embedded data set: deterministic, symmetric in time, uninformative in a single frame."""

import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from data.moving_shapes.rendering import render
from data.moving_shapes.scenes import (
    CLASSES,
    COLORS,
    RADIUS_RANGE,
    REVERSED_CLASS,
    SHAPES,
    Scene,
    draw_scene,
)
from data.moving_shapes.source import MovingShapes

NUM_TRAINED, NUM_TESTED = 8000, 4000


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    source = MovingShapes(num_examples=NUM_TRAINED + NUM_TESTED)
    return [source.scene(i) for i in range(len(source))]


@pytest.fixture(scope="module")
def labels(scenes: list[Scene]) -> np.ndarray:
    return np.asarray([scene.label for scene in scenes])


@pytest.fixture(scope="module")
def states(scenes: list[Scene]) -> np.ndarray:
    """(N,T,6) float32: x, y and radius of the target and of the distractor."""
    return np.stack(
        [
            np.concatenate([scene.target.trajectory(), scene.distractor.trajectory()], axis=1)
            for scene in scenes
        ]
    )


def assert_same_example(first: Mapping[str, object], second: Mapping[str, object]) -> None:
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def held_out_accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    model = RandomForestClassifier(40, min_samples_leaf=30, random_state=0)
    model.fit(features[:NUM_TRAINED], labels[:NUM_TRAINED])
    return model.score(features[NUM_TRAINED:], labels[NUM_TRAINED:])


def test_example_has_the_shapes_and_dtypes_of_the_contract() -> None:
    example = MovingShapes("validation", 4)[3]
    arrays = {key: np.asarray(value) for key, value in example.items()}
    found = {key: (array.shape, array.dtype) for key, array in arrays.items()}
    assert found == {
        "video": ((16, 64, 64, 3), np.uint8),
        "lengths": ((), np.int32),
        "label": ((), np.int32),
        "mask": ((), np.bool_),
        "index": ((), np.int32),
    }
    assert example["lengths"] == 16
    assert example["mask"]
    assert example["index"] == 3


def test_same_seed_split_and_index_give_the_same_example_in_any_size_and_order() -> None:
    small, large = MovingShapes("test", 5, seed=3), MovingShapes("test", 50, seed=3)
    for index in (4, 0, 2, 2):
        assert_same_example(small[index], large[index])
        assert small.captions(index) == large.captions(index)


def test_pickled_source_gives_the_same_examples() -> None:
    source = MovingShapes("train", 7, seed=1)
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 7
    assert_same_example(source[6], copy[6])
    assert repr(source) == repr(copy)


def test_seeds_splits_and_indices_give_different_scenes() -> None:
    drawn = [
        MovingShapes(split, 30, seed).scene(index)
        for split in ("train", "validation", "test")
        for seed in (0, 1)
        for index in range(30)
    ]
    assert len(set(drawn)) == len(drawn)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"train, validation, test.*'dev'"):
        MovingShapes("dev")
    with pytest.raises(ValueError, match="num_examples"):
        MovingShapes("train", -1)
    with pytest.raises(ValueError, match="seed"):
        MovingShapes("train", 1, seed=-1)
    source = MovingShapes("train", 3)
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"received {index}"):
            source[index]


def test_classes_are_balanced_and_not_periodic(labels: np.ndarray) -> None:
    counts = np.bincount(labels, minlength=8)
    expected = len(labels) / 8
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected)
    for remainder in range(8):
        assert len(set(labels[remainder::8])) == 8


def test_partners_are_the_time_reversed_pairs() -> None:
    pairs = {(CLASSES[a], CLASSES[b]) for a, b in REVERSED_CLASS.items() if a < b}
    assert pairs == {
        ("left", "right"),
        ("up", "down"),
        ("clockwise", "anticlockwise"),
        ("growing", "shrinking"),
    }
    assert all(REVERSED_CLASS[REVERSED_CLASS[motion]] == motion for motion in REVERSED_CLASS)


def test_partner_with_the_same_draw_is_the_clip_backwards(scenes: list[Scene]) -> None:
    for scene in scenes[:40]:
        partner = replace(
            scene,
            target=replace(scene.target, motion=REVERSED_CLASS[scene.label]),
            distractor=replace(scene.distractor, motion=REVERSED_CLASS[scene.distractor.motion]),
        )
        assert partner == scene.reversed()
        np.testing.assert_array_equal(render(partner), render(scene)[::-1])


class _FixedMotions(np.random.Generator):
    """Draws like ``default_rng(seed)``, but first gives the two numbers that decide the motions."""

    def __init__(self, seed: int, label: int, offset: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self.motions = [label, offset]

    def integers(self, *args, **kwargs):
        drawn = super().integers(*args, **kwargs)
        return self.motions.pop(0) if self.motions else drawn


def test_nothing_but_the_motions_depends_on_the_motions() -> None:
    drawn = [draw_scene(_FixedMotions(5, label, 1 + label % 7)) for label in range(8)]
    assert {scene.label for scene in drawn} == set(range(8))
    still = [
        replace(
            scene,
            target=replace(scene.target, motion=0),
            distractor=replace(scene.distractor, motion=0),
        )
        for scene in drawn
    ]
    assert len(set(still)) == 1


def test_distractor_has_any_other_motion_evenly(scenes: list[Scene]) -> None:
    pairs = Counter((scene.label, scene.distractor.motion) for scene in scenes)
    assert len(pairs) == 56
    assert all(label != other for label, other in pairs)
    expected = len(scenes) / 56
    assert max(abs(count - expected) for count in pairs.values()) < 4.5 * np.sqrt(expected)


def test_motions_are_what_their_names_say(scenes: list[Scene]) -> None:
    for scene in scenes[:400]:
        x, y, radius = scene.target.trajectory().T.astype(np.float64)
        step_x, step_y = ((np.diff(position) + 32) % 64 - 32 for position in (x, y))
        growth = np.diff(radius)
        # y points downwards: on the screen a positive cross product turns clockwise.
        turn = step_x[:-1] * step_y[1:] - step_y[:-1] * step_x[1:]
        signs = {
            "left": -step_x,
            "right": step_x,
            "up": -step_y,
            "down": step_y,
            "clockwise": turn,
            "anticlockwise": -turn,
            "growing": growth,
            "shrinking": -growth,
        }
        name = CLASSES[scene.label]
        assert (signs.pop(name) > 0.05).all()
        if "clockwise" in name:
            del signs["left"], signs["right"], signs["up"], signs["down"]
        opposite = CLASSES[REVERSED_CLASS[scene.label]]
        signs.pop(opposite, None)
        assert all(np.abs(sign).max() < 0.01 for other, sign in signs.items() if other != name)


def test_one_frame_is_almost_uninformative(states: np.ndarray, labels: np.ndarray) -> None:
    # The true positions and sizes of both bodies are an upper bound for the information of a frame.
    for frame in (0, 7, 15):
        assert held_out_accuracy(states[:, frame], labels) < 0.185


def test_positions_are_uniform_at_any_time_in_every_class(
    states: np.ndarray, labels: np.ndarray
) -> None:
    for motion in range(8):
        for frame in (0, 8, 15):
            for coordinate in (0, 1):
                positions = states[labels == motion, frame, coordinate]
                counts = np.histogram(positions, bins=8, range=(0, 64))[0]
                expected = len(positions) / 8
                chi_squared = ((counts - expected) ** 2 / expected).sum()
                assert chi_squared < 30  # 7 degrees of freedom: one in 10,000 is larger


def test_frames_without_their_order_stop_at_one_half(
    states: np.ndarray, labels: np.ndarray
) -> None:
    # Sorted states keep everything about a coordinate except its order; circular means are
    # continuous across the edge of the torus.
    angles = 2 * np.pi * states / 64
    blind = np.concatenate(
        [
            np.sort(states, axis=1).reshape(len(states), -1)[:, ::5],
            states.std(axis=1),
            np.cos(angles).mean(axis=1),
            np.sin(angles).mean(axis=1),
        ],
        axis=1,
    )
    accuracy = held_out_accuracy(blind, labels)
    assert 0.3 < accuracy < 0.53
    # The same features identify the pair of classes, so only the order is missing.
    assert held_out_accuracy(blind, labels // 2) > 0.7


def test_reversed_clips_have_the_statistics_of_the_reversed_class(
    states: np.ndarray, labels: np.ndarray
) -> None:
    backwards = states[:, ::-1]
    for motion in range(8):
        first = backwards[labels == motion]
        second = states[labels == REVERSED_CLASS[motion]]
        moves = [
            np.concatenate(
                [(np.diff(s[:, :, :2], axis=1) + 32) % 64 - 32, np.diff(s[:, :, 2:3], axis=1)], -1
            )
            for s in (first, second)
        ]
        for frame in (0, 7, 14):
            means = [move[:, frame].mean(axis=0) for move in moves]
            error = np.sqrt(sum(move[:, frame].var(axis=0) / len(move) for move in moves))
            assert (np.abs(means[0] - means[1]) < 4.5 * error + 1e-4).all()


def test_sizes_speeds_shapes_and_colors_vary(scenes: list[Scene], states: np.ndarray) -> None:
    assert len(SHAPES) >= 4
    assert len(COLORS) >= 6
    assert {scene.target.shape for scene in scenes} == set(SHAPES)
    assert {scene.distractor.shape for scene in scenes} == set(SHAPES)
    assert {scene.target.color for scene in scenes} == set(COLORS)
    assert {scene.target.size_name for scene in scenes} == {"small", "medium", "large"}
    assert len({scene.background.texture for scene in scenes}) == 3
    radii = states[:, :, 2]
    assert radii.min() >= RADIUS_RANGE[0]
    assert radii.max() <= RADIUS_RANGE[1]
    assert (np.histogram(radii, bins=6, range=RADIUS_RANGE)[0] > 0).all()
