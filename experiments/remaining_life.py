r"""Remaining life of jet engines by a CNN and an LSTM, on C-MAPSS (Saxena et al., PHM 2008).

    python -m launch.train --config=experiments/remaining_life.py --workdir=runs/life \
        --config.data.root=CMAPSS
    python -m launch.evaluate --workdir=runs/life --split=test

``CMAPSS`` is the folder of ``train_FD001.txt``, or that file. The network reads the last 64 cycles
of the 24 settings and sensors, or as many as there are, and predicts how many cycles remain, at
most 125 (``data.cap``): by custom the target is capped, since a healthy engine does not tell when
it will fail. The custom of 30 cycles is that of networks that read windows of one length: the
shortest test engine has 31.

The engines of the file are split at random into three parts (``data.split_seed``): 75 train, 10
validate, 15 develop. Those of the last two are cut off at random cycles, ``data.cuts`` times each,
and the error is taken at the last cycle before the cut, as in the test. The split ``test`` is
``test_FD001.txt`` with ``RUL_FD001.txt`` where both stand in the folder, or else the development
part; the log says which. So ``--config.data.root=FOLDER`` of an evaluation may name a folder with
the test files alone.

Metrics, in cycles: ``rmse`` of the capped lives; ``rmse_uncapped`` against lives that are not
capped; ``phm_score``: the challenge's penalty, summed over the engines, each cut of which counts as
one; and, wherever the training file is there, ``rmse_linear`` of a linear regression on the means
of the window's channels, fitted on the training engines, and ``rmse_mean`` of the mean training
target.

Published RMSE on the test engines of FD001, target capped: LSTM 16.14 (Zheng et al., 2017), deep
CNN 12.61 (Li et al., 2018).

Steps and widths were chosen by validation, on the three splits of
``experiments/results/remaining_life.md``.

Variants:
  - none: two convolutions over time, an LSTM, a linear layer on its last state.
  - ``cnn``: the CNN alone, four dilated residual blocks (TCN) that read 61 cycles.
  - ``rnn``: the LSTM alone.
  - ``smoke``: a small network of both on generated engines, a few seconds.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data.batches import SequenceExample
from data.datasets.cmapss import (
    COLUMNS,
    SHORTEST,
    RemainingLife,
    cut_engines,
    read_engines,
    read_remaining_lives,
)
from data.series import Scaling, Section, Series, SeriesTable, fit_scaling, phm_score
from data.series.splits import split_by_group
from experiments.sequences.config import Problem, SequenceExperiment, examples_of
from flaxnets.configuration import check_at_least, nearest, path_field, runtime
from flaxnets.encoders.sequence_config import SequenceEncoderConfig
from flaxnets.heads.config import HeadConfig
from flaxnets.models.sequence_model import SequenceModelConfig
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.training.config import OptimizerConfig, Scorer

VARIANTS = ("cnn", "rnn", "smoke")
SUBSETS = ("FD001", "FD002", "FD003", "FD004")

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class EnginesConfig:
    """Location of the engines, their windows and their split."""

    dataset: str = "cmapss"
    """``cmapss``, or ``embedded``: generated engines, whose sensors drift the faster the older they
    are."""
    root: str = path_field(runtime=True)
    """Folder of ``train_FD001.txt``, or that file."""
    subset: str = "FD001"
    """``FD001`` to ``FD004``."""
    window: int = 64
    """Cycles of the inputs; fewer where an engine has fewer."""
    cap: int = 125
    """Greatest target, cycles."""
    scaling: str = "standard"
    """Of the channels: ``standard``, ``min_max``, ``max_abs`` or ``none``."""
    validation_share: float = 0.1
    """Share of the engines that select the checkpoint."""
    test_share: float = 0.15
    """Share of the engines of the development part."""
    split_seed: int = 0
    """Seed of the split, and of the cycles at which engines are cut off."""
    cuts: int = 10
    """Cycles at which each engine of validation and development is cut off."""


class ScaledTargets:
    """Source whose targets are divided by a number, as the greatest one; picklable.

    Args:
        source: examples with ``targets``.
        divisor: above 0.
    """

    def __init__(self, source: RemainingLife, divisor: float) -> None:
        self.source = source
        self.divisor = divisor

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"ScaledTargets({self.source!r}, {self.divisor})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        return {**self.source.describe(), "target_divisor": self.divisor}

    def __getitem__(self, index: int, /) -> SequenceExample:
        """Returns example ``index``."""
        example = self.source[index]
        example["targets"] = np.asarray(example["targets"] / self.divisor, np.float32)
        return example


@dataclasses.dataclass
class RemainingLifeConfig(SequenceExperiment):
    """Hyper-parameters of a network that predicts remaining lives."""

    unit: ClassVar[str] = "window"
    """Word for an example in a report."""

    name: str = "CNN-LSTM"
    batch_size: int = 128
    num_steps: int = 1_200
    eval_every: int = 40
    checkpoint_every: int = runtime(40)
    best_metric: str = "rmse"
    ema_decay: float = 0.98
    data: EnginesConfig = dataclasses.field(default_factory=EnginesConfig)
    model: SequenceModelConfig = dataclasses.field(
        default_factory=lambda: SequenceModelConfig(
            encoder=SequenceEncoderConfig(
                "conv", features=(64, 64), kernel_size=5, dropout_rate=0.2
            ),
            recurrent=RecurrentConfig("lstm", features=128),
            head=HeadConfig("last", hidden_features=32, dropout_rate=0.2),
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            name="adamw",
            learning_rate=2e-3,
            schedule="cosine",
            warmup_steps=50,
            weight_decay=1e-3,
            clip_norm=1.0,
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._engines: SeriesTable | None = None

    def validate(self) -> None:
        """Checks the values as ``SequenceExperiment.validate``, and those of the data."""
        super().validate()
        data = self.data
        check_at_least("data", data, {"window": 1, "cap": 1, "cuts": 1})
        for name, options in (("dataset", ("cmapss", "embedded")), ("subset", SUBSETS)):
            if (value := getattr(data, name)) not in options:
                raise ValueError(f"data.{name}: unknown {value!r}{nearest(value, options)}")
        if data.dataset == "cmapss" and not data.root:
            raise ValueError(
                f"data.root: expected the folder of train_{data.subset}.txt; give "
                "--config.data.root=FOLDER"
            )

    # ---- Engines -----------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        root = Path(self.data.root)
        return root.parent if root.is_file() else root

    @property
    def training_file(self) -> Path:
        """The file of the engines that run until they fail."""
        root = Path(self.data.root)
        return root if root.is_file() else root / f"train_{self.data.subset}.txt"

    @property
    def engines(self) -> SeriesTable:
        """The engines of the training file."""
        if self._engines is None:
            embedded = self.data.dataset == "embedded"
            self._engines = generated_engines() if embedded else read_engines(self.training_file)
        return self._engines

    def sections(self) -> dict[str, tuple[Section, ...]]:
        """Returns the engines of the training file by split, those to test cut off."""
        data = self.data
        try:
            splits = split_by_group(
                self.engines,
                validation_share=data.validation_share,
                test_share=data.test_share,
                seed=data.split_seed,
            )
        except ValueError as error:
            raise ValueError(f"data.validation_share, data.test_share: {error}") from error
        found = {"train": splits["train"]}
        for name in ("validation", "test"):
            found[name] = tuple(
                section
                for cut in range(data.cuts)
                for section in cut_engines(
                    self.engines,
                    splits.get(name, ()),
                    seed=data.split_seed * data.cuts + cut,
                    shortest=SHORTEST,
                )
            )
        return found

    def test_engines(self) -> tuple[SeriesTable, np.ndarray] | None:
        """Returns the engines of the test file and what remains of their lives; None without."""
        if self.data.dataset == "embedded":
            return None
        files = [self.folder / f"{kind}_{self.data.subset}.txt" for kind in ("test", "RUL")]
        there = [file for file in files if file.is_file()]
        if not there:
            return None
        if len(there) == 1:
            (missing,) = set(files) - set(there)
            raise ValueError(
                f"{self.folder}: expected {files[0].name} and {files[1].name}, or neither for the "
                f"development part of the training file, received none of the name {missing.name}"
            )
        engines = read_engines(files[0])
        return engines, read_remaining_lives(files[1], engines)

    # ---- Examples ----------------------------------------------------------------------------

    def read_problem(self) -> Problem:
        """Returns one number, and the scaling of the training engines."""
        kind: Any = self.data.scaling
        try:
            scaling = fit_scaling(self.engines, self.sections()["train"], kind)
        except ValueError as error:
            raise ValueError(f"data.scaling: {error}") from error
        return Problem("regression", 1, channels=COLUMNS[2:], scaling=scaling.to_json())

    def lives(self, split: str) -> RemainingLife:
        """Returns the windows of a split with lives in cycles.

        Raises:
          ValueError: no such split, or of the two files of the test only one.
        """
        data = self.data
        options: dict[str, Any] = {
            "window": data.window,
            "cap": data.cap,
            "scaling": Scaling.from_json(self.problem.scaling),
        }
        found = self.test_engines() if split == "test" else None
        if found is not None:
            engines, after = found
            logger.info("test: %d engines of test_%s.txt", len(engines.series), data.subset)
            return RemainingLife(engines, engines.whole(), last_only=True, after=after, **options)
        sections = self.sections()
        if not sections.get(split):
            raise ValueError(
                f"split: expected one of {', '.join(n for n in sections if sections[n])}, received "
                f"{split!r}; data.test_share above 0 makes a development part"
            )
        if split == "test":
            logger.info(
                "test: no test_%s.txt in %s, so the development part of the training file, %d "
                "engines cut off %d times each",
                data.subset,
                self.folder,
                len(sections[split]) // data.cuts,
                data.cuts,
            )
        return RemainingLife(self.engines, sections[split], last_only=split != "train", **options)

    def make_source(self, split: str) -> ScaledTargets:
        """Returns the windows of a split with lives as parts of ``data.cap``."""
        return ScaledTargets(self.lives(split), self.data.cap)

    # ---- Scores ------------------------------------------------------------------------------

    def make_scorer(self, split: str, *, complete: bool = False) -> Scorer:
        """Returns the function to the errors in cycles, those of a linear regression beside."""
        lives = self.source(split).source
        return functools.partial(score_lives, lives, self._baselines(lives))

    def scored_metrics(self, split: str) -> tuple[str, ...]:
        """Returns the names of ``make_scorer``'s metrics."""
        return ("rmse", "rmse_uncapped", "phm_score", "rmse_linear", "rmse_mean")

    def _baselines(self, lives: RemainingLife) -> dict[str, float]:
        """Returns the errors of predictions without a network; none without training engines."""
        if self.data.dataset != "embedded" and not self.training_file.is_file():
            logger.info("no %s: no linear regression beside the network", self.training_file)
            return {}
        train = self.source("train").source
        x, y = window_means(train), train.lives.astype(np.float64)
        weights, *_ = np.linalg.lstsq(x, y, rcond=None)
        linear = np.clip(window_means(lives) @ weights, 0, self.data.cap)
        mean = np.full(len(lives), y.mean())
        return {
            f"rmse_{name}": root_mean_square(predicted - lives.lives)
            for name, predicted in (("linear", linear), ("mean", mean))
        }


