"""Gradients as one matmul per tap, against those that JAX derives."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.layers import convolution
from flaxnets.layers.convolution import conv2d, tapped_conv


@pytest.mark.slow_after(8)
@pytest.mark.parametrize(("chunk_size", "channels"), [(1, 4), (500, 1), (2**18, 4)])
@pytest.mark.parametrize(
    ("kernel_size", "strides", "pads"),
    [
        ((3, 3), (2, 2), ((0, 1), (1, 1))),
        ((1, 1), (1, 1), ((0, 0), (0, 0))),
        ((1, 1), (2, 2), ((0, 0), (0, 0))),
        ((7, 5), (3, 2), ((3, 2), (0, 4))),
        ((2, 2), (3, 3), ((0, 0), (0, 0))),
        ((3, 3), (1, 1), ((1, 1), (1, 1))),
        ((9, 2), (1, 1), ((0, 0), (0, 1))),
        ((2, 2), (1, 1), ((3, 0), (0, 2))),
    ],
)
def test_gradients_equal_those_of_jax(
    kernel_size: Any,
    strides: Any,
    pads: Any,
    chunk_size: int,
    channels: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convolution, "_CHUNK_SIZE", chunk_size)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(6, 9, 8, channels))
        kernel = rng.normal(size=(*kernel_size, channels, 5))
        direct = partial(conv2d, strides=strides, padding=pads)  # float64 takes the direct path.
        tapped = partial(tapped_conv, strides=strides, pads=pads)
        weights = rng.normal(size=jax.eval_shape(direct, x, kernel).shape)

        def total(convolve: Any, x: Any, kernel: Any) -> Any:
            return jnp.sum(weights * convolve(x, kernel))

        np.testing.assert_allclose(tapped(x, kernel), direct(x, kernel), rtol=1e-10, atol=1e-12)
        ours, theirs = (
            jax.jit(jax.grad(partial(total, convolve), (0, 1)))(x, kernel)
            for convolve in (tapped, direct)
        )
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_strided_1x1_and_narrow_convolutions_use_it() -> None:
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def is_tapped(x: Any, kernel: Any, **options: Any) -> bool:
        return "tapped_conv" in str(jax.make_jaxpr(partial(conv2d, **options))(x, kernel))

    assert is_tapped(x, kernel, strides=(2, 2))
    assert is_tapped(x, kernel[:1, :1])
    assert not is_tapped(x, kernel)
    # Winograd's algorithm needs 32 channels.
    wide = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 17))
    assert is_tapped(*wide)
    assert not is_tapped(wide[0], jnp.ones((5, 6, 16, 17)))
    assert is_tapped(x[..., :1], kernel[:, :, :1])
    assert not is_tapped(x[..., :1], jnp.ones((3, 9, 1, 4)))
    assert not is_tapped(x, jnp.ones((3, 3, 1, 6)), strides=(2, 2), groups=3)
    assert not is_tapped(x.astype(jnp.bfloat16), kernel, strides=(2, 2))
