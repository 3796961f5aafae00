"""Linear cells on feature maps, minConvGRU and minConvLSTM, against their equations in NumPy."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.config import RecurrentConfig, make_recurrent, reads_maps
from flaxnets.recurrent.convolutional_cells import MinConvGRUCell, MinConvLSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.linear_cells import MinGRUCell
from flaxnets.recurrent.scan import ScanOptions
from tests.flaxnets.recurrent import reference
from tests.flaxnets.recurrent.cases import (
    FLOAT64,
    LENGTHS,
    B,
    F,
    T,
    assert_close,
    call_scan,
    scan,
)
from tests.flaxnets.recurrent.linear_cases import weigh

EXACT = {"rtol": 1e-10, "atol": 1e-12}
H, W, C = 4, 3, 2
SIZE = (2, 3)

Params = Mapping[str, np.ndarray]


def min_conv_gru(params: Params, carry: np.ndarray, x: np.ndarray) -> Any:
    z, k = np.split(reference.convolve(x, params["input_kernel"]) + params["bias"], 2, axis=-1)
    z = reference.sigmoid(z)
    carry = (1 - z) * carry + z * k
    return carry, carry


def min_conv_lstm(params: Params, carry: np.ndarray, x: np.ndarray) -> Any:
    f, i, k = np.split(reference.convolve(x, params["input_kernel"]) + params["bias"], 3, axis=-1)
    f, i = reference.sigmoid(f), reference.sigmoid(i)
    carry = f / (f + i) * carry + i / (f + i) * k
    return carry, carry


CASES = ((MinConvGRUCell, min_conv_gru, 2), (MinConvLSTMCell, min_conv_lstm, 3))
every_cell = pytest.mark.parametrize(("cell_class", "step", "gates"), CASES, ids=["gru", "lstm"])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def draw(gates: int, seed: int = 0, channels: int = C) -> tuple[Any, np.ndarray, np.ndarray]:
    """Draws parameters, carry and inputs (B,T,H,W,C)."""
    rng = np.random.default_rng(seed)
    params = {
        "input_kernel": rng.normal(0, 0.5, (*SIZE, channels, gates * F)),
        "bias": rng.normal(0, 0.5, gates * F),
    }
    carry = rng.normal(0, 0.5, (B, H, W, F))
    return params, carry, rng.normal(size=(B, T, H, W, channels))


@every_cell
def test_scan_in_both_directions(cell_class: Any, step: Any, gates: int) -> None:
    params, carry, x = draw(gates)
    cell = cell_class(F, kernel_size=SIZE, **FLOAT64)
    for reverse in (False, True):
        actual = scan(cell, params, carry, x, LENGTHS, reverse=reverse)
        expected = reference.scan(step, params, carry, x, LENGTHS, reverse=reverse)
        assert_close(actual, expected, **EXACT)
        assert not actual[1][np.arange(T) >= LENGTHS[:, None]].any()
    poisoned = np.where((np.arange(T) >= LENGTHS[:, None])[..., None, None, None], np.nan, x)
    assert_close(scan(cell, params, carry, poisoned, LENGTHS, reverse=True), actual, rtol=0)


@every_cell
def test_step_by_step_is_the_scan(cell_class: Any, step: Any, gates: int) -> None:
    params, carry, x = draw(gates)
    cell = cell_class(F, kernel_size=SIZE, **FLOAT64)
    expected = scan(cell, params, carry, x)
    one, outputs = jax.jit(cell.apply), []
    for t in range(T):
        carry, output = one({"params": params}, carry, x[:, t])
        outputs.append(output)
    assert_close((carry, np.stack(outputs, 1)), expected, **EXACT)


@every_cell
def test_packed_sequences_are_single_ones(cell_class: Any, step: Any, gates: int) -> None:
    params, _, x = draw(gates)
    cell, begin = cell_class(F, kernel_size=SIZE, **FLOAT64), 2
    starts = np.zeros((B, T), bool)
    starts[:, begin] = True
    for reverse in (False, True):
        _, packed = scan(cell, params, None, x, starts=starts, reverse=reverse)
        zeros = np.zeros((B, H, W, F))
        parts = [
            reference.scan(step, params, zeros, part, reverse=reverse)[1]
            for part in (x[:, :begin], x[:, begin:])
        ]
        assert_close(packed, np.concatenate(parts, 1), **EXACT)


def test_gradients() -> None:
    cell, step, drawn = MinConvLSTMCell(F, kernel_size=SIZE, **FLOAT64), min_conv_lstm, draw(3)

    def loss(drawn: Any, options: ScanOptions) -> Any:
        params, carry, x = drawn
        return weigh(7, call_scan(cell, params, carry, x, LENGTHS, options=options))

    differentiate = jax.jit(jax.grad(loss), static_argnums=1)
    deferred = jax.device_get(differentiate(drawn, ScanOptions(remat_steps=4)))
    assert_close(deferred, differentiate(drawn, ScanOptions(gradients="autodiff")), **EXACT)
    rng, small = np.random.default_rng(1), 1e-6
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), drawn)
    ends = []
    for sign in (1, -1):
        moved = jax.tree.map(lambda x, d: x + sign * small * d, drawn, direction)  # noqa: B023
        params, carry, x = moved
        ends.append(weigh(7, reference.scan(step, params, carry, x, LENGTHS)))
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), deferred, direction)))
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * small), rtol=1e-6)
    for leaf in jax.tree.leaves(deferred):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


def test_layers_in_both_directions() -> None:
    cell = partial(MinConvGRUCell, F, kernel_size=SIZE, **FLOAT64)
    drawn = {
        f"{direction}_{number}": draw(2, 2 * number + reverse, 2 * F if number else C)
        for number in range(2)
        for reverse, direction in enumerate(("forward", "backward"))
    }
    expected = x = draw(2)[2]
    for number in range(2):
        outputs = []
        for reverse, direction in enumerate(("forward", "backward")):
            params, carry, _ = drawn[f"{direction}_{number}"]
            zeros, how = np.zeros_like(carry), {"reverse": bool(reverse)}
            outputs.append(reference.scan(min_conv_gru, params, zeros, expected, LENGTHS, **how)[1])
        expected = np.concatenate(outputs, -1)
    layer = Recurrent(cell, num_layers=2, bidirectional=True)
    variables = {"params": {name: params for name, (params, _, _) in drawn.items()}}
    actual = jax.jit(partial(layer.apply, train=False))(variables, x, LENGTHS)
    assert_close(actual, expected, **EXACT)


def test_on_one_pixel_a_cell_is_the_one_on_vectors() -> None:
    params, carry, x = draw(2)
    centre = params | {"input_kernel": params["input_kernel"][0, 1]}  # SAME, of (2,3) pixels.
    expected = scan(MinGRUCell(F, **FLOAT64), centre, carry[:, 0, 0], x[:, :, 0, 0])
    cell = MinConvGRUCell(F, kernel_size=SIZE, **FLOAT64)
    actual = scan(cell, params, carry[:, :1, :1], x[:, :, :1, :1])
    assert_close(jax.tree.map(lambda leaf: leaf[..., 0, 0, :], actual), expected, **EXACT)


def test_in_bfloat16_outputs_stay_in_it_and_the_state_does_not() -> None:
    params, carry, x = draw(3)
    cell = MinConvLSTMCell(F, kernel_size=SIZE, dtype=jnp.bfloat16)
    drawn = jax.tree.map(np.float32, (params, carry))
    last, outputs = scan(cell, *drawn, x.astype(jnp.bfloat16), LENGTHS)
    assert (last.dtype, outputs.dtype) == (np.float32, jnp.bfloat16)
    expected = reference.scan(min_conv_lstm, params, carry, x, LENGTHS)
    assert_close((last, outputs), expected, rtol=0.03, atol=0.03)


def test_by_name_they_read_maps_and_refuse_other_inputs() -> None:
    for name, gates in (("minconvgru", 2), ("minconvlstm", 3)):
        config = RecurrentConfig(name, features=F, kernel_size=5)
        assert reads_maps(config)
        layer: Any = make_recurrent(config)
        x = jax.ShapeDtypeStruct((B, T, H, W, C), jnp.float32)
        shapes = jax.eval_shape(partial(layer.init, train=False), jax.random.key(0), x)
        cell = shapes["params"]["forward_0"]
        assert cell["input_kernel"].shape == (5, 5, C, gates * F)
        assert cell["bias"].shape == (gates * F,)
        with pytest.raises(ValueError, match=r"inputs: expected \(B,T,H,W,C\)"):
            layer.init(jax.random.key(0), jnp.ones((B, T, C)), train=False)
