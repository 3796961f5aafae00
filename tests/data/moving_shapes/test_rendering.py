"""Pictures of the embedded data set: areas, colours, visibility, and the background."""

from dataclasses import replace

import numpy as np
import pytest

from data.moving_shapes.rendering import coverage, render
from data.moving_shapes.scenes import SHAPES, Scene
from data.moving_shapes.source import MovingShapes


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    source = MovingShapes(num_examples=40)
    return [source.scene(i) for i in range(len(source))]


@pytest.mark.parametrize("shape", SHAPES)
def test_body_covers_about_the_area_of_its_disc_in_every_frame(
    shape: str, scenes: list[Scene]
) -> None:
    for scene in scenes[:20]:
        body = replace(scene.target, shape=shape)
        covered = coverage(body)
        assert covered.min() == 0
        assert covered.max() <= 1
        disc = np.pi * body.trajectory()[:, 2] ** 2
        np.testing.assert_allclose(covered.sum(axis=(1, 2)), disc, rtol=0.2)


def test_target_is_colored_and_always_visible_and_the_rest_is_not(scenes: list[Scene]) -> None:
    for scene in scenes:
        video = render(scene).astype(int)
        saturation = video.max(axis=-1) - video.min(axis=-1)  # (T,H,W)
        inside = coverage(scene.target) == 1
        outside = coverage(scene.target) == 0
        assert inside.any(axis=(1, 2)).all()
        assert (saturation[inside] > 80).all()
        assert (saturation[outside] < 60).all()


def test_distractor_is_grey_and_brighter_than_the_background(scenes: list[Scene]) -> None:
    for scene in scenes:
        video = render(scene).astype(int)
        free = coverage(scene.target) == 0
        inside = (coverage(scene.distractor) == 1) & free
        around = (coverage(scene.distractor) == 0) & free
        grey = video[inside]  # (N,3)
        assert (grey == grey[:, :1]).all()
        assert grey.min(initial=255) >= 110
        assert video[around].max() < 110


def test_background_is_textured_and_still(scenes: list[Scene]) -> None:
    for scene in scenes[:20]:
        empty = (coverage(scene.target) == 0) & (coverage(scene.distractor) == 0)
        video = render(scene).astype(float)
        always = empty.all(axis=0)
        assert video[0][always].std(axis=0).min() > 2
        assert np.ptp(video[:, always], axis=0).max() == 0
