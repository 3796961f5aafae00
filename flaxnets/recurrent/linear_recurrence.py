"""Elementwise linear recurrences over time, with custom gradients.

On accelerators the recurrence is an associative scan (Blelloch 1990; Martin and Cundy, 1709.04057),
which needs O(log T) passes over the arrays. On CPUs it is a loop over time: one pass, which writes
each state over its input.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxnets.layers.batch_sharding import vary_alike
from flaxnets.typing import Array


def linear_recurrence(
    coefficients: Array, inputs: Array, initial: Array, *, axis: int = 0, reverse: bool = False
) -> Array:
    r"""Returns the states of :math:`h_t = a_t ∘ h_{t-1} + b_t`, for a given :math:`h_{-1}`.

    The backward pass is the same recurrence in the other direction. It stores ``coefficients`` and
    the states only:

    .. math::
        g_t = ∂L/∂h_t + a_{t+1} ∘ g_{t+1}, \quad ∂L/∂b_t = g_t, \quad ∂L/∂a_t = g_t ∘ h_{t-1}

    without conjugates, as is JAX's convention. The first derivative is in reverse mode only;
    ``plain_recurrence`` also has it in forward mode.

    >>> import jax.numpy as jnp
    >>> from flaxnets.recurrent import linear_recurrence
    >>> linear_recurrence(jnp.full(3, 0.5), jnp.ones(3), jnp.zeros(())).tolist()
    [1.0, 1.5, 1.75]

    Args:
      coefficients: a, (...,T,...), float or complex.
      inputs: b, of the same shape.
      initial: the state before the first step, of that shape without T.
      axis: index of T, >= 0.
      reverse: from the last step to the first: the state before step t is then that of step t+1.

    Returns:
      The states, of the shape of ``inputs``, in the arguments' common dtype, at least float32.

    Raises:
      ValueError: coefficients or an initial state of another shape than that of the inputs.
    """
    alike = _in_one_dtype(axis, coefficients=coefficients, inputs=inputs, initial=initial)
    return _recur_with_gradients(*alike, axis, reverse) if inputs.shape[axis] else alike[1]


def plain_recurrence(
    coefficients: Array, inputs: Array, initial: Array, *, axis: int = 0, reverse: bool = False
) -> Array:
    """Returns ``linear_recurrence``, with derivatives by automatic differentiation, in any mode."""
    alike = _in_one_dtype(axis, coefficients=coefficients, inputs=inputs, initial=initial)
    return _recur(*alike, axis, reverse) if inputs.shape[axis] else alike[1]


def gated_average(
    gates: Array, candidates: Array, initial: Array, *, axis: int = 0, reverse: bool = False
) -> Array:
    r"""Returns the states of :math:`h_t = (1 - σ(z_t)) ∘ h_{t-1} + σ(z_t) ∘ k_t`.

    This ``linear_recurrence`` stores less for its backward pass, z and :math:`k_t - h_{t-1}`:

    .. math::
        ∂L/∂k_t = g_t ∘ σ(z_t), \quad
        ∂L/∂z_t = g_t ∘ σ(z_t) ∘ (1 - σ(z_t)) ∘ (k_t - h_{t-1})

    Neither takes a small σ(z) from 1 − (1 − σ(z)) or from :math:`h_t - h_{t-1}`, whose digits
    cancel: see ``gate_weights``. The first derivative is in reverse mode only.

    Args:
      gates: z, (...,T,...), float; −∞ keeps the state.
      candidates: k, of the same shape.
      initial: the state before the first step, of that shape without T.
      axis: index of T, >= 0.
      reverse: from the last step to the first.

    Returns:
      The states, of the shape of ``candidates``, in the arguments' common dtype, at least float32.

    Raises:
      ValueError: gates or an initial state of another shape than that of the candidates.
    """
    alike = _in_one_dtype(axis, gates=gates, candidates=candidates, initial=initial)
    return _average_with_gradients(*alike, axis, reverse) if gates.shape[axis] else alike[1]


@jax.custom_jvp
def gate_weights(gates: Array) -> tuple[Array, Array]:
    """Returns σ(z) and 1 − σ(z), both with all their digits, as have their derivatives.

    A long memory has gates far below zero. In float32 1 − σ(−z) is wrong by 16 % at z = −17 and is
    zero from −18 on, and so are the derivatives σ(z) (1 − σ(z)) that JAX takes of it.

    >>> entering, kept = gate_weights(jnp.array([-20.0, 20.0]))
    >>> [f"{x:.3e}" for x in entering], [f"{x:.3e}" for x in kept]
    (['2.061e-09', '1.000e+00'], ['1.000e+00', '2.061e-09'])

    Args:
      gates: z, of any shape, float; ±∞ are allowed.

    Returns:
      Two arrays like ``gates``, with derivatives of every order in any mode.
    """
    # Two exponentials: with one for both, XLA on CPUs recomputes it for each and selects.
    return jax.nn.sigmoid(gates), jax.nn.sigmoid(-gates)


@gate_weights.defjvp
def _gate_weights_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    entering, kept = gate_weights(*primals)
    slope = entering * kept * tangents[0]
    return (entering, kept), (slope, -slope)


def _in_one_dtype(axis: int, **arrays: Array) -> tuple[Array, Array, Array]:
    """Returns two arrays over time and an initial state in one dtype, after a check of shapes.

    The dtype is at least float32, since states accumulate over time.
    """
    (first, a), (_, b), (last, initial) = arrays.items()
    for name, shape, expected in (
        (first, a.shape, b.shape),
        (last, initial.shape, b.shape[:axis] + b.shape[axis + 1 :]),
    ):
        if shape != expected:
            raise ValueError(f"{name}: expected shape {expected}, received {shape}")
    dtype = jnp.result_type(a, b, initial, jnp.float32)
    return vary_alike((a.astype(dtype), b.astype(dtype), initial.astype(dtype)))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _recur_with_gradients(
    coefficients: Array, inputs: Array, initial: Array, axis: int, reverse: bool
) -> Array:
    return _recur(coefficients, inputs, initial, axis, reverse)


def _forward(coefficients: Array, inputs: Array, initial: Array, axis: int, reverse: bool) -> Any:
    states = _recur(coefficients, inputs, initial, axis, reverse)
    return states, (coefficients, states, initial)


def _backward(
    axis: int, reverse: bool, residuals: Any, d_states: Array
) -> tuple[Array, Array, Array]:
    coefficients, states, initial = residuals
    d_inputs = _recur_back(coefficients, d_states, axis, reverse)
    before = _shift(states, initial, axis, reverse)
    first = _first_step(axis, reverse)
    return d_inputs * before, d_inputs, coefficients[first] * d_inputs[first]


_recur_with_gradients.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _average_with_gradients(
    gates: Array, candidates: Array, initial: Array, axis: int, reverse: bool
) -> Array:
    return _average(gates, candidates, initial, axis, reverse)[0]


def _average(gates: Array, candidates: Array, initial: Array, axis: int, reverse: bool) -> Any:
    entering, kept = gate_weights(gates)
    states = _recur(kept, entering * candidates, initial, axis, reverse)
    differences = candidates - _shift(states, initial, axis, reverse)
    return states, (gates, differences, kept[_first_step(axis, reverse)])


def _average_backward(
    axis: int, reverse: bool, residuals: Any, d_states: Array
) -> tuple[Array, Array, Array]:
    gates, differences, first_kept = residuals
    entering, kept = gate_weights(gates)
    d_sums = _recur_back(kept, d_states, axis, reverse)
    d_candidates = d_sums * entering
    d_initial = first_kept * d_sums[_first_step(axis, reverse)]
    return d_candidates * kept * differences, d_candidates, d_initial


_average_with_gradients.defvjp(_average, _average_backward)


def _recur(coefficients: Array, inputs: Array, initial: Array, axis: int, reverse: bool) -> Array:
    """Runs ``linear_recurrence`` on arrays of one dtype, by the platform's algorithm.

    Its derivatives are those of a scan, in any mode.
    """
    on_cpu = _derived_from(_scan, _loop, axis=axis, reverse=reverse)
    elsewhere = partial(_associative, axis=axis, reverse=reverse)
    return jax.lax.platform_dependent(coefficients, inputs, initial, cpu=on_cpu, default=elsewhere)


def _recur_back(coefficients: Array, d_states: Array, axis: int, reverse: bool) -> Array:
    r"""Returns the gradients of a recurrence's inputs, :math:`g_t = ∂L/∂h_t + a_{t+1} ∘ g_{t+1}`.

    Args:
      coefficients: a of the forward recurrence.
      d_states: ∂L/∂h.
      axis: index of T.
      reverse: the direction of the forward recurrence, opposite to that of this one.
    """
    on_cpu = _derived_from(_shifted(_scan), _loop_back, axis=axis, reverse=not reverse)
    elsewhere = partial(_shifted(_associative), axis=axis, reverse=not reverse)
    return jax.lax.platform_dependent(coefficients, d_states, cpu=on_cpu, default=elsewhere)


def _first_step(axis: int, reverse: bool) -> tuple[Any, ...]:
    """Returns the index of the step at which a recurrence begins."""
    return (*[slice(None)] * axis, -1 if reverse else 0)


def _shift(x: Array, initial: Array, axis: int, reverse: bool) -> Array:
    """Returns at each step the x of the step before, and ``initial`` at the first step."""
    fill, begin = jnp.expand_dims(initial, axis), int(reverse)
    kept = jax.lax.slice_in_dim(x, begin, begin + x.shape[axis] - 1, axis=axis)
    return jnp.concatenate((kept, fill) if reverse else (fill, kept), axis)


def _derived_from(
    plain: Callable[..., Array], fast: Callable[..., Array], **how: Any
) -> Callable[..., Array]:
    """Returns ``fast``, with the derivatives of ``plain``."""
    function = jax.custom_jvp(partial(fast, **how))
    function.defjvp(partial(jax.jvp, partial(plain, **how)))
    return function


def _loop(
    coefficients: Array, inputs: Array, state: Array, *, axis: int, reverse: bool, late: int = 0
) -> Array:
    """Runs the recurrence in a loop over time.

    Args:
      coefficients: a.
      inputs: b, overwritten by the states.
      state: before step ``late``.
      axis: index of T.
      reverse: from the last step to the first.
      late: the loop starts at this step, and step t uses the coefficient of step t − ``late``.
    """
    at: Any = {"axis": axis, "allow_negative_indices": False}
    slice_step = partial(jax.lax.dynamic_index_in_dim, keepdims=False, **at)
    last = inputs.shape[axis] - 1

    def turn(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        state, states = carry
        step, coefficient_step = (last - n if reverse else n for n in (number, number - late))
        state = slice_step(coefficients, coefficient_step) * state + slice_step(states, step)
        return state, jax.lax.dynamic_update_index_in_dim(states, state, step, **at)

    # The states overwrite the inputs: writing to a newly allocated array takes several times as
    # long. With two steps per turn XLA would copy the whole array at every turn, as it would in
    # the derivative of this loop, which is therefore that of ``_scan``.
    return jax.lax.fori_loop(late, last + 1, turn, (state, inputs))[1]


def _loop_back(coefficients: Array, d_states: Array, *, axis: int, reverse: bool) -> Array:
    first = d_states[_first_step(axis, reverse)]
    return _loop(coefficients, d_states, first, axis=axis, reverse=reverse, late=1)


def _scan(coefficients: Array, inputs: Array, initial: Array, *, axis: int, reverse: bool) -> Array:
    def step(state: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        state = x[0] * state + x[1]
        return state, state

    steps = (jnp.moveaxis(coefficients, axis, 0), jnp.moveaxis(inputs, axis, 0))
    return jnp.moveaxis(jax.lax.scan(step, initial, steps, reverse=reverse)[1], 0, axis)


def _associative(
    coefficients: Array, inputs: Array, initial: Array, *, axis: int, reverse: bool
) -> Array:
    if not isinstance(inputs.shape[axis], int):
        # An export for any number of steps: JAX's associative scan needs to know them.
        return _scan(coefficients, inputs, initial, axis=axis, reverse=reverse)

    def compose(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
        return then[0] * first[0], then[0] * first[1] + then[1]

    begin = _first_step(axis, reverse)
    inputs = inputs.at[begin].add(coefficients[begin] * initial)
    return jax.lax.associative_scan(compose, (coefficients, inputs), reverse=reverse, axis=axis)[1]


def _shifted(of: Callable[..., Array]) -> Callable[..., Array]:
    """Returns ``of`` from a zero state, with the coefficients of the step before."""

    def shifted(coefficients: Array, inputs: Array, *, axis: int, reverse: bool) -> Array:
        zeros = jnp.zeros_like(inputs[_first_step(axis, reverse)])
        late = _shift(coefficients, zeros, axis, reverse)
        return of(late, inputs, zeros, axis=axis, reverse=reverse)

    return shifted
