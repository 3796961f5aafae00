"""Configuration of readers of lines and of speech: texts, split, alphabet, batches, metrics."""

import csv
import dataclasses
import io
import json
import logging
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import jax
import numpy as np

from data.batches import Source
from data.datasets.array_record_folder import keep_whole_shards
from data.datasets.line_folder import TextLines, read_text_lines, split_lines
from data.files import write_atomically
from data.loader import Loader
from data.text_lines.alphabet import Alphabet, describe_change, name_characters
from data.text_lines.scores import Pair, bootstrap_interval, confusions, error_rates
from data.width_buckets import WidthBuckets
from experiments.classification.other_data import Given, find_given, match_names, place
from experiments.transcription.language import (
    describe_search,
    load_language_model,
    read_words,
    save_language_model,
    train_language_model,
    words_of,
)
from flaxnets.configuration import check_at_least, nearest, path_field, runtime
from flaxnets.decoders.ctc.character_ngram import CharacterNgram
from flaxnets.decoders.ctc.lexicon import make_word_lexicon
from flaxnets.tasks.ctc import CTC, TRAINING, CTCSearch
from flaxnets.tasks.task import Task
from flaxnets.training.config import Config, Scorer, UndefinedMethod
from flaxnets.training.finetune import match_classes, remap_classes
from flaxnets.training.workdir import ALPHABET, LANGUAGE_MODEL, LEXICON

SPLIT = "split.csv"
"""File of the workdir: the files with their texts, groups and splits."""
FILES = "files"
"""Value of ``data.dataset`` for files with texts of one's own."""
METRICS = ("character_error_rate", "word_error_rate", "exact_line_rate")

logger = logging.getLogger(__name__)


class TranscriptSource(Source, Protocol):
    """Random access to lines or recordings with their texts."""

    def lengths(self) -> np.ndarray:
        """Returns the columns or frames of each example, (N,) int32 >= 1."""

    def token_lengths(self) -> np.ndarray:
        """Returns the number of characters of each text, (N,) int32."""


class FileSource(TranscriptSource, Protocol):
    """Files with texts."""

    def explain(self, index: int) -> str:
        """Returns why an example has ``mask`` False."""


