"""A recurrent layer with a skip-recurrent one beside it, against a loop over the steps."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent import GRUCell, Recurrent
from flaxnets.recurrent.skip_recurrent import SkipRecurrent, WithSkip

B, T, D, PERIOD = 2, 7, 3, 3
LAYER = WithSkip(Recurrent(partial(GRUCell, 4)), SkipRecurrent(partial(GRUCell, 2), period=PERIOD))
LENGTHS = jnp.array([T, 4])


@pytest.fixture(scope="module")
def made() -> tuple[Any, jax.Array, jax.Array]:
    """Returns variables, inputs and outputs."""
    x = jax.random.normal(jax.random.key(1), (B, T, D))
    init = jax.jit(partial(LAYER.init_with_output, train=False))
    outputs, variables = init(jax.random.key(0), x, LENGTHS)
    return variables, x, outputs


def test_each_state_reads_the_one_a_period_before(made: tuple[Any, jax.Array, jax.Array]) -> None:
    variables, x, outputs = made
    phases = {"params": variables["params"]["skip"]["phases"]}
    one_by_one = jax.jit(partial(Recurrent(partial(GRUCell, 2)).apply, train=False))
    for row, length in enumerate(LENGTHS.tolist()):
        states = [np.zeros(2, np.float32)] * length
        for phase in range(PERIOD):
            steps = list(range(phase, length, PERIOD))
            padded = jnp.zeros((1, 3, D)).at[0, : len(steps)].set(x[row, jnp.array(steps)])
            for number, state in zip(steps, one_by_one(phases, padded)[0], strict=False):
                states[number] = np.asarray(state)
        for t in range(T):
            behind = [t - k if t < length else -1 for k in range(PERIOD)]
            expected = [states[s] if s >= 0 else np.zeros(2) for s in behind]
            np.testing.assert_allclose(
                outputs[row, t, 4:], np.concatenate(expected), rtol=1e-5, atol=1e-6
            )


def test_padding_changes_neither_values_nor_gradients(
    made: tuple[Any, jax.Array, jax.Array],
) -> None:
    variables, x, _ = made

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def loss(variables: Any, x: jax.Array) -> jax.Array:
        outputs = LAYER.apply(variables, x, LENGTHS, train=True)
        return jnp.sum(outputs[:, -4:] ** 2)

    value, (weights, inputs) = loss(variables, x)
    other, (same, _) = loss(variables, x.at[1, 4:].set(jnp.nan))
    assert float(value) == float(other)
    jax.tree.map(np.testing.assert_array_equal, weights, same)
    assert not np.asarray(inputs[1, 4:]).any()
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(weights))


def test_what_it_cannot_do_is_refused() -> None:
    x = jnp.zeros((B, T, D))
    with pytest.raises(ValueError, match="period: expected at least 1, received 0"):
        jax.eval_shape(
            partial(SkipRecurrent(partial(GRUCell, 2), 0).init, train=False), jax.random.key(0), x
        )
    with pytest.raises(ValueError, match="starts, initial_carry, return_carry: expected none"):
        jax.eval_shape(partial(LAYER.init, train=False, return_carry=True), jax.random.key(0), x)
    assert "last period" in LAYER.obstacle
