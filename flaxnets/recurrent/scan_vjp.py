"""The scan over time, with the gradients of kernels and biases formed once, after the scan.

Automatic differentiation of a scan adds up the gradient of every weight at every step: T products
too small to be fast, and T additions of arrays as large as the kernels. Here the backward scan
hands out the gradient of each product instead, and one product over all steps follows it:

    ∂L/∂W = Σ_t h_{t-1}ᵀ ∂L/∂r_t,   ∂L/∂b = Σ_t ∂L/∂r_t,   with r_t = h_{t-1} W + b + x_t.

The r_t of the forward scan are stored, so the backward scan computes anew only what is entry by
entry. They take the place of the x_t in memory, and their gradients take theirs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.recurrent.cell import Recur
from flaxnets.recurrent.matmul import (
    Pull,
    ScanWeights,
    affine,
    kernel_gradient,
    split_addends,
    transpose,
    valid_kernel_gradient,
)
from flaxnets.typing import Array, Carry, PyTree

Step = Callable[[Recur, PyTree, PyTree, Carry, dict[str, Array]], tuple[Carry, Any]]
"""(recur, weights, flags, carry, inputs) to the new carry and the output of one step, a pytree."""


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
    """``deferred_scan`` with gradients by automatic differentiation, in any mode."""
    addends, others = split_addends(weights, inputs)

    def body(carry: Carry, xs: Any) -> tuple[Carry, Any]:
        addends, others, flags = xs

        def recur(name: str, hidden: Array) -> Array:
            return affine(weights, addends, name, hidden)

        return step(recur, weights.others, flags, carry, others)

    xs = addends, others, flags
    return jax.lax.scan(body, carry, xs, reverse=reverse, unroll=unroll)


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

    Reverse mode only: it has no forward-mode derivative.

    Args:
      step: one step; closes over no array, and reaches its kernels through ``recur`` alone.
      weights: kernels, biases and the rest.
      carry: before the first step.
      inputs: arrays with a leading axis T > 0. Those named like a kernel are added to its product,
        the others are handed to ``step``.
      flags: a pytree of the same, without gradients.
      reverse: from the last step to the first.
      unroll: steps in one turn of the loop.
      valid: (T,B,...) bool, of the rank of the hidden states without their features: False where a
        step leaves the carry as it is and gives zeros, so that matrices get no gradient from it.

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
        addends, others = split_addends(weights, inputs)

        def body(carry: Carry, xs: Any, stored: None) -> Any:
            addends, others, flags = xs

            def recur(name: str, hidden: Array) -> Array:
                return affine(weights, addends, name, hidden)

            carry, output = step(recur, weights.others, flags, carry, others)
            return carry, stored, output

        carry, _, outputs = loop.run(body, carry, (addends, others, flags), None)
        return carry, outputs

    def forward(
        weights: ScanWeights,
        carry: Carry,
        inputs: dict[str, Array],
        flags: PyTree,
        valid: Array | None,
    ) -> tuple[tuple[Carry, Any], Any]:
        addends, others = split_addends(weights, inputs)
        shapes = _product_shapes(step, weights, carry, inputs, flags)
        products = {
            name: addends.get(name, jnp.zeros((num_steps, *like.shape), like.dtype))
            for name, like in shapes.items()
        }

        def body(carry: Carry, xs: Any, stored: dict[str, Array]) -> Any:
            others, flags = xs
            sums: dict[str, Array] = {}

            def recur(name: str, hidden: Array) -> Array:
                given = {name: stored[name]} if name in addends else {}
                sums[name] = affine(weights, given, name, hidden)
                return sums[name]

            new_carry, output = step(recur, weights.others, flags, carry, others)
            return new_carry, sums, (output, carry)

        last, products, (outputs, carries) = loop.run(body, carry, (others, flags), products)
        return (last, outputs), (weights, others, flags, valid, carries, products)

    def backward(residuals: Any, gradients: tuple[Carry, Any]) -> Any:
        weights, others, flags, valid, carries, products = residuals
        pulls = {name: transpose(x, num_steps) for name, x in weights.kernels.items()}
        of_last, of_outputs = gradients

        def body(state: Any, xs: Any, stored: Any) -> Any:
            of_carry, of_weights = state
            flags, carry, of_output = xs
            products, others = stored

            def replay(
                weights: PyTree, carry: Carry, others: dict[str, Array], taps: dict[str, Array]
            ) -> Any:
                hiddens: dict[str, Array] = {}

                def recur(name: str, hidden: Array) -> Array:
                    hiddens[name] = hidden
                    return _recall(products[name], pulls[name], hidden, taps[name])

                return step(recur, weights, flags, carry, others), hiddens

            taps = jax.tree.map(jnp.zeros_like, products)
            _, pull, hiddens = jax.vjp(replay, weights.others, carry, others, taps, has_aux=True)
            more, of_carry, of_others, of_products = pull((of_carry, of_output))
            state = of_carry, jax.tree.map(jnp.add, of_weights, more)
            return state, (of_products, of_others), hiddens

        state = of_last, jax.tree.map(jnp.zeros_like, weights.others)
        xs = flags, carries, of_outputs
        (of_carry, of_weights), (of_products, of_others), hiddens = loop.reversed().run(
            body, state, xs, (products, others)
        )
        of_kernels = {}
        for name, kernel in weights.kernels.items():
            pair = hiddens[name], of_products[name]
            if valid is None or kernel.ndim != 2:
                of_kernels[name] = kernel_gradient(*pair, kernel)
            else:
                of_kernels[name] = valid_kernel_gradient(*pair, kernel, valid)
        of_biases = {
            name: of_products[name].sum(range(of_products[name].ndim - 1), dtype=bias.dtype)
            for name, bias in weights.biases.items()
        }
        of_inputs = {name: x for name, x in of_products.items() if name not in without_addend}
        of_inputs |= of_others
        return ScanWeights(of_kernels, of_biases, of_weights), of_carry, of_inputs, None, None

    without_addend = weights.kernels.keys() - inputs.keys()
    run.defvjp(forward, backward)
    return run(weights, carry, inputs, flags, valid)


class _Loop(NamedTuple):
    """The loop over time, with each step's inputs fetched by the step before it.

    XLA on CPUs fuses the slice that fetches a step's inputs into the arithmetic that reads them,
    and then does not vectorise that arithmetic: a GRU's gates took 10 times as long. What comes out
    of the loop's carry is an array of its own.
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
          body: what it returns for ``stored`` takes the place of what it was given.
          carry: before the first step.
          xs: a pytree of arrays (T,...).
          stored: the same; written over.

        Returns:
          The last carry, ``stored`` as written, the outputs (T,...).
        """

        def fetch(xs: PyTree, step: Any) -> PyTree:
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, step, keepdims=False), xs)

        def write(stored: Array, new: Array, step: Any) -> Array:
            return jax.lax.dynamic_update_index_in_dim(stored, new, step, 0)

        def advance(state: Any, step: Any) -> Any:
            carry, x, stored, x_stored = state
            carry, new, outputs = body(carry, x, x_stored)
            stored = jax.tree.map(lambda s, n: write(s, n, step), stored, new)
            following = jnp.clip(step + (-1 if self.reverse else 1), 0, self.num_steps - 1)
            return (carry, fetch(xs, following), stored, fetch(stored, following)), outputs

        first = self.num_steps - 1 if self.reverse else 0
        state = carry, fetch(xs, first), stored, fetch(stored, first)
        steps = jnp.arange(self.num_steps)
        (carry, _, stored, _), outputs = jax.lax.scan(
            advance, state, steps, reverse=self.reverse, unroll=self.unroll
        )
        return carry, stored, outputs


def _product_shapes(
    step: Step, weights: ScanWeights, carry: Carry, inputs: dict[str, Array], flags: PyTree
) -> dict[str, Any]:
    """Shapes and dtypes of one step's products by name."""

    def trace(weights: ScanWeights, carry: Carry, inputs: Any, flags: Any) -> dict[str, Array]:
        addends, others = split_addends(weights, inputs)
        products: dict[str, Array] = {}

        def recur(name: str, hidden: Array) -> Array:
            products[name] = affine(weights, addends, name, hidden)
            return products[name]

        step(recur, weights.others, flags, carry, others)
        return products

    first = jax.tree.map(lambda x: jax.eval_shape(lambda y: y[0], x), (inputs, flags))
    return jax.eval_shape(trace, weights, carry, *first)


@jax.custom_vjp
def _recall(product: Array, pull: Pull, hidden: Array, tap: Array) -> Array:
    """``affine(...) + tap`` of which the value is known: ``product``.

    Its gradients are those of the sum, but for the kernel's and the bias's, which are left to
    later; ``tap`` is zero, and there to receive the gradient.
    """
    return product


def _recall_forward(product: Array, pull: Pull, hidden: Array, tap: Array) -> tuple[Array, Pull]:
    return product, pull


def _recall_backward(pull: Pull, gradient: Array) -> Any:
    return None, None, pull(gradient), gradient


_recall.defvjp(_recall_forward, _recall_backward)
