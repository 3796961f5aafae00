"""3-D stem: against a convolution in NumPy, padding, and the frames that a step sees."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.models.stem_3d import SpatioTemporalStem


class Identity(nn.Module):
    """Network that returns its inputs."""

    def __call__(self, frames: Any, lengths: Any, mask: Any = None, *, train: bool) -> Any:
        return frames


STEM = SpatioTemporalStem(Identity(), features=2, kernel_size=(3, 3, 3), pool=False)


@pytest.fixture(scope="module")
def variables() -> Any:
    return STEM.init(jax.random.key(0), jnp.zeros((1, 4, 6, 6, 1)), jnp.array([4]), train=False)


def test_the_stem_equals_loops(variables: Any) -> None:
    video = np.random.default_rng(0).normal(size=(1, 4, 6, 6, 1)).astype(np.float32)
    kernel = np.asarray(variables["params"]["conv"]["kernel"])  # (3,3,3,1,2)
    # SAME with stride 2 pads one pixel below and to the right.
    padded = np.pad(video, [(0, 0), (1, 1), (0, 1), (0, 1), (0, 0)])
    expected = np.zeros((1, 4, 3, 3, 2))
    for t, y, x in np.ndindex(4, 3, 3):
        window = padded[0, t : t + 3, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
        expected[0, t, y, x] = np.tensordot(window, kernel, 4)
    mean, variance = expected.mean(-1, keepdims=True), expected.var(-1, keepdims=True)
    expected = np.maximum((expected - mean) / np.sqrt(variance + 1e-6), 0)
    found = STEM.apply(variables, video, jnp.array([4]), train=False)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_padding_is_read_as_the_end_of_the_clip(variables: Any) -> None:
    video = np.random.default_rng(1).normal(size=(1, 4, 6, 6, 1)).astype(np.float32)
    whole = STEM.apply(variables, video[:, :3], jnp.array([3]), train=False)
    video[:, 3] = np.nan
    padded: Any = STEM.apply(variables, video, jnp.array([3]), train=False)
    np.testing.assert_allclose(padded[:, :3], whole, atol=1e-6)
    assert not np.any(padded[:, 3])


def test_frames_of_another_rank_are_named(variables: Any) -> None:
    with pytest.raises(ValueError, match=r"frames: expected \(B,T,H,W,C\)"):
        STEM.apply(variables, jnp.zeros((1, 4, 6)), jnp.array([4]), train=False)
