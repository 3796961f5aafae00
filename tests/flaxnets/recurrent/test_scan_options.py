"""Options of a scan: rematerialisation, truncation, memory, deferred gradients."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.convolutional_cells import ConvLSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.scan import ScanOptions
from tests.flaxnets.meshes import make_mesh, tracing_on
from tests.flaxnets.recurrent.cases import (
    BY_NAME,
    FLOAT64,
    LENGTHS,
    assert_close,
    call_scan,
)

AUTODIFF = ScanOptions(gradients="autodiff")
CASE = BY_NAME["gru-after"]
CELL = CASE.make_cell(**FLOAT64)
EXACT = {"rtol": 1e-12, "atol": 1e-12}
T = 7
"""Not a multiple of the chunks' steps."""


@pytest.fixture
def arguments() -> Iterator[Any]:
    """Draws parameters, carry, inputs (B,T,D) and weights of the outputs, float64."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params, carry, x = CASE.draw(steps=T)
        yield params, carry, x, rng.normal(size=(*x.shape[:2], CELL.features))


def weighted(arguments: Any, lengths: Any, **options: Any) -> Any:
    """Returns a scalar loss, and the carry and outputs that it weighs."""
    params, carry, x, weights = arguments
    carry, outputs = call_scan(CELL, params, carry, x, lengths, **options)
    return jnp.sum(weights * outputs) + jnp.sum(carry**2), (carry, outputs)


@partial(jax.jit, static_argnames=("reverse", "options"))
def _value_and_gradient(*arguments: Any, **options: Any) -> Any:
    return jax.value_and_grad(weighted, has_aux=True)(*arguments, **options)


def run(*arguments: Any, **options: Any) -> Any:
    return jax.device_get(_value_and_gradient(*arguments, **options))


@pytest.mark.slow_after(6)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        ScanOptions(unroll=3),
        ScanOptions(remat_steps=3),
        ScanOptions(remat_steps=3, gradients="autodiff"),
        ScanOptions(remat_steps=7),
        ScanOptions(remat_steps=1, remat_outer_steps=3),
        ScanOptions(remat_steps=2, remat_outer_steps=4, gradients="autodiff"),
        ScanOptions(truncate_steps=9),
    ],
    ids=[
        *("unroll", "remat", "remat-autodiff", "one-chunk", "nested", "nested-autodiff"),
        "nothing-to-truncate",
    ],
)
def test_changes_neither_values_nor_gradients(
    arguments: Any, options: ScanOptions, reverse: bool
) -> None:
    expected = run(arguments, LENGTHS, reverse=reverse)
    actual = run(arguments, LENGTHS, reverse=reverse, options=options)
    assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("steps", [15, 16])
def test_of_long_scans_the_gradients_are_the_same(steps: int, num_devices: int) -> None:
    # From 16 steps on the kernel is copied transposed; on one device time and batch are merged.
    with jax.enable_x64(True), tracing_on(make_mesh(num_devices)):
        params, carry, x = CASE.draw(steps=steps)
        weights = np.random.default_rng(1).normal(size=(*x.shape[:2], CELL.features))
        results = [
            jax.device_get(
                jax.jit(jax.value_and_grad(partial(weighted, **options), has_aux=True))(
                    (params, carry, x, weights), LENGTHS
                )
            )
            for options in ({}, {"options": AUTODIFF})
        ]
    assert_close(*results, **EXACT)


@pytest.mark.parametrize(("reverse", "remat"), [(False, (0, 0)), (True, (2, 0)), (False, (1, 2))])
def test_truncation_is_that_of_chunks_whose_carries_are_handed_on_as_numbers(
    arguments: Any, reverse: bool, remat: tuple[int, int]
) -> None:
    options = ScanOptions(remat_steps=remat[0], remat_outer_steps=remat[1], truncate_steps=4)
    actual = run(arguments, LENGTHS, reverse=reverse, options=options)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def chunks(arguments: Any) -> Any:
        params, carry, x, weights = arguments
        bounds = [(3, 7), (0, 3)] if reverse else [(0, 4), (4, 7)]
        total: Any = 0
        pieces: list[Any] = []
        for begin, end in bounds:
            lengths = np.clip(LENGTHS - begin, 0, end - begin)
            carry = jax.lax.stop_gradient(carry) if pieces else carry
            carry, outputs = call_scan(
                CELL, params, carry, x[:, begin:end], lengths, reverse=reverse
            )
            total += jnp.sum(weights[:, begin:end] * outputs)
            pieces.append(outputs)
        outputs = jnp.concatenate(pieces[::-1] if reverse else pieces, axis=1)
        return total + jnp.sum(carry**2), (carry, outputs)

    assert_close(actual, jax.device_get(chunks(arguments)), **EXACT)
    whole = run(arguments, LENGTHS, reverse=reverse)
    assert_close(actual[0], whole[0], **EXACT)
    (_, of_carry, *_), (_, of_carry_whole, *_) = actual[1], whole[1]
    assert np.abs(of_carry - of_carry_whole)[0].max() > 1e-4


def test_the_first_carry_has_a_gradient_through_the_first_chunk_alone(arguments: Any) -> None:
    *rest, weights = arguments
    for begin, some in ((4, False), (3, True)):
        late = np.where(np.arange(T)[:, None] < begin, 0, weights)
        options = ScanOptions(truncate_steps=4)

        @jax.jit
        @jax.grad
        def of_carry(carry: Any, late: Any) -> Any:
            params, _, x = rest
            outputs = call_scan(CELL, params, carry, x, options=options)[1]  # noqa: B023
            return jnp.sum(late * outputs)

        assert np.asarray(of_carry(rest[1], late)).any() == some


# The program itself.


def equations(jaxpr: Any, in_scan: bool = False) -> Iterator[tuple[Any, bool]]:
    """Yields all equations of a program, each with True if it is inside a scan."""
    for equation in jaxpr.eqns:
        yield equation, in_scan
        inside = in_scan or equation.primitive.name in ("scan", "while")
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner, inside)


def shapes_of_products(cell: Any, axes: tuple[int, ...], options: ScanOptions) -> Any:
    """Returns shapes of parameters, and of the gradient's matmuls in scans and outside."""
    x = np.zeros((2, 5, *axes), np.float32)
    init = partial(cell.init, method="weights")
    params = jax.eval_shape(lambda: init(jax.random.key(0), x.shape)["params"])

    def loss(params: Any) -> Any:
        return jnp.sum(call_scan(cell, params, None, x, options=options)[1])

    found: tuple[list[Any], list[Any]] = [], []
    for equation, in_scan in equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr):
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found[not in_scan].append(tuple(sorted(equation.outvars[0].aval.shape)))
    return params, *found


