"""Alphabet of a text recogniser: the characters of texts and their ids.

A character is a Unicode code point of the composed form (NFC), in which "é" is one. A mark that has
no composed form with its letter, as the small e above a letter in old German prints, is a character
of its own, behind its letter.
"""

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BLANK = 0
"""Id of the CTC blank and of padding; no character has it."""


class UnknownCharacter(ValueError):
    """A text with a character that the alphabet lacks.

    Attributes:
        character: the first such character.
        text: the whole text.
    """

    def __init__(self, character: str, text: str):
        super().__init__(
            f"text: expected characters of the alphabet, received {name_character(character)} in "
            f"{text[:60]!r}; make the alphabet from texts that have it, or leave the text out"
        )
        self.character = character
        self.text = text

    def __reduce__(self) -> tuple[type["UnknownCharacter"], tuple[str, str]]:
        return type(self), (self.character, self.text)


@dataclass(frozen=True)
class Alphabet:
    """Characters of a recogniser, with the ids 1..K in the order of their code points.

    >>> alphabet = Alphabet.from_texts(["Haus", "Aas"])
    >>> alphabet.characters
    ('A', 'H', 'a', 's', 'u')
    >>> alphabet.encode("Haus").tolist(), alphabet.decode([1, 3, 4, 0])
    ([2, 3, 5, 4], 'Aas')

    Attributes:
        characters: K different code points of the composed form (NFC), sorted.

    Raises:
        ValueError: no characters, an entry that is not one code point or not in NFC, an order that
            is not that of the code points, or a character that stands twice.
    """

    characters: tuple[str, ...]

    def __init__(self, characters: Sequence[str]):
        found = tuple(characters)
        if not found:
            raise ValueError("characters: expected at least one, received none")
        for character in found:
            if not isinstance(character, str) or len(character) != 1:
                raise ValueError(
                    f"characters: expected one code point each, received {character!r}; "
                    "Alphabet.from_texts takes texts"
                )
            if not unicodedata.is_normalized("NFC", character):
                raise ValueError(
                    "characters: expected code points of the composed form (NFC), received "
                    f"{name_character(character)}; Alphabet.from_texts composes texts"
                )
        if twice := [name for name, count in Counter(found).items() if count > 1]:
            raise ValueError(
                f"characters: expected each once, received {name_character(twice[0])} twice"
            )
        if list(found) != sorted(found):
            raise ValueError(
                "characters: expected the order of their code points, received another; sort them"
            )
        object.__setattr__(self, "characters", found)

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "Alphabet":
        """Returns the alphabet of the characters in texts, which are composed (NFC) first.

        Raises:
            ValueError: the texts have no characters.
        """
        found = sorted({character for text in texts for character in normalise(text)})
        if not found:
            raise ValueError("texts: expected texts with characters, received none")
        return cls(found)

    def __len__(self) -> int:
        """Number of characters K, without the blank; a model has K + 1 classes."""
        return len(self.characters)

    def __contains__(self, character: object) -> bool:
        return character in self._ids

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text's characters, (L,) int32 in 1..K, after composing it (NFC).

        Raises:
            UnknownCharacter: the text has a character that the alphabet lacks.
        """
        composed = normalise(text)
        try:
            return np.array([self._ids[character] for character in composed], np.int32)
        except KeyError as error:
            raise UnknownCharacter(error.args[0], composed) from None

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """Returns the text of character ids; blanks (0), such as padding, are left out.

        Args:
            ids: (L,) integers in 0..K, repeated ones meaning repeated characters.

        Raises:
            ValueError: an id out of range.
        """
        numbers = [int(number) for number in ids]
        if wrong := [number for number in numbers if not 0 <= number <= len(self)]:
            raise ValueError(f"ids: expected 0 to {len(self)}, received {wrong[0]}")
        return "".join(self.characters[number - 1] for number in numbers if number != BLANK)

    def unknown(self, texts: Iterable[str]) -> dict[str, int]:
        """Returns the characters of texts that the alphabet lacks -> their number, most first.

        >>> Alphabet.from_texts(["Haus"]).unknown(["Maus", "Mäuse"])
        {'M': 2, 'e': 1, 'ä': 1}
        """
        counts = Counter(character for text in texts for character in normalise(text))
        missing = [(-count, name) for name, count in counts.items() if name not in self._ids]
        return {name: -negative for negative, name in sorted(missing)}

    def to_json(self) -> list[str]:
        """Returns the characters as a list, for JSON."""
        return list(self.characters)

    @classmethod
    def from_json(cls, content: Any) -> "Alphabet":
        """Returns the alphabet that ``to_json`` gave.

        Raises:
            ValueError: another content.
        """
        if not isinstance(content, list | tuple):
            raise ValueError(
                f"content: expected a list of characters as Alphabet.to_json returns it, received "
                f"{type(content).__name__}"
            )
        return cls(content)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.characters, BLANK + 1)}


def normalise(text: str) -> str:
    """Returns a text in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text)


