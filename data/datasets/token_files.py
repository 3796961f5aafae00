"""Texts as streams of tokens: words of line-by-line corpora, and characters.

Words, as of Penn Treebank's three files (Mikolov et al., 2010) and WikiText: the words of each line
between blanks, then ``<eos>``; an empty line is an ``<eos>`` alone. Characters: every code point of
the text as it is, line ends and blanks too.

The vocabulary comes from the training text alone. What other texts have beyond it is ``<unk>``
where the vocabulary has that, and is told in the notes; otherwise it is refused, named and counted.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from data.files import read_text
from data.series.vocabulary import EOS, Vocabulary, describe_unknown

Unit = Literal["word", "character"]
SPLITS = ("train", "validation", "test")

_NAMES = {"train": ("train",), "validation": ("valid", "validation", "val"), "test": ("test",)}
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_FORMS = ("ptb.{}.txt", "{}.txt", "wiki.{}.tokens", "ptb.char.{}.txt")


@dataclass(frozen=True, eq=False)
class TokenTexts:
    """Texts of a corpus as ids.

    Attributes:
        vocabulary: of the training text, or the one that was given.
        texts: split -> (N,) int32 ids, one stream.
        notes: sentences about unknown tokens.
    """

    vocabulary: Vocabulary
    texts: Mapping[str, np.ndarray]
    notes: tuple[str, ...] = field(default=(), repr=False)


def find_corpus(root: str | os.PathLike[str]) -> dict[str, Path]:
    """Returns the files of a folder by split: ``ptb.train.txt`` …, ``train.txt`` … or WikiText's.

    Otherwise those of one corpus with another name, as ``mytrain.txt``, ``myvalid.txt`` and perhaps
    ``mytest.txt``.

    Raises:
        FileNotFoundError: no such folder, no training file, or no validation file beside it.
        ValueError: several corpora.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"{root}: expected a text file or a folder of texts, there is none")
    begins = sorted(path.name.removesuffix("train.txt") for path in root.glob("*train.txt"))
    others: list[dict[str, Path]] = []
    for form in (*_FORMS, *(f"{_literal(begin)}{{}}.txt" for begin in begins)):
        files = {
            split: root / form.format(name)
            for split, names in _NAMES.items()
            for name in names
            if (root / form.format(name)).is_file()
        }
        if {"train", "validation"} <= files.keys():
            if form in _FORMS:
                return files
            others.append(files)
    if len(others) > 1:
        names = ", ".join(files["train"].name for files in others)
        raise ValueError(f"{root}: expected one corpus, received {names}; give each its own folder")
    if others:
        return others[0]
    shown = ", ".join(form.format("train") for form in _FORMS)
    raise FileNotFoundError(
        f"{root}: expected a training file named {shown} or *train.txt, and its validation file, "
        f"as {_FORMS[0].format('valid')}, received no such pair"
    )


def _literal(text: str) -> str:
    """Returns a text for ``str.format`` that gives it back."""
    return text.replace("{", "{{").replace("}", "}}")


def read_tokens(
    files: Mapping[str, str | os.PathLike[str]],
    unit: Unit = "word",
    *,
    with_unknown: bool = False,
    vocabulary: Vocabulary | None = None,
) -> TokenTexts:
    """Reads the texts of a corpus.

    Args:
        files: split -> its file, as of ``find_corpus``.
        unit: "word" or "character".
        with_unknown: give the vocabulary an ``<unk>`` if the training text has none.
        vocabulary: of an earlier training; None: that of the file of "train".

    Raises:
        FileNotFoundError: there is no such file.
        UnknownTokens: a text with tokens that training never had, and no ``<unk>``.
        ValueError: an unknown split or unit, no training file, an empty text, or one that is not
            UTF-8.
    """
    _check(files, unit)
    return _encode(
        {split: (str(path), read_text(path)) for split, path in files.items()},
        unit,
        with_unknown,
        vocabulary,
    )


