"""Skip-recurrent layers: a loop in NumPy, packed sequences, streams, gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.skip_recurrent import SkipRecurrent
from tests.flaxnets.recurrent import reference

B, T, D, F, P = 2, 11, 3, 4, 3
LENGTHS = np.array([11, 7], np.int32)
STARTS = np.zeros((B, T), bool)
STARTS[0, 4] = STARTS[1, 5] = STARTS[1, 9] = True  # The last one lies in the padding.
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
CELLS: dict[str, Any] = {
    "gru": (partial(GRUCell, F), reference.gru, lambda: np.zeros((1, F))),
    "lstm": (
        partial(LSTMCell, F),
        reference.lstm,
        lambda: (np.zeros((1, F)), np.zeros((1, F))),
    ),
}


def init(layer: Any) -> Any:
    return jax.jit(partial(layer.init, train=False))(jax.random.key(0), X)


def loop(params: Any, name: str) -> np.ndarray:
    """Runs each sequence of each row step by step, from the carry of P steps before."""
    _, step, zeros = CELLS[name]
    outputs = np.zeros((B, T, F))
    for row in range(B):
        carries: list[Any] = []
        for t in range(LENGTHS[row]):
            if STARTS[row, t]:
                carries = []
            before = carries[-P] if len(carries) >= P else zeros()
            carry, output = step(params, before, X[row, t : t + 1])
            carries.append(carry)
            outputs[row, t] = output[0]
    return outputs


@pytest.mark.parametrize("name", ["gru", pytest.param("lstm", marks=pytest.mark.stress)])
def test_equals_a_loop_with_lengths_and_packed_sequences(name: str) -> None:
    layer = SkipRecurrent(CELLS[name][0], period=P)
    variables = init(layer)
    padded = X.copy()
    padded[1, LENGTHS[1] :] = np.nan
    run = jax.jit(partial(layer.apply, train=False))
    found = run(variables, padded, LENGTHS, starts=STARTS)
    expected = loop(variables["params"]["phases"]["forward_0"], name)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected[0, P + 4 :]).min() > 0


def test_both_directions_are_those_of_a_reversed_sequence() -> None:
    layer = SkipRecurrent(CELLS["gru"][0], period=P, bidirectional=True)
    variables = init(layer)
    params = variables["params"]["phases"]
    # The directions change places.
    other = {"forward_0": params["backward_0"], "backward_0": params["forward_0"]}
    run = jax.jit(partial(layer.apply, train=False))
    forward, backward = np.split(run(variables, X), 2, axis=-1)
    flipped = run({"params": {"phases": other}}, X[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(np.concatenate([backward, forward], -1), flipped, rtol=1e-5)


@pytest.mark.parametrize(
    "chunks",
    [
        (4, 4, 3),
        *(pytest.param(c, marks=pytest.mark.stress) for c in ((2, 9), (3, 0, 8), (1,) * 11)),
    ],
)
def test_stream_of_any_chunks_equals_the_whole(chunks: tuple[int, ...]) -> None:
    layer = SkipRecurrent(CELLS["gru"][0], period=P, num_layers=2)
    variables = init(layer)
    whole = jax.jit(partial(layer.apply, train=False))(variables, X, LENGTHS, starts=STARTS)
    stream, carry = jax.jit(partial(layer.apply, method="stream")), None
    outputs, begin = [], 0
    for count in chunks:
        part = slice(begin, begin + count)
        lengths = np.clip(LENGTHS - begin, 0, count)
        carry, output = stream(variables, carry, X[:, part], lengths, starts=STARTS[:, part])
        outputs.append(output)
        begin += count
    np.testing.assert_allclose(np.concatenate(outputs, 1), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.stress
def test_a_skip_of_one_is_an_ordinary_layer() -> None:
    make_cell = CELLS["lstm"][0]
    layer = SkipRecurrent(make_cell, period=1)
    variables = init(layer)
    how = {"train": False, "return_carry": True}
    plain = jax.jit(partial(Recurrent(make_cell).apply, **how))(
        {"params": variables["params"]["phases"]}, X, LENGTHS, starts=STARTS
    )
    carry, outputs = jax.jit(partial(layer.apply, **how))(variables, X, LENGTHS, starts=STARTS)
    np.testing.assert_allclose(outputs, plain[1], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:, 0], b, rtol=1e-6), carry, plain[0])


def test_gradients_reach_the_steps_of_the_own_phase_alone() -> None:
    layer = SkipRecurrent(CELLS["gru"][0], period=P)
    variables = init(layer)

    def loss(x: Any) -> Any:
        return jnp.sum(layer.apply(variables, x, train=False)[:, 7] ** 2)

    reached = np.abs(np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(X)))).max((0, 2)) > 0
    assert np.flatnonzero(reached).tolist() == [1, 4, 7]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="period: expected at least 1, received 0"):
        SkipRecurrent(CELLS["gru"][0], period=0)
    layer = SkipRecurrent(CELLS["gru"][0], period=2)
    for x, how, message in (
        (X[0], {}, r"inputs: expected \(B,T,D\)"),
        (X, {"lengths": np.array([12, 1])}, r"lengths: expected values in \[0, 11\]"),
        (X, {"starts": np.zeros((B, T))}, "starts: expected bool"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.init(jax.random.key(0), x, train=False, **how)
