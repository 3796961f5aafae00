"""Streaming: the outputs of all chunks equal those of the whole sequence."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.convolutional_cells import ConvLSTMCell
from flaxnets.recurrent.layers import Recurrent

B, T, D, F = 3, 6, 5, 4
LSTM = partial(LSTMCell, F, peepholes=True, projection_features=3)
READING: dict[str, Any] = {"normalize_inputs": True, "delta_features": True, "input_features": 7}
READING |= {"normalize_layers": True, "glu": True}
CHUNKS = ((0, 2), (2, 5), (5, 6))
LENGTHS = np.array([6, 3, 1], np.int32)
"""In the second chunk one sequence continues, one ends, one has ended."""


@partial(jax.jit, static_argnums=0)
def call(layer: Recurrent, variables: Any, x: Any, lengths: Any) -> Any:
    return layer.apply(variables, x, lengths, train=False, return_carry=True)


@partial(jax.jit, static_argnums=0)
def stream(layer: Recurrent, variables: Any, carry: Any, x: Any, lengths: Any) -> Any:
    return layer.apply(variables, carry, x, lengths, method="stream")


def make(make_cell: Any, axes: tuple[int, ...] = (D,), **options: Any) -> Any:
    """Returns the layer, random variables and inputs."""
    layer = Recurrent(make_cell, **options)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, T, *axes)).astype(np.float32)
    shapes = jax.eval_shape(partial(layer.init, train=False), jax.random.key(0), x)
    return layer, jax.tree.map(lambda v: rng.normal(0, 0.4, v.shape).astype(np.float32), shapes), x


def stream_chunks(layer: Recurrent, variables: Any, x: Any, lengths: Any) -> Any:
    """Returns the last carry and the joined outputs; ``lengths`` may be one array per chunk."""
    carry, outputs = None, []
    for number, (begin, end) in enumerate(CHUNKS):
        own = lengths[number] if isinstance(lengths, list) else lengths
        if isinstance(lengths, np.ndarray):
            own = np.clip(lengths - begin, 0, end - begin)
        carry, output = stream(layer, variables, carry, x[:, begin:end], own)
        outputs.append(np.asarray(output))
    return carry, np.concatenate(outputs, axis=1)


def assert_same(actual: Any, expected: Any, **tolerance: float) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(*(np.float64(v) for v in (a, b)), **tolerance)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize(
    ("make_cell", "axes", "options"),
    [
        (LSTM, (D,), {"num_layers": 2, "residual": True}),
        (partial(GRUCell, F), (D,), READING),
        (partial(ConvLSTMCell, F), (4, 3, 2), {"delta_features": True}),
    ],
    ids=["stack", "reading", "maps"],
)
def test_uneven_chunks_equal_the_whole(
    make_cell: Any, axes: tuple[int, ...], options: Any, lengths: Any
) -> None:
    layer, variables, x = make(make_cell, axes, **options)
    whole = call(layer, variables, x, lengths)
    assert_same(stream_chunks(layer, variables, x, lengths), whole, atol=2e-6)


@pytest.mark.parametrize("options", [{}, READING], ids=["plain", "reading"])
def test_a_sequence_may_begin_after_the_first_chunk(options: Any) -> None:
    layer, variables, x = make(partial(GRUCell, F), **options)
    # The first sequence has no valid step before the second chunk, the last none after the first.
    lengths = [np.array(row, np.int32) for row in ([0, 2, 2], [3, 1, 0], [1, 1, 0])]
    carry, outputs = stream_chunks(layer, variables, x, lengths)
    valid = [[2, 3, 4, 5], [0, 1, 2, 5], [0, 1]]
    for b, steps in enumerate(valid):
        alone, expected = call(layer, variables, x[b : b + 1, steps], None)
        np.testing.assert_allclose(outputs[b, steps], expected[0], atol=2e-6)
        own = jax.tree.map(lambda leaf: np.asarray(leaf)[b : b + 1], carry)  # noqa: B023
        assert_same(own, alone, atol=2e-6)
        assert not np.delete(outputs[b], steps, axis=0).any()


def test_in_bfloat16_the_carry_keeps_what_the_whole_has() -> None:
    make_cell = partial(LSTMCell, F, dtype=jnp.bfloat16)
    layer, variables, x = make(make_cell, num_layers=2, delta_features=True)
    x = np.asarray(x, jnp.bfloat16)
    carry, outputs = call(layer, variables, x, LENGTHS)
    assert outputs.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(carry["cells"])} == {"float32", "bfloat16"}
    streamed = stream_chunks(layer, variables, x, LENGTHS)
    assert_same((streamed[0], streamed[1]), (carry, outputs), atol=1e-2)


def test_chunks_of_one_length_are_one_program() -> None:
    layer, variables, x = make(partial(GRUCell, F))
    step: Any = jax.jit(partial(layer.apply, method="stream"))
    carry, _ = step(variables, None, x[:, :1])
    for t in range(1, T):
        carry, _ = step(variables, carry, x[:, t : t + 1])
    # The first chunk has no carry, which is a second program.
    assert step._cache_size() == 2
