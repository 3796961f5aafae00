"""Vocabulary of a language model: tokens and their ids, words or characters."""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.text_lines.alphabet import name_character

EOS = "<eos>"
UNKNOWN = "<unk>"
_TOLD = 8


class UnknownTokens(ValueError):
    """A text with tokens that a vocabulary without ``<unk>`` lacks.

    Attributes:
        counts: token -> how often it occurs, most first.
    """

    def __init__(self, where: str, counts: dict[str, int]):
        super().__init__(
            f"{where}: expected tokens of the vocabulary, which the training text gives, received "
            f"{describe_unknown(counts)}; train on texts that have them, or set "
            f"with_unknown=True to give all of them one id"
        )
        self.where = where
        self.counts = counts

    def __reduce__(self) -> tuple[type["UnknownTokens"], tuple[str, dict[str, int]]]:
        return type(self), (self.where, self.counts)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with the ids 0..V-1 in their order.

    >>> vocabulary = Vocabulary.from_tokens("to be or not to be".split(), with_unknown=True)
    >>> vocabulary.tokens
    ('<unk>', 'be', 'to', 'not', 'or')
    >>> vocabulary.encode(["to", "see"]).tolist(), vocabulary.unknown(["to", "see"])
    ([2, 0], {'see': 1})

    Attributes:
        tokens: V different words or characters.

    Raises:
        ValueError: no tokens, an empty one, or one that stands twice.
    """

    tokens: tuple[str, ...]

    def __init__(self, tokens: Sequence[str]):
        found = tuple(tokens)
        if not found or any(not isinstance(token, str) or not token for token in found):
            raise ValueError(
                f"tokens: expected texts that are not empty, received {found[:3]!r:.80}"
            )
        if twice := [token for token, count in Counter(found).items() if count > 1]:
            raise ValueError(f"tokens: expected each once, received {twice[0]!r} again")
        object.__setattr__(self, "tokens", found)

    @classmethod
    def from_tokens(cls, tokens: Iterable[str], *, with_unknown: bool = False) -> "Vocabulary":
        """Returns the vocabulary of a training text: frequent tokens first, then by code point.

        Args:
            tokens: of the text.
            with_unknown: put ``<unk>`` first, for tokens that the text lacks, unless the text
                itself has it, as Penn Treebank's does.

        Raises:
            ValueError: no tokens.
        """
        counts = Counter(tokens)
        if not counts:
            raise ValueError("tokens: expected a text with tokens, received none")
        ordered = sorted(counts, key=lambda token: (-counts[token], token))
        return cls([UNKNOWN, *ordered] if with_unknown and UNKNOWN not in counts else ordered)

    @classmethod
    def from_characters(cls, text: str, *, with_unknown: bool = False) -> "Vocabulary":
        """Returns the vocabulary of a text's code points, sorted, behind ``<unk>`` if it has it.

        Raises:
            ValueError: an empty text.
        """
        if not text:
            raise ValueError("text: expected characters, received none")
        return cls([*([UNKNOWN] if with_unknown else []), *sorted(set(text))])

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    @property
    def unknown_id(self) -> int | None:
        """Id of ``<unk>``; None if the vocabulary has none."""
        return self._ids.get(UNKNOWN)

    def encode(self, tokens: Sequence[str], where: str = "tokens") -> np.ndarray:
        """Returns the ids, (N,) int32; of tokens that the vocabulary lacks that of ``<unk>``.

        Args:
            tokens: words, or a string of characters.
            where: begin of the error, as the file.

        Raises:
            UnknownTokens: unknown tokens, and no ``<unk>``; it names and counts them.
        """
        if isinstance(tokens, str) and tokens:
            return self._encode_characters(tokens, where)
        if self.unknown_id is None and (missing := self.unknown(tokens)):
            raise UnknownTokens(where, missing)
        unknown = self.unknown_id
        return np.fromiter((self._ids.get(t, unknown) for t in tokens), np.int32, len(tokens))

    def decode(self, ids: Iterable[int] | np.ndarray) -> list[str]:
        """Returns the tokens of ids; of characters "".join gives the text.

        Raises:
            ValueError: an id out of range.
        """
        numbers = [int(number) for number in ids]
        if wrong := [number for number in numbers if not 0 <= number < len(self)]:
            raise ValueError(f"ids: expected 0 to {len(self) - 1}, received {wrong[0]}")
        return [self.tokens[number] for number in numbers]

    def unknown(self, tokens: Iterable[str]) -> dict[str, int]:
        """Returns the tokens that the vocabulary lacks -> their number, most first."""
        missing = [(-n, token) for token, n in Counter(tokens).items() if token not in self._ids]
        return {token: -negative for negative, token in sorted(missing)}

    def to_json(self) -> list[str]:
        """Returns the tokens as a list, for JSON."""
        return list(self.tokens)

    @classmethod
    def from_json(cls, content: Any) -> "Vocabulary":
        """Returns the vocabulary that ``to_json`` gave.

        Raises:
            ValueError: another content.
        """
        if not isinstance(content, list | tuple):
            raise ValueError(
                f"content: expected a list of tokens as Vocabulary.to_json returns it, received "
                f"{type(content).__name__}"
            )
        return cls(content)

    def _encode_characters(self, text: str, where: str) -> np.ndarray:
        """Returns the ids of characters; a million of them in milliseconds."""
        # A lone surrogate, which some broken texts have, is a code point as well.
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        found, inverse = np.unique(points, return_inverse=True)
        characters = [chr(point) for point in found]
        unknown = self.unknown_id
        if unknown is None and any(character not in self._ids for character in characters):
            raise UnknownTokens(where, self.unknown(text))
        ids = [self._ids.get(character, unknown) for character in characters]
        return np.array(ids, np.int32)[inverse]

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}


def describe_unknown(counts: dict[str, int]) -> str:
    """Returns unknown tokens with their counts for a message, the first eight.

    >>> describe_unknown({"ß": 2, "word": 1})
    "2 others: 'ß' (U+00DF LATIN SMALL LETTER SHARP S) 2 times, 'word' once"
    """
    shown = [
        (name_character(token) if len(token) == 1 else repr(token))
        + (" once" if count == 1 else f" {count:,} times")
        for token, count in [*counts.items()][:_TOLD]
    ]
    more = ", ..." if len(counts) > _TOLD else ""
    return f"{len(counts)} others: {', '.join(shown)}{more}"
