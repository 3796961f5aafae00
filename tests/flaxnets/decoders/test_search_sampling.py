"""Sampling: frequencies, support under truncation, limits, errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.decoders.hypotheses import EOS, UNK, Hypotheses
from flaxnets.decoders.sampling import greedy_search, sample, truncate
from flaxnets.typing import Array
from tests.flaxnets.decoders.search_reference import (
    WORDS,
    Decoder,
    answers_of,
    assert_equal_trees,
    repeats,
)


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """Returns the p-value of Pearson's test."""
    statistic = np.sum((observed - expected) ** 2 / expected)
    return float(jax.scipy.stats.chi2.sf(statistic, len(observed) - 1))


def run(decoder: Decoder, carry: Any, seed: int = 0, **options: Any) -> Hypotheses:
    return jax.jit(lambda own, key: sample(decoder.decode_step(), own, key, **options))(
        carry, jax.random.key(seed)
    )


def draw(probabilities: np.ndarray, count: int, **options: Any) -> np.ndarray:
    """Draws single words from a decoder with constant probabilities."""
    logits = jnp.log(jnp.asarray(probabilities, jnp.float32))

    def decode_step(carry: Any, tokens: Array) -> Any:
        return carry, jnp.broadcast_to(logits, (tokens.shape[0], logits.size))

    found = jax.jit(
        lambda key: sample(
            decode_step, (), key, batch_size=4, num_samples=count // 4, max_steps=1, **options
        )
    )(jax.random.key(3))
    return np.asarray(found.tokens).ravel()


@pytest.mark.slow
def test_frequencies_are_the_probabilities() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(150, 0.5))  # More than two blocks of words.
    probabilities[[0, 1, 3]] = 1 / 150  # What must never be drawn.
    probabilities /= probabilities.sum()
    words = draw(probabilities, 200_000)
    counts = np.bincount(words, minlength=150)
    assert not counts[[0, 1, UNK]].any()
    probabilities[[0, 1, UNK]] = 0
    expected = probabilities / probabilities.sum() * 200_000
    frequent = expected > 5
    observed = np.append(counts[frequent], counts[~frequent].sum())
    wanted = np.append(expected[frequent], expected[~frequent].sum())
    assert chi_square(observed, wanted) > 0.01


def test_frequencies_of_whole_sentences() -> None:
    """At a temperature each sentence has the product of its words' probabilities."""
    decoder = Decoder(0)
    carry = decoder.initial(1)
    found = run(decoder, carry, num_samples=20_000, max_steps=3, temperature=1.5)
    counts: dict[tuple[int, ...], int] = {}
    for answer in answers_of(found, 0):
        counts[answer.tokens] = counts.get(answer.tokens, 0) + 1
        if counts[answer.tokens] == 1:
            expected = decoder.log_prob(carry[0], answer.tokens)
            np.testing.assert_allclose(answer.log_prob, expected, rtol=1e-4)

    def probability(tokens: tuple[int, ...]) -> float:
        hidden, previous, total = carry[0], 1, 1.0
        for token in tokens:
            hidden, log_probs = decoder.step(hidden, previous)
            weights = np.exp(log_probs / 1.5) * np.isin(np.arange(7), [EOS, *WORDS])
            total *= weights[token] / weights.sum()
            previous = token
        return total

    observed = np.array(list(counts.values()))
    wanted = np.array([probability(tokens) for tokens in counts]) * 20_000
    assert min(wanted) > 5
    assert len(wanted) == 1 + 3 + 9 + 27  # Every sentence there is: the sums agree.
    assert chi_square(observed, wanted) > 0.01


@pytest.mark.slow_after(6)
@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({}, {2, 4, 5, 6, 7, 8}),
        ({"top_k": 1}, {4}),
        ({"top_k": 2}, {4, 5, 6}),  # 5 and 6 tie.
        ({"top_k": 3}, {4, 5, 6}),
        ({"top_k": 4}, {2, 4, 5, 6, 7}),  # 2 and 7 tie.
        ({"top_k": 99}, {2, 4, 5, 6, 7, 8}),
        ({"top_p": 0.01}, {4}),
        ({"top_p": 0.3}, {4}),
        ({"top_p": 0.45}, {4, 5, 6}),
        ({"top_p": 0.75}, {4, 5, 6}),
        ({"top_p": 0.85}, {2, 4, 5, 6, 7}),
        ({"top_p": 0.97}, {2, 4, 5, 6, 7, 8}),
        # Of what top_k left, 4 has 4/10, 5 and 6 have 3/10 each.
        ({"top_k": 3, "top_p": 0.39}, {4}),
        ({"top_k": 3, "top_p": 0.41}, {4, 5, 6}),
        # At a low temperature 4 has 16/(16 + 9 + 9 + 1 + 1 + 0.25) = .44.
        ({"temperature": 0.5, "top_p": 0.43}, {4}),
        ({"temperature": 0.5, "top_p": 0.45}, {4, 5, 6}),
    ],
    ids=str,
)
def test_supports_of_truncation_with_ties(options: dict[str, Any], support: set[int]) -> None:
    # Of the allowed ones, 4 has 8/25, 5 and 6 have 6/25 each, 2 and 7 2/25, 8 has 1/25.
    weights = np.array([9, 9, 2, 9, 8, 6, 6, 2, 1], np.float64)
    assert set(draw(weights / weights.sum(), 2_000, **options).tolist()) == support