class DrawnSource(TranscriptSource, Protocol):
    """Lines or recordings that are drawn, as a function of their index."""

    @property
    def alphabet(self) -> Alphabet:
        """Characters of all texts."""

    def text(self, index: int) -> str:
        """Returns the text of an example."""

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON."""


class Transform(Protocol):
    """Random change of an example in training, which may stretch it."""

    @property
    def max_stretch(self) -> float:
        """Greatest factor by which the length grows, at least 1."""

    def __call__(self, example: Any, rng: np.random.Generator) -> Any:
        """Returns the changed example."""


@dataclasses.dataclass
class TextsConfig:
    """Location of files with texts, their split and their batches."""

    dataset: str = FILES
    """``files``, or the name of examples that are drawn."""
    root: str = path_field(runtime=True)
    """Folder of files with ``NAME.gt.txt`` or ``NAME.txt`` beside each, with or without folders
    ``train``, ``validation`` and ``test``; or what the paths of a list are relative to."""
    list: str = path_field(runtime=True)
    """CSV or TSV with the columns ``file`` and ``text`` and, if there are, ``group`` and ``split``;
    empty: the texts beside the files."""
    group_pattern: str = ""
    """Regular expression whose first group is the group (book, writer, speaker) in a file's name,
    as ``^(.*?)_``; files of one group are never on two sides of the split."""
    validation_share: float = 0.1
    """Share of the files, in (0,1), that selects the checkpoint, where the data have no validation
    split."""
    test_share: float = 0.1
    """Share of the files, in [0,1), that is tested, where the data have no test split."""
    split_seed: int = 0
    """Seed of the split."""
    num_examples: int = 2_000
    """Drawn examples only: those of the training split; the others have a tenth."""
    augment: bool = True
    """Training examples are changed at random."""
    batch_width: int = 32 * 928
    """Total length of the examples of a batch, pixels or frames, padding included: a batch has as
    many examples as fit, so that ``batch_size`` only counts for progress."""
    num_buckets: int = 6
    """Greatest number of lengths to which examples are padded, for each of which a step is
    compiled."""
    short_first: bool = False
    """The first epoch goes from short to long examples (SortaGrad, 1512.02595, section 3.3)."""
    bad_shards: str = runtime("fail")
    """Converted data only (``python -m data.convert``): shards with a wrong checksum end the run
    (``fail``), their files are left out and counted (``skip``), or no checksum is computed
    (``trust``)."""
    max_bad_share: float = runtime(0.05)
    """Training fails when more than this share of its files, in [0,1], cannot be read."""
    num_threads: int = runtime(0)
    """Decoding threads; 0: one more than the CPU cores."""
    num_workers: int = runtime(0)
    """Decoding processes; 0: threads only."""


@dataclasses.dataclass
class TranscriptionConfig(Config):
    """Experiment that reads texts; a subclass sets sources, network and training.

    Split, alphabet and n-gram model are made when a run starts and kept in its workdir, from which
    a resumed run, an evaluation and a reader take them.
    """

    kind: ClassVar[Literal["image", "recording"]] = "image"
    """Of the files."""
    noun: ClassVar[str] = "lines"
    """The examples, in messages."""
    example_file: ClassVar[str] = "LINE.png"
    """A file to read, in messages."""
    datasets: ClassVar[tuple[str, ...]] = (FILES,)
    """Values of ``data.dataset``."""

    best_metric: str = "character_error_rate"
    best_mode: str = "min"
    data: TextsConfig = dataclasses.field(default_factory=TextsConfig)
    search: CTCSearch = dataclasses.field(default_factory=CTCSearch)

    def __post_init__(self) -> None:
        # No fields, so they are neither flags nor part of config.json.
        self._alphabet: Alphabet | None = None
        self._lines: TextLines | None = None
        self._split_file: Path | None = None
        self._given = Given()
        self._drawn_source: tuple[tuple[str, str], DrawnSource] | None = None
        self._folder: Path | None = None
        self._language_model: CharacterNgram | None = None
        self._announced = False

    # ---- Parts that a subclass defines -------------------------------------------------------

    @property
    def stride(self) -> int:
        """Columns or frames for each step of the network."""
        raise UndefinedMethod(self, "stride")

    def make_drawn(self, split: str) -> DrawnSource:
        """Returns the examples of a split, where ``data.dataset`` names drawn ones."""
        raise UndefinedMethod(self, "make_drawn")

    def make_source(self, paths: Sequence[str], texts: Sequence[str]) -> FileSource:
        """Returns files with their texts as examples."""
        raise UndefinedMethod(self, "make_source")

    def make_transform(self) -> Transform | None:
        """Returns the random change of training examples; None: none."""
        raise UndefinedMethod(self, "make_transform")

    def draw(self, example: Mapping[str, Any]) -> np.ndarray:
        """Returns the input of an example as a picture, (H,W,3) uint8."""
        raise UndefinedMethod(self, "draw")

    def describe_inputs(self, source: TranscriptSource) -> str:
        """Returns number and sizes of the training examples in words."""
        raise UndefinedMethod(self, "describe_inputs")

    def describe_network(self) -> list[str]:
        """Returns lines about the network, each with a name of up to 13 letters first."""
        raise UndefinedMethod(self, "describe_network")

    # ---- Values ------------------------------------------------------------------------------

    def validate(self) -> None:
        """Checks the values as ``Config.validate``, and those of the data."""
        super().validate()
        self.search.check()
        data = self.data
        if data.dataset not in self.datasets:
            near = nearest(data.dataset, self.datasets)
            raise ValueError(f"data.dataset: unknown {data.dataset!r}{near}")
        least = {"num_examples": 10, "batch_width": 1, "num_buckets": 1, "num_workers": 0}
        check_at_least("data", data, least)
        if data.dataset == FILES and not (data.root or data.list):
            raise ValueError(
                f"data.root: expected a folder of {self.noun} with their texts; give "
                "--config.data.root=FOLDER, or --config.data.list=FILE, or "
                f"--config.data.dataset={self.datasets[-1]}"
            )
        if self.accumulate_steps > 1:
            raise ValueError(
                f"accumulate_steps: expected 1, since batches differ in their number of "
                f"{self.noun}, received {self.accumulate_steps}; a smaller data.batch_width saves "
                "memory"
            )

    # ---- Files, split and alphabet -----------------------------------------------------------

    @property
    def drawn(self) -> bool:
        """True if drawn examples take the place of files with texts."""
        return self.data.dataset != FILES

    @property
    def lines(self) -> TextLines:
        """All files with their split: that of the run's workdir, or else a new one.

        Of a trained model, files that its run does not know are test data (``other_data.py``).
        """
        if self._lines is None:
            self._lines = keep_whole_shards(self._read_lines(), self.data.bad_shards)
        return self._lines

    def _read_lines(self) -> TextLines:
        data = self.data
        if self._split_file is None:
            try:
                found = read_text_lines(
                    data.root, data.list, group_pattern=data.group_pattern, kind=self.kind
                )
            except (ValueError, FileNotFoundError) as error:
                if not str(error).startswith(("root:", "group_pattern:")):
                    raise
                raise type(error)(f"data.{error}") from error  # The flag.
            try:
                return split_lines(
                    found,
                    seed=data.split_seed,
                    validation_share=data.validation_share,
                    test_share=data.test_share,
                )
            except ValueError as error:
                raise ValueError("; ".join((str(error), *found.notes))) from error
        root = data.root or os.path.dirname(data.list)
        try:
            now = self._read_given()
        except (OSError, ValueError):
            if self._given.list:
                raise
            # The list is gone, say; the run has its own.
            return read_text_lines(root, self._split_file, kind=self.kind)
        with self._split_file.open(encoding="utf-8", newline="") as file:
            rows = {row["file"]: (row["text"], row["split"]) for row in csv.DictReader(file)}
        matched = match_names(now.names, list(rows))
        pairs = [
            (text, rows[name][0]) for name, text in zip(matched, now.texts, strict=True) if name
        ]
        changed = sum(text != before for text, before in pairs)
        if changed == len(pairs):  # Other data, whose names happen to be alike.
            matched = [None] * len(now)
        elif changed:
            logger.info("%s: %d texts differ from those of the run, which count", root, changed)
        splits = {name: split for name, (_, split) in rows.items()}
        placed = place(matched, now.splits, splits, self._given, self.noun)
        if placed.note:
            logger.info("%s: %s", data.list or root, placed.note)
        elif all(name in (None, own) for name, own in zip(matched, now.names, strict=True)):
            return read_text_lines(root, self._split_file, kind=self.kind)
        names = tuple(matched[i] or now.names[i] for i in placed.positions)
        return dataclasses.replace(now.take(placed.positions), names=names, splits=placed.splits)

    def _read_given(self) -> TextLines:
        """Returns the files as they are now, those of a list that an evaluation names."""
        data = self.data
        if self._given.list and not self._given.root:
            try:
                return read_text_lines("", data.list, kind=self.kind)
            except FileNotFoundError:
                if not data.root:
                    raise
        return read_text_lines(data.root, data.list, kind=self.kind)

    @property
    def alphabet(self) -> Alphabet:
        """Characters: the trained model's, or else those of the training texts."""
        if self._alphabet is None:
            self._alphabet = (
                self.make_drawn("train").alphabet
                if self.drawn
                else Alphabet.from_texts(self.lines.select("train").texts)
            )
        return self._alphabet

    def source(self, split: str) -> TranscriptSource:
        """Returns a split as a source of examples."""
        if self.drawn:
            return self.make_drawn(split)
        lines = self.lines.select(split)
        return self.make_source(lines.paths, lines.texts)

    def texts(self, split: str) -> list[str]:
        """Returns the texts of a split, in order."""
        if self.drawn:
            source = self._drawn(split)
            return [source.text(index) for index in range(len(source))]
        return list(self.lines.select(split).texts)

    def _drawn(self, split: str) -> DrawnSource:
        """Returns the drawn examples of a split, whose recordings are decoded once."""
        key = (split, repr(self.data))
        if self._drawn_source is None or self._drawn_source[0] != key:
            self._drawn_source = key, self.make_drawn(split)
        return self._drawn_source[1]

    @property
    def training_texts(self) -> list[str]:
        """Texts of the training split, of a trained model those of its run."""
        if self.drawn or self._split_file is None:
            return self.texts("train")
        with self._split_file.open(encoding="utf-8", newline="") as file:
            return [row["text"] for row in csv.DictReader(file) if row["split"] == "train"]

    @property
    def language_model(self) -> CharacterNgram:
        """N-gram model of the training texts: that of the run's workdir, or else a new one."""
        if self._language_model is None:
            path = self._folder and self._folder / LANGUAGE_MODEL
            if path and path.exists():
                self._language_model = load_language_model(path, self.alphabet)
            else:
                order = self.search.ngram_order
                self._language_model = train_language_model(
                    self.training_texts, self.alphabet, order
                )
        return self._language_model

    @property
    def lexicon_words(self) -> list[str]:
        """Words to which the search keeps; empty: any."""
        search = self.search
        if not (search.width and search.lexicon):
            return []
        return (
            words_of(self.training_texts)
            if search.lexicon == TRAINING
            else read_words(search.lexicon)
        )

    # ---- What a run keeps --------------------------------------------------------------------

    def describe_data(self, split: str) -> dict[str, Any]:
        """Returns digests of the files and texts of a split, and the number of characters."""
        if self.drawn:
            return {**self.make_drawn(split).describe(), "class_names": []}
        described = self.lines.select(split).describe()
        return {"class_names": [], "characters": len(self.alphabet), **described}

    def save_assets(self, folder: Path) -> None:
        """Writes the alphabet, the files with their split, and what the search reads."""
        content = json.dumps(self.alphabet.to_json(), ensure_ascii=False)
        write_atomically(
            folder / ALPHABET, lambda place: place.write_text(content, encoding="utf-8")
        )
        if self._split_file is None:
            self.save_split(folder / SPLIT)
        if self._folder is None or not (folder / LANGUAGE_MODEL).exists():
            save_language_model(folder / LANGUAGE_MODEL, self.language_model)
        if words := self.lexicon_words:  # For exports, which do not run the experiment.
            content = "\n".join(words)
            write_atomically(
                folder / LEXICON, lambda place: place.write_text(content, encoding="utf-8")
            )
        where = f"--workdir={shlex.quote(str(folder))}"
        logger.info("afterwards    python -m launch.evaluate %s --split=test", where)
        logger.info("              python -m launch.read %s %s", where, self.example_file)

    def save_split(self, path: Path) -> None:
        """Writes the files with their split, where examples are not drawn."""
        if not self.drawn:
            write_lines(path, self.lines)

    def load_assets(self, folder: Path) -> None:
        """Reads the alphabet of a trained model, and finds the split of its run."""
        self._folder, self._language_model = folder, None
        self._given = find_given(folder, self.data)
        self._alphabet = read_alphabet(folder)
        if (folder / SPLIT).exists():
            self._split_file, self._lines, self._drawn_source = folder / SPLIT, None, None

    def resume_assets(self, folder: Path) -> None:
        """Finds the split of a run that resumes; files that came since are no part of it."""
        # Without a checkpoint the run starts anew, and so does its split.
        if (folder / ALPHABET).exists() and any((folder / "checkpoints").glob("[0-9]*")):
            self.load_assets(folder)
            self._given = Given()  # A run that resumes has no other data, wherever they are now.

    # ---- Batches and metrics -----------------------------------------------------------------

    def make_task(self) -> Task:
        """Returns CTC, with the language model and lexicon that its search reads."""
        search, model, lexicon = self.search, None, None
        if search.lexicon and not search.width:
            logger.warning(
                "search.lexicon: without effect, as search.width=0 is the greedy search; give "
                "--config.search.width=10"
            )
        if search.width and search.language_model_weight:
            model = self.language_model.automaton()
        if words := self.lexicon_words:
            lexicon = make_word_lexicon(words, self.alphabet.characters)
        return CTC(self.alphabet.decode, search, model, lexicon)

    def adapt_variables(
        self, saved: Mapping[str, Any], initial: Mapping[str, Any], folder: Path
    ) -> Mapping[str, Any]:
        """Returns another reader's variables with the classes of this run's alphabet.

        Shared characters and the blank keep their weights, new ones have their initial values; the
        log says which.
        """
        if not (folder / ALPHABET).exists() or "classifier" in self.initialize_except:
            return saved
        other = read_alphabet(folder)
        if other == self.alphabet:
            return saved
        for line in describe_change(other, self.alphabet):
            logger.info("%s", line)
        # The blank's name is no character.
        names = [("", *each.characters) for each in (other, self.alphabet)]
        return remap_classes(saved, initial, match_classes(*names))

    def describe_inference(self) -> dict[str, Any]:
        """Returns the network, its search, and the preprocessing of lines or recordings at test."""
        given = dict(self.describe_preprocessing())
        if self.kind == "image":
            preprocessing = {"kind": "line", **given}
        else:
            log_mel = dict(given.pop("log_mel"))
            del log_mel["log_offset"]  # A constant.
            preprocessing = {**log_mel, **given}
        return {
            "kind": "transcription",
            "name": self.name,
            "network": self.make_model(),
            "encoder": None,
            "search": dataclasses.asdict(self.search),
            "preprocessing": preprocessing,
        }

    def make_data(self, split: str) -> Loader:
        """Returns the batches of a split; says what was chosen before training starts."""
        source = self.source(split)
        if split == "train":
            self._announce(source)
        elif self._folder and not self._announced and not jax.process_index():
            for line in self._unknown_characters(split, self.texts(split)):
                logger.info("%s", line)
        return self.make_loader(source, split)

    def make_prediction_data(self, paths: Sequence[str]) -> Loader:
        """Returns the given files; unreadable ones are masked."""
        return self.make_loader(self.make_source(paths, [""] * len(paths)), "")

    def make_loader(self, source: TranscriptSource, split: str) -> Loader:
        """Returns the batches of a split, or of files without texts where ``split`` is empty."""
        data, train = self.data, split == "train"
        transform = self.make_transform() if train and data.augment else None
        lengths = source.lengths()
        if transform is not None:
            lengths = np.ceil(lengths * transform.max_stretch).astype(np.int32)
        plan = WidthBuckets(
            lengths,
            batch_width=data.batch_width,
            num_buckets=data.num_buckets,
            token_lengths=source.token_lengths(),
            row_multiple=jax.device_count(),
            narrow_first=data.short_first,
            train=train,
            seed=self.seed,
        )
        return Loader(
            source,
            transform=transform,
            batch_size=self.batch_size,
            train=train,
            plan=plan,
            identity={
                **(self.describe_data(split) if split else {}),
                "preprocessing": self.describe_preprocessing(),
            },
            seed=self.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=data.num_threads or None,
            num_workers=data.num_workers if train else 0,
            max_bad_share=data.max_bad_share if train else 1.0,
        )

    def make_scorer(self, split: str, *, complete: bool = False) -> Scorer | None:
        """Returns the function from a split's transcripts to error rates."""
        texts = self.texts(split)

        def score(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
            sums = error_rates(_pairs(records, texts))
            return {name: float(getattr(sums, name)) for name in METRICS}

        return score

    def scored_metrics(self, split: str) -> tuple[str, ...]:
        """Returns the names of ``make_scorer``'s metrics."""
        return METRICS

    # ---- What a report shows (``launch/reports/transcripts.py``) -----------------------------

    @property
    def unit(self) -> str:
        """Word for an example."""
        return "line" if self.kind == "image" else "recording"

    def names(self, split: str) -> Sequence[str]:
        """Returns the file of each example of a split; "" for drawn ones."""
        return [""] * len(self.texts(split)) if self.drawn else self.lines.select(split).names

    def groups(self, split: str) -> Sequence[str]:
        """Returns the group of each example of a split; "" where it has none."""
        return [""] * len(self.texts(split)) if self.drawn else self.lines.select(split).groups

    def confusions(
        self, split: str, records: Sequence[Mapping[str, Any]]
    ) -> Counter[tuple[str, str]]:
        """Returns (true, read) character to its number; "" for one that is not there."""
        return confusions(_pairs(records, self.texts(split)))

    def error_interval(
        self, split: str, records: Sequence[Mapping[str, Any]]
    ) -> tuple[float, float]:
        """Returns the 95 % interval of the character error rate, by resampling examples."""
        return bootstrap_interval(_pairs(records, self.texts(split)))

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """Returns an example as the network sees it, as a clip of one frame, (1,H,W,3) uint8."""
        if self.drawn:
            return self.draw(self._drawn(split)[index])[None]
        line = self.lines.select(split).take([index])
        source = self.make_source(line.paths, line.texts)
        example = source[0]
        if not example["mask"]:
            raise ValueError(source.explain(0))
        return self.draw(example)[None]

    # ---- What was chosen ---------------------------------------------------------------------

    def _announce(self, source: TranscriptSource) -> None:
        if self._announced or jax.process_index():
            return
        self._announced = True
        for line in self.describe_choices(source):
            logger.info("%s", line)

    def describe_choices(self, source: TranscriptSource) -> list[str]:
        """Returns lines that say how the data were read and what is trained.

        Args:
          source: the training examples.
        """
        lines = [
            f"{self.noun:<13} {self.describe_inputs(source)}",
            *self.describe_split(),
            f"alphabet      {len(self.alphabet)} characters",
            *self.describe_network(),
            f"search        {describe_search(self.search)}",
        ]
        if self.drawn:
            return lines
        lines += [f"note          {note}" for note in self.lines.notes]
        for split in ("validation", "test"):
            lines += self._unknown_characters(split, self._texts_of(split))
        if long := self._too_long():
            lines.append(
                f"note          {len(long)} training texts need more steps than their "
                f"{self.kind} has and are not learnt: {', '.join(long[:3])}"
                f"{', …' if len(long) > 3 else ''}"
            )
        return lines

    def describe_split(self) -> list[str]:
        """Returns a line with the sizes of the splits; none of drawn examples."""
        return [] if self.drawn else [describe_sizes(self.lines.splits, self.lines.groups)]

    def _unknown_characters(self, split: str, texts: Sequence[str]) -> list[str]:
        """Returns a note on characters that training texts lack; none if there are none."""
        unknown = self.alphabet.unknown(texts)
        if not unknown:
            return []
        return [
            f"note          {split} texts have {len(unknown)} characters that training texts lack, "
            f"which count as errors: {name_characters(unknown)}"
        ]

    def _texts_of(self, split: str) -> list[str]:
        return [t for t, s in zip(self.lines.texts, self.lines.splits, strict=True) if s == split]

    def _too_long(self) -> list[str]:
        """Returns the names of training files with more characters than steps.

        Raises:
          ValueError: all of them, so that nothing is learnt.
        """
        lines = self.lines.select("train")
        source = self.make_source(lines.paths, lines.texts)
        lengths = source.lengths()
        stride = self.stride  # Traces the encoder.
        found = []
        for name, text, length in zip(lines.names, lines.texts, lengths, strict=True):
            if length <= 1:  # Not readable.
                continue
            count = -(-length // stride)
            tokens = self.alphabet.encode(text)
            if len(tokens) + np.sum(tokens[1:] == tokens[:-1]) > count:  # As ``required_steps``.
                found.append(name)
        if len(found) == len(lines):
            raise ValueError(
                f"data.root: expected texts that fit into the steps of their {self.kind}, one for "
                f"{stride} columns or frames, received {len(found)} of which none does: are "
                f"they texts of pages? {found[0]}"
            )
        return found


def _pairs(records: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Pair]:
    return [(str(record["text"]), texts[int(record["index"])]) for record in records]


def read_alphabet(folder: Path) -> Alphabet:
    """Returns the alphabet of a run's workdir.

    Raises:
      FileNotFoundError: the folder has none.
      ValueError: the file is damaged.
    """
    return Alphabet.from_json(json.loads((folder / ALPHABET).read_text("utf-8")))


def describe_sizes(splits: Sequence[str], groups: Sequence[str]) -> str:
    """Returns a line with the sizes of the splits and the number of groups."""
    sizes, names = Counter(splits), ("train", "validation", "test")
    groups_there = len({group for group in groups if group})
    counts = ", ".join(f"{name} {sizes[name]}" for name in names)
    return f"split         {counts}{f'; {groups_there} groups' if groups_there else ''}"


def write_lines(path: Path, lines: TextLines) -> None:
    """Writes files as CSV with the columns ``file``, ``text``, ``group`` and ``split``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "text", "group", "split"))
    writer.writerows(zip(lines.names, lines.texts, lines.groups, lines.splits, strict=True))
    write_atomically(path, lambda place: place.write_text(text.getvalue(), encoding="utf-8"))
