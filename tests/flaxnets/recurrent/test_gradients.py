"""Deferred gradients of scans, against the equations in NumPy and against autodiff."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.scan import ScanOptions
from tests.flaxnets.recurrent import reference
from tests.flaxnets.recurrent.cases import (
    BY_NAME,
    CASES,
    FLOAT64,
    FULL,
    LENGTHS,
    B,
    Case,
    assert_close,
    call_scan,
    in_bfloat16,
    optimized_jit,
    scan,
)

AUTODIFF = ScanOptions(gradients="autodiff")
EXACT = {"rtol": 1e-10, "atol": 1e-12}
every_cell = pytest.mark.parametrize("case", CASES, ids=str)
some_cells = pytest.mark.parametrize(
    "case", [BY_NAME[name] for name in ("lstm-all", "gru-before", "convgru-after-3x2")], ids=str
)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def weigh(seed: int, results: Any) -> Any:
    """Returns a scalar: carry and outputs times random numbers."""
    rng = np.random.default_rng(seed)
    return sum((rng.normal(size=leaf.shape) * leaf).sum() for leaf in jax.tree.leaves(results))


def loss(cell: Any, arguments: Any, lengths: Any = None, mask: Any = None, **options: Any) -> Any:
    params, carry, x = arguments
    return weigh(7, call_scan(cell, params, carry, x, lengths, mask, **options))


gradient = jax.grad(loss, 1)
_compiled = jax.jit(gradient, static_argnums=0, static_argnames=("reverse", "options"))


def compiled_gradient(*arguments: Any, **options: Any) -> Any:
    """Returns NumPy arrays, on which nothing is compiled."""
    return jax.device_get(_compiled(*arguments, **options))


def derivative(case: Case, arguments: Any, number: int, direction: np.ndarray, **how: Any) -> Any:
    """Returns the derivative of the reference's loss along a direction of one leaf."""
    leaves, structure = jax.tree.flatten(arguments)
    leaves[number] = leaves[number] + 1e-30j * direction
    moved = jax.tree.unflatten(structure, leaves)
    return weigh(7, reference.scan(case.step, *moved, **how)).imag / 1e-30


def draw_mask(case: Case) -> np.ndarray:
    """Draws a mask of the hidden states for each sequence."""
    carry = jax.tree.leaves(case.draw()[1])[-1]
    return np.random.default_rng(5).uniform(0.5, 2, (B, *[1] * (carry.ndim - 2), carry.shape[-1]))


@pytest.mark.slow_after(10)
@every_cell
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
def test_gradients_are_the_derivatives_of_the_equations(case: Case, reverse: bool) -> None:
    arguments = case.draw()
    rng = np.random.default_rng(3)
    for lengths in (FULL, LENGTHS):
        actual = compiled_gradient(case.make_cell(**FLOAT64), arguments, lengths, reverse=reverse)
        for number, leaf in enumerate(jax.tree.leaves(actual)):
            direction = rng.normal(size=leaf.shape)
            how = {"lengths": lengths, "reverse": reverse}
            expected = derivative(case, arguments, number, direction, **how)
            assert abs(expected) > 1e-6
            np.testing.assert_allclose((leaf * direction).sum(), expected, rtol=1e-9)


@some_cells
def test_masked_hidden_states_have_the_values_and_gradients_of_the_equations(case: Case) -> None:
    cell, arguments, mask = case.make_cell(**FLOAT64), case.draw(), draw_mask(case)
    how = {"lengths": LENGTHS, "mask": mask}
    assert_close(
        scan(cell, *arguments, **how), reference.scan(case.step, *arguments, **how), **EXACT
    )
    actual = compiled_gradient(cell, arguments, **how)
    rng = np.random.default_rng(3)
    for number, leaf in enumerate(jax.tree.leaves(actual)):
        direction = rng.normal(size=leaf.shape)
        expected = derivative(case, arguments, number, direction, **how)
        np.testing.assert_allclose((leaf * direction).sum(), expected, rtol=1e-9)


@some_cells
def test_gradients_after_the_scan_are_those_of_autodiff(case: Case) -> None:
    cell, arguments, mask = case.make_cell(**FLOAT64), case.draw(), draw_mask(case)
    expected = compiled_gradient(cell, arguments, LENGTHS, mask, options=AUTODIFF)
    assert_close(compiled_gradient(cell, arguments, LENGTHS, mask), expected, **EXACT)


