"""The lexicon as an automaton, and in the search."""

import itertools
from typing import Any

import numpy as np
import pytest

from flaxnets.decoders.ctc import beam_search, make_lexicon
from tests.flaxnets.decoders.ctc.reference import Text, all_texts, draw_log_probs

WORDS = [[1], [1, 2], [2, 2, 1]]
SEPARATOR = 3


def is_allowed(text: Text) -> bool:
    groups = itertools.groupby(text, key=lambda character: character == SEPARATOR)
    return all(separates or list(word) in WORDS for separates, word in groups)


@pytest.mark.parametrize("separators", [[SEPARATOR], []])
def test_accepts_texts_of_its_words(separators: list[int]) -> None:
    lexicon = make_lexicon(WORDS, 3, separators=separators)
    following, ends = np.asarray(lexicon.next_states), np.asarray(lexicon.log_probs)[:, 0]
    for length in range(6):
        for text in itertools.product((1, 2, 3), repeat=length):
            state = 0
            for character in text:
                state = following[state, character] if state >= 0 else -1
            accepted = state >= 0 and ends[state] == 0
            allowed = is_allowed(text) if separators else not text or list(text) in WORDS
            assert accepted == allowed, text


def test_no_other_words_are_read() -> None:
    log_probs, steps = draw_log_probs(9, 6, 6, 4, spread=1.0), np.array([6, 6, 5, 5, 4, 1])
    lexicon = make_lexicon(WORDS, 3, separators=[SEPARATOR])
    found = beam_search(log_probs, steps, width=60, results=5, lexicon=lexicon)
    for row, n in enumerate(steps):
        texts = {
            text: score for text, score in all_texts(log_probs[row, :n]).items() if is_allowed(text)
        }
        best = sorted(texts.items(), key=lambda item: -item[1])[:5]
        for slot, (text, score) in enumerate(best):
            length = found.lengths[row, slot]
            assert tuple(found.tokens[row, slot, :length].tolist()) == text
            np.testing.assert_allclose(found.log_probabilities[row, slot], score, rtol=1e-4)


def test_the_empty_text_where_no_word_fits() -> None:
    lexicon = make_lexicon([[2, 1, 2]], 3)
    log_probs = np.full((1, 4, 4), np.log(0.1), np.float32)
    log_probs[:, :, 2] = np.log(0.7)  # The beam of one ends within the word.
    found = beam_search(log_probs, np.array([4]), width=1, lexicon=lexicon)
    assert found.lengths.tolist() == [[0]]
    assert not found.tokens.any()
    np.testing.assert_allclose(found.log_probabilities[0], 4 * np.log(0.1), rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "separators", "message"),
    [
        ([], [], "words: expected at least one"),
        ([[1], []], [], r"words\[1\]: expected at least one character"),
        ([[1, 3]], [3], r"words\[0\]: expected .* no separator"),
        ([[1, 4]], [], r"words\[0\]: expected character ids in \[1,3\], received 4"),
        ([[1]], [0], "separators: expected character ids"),
    ],
)
def test_bad_arguments_are_named(words: Any, separators: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_lexicon(words, 3, separators=separators)
