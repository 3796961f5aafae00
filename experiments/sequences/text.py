"""Configuration that the language models share: a text as one stream, its state carried along."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.datasets.token_files import (
    TokenTexts,
    find_corpus,
    read_and_cut,
    read_tokens,
    split_words,
)
from data.moving_shapes.source import MovingShapes
from data.series import StreamWindows
from data.series.vocabulary import UnknownTokens, Vocabulary, describe_unknown
from experiments.sequences.config import Problem, SequenceExperiment
from flaxnets.configuration import check_at_least, nearest, path_field

SPLITS = ("train", "validation", "test")
_END_OF_LINE = "<eos>"


@dataclasses.dataclass
class TextConfig:
    """Location of a text, and its windows."""

    dataset: str = "files"
    """``files``, or ``embedded``: captions of the embedded data set, one after another."""
    root: str = path_field(runtime=True)
    """A folder with ``*train.txt``, ``*valid.txt`` (or ``*validation.txt``, ``*val.txt``) and
    perhaps ``*test.txt``, or WikiText's ``wiki.train.tokens`` …; or one text file of any name,
    which is cut into ``shares``, of words at the ends of lines."""
    unit: str = "character"
    """``character`` or ``word``."""
    shares: tuple[float, ...] = (0.9, 0.1)
    """Of a single file: shares of train, validation and, if there are three, test."""
    with_unknown: bool = False
    """Tokens that the training text lacks become ``<unk>``; False: they are refused, named and
    counted, unless the training text itself has ``<unk>``."""
    window: int = 100
    """Steps of a window, after which gradients are cut off."""
    num_captions: int = 64
    """Embedded data only: captions of each split."""


@dataclasses.dataclass
class LanguageModelConfig(SequenceExperiment):
    """Hyper-parameters of a language model on a stream of tokens."""

    data: TextConfig = dataclasses.field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._texts: TokenTexts | None = None

    def validate(self) -> None:
        """Checks the values as ``SequenceExperiment.validate``, and those of the text."""
        super().validate()
        check_at_least("data", self.data, {"window": 1, "num_captions": 1})
        if self.data.dataset not in ("files", "embedded"):
            near = nearest(self.data.dataset, ("files", "embedded"))
            raise ValueError(f"data.dataset: unknown {self.data.dataset!r}{near}")
        if self.data.dataset == "files" and not self.data.root:
            raise ValueError(
                "data.root: expected a text file, or a folder with a text for each split; give "
                "--config.data.root=PATH"
            )

    @property
    def texts(self) -> TokenTexts:
        """The texts as ids, with the vocabulary of the run, or else of the training text."""
        if self._texts is None:
            self._texts = self._read()
        return self._texts

    def _read(self) -> TokenTexts:
        data = self.data
        vocabulary = None
        if self._problem is not None:
            vocabulary = Vocabulary(self._problem.tokens)
        if data.dataset == "embedded":
            captions = {split: _captions(split, data.num_captions) for split in SPLITS}
            texts = {split: self._split(text) for split, text in captions.items()}
            if vocabulary is None:
                every = [token for tokens in texts.values() for token in tokens]
                vocabulary = Vocabulary(sorted(set(every)))
            ids = {split: vocabulary.encode(tokens) for split, tokens in texts.items()}
            return TokenTexts(vocabulary, ids, ())
        options: dict[str, Any] = {"with_unknown": data.with_unknown, "vocabulary": vocabulary}
        try:
            if Path(data.root).is_file():
                return read_and_cut(data.root, data.unit, shares=data.shares, **options)  # type: ignore[arg-type]
            return read_tokens(find_corpus(data.root), data.unit, **options)  # type: ignore[arg-type]
        except ValueError as error:
            text = str(error).replace("set with_unknown=", "set --config.data.with_unknown=")
            field = "data." if text.startswith(("shares", "unit")) else "data.root: "
            raise ValueError(f"{field}{text}") from error

    def read_problem(self) -> Problem:
        """Returns the prediction of the next token."""
        tokens = self.texts.vocabulary.tokens
        return Problem("stream", len(tokens), len(tokens), tokens=tokens)

    def make_source(self, split: str) -> StreamWindows:
        """Returns the windows of a split's text."""
        texts = self.texts.texts
        if split not in texts:
            raise ValueError(
                f"split: expected one of {', '.join(texts)}, received {split!r}; of a single file "
                "--config.data.shares=0.9,0.05,0.05 cuts a test split, too"
            )
        return StreamWindows(
            texts[split], rows=self.batch_size, window=self.data.window, name=self.data.unit + "s"
        )

    # ---- Sampling (``launch/sample.py``) -----------------------------------------------------

    def encode_text(self, text: str) -> np.ndarray:
        """Returns the tokens of a text, (N,) int32, as a trained model reads it."""
        tokens = self._split(text)
        try:
            return Vocabulary(self.problem.tokens).encode(tokens, "prompt")
        except UnknownTokens as error:
            # Its own advice is about texts to train on.
            raise ValueError(
                "prompt: expected tokens of the vocabulary, which the training text gives, "
                f"received {describe_unknown(error.counts)}; give another --prompt"
            ) from None

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens."""
        found = Vocabulary(self.problem.tokens).decode(tokens)
        if self.data.unit == "character":
            return "".join(found)
        return " ".join(found).replace(f" {_END_OF_LINE} ", "\n").replace(f" {_END_OF_LINE}", "\n")

    def _split(self, text: str) -> Sequence[str]:
        """Returns the tokens of a text as strings."""
        if self.data.unit == "character":
            return text
        words = split_words(text)
        # The last line of a prompt goes on.
        return words if text.endswith("\n") else words[:-1]


def _captions(split: str, count: int) -> str:
    """Returns the captions of the embedded data set, one a line."""
    source = MovingShapes(split, count)
    return "".join(f"{source.captions(i)[0]}\n" for i in range(count))
