"""Words of a captioner's token ids, and their text; characters of a reader's."""

import dataclasses
import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path

SPECIAL_WORDS = ("<pad>", "<bos>", "<eos>", "<unk>")
"""Words of the ids 0 to 3."""


@dataclasses.dataclass(frozen=True)
class Words:
    """Words by token id; ids 0 to 3 are ``SPECIAL_WORDS``, then follow ``words``.

    >>> Words(("a", "dog")).text([4, 5])
    'a dog'
    """

    words: tuple[str, ...]
    end: int = 2
    """Id of the end token."""

    def __len__(self) -> int:
        return len(SPECIAL_WORDS) + len(self.words)

    def word(self, number: int) -> str:
        """Returns the word of an id, in 0..len - 1."""
        first = len(SPECIAL_WORDS)
        return SPECIAL_WORDS[number] if number < first else self.words[number - first]

    def text(self, ids: Iterable[int]) -> str:
        """Returns the words of ids as a text, without ``<pad>`` and ``<bos>``."""
        return join_words(self.word(number) for number in ids if number > 1)

    @classmethod
    def load(cls, path: str | Path) -> "Words":
        """Reads a ``vocabulary.json``.

        Raises:
          ValueError: the file is no vocabulary.
        """
        try:
            content = json.loads(Path(path).read_bytes())
            words = content["words"]
            if content["format"] != 1 or not all(isinstance(word, str) for word in words):
                raise ValueError("another format")
            return cls(tuple(words))
        except (ValueError, KeyError, TypeError, RecursionError, FileNotFoundError) as error:
            raise ValueError(f"{path}: expected a vocabulary of format 1 ({error})") from error


def read_alphabet(path: str | Path) -> tuple[str, ...]:
    """Returns the characters of an ``alphabet.json``, whose ids are 1, 2, ….

    Raises:
      ValueError: the file is no alphabet.
    """
    try:
        content = json.loads(Path(path).read_bytes())
        if not content or not isinstance(content, list):
            raise ValueError("no list")
        if not all(isinstance(item, str) and len(item) == 1 for item in content):
            raise ValueError("not all of its items are one character")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected a list of characters, as a run of a reader writes it ({error})"
        ) from error
    return tuple(content)


def join_words(words: Iterable[str]) -> str:
    """Joins words by spaces, without spaces between characters of scripts that have none.

    >>> join_words(["两", "只", "狗", "<unk>", "a", "dog"])
    '两只狗 <unk> a dog'
    """
    text, before = "", ""
    for word in words:
        text += word if not text or _touches(before, word) else " " + word
        before = word
    return text


def _ranges(text: str) -> tuple[tuple[int, int], ...]:
    pairs = (item.partition("-") for item in text.split())
    return tuple((int(first, 16), int(last or first, 16)) for first, _, last in pairs)


# Letters of scripts without spaces (Han, Hiragana, Thai, Lao, Khmer, Burmese …), each of which is a
# word, and Katakana, whose runs are one: of Unicode 17, as the package regex has them.
_UNSPACED = _ranges(
    "e01-e30 e32-e33 e40-e46 e81-e82 e84 e86-e8a e8c-ea3 ea5 ea7-eb0 eb2-eb3 ebd ec0-ec4 ec6 "
    "edc-edf 1000-102a 103f 1050-1055 105a-105d 1061 1065-1066 106e-1070 1075-1081 108e "
    "1780-17b3 17d7 17dc 1950-196d 1970-1974 1980-19ab 19b0-19c9 1a20-1a54 1aa7 3005 3007 "
    "3021-3029 3038-303b 3041-3096 309d-309f 3400-4dbf 4e00-9fff a9e0-a9e4 a9e6-a9ef a9fa-a9fe "
    "aa60-aa76 aa7a aa7e-aaaf aab1 aab5-aab6 aab9-aabd aac0 aac2 aadb-aadd f900-fa6d fa70-fad9 "
    "11700-1171a 11740-11746 16fe3 16ff2-16ff6 1b001-1b11f 1b123 1b132 1b150-1b152 20000-2a6df "
    "2a700-2b81e 2b820-2cead 2ceb0-2ebe0 2ebf0-2ee5d 2f800-2fa1d 30000-3134a 31350-33479"
)
_KATAKANA = _ranges(
    "30a1-30fa 30fc-30ff 31f0-31ff ff66-ff9d 1aff0-1aff3 1aff5-1affb 1affd-1affe 1b000 "
    "1b120-1b122 1b124-1b128 1b155 1b164-1b168"
)
# Signs that belong to the letter before them, beside combining marks, and those that stack.
_SIGNS = frozenset("\u180e\u200d\u0e33\u0eb3\uff9e\uff9f\u055b\u055c\u055e\u05f3")
_STACKS = ("\u17d2", "\u1039", "\u1a60")


def _touches(before: str, word: str) -> bool:
    """Returns whether two words of a caption are written without a space between them."""
    if (before + word).isascii() or before.endswith(_STACKS) or word[0] in "\u0e33\u0eb3":
        return False
    # The vowel sign am is a sign and, where it begins a word, a letter.
    found = (c for c in reversed(before) if not _is_sign(c) or _is_in(c, _UNSPACED))
    base = next(found, "")
    if _is_in(base, _UNSPACED):
        return _is_in(word[0], _UNSPACED) or _is_in(word[0], _KATAKANA)
    return _is_in(base, _KATAKANA) and _is_in(word[0], _UNSPACED)


def _is_sign(character: str) -> bool:
    return character in _SIGNS or unicodedata.category(character).startswith("M")


def _is_in(character: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return bool(character) and any(first <= ord(character) <= last for first, last in ranges)
