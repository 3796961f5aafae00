"""Words of a captioner's token ids, and their text."""

import dataclasses
import json
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


def join_words(words: Iterable[str]) -> str:
    """Joins words by spaces."""
    return " ".join(words)