@pytest.mark.parametrize("name", ["gru-before", "convlstm-peepholes-2x3"])
def test_of_several_scans_under_vmap(name: str) -> None:
    case = BY_NAME[name]
    cell = case.make_cell(**FLOAT64)
    several = jax.tree.map(lambda *leaves: np.stack(leaves), case.draw(0), case.draw(1))
    lengths = np.stack([LENGTHS, FULL])
    actual = jax.device_get(jax.jit(jax.vmap(partial(gradient, cell)))(several, lengths))
    for number in range(2):
        expected = compiled_gradient(cell, case.draw(number), lengths[number])
        assert_close(jax.tree.map(lambda a: a[number], actual), expected, **EXACT)  # noqa: B023


@pytest.mark.parametrize("name", ["lstm-projection", "gru-after", "convgru-before-2x3"])
def test_second_derivatives_are_those_of_autodiff(name: str) -> None:
    case = BY_NAME[name]
    cell, arguments, direction = case.make_cell(**FLOAT64), case.draw(), case.draw(1)

    @partial(jax.jit, static_argnames="options")
    def along_direction(arguments: Any, options: ScanOptions | None = None) -> Any:
        def first(arguments: Any) -> Any:
            return gradient(cell, arguments, LENGTHS, options=options)

        return jax.jvp(first, (arguments,), (direction,))[1]

    actual = jax.device_get(along_direction(arguments))
    assert_close(actual, along_direction(arguments, AUTODIFF), rtol=1e-9, atol=1e-11)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(actual))


def test_second_derivatives_in_reverse_mode() -> None:
    case = BY_NAME["gru-before"]
    cell, arguments, direction = case.make_cell(**FLOAT64), case.draw(), case.draw(1)

    @partial(jax.jit, static_argnames="options")
    @jax.grad
    def along_direction(arguments: Any, options: ScanOptions | None = None) -> Any:
        first = gradient(cell, arguments, LENGTHS, options=options)
        products = jax.tree.map(lambda a, b: (a * b).sum(), first, direction)
        return sum(jax.tree.leaves(products))

    assert_close(
        along_direction(arguments), along_direction(arguments, AUTODIFF), rtol=1e-9, atol=1e-11
    )


def test_forward_mode_is_left_to_autodiff() -> None:
    case = BY_NAME["elman"]
    cell, arguments, direction = case.make_cell(**FLOAT64), case.draw(), case.draw(1)

    def along_direction(options: ScanOptions | None) -> Any:
        def of(arguments: Any) -> Any:
            return loss(cell, arguments, LENGTHS, options=options)

        return jax.jvp(of, (arguments,), (direction,))[1]

    with pytest.raises(TypeError, match="forward-mode"):
        along_direction(None)
    first = compiled_gradient(cell, arguments, LENGTHS)
    products = jax.tree.map(lambda a, b: (a * b).sum(), first, direction)
    np.testing.assert_allclose(along_direction(AUTODIFF), sum(jax.tree.leaves(products)))


@pytest.mark.parametrize("name", ["lstm-projection", "convgru-before-2x3"])
def test_in_bfloat16_parameters_get_float32_gradients_near_the_exact_ones(name: str) -> None:
    case = BY_NAME[name]
    arguments = case.draw()
    exact = compiled_gradient(case.make_cell(**FLOAT64), arguments, LENGTHS)[0]
    cell = case.make_cell(dtype=jnp.bfloat16)
    rounded = compiled_gradient(cell, in_bfloat16(case, arguments), LENGTHS)[0]
    for name, leaf in rounded.items():
        assert leaf.dtype == jnp.float32
        error = np.linalg.norm(leaf - exact[name]) / np.linalg.norm(exact[name])
        assert error < 0.03, (name, error)


@some_cells
def test_in_float32_with_all_optimisations_results_are_near_the_exact_ones(case: Case) -> None:
    def run(compiler: Any, arguments: Any, **dtypes: Any) -> Any:
        cell = case.make_cell(**dtypes)
        run = jax.value_and_grad(lambda arguments, lengths: loss(cell, arguments, lengths))
        return jax.device_get(compiler(run)(arguments, LENGTHS))

    exact = run(jax.jit, case.draw(), **FLOAT64)
    actual = run(optimized_jit, jax.tree.map(np.float32, case.draw()))
    assert actual[1][2].dtype == np.float32
    assert_close(actual, exact, rtol=1e-3, atol=1e-4)
