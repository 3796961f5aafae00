"""Configuration of readers of text lines: data, split, alphabet, metrics, and what a run keeps."""

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
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import numpy as np

from data.batches import Source
from data.captions.images import read_image
from data.datasets.line_folder import TextLines, read_text_lines, split_lines
from data.files import write_atomically
from data.loader import Loader
from data.text_lines.alphabet import Alphabet, name_characters
from data.text_lines.augmentation import LineAugmentation
from data.text_lines.line_images import LineSource, header_width
from data.text_lines.scores import error_rates
from data.text_lines.synthetic_lines import SyntheticLines
from data.width_buckets import WidthBuckets
from flaxnets.configuration import check_at_least, nearest, path_field, runtime
from flaxnets.models.column_crnn import ColumnCRNNConfig, make_column_crnn
from flaxnets.recurrent.config import NONE
from flaxnets.tasks.ctc import CTC, CTCSearch
from flaxnets.tasks.task import Task
from flaxnets.training.config import Config, Scorer

ALPHABET, SPLIT = "alphabet.json", "split.csv"
"""Files of the workdir: the characters, and the lines with texts, groups and splits."""
DATASETS = ("files", "synthetic")
METRICS = ("character_error_rate", "word_error_rate", "exact_line_rate")

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class LinesConfig:
    """Location of the lines, their split, size and augmentation."""

    dataset: str = "files"
    """``files``, or ``synthetic``: drawn lines, for which no data are needed."""
    root: str = path_field(runtime=True)
    """Folder of images with ``NAME.gt.txt`` or ``NAME.txt`` beside each, with or without folders
    ``train``, ``validation`` and ``test``; or what the paths of a list are relative to."""
    list: str = path_field(runtime=True)
    """CSV or TSV with the columns ``file`` and ``text`` and, if there are, ``group`` and ``split``;
    empty: the texts beside the images."""
    group_pattern: str = ""
    """Regular expression whose first group is the group (book, writer) in a file's name, as
    ``^(.*?)_``; lines of one group are never on two sides of the split."""
    validation_share: float = 0.1
    """Share of the lines, in (0,1), that selects the checkpoint, where the data have no validation
    split."""
    test_share: float = 0.1
    """Share of the lines, in [0,1), that is tested, where the data have no test split."""
    split_seed: int = 0
    """Seed of the split."""
    height: int = 48
    """Pixels to which all lines are scaled, with their aspect ratio."""
    max_width: int = 4_096
    """Greatest width of a line after scaling, pixels; wider ones are left out, and named."""
    polarity: str = "dark"
    """``dark`` ink on light paper, ``light`` (inverted), or ``auto``: by each image's median."""
    num_examples: int = 2_000
    """``synthetic`` only: lines of the training split; the others have a tenth."""
    augment: bool = True
    """Training lines are slanted, stretched, shifted, blurred and so on at random."""
    batch_width: int = 32 * 928
    """Total width of the lines of a batch, pixels, padding included: a batch has as many lines as
    fit, so that ``batch_size`` only counts for progress."""
    num_buckets: int = 6
    """Greatest number of widths to which lines are padded, for each of which a step is compiled."""
    max_bad_share: float = runtime(0.05)
    """Training fails when more than this share of its lines, in [0,1], cannot be read."""
    num_threads: int = runtime(0)
    """Decoding threads; 0: one more than the CPU cores."""
    num_workers: int = runtime(0)
    """Decoding processes; 0: threads only."""


