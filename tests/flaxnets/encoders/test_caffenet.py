"""CaffeNet against NumPy: groups, normalisation after pooling, Caffe's ceil mode."""

from typing import Any

import jax
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from flaxnets.encoders.alexnet import CaffeNet, local_response_norm

LEVELS = ("norm1", "conv2", "norm2", "conv4", "pool5", "fc6", "logits")


def convolve(x: np.ndarray, layer: Any, stride: int, padding: int, groups: int) -> np.ndarray:
    kernel = layer["kernel"]
    size, channels = kernel.shape[0], kernel.shape[2]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    each = kernel.shape[3] // groups
    parts = [
        np.einsum(
            "nijckl,klcd->nijd",
            windows[..., g * channels : (g + 1) * channels, :, :],
            kernel[..., g * each : (g + 1) * each],
            optimize=True,
        )
        for g in range(groups)
    ]
    return np.maximum(np.concatenate(parts, -1) + layer["bias"], 0)


def pool(x: np.ndarray) -> np.ndarray:
    """Max-pools windows of 3 at stride 2; the last ones may reach over the edge."""
    rows, columns = (-(-(n - 3) // 2) + 1 for n in x.shape[1:3])
    return np.stack(
        [
            np.stack(
                [x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(columns)], 1
            )
            for i in range(rows)
        ],
        1,
    )


def normalize(x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        squares = (x[..., max(c - 2, 0) : c + 3] ** 2).sum(-1)
        y[..., c] = x[..., c] / (1 + 1e-4 / 5 * squares) ** 0.75
    return y


@pytest.mark.slow
def test_equals_a_numpy_reference() -> None:
    encoder = CaffeNet(levels=LEVELS, num_classes=5)
    images = np.random.default_rng(0).integers(0, 256, (2, 90, 103, 3), np.uint8)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), images, train=False))
    rng = np.random.default_rng(1)
    params: Any = jax.tree.map(
        lambda leaf: (
            np.float32((1.5 / max(np.prod(leaf.shape[:-1]), 100)) ** 0.5)
            * rng.standard_normal(leaf.shape, np.float32)
        ),
        shapes["params"],
    )

    expected = {}
    x = images[..., ::-1].astype(np.float64) - [104.00699, 116.66877, 122.67892]
    pooled = pool(convolve(x, params["conv1"], 4, 0, 1))
    x = expected["norm1"] = normalize(pooled)
    assert x.mean() < 0.9 * pooled.mean(), "at the pixels' scale the normalisation matters"
    x = expected["conv2"] = convolve(x, params["conv2"], 1, 2, 2)
    x = expected["norm2"] = normalize(pool(x))
    x = convolve(x, params["conv3"], 1, 1, 1)
    x = expected["conv4"] = convolve(x, params["conv4"], 1, 1, 2)
    x = expected["pool5"] = pool(convolve(x, params["conv5"], 1, 1, 2))
    assert x.shape == (2, 2, 3, 256)
    # Averaging to 6×6 repeats each position, since both sides divide 6.
    x = x.repeat(3, 1).repeat(2, 2).transpose(0, 3, 1, 2).reshape(2, -1)
    for name in ("fc6", "fc7"):
        x = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
        expected[name] = x
    expected["logits"] = x @ params["fc8"]["kernel"] + params["fc8"]["bias"]

    outputs = jax.jit(lambda v, x: encoder.apply(v, x, train=False))({"params": params}, images)
    for level in LEVELS:
        assert np.abs(expected[level]).max() > 0.1, level
        np.testing.assert_allclose(
            outputs[level],
            expected[level],
            atol=1e-4 * np.abs(expected[level]).max(),
            err_msg=level,
        )


def test_normalisation_matters_for_large_numbers() -> None:
    x = np.random.default_rng(0).normal(0, 300, (2, 3, 4, 7)).astype(np.float32)
    y = np.asarray(local_response_norm(x))
    np.testing.assert_allclose(y, normalize(x.astype(np.float64)), rtol=1e-5)
    assert np.abs(y / x).mean() < 0.6
