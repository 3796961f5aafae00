"""The scan over time, with a custom gradient that forms weight gradients once, after the scan.

Let r_t = h_{t-1} U + b + x_t be a hidden projection, whose x_t was projected before the scan. The
gradients of its parameters are sums over time:

    ∂L/∂U = Σ_t h_{t-1}ᵀ ∂L/∂r_t,   ∂L/∂b = Σ_t ∂L/∂r_t,   ∂L/∂x_t = ∂L/∂r_t.

Automatic differentiation of a scan accumulates these sums inside the backward loop: T matmuls too
small to be fast, and T additions of arrays as large as the kernels, which dominate the training of
a ConvLSTM (about 20 times slower on a CPU). But the backward recursion itself,

    ∂L/∂h_{t-1} = ∂L/∂r_t Uᵀ + terms that do not go through r_t,

needs the kernels only, not their gradients. So the backward scan here returns h_{t-1} and ∂L/∂r_t
of every step as stacked outputs, and one matmul over all T·B rows follows it: ∂L/∂U = Hᵀ ∂L/∂R.

The forward scan stores r_t in place of x_t, and the carries. The backward scan therefore recomputes
elementwise work alone: it differentiates each step with every projection replaced by its stored
value (``_stored_projection``). The gradients ∂L/∂r_t overwrite the stored r_t, so that nothing else
of size T·B·G is allocated.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.layers.batch_sharding import in_auto_axes, vary_alike
from flaxnets.recurrent.cell import ProjectHidden
from flaxnets.recurrent.matmul import (
    HiddenVjp,
    ScanWeights,
    affine,
    hidden_vjp,
    kernel_gradient,
    split_projected,
    valid_kernel_gradient,
)
from flaxnets.typing import Array, Carry, PyTree

Step = Callable[[ProjectHidden, PyTree, PyTree, Carry, dict[str, Array]], tuple[Carry, Any]]
"""One step: (project_hidden, weights, flags, carry, inputs) to the new carry and outputs."""


def plain_scan(
    step: Step,
    weights: ScanWeights,
    carry: Carry,
    inputs: dict[str, Array],
    flags: PyTree,
    *,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[Carry, Any]:
    """Scans as ``deferred_scan`` does, with gradients by automatic differentiation, in any mode."""

    def run(
        weights: ScanWeights, carry: Carry, inputs: dict[str, Array], flags: PyTree
    ) -> tuple[Carry, Any]:
        added, rest = split_projected(weights, inputs)

        def body(carry: Carry, xs: Any) -> tuple[Carry, Any]:
            added, rest, flags = xs

            def project_hidden(name: str, hidden: Array) -> Array:
                return affine(weights, added, name, hidden, autodiff=True)

            return step(project_hidden, weights.others, flags, carry, rest)

        return jax.lax.scan(body, carry, (added, rest, flags), reverse=reverse, unroll=unroll)

    return _run_on_mesh(run, weights, carry, inputs, flags)


def _run_on_mesh(
    run: Callable[..., Any],
    weights: ScanWeights,
    carry: Carry,
    inputs: dict[str, Array],
    *others: PyTree,
) -> tuple[Carry, Any]:
    """Calls ``run`` with arrays of those types that a loop and a custom gradient need."""
    # Outside of the custom gradient, so that JAX sums gradients over the devices where it must.
    arguments = vary_alike((weights, carry, inputs, *others))
    first = jax.tree.leaves(inputs)[0]
    return in_auto_axes(run, first, axis=1, results=(0, 1))(*arguments)


def deferred_scan(
    step: Step,
    weights: ScanWeights,
    carry: Carry,
    inputs: dict[str, Array],
    flags: PyTree,
    *,
    reverse: bool = False,
    unroll: int = 1,
    valid: Array | None = None,
) -> tuple[Carry, Any]:
    """Scans ``step`` over time; kernels and biases get their gradients after the scan.

    Reverse mode only: there is no forward-mode derivative.

    Args:
      step: one step. It closes over no traced array, which a custom gradient would not see, and
        uses the kernels through ``project_hidden`` alone.
      weights: kernels, biases and all other parameters.
      carry: before the first step.
      inputs: arrays with a leading axis T > 0, by name. Those named like a kernel are added to its
        hidden projection; ``step`` receives the others.
      flags: a pytree of arrays with a leading axis T that have no gradient, as masks.
      reverse: from the last step to the first.
      unroll: steps in one turn of the loop.
      valid: (T,B,...) bool, of the rank of the hidden states without their features: False where a
        step keeps the carry and returns zeros, so that kernels of rank 2 skip those rows in their
        gradient. None: all rows are used.

    Returns:
      The last carry, and the outputs with a leading axis T.
    """
    num_steps = next(iter(inputs.values())).shape[0]
    loop = _Loop(num_steps, reverse, unroll)

    @jax.custom_vjp
    def run(
        weights: ScanWeights,
        carry: Carry,
        inputs: dict[str, Array],
        flags: PyTree,
        valid: Array | None,
    ) -> tuple[Carry, Any]:
        added, rest = split_projected(weights, inputs)

        def body(carry: Carry, xs: Any, stored: None) -> Any:
            added, rest, flags = xs

            def project_hidden(name: str, hidden: Array) -> Array:
                return affine(weights, added, name, hidden, autodiff=True)

            carry, output = step(project_hidden, weights.others, flags, carry, rest)
            return carry, stored, output

        carry, _, outputs = loop.run(body, carry, (added, rest, flags), None)
        return carry, outputs

    def forward(
        weights: ScanWeights,
        carry: Carry,
        inputs: dict[str, Array],
        flags: PyTree,
        valid: Array | None,
    ) -> tuple[tuple[Carry, Any], Any]:
        added, rest = split_projected(weights, inputs)
        # x_t where there is one, overwritten by r_t step by step; else zeros to be overwritten.
        shapes = _projection_shapes(step, weights, carry, inputs, flags)
        projections = {
            name: added.get(name, jnp.zeros((num_steps, *like.shape), like.dtype))
            for name, like in shapes.items()
        }
        projections, _ = vary_alike((projections, carry))

        def body(carry: Carry, xs: Any, stored: dict[str, Array]) -> Any:
            rest, flags = xs
            results: dict[str, Array] = {}

            def project_hidden(name: str, hidden: Array) -> Array:
                given = {name: stored[name]} if name in added else {}
                results[name] = affine(weights, given, name, hidden)
                return results[name]

            new_carry, output = step(project_hidden, weights.others, flags, carry, rest)
            # The carry before the step is what the backward pass starts this step from.
            return new_carry, results, (output, carry)

        last, projections, (outputs, carries) = loop.run(body, carry, (rest, flags), projections)
        return (last, outputs), (weights, rest, flags, valid, carries, projections)

    def backward(residuals: Any, gradients: tuple[Carry, Any]) -> Any:
        weights, rest, flags, valid, carries, projections = residuals
        # Transposed copies of the kernels are made here, once, not at every step.
        hidden_vjps = {name: hidden_vjp(x, num_steps) for name, x in weights.kernels.items()}
        d_last, d_outputs = gradients

        def body(state: Any, xs: Any, stored: Any) -> Any:
            d_carry, d_weights = state
            flags, carry, d_output = xs
            projections, rest = stored

            def replay(
                weights: PyTree, carry: Carry, rest: dict[str, Array], taps: dict[str, Array]
            ) -> Any:
                hiddens: dict[str, Array] = {}

                def project_hidden(name: str, hidden: Array) -> Array:
                    hiddens[name] = hidden
                    return _stored_projection(
                        projections[name], hidden_vjps[name], hidden, taps[name]
                    )

                return step(project_hidden, weights, flags, carry, rest), hiddens

            # r_t + tap with tap = 0: the gradient of the tap is ∂L/∂r_t.
            taps = jax.tree.map(jnp.zeros_like, projections)
            _, vjp, hiddens = jax.vjp(replay, weights.others, carry, rest, taps, has_aux=True)
            d_others, d_carry, d_rest, d_projections = vjp((d_carry, d_output))
            # Peepholes, scales and the like are small: their gradients are summed in the loop.
            state = d_carry, jax.tree.map(jnp.add, d_weights, d_others)
            return state, (d_projections, d_rest), hiddens

        state = d_last, jax.tree.map(jnp.zeros_like, weights.others)
        xs = flags, carries, d_outputs
        (d_carry, d_weights), (d_projections, d_rest), hiddens = loop.reversed().run(
            body, state, xs, (projections, rest)
        )
        # The deferred gradients: one matmul or convolution over all steps for each kernel.
        d_kernels = {}
        for name, kernel in weights.kernels.items():
            pair = hiddens[name], d_projections[name]
            if valid is None or kernel.ndim != 2:
                d_kernels[name] = kernel_gradient(*pair, kernel)
            else:
                d_kernels[name] = valid_kernel_gradient(*pair, kernel, valid)
        d_biases = {
            name: d_projections[name].sum(range(d_projections[name].ndim - 1), dtype=bias.dtype)
            for name, bias in weights.biases.items()
        }
        # ∂L/∂x_t = ∂L/∂r_t, for the projections that have an x_t.
        d_inputs = {name: x for name, x in d_projections.items() if name not in without_input}
        d_inputs |= d_rest
        return ScanWeights(d_kernels, d_biases, d_weights), d_carry, d_inputs, None, None

    without_input = weights.kernels.keys() - inputs.keys()
    run.defvjp(forward, backward)
    return _run_on_mesh(run, weights, carry, inputs, flags, valid)


class _Loop(NamedTuple):
    """The loop over time, in which each step slices the inputs of the next one.

    XLA on CPUs fuses the slice of a step's inputs into the arithmetic that uses them, and then does
    not vectorise that arithmetic: a GRU's gates took 10 times as long. An array that comes out of
    the loop's carry is materialised, so slicing one step ahead prevents that fusion.
    """

    num_steps: int
    reverse: bool
    unroll: int

    def reversed(self) -> "_Loop":
        return self._replace(reverse=not self.reverse)

    def run(
        self,
        body: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree, PyTree]],
        carry: PyTree,
        xs: PyTree,
        stored: PyTree,
    ) -> tuple[PyTree, PyTree, PyTree]:
        """Scans ``body``: (carry, x, stored) of one step to their new values and its outputs.

        Args:
          body: its new ``stored`` overwrites the old one of the same step.
          carry: before the first step.
          xs: a pytree of arrays (T,...).
          stored: a pytree of arrays (T,...), overwritten in place.

        Returns:
          The last carry, ``stored`` as overwritten, the outputs (T,...).
        """

        def slice_step(xs: PyTree, step: Any) -> PyTree:
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, step, keepdims=False), xs)

        def write(stored: Array, new: Array, step: Any) -> Array:
            return jax.lax.dynamic_update_index_in_dim(stored, new, step, 0)

        def scan_body(state: Any, step: Any) -> Any:
            carry, x, stored, x_stored = state
            carry, new, outputs = body(carry, x, x_stored)
            # The next step is sliced from the written array: a use of the old one after the write
            # would make XLA copy it.
            stored = jax.tree.map(lambda s, n: write(s, n, step), stored, new)
            # After the last step the clipped index slices that step again; nothing uses it.
            next_step = jnp.clip(step + (-1 if self.reverse else 1), 0, self.num_steps - 1)
            return (
                carry,
                slice_step(xs, next_step),
                stored,
                slice_step(stored, next_step),
            ), outputs

        first = self.num_steps - 1 if self.reverse else 0
        state = carry, slice_step(xs, first), stored, slice_step(stored, first)
        steps = jnp.arange(self.num_steps)
        (carry, _, stored, _), outputs = jax.lax.scan(
            scan_body, state, steps, reverse=self.reverse, unroll=self.unroll
        )
        return carry, stored, outputs


def _projection_shapes(
    step: Step, weights: ScanWeights, carry: Carry, inputs: dict[str, Array], flags: PyTree
) -> dict[str, Any]:
    """Returns shapes and dtypes of one step's hidden projections by name."""

    def trace(weights: ScanWeights, carry: Carry, inputs: Any, flags: Any) -> dict[str, Array]:
        inputs, flags = jax.tree.map(lambda x: x[0], (inputs, flags))
        added, rest = split_projected(weights, inputs)
        projections: dict[str, Array] = {}

        def project_hidden(name: str, hidden: Array) -> Array:
            projections[name] = affine(weights, added, name, hidden)
            return projections[name]

        step(project_hidden, weights.others, flags, carry, rest)
        return projections

    return jax.eval_shape(trace, weights, carry, inputs, flags)


@jax.custom_vjp
def _stored_projection(projection: Array, vjp: HiddenVjp, hidden: Array, tap: Array) -> Array:
    """Returns ``affine(...) + tap`` from its stored value, without the matmul.

    Its gradient in ``hidden`` is that of the matmul, and in ``tap`` the identity. Kernel and bias
    get none here: theirs are formed after the scan.
    """
    return projection


def _stored_projection_forward(
    projection: Array, vjp: HiddenVjp, hidden: Array, tap: Array
) -> tuple[Array, HiddenVjp]:
    return projection, vjp


def _stored_projection_backward(vjp: HiddenVjp, gradient: Array) -> Any:
    return None, None, vjp(gradient), gradient


_stored_projection.defvjp(_stored_projection_forward, _stored_projection_backward)
