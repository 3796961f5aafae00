"""Newton's method over all steps of a scan: values and gradients of the scan, counts, fallbacks."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent import (
    ConvLSTMCell,
    ElmanCell,
    MinGRUCell,
    Recurrent,
    RecurrentConfig,
    ScanOptions,
    make_recurrent,
)
from flaxnets.recurrent.newton_scan import NewtonScan
from flaxnets.recurrent.newton_updates import smooth, solve_recurrence
from flaxnets.recurrent.scan import collect_reports
from tests.flaxnets.recurrent.cases import BY_NAME, FLOAT64, assert_close, call_scan

B, T, F = 3, 40, 4
"""More steps than iterations are needed, so that convergence is not that of the first T."""
LENGTHS = np.array([T, T - 7, 0], np.int32)
DEER, QUASI, DAMPED = NewtonScan(), NewtonScan("quasi_deer"), NewtonScan(damping=0.5)
ELK, QUASI_ELK = NewtonScan("elk"), NewtonScan("quasi_elk")


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def draw_starts() -> np.ndarray:
    """Returns (B,T) bool with resets in the middle, and one within the padding."""
    starts = np.zeros((B, T), bool)
    starts[0, [0, 4]] = starts[1, [2, T - 2]] = True
    return starts


@partial(jax.jit, static_argnums=0, static_argnames=("reverse", "options"))
def value_and_gradient(cell: Any, arguments: Any, **options: Any) -> Any:
    """Returns carry, outputs and report, and the gradients of a loss that reads all of both."""

    def loss(arguments: Any) -> Any:
        params, carry, x = arguments
        (carry, outputs), sown = call_scan(
            cell,
            params,
            carry,
            x,
            LENGTHS,
            starts=draw_starts(),
            mutable="scan_reports",
            **options,
        )
        weights = jnp.cos(jnp.arange(outputs.size).reshape(outputs.shape))
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(carry))
        return jnp.sum(weights * outputs) + squares, (carry, outputs, sown)

    (_, (carry, outputs, sown)), gradients = jax.value_and_grad(loss, has_aux=True)(arguments)
    return (carry, outputs, gradients), sown


def run(cell: Any, arguments: Any, parallel: NewtonScan | None, **options: Any) -> Any:
    options["options"] = ScanOptions(parallel=parallel)
    return jax.device_get(value_and_gradient(cell, arguments, **options))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "parallel", "reverse"),
    [
        ("elman", QUASI, False),
        ("lstm", DEER, True),
        ("gru-after", DEER, False),
        pytest.param("lstm-all", QUASI, False, marks=pytest.mark.stress),
        pytest.param("lstm-peepholes", QUASI, True, marks=pytest.mark.stress),
        pytest.param("gru-before", QUASI, True, marks=pytest.mark.stress),
        pytest.param("gru-after", DAMPED, True, marks=pytest.mark.stress),
        ("lstm", QUASI_ELK, True),
        pytest.param("gru-after", ELK, False, marks=pytest.mark.stress),
        pytest.param("lstm-peepholes", ELK, True, marks=pytest.mark.stress),
    ],
    ids=str,
)
def test_equals_the_scan_with_lengths_resets_and_a_carry(
    name: str, parallel: NewtonScan, reverse: bool
) -> None:
    case = BY_NAME[name]
    cell, arguments = case.make_cell(**FLOAT64), case.draw(steps=T)
    arguments[2][1, LENGTHS[1] :] = np.nan
    expected, _ = run(cell, arguments, None, reverse=reverse)
    actual, sown = run(cell, arguments, parallel, reverse=reverse)
    assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    report = collect_reports(sown["scan_reports"])[""]
    assert not report.fallbacks.any()
    assert report.iterations[2] == 1
    if parallel == DEER:  # Fewer than the steps of the longest sequence, 36.
        assert (report.iterations < 20).all()


def test_layer_by_flag_equals_the_scan_in_chunks_for_a_cell_of_flax() -> None:
    x = np.random.default_rng(0).normal(size=(2, 32, 3)).astype(np.float32)
    config = RecurrentConfig("flax.linen:GRUCell", features=F)
    layer: Any = make_recurrent(config)
    variables = layer.init(jax.random.key(0), x[:, :2], train=False)
    fast: Any = make_recurrent(replace(config, parallel="deer", remat_steps=16))
    made = jax.eval_shape(partial(fast.init, train=False), jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, made)

    def gradient(layer: Any, variables: Any) -> Any:
        def loss(variables: Any) -> Any:
            how = {"train": False, "mutable": "scan_reports"}
            outputs, sown = layer.apply(variables, x, np.array([32, 20]), **how)
            return jnp.sum(outputs**2), (outputs, sown)

        return jax.grad(loss, has_aux=True)(variables)

    run = jax.jit(gradient, static_argnums=0)
    expected, (outputs, _) = run(layer, variables)
    actual, (parallel, sown) = run(fast, variables)
    np.testing.assert_allclose(parallel, outputs, rtol=1e-5, atol=1e-6)
    assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    (path, report), *others = collect_reports(sown["scan_reports"]).items()
    assert path == "forward_0"
    assert not others
    assert report.fallbacks.tolist() == [0, 0]
    # The sum over two chunks, of which each needs several.
    assert (report.iterations >= 4).all()
    assert (report.iterations < 20).all()


@pytest.mark.parametrize(
    "method",
    [
        "deer",
        "elk",
        pytest.param("quasi_deer", marks=pytest.mark.stress),
        pytest.param("quasi_elk", marks=pytest.mark.stress),
    ],
)
def test_falls_back_to_the_scan_where_products_of_jacobians_overflow(method: str) -> None:
    # A chaotic network: |J| is about 3 near zero, and 3^100 is beyond float32.
    cell, steps = ElmanCell(8), 100
    rng = np.random.default_rng(0)
    kernel = 3 * np.linalg.qr(rng.normal(size=(8, 8)))[0]
    params = {"input_kernel": np.eye(8), "hidden_kernel": kernel, "bias": np.zeros(8)}
    x = np.zeros((3, steps, 8))
    x[:2] = 1e-3 * rng.normal(size=(2, steps, 8))
    x[1, 2:] = -10  # Saturated from there on: this sequence converges.
    params, x = jax.tree.map(np.float32, (params, x))

    @partial(jax.jit, static_argnums=1)
    def run(params: Any, parallel: NewtonScan | None) -> Any:
        def loss(params: Any) -> Any:
            (_, outputs), sown = call_scan(
                cell, params, jnp.zeros((3, 8)), x, None,
                options=ScanOptions(parallel=parallel), mutable="scan_reports",
            )  # fmt: skip
            # Only the first steps, so that gradients are finite.
            return jnp.sum(outputs[:, :4] ** 2), (outputs, sown)

        return jax.grad(loss, has_aux=True)(params)

    expected, (outputs, _) = run(params, None)
    actual, (parallel, sown) = run(params, NewtonScan(method, max_iterations=6))
    report = collect_reports(sown["scan_reports"])[""]
    assert report.fallbacks.tolist() == [1, 0, 0]
    assert report.iterations[0] == 6
    assert report.iterations[2] == 1
    np.testing.assert_allclose(parallel, outputs, rtol=1e-5, atol=1e-5)
    assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_smoother_solves_the_least_squares_of_all_steps(diagonal: bool, reverse: bool) -> None:
    rng = np.random.default_rng(0)
    steps, batch, width, precision = 7, 2, 3, np.array([0.3, 2.0])
    constants = rng.normal(size=(steps, batch, width))
    matrices = rng.normal(size=(steps, batch, width) + (() if diagonal else (width,)))
    given = jnp.asarray(matrices), jnp.asarray(constants)
    actual = smooth(*given, jnp.asarray(precision), reverse=reverse)
    # A length that is not known in advance takes the sequential way.
    shape = jax.export.symbolic_shape("t")
    free = [jax.ShapeDtypeStruct((*shape, *x.shape[1:]), x.dtype) for x in given]
    exported = jax.export.export(jax.jit(partial(smooth, reverse=reverse)))(
        *free, jax.ShapeDtypeStruct((batch,), jnp.float64)
    )
    np.testing.assert_allclose(exported.call(*given, precision), actual, atol=1e-12)
    for b in range(batch):
        # Rows are the equations Δ_t − J_t Δ_{t∓1} = r_t.
        equations = np.eye(steps * width).reshape(steps, width, steps, width)
        for t in range(steps):
            neighbour = t + 1 if reverse else t - 1
            if 0 <= neighbour < steps:
                matrix = np.diag(matrices[t, b]) if diagonal else matrices[t, b]
                equations[t, :, neighbour] = -matrix
        flat = equations.reshape(steps * width, -1)
        normal = flat.T @ flat + precision[b] * np.eye(steps * width)
        expected = np.linalg.solve(normal, flat.T @ constants[:, b].ravel())
        np.testing.assert_allclose(actual[:, b], expected.reshape(steps, width), atol=1e-12)
    plain = solve_recurrence(*given, reverse=reverse)
    np.testing.assert_allclose(smooth(*given, jnp.zeros(batch), reverse=reverse), plain, atol=1e-11)


def test_weights_of_nan_give_nan_as_the_scan_does() -> None:
    cell = ElmanCell(2)
    params = {
        "input_kernel": np.full((2, 2), np.nan, np.float32),
        "hidden_kernel": np.eye(2, dtype=np.float32),
        "bias": np.zeros(2, np.float32),
    }
    options = ScanOptions(parallel=NewtonScan(max_iterations=2))
    x = np.ones((1, 3, 2), np.float32)
    (_, outputs), sown = call_scan(
        cell, params, jnp.zeros((1, 2)), x, options=options, mutable="scan_reports"
    )
    assert np.isnan(outputs).all()
    assert collect_reports(sown["scan_reports"])[""].fallbacks.tolist() == [1]


class NoisyCell(nn.RNNCellBase):
    """A cell that draws dropout at every step."""

    features: int

    @nn.compact
    def __call__(self, carry: Any, inputs: Any) -> Any:
        new = jnp.tanh(nn.Dense(self.features)(carry) + nn.Dense(self.features)(inputs))
        return new, nn.Dropout(0.5, deterministic=False)(new)

    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Any:
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("make_cell", "options", "message"),
    [
        (partial(ConvLSTMCell, 2), {}, "parallel: expected None for ConvLSTMCell.*feature maps"),
        (partial(MinGRUCell, 2), {}, "parallel: expected None for MinGRUCell.*linear"),
        (
            partial(nn.ConvLSTMCell, 2, (3, 3)),
            {},
            "parallel: expected None for flax.linen.ConvLSTM",
        ),
        (partial(ElmanCell, 2), {"gradients": "autodiff"}, "gradients: expected 'auto' or"),
        (partial(NoisyCell, 2), {}, "parallel: expected None for NoisyCell.*random numbers"),
    ],
)
def test_other_cells_are_refused(make_cell: Any, options: Any, message: str) -> None:
    axes = (3, 3, 2) if "Conv" in message else (2,)
    layer = Recurrent(make_cell, options=ScanOptions(parallel=DEER, **options))
    x = np.zeros((1, 2, *axes), np.float32)

    def run() -> Any:
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = layer.init(keys, x, train=False)
        return layer.apply(variables, x, train=False, rngs=keys)

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"method": "newton"},
            r"method: expected one of \('deer', 'quasi_deer', 'elk', .*received 'newton'",
        ),
        ({"tolerance": -1.0}, "tolerance: expected at least 0, received -1.0"),
        ({"tolerance": float("nan")}, "tolerance: expected at least 0, received nan"),
        ({"max_iterations": 0}, "max_iterations: expected at least 1, received 0"),
        ({"damping": 1.5}, r"damping: expected in \[0,1\], received 1.5"),
        ({"regularization": 0.0}, "regularization: expected above 0, received 0.0"),
    ],
)
def test_values_out_of_range_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NewtonScan(**fields)


def test_configuration_gives_the_method_and_its_regularization() -> None:
    layer: Any = make_recurrent(RecurrentConfig(parallel="elk", parallel_regularization=0.5))
    assert layer.options.parallel == NewtonScan("elk", regularization=0.5)


def test_unknown_name_in_a_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.recurrent.parallel: unknown 'dear'.*'deer'"):
        make_recurrent(RecurrentConfig(parallel="dear"))
