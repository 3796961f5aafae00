"""Recurrences that are linear in their state, entry by entry."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxnets.typing import Array


def linear_recurrence(
    coefficients: Array, inputs: Array, initial: Array, *, axis: int = 0, reverse: bool = False
) -> Array:
    r"""The states of :math:`h_t = a_t ∘ h_{t-1} + b_t`, with :math:`h_{-1}` given.

    The backward pass is the same recurrence in the other direction, and all that is stored for it
    besides ``coefficients`` are the states:

    .. math::
        g_t = ∂L/∂h_t + a_{t+1} ∘ g_{t+1}, \quad ∂L/∂b_t = g_t, \quad ∂L/∂a_t = g_t ∘ h_{t-1}

    without conjugates, in JAX's convention. The first derivative is in reverse mode only;
    ``plain_recurrence`` also has it in forward mode.

    Args:
      coefficients: a, (...,T,...), float or complex, T > 0.
      inputs: b, likewise.
      initial: the state before the first step, of that shape without T.
      axis: which axis is T, from 0.
      reverse: whether time runs from the last step to the first: the state before step t is then
        that of step t+1.

    Returns:
      As ``inputs``, in the common dtype of the arguments, at least float32.

    Raises:
      ValueError: coefficients or an initial state of another shape than that of the inputs.
    """
    alike = _in_one_dtype(axis, coefficients=coefficients, inputs=inputs, initial=initial)
    return _recur_with_gradients(*alike, axis, reverse)


def plain_recurrence(
    coefficients: Array, inputs: Array, initial: Array, *, axis: int = 0, reverse: bool = False
) -> Array:
    """``linear_recurrence`` with derivatives by automatic differentiation, in any mode."""
    alike = _in_one_dtype(axis, coefficients=coefficients, inputs=inputs, initial=initial)
    return recur(*alike, axis, reverse)


def gated_average(
    gates: Array, candidates: Array, initial: Array, *, axis: int = 0, reverse: bool = False
) -> Array:
    r"""The states of :math:`h_t = (1 - σ(z_t)) ∘ h_{t-1} + σ(z_t) ∘ k_t`, with that before given.

    It is a ``linear_recurrence`` that needs less for its backward pass, the states and 1 − σ(z):

    .. math::
        ∂L/∂k_t = g_t ∘ σ(z_t), \quad ∂L/∂z_t = g_t ∘ (h_t - h_{t-1}) ∘ (1 - σ(z_t))

    since :math:`h_t - h_{t-1} = σ(z_t) ∘ (k_t - h_{t-1})`. The first derivative is in reverse mode
    only.

    Args:
      gates: z, (...,T,...), float, T > 0; −∞ leaves the state as it is.
      candidates: k, likewise.
      initial: the state before the first step, of that shape without T.
      axis: as in ``linear_recurrence``.
      reverse: as there.

    Returns:
      As there.

    Raises:
      ValueError: gates or an initial state of another shape than that of the candidates.
    """
    alike = _in_one_dtype(axis, gates=gates, candidates=candidates, initial=initial)
    return _average_with_gradients(*alike, axis, reverse)


def _in_one_dtype(axis: int, **arrays: Array) -> tuple[Array, Array, Array]:
    """Two arrays of one shape and that of a state, by name, in one dtype that can add up."""
    (first, a), (_, b), (last, initial) = arrays.items()
    for name, shape, expected in (
        (first, a.shape, b.shape),
        (last, initial.shape, b.shape[:axis] + b.shape[axis + 1 :]),
    ):
        if shape != expected:
            raise ValueError(f"{name}: expected shape {expected}, received {shape}")
    dtype = jnp.result_type(a, b, initial, jnp.float32)
    return a.astype(dtype), b.astype(dtype), initial.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _recur_with_gradients(
    coefficients: Array, inputs: Array, initial: Array, axis: int, reverse: bool
) -> Array:
    return recur(coefficients, inputs, initial, axis, reverse)


def _forward(coefficients: Array, inputs: Array, initial: Array, axis: int, reverse: bool) -> Any:
    states = recur(coefficients, inputs, initial, axis, reverse)
    return states, (coefficients, states, initial)


def _backward(
    axis: int, reverse: bool, residuals: Any, of_states: Array
) -> tuple[Array, Array, Array]:
    coefficients, states, initial = residuals
    of_inputs = recur_back(coefficients, of_states, axis, reverse)
    before = step_before(states, initial, axis, reverse)
    first = first_step(axis, reverse)
    return of_inputs * before, of_inputs, coefficients[first] * of_inputs[first]


_recur_with_gradients.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _average_with_gradients(
    gates: Array, candidates: Array, initial: Array, axis: int, reverse: bool
) -> Array:
    return _average(gates, candidates, initial, axis, reverse)[0]


def _average(gates: Array, candidates: Array, initial: Array, axis: int, reverse: bool) -> Any:
    kept = jax.nn.sigmoid(-gates)
    states = recur(kept, (1 - kept) * candidates, initial, axis, reverse)
    return states, (kept, states, initial)


def _average_backward(
    axis: int, reverse: bool, residuals: Any, of_states: Array
) -> tuple[Array, Array, Array]:
    kept, states, initial = residuals
    of_sums = recur_back(kept, of_states, axis, reverse)
    moved = states - step_before(states, initial, axis, reverse)
    first = first_step(axis, reverse)
    return of_sums * moved * kept, of_sums * (1 - kept), kept[first] * of_sums[first]


_average_with_gradients.defvjp(_average, _average_backward)


# How a recurrence that is linear in its state, entry by entry, is carried out on each platform.
#
# On accelerators by an associative scan (Blelloch 1990; Martin and Cundy, 1709.04057): a number of
# passes over the arrays that grows with log T. On CPUs by a loop over time, which is one pass and
# writes each state where its input was.


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