@dataclasses.dataclass
class TextLinesConfig(Config):
    """Experiment that reads lines of text; a paper's file sets its network and training.

    Split and alphabet are made when a run starts and kept in its workdir, from which a resumed run,
    an evaluation and a reader take them.
    """

    best_metric: str = "character_error_rate"
    best_mode: str = "min"
    data: LinesConfig = dataclasses.field(default_factory=LinesConfig)
    model: ColumnCRNNConfig = dataclasses.field(default_factory=ColumnCRNNConfig)
    search: CTCSearch = dataclasses.field(default_factory=CTCSearch)

    def __post_init__(self) -> None:
        # No fields, so they are neither flags nor part of config.json.
        self._alphabet: Alphabet | None = None
        self._lines: TextLines | None = None
        self._split_file: Path | None = None
        self._announced = False

    def validate(self) -> None:
        """Checks the values as ``Config.validate``, and those of the data and the network."""
        super().validate()
        data = self.data
        if data.dataset not in DATASETS:
            near = nearest(data.dataset, DATASETS)
            raise ValueError(f"data.dataset: unknown {data.dataset!r}{near}")
        least = {"height": 8, "max_width": 1, "num_examples": 10, "batch_width": 1}
        check_at_least("data", data, {**least, "num_buckets": 1, "num_workers": 0})
        if data.dataset == "files" and not (data.root or data.list):
            raise ValueError(
                "data.root: expected a folder of lines with their texts; give "
                "--config.data.root=FOLDER, or --config.data.list=FILE, or "
                "--config.data.dataset=synthetic"
            )
        if self.accumulate_steps > 1:
            raise ValueError(
                "accumulate_steps: expected 1, since batches differ in their number of lines, "
                f"received {self.accumulate_steps}; a smaller data.batch_width saves memory"
            )
        make_column_crnn(self.model, 2, data.height)

    # ---- Lines, split and alphabet -----------------------------------------------------------

    @property
    def synthetic(self) -> bool:
        """True if drawn lines take the place of files."""
        return self.data.dataset == "synthetic"

    @property
    def lines(self) -> TextLines:
        """All lines with their split: that of the run's workdir, or else a new one.

        Of a trained model, data that share no line with those of its run are test data.
        """
        if self._lines is None:
            self._lines = self._read_lines()
        return self._lines

    def _read_lines(self) -> TextLines:
        data = self.data
        if self._split_file is None:
            found = read_text_lines(data.root, data.list, group_pattern=data.group_pattern)
            return split_lines(
                found,
                seed=data.split_seed,
                validation_share=data.validation_share,
                test_share=data.test_share,
            )
        root = data.root or os.path.dirname(data.list)
        try:
            now = read_text_lines(data.root, data.list)
        except (OSError, ValueError):  # The list is gone, say; the run has its own.
            return read_text_lines(root, self._split_file)
        with self._split_file.open(encoding="utf-8", newline="") as file:
            known = {row["file"]: row["text"] for row in csv.DictReader(file)}
        if any(known.get(n) == text for n, text in zip(now.names, now.texts, strict=True)):
            return read_text_lines(root, self._split_file)
        logger.info("%s: none of the run's lines; its lines are the test split", root)
        if "test" in now.splits:
            return now
        return dataclasses.replace(now, splits=("test",) * len(now))

    @property
    def alphabet(self) -> Alphabet:
        """Characters: the trained model's, or else those of the training texts."""
        if self._alphabet is None:
            self._alphabet = (
                SyntheticLines("train", 1).alphabet
                if self.synthetic
                else Alphabet.from_texts(self.lines.select("train").texts)
            )
        return self._alphabet

    def source(self, split: str) -> LineSource | SyntheticLines:
        """Returns the lines of a split as a source of examples."""
        data = self.data
        if self.synthetic:
            count = data.num_examples if split == "train" else max(1, data.num_examples // 10)
            return SyntheticLines(split, count, height=data.height)
        lines = self.lines.select(split)
        return self._line_source(lines.paths, lines.texts)

    def _line_source(self, paths: Sequence[str], texts: Sequence[str]) -> LineSource:
        return LineSource(
            tuple(paths),
            tuple(texts),
            self.alphabet,
            height=self.data.height,
            max_width=self.data.max_width,
            polarity=cast(Literal["dark", "light", "auto"], self.data.polarity),
            unknown="drop",
        )

    def texts(self, split: str) -> list[str]:
        """Returns the texts of a split, in order."""
        if self.synthetic:
            source = self.source(split)
            assert isinstance(source, SyntheticLines)
            return [source.text(index) for index in range(len(source))]
        return list(self.lines.select(split).texts)

    # ---- What a run keeps --------------------------------------------------------------------

    def describe_data(self, split: str) -> dict[str, Any]:
        """Returns digests of the lines and texts of a split, and the number of characters."""
        if self.synthetic:
            source = self.source(split)
            return {"class_names": [], **source.describe()}
        described = self.lines.select(split).describe()
        return {"class_names": [], "characters": len(self.alphabet), **described}

    def describe_preprocessing(self) -> dict[str, Any]:
        """Returns the size of the lines and their polarity."""
        data = self.data
        return {"height": data.height, "max_width": data.max_width, "polarity": data.polarity}

    def save_assets(self, folder: Path) -> None:
        """Writes the alphabet, and the lines with their split."""
        content = json.dumps(self.alphabet.to_json(), ensure_ascii=False)
        write_atomically(
            folder / ALPHABET, lambda place: place.write_text(content, encoding="utf-8")
        )
        if not self.synthetic and self._split_file is None:
            write_lines(folder / SPLIT, self.lines)
        where = f"--workdir={shlex.quote(str(folder))}"
        logger.info("afterwards    python -m launch.evaluate %s --split=test", where)
        logger.info("              python -m launch.read %s LINE.png", where)

    def load_assets(self, folder: Path) -> None:
        """Reads the alphabet of a trained model, and finds the split of its run."""
        self._alphabet = Alphabet.from_json(json.loads((folder / ALPHABET).read_text("utf-8")))
        if not self.synthetic and (folder / SPLIT).exists():
            self._split_file, self._lines = folder / SPLIT, None

    def resume_assets(self, folder: Path) -> None:
        """Finds the split of a run that resumes; lines that came since are no part of it."""
        # Without a checkpoint the run starts anew, and so does its split.
        if (folder / ALPHABET).exists() and any((folder / "checkpoints").glob("[0-9]*")):
            self.load_assets(folder)

    # ---- Network, batches and metrics --------------------------------------------------------

    def make_model(self) -> nn.Module:
        """Returns the network, whose classes are the blank and the characters."""
        return make_column_crnn(self.model, len(self.alphabet) + 1, self.data.height)

    def make_task(self) -> Task:
        """Returns CTC."""
        return CTC(self.alphabet.decode, self.search)

    def make_data(self, split: str) -> Loader:
        """Returns the batches of a split; says what was chosen before training starts."""
        source = self.source(split)
        if split == "train":
            self._announce(source)
        return self.make_loader(source, split)

    def make_prediction_data(self, paths: Sequence[str]) -> Loader:
        """Returns the given lines; unreadable ones are masked."""
        return self.make_loader(self._line_source(paths, [""] * len(paths)), "")

    def make_loader(self, source: LineSource | SyntheticLines, split: str) -> Loader:
        """Returns the batches of a split, or of lines without texts where ``split`` is empty."""
        data, train = self.data, split == "train"
        augmentation = LineAugmentation() if train and data.augment else None
        widths = source.lengths()
        if augmentation is not None:
            widths = np.ceil(widths * augmentation.max_stretch).astype(np.int32)
        plan = WidthBuckets(
            widths,
            batch_width=data.batch_width,
            num_buckets=data.num_buckets,
            token_lengths=source.token_lengths(),
            row_multiple=jax.device_count(),
            train=train,
            seed=self.seed,
        )
        return Loader(
            cast(Source, source),
            transform=augmentation,
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
            pairs = [(str(record["text"]), texts[int(record["index"])]) for record in records]
            sums = error_rates(pairs)
            return {name: float(getattr(sums, name)) for name in METRICS}

        return score

    def scored_metrics(self, split: str) -> tuple[str, ...]:
        """Returns the names of ``make_scorer``'s metrics."""
        return METRICS

    def describe_line(self, path: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a line's text, with the spans of its characters in columns of the image.

        Args:
          path: the image.
          record: of ``CTC.describe_outputs``.
        """
        stride = make_column_crnn(self.model, 2, self.data.height).stride
        width, scaled = read_image(path).shape[1], header_width(path, self.data.height)
        scale = stride * width / scaled
        return {
            "text": record["text"],
            "confidence": record["confidence"],
            "characters": [
                [character, confidence, round(start * scale), min(round(end * scale), width)]
                for character, confidence, start, end in record["characters"]
            ],
        }

    # ---- What was chosen ---------------------------------------------------------------------

    def _announce(self, source: LineSource | SyntheticLines) -> None:
        if self._announced or jax.process_index():
            return
        self._announced = True
        for line in self.describe_choices(source):
            logger.info("%s", line)

    def describe_choices(self, source: LineSource | SyntheticLines) -> list[str]:
        """Returns lines that say how the data were read and what is trained.

        Args:
          source: the training lines.
        """
        data, model = self.data, self.model
        widths = source.lengths()
        network = make_column_crnn(model, 2, data.height)
        cell = model.recurrent
        layer = "none"
        if cell.cell != NONE:
            both = ", both directions" if cell.bidirectional else ""
            layer = f"{cell.num_layers} × {cell.cell} of {cell.features} units{both}"
        lines = [
            f"lines         {len(source)} for training, {data.height} pixels high, "
            f"{int(np.median(widths))} wide in the median, {widths.max()} at most",
            f"alphabet      {len(self.alphabet)} characters",
            f"encoder       {model.encoder.name}, a step for {network.stride} columns",
            f"recurrent     {layer}",
        ]
        if self.synthetic:
            return lines
        splits = Counter(self.lines.splits)
        groups = len({group for group in self.lines.groups if group})
        counts = ", ".join(f"{name} {splits[name]}" for name in ("train", "validation", "test"))
        lines.insert(1, f"split         {counts}{f'; {groups} groups' if groups else ''}")
        lines += [f"note          {note}" for note in self.lines.notes]
        for split in ("validation", "test"):
            unknown = self.alphabet.unknown(self._texts_of(split))
            if unknown:
                lines.append(
                    f"note          {split} texts have {len(unknown)} characters that training "
                    f"texts lack, which count as errors: {name_characters(unknown)}"
                )
        if long := self._too_long(network.stride):
            lines.append(
                f"note          {len(long)} training texts need more steps than their line has "
                f"and are not learnt: {', '.join(long[:3])}{', …' if len(long) > 3 else ''}"
            )
        return lines

    def _texts_of(self, split: str) -> list[str]:
        return [t for t, s in zip(self.lines.texts, self.lines.splits, strict=True) if s == split]

    def _too_long(self, stride: int) -> list[str]:
        """Returns the names of training lines with more characters than steps."""
        lines = self.lines.select("train")
        source = self._line_source(lines.paths, lines.texts)
        steps = -(-source.lengths() // stride)
        found = []
        for name, text, count in zip(lines.names, lines.texts, steps, strict=True):
            tokens = self.alphabet.encode(text)
            if len(tokens) + np.sum(tokens[1:] == tokens[:-1]) > count:  # As ``required_steps``.
                found.append(name)
        return found


def write_lines(path: Path, lines: TextLines) -> None:
    """Writes lines as CSV with the columns ``file``, ``text``, ``group`` and ``split``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "text", "group", "split"))
    writer.writerows(zip(lines.names, lines.texts, lines.groups, lines.splits, strict=True))
    write_atomically(path, lambda place: place.write_text(text.getvalue(), encoding="utf-8"))
