"""Captions as words and token ids: word splitting, vocabulary, padding."""

import functools
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex

from data.files import read_json, write_atomically

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL_WORDS = ("<pad>", "<bos>", "<eos>", "<unk>")
"""Words of the ids 0 to 3."""

_FORMAT = 1

# Scripts written without spaces between words: each character is a word, Katakana runs are one.
_KATAKANA = r"[\p{Katakana}\u30fc\uff70&&\p{L}]"
_UNSPACED = r"[[\p{Han}\p{Hiragana}\p{Line_Break=Complex_Context}]&&[\p{L}\p{Nl}]]"
# What belongs to the letter before it: combining marks, joiners, the vowel sign am of Thai and Lao,
# half-width voicing marks, the Armenian and Hebrew signs that stand inside of words, and consonants
# that are stacked below it. A non-joiner at the end of a word has no effect, so it belongs to a
# word only before what continues that word.
_SIGNS = r"[\p{M}\u180e\u200d\u0e33\u0eb3\uff9e\uff9f\u055b\u055c\u055e\u05f3]"
_LETTER = rf"[[\p{{L}}\p{{N}}]--{_KATAKANA}--{_UNSPACED}]"  # of scripts with spaces


def _marks(following: str) -> str:
    """Returns the pattern of a letter's signs, if ``following`` letters continue its word."""
    following = f"[{following}\\p{{M}}]"
    return rf"(?:[\u17d2\u1039\u1a60]\p{{L}}|{_SIGNS}|\u200c++(?={following}))*+"


_CHARACTER = rf"(?:(?:{_KATAKANA}{_marks(_KATAKANA)})++|{_UNSPACED}{_marks('')})"
_SPACED = rf"(?:{_LETTER}{_marks(_LETTER)})++"
# "'s" is a word; other apostrophes and hyphens belong to the word that contains them, as do the
# Catalan middle dot and the gershayim of Hebrew acronyms.
_POSSESSIVE = r"'s(?![\p{L}\p{N}\p{M}_])"


def _words(letters: str) -> regex.Pattern[str]:
    return regex.compile(
        rf"{letters}(?:(?:[-\u00b7\u2027]|(?!{_POSSESSIVE})'){letters}"
        rf"|(?<=\p{{Hebrew}}\p{{M}}*)[\"\u05f4](?=\p{{Hebrew}}){letters})*"
        rf"|{_POSSESSIVE}|{_CHARACTER}",
        regex.VERSION1,
    )


_WORD, _ASCII_WORD = _words(_SPACED), _words("[a-z0-9]++")  # The latter is four times as fast.
# Soft hyphens and marks of direction do not divide words; a space of zero width does.
_INVISIBLE = regex.compile(r"(?![\u180e\u200b-\u200d])\p{Cf}")
_JOINERS = regex.compile(r"[\u200c\u200d]")
# What follows a letter of an alphabet in which joiners have no effect.
_JOINED = regex.compile(r"(?<=[\p{Latin}\p{Greek}\p{Cyrillic}])[\p{M}\u200c\u200d]++")
_CHARACTERS = regex.compile(_CHARACTER, regex.VERSION1)
# Two runs of Katakana keep their space, and so does what would become one character without it.
_NEEDLESS_SPACE = regex.compile(
    rf"(?<![\u17d2\u1039\u1a60]) (?![\u0e33\u0eb3])"
    rf"(?:(?<={_UNSPACED}{_SIGNS}* )(?={_CHARACTER})|(?<={_KATAKANA}{_SIGNS}* )(?={_UNSPACED}))",
    regex.VERSION1,
)
_CJK_PUNCTUATION = regex.compile(r"[\p{P}&&[\u3001-\u303f\u30fb\uff01-\uff65]]", regex.VERSION1)

_OTHER_SIDE = {"left": "right", "right": "left"}
_SIDE = regex.compile(r"\b(?:left|right)\b", regex.IGNORECASE)


