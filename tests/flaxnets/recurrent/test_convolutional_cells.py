"""Properties of the cells on feature maps; ``test_cells.py`` checks their values."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.convolutional_cells import ConvGRUCell, ConvLSTMCell
from tests.flaxnets.recurrent import reference
from tests.flaxnets.recurrent.cases import assert_close, scan

B, T, H, W, C, F = 2, 4, 5, 4, 2, 3


def draw(cell: Any, *axes: int) -> tuple[Any, Any, np.ndarray]:
    """Draws parameters, carry and inputs (B,T,*axes), float32."""
    rng = np.random.default_rng(0)
    init = partial(cell.init, method="weights")
    params = jax.eval_shape(lambda: init(jax.random.key(0), (B, *axes))["params"])
    carry = jax.eval_shape(lambda: cell.initialize_carry(None, (B, *axes)))
    params, carry = jax.tree.map(
        lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), (params, carry)
    )
    return params, carry, rng.normal(size=(B, T, *axes)).astype(np.float32)


@pytest.mark.parametrize("size", [(3, 3), (2, 3), (5, 5), (4, 1)])
def test_the_reference_pads_as_flax_does(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(B, H, W, C)), rng.normal(size=(*size, C, F))
    with jax.enable_x64(True):
        layer = nn.Conv(F, size, use_bias=False, param_dtype=jnp.float64)
        expected = layer.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(reference.convolve(x, kernel), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("make_cell", "make_dense"),
    [
        (ConvLSTMCell, LSTMCell),
        (partial(ConvLSTMCell, peepholes=True), partial(LSTMCell, peepholes=True)),
        (ConvGRUCell, partial(GRUCell, reset_after=False)),
        (partial(ConvGRUCell, reset_after=True), GRUCell),
    ],
    ids=["lstm", "peepholes", "gru-before", "gru-after"],
)
def test_on_one_pixel_a_cell_is_the_one_on_vectors(make_cell: Any, make_dense: Any) -> None:
    dense = make_dense(F)
    params, carry, x = draw(dense, C)
    expected = scan(dense, params, carry, x)

    def add_axes(name: str, leaf: np.ndarray) -> np.ndarray:
        # On one pixel only the centre of a 3 x 3 kernel reads anything but the border's zeros.
        if name.endswith("kernel"):
            outer = np.random.default_rng(1).normal(size=(3, 3, *leaf.shape))
            outer[1, 1] = leaf
            return outer.astype(np.float32)
        return leaf[:, None, None] if name == "peepholes" else leaf

    params = {name: add_axes(name, leaf) for name, leaf in params.items()}
    carry, expected = jax.tree.map(lambda a: a[..., None, None, :], (carry, expected))
    actual = scan(make_cell(F), params, carry, x[:, :, None, None])
    assert_close(actual, expected, atol=1e-6)


@pytest.mark.parametrize("size", [(3, 3), (2, 4)])
@pytest.mark.parametrize("cell_class", [ConvLSTMCell, ConvGRUCell])
def test_far_from_the_borders_a_shifted_video_gives_shifted_maps(
    cell_class: Any, size: tuple[int, int]
) -> None:
    cell = cell_class(F, kernel_size=size)
    params, _, x = draw(cell, 20, 20, C)
    x = x[:, :2]
    outputs, shifted = (scan(cell, params, None, v)[1] for v in (x, np.roll(x, (2, 1), (2, 3))))
    # Two steps read pixels at most 8 away.
    middle, there = outputs[:, :, 9:11, 9:11], shifted[:, :, 11:13, 10:12]
    np.testing.assert_allclose(middle, there, atol=1e-5)
    assert np.abs(middle - shifted[:, :, 9:11, 9:11]).max() > 1e-2


@pytest.mark.parametrize("cell_class", [ConvLSTMCell, ConvGRUCell])
def test_parameters_fit_maps_of_any_size(cell_class: Any) -> None:
    cell = cell_class(F)
    params, _, x = draw(cell, H, W, C)
    smaller = x[:, :, :2, :3]
    carry, outputs = scan(cell, params, None, smaller)
    zeros = jax.tree.map(np.zeros_like, carry)
    step = reference.lstm if cell_class is ConvLSTMCell else reference.gru
    assert_close((carry, outputs), reference.scan(step, params, zeros, smaller), atol=1e-5)


def test_peepholes_are_maps_of_one_size() -> None:
    cell = ConvLSTMCell(F, peepholes=True)
    params, _, x = draw(cell, H, W, C)
    assert params["peepholes"].shape == (3, H, W, F)
    with pytest.raises(ScopeParamShapeError, match="peepholes"):
        scan(cell, params, None, x[:, :, :2])


@pytest.mark.parametrize(("cell_class", "gates"), [(ConvLSTMCell, 4), (ConvGRUCell, 3)])
def test_shapes_and_first_bias(cell_class: Any, gates: int) -> None:
    cell = cell_class(F, kernel_size=(2, 3))

    def make() -> Any:
        return cell.init(jax.random.key(0), (B, H, W, C), method="weights")["params"]

    assert {name: leaf.shape for name, leaf in jax.eval_shape(make).items()} == {
        "input_kernel": (2, 3, C, gates * F),
        "hidden_kernel": (2, 3, F, gates * F),
        "bias": (gates * F,),
    }
    bias = jax.jit(lambda: make()["bias"])()
    np.testing.assert_array_equal(bias, np.repeat([0, int(gates == 4), 0, 0][:gates], F))