def read_and_cut(
    path: str | os.PathLike[str],
    unit: Unit = "character",
    *,
    shares: Sequence[float] = (0.9, 0.1),
    with_unknown: bool = False,
    vocabulary: Vocabulary | None = None,
) -> TokenTexts:
    """Reads one file and cuts it into consecutive parts, as tiny Shakespeare is by custom.

    Args:
        path: the file.
        unit: "word", cut at the end of the line, or "character".
        shares: of train, validation and, if there are three, test; with the sum 1.
        with_unknown: as of ``read_tokens``.
        vocabulary: as of ``read_tokens``.

    Raises:
        FileNotFoundError: there is no such file.
        UnknownTokens: as ``read_tokens``.
        ValueError: other shares, an unknown unit, or a text that is too short for them.
    """
    if len(shares) not in (2, 3) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(
            f"shares: expected two or three above 0 with the sum 1, as (0.9, 0.1), received "
            f"{tuple(shares)}"
        )
    names = SPLITS[: len(shares)]
    _check(dict.fromkeys(names, path), unit)
    text = read_text(path)
    pieces: Sequence[str] = text if unit == "character" else _LINES.findall(text)
    # 0.6 + 0.2 is a little less than 0.8.
    bounds = [0, *(int(end * len(pieces) + 1e-6) for end in np.cumsum(shares)[:-1]), len(pieces)]
    if text.strip() and len({*bounds}) < len(bounds):
        kind = "characters" if unit == "character" else "lines, at whose ends words are cut"
        raise ValueError(
            f"{path}: expected enough {kind}, for the shares {tuple(shares)}, received "
            f"{len(pieces)}; give a longer text, or a folder with a text for each split"
        )
    parts = {
        name: (f"{path}, {name}", "".join(pieces[bounds[i] : bounds[i + 1]]))
        for i, name in enumerate(names)
    }
    return _encode(parts, unit, with_unknown, vocabulary)


def split_words(text: str) -> list[str]:
    r"""Returns the words of a text between blanks, with ``<eos>`` at the end of each line.

    >>> split_words("no it was n't\n\nblack monday\n")
    ['no', 'it', 'was', "n't", '<eos>', '<eos>', 'black', 'monday', '<eos>']
    """
    # splitlines would also cut at form feeds and U+2028, which corpora hold within lines.
    lines = text.replace("\r\n", "\n").split("\n")
    if not lines[-1].strip():
        lines.pop()
    return [word for line in lines for word in (*line.split(), EOS)]


def _check(files: Mapping[str, object], unit: str) -> None:
    if unit not in ("word", "character"):
        raise ValueError(f"unit: expected 'word' or 'character', received {unit!r}")
    if unknown := sorted(files.keys() - set(SPLITS)):
        raise ValueError(
            f"files: expected splits among {', '.join(SPLITS)}, received {', '.join(unknown)}"
        )


def _encode(
    texts: Mapping[str, tuple[str, str]],
    unit: Unit,
    with_unknown: bool,
    vocabulary: Vocabulary | None,
) -> TokenTexts:
    """Returns the ids of texts: split -> (its name for errors, the text)."""
    for where, text in texts.values():
        if not text.strip():
            raise ValueError(f"{where}: expected a text, received an empty one")
    if vocabulary is None:
        if "train" not in texts:
            raise ValueError(
                f"files: expected a training text, whose tokens are the vocabulary, received "
                f"{', '.join(texts) or 'none'}; or give the vocabulary"
            )
        text = texts["train"][1]
        if unit == "word":
            vocabulary = Vocabulary.from_tokens(split_words(text), with_unknown=with_unknown)
        else:
            vocabulary = Vocabulary.from_characters(text, with_unknown=with_unknown)
    ids, notes = {}, []
    for split, (where, text) in texts.items():
        tokens = split_words(text) if unit == "word" else text
        # A training text has no others, unless the vocabulary is an earlier one.
        unknown = vocabulary.unknown(tokens) if vocabulary.unknown_id is not None else {}
        if unknown:
            notes.append(
                f"{where}: <unk> for {sum(unknown.values()):,} of {len(tokens):,} tokens, "
                f"{describe_unknown(unknown)}"
            )
        ids[split] = vocabulary.encode(tokens, where)
    return TokenTexts(vocabulary, ids, tuple(notes))
