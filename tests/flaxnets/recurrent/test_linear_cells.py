"""minGRU, minLSTM and LRU and their scan, against their equations in NumPy."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.scan import ScanOptions
from tests.flaxnets.recurrent import reference
from tests.flaxnets.recurrent.cases import (
    FLOAT64,
    FULL,
    LENGTHS,
    F,
    T,
    assert_close,
    call_scan,
)
from tests.flaxnets.recurrent.linear_cases import (
    LINEAR_CASES,
    LinearCase,
    draw_like,
    weigh,
)

EXACT = {"rtol": 1e-10, "atol": 1e-12}
every_cell = pytest.mark.parametrize("case", LINEAR_CASES, ids=str)
three_cells = pytest.mark.parametrize("case", LINEAR_CASES[::2], ids=str)
some_ways = pytest.mark.parametrize(
    ("case", "reverse"),
    [(LINEAR_CASES[0], False), (LINEAR_CASES[2], True), (LINEAR_CASES[5], False)],
    ids=str,
)
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def loss(cell: Any, arguments: Any, lengths: Any = None, **options: Any) -> Any:
    params, carry, x = arguments
    results = call_scan(cell, params, carry, x, lengths, **options)
    return weigh(7, results), results


_differentiate = jax.jit(
    jax.grad(loss, 1, has_aux=True), static_argnums=0, static_argnames=("reverse", "options")
)


def differentiate(*arguments: Any, **options: Any) -> Any:
    """Returns the gradients in parameters, carry and inputs; the carry and the outputs."""
    return jax.device_get(_differentiate(*arguments, **options))


@every_cell
def test_one_step(case: LinearCase) -> None:
    params, carry, x = case.draw()
    actual = jax.jit(case.make_cell(**FLOAT64).apply)({"params": params}, carry, x[:, 0])
    assert_close(actual, case.step(params, carry, x[:, 0]), **EXACT)
    assert actual[1].dtype == jnp.float64


@every_cell
@both_ways
def test_scan_and_its_gradients(case: LinearCase, reverse: bool) -> None:
    arguments, rng, small = case.draw(), np.random.default_rng(3), 1e-6
    cell = case.make_cell(**FLOAT64)
    for lengths in (FULL, LENGTHS):
        gradients, actual = differentiate(cell, arguments, lengths, reverse=reverse)
        how: Any = {"lengths": lengths, "reverse": reverse}
        expected = reference.scan(case.step, *arguments, **how)
        assert_close(actual, expected, **EXACT)
        assert not actual[1][np.arange(T) >= lengths[:, None]].any()
        leaves, structure = jax.tree.flatten(arguments)
        for number, leaf in enumerate(jax.tree.leaves(gradients)):
            assert np.isfinite(leaf).all()
            direction = draw_like(rng, leaf)
            ends = []
            for sign in (1, -1):
                moved = list(leaves)
                moved[number] = leaves[number] + sign * small * direction
                own = jax.tree.unflatten(structure, moved)
                ends.append(weigh(7, reference.scan(case.step, *own, **how)))
            slope = (ends[0] - ends[1]) / (2 * small)
            assert abs(slope) > 1e-4
            np.testing.assert_allclose((leaf * direction).real.sum(), slope, rtol=1e-6, atol=1e-8)


@every_cell
def test_layers_in_both_directions(case: LinearCase) -> None:
    layer = Recurrent(partial(case.make_cell, **FLOAT64), num_layers=2, bidirectional=True)
    drawn = {
        f"{direction}_{number}": case.draw(2 * number + reverse, width=2 * F if number else 5)
        for number in range(2)
        for reverse, direction in enumerate(("forward", "backward"))
    }
    expected = x = case.draw()[2]
    for number in range(2):
        outputs = []
        for reverse, direction in enumerate(("forward", "backward")):
            params, carry, _ = drawn[f"{direction}_{number}"]
            zeros, below = np.zeros_like(carry), expected
            how = {"reverse": bool(reverse)}
            outputs.append(reference.scan(case.step, params, zeros, below, LENGTHS, **how)[1])
        expected = np.concatenate(outputs, -1)
    variables = {"params": {name: params for name, (params, _, _) in drawn.items()}}
    actual = jax.jit(partial(layer.apply, train=False))(variables, x, LENGTHS)
    assert_close(actual, expected, **EXACT)


@every_cell
def test_chunk_after_chunk_is_the_whole(case: LinearCase) -> None:
    params, _, x = case.draw()
    layer = Recurrent(partial(case.make_cell, **FLOAT64))
    stream = jax.jit(partial(layer.apply, method="stream"))
    variables, carry, outputs = {"params": {"forward_0": params}}, None, []
    for begin in range(0, T, 2):
        chunk, lengths = x[:, begin : begin + 2], np.clip(LENGTHS - begin, 0, 2)
        carry, output = stream(variables, carry, chunk, lengths)
        outputs.append(output)
    zeros = np.zeros_like(case.draw()[1])
    expected = reference.scan(case.step, params, zeros, x, LENGTHS)
    assert_close((carry["cells"][0], np.concatenate(outputs, 1)), expected, **EXACT)


@every_cell
def test_in_bfloat16_outputs_stay_in_it_and_the_state_does_not(case: LinearCase) -> None:
    params, carry, x = case.draw()
    cell = case.make_cell(dtype=jnp.bfloat16)
    wide = np.complex64 if np.iscomplexobj(carry) else np.float32
    drawn = jax.tree.map(np.float32, params), carry.astype(wide), x.astype(jnp.bfloat16)
    rounded, (last, outputs) = differentiate(cell, drawn, LENGTHS)
    assert (last.dtype, outputs.dtype) == (wide, jnp.bfloat16)
    expected = reference.scan(case.step, params, carry, x, LENGTHS)
    scale = np.abs(expected[1]).max()
    np.testing.assert_allclose(last, expected[0], atol=0.02 * scale)
    np.testing.assert_allclose(outputs.astype(float), expected[1], atol=0.02 * scale)
    exact, _ = differentiate(case.make_cell(**FLOAT64), case.draw(), LENGTHS)
    for name, leaf in rounded[0].items():
        assert leaf.dtype == np.float32
        error = np.linalg.norm(leaf - exact[0][name]) / np.linalg.norm(exact[0][name])
        assert error < 0.03, (name, error)
    one = jax.eval_shape(cell.apply, {"params": drawn[0]}, drawn[1], drawn[2][:, 0])
    assert jax.tree.map(lambda leaf: leaf.dtype, one) == (wide, jnp.bfloat16)


@some_ways
def test_options_change_neither_outputs_nor_gradients(case: LinearCase, reverse: bool) -> None:
    cell, arguments = case.make_cell(**FLOAT64), case.draw()
    expected = differentiate(cell, arguments, LENGTHS, reverse=reverse)
    for options in (ScanOptions(remat_steps=4), ScanOptions(gradients="autodiff", unroll=2)):
        actual = differentiate(cell, arguments, LENGTHS, reverse=reverse, options=options)
        assert_close(actual, expected, **EXACT)


@some_ways
def test_truncated_gradients_are_those_of_chunks_on_their_own(
    case: LinearCase, reverse: bool
) -> None:
    cell, (params, start, x), steps = case.make_cell(**FLOAT64), case.draw(), 4
    first, second = (x[:, -steps:], x[:, :-steps]) if reverse else (x[:, :steps], x[:, steps:])
    options = ScanOptions(truncate_steps=steps)

    def of_outputs(params: Any, carry: Any, x: Any, options: Any = None) -> Any:
        how = {"reverse": reverse, "options": options}
        carry, outputs = call_scan(cell, params, carry, x, **how)
        return (outputs**2).sum(), carry

    one = jax.jit(jax.grad(of_outputs, has_aux=True), static_argnames="options")
    of_first, carry = one(params, start, first)
    of_second, last = one(params, carry, second)
    actual, end = one(params, start, x, options=options)
    assert_close(end, last, **EXACT)
    assert_close(actual, jax.tree.map(np.add, *jax.device_get((of_first, of_second))), **EXACT)
    whole, _ = one(params, start, x)
    assert np.abs(actual["input_kernel"] - whole["input_kernel"]).max() > 1e-3


@three_cells
def test_padding_and_the_future_change_nothing(case: LinearCase) -> None:
    cell, (params, carry, x) = case.make_cell(**FLOAT64), case.draw()
    padding = (np.arange(T) >= LENGTHS[:, None])[..., None]
    other = np.where(padding, 1e3, x)
    for reverse in (False, True):
        (a, results), (b, others) = (
            differentiate(cell, (params, carry, inputs), LENGTHS, reverse=reverse)
            for inputs in (x, other)
        )
        assert_close(results, others, rtol=0, atol=0)
        assert_close(a, b, **EXACT)
        assert not a[2][padding[..., 0]].any()
    changed = x + (np.arange(T) >= 4)[:, None]
    before, after = (
        differentiate(cell, (params, carry, inputs), FULL)[1][1] for inputs in (x, changed)
    )
    assert_close(before[:, :4], after[:, :4], rtol=0, atol=0)
    assert np.abs(before[:, 4] - after[:, 4]).min() > 0


@three_cells
def test_several_scans_under_vmap(case: LinearCase) -> None:
    cell = case.make_cell(**FLOAT64)
    several = jax.tree.map(lambda *leaves: np.stack(leaves), case.draw(0), case.draw(1))
    lengths = np.stack([LENGTHS, FULL])
    over_all = jax.vmap(partial(jax.grad(loss, 1, has_aux=True), cell))
    actual = jax.device_get(jax.jit(over_all)(several, lengths))
    for number in range(2):
        own = jax.tree.map(lambda leaf: leaf[number], actual)  # noqa: B023
        assert_close(own, differentiate(cell, case.draw(number), lengths[number]), **EXACT)


@three_cells
def test_a_stack_learns_with_all_the_layer_offers(case: LinearCase) -> None:
    layer = Recurrent(
        partial(case.make_cell, **FLOAT64),
        num_layers=2,
        residual=True,
        normalize_inputs=True,
        normalize_layers=True,
        glu=True,
        dropout_rate=0.5,
        variational=True,
    )
    x = case.draw()[2]
    params = jax.jit(partial(layer.init, train=False))(jax.random.key(0), x)["params"]

    @jax.jit
    @jax.grad
    def of_outputs(params: Any) -> Any:
        rngs = {"dropout": jax.random.key(1)}
        return (layer.apply({"params": params}, x, LENGTHS, train=True, rngs=rngs) ** 2).sum()

    for path, leaf in jax.tree.leaves_with_path(of_outputs(params)):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
