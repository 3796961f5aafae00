r"""Updates of Newton's method over all steps: linear recurrences, and a Kalman smoother (ELK).

An iteration has the residuals r_t of a guess and matrices J_t, and moves the guess by Δ. Newton's
own update solves Δ_t = J_t Δ_{t-1} + r_t. Far from the solution products of many J_t may be huge,
and so is Δ. The update of Levenberg and Marquardt stays near the guess: it minimises

    Σ_t |Δ_t − J_t Δ_{t-1} − r_t|² + λ |Δ_t|²,   Δ_{-1} = 0,

which is the mean that a Kalman smoother computes for a state with transitions J_t, noise of
variance 1 and the observation 0 of variance 1/λ at each step (ELK, Gonzalez et al., 2407.19115).
Filter and smoother are associative scans (Särkkä and García-Fernández, 1905.13002, section IV).

Matrices are (T,B,n,n), or (T,B,n) of diagonal ones, for which everything is elementwise.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.recurrent.linear_recurrence import plain_recurrence
from flaxnets.typing import Array

# HIGHEST: TF32's 10 bits would make gradients inexact, and Newton's convergence linear.
_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def solve_recurrence(matrices: Array, constants: Array, *, reverse: bool = False) -> Array:
    """Returns Δ of Δ_t = J_t Δ_{t-1} + r_t, from zero.

    Args:
      matrices: J, (T,B,n,n) or (T,B,n).
      constants: r, (T,B,n).
      reverse: from the last step to the first, Δ_t = J_t Δ_{t+1} + r_t.

    Returns:
      (T,B,n).
    """
    zeros = jnp.zeros_like(constants[0])
    if matrices.ndim == constants.ndim:
        solved = plain_recurrence(matrices, constants, zeros, reverse=reverse)
        return solved.astype(constants.dtype)
    if not _is_static(constants):

        def body(state: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
            state = _einsum("bij,bj->bi", x[0], state) + x[1]
            return state, state

        return jax.lax.scan(body, zeros, (matrices, constants), reverse=reverse)[1]

    def compose(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
        product = _einsum("tbij,tbjk->tbik", then[0], first[0])
        return product, _einsum("tbij,tbj->tbi", then[0], first[1]) + then[1]

    return jax.lax.associative_scan(compose, (matrices, constants), reverse=reverse)[1]


def smooth(matrices: Array, constants: Array, precision: Array, *, reverse: bool = False) -> Array:
    """Returns the Δ that minimises Σ |Δ_t − J_t Δ_{t-1} − r_t|² + λ |Δ_t|², from zero.

    Args:
      matrices: J, (T,B,n,n) or (T,B,n).
      constants: r, (T,B,n).
      precision: λ of each sequence, (B,), at least 0; with 0 it is ``solve_recurrence`` where the
        squares of its matrices' products are finite.
      reverse: Δ_{t+1} in place of Δ_{t-1}.

    Returns:
      (T,B,n).
    """
    if reverse:
        flipped = smooth(jnp.flip(matrices, 0), jnp.flip(constants, 0), precision)
        return jnp.flip(flipped, 0)
    algebra = _ELEMENTWISE if matrices.ndim == constants.ndim else _MATRICES
    multiply, apply, transpose = algebra.multiply, algebra.apply, algebra.transpose
    # Nothing moves the first step but its own residual.
    matrices = matrices.at[0].set(0)
    means, variances = _filter(algebra, matrices, constants, precision[:, None])
    # G_t = P_t J_{t+1}ᵀ (1 + J_{t+1} P_t J_{t+1}ᵀ)⁻¹; nothing comes after the last step.
    after, following = _from_next(matrices), _from_next(constants)
    spread = multiply(after, variances)
    predicted = algebra.add_identity(multiply(spread, transpose(after)))
    gains = transpose(multiply(algebra.invert(predicted), spread))
    offsets = means - apply(gains, apply(after, means) + following)
    return solve_recurrence(gains, offsets, reverse=True)


class _Algebra(NamedTuple):
    """Products, transposes and inverses of matrices, or of diagonals of matrices."""

    multiply: Callable[[Array, Array], Array]
    apply: Callable[[Array, Array], Array]
    transpose: Callable[[Array], Array]
    invert: Callable[[Array], Array]
    add_identity: Callable[[Array], Array]


_ELEMENTWISE = _Algebra(jnp.multiply, jnp.multiply, lambda x: x, jnp.reciprocal, lambda x: x + 1)
_MATRICES = _Algebra(
    partial(_einsum, "...ij,...jk->...ik"),
    partial(_einsum, "...ij,...j->...i"),
    lambda x: x.swapaxes(-1, -2),
    jnp.linalg.inv,
    lambda x: x + jnp.eye(x.shape[-1], dtype=x.dtype),
)


class _Element(NamedTuple):
    """Knowledge that steps k+1 to l give of the state after step l, given that after step k.

    The state is normal with the mean A x_k + b and the variance C; the observations of these steps
    add exp(ηᵀx_k − x_kᵀ I x_k / 2) to the likelihood of x_k.
    """

    transition: Array
    mean: Array
    variance: Array
    information_mean: Array
    information: Array


def _filter(
    algebra: _Algebra, matrices: Array, constants: Array, precision: Array
) -> tuple[Array, Array]:
    """Returns means and variances of all steps given the observations up to them."""
    multiply, apply, transpose = algebra.multiply, algebra.apply, algebra.transpose
    # Kalman's gain for noise 1 and an observation of variance 1/λ.
    gain = jnp.broadcast_to(precision / (1 + precision), constants.shape)
    matrix_gain = gain if algebra is _ELEMENTWISE else gain[..., None]
    identity = algebra.add_identity(jnp.zeros_like(matrices))
    elements = _Element(
        (1 - matrix_gain) * matrices,
        (1 - gain) * constants,
        (1 - matrix_gain) * identity,
        -apply(transpose(matrices), gain * constants),
        multiply(transpose(matrices), matrix_gain * matrices),
    )

    def compose(first: _Element, then: _Element) -> _Element:
        inverse = algebra.invert(algebra.add_identity(multiply(first.variance, then.information)))
        onward = multiply(then.transition, inverse)
        back = transpose(multiply(inverse, first.transition))
        return _Element(
            multiply(onward, first.transition),
            apply(onward, first.mean + apply(first.variance, then.information_mean)) + then.mean,
            multiply(multiply(onward, first.variance), transpose(then.transition)) + then.variance,
            apply(back, then.information_mean - apply(then.information, first.mean))
            + first.information_mean,
            multiply(multiply(back, then.information), first.transition) + first.information,
        )

    if _is_static(constants):
        found = jax.lax.associative_scan(compose, elements)
        return found.mean, found.variance

    def body(before: _Element, element: _Element) -> tuple[_Element, tuple[Array, Array]]:
        reached = compose(before, element)
        return reached, (reached.mean, reached.variance)

    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[0]), elements)
    start = nothing._replace(transition=identity[0])
    means, variances = jax.lax.scan(body, start, elements)[1]
    return means, variances


def _from_next(x: Array) -> Array:
    """Returns (T,...) of which each step has the next one's, the last one zeros."""
    return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])


def _is_static(x: Array) -> bool:
    """Returns True where the number of steps is known: not in an export for any number of them.

    JAX's associative scan needs to know them.
    """
    num_steps: Any = x.shape[0]
    return isinstance(num_steps, int)