def split_words(caption: str) -> list[str]:
    """Splits a caption into the words that models are trained on.

    Words are in lower case and in Unicode's composed form (NFC), and have all their combining
    marks. Punctuation is dropped, except hyphens and apostrophes within a word; the possessive is a
    word of its own. Joined by spaces, the words pass through the scorers' PTB tokeniser like the
    caption itself without punctuation.

    Words end where Unicode's default word boundaries are (UAX #29), with these deviations: words
    with a hyphen are kept, and full stops, colons, commas and underscores always end a word. In
    scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) UAX #29
    leaves words to a dictionary, so each character with its marks is a word, and each run of
    Katakana; ``join_words`` joins them again.

    >>> split_words("A man's T-shirt, snow-covered.")
    ['a', 'man', "'s", 't-shirt', 'snow-covered']
    >>> split_words("कुत्ता दौड़ता है।")
    ['कुत्ता', 'दौड़ता', 'है']

    Args:
        caption: a sentence.

    Returns:
        Its words, possibly none.
    """
    text = caption.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if text.isascii():
        return _ASCII_WORD.findall(text)
    text = _INVISIBLE.sub("", text)
    if _JOINERS.search(text):
        text = _JOINED.sub(lambda found: _JOINERS.sub("", found[0]), text)
    # Composed last, because a small letter may compose with a mark where the capital does not.
    return _WORD.findall(unicodedata.normalize("NFC", text))


def join_words(words: Iterable[str]) -> str:
    """Joins words by spaces, without spaces between characters of scripts that have none.

    >>> join_words(["两", "只", "狗", "<unk>", "a", "dog"])
    '两只狗 <unk> a dog'
    """
    return _NEEDLESS_SPACE.sub("", " ".join(words))


def separate_words(caption: str) -> str:
    """Writes a caption so that spaces separate words in every script, as ``split_words`` does.

    Latin text is only composed (NFC). Punctuation of Chinese and Japanese becomes spaces.

    >>> separate_words("两只狗。").split()
    ['两', '只', '狗']
    """
    if caption.isascii():
        return caption
    text = _CJK_PUNCTUATION.sub(" ", unicodedata.normalize("NFC", caption))
    return _CHARACTERS.sub(r" \g<0> ", text)


def mirror_caption(caption: str) -> str:
    """Returns the caption of the mirrored image: "left" and "right" are exchanged.

    Other meanings of the two words ("nothing is left") are exchanged as well.
    """
    return _SIDE.sub(lambda found: _OTHER_SIDE[found[0].lower()], caption)


