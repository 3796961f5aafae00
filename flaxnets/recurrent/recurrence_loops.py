"""How a recurrence that is linear in its state, entry by entry, is carried out on each platform.

On accelerators by an associative scan (Blelloch 1990; Martin and Cundy, 1709.04057): a number of
passes over the arrays that grows with log T. On CPUs by a loop over time, which is one pass and
writes each state where its input was.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxnets.typing import Array


def recur(coefficients: Array, inputs: Array, initial: Array, axis: int, reverse: bool) -> Array:
    """The states of ``linear_recurrence``, whose arguments these are, all of one dtype.

    Its derivatives are those of a scan, in any mode.
    """
    on_cpu = _derived_from(_scan, _loop, axis=axis, reverse=reverse)
    elsewhere = partial(_associative, axis=axis, reverse=reverse)
    return jax.lax.platform_dependent(coefficients, inputs, initial, cpu=on_cpu, default=elsewhere)


def recur_back(coefficients: Array, of_states: Array, axis: int, reverse: bool) -> Array:
    """What the inputs of ``recur`` get of its states' gradients, if time ran as ``reverse`` says.

    That is :math:`g_t = ∂L/∂h_t + a_{t+1} ∘ g_{t+1}`.
    """
    on_cpu = _derived_from(_shifted(_scan), _loop_back, axis=axis, reverse=not reverse)
    elsewhere = partial(_shifted(_associative), axis=axis, reverse=not reverse)
    return jax.lax.platform_dependent(coefficients, of_states, cpu=on_cpu, default=elsewhere)


def first_step(axis: int, reverse: bool) -> tuple[Any, ...]:
    """The index of the step at which a recurrence begins."""
    return (*[slice(None)] * axis, -1 if reverse else 0)


def step_before(x: Array, initial: Array, axis: int, reverse: bool) -> Array:
    """At each step the x of the one before it; ``initial`` at the first."""
    fill, begin = jnp.expand_dims(initial, axis), int(reverse)
    kept = jax.lax.slice_in_dim(x, begin, begin + x.shape[axis] - 1, axis=axis)
    return jnp.concatenate((kept, fill) if reverse else (fill, kept), axis)


def _derived_from(
    plain: Callable[..., Array], fast: Callable[..., Array], **how: Any
) -> Callable[..., Array]:
    """``fast``, with the derivatives of ``plain``."""
    function = jax.custom_jvp(partial(fast, **how))
    function.defjvp(partial(jax.jvp, partial(plain, **how)))
    return function


def _loop(
    coefficients: Array, inputs: Array, state: Array, *, axis: int, reverse: bool, late: int = 0
) -> Array:
    """``late``: how many steps have their states, and how far behind the coefficients are."""
    at: Any = {"axis": axis, "allow_negative_indices": False}
    read = partial(jax.lax.dynamic_index_in_dim, keepdims=False, **at)
    last = inputs.shape[axis] - 1

    def turn(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        state, states = carry
        step, of_step = (last - n if reverse else n for n in (number, number - late))
        state = read(coefficients, of_step) * state + read(states, step)
        return state, jax.lax.dynamic_update_index_in_dim(states, state, step, **at)

    # In the inputs' place: an array of its own, new to the process, costs several times as much.
    # With two steps a turn XLA would copy all of it at every turn, as it would in derivatives.
    return jax.lax.fori_loop(late, last + 1, turn, (state, inputs))[1]


def _loop_back(coefficients: Array, of_states: Array, *, axis: int, reverse: bool) -> Array:
    first = of_states[first_step(axis, reverse)]
    return _loop(coefficients, of_states, first, axis=axis, reverse=reverse, late=1)


def _scan(coefficients: Array, inputs: Array, initial: Array, *, axis: int, reverse: bool) -> Array:
    def step(state: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        state = x[0] * state + x[1]
        return state, state

    steps = (jnp.moveaxis(coefficients, axis, 0), jnp.moveaxis(inputs, axis, 0))
    return jnp.moveaxis(jax.lax.scan(step, initial, steps, reverse=reverse)[1], 0, axis)


def _associative(
    coefficients: Array, inputs: Array, initial: Array, *, axis: int, reverse: bool
) -> Array:
    def compose(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
        return then[0] * first[0], then[0] * first[1] + then[1]

    begin = first_step(axis, reverse)
    inputs = inputs.at[begin].add(coefficients[begin] * initial)
    return jax.lax.associative_scan(compose, (coefficients, inputs), reverse=reverse, axis=axis)[1]


def _shifted(of: Callable[..., Array]) -> Callable[..., Array]:
    """A recurrence from nothing, whose coefficients are those of the step before."""

    def shifted(coefficients: Array, inputs: Array, *, axis: int, reverse: bool) -> Array:
        zeros = jnp.zeros_like(inputs[first_step(axis, reverse)])
        late = step_before(coefficients, zeros, axis, reverse)
        return of(late, inputs, zeros, axis=axis, reverse=reverse)

    return shifted
