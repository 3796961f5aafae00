"""PredRNN's stack: zig-zag memory, decoupling loss, gradients, numbers of parameters."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.convolutional_cells import STLSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.scan_vjp import deferred_scan
from flaxnets.recurrent.st_lstm import DECOUPLING, PredRNNStack
from tests.flaxnets.recurrent import reference
from tests.flaxnets.recurrent.cases import assert_close

B, T, H, W, C, F = 2, 3, 4, 3, 2, 3
STACK: Any = PredRNNStack((F, F), kernel_size=(3, 3), decoupling=True, dtype=jnp.float64)
EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def shapes_of(stack: PredRNNStack, *axes: int) -> Any:
    """Returns the shapes of the parameters for inputs (1,*axes)."""
    key = jax.random.key(0)
    return jax.eval_shape(lambda: stack.init(key, (1, *axes), method="weights")["params"])


def draw(stack: PredRNNStack) -> tuple[Any, Any, np.ndarray]:
    """Draws parameters, carry and inputs (T,B,H,W,C), float64."""
    rng = np.random.default_rng(0)
    params, carry = jax.tree.map(
        lambda leaf: rng.normal(0, 0.4, leaf.shape),
        (shapes_of(stack, H, W, C), stack.initialize_carry((B, H, W, C))),
    )
    return params, carry, rng.normal(size=(T, B, H, W, C))


def reference_step(params: Any, carry: Any, x: np.ndarray) -> Any:
    """Runs a step of the stack; returns carry, output, and the decoupling loss (B,)."""
    states, memory = carry
    new_states, similarities = [], []
    for layer, (cell, hidden) in enumerate(states):
        own = params[f"cells_{layer}"]
        before = cell, memory
        (cell, hidden, memory), _ = reference.st_lstm(own, (cell, hidden, memory), x)
        # What was added is the new state without the share of the old one.
        gates = reference.convolve(x, own["input_kernel"])
        of_c = gates[..., : 4 * F] + reference.convolve(states[layer][1], own["hidden_kernel"])
        of_m = gates[..., 4 * F :] + reference.convolve(before[1], own["memory_kernel"])
        added = [
            new - reference.sigmoid(of[..., F : 2 * F] + 1) * old
            for new, old, of in zip((cell, memory), before, (of_c, of_m), strict=True)
        ]
        a, b = (np.einsum("bhwf,fg->bghw", d, params["adapter_kernel"]) for d in added)
        a, b = a.reshape(B, F, -1), b.reshape(B, F, -1)
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        similarities.append(np.abs(cosine).mean(-1))
        new_states.append((cell, hidden))
        x = hidden
    return (tuple(new_states), memory), x, np.mean(similarities, axis=0)


def test_the_memory_climbs_the_layers_and_goes_on_at_the_lowest() -> None:
    params, carry, xs = draw(STACK)
    expected_carry = carry
    step = jax.jit(partial(STACK.apply, train=True))
    for x in xs:
        carry, output, losses = step({"params": params}, carry, x)
        expected_carry, expected, loss = reference_step(params, expected_carry, x)
        assert_close((carry, output), (expected_carry, expected), **EXACT)
        np.testing.assert_allclose(losses[DECOUPLING], loss, rtol=1e-6)  # It is in float32.
        assert losses[DECOUPLING].dtype == np.float32
        assert ((losses[DECOUPLING] > 0) & (losses[DECOUPLING] < 1)).all()


def test_deferred_gradients_equal_those_of_autodiff() -> None:
    params, carry, xs = draw(STACK)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(T, B, H, W, F))

    def of_scan(params: Any, carry: Any, xs: Any) -> Any:
        bound = STACK.bind({"params": params})

        def step(project: Any, others: Any, flags: Any, carry: Any, x: Any) -> Any:
            carry, output, losses = STACK.bind({"params": params0}).step(
                project, others, carry, x["frames"]
            )
            return carry, (output, losses[DECOUPLING])

        _, (outputs, losses) = deferred_scan(
            step, bound.weights(xs.shape[1:]), carry, {"frames": xs}, None
        )
        return (outputs * weights).sum() + losses.sum()

    def of_autodiff(params: Any, carry: Any, xs: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            carry, output, losses = STACK.apply({"params": params}, carry, x, train=True)
            return carry, (output, losses[DECOUPLING])

        _, (outputs, losses) = jax.lax.scan(step, carry, xs)
        return (outputs * weights).sum() + losses.sum()

    params0 = params  # ``step`` reads no parameters but those that it is given.
    actual, expected = (
        jax.jit(jax.grad(loss, (0, 1, 2)))(params, carry, xs) for loss in (of_scan, of_autodiff)
    )
    assert_close(actual, jax.device_get(expected), rtol=1e-6, atol=1e-7)
    for leaf in jax.tree.leaves(actual):
        assert np.abs(leaf).max() > 0


def test_one_layer_is_the_cell_in_a_recurrent_layer() -> None:
    stack = PredRNNStack((F,), kernel_size=(3, 3))
    params, _, xs = draw(stack)
    layer = Recurrent(partial(STLSTMCell, F))
    variables = {"params": {"forward_0": params["cells_0"]}}
    x = xs.swapaxes(0, 1).astype(np.float32)
    expected = jax.jit(partial(layer.apply, train=False))(variables, x)
    carry, step = stack.initialize_carry((B, H, W, C)), jax.jit(partial(stack.apply, train=False))
    for t in range(T):
        carry, output, losses = step({"params": params}, carry, x[:, t])
        np.testing.assert_allclose(output, expected[:, t], atol=1e-5)
        assert not losses


def test_where_nothing_is_added_the_loss_is_zero_and_its_gradient_finite() -> None:
    params, carry, xs = draw(STACK)
    zeros = jax.tree.map(jnp.zeros_like, carry)

    def loss(params: Any, x: Any) -> Any:
        return STACK.apply({"params": params}, zeros, x, train=True)[2][DECOUPLING].sum()

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, 0 * xs[0])
    assert value == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("decoupling", "count"),
    # OpenSTL's PredRNN and PredRNNv2 on Moving MNIST, without the last convolution of 128 · 16.
    [(False, 23_838_720 - 2_048), (True, 23_855_104 - 2_048)],
)
def test_parameters_are_as_many_as_in_openstl(decoupling: bool, count: int) -> None:
    stack = PredRNNStack((128,) * 4, decoupling=decoupling)
    shapes = shapes_of(stack, 16, 16, 16)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("features", [(), (4, 4, 8)])
def test_layers_of_different_widths_are_refused(features: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="features: expected one or more layers of the same width"):
        PredRNNStack(features)
