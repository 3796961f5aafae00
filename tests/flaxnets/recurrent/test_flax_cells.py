"""Cells of ``flax.linen`` behind the layer of our own cells."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.linear_cells import LRUCell
from flaxnets.recurrent.scan import ScanOptions, check_cell, scan_cell
from tests.flaxnets.recurrent.cases import assert_close

B, T, D, F = 3, 6, 5, 4
LENGTHS = np.array([6, 3, 0], np.int32)
PADDING = np.arange(T) >= LENGTHS[:, None]
CELLS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "lstm": (partial(nn.LSTMCell, F), (D,)),
    "optimized-lstm": (partial(nn.OptimizedLSTMCell, F), (D,)),
    "gru": (partial(nn.GRUCell, F), (D,)),
    "simple": (partial(nn.SimpleCell, F), (D,)),
    "mgu": (partial(nn.MGUCell, F), (D,)),
    "convlstm": (partial(nn.ConvLSTMCell, F, (3, 3)), (4, 3, D)),
    "convlstm-1d": (partial(nn.ConvLSTMCell, F, (3,)), (4, D)),
}


def make(name: str, **options: Any) -> tuple[Recurrent, Any, np.ndarray]:
    """The layer, random variables and inputs (B,T,...) float32."""
    make_cell, axes = CELLS[name]
    layer = Recurrent(make_cell, **options)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, T, *axes)).astype(np.float32)
    shapes = jax.eval_shape(partial(layer.init, train=False), jax.random.key(0), x)
    return layer, jax.tree.map(lambda v: rng.normal(0, 0.4, v.shape).astype(np.float32), shapes), x


@partial(jax.jit, static_argnums=0, static_argnames="return_carry")
def apply(layer: Recurrent, *arguments: Any, return_carry: bool = False) -> Any:
    return layer.apply(*arguments, train=False, return_carry=return_carry)


@partial(jax.jit, static_argnums=0)
@partial(jax.grad, argnums=(1, 2))
def gradient(layer: Recurrent, variables: Any, x: Any, lengths: Any) -> Any:
    return jnp.sum(layer.apply(variables, x, lengths, train=False) ** 2)


def loop(make_cell: Any, params: Any, x: Any, lengths: Any, *, reverse: bool = False) -> Any:
    """The last carries and outputs, sequence by sequence and step by step in Python."""
    cell = make_cell()
    step = jax.jit(lambda carry, x: cell.apply({"params": params}, carry, x))
    carries, outputs = [], []
    for sequence, length in zip(x, lengths, strict=True):
        carry = cell.initialize_carry(jax.random.key(0), (1, *x.shape[2:]))
        rows: dict[int, Any] = {}
        for t in reversed(range(length)) if reverse else range(length):
            carry, y = step(carry, sequence[None, t])
            rows[t] = y[0]
        width = carry[1] if isinstance(carry, tuple) else carry
        zeros = np.zeros(width.shape[1:], np.float32)
        carries.append(carry)
        outputs.append(np.stack([rows.get(t, zeros) for t in range(len(sequence))]))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *carries), np.stack(outputs)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", CELLS)
def test_the_scan_equals_a_python_loop(name: str, reverse: bool) -> None:
    make_cell, _ = CELLS[name]
    _, variables, x = make(name)
    params = variables["params"]["forward_0"]

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x: Any, lengths: Any) -> Any:
            return scan_cell(make_cell(name="forward_0"), x, lengths, reverse=reverse)

    scanned = jax.jit(Scanned().apply)(variables, x, LENGTHS)
    assert_close(scanned, loop(make_cell, params, x, LENGTHS, reverse=reverse), atol=1e-6)


@pytest.mark.parametrize("name", ["lstm", "gru", "convlstm"])
def test_the_layer_equals_flax_rnn_at_valid_steps(name: str) -> None:
    make_cell, _ = CELLS[name]
    layer, variables, x = make(name)
    rnn = nn.RNN(make_cell(), return_carry=True)
    params = {"params": {"cell": variables["params"]["forward_0"]}}
    lengths = np.array([6, 3, 1], np.int32)
    carry, outputs = jax.jit(rnn.apply)(params, x, seq_lengths=lengths)
    padding = (np.arange(T) >= lengths[:, None]).reshape(B, T, *[1] * (x.ndim - 2))
    expected = {"cells": (carry,), "inputs": None}, np.where(padding, 0, outputs)
    assert_close(
        apply(layer, variables, x, lengths, return_carry=True), expected, rtol=1e-6, atol=1e-6
    )


def test_parameters_are_those_of_the_cell_alone() -> None:
    layer, _, x = make("gru")
    own = layer.init(jax.random.key(1), x, train=False)["params"]["forward_0"]
    cell = nn.GRUCell(F)
    carry = cell.initialize_carry(jax.random.key(0), (B, D))
    alone = cell.init(jax.random.key(1), carry, x[:, 0])["params"]
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, alone)


@pytest.mark.parametrize("residual", [False, True])
def test_depth_directions_and_residuals_equal_loops(residual: bool) -> None:
    make_cell, _ = CELLS["gru"]
    layer, variables, x = make("gru", num_layers=3, bidirectional=True, residual=residual)
    expected: np.ndarray = x
    for number in range(3):
        both = [
            loop(
                make_cell,
                variables["params"][f"{direction}_{number}"],
                expected,
                LENGTHS,
                reverse=direction == "backward",
            )[1]
            for direction in ("forward", "backward")
        ]
        outputs = np.concatenate(both, axis=-1)
        expected = outputs + expected if residual and number else outputs
    np.testing.assert_allclose(apply(layer, variables, x, LENGTHS), expected, atol=1e-6)


@pytest.mark.parametrize("padding", [np.nan, 1e30])
@pytest.mark.parametrize("name", ["lstm", "convlstm"])
def test_padding_changes_neither_outputs_nor_gradients(name: str, padding: float) -> None:
    layer, variables, x = make(name, num_layers=2)
    where = PADDING.reshape(B, T, *[1] * (x.ndim - 2))
    other = np.where(where, np.float32(padding), x)
    before, after = (apply(layer, variables, v, LENGTHS, return_carry=True) for v in (x, other))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not np.asarray(before[1])[PADDING].any()
    gradients = [gradient(layer, variables, v, LENGTHS) for v in (x, other)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *gradients)
    assert not np.asarray(gradients[0][1])[PADDING].any()


@pytest.mark.parametrize("name", CELLS)
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(name: str) -> None:
    layer, variables, x = make(name, bidirectional=True)
    for leaf in jax.tree.leaves(gradient(layer, variables, x, LENGTHS)):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lstm", {"num_layers": 2, "residual": True}),
        ("gru", {"normalize_inputs": True, "delta_features": True, "input_features": 7}),
        ("convlstm", {"delta_features": True}),
    ],
)
def test_uneven_chunks_equal_the_whole(name: str, options: Any) -> None:
    layer, variables, x = make(name, **options)
    whole = apply(layer, variables, x, LENGTHS, return_carry=True)
    carry, outputs = None, []
    for begin, end in ((0, 2), (2, 5), (5, 6)):
        lengths = np.clip(LENGTHS - begin, 0, end - begin)
        carry, output = layer.apply(variables, carry, x[:, begin:end], lengths, method="stream")
        outputs.append(np.asarray(output))
    assert_close((carry, np.concatenate(outputs, axis=1)), whole, atol=2e-6)


@pytest.mark.parametrize(
    "options", [ScanOptions(remat_steps=4), ScanOptions(remat_steps=2), ScanOptions(unroll=3)]
)
def test_options_change_neither_outputs_nor_gradients(options: ScanOptions) -> None:
    plain, variables, x = make("gru", bidirectional=True)
    layer, like, _ = make("gru", bidirectional=True, options=options)
    assert jax.tree.structure(variables) == jax.tree.structure(like)
    assert_close(apply(layer, variables, x, LENGTHS), apply(plain, variables, x, LENGTHS))
    gradients = (gradient(one, variables, x, LENGTHS) for one in (layer, plain))
    assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_truncation_cuts_the_gradient() -> None:
    layer, variables, x = make("gru", options=ScanOptions(truncate_steps=2))

    def last(x: Any) -> Any:
        return jnp.sum(layer.apply(variables, x, train=False)[:, -1] ** 2)

    of_inputs = np.asarray(jax.jit(jax.grad(last))(x))
    assert not of_inputs[:, :4].any()
    assert np.abs(of_inputs[:, 4:]).min() > 0


@pytest.mark.parametrize("name", ["lstm", "gru", "convlstm"])
def test_bfloat16_stays_so_from_layer_to_layer(name: str) -> None:
    layer, variables, x = make(name, num_layers=2)
    make_cell, _ = CELLS[name]
    half = Recurrent(partial(make_cell, dtype=jnp.bfloat16), num_layers=2)
    carry, outputs = apply(half, variables, x, LENGTHS, return_carry=True)
    assert outputs.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(carry)} == {"float32"}
    exact = apply(layer, variables, x, LENGTHS)
    np.testing.assert_allclose(np.asarray(outputs, np.float32), exact, atol=0.03)


def test_a_carry_in_parameters_of_bfloat16_is_float32() -> None:
    # Flax draws orthogonal kernels by a QR decomposition, which has no bfloat16 from JAX 0.12 on.
    init = nn.initializers.lecun_normal()
    layer = Recurrent(partial(nn.LSTMCell, F, param_dtype=jnp.bfloat16, recurrent_kernel_init=init))
    x = np.ones((B, T, D), np.float32)
    (carry, _), _ = jax.eval_shape(
        partial(layer.init_with_output, train=False, return_carry=True), jax.random.key(0), x
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(carry)} == {"float32"}


class NoisyCell(nn.RNNCellBase):
    """A cell with dropout inside, whose outputs are its mask."""

    features: int

    @nn.compact
    def __call__(self, carry: Any, inputs: Any) -> Any:
        scale = self.param("scale", nn.initializers.ones, (self.features,))
        dropout = nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))
        return carry, dropout(jnp.ones_like(carry)) * scale

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Any:
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self) -> int:
        return 1


def test_dropout_inside_a_cell_draws_another_mask_at_every_step() -> None:
    layer = Recurrent(partial(NoisyCell, 200))
    x = np.zeros((2, T, 1), np.float32)
    variables = layer.init(jax.random.key(0), x, train=False)
    masks = layer.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(np.unique(masks), [0, 2])
    assert len(np.unique(masks[0], axis=0)) == T
    np.testing.assert_array_equal(layer.apply(variables, x, train=False), 1)


def test_dropout_between_layers() -> None:
    layer, variables, x = make("gru", num_layers=2, dropout_rate=0.5)
    run = jax.jit(lambda key: layer.apply(variables, x, train=True, rngs={"dropout": key}))
    first, second, again = (np.asarray(run(jax.random.key(seed))) for seed in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-4


class GrowingCell(NoisyCell):
    """A faulty cell: its carry grows at every step."""

    def __call__(self, carry: Any, inputs: Any) -> Any:
        return jnp.concatenate([carry, carry], axis=-1), carry


class CountingCell(NoisyCell):
    """A cell whose carry has no batch axis."""

    def __call__(self, carry: Any, inputs: Any) -> Any:
        return carry + 1, inputs

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Any:
        return jnp.zeros((), jnp.int32)


class NormalizingCell(NoisyCell):
    """A cell whose statistics would change from step to step."""

    @nn.compact
    def __call__(self, carry: Any, inputs: Any) -> Any:
        return carry, nn.BatchNorm(use_running_average=True)(inputs)


LSTM = partial(nn.LSTMCell, F)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"make_cell": LSTM, "options": ScanOptions(gradients="deferred")},
            r"gradients: expected 'autodiff' or 'auto' for flax\.linen\.LSTMCell, .*'deferred'",
        ),
        (
            {"make_cell": LSTM, "recurrent_dropout_rate": 0.5},
            r"recurrent_dropout_rate: expected 0 for flax\.linen\.LSTMCell, .* 0\.5; LSTMCell,",
        ),
        (
            {"make_cell": LSTM, "backend": "cudnn"},
            r"make_cell: expected flaxnets\.\S+LSTMCell for cuDNN's LSTM, received flax\.linen\.",
        ),
        (
            {"make_cell": partial(nn.Dense, F)},
            r"make_cell: expected a recurrent cell: .*RNNCellBase.*received Dense, which has no ",
        ),
        (
            {"make_cell": nn.LSTMCell(F)},
            r"make_cell: expected a constructor, as partial\(LSTMCell, 256\), received an instance",
        ),
        (
            {"make_cell": partial(GrowingCell, F)},
            r"make_cell: expected of a step of GrowingCell a carry of shapes \(3, 4\), .*\(3, 8\)",
        ),
        (
            {"make_cell": partial(CountingCell, F)},
            r"make_cell: expected the arrays in the carry of CountingCell .*batch of 3",
        ),
        (
            {"make_cell": partial(NormalizingCell, F)},
            r"make_cell: expected a cell whose only variables are parameters, .*NormalizingCell",
        ),
        (
            {"make_cell": partial(nn.ConvLSTMCell, F, (3, 3))},
            r"inputs: expected \(B,T,H,W,C\), received shape \(3, 6, 5\)",
        ),
        (
            {"make_cell": partial(nn.ConvLSTMCell, F, (3,))},
            r"inputs: expected \(B,T,L,C\), received shape \(3, 6, 5\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    layer = Recurrent(**options)
    x = np.ones((B, T, D), np.float32)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(layer.init, train=False), jax.random.key(0), x, jnp.asarray(LENGTHS))


def test_an_initial_carry_of_another_cell_is_refused() -> None:
    layer, variables, x = make("gru")
    carry = {"cells": ((np.zeros((B, F), np.float32),) * 2,), "inputs": None}
    with pytest.raises(ValueError, match=r"initial_carry: expected float32\[3, 4\], received "):
        layer.apply(variables, x, train=False, initial_carry=carry)


@pytest.mark.parametrize("kind", [nn.GRUCell, LSTMCell, GRUCell, LRUCell])
def test_classes_of_cells_are_told_from_others(kind: type) -> None:
    check_cell("cell", kind)
    with pytest.raises(ValueError, match=r"recurrent\.cell: expected a recurrent .*Embed"):
        check_cell("recurrent.cell", nn.Embed)
