"""Embedded data set of text lines: random access to any number of lines, without files."""

import functools
import operator
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.batches import TranscriptExample
from data.loader import describe_examples
from data.text_lines.alphabet import Alphabet, name_characters, normalise
from data.text_lines.rendering import (
    LineStyle,
    draw_style,
    line_width,
    render_line,
    undrawable,
)
from data.text_lines.texts import ALPHABET, draw_text

SPLIT_SIZES: dict[str, int] = {"train": 20_000, "validation": 500, "test": 1000}
"""Split -> default number of lines."""
_TEXT, _STYLE = 0, 1  # Streams of random numbers of a line.


def _has_controls(text: str) -> bool:
    """Returns True for a text with control characters, as tabs and the ends of lines."""
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)


class SyntheticLines:
    """One split of the embedded lines; picklable.

    Line ``i`` depends only on (seed, split, ``i``), not on the number of lines. Texts are drawn by
    ``data.text_lines.texts``, no text of a split occurs in another one; or they are given, and line
    ``i`` shows text ``i`` modulo their number. At a height of 32 pixels half of the lines of drawn
    texts are wider than 148 pixels, and one of a hundred is wider than 268.

    >>> lines = SyntheticLines("train", texts=["Haus 7", "Hof"], height=32)
    >>> image, tokens = lines[1]["image"], lines[1]["tokens"]
    >>> image.shape == (32, lines.lengths()[1], 1), lines.alphabet.decode(tokens)
    (True, 'Hof')

    Args:
        split: "train", "validation" or "test".
        num_examples: number of lines, at least 1; None takes that of ``SPLIT_SIZES``, or of the
            given texts.
        texts: given texts, composed (NFC) before they are drawn; None: drawn ones.
        alphabet: characters with their ids; None: ``ALPHABET`` of the drawn texts, or that of the
            given ones.
        height: of the images, pixels, at least 8.
        font: file of a scalable font; empty: the one that Pillow carries, which draws ASCII alone.
        seed: of the whole data set, at least 0.

    Raises:
        FileNotFoundError: there is no such font.
        ValueError: an unknown split, a number out of range, no text or an empty one, characters
            that the font cannot draw or that the alphabet lacks, which are named.
    """

    def __init__(
        self,
        split: str = "train",
        num_examples: int | None = None,
        *,
        texts: Sequence[str] | None = None,
        alphabet: Alphabet | None = None,
        height: int = 48,
        font: str = "",
        seed: int = 0,
    ):
        if split not in SPLIT_SIZES:
            raise ValueError(f"split: expected one of {', '.join(SPLIT_SIZES)}, received {split!r}")
        self.texts = None if texts is None else tuple(normalise(text) for text in texts)
        if self.texts is not None and not all(self.texts or [""]):
            raise ValueError("texts: expected at least one, and none that is empty")
        if broken := [text for text in self.texts or () if _has_controls(text)]:
            raise ValueError(
                f"texts: expected one line each, without control characters, received "
                f"{broken[0][:60]!r}"
            )
        if num_examples is None:
            num_examples = SPLIT_SIZES[split] if self.texts is None else len(self.texts)
        for name, value, least in (
            ("num_examples", num_examples, 1),
            ("height", height, 8),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, received {value}")
        if alphabet is None:
            alphabet = ALPHABET if self.texts is None else Alphabet.from_texts(self.texts)
        needed = Alphabet.from_texts(self.texts) if self.texts is not None else ALPHABET
        if missing := alphabet.unknown(self.texts or needed.characters):
            raise ValueError(
                f"alphabet: expected the characters of the texts, received one without "
                f"{name_characters(missing)}"
            )
        if without := undrawable("".join(needed.characters), font):
            counts = {c: sum(text.count(c) for text in self.texts or ()) for c in without}
            raise ValueError(
                f"texts: expected characters that the font draws, received "
                f"{name_characters(counts)}; give font=FILE of one that has them"
            )
        self.split, self.num_examples, self.alphabet = split, num_examples, alphabet
        self.height, self.font, self.seed = height, font, seed

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"SyntheticLines({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON."""
        given = self.texts and describe_examples(range(len(self.texts)), self.texts)["order"]
        return {
            "split": self.split,
            "num_examples": self.num_examples,
            "texts": given or "drawn",
            "characters": len(self.alphabet),
            "height": self.height,
            "font": self.font,
            "line_seed": self.seed,
        }

    def __getitem__(self, index: int, /) -> TranscriptExample:
        """Draws line ``index``.

        Args:
            index: 0..len-1.

        Returns:
            ``image`` (height,W,1) uint8 in [0,255], dark ink on light paper, ``lengths`` = W,
            ``tokens`` (L,) int32 in 1..K, ``token_lengths``, ``mask`` = True, ``index``.

        Raises:
            IndexError: the index is out of range, as negative ones are.
        """
        text = self.text(index)
        image = render_line(text, self.style(index), self.height, self.font)
        tokens = self.alphabet.encode(text)
        return TranscriptExample(
            image=image,
            lengths=np.asarray(image.shape[1], np.int32),
            tokens=tokens,
            token_lengths=np.asarray(len(tokens), np.int32),
            mask=np.asarray(True),
            index=np.asarray(index, np.int32),
        )

    def text(self, index: int) -> str:
        """Returns the text of line ``index``.

        Raises:
            IndexError: the index is out of range.
        """
        if self.texts is None:
            return draw_text(self._rng(index, _TEXT), self.split)
        return self.texts[self._number(index) % len(self.texts)]

    def style(self, index: int) -> LineStyle:
        """Returns the style of line ``index``.

        Raises:
            IndexError: the index is out of range.
        """
        return draw_style(self._rng(index, _STYLE))

    def lengths(self) -> np.ndarray:
        """Returns the width of each line, (N,) int32 >= 1, without drawing them."""
        return self._sizes[0].copy()

    def token_lengths(self) -> np.ndarray:
        """Returns the number of characters of each line, (N,) int32 >= 1."""
        return self._sizes[1].copy()

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        sizes = np.empty((2, len(self)), np.int32)
        for index in range(len(self)):
            text = self.text(index)
            sizes[:, index] = (
                line_width(text, self.style(index), self.height, self.font),
                len(text),
            )
        return sizes

    def _number(self, index: int) -> int:
        number = operator.index(index)
        if not 0 <= number < self.num_examples:
            raise IndexError(f"index: expected 0..{self.num_examples - 1}, received {number}")
        return number

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        key = (tuple(SPLIT_SIZES).index(self.split), self._number(index), stream)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