@dataclass(frozen=True)
class Vocabulary:
    """Mapping of words to ids: 0 to 3 are ``SPECIAL_WORDS``, then follow ``words``.

    Two vocabularies with the same words in the same order are equal.

    >>> vocabulary = Vocabulary.from_captions(['A dog runs.', 'The dog.'], min_count=1)
    >>> vocabulary.words
    ('dog', 'a', 'runs', 'the')
    >>> vocabulary.encode('a dog barks')
    [5, 4, 3, 2]
    >>> vocabulary.decode([5, 4, 3, 2])
    'a dog <unk>'

    Attributes:
        words: the words from id 4 on, by descending frequency.

    Raises:
        ValueError: a word is repeated, special, or not a single word for ``split_words``.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        repeated = [word for word, count in Counter(self.words).items() if count > 1]
        if repeated:
            raise ValueError(f"words: expected each once, received {_some(repeated)} repeatedly")
        strange = [word for word in self.words if split_words(word) != [word]]
        if strange:
            raise ValueError(
                f"words: expected words as split_words gives them, received {_some(strange)}"
            )

    @classmethod
    def from_captions(cls, captions: Iterable[str], min_count: int = 5) -> "Vocabulary":
        """Returns the vocabulary of captions, which should be those of the training split alone.

        Args:
            captions: the sentences.
            min_count: rarer words become ``<unk>``; at least 1.

        Returns:
            The words by descending frequency, those of equal frequency in alphabetical order.

        Raises:
            ValueError: ``min_count`` is below 1, or no word is that frequent.
        """
        if min_count < 1:
            raise ValueError(f"min_count: expected at least 1, received {min_count}")
        counts = Counter(word for caption in captions for word in split_words(caption))
        frequent = [(-count, word) for word, count in counts.items() if count >= min_count]
        if not frequent:
            raise ValueError(
                f"captions: expected words that occur {min_count} times, "
                f"received {len(counts)} different words, all rarer"
            )
        return cls(tuple(word for _, word in sorted(frequent)))

    def __len__(self) -> int:
        """Returns the number of ids, including the special words."""
        return len(SPECIAL_WORDS) + len(self.words)

    def __repr__(self) -> str:
        # grain compares sources by it, and messages should not list thousands of words.
        return f"Vocabulary({len(self)} ids, {self.digest})"

    def encode(self, caption: str) -> list[int]:
        """Returns the ids of a caption's words, ``<unk>`` for unknown ones, and ``<eos>``."""
        return [self._ids.get(word, UNK) for word in split_words(caption)] + [EOS]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the words of ids up to the first ``<eos>``, joined by ``join_words``.

        Args:
            ids: integers in 0..len - 1; ``<pad>`` and ``<bos>`` are left out.

        Raises:
            ValueError: an id before the first ``<eos>`` is out of range.
        """
        words = []
        for number in map(int, ids):
            if number == EOS:
                break
            if not 0 <= number < len(self):
                raise ValueError(f"ids: expected 0 to {len(self) - 1}, received {number}")
            if number not in (PAD, BOS):
                words.append(self.word(number))
        return join_words(words)

    def word(self, number: int) -> str:
        """Returns the word of id ``number`` in 0..len - 1, possibly a special one."""
        first = len(SPECIAL_WORDS)
        return SPECIAL_WORDS[number] if number < first else self.words[number - first]

    @functools.cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of a hash that identifies the vocabulary."""
        text = json.dumps(self.words, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, len(SPECIAL_WORDS))}

    def save(self, path: str | Path) -> None:
        """Writes the vocabulary as JSON, to be kept beside the model's checkpoints."""
        content = {"format": _FORMAT, "digest": self.digest, "words": self.words}
        text = json.dumps(content, ensure_ascii=False) + "\n"
        write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Reads a file that ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a vocabulary, or was changed after it was written.
        """
        form = "a vocabulary as Vocabulary.save writes it"
        expected = f"{path}: expected {form}"
        content: Any = read_json(path, form)
        words = content.get("words") if isinstance(content, dict) else None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{expected}, received no list of words")
        if content.get("format") != _FORMAT:
            raise ValueError(f"{expected}, format {_FORMAT}, received {content.get('format')!r}")
        vocabulary = cls(tuple(words))
        if vocabulary.digest != content.get("digest"):
            raise ValueError(
                f"{expected}, received words of digest {vocabulary.digest} under the digest "
                f"{content.get('digest')!r}"
            )
        return vocabulary

    def require_same(self, other: "Vocabulary") -> None:
        """Checks that the ids of this vocabulary, a checkpoint's, mean the same words in another.

        Args:
            other: the vocabulary of the data.

        Raises:
            ValueError: they differ; the message names the differences.
        """
        if self.words == other.words:
            return
        here, there = set(self.words), set(other.words)
        differences = [
            f"{name} {len(words)} words ({_some(sorted(words))})"
            for name, words in (("lacks", there - here), ("has besides", here - there))
            if words
        ]
        if not differences:
            number = next(i for i in range(len(self)) if self.word(i) != other.word(i))
            differences = [
                f"has the same words in another order: id {number} is "
                f"{self.word(number)!r} instead of {other.word(number)!r}"
            ]
        raise ValueError(
            f"vocabulary: expected the same words as the model was trained with; this one of "
            f"{len(self)} ids, compared with the other of {len(other)}, {'; '.join(differences)}"
        )


def pad_captions(
    captions: Sequence[Sequence[int] | np.ndarray], num_captions: int, num_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stacks and pads the captions of one example.

    Args:
        captions: ids of each caption, as ``Vocabulary.encode`` returns them.
        num_captions: C, at least the number of captions.
        num_tokens: L, at least the length of the longest caption.

    Returns:
        ``tokens`` (C,L) int32, padded with ``<pad>`` (0), and ``token_lengths`` (C,) int32, 0 for
        absent captions.

    Raises:
        ValueError: there are more captions than C, or one is longer than L.
    """
    longest = max(map(len, captions), default=0)
    if len(captions) > num_captions or longest > num_tokens:
        raise ValueError(
            f"captions: expected at most {num_captions} of {num_tokens} tokens, received "
            f"{len(captions)}, the longest of {longest}"
        )
    tokens = np.full((num_captions, num_tokens), PAD, np.int32)
    token_lengths = np.zeros(num_captions, np.int32)
    for row, caption in enumerate(captions):
        tokens[row, : len(caption)] = caption
        token_lengths[row] = len(caption)
    return tokens, token_lengths


def _some(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:3])) + (", ..." if len(items) > 3 else "")
