"""Searches say where logits are not finite, and refuse penalties that are not."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.decoders.hypotheses import EOS, PAD, length_normalizer
from flaxnets.decoders.search import SearchOptions, search_captions
from flaxnets.tasks.captioning import Captioning
from flaxnets.typing import Array

V = 6
METHODS = [
    SearchOptions("greedy", max_steps=4),
    SearchOptions("sample", max_steps=4, num_samples=3),
    SearchOptions("sample", max_steps=4, num_samples=3, top_k=2, top_p=0.9),
    SearchOptions("beam", max_steps=4, beam_size=2),
    SearchOptions("beam", max_steps=4, beam_size=4, num_groups=2, diversity_penalty=0.5),
]
ROWS = jnp.arange(3.0)[:, None]


def make_step(bad: Any, first_bad: Any) -> Any:
    """A decoder of three rows; the logits of row 1 are ``bad`` from a step on."""

    def decode_step(carry: Any, tokens: Array) -> Any:
        row, step = carry[:, :1], carry[:, 1:]
        logits = jnp.where(jnp.arange(V) == EOS, -1.0, jnp.arange(V) * 0.1)
        logits = jnp.where((row == 1) & (step >= first_bad), bad, logits)
        return carry + jnp.array([0.0, 1.0]), logits

    return decode_step


def start() -> Array:
    return jnp.concatenate([ROWS, jnp.zeros((3, 1))], axis=1)


@functools.cache
def compiled(method: int) -> Any:
    """Returns a search as a compiled function of the bad logits (V,) and their first step."""
    return jax.jit(
        lambda carry, bad, first_bad: search_captions(
            make_step(bad, first_bad), carry, METHODS[method], jax.random.key(0)
        )
    )


@pytest.mark.parametrize("first_bad", [0, 2])
@pytest.mark.parametrize(
    "bad",
    [
        jnp.nan,
        -jnp.inf,
        jnp.inf,
        jnp.array([0, 0, 0, jnp.nan, 0, 0]),
        jnp.array([0, 0, 0, 0, 0, jnp.inf]),
    ],
)
@pytest.mark.parametrize("method", range(len(METHODS)))
def test_a_row_without_finite_logits_is_told(method: int, bad: Any, first_bad: int) -> None:
    found = compiled(method)(start(), jnp.broadcast_to(bad, (V,)), first_bad)
    tokens = np.asarray(found.tokens)
    assert ((tokens >= 0) & (tokens < V)).all()
    assert np.isnan(found.log_probs[1]).any()
    assert np.isnan(found.scores[1]).any()
    ended = np.asarray(found.ended[1])
    assert not (np.isnan(found.log_probs[1]) & ended).any()
    whole = compiled(method)(start(), jnp.zeros(V), 9)
    for row in (0, 2):  # The others are what they are without it.
        for a, b in zip(found, whole, strict=True):
            np.testing.assert_array_equal(a[row], b[row])


@pytest.mark.parametrize("options", METHODS)
def test_outside_of_compiled_functions_such_a_row_is_refused(options: SearchOptions) -> None:
    with pytest.raises(ValueError, match=r"finite logits.* rows \[1\]"):
        search_captions(make_step(jnp.nan, 0), start(), options, jax.random.key(0))


def test_what_is_never_read_may_be_anything() -> None:
    """A row that ended before runs on with the others, and may be NaN by then."""

    def decode_step(carry: Any, tokens: Array) -> Any:
        ended = jnp.arange(V) == EOS
        logits = jnp.where(carry >= 1, jnp.where(carry > 1, jnp.nan, 0.0), jnp.where(ended, 9, 0))
        return carry + jnp.where(carry == 0, 2.0, 0.0), logits

    carry = jnp.array([[0.0], [1.0]])  # Row 0 ends at once, row 1 goes on.
    found = search_captions(decode_step, carry, SearchOptions("greedy", max_steps=3))
    assert found.tokens[0, 0].tolist() == [EOS, PAD, PAD]
    assert np.isfinite(found.log_probs).all()


@pytest.mark.parametrize("value", [np.inf, np.nan, -1.0, 1e39])
def test_penalties_are_finite(value: float) -> None:
    options = SearchOptions("beam", beam_size=2, num_groups=2, diversity_penalty=value)
    with pytest.raises(ValueError, match="diversity_penalty: expected"):
        search_captions(make_step(0, 9), start(), options)
    with pytest.raises(ValueError, match="length_alpha: expected"):
        length_normalizer("wu", value)
    with pytest.raises(ValueError, match="attention_penalty: expected"):
        Captioning(str, attention_penalty=value)


@pytest.mark.parametrize("value", [np.inf, np.nan, 0.0, 1e-46, 1e39])
def test_the_temperature_is_a_finite_float32(value: float) -> None:
    options = SearchOptions("sample", temperature=value)
    with pytest.raises(ValueError, match="temperature: expected"):
        search_captions(make_step(0, 9), start(), options, jax.random.key(0))