def test_truncation_of_random_probabilities() -> None:
    """Against sorting in float64, with sums so far from the bound that rounding is no matter."""
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.full(40, 0.3), 50).astype(np.float32)
    k, p = 7, 0.83
    kept = np.asarray(jax.jit(lambda x: truncate(x, k, 1.0))(probabilities)) > 0
    bound = np.sort(probabilities)[:, -k]
    np.testing.assert_array_equal(kept, probabilities >= np.maximum(bound, 1e-45)[:, None])
    kept = np.asarray(jax.jit(lambda x: truncate(x, 0, p))(probabilities)) > 0
    for row in range(50):
        order = np.argsort(-probabilities[row])
        sums = np.cumsum(probabilities[row, order].astype(np.float64))
        assert np.min(np.abs(sums - p)) > 1e-5
        count = int(np.argmax(sums >= p)) + 1
        assert set(np.flatnonzero(kept[row])) == set(order[:count])


def test_a_temperature_near_zero_is_greedy_search() -> None:
    decoder = Decoder(1, end=-1.0)
    carry = decoder.initial(8)
    cold = run(decoder, carry, max_steps=8, num_samples=3, temperature=1e-6)
    greedy = jax.jit(lambda own: greedy_search(decoder.decode_step(), own, max_steps=8))(carry)
    for sample_number in range(3):
        one = jax.tree.map(lambda x, k=sample_number: x[:, k : k + 1], cold)
        assert_equal_trees(one, greedy)


def test_samples_depend_on_the_key_and_the_row_alone() -> None:
    decoder = Decoder(2)
    carry = np.repeat(decoder.initial(1), 6, axis=0)
    many = run(decoder, carry, max_steps=6, num_samples=4)
    few = run(decoder, carry[:2], max_steps=6, num_samples=4)
    assert_equal_trees(jax.tree.map(lambda x: x[:2], many), few)
    assert_equal_trees(many, run(decoder, carry, max_steps=6, num_samples=4))
    other = run(decoder, carry, seed=1, max_steps=6, num_samples=4)
    assert not np.array_equal(other.tokens, many.tokens)
    assert not np.array_equal(many.tokens[0], many.tokens[1])


def test_the_order_is_by_end_then_score() -> None:
    decoder = Decoder(3, end=-0.5)
    found = run(
        decoder,
        decoder.initial(5),
        max_steps=4,
        num_samples=30,
        length_normalization="wu",
        length_alpha=0.8,
    )
    for row in range(5):
        answers = answers_of(found, row)
        keys = [(not answer.ended, -answer.score) for answer in answers]
        assert keys == sorted(keys)
        for answer in answers:
            norm = ((5 + len(answer.tokens)) / 6) ** 0.8
            np.testing.assert_allclose(answer.score, answer.log_prob / norm, rtol=1e-5)
    assert 0 < np.sum(found.ended) < found.ended.size


def test_blocking_and_unknown_words() -> None:
    decoder = Decoder(4, end=-2.0)
    carry = decoder.initial(4)
    found = run(
        decoder,
        carry,
        max_steps=10,
        num_samples=10,
        no_repeat_ngram_size=2,
        forbid_unknown=False,
    )
    sentences = [answer.tokens for row in range(4) for answer in answers_of(found, row)]
    assert not any(repeats(words, 2) for words in sentences)
    assert any(UNK in words for words in sentences)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"temperature: expected above 0, received 0.0"),
        ({"temperature": float("nan")}, "temperature: expected above 0"),
        ({"top_k": -1}, "top_k: expected at least 0"),
        ({"top_p": 0.0}, r"top_p: expected in \(0, 1\], received 0.0"),
        ({"top_p": 1.5}, "top_p: expected in"),
        ({"num_samples": 0}, "num_samples: expected at least 1"),
        ({"max_steps": 0}, "max_steps: expected at least 1"),
        ({"length_normalization": "sum"}, "length_normalization: expected one of"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: expected at least 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    decoder = Decoder(0)
    options = {"max_steps": 4} | options
    with pytest.raises(ValueError, match=message):
        sample(decoder.decode_step(), decoder.initial(2), jax.random.key(0), **options)
