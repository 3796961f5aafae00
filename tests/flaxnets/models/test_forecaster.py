"""Forecasters of frames: the roll-out against Python loops, gradients, the paper's sizes."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.models.forecaster import (
    FORECASTERS,
    EncoderForecaster,
    ForecasterConfig,
    NextFrameForecaster,
    StackedCells,
    from_patches,
    make_forecaster,
    to_patches,
)
from flaxnets.recurrent import (
    ConvGRUCell,
    ConvLSTMCell,
    LSTMCell,
    Recurrent,
    RecurrentConfig,
    ScanOptions,
)
from flaxnets.recurrent.config import CELLS as CELL_TABLE
from flaxnets.recurrent.config import reads_maps

B, T, SIZE, INPUTS, PATCH = 2, 6, 8, 3, 2
FRAMES = jax.random.uniform(jax.random.key(0), (B, T, SIZE, SIZE, 1))
CELLS: dict[str, Callable[..., Any]] = {
    "convlstm": partial(ConvLSTMCell, peepholes=True, shared_peepholes=True),
    "convgru": partial(ConvGRUCell, kernel_size=(5, 5)),
    "reset_after": partial(ConvGRUCell, reset_after=True),
}
USE_TRUTH = jnp.array([[1, 0, 1, 0, 0], [1, 1, 0, 0, 1]], bool)


class UndeferredCells(StackedCells):
    """Stack that hides its convolutions, as one of another package does."""

    @property
    def deferrable(self) -> bool:
        return False


def next_frame(cell: str, options: ScanOptions | None = None, **kinds: Any) -> NextFrameForecaster:
    stack = kinds.get("stack", StackedCells)(CELLS[cell], (4, 3))
    logits = kinds.get("logits", False)
    return NextFrameForecaster(stack, PATCH, 1, logits, options or ScanOptions())


def initialize(model: Any) -> Any:
    """Returns random variables, biases and peepholes included, without compiling anything."""
    init = partial(model.init, num_inputs=1, train=False)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: (0.2 * rng.normal(size=x.shape)).astype(x.dtype),
        jax.eval_shape(init, jax.random.key(0), FRAMES[:1, :2]),
    )


@functools.cache
def value_and_gradient(model: Any) -> Any:
    """Returns ((a sum, predictions), gradient) with the variables of ``initialize``."""
    weights = jnp.sin(jnp.arange(B * (T - 1) * SIZE * SIZE)).reshape(B, T - 1, SIZE, SIZE, 1)

    def loss(variables: Any) -> Any:
        predictions, _ = model.apply(
            variables, FRAMES, num_inputs=INPUTS, use_truth=USE_TRUTH, train=True
        )
        return jnp.sum(predictions * weights), predictions

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(initialize(model))


def assert_close(actual: Any, expected: Any) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), actual, expected)


@pytest.mark.parametrize(
    "cell", ["convlstm", "convgru", pytest.param("reset_after", marks=pytest.mark.stress)]
)
def test_the_rollout_equals_a_python_loop(cell: str) -> None:
    model = next_frame(cell, logits=cell == "convgru")
    variables = initialize(model)
    step = jax.jit(
        lambda carry, x: model.stack.apply(
            {"params": variables["params"]["stack"]}, carry, x, train=True
        )
    )
    truth = to_patches(FRAMES, PATCH)
    carry, expected = model.stack.initialize_carry(truth[:, 0].shape), []
    prediction = jnp.zeros_like(truth[:, 0])
    for t in range(T - 1):
        given = jnp.where(USE_TRUTH[:, t, None, None, None], truth[:, t], prediction)
        carry, outputs, _ = step(carry, given)
        values = outputs @ variables["params"]["output_kernel"]
        prediction = jax.nn.sigmoid(values) if model.logits else values
        expected.append(values)
    (_, predictions), gradient = value_and_gradient(model)
    assert_close(predictions, from_patches(jnp.stack(expected, axis=1), PATCH))
    leaves = jax.tree.leaves(gradient)
    assert all(np.isfinite(x).all() and np.abs(x).max() > 0 for x in leaves)
    # The same network whose convolutions are out of reach, with JAX's own gradients.
    other = next_frame(cell, logits=model.logits, stack=UndeferredCells)
    (_, others), other_gradient = value_and_gradient(other)
    assert_close((others, other_gradient), (predictions, gradient))


@pytest.mark.parametrize(
    ("stack", "options"),
    [
        (StackedCells, ScanOptions(remat_steps=1, remat_outer_steps=2)),
        pytest.param(UndeferredCells, ScanOptions(remat_steps=2), marks=pytest.mark.stress),
        pytest.param(
            StackedCells, ScanOptions(gradients="autodiff", unroll=2), marks=pytest.mark.stress
        ),
    ],
    ids=["remat", "remat_of_modules", "autodiff"],
)
def test_options_change_neither_predictions_nor_gradients(stack: Any, options: ScanOptions) -> None:
    expected = value_and_gradient(next_frame("convlstm"))
    assert_close(value_and_gradient(next_frame("convlstm", options, stack=stack)), expected)


@pytest.mark.stress
def test_rematerialised_steps_need_two_fifths_of_the_memory() -> None:
    frames = jax.ShapeDtypeStruct((8, 20, 32, 32, 1), jnp.float32)
    sizes = []
    for steps in (0, 2):
        stack = StackedCells(partial(ConvLSTMCell), (8, 8))
        model = NextFrameForecaster(stack, PATCH, 1, False, ScanOptions(remat_steps=steps))

        def loss(variables: Any, frames: Any, model: Any = model) -> Any:
            predictions, _ = model.apply(variables, frames, num_inputs=10, train=True)
            return jnp.square(predictions - frames[:, 1:]).mean()

        init = partial(model.init, num_inputs=1, train=False)
        variables = jax.eval_shape(init, jax.random.key(0), frames)
        compiled = jax.jit(jax.grad(loss)).lower(variables, frames).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 0.4 * sizes[0]


def test_true_frames_throughout_are_a_recurrent_layer() -> None:
    stack = StackedCells(CELLS["convlstm"], (4, 4))
    model = NextFrameForecaster(stack, PATCH, 1)
    variables = initialize(model)
    every = jnp.ones((B, T - 1), bool)
    predictions, _ = jax.jit(partial(model.apply, num_inputs=INPUTS, use_truth=every, train=False))(
        variables, FRAMES
    )
    layer = Recurrent(partial(CELLS["convlstm"], features=4), num_layers=2)
    cells = variables["params"]["stack"]
    params = {f"forward_{layer}": cells[f"cells_{layer}"] for layer in range(2)}
    patches = to_patches(FRAMES, PATCH)[:, :-1]
    outputs = jax.jit(partial(layer.apply, train=False))({"params": params}, patches)
    expected = from_patches(outputs @ variables["params"]["output_kernel"], PATCH)
    assert_close(predictions, expected)


def test_frames_after_the_inputs_are_not_read() -> None:
    others = FRAMES.at[:, INPUTS:].set(7.0)
    for model in (next_frame("convlstm"), encoder_forecaster()):
        variables = initialize(model)
        apply = jax.jit(partial(model.apply, num_inputs=INPUTS, train=False))
        np.testing.assert_array_equal(apply(variables, FRAMES)[0], apply(variables, others)[0])
        moved = apply(variables, FRAMES.at[:, INPUTS - 1].set(0.5))[0]
        assert np.abs(moved - apply(variables, FRAMES)[0]).max() > 1e-3


def test_the_first_step_reads_the_first_frame_whatever_is_asked() -> None:
    model = next_frame("convlstm")
    variables = initialize(model)
    apply = jax.jit(partial(model.apply, num_inputs=1, train=False))
    never = jnp.zeros((B, T - 1), bool)
    expected, _ = apply(variables, FRAMES)
    np.testing.assert_array_equal(apply(variables, FRAMES, use_truth=never)[0], expected)


def encoder_forecaster() -> EncoderForecaster:
    return EncoderForecaster(CELLS["convlstm"], (4, 3), PATCH, 1)


def test_forecasting_layers_start_from_the_states_of_the_encoding_ones() -> None:
    model = encoder_forecaster()
    variables = initialize(model)
    params = variables["params"]
    cells = [CELLS["convlstm"](features=width) for width in (4, 3)]
    run = [
        jax.jit(lambda p, carry, x, cell=cell: cell.apply({"params": p}, carry, x))
        for cell in cells
    ]
    truth = to_patches(FRAMES, PATCH)
    shapes = truth[:, 0].shape, (*truth[:, 0].shape[:-1], 4)
    carries = [
        cell.initialize_carry(None, shape) for cell, shape in zip(cells, shapes, strict=True)
    ]
    for t in range(INPUTS):
        x = truth[:, t]
        for layer in range(2):
            carries[layer], x = run[layer](params[f"encoding_{layer}"], carries[layer], x)
    expected = []
    for _ in range(T - INPUTS):
        x, hidden = jnp.zeros((*truth[:, 0].shape[:-1], 0)), []
        for layer in (1, 0):
            carries[layer], x = run[layer](params[f"forecasting_{layer}"], carries[layer], x)
            hidden.append(x)
        maps = jnp.concatenate(hidden, axis=-1)
        expected.append(maps @ params["output"]["kernel"] + params["output"]["bias"])
    predictions, auxiliary = jax.jit(partial(model.apply, num_inputs=INPUTS, train=False))(
        variables, FRAMES
    )
    assert auxiliary == {}
    assert_close(predictions, from_patches(jnp.stack(expected, axis=1), PATCH))


def test_cells_on_vectors_read_whole_frames() -> None:
    make_cell = partial(LSTMCell, peepholes=True)
    model = EncoderForecaster(make_cell, (5,), 1, 1, concatenate=False)
    variables = initialize(model)
    assert variables["params"]["output"]["kernel"].shape == (5, SIZE * SIZE)
    gradient = jax.jit(
        jax.grad(
            lambda v: jnp.square(
                model.apply(v, FRAMES, num_inputs=INPUTS, train=True)[0] - FRAMES[:, INPUTS:]
            ).sum()
        )
    )(variables)
    # The first forecasting layer has no inputs: a kernel without entries.
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient) if x.size)


def count_parameters(config: ForecasterConfig) -> int:
    model = make_forecaster(config, channels=1)
    init = partial(model.init, num_inputs=10, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 20, 64, 64, 1)))
    return sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("features", "count"),
    [((256,), 13_524_496), ((128, 128), 10_042_896), ((128, 64, 64), 7_585_296)],
)
def test_sizes_are_those_of_table_1_of_the_convlstm_paper(
    features: tuple[int, ...], count: int
) -> None:
    config = ForecasterConfig("encoder_forecaster", features=features, peepholes="channel")
    assert count_parameters(config) == count


def test_the_size_of_fc_lstm_is_that_of_the_paper() -> None:
    config = ForecasterConfig(
        "encoder_forecaster",
        "lstm",
        features=(2048, 2048),
        patch_size=1,
        peepholes="channel",
        concatenate=False,
    )
    assert count_parameters(config) == 142_667_776


@pytest.mark.parametrize(("features", "count"), [((64,) * 3, 2_151_424), ((128,) * 4, 11_675_648)])
def test_sizes_of_openstl_without_its_unused_convolutions(
    features: tuple[int, ...], count: int
) -> None:
    # Its cells own a 5×5 and a 1×1 convolution of (h, h) that nothing calls: 26 · 2F · F a layer.
    assert count_parameters(ForecasterConfig(features=features, use_bias=False)) == count
    unused = sum(26 * 2 * width * width for width in features)
    if features == (128,) * 4:
        assert count + unused == 15_083_520  # "15.0M" in OpenSTL's table.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FORECASTERS)
def test_every_cell_on_maps_predicts_frames(name: str, dtype: str) -> None:
    cells = [cell for cell in CELL_TABLE if reads_maps(RecurrentConfig(cell))]
    assert {"convlstm", "convgru", "stlstm", "minconvgru", "minconvlstm"} == set(cells)
    for cell in cells:
        if name == "encoder_forecaster" and cell.startswith("min"):
            continue  # Refused below.
        config = ForecasterConfig(name, cell, features=(4, 3), kernel_size=3, dtype=dtype)
        model = make_forecaster(config, channels=1)
        init = partial(model.init_with_output, num_inputs=INPUTS, train=True)
        (predictions, _), _ = jax.eval_shape(init, jax.random.key(0), FRAMES[..., :1])
        assert (predictions.shape[2:], predictions.dtype) == ((SIZE, SIZE, 1), jnp.float32)


def test_patches_are_blocks_of_pixels() -> None:
    frames = jnp.arange(2 * 3 * 4 * 6 * 2.0).reshape(2, 3, 4, 6, 2)
    patches = to_patches(frames, 2)
    assert patches.shape == (2, 3, 2, 3, 8)
    np.testing.assert_array_equal(patches[1, 2, 1, 0], frames[1, 2, 2:4, 0:2].reshape(-1))
    np.testing.assert_array_equal(from_patches(patches, 2), frames)


@pytest.mark.parametrize(
    ("frames", "num_inputs", "message"),
    [
        ((2, 5, 8, 8), 3, "frames: expected .B,T,H,W,C. float"),
        ((2, 5, 8, 8, 3), 3, "frames: expected 1 channels, received 3"),
        ((2, 5, 9, 8, 1), 3, "multiples of patch_size = 2, received 9×8"),
        ((2, 5, 8, 8, 1), 5, "num_inputs: expected 1 to 4"),
    ],
)
def test_frames_that_do_not_fit_are_refused(
    frames: tuple[int, ...], num_inputs: int, message: str
) -> None:
    for model in (next_frame("convlstm"), encoder_forecaster()):
        with pytest.raises(ValueError, match=message):
            model.init(jax.random.key(0), jnp.zeros(frames), num_inputs=num_inputs, train=False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ForecasterConfig("next_frames"), "model.name: unknown 'next_frames'.*next_frame"),
        (ForecasterConfig(peepholes="pixels"), "model.peepholes: unknown 'pixels'.*pixel"),
        (ForecasterConfig(features=()), "model.features: expected the widths"),
        (ForecasterConfig(cell="lstm"), "model.cell: expected a cell on feature maps"),
        (
            ForecasterConfig("encoder_forecaster", "minconvgru"),
            "model.cell: expected a cell with hidden-to-hidden kernels",
        ),
        (ForecasterConfig(cell="convlsmt"), "model.cell: .*convlstm"),
        (ForecasterConfig(patch_size=0), "patch_size: expected at least 1"),
    ],
)
def test_configurations_that_make_no_network_are_refused(
    config: ForecasterConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_forecaster(config, channels=1)
