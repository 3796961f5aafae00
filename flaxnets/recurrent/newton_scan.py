r"""Newton's method over all steps of a scan at once: DEER, quasi-DEER, ELK and quasi-ELK.

A cell maps h_{t-1} to h_t = f_t(h_{t-1}), one step after the other. All steps together are the
equations r_t = f_t(h_{t-1}) − h_t = 0 for the whole trajectory. An iteration linearises them around
a guess h, with J_t = ∂f_t/∂h_{t-1}, and solves the linear recurrence that remains,

    Δ_t = J_t Δ_{t-1} + r_t,   Δ_{-1} = 0,

by an associative scan, in O(log T) steps that are parallel in time (DEER, Lim et al., 2309.12252).
The guess moves by Δ until Δ is below a tolerance; near the solution the number of correct digits
doubles in each iteration. With any other matrices in place of J_t the solution stays the same, and
only the number of iterations changes (Gonzalez et al., 2407.19115):

- ``quasi_deer`` takes the diagonal of J_t: an elementwise recurrence, so that memory and arithmetic
  grow with n and not with n² and n³.
- ``damping`` k takes (1 − k) J_t, as scale-ELK does: smaller matrices, whose products over many
  steps do not overflow where the guess is far from the solution.
- ``elk`` and ``quasi_elk`` keep J_t or its diagonal, and bound Δ instead: the update of Levenberg
  and Marquardt, by a Kalman smoother (``newton_updates.py``), with λ = ``regularization`` times
  the largest |r| of the sequence, at most 1. So λ vanishes at the solution, where ``elk`` converges
  as ``deer`` does (Yamashita and Fukushima 2001); the paper's is constant. Far from the solution a
  bounded Δ may be small, so Newton's own decides whether the tolerance is met.

After i iterations of ``deer`` and ``quasi_deer`` the first i steps are exact, whatever the matrices
(proposition 1 there), because h_{-1} is given. States that overflow on the way become zeros. Where
the tolerance is not met, the sequential scan computes the states after all, and the report counts
it.

Gradients do not go through the iterations. At the solution the implicit function theorem gives them
by the transposed recurrence, once, from the last step to the first: with c_t, the gradient of the
outputs y_t in h_{t-1},

    λ_{t-1} = J_tᵀ λ_t + c_t,   ∂L/∂θ = Σ_t (∂f_t/∂θ)ᵀ λ_t + (∂y_t/∂θ)ᵀ ∂L/∂y_t,

which is back-propagation through time, computed in another order. ``quasi_deer`` and ``quasi_elk``
solve it by the same iterations, with the diagonals of J_tᵀ.

Memory of ``deer``: the J_t of all steps are B·T·n² floats, n the width of the whole carry (2F for
an LSTM), and the associative scan holds about two more copies of them; ``remat_steps`` bounds T.
``elk`` scans three such matrices for each step, inverts one, and solves ``deer``'s equations too.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.layers.batch_sharding import vary_alike
from flaxnets.recurrent.flax_cells import Flags
from flaxnets.recurrent.matmul import ScanWeights, affine, split_projected
from flaxnets.recurrent.newton_updates import smooth, solve_recurrence
from flaxnets.recurrent.scan_vjp import Step
from flaxnets.typing import Array, Carry

METHODS = ("deer", "quasi_deer", "elk", "quasi_elk")
Project = Callable[[ScanWeights, Mapping[str, Array], str, Array], Array]
"""(weights, added inputs of the step, name, hidden states) to a hidden projection."""


class NewtonReport(NamedTuple):
    """Iterations and fallbacks of one scan, for each sequence of the batch."""

    iterations: Array
    """(B,) int32, until the sequence met the tolerance, summed over the chunks of ``remat_steps``
    or ``truncate_steps``."""
    fallbacks: Array
    """(B,) int32, chunks (without chunks: 0 or 1) that ``max_iterations`` did not bring there, so
    that the sequential scan computed them."""


@dataclasses.dataclass(frozen=True)
class NewtonScan:
    """Newton's method in place of the sequential scan, for ``ScanOptions.parallel``.

    Outputs and gradients are those of the scan within the tolerance. Each sequence's are its own:
    those of the same sequence in another batch.

    >>> from functools import partial
    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import GRUCell, Recurrent, ScanOptions
    >>> from flaxnets.recurrent.newton_scan import NewtonScan
    >>> from flaxnets.recurrent.scan import collect_reports
    >>> layer = Recurrent(partial(GRUCell, 4), options=ScanOptions(parallel=NewtonScan()))
    >>> x = jax.random.normal(jax.random.key(0), (2, 50, 3))
    >>> variables = jax.jit(partial(layer.init, train=False))(jax.random.key(1), x)
    >>> run = jax.jit(partial(layer.apply, train=False, mutable=["scan_reports"]))
    >>> outputs, sown = run(variables, x)
    >>> report = collect_reports(sown["scan_reports"])["forward_0"]
    >>> bool((report.iterations < 10).all()), report.fallbacks.tolist()
    (True, [0, 0])

    Attributes:
      method: ``deer`` or ``elk`` with full Jacobians, ``quasi_deer`` or ``quasi_elk`` with their
        diagonals.
      tolerance: largest |Δ| relative to 1 + |h|, elementwise, at which the iteration ends, >= 0; 0:
        ε^¾ of the carry's narrowest dtype, 6e-6 for float32. With full Jacobians the error is then
        about its square; with diagonals a small multiple of it.
      max_iterations: after which the sequential scan takes over, >= 1.
      damping: k in [0,1], multiplies the Jacobians by 1 − k; 1 is the fixed-point iteration.
      regularization: of ``elk`` and ``quasi_elk``, > 0: larger keeps an update nearer to its guess.

    Raises:
      ValueError: an unknown method, or a value out of range.
    """

    method: str = "deer"
    tolerance: float = 0.0
    max_iterations: int = 100
    damping: float = 0.0
    regularization: float = 1e-3

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {METHODS}, received {self.method!r}")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance: expected at least 0, received {self.tolerance}")
        if self.max_iterations < 1:
            raise ValueError(f"max_iterations: expected at least 1, received {self.max_iterations}")
        if not 0 <= self.damping <= 1:
            raise ValueError(f"damping: expected in [0,1], received {self.damping}")
        if not 0 < self.regularization < math.inf:
            raise ValueError(f"regularization: expected above 0, received {self.regularization}")

    @property
    def uses_diagonals(self) -> bool:
        """True if the diagonals of the Jacobians stand for them."""
        return self.method.startswith("quasi_")

    def initialize_report(self, batch_size: int) -> NewtonReport:
        """Returns the report before the first chunk: zeros."""
        return NewtonReport(jnp.zeros(batch_size, jnp.int32), jnp.zeros(batch_size, jnp.int32))

    def check_carry(self, name: str, carry: Carry) -> None:
        """Refuses the carry of a cell that is no pytree of vectors.

        Args:
          name: of the cell.
          carry: before the first step.

        Raises:
          ValueError: naming the shapes and dtypes of the carry.
        """
        for leaf in jax.tree.leaves(carry):
            if leaf.ndim != 2 or not jnp.issubdtype(leaf.dtype, jnp.floating):
                found = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", carry)
                raise ValueError(
                    f"parallel: expected None for {name}, whose carry is {found}: Newton's method "
                    f"needs float vectors (B,n), received {self}"
                )

    def scan(
        self,
        step: Step,
        weights: ScanWeights,
        carry: Carry,
        inputs: dict[str, Array],
        flags: Flags,
        report: NewtonReport,
        *,
        reverse: bool,
        elementwise: bool,
    ) -> tuple[Carry, Any, NewtonReport]:
        """Computes what ``deferred_scan`` does, parallel in time.

        The first derivative is in reverse mode only; there is no second one.

        Args:
          step: one step, without closed-over traced arrays.
          weights: kernels, biases and all other parameters.
          carry: before the first step, a pytree of (B,n) float.
          inputs: arrays with a leading axis T > 0, by name.
          flags: (T,B) of the steps.
          report: of the chunks before.
          reverse: from the last step to the first.
          elementwise: whether the step, but for its hidden projections, is elementwise, so that two
            products with J have its diagonal; else ``quasi_deer`` needs n of them.

        Returns:
          The last carry, the outputs with a leading axis T, and the report with this chunk's.
        """
        if reverse:
            inputs, flags = jax.tree.map(_flip_steps, (inputs, flags))
        arguments = vary_alike((weights, carry, inputs, flags, report))
        weights, carry, inputs, flags, report = arguments
        solver = _Solver(self, step, _Layout(carry), elementwise)
        carry, outputs, (iterations, done) = solver.run(weights, carry, inputs, flags)
        if reverse:
            outputs = jax.tree.map(_flip_steps, outputs)
        counts = NewtonReport(iterations, (~done).astype(jnp.int32))
        return carry, outputs, jax.tree.map(jnp.add, report, counts)


class _Layout:
    """Carries as vectors: the leaves of a pytree side by side, (B,n) in one dtype."""

    def __init__(self, carry: Carry):
        leaves, self.structure = jax.tree.flatten(carry)
        self.dtypes = [leaf.dtype for leaf in leaves]
        self.widths = [leaf.shape[-1] for leaf in leaves]
        self.dtype = jnp.result_type(*self.dtypes)
        # What the states are rounded to at every step.
        self.epsilon = max(float(jnp.finfo(dtype).eps) for dtype in self.dtypes)

    @property
    def width(self) -> int:
        """Width n of the flat carry."""
        return sum(self.widths)

    def flatten(self, carry: Carry) -> Array:
        """Returns (...,n)."""
        leaves = [leaf.astype(self.dtype) for leaf in jax.tree.leaves(carry)]
        return jnp.concatenate(leaves, axis=-1)

    def unflatten(self, states: Array) -> Carry:
        """Returns the carry of states (...,n)."""
        ends = [sum(self.widths[: i + 1]) for i in range(len(self.widths) - 1)]
        parts = zip(jnp.split(states, ends, axis=-1), self.dtypes, strict=True)
        return jax.tree.unflatten(self.structure, [part.astype(dtype) for part, dtype in parts])

    def masks(self) -> Array:
        """Returns (number of leaves,n): ones where a leaf lies."""
        owners = [i for i, width in enumerate(self.widths) for _ in range(width)]
        return jnp.asarray(jax.nn.one_hot(jnp.asarray(owners), len(self.widths)).T, self.dtype)


class _Solver(NamedTuple):
    """The equations of one scan, forwards in time, and their solution by Newton's method.

    States are (T,B,n). ``xs`` are the inputs (T,B,...) by name and the flags (T,B) of all steps.
    """

    options: NewtonScan
    step: Step
    layout: _Layout
    elementwise: bool

    def run(
        self, weights: ScanWeights, carry: Carry, inputs: dict[str, Array], flags: Flags
    ) -> tuple[Carry, Any, tuple[Array, Array]]:
        """Returns the last carry, the outputs, and (B,) iterations and whether they converged."""

        @jax.custom_vjp
        def run(weights: ScanWeights, carry: Carry, inputs: Any, flags: Flags) -> Any:
            return forward(weights, carry, inputs, flags)[0]

        def forward(weights: ScanWeights, carry: Carry, inputs: Any, flags: Flags) -> Any:
            initial, xs = self.layout.flatten(carry), (inputs, flags)
            states, counts, done = self.solve(weights, initial, xs)
            before = _shift(states, initial)
            # One more evaluation makes the outputs, and brings the states nearer still.
            states, outputs = self.evaluate(weights, before, xs)
            last = self.layout.unflatten(states[-1])
            return (last, outputs, (counts, done)), (weights, before, inputs, flags, done)

        def backward(residuals: Any, gradients: Any) -> Any:
            weights, before, inputs, flags, done = residuals
            d_last, d_outputs, _ = gradients

            def evaluate(weights: ScanWeights, before: Array, inputs: Any) -> Any:
                return self.evaluate(weights, before, (inputs, flags))

            # ∂L/∂h_{t-1} through the outputs of step t alone.
            _, vjp = jax.vjp(lambda before: evaluate(weights, before, inputs), before)
            (direct,) = vjp((jnp.zeros_like(before), d_outputs))
            d_states = self.solve_transposed(
                weights, before, (inputs, flags), direct, self.layout.flatten(d_last), done
            )
            # All steps at once: one matmul over T·B rows for each kernel.
            _, vjp = jax.vjp(evaluate, weights, before, inputs)
            d_weights, d_before, d_inputs = vjp((d_states, d_outputs))
            return d_weights, self.layout.unflatten(d_before[0]), d_inputs, None

        run.defvjp(forward, backward)
        carry, outputs, counts = run(weights, carry, inputs, flags)
        return carry, outputs, counts

    def evaluate_step(
        self, project: Project, weights: ScanWeights, state: Array, x: tuple[Any, Flags]
    ) -> tuple[Array, Any]:
        """Returns the state (B,n) after one step, and its outputs."""
        inputs, flags = x
        added, rest = split_projected(weights, inputs)
        carry = self.layout.unflatten(state)
        carry, output = self.step(
            partial(project, weights, added), weights.others, flags, carry, rest
        )
        return self.layout.flatten(carry), output

    def evaluate(self, weights: ScanWeights, before: Array, xs: Any) -> tuple[Array, Any]:
        """Returns the states after all steps, and their outputs, from the states before them."""
        return jax.vmap(partial(self.evaluate_step, _project, weights))(before, xs)

    def solve(self, weights: ScanWeights, initial: Array, xs: Any) -> tuple[Array, Array, Array]:
        """Returns the states after all steps, and (B,) iterations and whether they converged."""
        num_steps = jax.tree.leaves(xs)[0].shape[0]
        keep = self.damp(xs)

        def update(states: Array) -> tuple[Array, Array]:
            before = _shift(states, initial)
            if self.options.uses_diagonals:
                values, matrices = self.linearize_diagonally(weights, before, xs)
                return self.correct(keep[..., None] * matrices, values - states)
            values, matrices = self.linearize(weights, before, xs)
            return self.correct(keep[..., None, None] * matrices, values - states)

        def run_sequentially(states: Array) -> Array:
            def body(state: Array, x: Any) -> tuple[Array, Array]:
                state, _ = self.evaluate_step(_project, weights, state, x)
                return state, state

            exact = jax.lax.scan(body, initial, xs)[1]
            return jnp.where(done[:, None], states, exact)

        # Exact where all steps are padding, and near where a stream continues.
        guess = jnp.broadcast_to(initial, (num_steps, *initial.shape))
        states, done, counts = self.iterate(update, guess, initial, lambda new: 1 + jnp.abs(new))
        states = jax.lax.cond(jnp.all(done), lambda states: states, run_sequentially, states)
        return states, counts, done

    def solve_transposed(
        self,
        weights: ScanWeights,
        before: Array,
        xs: Any,
        direct: Array,
        d_last: Array,
        done: Array,
    ) -> Array:
        """Returns ∂L/∂h_t of all steps, λ_{t-1} = J_tᵀ λ_t + c_t.

        Args:
          weights: parameters.
          before: states before all steps.
          xs: inputs and flags.
          direct: c.
          d_last: ∂L/∂h of the last step, (B,n).
          done: (B,) bool; where the iteration did not converge, products of many Jacobians may
            overflow as well, so that λ is computed step by step.
        """
        constant = _shift(direct, d_last, back=True)

        def run_sequentially(_: Array) -> Array:
            def body(d_state: Array, x: Any) -> tuple[Array, Array]:
                before, x, direct = x

                def after(state: Array) -> Array:
                    return self.evaluate_step(_project, weights, state, x)[0]

                (d_before,) = jax.vjp(after, before)[1](d_state)
                return d_before + direct, d_state

            return jax.lax.scan(body, d_last, (before, xs, direct), reverse=True)[1]

        def run_parallel(constant: Array) -> tuple[Array, Array]:
            nothing = jnp.zeros_like(d_last)
            if not self.options.uses_diagonals:
                _, jacobians = self.linearize(weights, before, xs)
                transposed = jacobians.swapaxes(-1, -2)
                matrices = _shift(transposed, jnp.zeros_like(transposed[0]), back=True)
                d_states = solve_recurrence(matrices, constant, reverse=True)
                return d_states, jnp.all(jnp.isfinite(d_states))
            _, diagonals = self.linearize_diagonally(weights, before, xs)
            diagonals = _shift(self.damp(xs)[..., None] * diagonals, nothing, back=True)
            _, vjp = jax.vjp(lambda before: self.evaluate(weights, before, xs)[0], before)

            def update(d_states: Array) -> tuple[Array, Array]:
                values = constant + _shift(vjp(d_states)[0], nothing, back=True)
                residuals = values - d_states
                return self.correct(diagonals, residuals, _largest(constant), reverse=True)

            # Gradients have no scale of their own: relative to the largest of the sequence.
            d_states, met, _ = self.iterate(
                update, jnp.zeros_like(constant), d_last, lambda new: _largest(new)[:, None]
            )
            return d_states, jnp.all(met)

        unmet = jnp.zeros_like(constant), jnp.all(jnp.zeros_like(done))
        unmet, _ = vary_alike((unmet, (constant, before)))
        d_states, met = jax.lax.cond(jnp.all(done), run_parallel, lambda _: unmet, constant)
        return jax.lax.cond(met, lambda d_states: d_states, run_sequentially, d_states)

    def correct(
        self, matrices: Array, residuals: Array, scale: Array | float = 1, *, reverse: bool = False
    ) -> tuple[Array, Array]:
        """Returns Δ from Jacobians (T,B,n,n) or diagonals (T,B,n) and residuals (T,B,n).

        ``scale``: of the residuals of each sequence, (B,). Second comes the Δ that tells whether
        the guess is the solution: Newton's own, since a bounded one may be small far from it.
        """
        newton = solve_recurrence(matrices, residuals, reverse=reverse)
        if not self.options.method.endswith("elk"):
            return newton, newton
        share = _largest(residuals) / jnp.maximum(scale, self.layout.epsilon)
        # Above zero: it bounds the smoother's variances. What overflows all the same ends in zeros.
        precision = self.options.regularization * jnp.clip(share, self.layout.epsilon, 1)
        return smooth(matrices, residuals, precision, reverse=reverse), newton

    def damp(self, xs: tuple[Any, Flags]) -> Array:
        """Returns the factors of the Jacobians, (T,B), or (1,1) for all.

        Those of padded steps are exact: an identity, which keeps the carry over all of them.
        """
        keep = jnp.asarray(1 - self.options.damping, self.layout.dtype)
        valid = xs[1].valid
        return keep[None, None] if valid is None else jnp.where(valid, keep, 1)

    def linearize(self, weights: ScanWeights, before: Array, xs: Any) -> tuple[Array, Array]:
        """Returns the states after all steps, and their Jacobians (T,B,n,n)."""

        def at(state: Array, x: Any) -> tuple[Array, Array]:
            values, push = jax.linearize(
                lambda state: self.evaluate_step(_project, weights, state, x)[0], state
            )
            # The same for all steps, so that its products with the kernels are computed once.
            basis = jnp.eye(self.layout.width, dtype=state.dtype)[:, None]
            basis, _ = vary_alike((jnp.broadcast_to(basis, (len(basis), *state.shape)), state))
            return values, jax.vmap(push, out_axes=-1)(basis)

        return jax.vmap(at)(before, xs)

    def linearize_diagonally(
        self, weights: ScanWeights, before: Array, xs: Any
    ) -> tuple[Array, Array]:
        """Returns the states after all steps, and the diagonals of their Jacobians, (T,B,n)."""
        project = _project_diagonally if self.elementwise else _project

        def at(state: Array, x: Any) -> tuple[Array, Array]:
            values, push = jax.linearize(
                lambda state: self.evaluate_step(project, weights, state, x)[0], state
            )
            eye = jnp.eye(self.layout.width, dtype=state.dtype)
            # With elementwise projections a leaf of the carry is independent of its neighbours.
            rows = self.layout.masks() if self.elementwise else eye
            rows, zeros = vary_alike((rows, jnp.zeros_like(values) * values))

            def add(diagonal: Array, row: Array) -> tuple[Array, None]:
                return diagonal + row * push(jnp.broadcast_to(row, state.shape)), None

            return values, jax.lax.scan(add, zeros, rows)[0]

        return jax.vmap(at)(before, xs)

    def iterate(
        self,
        update: Callable[[Array], tuple[Array, Array]],
        states: Array,
        like: Array,
        scale: Callable[[Array], Array],
    ) -> tuple[Array, Array, Array]:
        """Adds Δ to states until Newton's Δ is small.

        Args:
          update: states to Δ and Newton's Δ.
          states: the first guess, (T,B,n).
          like: (B,n), of the kind that the updates are computed from.
          scale: new states to what Δ is measured against, broadcast to them.

        Returns:
          The states, and (B,) whether and (B,) after how many iterations they converged.
        """
        tolerance = self.options.tolerance or self.layout.epsilon**0.75

        def is_open(loop: Any) -> Array:
            number, _, done, _ = loop
            return (number < self.options.max_iterations) & ~jnp.all(done)

        def body(loop: Any) -> Any:
            number, states, done, counts = loop
            delta, newton = update(states)
            small = jnp.all(jnp.abs(newton) <= tolerance * scale(states + newton), axis=(0, 2))
            delta = jnp.where(small[:, None], newton, delta)
            # What overflows at later steps starts again from zeros; the earlier ones are kept.
            new = jnp.where(jnp.isfinite(states + delta), states + delta, 0)
            # A sequence that has converged stays as it is, whatever its batch still needs.
            new = jnp.where(done[:, None], states, new)
            return number + 1, new, done | small, counts + ~done

        batch_size = states.shape[1]
        start = states, jnp.zeros(batch_size, bool), jnp.zeros(batch_size, jnp.int32)
        start, _ = vary_alike((start, like))
        _, states, done, counts = jax.lax.while_loop(is_open, body, (jnp.int32(0), *start))
        return states, done, counts


def _project(weights: ScanWeights, added: Mapping[str, Array], name: str, hidden: Array) -> Array:
    return affine(weights, added, name, hidden, autodiff=True)


def _project_diagonally(
    weights: ScanWeights, added: Mapping[str, Array], name: str, hidden: Array
) -> Array:
    """Returns a hidden projection whose derivative is that of U's diagonals, block by block."""
    value = jax.lax.stop_gradient(_project(weights, added, name, hidden))
    kernel = weights.kernels[name].astype(value.dtype)
    blocks = jnp.split(kernel, kernel.shape[1] // kernel.shape[0], axis=1)
    diagonals = jnp.concatenate([jnp.diagonal(block) for block in blocks])
    # Zero, with the derivative one.
    moved = (hidden - jax.lax.stop_gradient(hidden)).astype(value.dtype)
    return value + jnp.concatenate([moved] * len(blocks), axis=-1) * diagonals


def _shift(x: Array, edge: Array, *, back: bool = False) -> Array:
    """Returns (T,...) moved by one step, with ``edge`` where a step has no neighbour.

    Args:
      x: (T,...).
      edge: (...), before the first step; with ``back`` after the last one.
      back: each step gets the x of the step after it, not before.
    """
    parts = (x[1:], edge[None]) if back else (edge[None], x[:-1])
    return jnp.concatenate(parts)


def _flip_steps(x: Array) -> Array:
    return jnp.flip(x, axis=0)


def _largest(x: Array) -> Array:
    """Returns (B,), the largest |x| of each sequence of (T,B,n)."""
    return jnp.max(jnp.abs(x), axis=(0, 2))