def name_character(character: str) -> str:
    """Returns a character for a message, with its code point and Unicode's name.

    >>> name_character("ſ")
    "'ſ' (U+017F LATIN SMALL LETTER LONG S)"
    """
    name = unicodedata.name(character, "")
    # A mark alone would stand on the quotation mark before it.
    shown = ascii(character) if unicodedata.combining(character) else repr(character)
    return f"{shown} (U+{ord(character):04X}{' ' if name else ''}{name})"


def name_characters(counts: dict[str, int]) -> str:
    """Returns characters with their counts for a message, the first eight.

    >>> name_characters({"M": 2, "e": 1})
    "'M' (U+004D) 2 times, 'e' (U+0065) once"
    """
    shown = [
        f"{ascii(name) if unicodedata.combining(name) else repr(name)} (U+{ord(name):04X}) "
        + ("once" if count == 1 else f"{count:,} times")
        for name, count in [*counts.items()][:8]
    ]
    return ", ".join(shown) + (", ..." if len(counts) > 8 else "")


def describe_change(there: Alphabet, here: Alphabet) -> list[str]:
    """Returns lines that say which characters a new alphabet keeps, adds and drops.

    >>> for line in describe_change(Alphabet("abc"), Alphabet("bcd")):
    ...     print(line)
    alphabet      the blank and 2 characters keep their weights: 'b', 'c'
    alphabet      1 character is new: 'd'
    alphabet      1 character is dropped: 'a'
    """
    kept = [c for c in here.characters if c in there]
    new = [c for c in here.characters if c not in there]
    dropped = [c for c in there.characters if c not in here]

    def named(characters: Sequence[str]) -> str:
        shown = [ascii(c) if unicodedata.combining(c) else repr(c) for c in characters]
        return f": {', '.join(shown)}" if shown else ""

    def counted(characters: Sequence[str]) -> str:
        one = len(characters) == 1
        return f"{len(characters)} {'character is' if one else 'characters are'}"

    some = "character keeps" if len(kept) == 1 else "characters keep"
    return [
        f"alphabet      the blank and {len(kept)} {some} their weights{named(kept)}",
        f"alphabet      {counted(new)} new{named(new)}",
        f"alphabet      {counted(dropped)} dropped{named(dropped)}",
    ]


def check_texts(texts: Sequence[str], alphabet: Alphabet) -> None:
    """Refuses texts with characters that an alphabet lacks.

    Raises:
        ValueError: it names the characters, and counts the texts that have them.
    """
    missing = alphabet.unknown(texts)
    if missing:
        lines = sum(1 for text in texts if alphabet.unknown([text]))
        raise ValueError(
            f"texts: expected characters of the alphabet, received {len(missing)} others in "
            f"{lines} of {len(texts)} texts: {name_characters(missing)}; make the alphabet from "
            "texts that have them, or set unknown='drop' to leave them out"
        )