@pytest.mark.parametrize(
    ("cell", "axes", "names"),
    [
        (LSTMCell(7, projection_features=3), (5,), ["hidden_kernel", "projection_kernel"]),
        (GRUCell(7), (5,), ["hidden_kernel"]),
        (ConvLSTMCell(7), (6, 4, 5), ["hidden_kernel"]),
    ],
    ids=["lstm", "gru", "convlstm"],
)
def test_kernels_get_their_gradients_after_the_scan(cell: Any, axes: Any, names: Any) -> None:
    params, inside, outside = shapes_of_products(cell, axes, ScanOptions())
    _, inside_autodiff, outside_autodiff = shapes_of_products(cell, axes, AUTODIFF)
    for name in names:
        shape = tuple(sorted(params[name].shape))
        assert shape not in inside
        assert shape in outside
        assert shape in inside_autodiff
        assert shape not in outside_autodiff


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("options", [ScanOptions(), AUTODIFF], ids=["deferred", "autodiff"])
def test_each_layer_scans_time_once_in_each_direction(
    bidirectional: bool, options: ScanOptions
) -> None:
    make_cell = partial(GRUCell, 4)
    layer = Recurrent(make_cell, num_layers=3, bidirectional=bidirectional, options=options)
    x = np.zeros((2, 5, 3), np.float32)
    variables = jax.eval_shape(partial(layer.init, train=False), jax.random.key(0), x)
    program = jax.make_jaxpr(partial(layer.apply, train=True))(variables, x, np.array([5, 2]))
    scans = [e for e, _ in equations(program.jaxpr) if e.primitive.name == "scan"]
    assert len(scans) == 3 * (2 if bidirectional else 1)
    assert all(scan.params["length"] == 5 for scan in scans)


# Memory of compiled programs, which are not run.

MAP, F, BATCH = (8, 8, 4), 4, 2


def temporary_bytes(steps: int, train: bool, options: ScanOptions) -> int:
    cell = ConvLSTMCell(F)
    x = jax.ShapeDtypeStruct((BATCH, steps, *MAP), jnp.float32)
    lengths = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    init = partial(cell.init, method="weights")
    params = jax.eval_shape(lambda: init(jax.random.key(0), x.shape)["params"])

    def last_carry(params: Any, x: Any, lengths: Any) -> Any:
        return call_scan(cell, params, None, x, lengths, options=options)[0]

    def gradient(params: Any, x: Any, lengths: Any) -> Any:
        def loss(params: Any) -> Any:
            return jnp.sum(call_scan(cell, params, None, x, lengths, options=options)[1] ** 2)

        return jax.grad(loss)(params)

    with tracing_on(make_mesh(1)):  # On several devices the maps of all steps are copied.
        traced = jax.jit(gradient if train else last_carry).lower(params, x, lengths)
    compiled = traced.compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("options", [ScanOptions(), AUTODIFF], ids=["deferred", "autodiff"])
def test_the_last_carry_is_found_without_storing_those_before_it(options: ScanOptions) -> None:
    short, long = (temporary_bytes(steps, False, options) for steps in (8, 64))
    state = 4 * BATCH * MAP[0] * MAP[1] * F
    # One step more adds the input projection of four gates; storing c and h would add two more.
    assert (long - short) / (64 - 8) < 4 * state + MAP[2] / F * state + 0.5 * state


@pytest.mark.parametrize("gradients", ["deferred", "autodiff"])
def test_chunks_that_are_computed_anew_need_a_quarter_of_the_memory(gradients: str) -> None:
    plain = temporary_bytes(64, True, AUTODIFF)
    chunks = temporary_bytes(64, True, ScanOptions(gradients=gradients, remat_steps=8))
    assert chunks <= plain / 4
