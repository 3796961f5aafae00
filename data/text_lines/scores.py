"""Errors of texts that were read, by RapidFuzz: characters, words, lines, confusions.

Character error rate is the Levenshtein distance divided by the characters of the references, both
summed over all lines; word error rate the same of words, which are what blank space separates.
Texts are composed (Unicode's NFC) first, and characters are code points. All is kept as sums, which
several processes add.
"""

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Iterable

import numpy as np
from rapidfuzz.distance import Levenshtein

Pair = tuple[str, str]
"""A text that was read and its reference."""


@dataclasses.dataclass(frozen=True)
class ErrorSums:
    """Errors of lines as sums; those of two sets of lines add up with ``+``.

    Attributes:
        substitutions: characters that were read as others.
        insertions: characters that were read but are not in the reference.
        deletions: characters of the reference that were not read.
        characters: characters of the references.
        word_errors: substituted, inserted and deleted words.
        words: words of the references.
        exact_lines: lines without an error.
        lines: all lines.
    """

    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    characters: int = 0
    word_errors: int = 0
    words: int = 0
    exact_lines: int = 0
    lines: int = 0

    def __add__(self, other: "ErrorSums") -> "ErrorSums":
        """Returns the sums of both sets of lines."""
        sums = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return ErrorSums(*(x + y for x, y in sums))

    @property
    def character_errors(self) -> int:
        """Substitutions, insertions and deletions."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def character_error_rate(self) -> float:
        """At least 0, above 1 for texts with many insertions; empty references divide by 1."""
        return self.character_errors / max(self.characters, 1)

    @property
    def word_error_rate(self) -> float:
        """At least 0, above 1 for texts with many insertions; empty references divide by 1."""
        return self.word_errors / max(self.words, 1)

    @property
    def exact_line_rate(self) -> float:
        """Fraction of the lines without an error, in [0,1]; 0 without lines."""
        return self.exact_lines / max(self.lines, 1)


def error_rates(pairs: Iterable[Pair]) -> ErrorSums:
    """Returns the summed errors of texts against their references.

    Insertions before an empty reference count as errors; it adds no characters and no words.

    >>> sums = error_rates([("Hous und Hof", "Haus und Hof"), ("", "")])
    >>> sums.substitutions, sums.characters, sums.word_errors, sums.words, sums.exact_lines
    (1, 12, 1, 3, 1)

    Args:
        pairs: (text, reference) of each line.

    Raises:
        ValueError: a text or reference that is not a string.
    """
    sums = ErrorSums()
    for text, reference in map(_compose, pairs):
        counts = Counter(edit.tag for edit in Levenshtein.editops(reference, text))
        words = reference.split()
        sums += ErrorSums(
            substitutions=counts["replace"],
            insertions=counts["insert"],
            deletions=counts["delete"],
            characters=len(reference),
            word_errors=Levenshtein.distance(words, text.split()),
            words=len(words),
            exact_lines=int(text == reference),
            lines=1,
        )
    return sums


def confusions(pairs: Iterable[Pair]) -> Counter[tuple[str, str]]:
    """Returns how often a character of the reference was read as another one.

    Where several shortest edits exist, one of them counts.

    >>> confusions([("Hofs", "Haus"), ("H", "H")]).most_common(3)
    [(('a', 'o'), 1), (('u', 'f'), 1)]

    Args:
        pairs: (text, reference) of each line.

    Returns:
        (character of the reference, character that was read) to the number of times; "" as the
        first for an inserted character, as the second for one that was not read.

    Raises:
        ValueError: a text or reference that is not a string.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for text, reference in map(_compose, pairs):
        for edit in Levenshtein.editops(reference, text):
            expected = "" if edit.tag == "insert" else reference[edit.src_pos]
            counts[expected, "" if edit.tag == "delete" else text[edit.dest_pos]] += 1
    return counts


def bootstrap_interval(
    pairs: Iterable[Pair], *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Returns a confidence interval of the character error rate, by resampling lines.

    The percentile bootstrap (Efron and Tibshirani 1993, section 13.3). Lines are drawn as if they
    were independent, so for lines of one book it is too narrow as an interval for other books.

    Args:
        pairs: (text, reference) of each line.
        seed: of the draws.
        resamples: number of draws.
        level: coverage, in (0,1).

    Returns:
        Lower and upper end.

    Raises:
        ValueError: no lines, a number outside of its range, or a text that is not a string.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected in (0,1), received {level}")
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, received {resamples}")
    lines = [
        (Levenshtein.distance(reference, text), len(reference))
        for text, reference in map(_compose, pairs)
    ]
    if not lines:
        raise ValueError("pairs: expected at least one line, received none")
    errors, characters = np.array(lines).T
    generator = np.random.default_rng(seed)
    rates = []
    for _ in range(resamples):
        drawn = generator.integers(len(lines), size=len(lines))
        rates.append(errors[drawn].sum() / max(characters[drawn].sum(), 1))
    lower, upper = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(lower), float(upper)


def _compose(pair: Pair) -> Pair:
    for name, value in zip(("text", "reference"), pair, strict=True):
        if not isinstance(value, str):
            raise ValueError(f"pairs: expected a string as {name}, received {value!r}")
    return unicodedata.normalize("NFC", pair[0]), unicodedata.normalize("NFC", pair[1])
