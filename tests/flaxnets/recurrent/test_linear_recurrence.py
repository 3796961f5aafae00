"""Linear recurrences by both algorithms, against a loop in NumPy."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.linear_recurrence import gated_average, linear_recurrence, plain_recurrence
from tests.flaxnets.recurrent.cases import assert_close
from tests.flaxnets.recurrent.linear_cases import draw_like, weigh

T, SHAPE = 7, (2, 3)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["cpu", "default"])
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selects the algorithm of CPUs or that of other platforms."""

    def choose(*arguments: Any, **ways: Any) -> Any:
        return ways[request.param](*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)


def draw(dtype: Any, steps: int = T) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    likes = (
        np.zeros((steps, *SHAPE), dtype),
        np.zeros((steps, *SHAPE), dtype),
        np.zeros(SHAPE, dtype),
    )
    a, b, initial = (draw_like(rng, like) for like in likes)
    return a, b, initial


def loop(a: np.ndarray, b: np.ndarray, state: np.ndarray, *, reverse: bool) -> np.ndarray:
    states = np.zeros_like(b)
    for t in reversed(range(len(b))) if reverse else range(len(b)):
        state = a[t] * state + b[t]
        states[t] = state
    return states


@pytest.mark.slow_after(16)
@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("of", [linear_recurrence, plain_recurrence])
def test_values_and_gradients_are_those_of_a_loop(
    dtype: Any, reverse: bool, axis: int, of: Any
) -> None:
    arguments = draw(dtype)

    def recur(a: Any, b: Any, initial: Any) -> Any:
        a, b = (jnp.moveaxis(x, 0, axis) for x in (a, b))
        return jnp.moveaxis(of(a, b, initial, axis=axis, reverse=reverse), axis, 0)

    def loss(*arguments: Any) -> Any:
        return weigh(1, recur(*arguments))

    for steps in (T, 1):
        cut = draw(dtype, steps)
        actual = jax.jit(recur)(*cut)
        assert actual.dtype == cut[1].dtype
        np.testing.assert_allclose(actual, loop(*cut, reverse=reverse), rtol=1e-12, atol=1e-12)
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(*arguments)
    rng, small = np.random.default_rng(2), 1e-6
    for number, gradient in enumerate(gradients):
        direction = draw_like(rng, arguments[number])
        moved = [list(arguments), list(arguments)]
        moved[0][number] = arguments[number] + small * direction
        moved[1][number] = arguments[number] - small * direction
        high, low = (weigh(1, loop(*m, reverse=reverse)) for m in moved)
        # JAX's gradient of a real function of z is that by Re z, minus i times that by Im z.
        slope = (np.asarray(gradient) * direction).real.sum()
        np.testing.assert_allclose(slope, (high - low) / (2 * small), rtol=1e-7)


def test_the_states_and_coefficients_are_all_that_is_kept() -> None:
    _, pull = jax.vjp(linear_recurrence, *map(jnp.asarray, draw(float)))
    shapes = sorted(x.shape for x in jax.tree.leaves(pull))
    assert shapes == [SHAPE, (T, *SHAPE), (T, *SHAPE)]


def test_low_precision_adds_up_in_float32() -> None:
    ones = jnp.ones((1000, 1), jnp.bfloat16)
    states = linear_recurrence(ones, ones, jnp.zeros(1, jnp.bfloat16))
    assert states.dtype == jnp.float32
    np.testing.assert_array_equal(states[:, 0], np.arange(1, 1001))
    gradient = jax.grad(lambda b: linear_recurrence(ones, b, ones[0]).sum())(ones)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(gradient[:, 0], float), np.arange(1000, 0, -1), rtol=2**-8
    )


def test_under_vmap_and_twice_differentiated() -> None:
    arguments = draw(float)
    several = [np.stack([x, 2 * x]) for x in arguments]
    each = [linear_recurrence(*arguments), linear_recurrence(*(2 * x for x in arguments))]
    np.testing.assert_allclose(jax.vmap(linear_recurrence)(*several), np.stack(each))

    def slope(x: Any) -> Any:
        return jax.grad(lambda a: (linear_recurrence(a, *arguments[1:]) ** 2).sum())(x)

    direction = arguments[1]
    high, low = (slope(arguments[0] + s * direction) for s in (1e-6, -1e-6))
    expected = (high - low) / 2e-6
    forward = jax.jvp(slope, (arguments[0],), (direction,))[1]
    assert_close(forward, expected, rtol=1e-6, atol=1e-6)
    backward = jax.grad(lambda x: (slope(x) * direction).sum())(arguments[0])
    assert_close(backward, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 2])
def test_a_gated_average_is_the_recurrence_that_it_says(reverse: bool, axis: int) -> None:
    z, k, initial = draw(float)
    z[3] = -np.inf  # The state stays as it is.

    def average(z: Any, k: Any, initial: Any) -> Any:
        z, k = (jnp.moveaxis(x, 0, axis) for x in (z, k))
        return jnp.moveaxis(gated_average(z, k, initial, axis=axis, reverse=reverse), axis, 0)

    def expected(z: Any, k: Any, initial: Any) -> Any:
        update = jax.nn.sigmoid(z)
        return plain_recurrence(1 - update, update * k, initial, reverse=reverse)

    update = 1 / (1 + np.exp(-z))
    states = jax.jit(average)(z, k, initial)
    np.testing.assert_allclose(states, loop(1 - update, update * k, initial, reverse=reverse))
    gradients = [
        jax.jit(jax.grad(lambda *x, f=f: weigh(1, f(*x)), (0, 1, 2)))(z, k, initial)
        for f in (average, expected)
    ]
    assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_a_gated_average_keeps_two_arrays() -> None:
    _, pull = jax.vjp(gated_average, *map(jnp.asarray, draw(float)))
    shapes = sorted(x.shape for x in jax.tree.leaves(pull))
    assert shapes == [SHAPE, (T, *SHAPE), (T, *SHAPE)]


@pytest.mark.parametrize("reverse", [False, True])
def test_cpus_write_the_states_where_the_inputs_were(reverse: bool) -> None:
    recur = jax.jit(partial(linear_recurrence, reverse=reverse), donate_argnums=1)
    a, b, initial = draw(float, 1000)
    compiled = recur.lower(a, b, initial).compile()
    memory = compiled.memory_analysis()
    # The states overwrite the inputs; no other array of their size is allocated.
    assert memory.alias_size_in_bytes == b.nbytes
    assert memory.temp_size_in_bytes < b.nbytes / 10


def test_forward_mode_is_left_to_the_plain_one() -> None:
    arguments = draw(float)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(linear_recurrence, arguments, arguments)
    _, tangent = jax.jvp(plain_recurrence, arguments, arguments)
    up, down = (loop(*(x * (1 + s) for x in arguments), reverse=False) for s in (1e-6, -1e-6))
    np.testing.assert_allclose(tangent, (up - down) / 2e-6, rtol=1e-6, atol=1e-6)


def test_other_shapes_are_refused() -> None:
    a, b, initial = draw(float)
    with pytest.raises(ValueError, match=r"coefficients: expected shape \(7, 2, 3\), received \(6"):
        linear_recurrence(a[1:], b, initial)
    with pytest.raises(ValueError, match=r"initial: expected shape \(2, 3\), received \(3,\)"):
        linear_recurrence(a, b, initial[0])
    with pytest.raises(ValueError, match=r"gates: expected shape \(7, 2, 3\), received \(6"):
        gated_average(a[1:], b, initial)