def score_lives(
    lives: RemainingLife,
    baselines: Mapping[str, float],
    records: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """Returns the errors of predicted lives.

    Args:
      lives: the windows with the true lives.
      baselines: errors of other predictions, which are returned too.
      records: of all windows, with ``predictions`` as parts of the cap.
    """
    rows = np.array([record["index"] for record in records])
    predicted = np.array([record["predictions"][0] for record in records]) * lives.cap
    truth = lives.lives[rows].astype(np.float64)
    return {
        "rmse": root_mean_square(predicted - truth),
        "rmse_uncapped": root_mean_square(predicted - lives.uncapped[rows]),
        "phm_score": float(phm_score(predicted, truth).sum()),
        **baselines,
    }


def window_means(lives: RemainingLife) -> np.ndarray:
    """Returns the mean of each channel over each window's cycles, and 1, (N,D+1) float64."""
    examples = examples_of(lives)
    sums = np.stack([example["inputs"].sum(0, dtype=np.float64) for example in examples])
    lengths = np.array([example["lengths"] for example in examples])
    return np.concatenate([sums / lengths[:, None], np.ones((len(sums), 1))], axis=1)


def root_mean_square(errors: np.ndarray) -> float:
    """Returns the root of the mean of squares."""
    return float(np.sqrt(np.mean(np.square(errors, dtype=np.float64))))


def generated_engines(count: int = 16) -> SeriesTable:
    """Returns engines whose noisy sensors drift faster and faster until they fail."""
    rng = np.random.default_rng(0)
    engines = []
    for number in range(count):
        cycles = int(rng.integers(40, 70))
        wear = np.arange(cycles)[:, None] / cycles
        slopes = np.linspace(-1, 1, len(COLUMNS) - 2)
        values = slopes * wear**3 + 0.1 * rng.normal(size=(cycles, len(slopes)))
        values[:, 2] = 100.0  # A setting that never changes, as in the files.
        engines.append(Series(values, str(number + 1), np.arange(1.0, cycles + 1)))
    return SeriesTable(tuple(engines), COLUMNS[2:])


def get_config(variant: str | None = None) -> RemainingLifeConfig:
    """Returns the configuration of a variant.

    Raises:
      ValueError: no such variant.
    """
    config = RemainingLifeConfig()
    if variant is None:
        return config
    if variant == "cnn":
        config.name = "TCN"
        config.model.encoder = SequenceEncoderConfig(
            "tcn", features=(32, 32, 32, 32), kernel_size=3, dropout_rate=0.1
        )
        config.model.recurrent = RecurrentConfig("none")
        return config
    if variant == "rnn":
        config.name = "LSTM"
        config.model.encoder = SequenceEncoderConfig()
        return config
    if variant == "smoke":
        config.batch_size, config.num_steps, config.eval_every = 8, 4, 2
        config.data = EnginesConfig("embedded", window=10, cuts=2)
        config.model.encoder.features = (8,)
        config.model.recurrent.features = 8
        config.model.head.hidden_features = 0
        config.optimizer.warmup_steps = 1
        return config
    raise ValueError(f"remaining_life:{variant}: no such variant{nearest(variant, VARIANTS)}")
