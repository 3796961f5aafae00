"""Recurrences that are linear in their state, entry by entry."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxnets.recurrent.recurrence_loops import first_step, recur, recur_back, step_before
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
