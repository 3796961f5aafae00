"""The searches for texts against an enumeration, a search with dictionaries, and themselves."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.ctc_peer import prefix_search
from flaxnets.decoders.ctc import Transcripts, beam_search, ctc_losses, greedy
from flaxnets.decoders.ctc.automaton import Automaton
from tests.flaxnets.decoders.ctc.reference import (
    Text,
    all_texts,
    best_path,
    collapse,
    draw_log_probs,
    spans_of,
)

STEPS = np.array([5, 5, 4, 3, 1, 0])
LOG_PROBS = draw_log_probs(0, 6, 5, 3)
WIDE = partial(beam_search, width=64, results=6, characters=2)


def texts_of(found: Transcripts, row: int) -> list[Text]:
    """Returns the texts of a row, without empty slots."""
    filled = np.isfinite(found.log_probabilities[row])
    pairs = zip(found.tokens[row], found.lengths[row], filled, strict=True)
    return [tuple(tokens[:n].tolist()) for tokens, n, full in pairs if full]


def best_texts(texts: dict[Text, float], count: int) -> list[tuple[Text, float]]:
    return sorted(texts.items(), key=lambda item: -item[1])[:count]


def assert_same(found: Transcripts, row: int, expected: list[tuple[Text, float]]) -> None:
    assert texts_of(found, row) == [text for text, _ in expected]
    scores = found.scores[row, : len(expected)]
    np.testing.assert_allclose(scores, [score for _, score in expected], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blank", [0, 2])
def test_a_wide_beam_finds_the_posterior_of_all_texts(blank: int) -> None:
    found = WIDE(LOG_PROBS, STEPS, blank=blank)
    for row, steps in enumerate(STEPS):
        texts = all_texts(LOG_PROBS[row, :steps], blank)
        assert_same(found, row, best_texts(texts, 6))
        confidences = found.confidences[row, : len(texts)]
        expected = [np.exp(score) for _, score in best_texts(texts, 6)]
        np.testing.assert_allclose(confidences, expected, rtol=1e-4)
    assert not found.tokens[5].any()
    np.testing.assert_array_equal(found.scores[5], [0] + [-np.inf] * 5)


@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize(("width", "characters"), [(1, 4), (3, 2), (10, 4)])
def test_a_beam_equals_a_search_with_dictionaries(
    width: int, spread: float, characters: int
) -> None:
    log_probs = draw_log_probs(width, 6, 12, 5, spread=spread)
    steps = np.array([12, 12, 11, 9, 6, 2])
    found = beam_search(log_probs, steps, width=width, characters=characters, results=width)
    for row in range(6):
        expected = prefix_search(log_probs[row, : steps[row]], width, characters=characters)
        assert_same(found, row, expected)


@pytest.mark.slow
def test_equal_prefixes_are_merged_and_new_ones_are_distinct() -> None:
    found = beam_search(
        draw_log_probs(5, 4, 30, 4, spread=0.3), np.full(4, 30), width=20, results=20, characters=3
    )
    for row in range(4):
        texts = texts_of(found, row)
        assert len(texts) == 20
        assert len(set(texts)) == 20
        # A beam sums over fewer alignments than there are.
        exact = -ctc_losses(
            jnp.repeat(draw_log_probs(5, 4, 30, 4, spread=0.3)[row : row + 1], 20, axis=0),
            np.full(20, 30),
            found.tokens[row],
            found.lengths[row],
        )
        assert np.all(found.log_probabilities[row] <= exact + 1e-4)


def test_rows_do_not_depend_on_their_batch_or_padding() -> None:
    log_probs, steps = draw_log_probs(6, 6, 12, 5), np.array([12, 12, 11, 9, 6, 2])
    options: dict[str, Any] = {"width": 4, "results": 2, "max_length": 12}
    together = beam_search(log_probs, steps, **options)
    padding = np.arange(12) >= steps[:, None]
    log_probs[padding] = np.nan
    again = beam_search(log_probs, steps, **options)
    for field, other in zip(together, again, strict=True):
        np.testing.assert_array_equal(field, other)
    longer = np.pad(log_probs, ((0, 0), (0, 3), (0, 0)), constant_values=np.inf)
    best_of_longer = greedy(longer, steps, max_length=12)
    best = greedy(log_probs, steps, max_length=12)
    rows = [beam_search(log_probs[i : i + 1], steps[i : i + 1], **options) for i in range(6)]
    searched = beam_search(longer, steps, **options)
    for name, field in together._asdict().items():
        joined = np.concatenate([getattr(row, name) for row in rows])
        np.testing.assert_allclose(joined, field, rtol=1e-5)
        np.testing.assert_allclose(getattr(searched, name), field, rtol=1e-5)
        np.testing.assert_allclose(getattr(best_of_longer, name), getattr(best, name), rtol=1e-5)


@pytest.mark.parametrize("blank", [0, 1])
def test_greedy_is_the_best_alignment(blank: int) -> None:
    log_probs = draw_log_probs(7, 8, 9, 3, spread=3.0)
    steps = np.array([9, 9, 9, 8, 5, 2, 1, 0])
    found = greedy(log_probs, steps, blank=blank)
    for row, n in enumerate(steps):
        path = tuple(log_probs[row, :n].argmax(axis=1).tolist())
        text = collapse(path, blank)
        assert texts_of(found, row) == [text]
        starts, ends = found.starts[row, 0], found.ends[row, 0]
        spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
        assert spans[: len(text)] == spans_of(path, blank)
        assert spans[len(text) :] == [(0, 0)] * (9 - len(text))
        peaks = [np.exp(log_probs[row, a:b].max()) for a, b in spans[: len(text)]]
        confidences = found.character_confidences[row, 0]
        np.testing.assert_allclose(confidences[: len(text)], peaks, rtol=1e-5)
        assert not confidences[len(text) :].any()
    exact = -ctc_losses(log_probs, steps, found.tokens[:, 0], found.lengths[:, 0], blank=blank)
    np.testing.assert_allclose(found.log_probabilities[:, 0], exact, rtol=1e-5, atol=1e-6)


def test_spans_of_a_beam_are_the_best_alignments() -> None:
    found = WIDE(LOG_PROBS, STEPS)
    for row, steps in enumerate(STEPS):
        for slot, text in enumerate(texts_of(found, row)):
            spans = spans_of(best_path(LOG_PROBS[row, :steps], text))
            starts, ends = found.starts[row, slot], found.ends[row, slot]
            assert list(zip(starts.tolist(), ends.tolist(), strict=True))[: len(text)] == spans


def test_texts_are_no_longer_than_asked() -> None:
    found = beam_search(LOG_PROBS, STEPS, width=64, max_length=2, results=4, characters=2)
    for row, steps in enumerate(STEPS):
        texts = all_texts(LOG_PROBS[row, :steps])
        short = {text: score for text, score in texts.items() if len(text) <= 2}
        assert_same(found, row, best_texts(short, 4))
    first = greedy(LOG_PROBS, STEPS, max_length=1)
    assert first.tokens.shape == (6, 1, 1)
    whole = greedy(LOG_PROBS, STEPS)
    np.testing.assert_array_equal(first.tokens[..., 0], whole.tokens[..., 0])
    np.testing.assert_array_equal(first.ends[..., 0], whole.ends[..., 0])


def test_extreme_log_probabilities_stay_finite() -> None:
    log_probs = np.full((2, 6, 3), -np.inf, np.float32)
    log_probs[0, :, 1] = 0
    log_probs[1, [0, 2, 4], 2] = log_probs[1, [1, 3, 5], 0] = 0
    found = beam_search(log_probs, np.array([6, 6]), width=5, results=2)
    assert found.tokens[:, 0, :4].tolist() == [[1, 0, 0, 0], [2, 2, 2, 0]]
    np.testing.assert_allclose(found.confidences[:, 0], 1)
    assert not any(np.isnan(field).any() for field in found)


def test_a_row_that_is_nan_shows_and_leaves_the_others_alone() -> None:
    log_probs = LOG_PROBS.copy()
    log_probs[1, 2, 1] = np.nan
    is_nan = np.arange(6) == 1
    for search in (WIDE, greedy):
        found, expected = search(log_probs, STEPS), search(LOG_PROBS, STEPS)
        np.testing.assert_array_equal(np.isnan(found.scores[:, 0]), is_nan)
        np.testing.assert_array_equal(np.isnan(found.log_probabilities[:, 0]), is_nan)
        for field, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(field[~is_nan], other[~is_nan])


def test_the_bonus_lengthens_and_an_automaton_weighs_texts() -> None:
    following = np.array([[-1, 1, 2], [-1, 1, 2], [-1, 1, 2]], np.int32)
    log_probs = np.log(np.array([[0.2, 0.5, 0.3], [0.3, 0.1, 0.6], [0.5, 0.2, 0.3]], np.float32))
    model = Automaton(jnp.asarray(following), jnp.asarray(log_probs))

    def score(text: Text) -> float:
        states = (0, *text)
        pairs = zip(states, (*text, 0), strict=True)
        return sum(float(log_probs[state, event]) for state, event in pairs)

    found = WIDE(LOG_PROBS, STEPS, language_model=model, weight=0.7, bonus=0.4)
    for row, steps in enumerate(STEPS):
        texts = {
            text: own + 0.7 * score(text) + 0.4 * len(text)
            for text, own in all_texts(LOG_PROBS[row, :steps]).items()
        }
        expected = best_texts(texts, 6)
        assert_same(found, row, expected)
        exact = [all_texts(LOG_PROBS[row, :steps])[text] for text, _ in expected]
        np.testing.assert_allclose(
            found.log_probabilities[row, : len(exact)], exact, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 0}, "width: expected at least 1"),
        ({"results": 3}, "results: expected at most width = 2"),
        ({"characters": 0}, "characters: expected"),
        ({"max_length": 0}, "max_length: expected"),
        ({"blank": 3}, "blank: expected"),
        ({"log_probs": LOG_PROBS[0]}, "log_probs: expected"),
        ({"steps": STEPS[:2]}, "lengths: expected"),
        (
            {"language_model": Automaton(jnp.zeros((2, 4), jnp.int32), jnp.zeros((2, 4)))},
            "language_model: expected tables .* another alphabet",
        ),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"log_probs": LOG_PROBS, "steps": STEPS, "width": 2}
    with pytest.raises(ValueError, match=message):
        beam_search(**(arguments | changed))
