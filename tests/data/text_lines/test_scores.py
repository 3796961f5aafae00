"""Scores of texts against a plain Levenshtein distance."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from data.text_lines.scores import (
    ErrorSums,
    bootstrap_interval,
    confusions,
    error_rates,
)

Pairs = list[tuple[str, str]]


def distance(x: Sequence[str], y: Sequence[str]) -> int:
    """Returns the Levenshtein distance by the table of all prefixes."""
    row = list(range(len(y) + 1))
    for i, a in enumerate(x, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(y, 1):
            before, row[j] = row[j], min(before + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def draw_pairs(count: int = 80) -> Pairs:
    generator = np.random.default_rng(0)
    letters = list("abcſ ü")

    def draw() -> str:
        return "".join(generator.choice(letters, generator.integers(0, 12)))

    return [(draw(), draw()) for _ in range(count)]


def test_errors_are_the_distance() -> None:
    pairs = draw_pairs()
    sums = error_rates(pairs)
    assert sums.character_errors == sum(distance(text, reference) for text, reference in pairs)
    assert sums.characters == sum(len(reference) for _, reference in pairs)
    words = [(text.split(), reference.split()) for text, reference in pairs]
    assert sums.word_errors == sum(distance(text, reference) for text, reference in words)
    assert sums.words == sum(len(reference) for _, reference in words)
    assert sums.lines == 80
    assert sums.exact_lines == sum(text == reference for text, reference in pairs)
    assert sums.insertions - sums.deletions == sum(len(x) - len(y) for x, y in pairs)
    assert sums.character_error_rate == sums.character_errors / sums.characters


def test_sums_of_parts_add_up() -> None:
    pairs = draw_pairs()
    assert error_rates(pairs[:30]) + error_rates(pairs[30:]) == error_rates(pairs)
    assert error_rates([]) == ErrorSums()


def test_composed_and_decomposed_texts_are_equal() -> None:
    text = "Über Öl"
    sums = error_rates([(unicodedata.normalize("NFD", text), text)])
    assert sums == ErrorSums(characters=7, words=2, exact_lines=1, lines=1)
    assert not confusions([(unicodedata.normalize("NFD", text), text)])


def test_empty_references() -> None:
    sums = error_rates([("ab c", ""), ("", "")])
    assert sums == ErrorSums(insertions=4, word_errors=2, exact_lines=1, lines=2)
    assert sums.character_error_rate == 4
    assert sums.word_error_rate == 2
    assert error_rates([("", "abc")]) == ErrorSums(
        deletions=3, characters=3, word_errors=1, words=1, lines=1
    )
    assert error_rates([]).exact_line_rate == 0


def test_confusions_count_every_error() -> None:
    assert confusions([("s", "ſ"), ("xs", "ſ"), ("a", "ab")]) == Counter(
        {("ſ", "s"): 2, ("", "x"): 1, ("b", ""): 1}
    )
    pairs = draw_pairs()
    counts, sums = confusions(pairs), error_rates(pairs)
    assert sum(counts.values()) == sums.character_errors
    assert sum(n for (expected, _), n in counts.items() if not expected) == sums.insertions
    assert sum(n for (_, read), n in counts.items() if not read) == sums.deletions
    assert all(expected != read for expected, read in counts)


def test_the_interval_holds_the_rate_and_narrows() -> None:
    pairs = draw_pairs(400)
    few, many = bootstrap_interval(pairs[:40]), bootstrap_interval(pairs)
    rate = error_rates(pairs).character_error_rate
    assert many[0] < rate < many[1]
    assert 2 < (few[1] - few[0]) / (many[1] - many[0]) < 5  # About the root of ten.
    assert bootstrap_interval(pairs) == many
    assert bootstrap_interval(pairs, seed=1) != many
    wide = bootstrap_interval(pairs, level=0.99)
    assert wide[0] < many[0] < many[1] < wide[1]
    assert bootstrap_interval([("a", "a")]) == (0, 0)


@pytest.mark.parametrize("options", [{"level": 1.0}, {"resamples": 0}, {"pairs": []}])
def test_bad_arguments_are_named(options: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        bootstrap_interval(**({"pairs": [("a", "b")]} | options))
    with pytest.raises(ValueError, match="pairs: expected a string as reference, received None"):
        error_rates([("a", None)])  # type: ignore[list-item]
