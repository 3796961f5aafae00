"""Configuration of experiments on series: forecasts, and classes of windows or of sequences."""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from data.batches import SequenceExample
from data.datasets.number_tables import MISSING
from data.datasets.sequence_npz import read_sequence_npz
from data.datasets.series_csv import read_series
from data.datasets.tfds_records import TfdsConfig, read_sequence_records
from data.datasets.ts_files import read_ts
from data.loader import Loader
from data.series import (
    FORECAST_SCORES,
    ForecastWindows,
    LabelledSequences,
    LabelledWindows,
    Scaling,
    Section,
    SequenceSource,
    Series,
    SeriesTable,
    fit_scaling,
    forecast_scores,
    split_by_group,
    split_by_time,
)
from data.series.scaling import Kind
from experiments.sequences.config import Problem, SequenceExperiment
from experiments.sequences.forecast_files import LastWindows, describe_forecast, without_mask
from flaxnets.configuration import check_at_least, nearest, path_field
from flaxnets.models.sequence_model import SequenceModel
from flaxnets.training.config import Scorer

TASKS = ("forecast", "classify")
DATASETS = ("files", "tfds", "embedded")
SPLIT_KINDS = ("time", "group")
SCALED = ("squared_error", "absolute_error")
"""Names of the errors in the scale of the targets, of the naive forecasts as of the task."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class SeriesConfig:
    """Location of series, their columns, their windows and their split."""

    dataset: str = "files"
    """``files``; ``tfds``: sequences with a class each that TFDS has prepared in the folder
    ``root``; or ``embedded``: generated sines whose frequency changes now and then, with the
    frequency as label."""
    tfds: TfdsConfig = dataclasses.field(default_factory=TfdsConfig)
    """Builder and keys of a data set of TFDS."""
    task: str = "forecast"
    """``forecast``: the values at ``horizons``. ``classify``: the label of each window's last step
    or, of ``root``, of each sequence."""
    list: str = path_field(runtime=True)
    """Table with a row for each time, as CSV, NPZ or Parquet."""
    root: str = path_field(runtime=True)
    """``classify`` without a table: folder with ``NAME_TRAIN.ts`` and ``NAME_TEST.ts``, or an NPZ
    file with the arrays of ``data/datasets/sequence_npz.py``."""
    columns: tuple[str, ...] = ()
    """Columns of the values, named or numbered from 0; empty: all but those named below."""
    time: str = ""
    """Column of the times; empty: none, each row is a step."""
    group: str = ""
    """Column that tells several series apart, as engine or station; empty: one series."""
    label: str = ""
    """``classify`` only: column of the class of each row."""
    split: str = ""
    """Column of ``train``, ``validation`` or ``test``, the same in all rows of a group; empty: the
    split is made as ``split_by`` says."""
    time_format: str = ""
    """Of dates other than ISO 8601, as ``%d.%m.%Y %H:%M``."""
    sort: bool = False
    """Sorts the rows of each series by time; False: times that run backwards are refused."""
    duplicates: str = "refuse"
    """Of rows with the time of another: ``first`` or ``last`` is kept, or ``refuse``."""
    gaps: str = "refuse"
    """Treatment of missing rows: ``refuse``, ``fill`` with missing values, ``split`` the series, or
    ``ignore``, as of business days."""
    missing: tuple[str, ...] = ()
    """Texts of missing values in a text file besides the empty cell, ``nan``, ``na``, ``n/a``,
    ``null``, ``none`` and ``?``, in any letter case; numbers, as ``-999``, by their value."""
    separator: str = ""
    """Of a text file's cells: one character, or a blank for any number of blanks; empty: found."""
    decimal: str = ""
    """Mark in a text file's numbers, ``.`` or ``,``; empty: found."""
    targets: tuple[str, ...] = ()
    """``forecast`` only: columns that are forecast, of those above; empty: all."""
    window: int = 96
    """Steps of the inputs."""
    horizons: tuple[str, ...] = ("1",)
    """``forecast`` only: steps ahead, numbers or ranges, as ``3`` or ``1-24`` or ``1,6,12-24``."""
    period: int = 0
    """``forecast`` only: steps after which the series repeats, as 24 of hours, for the seasonal
    naive forecast; 0: no such forecast."""
    stride: int = 1
    """Steps from one window to the next."""
    scaling: str = "standard"
    """``standard``, ``min_max``, ``max_abs`` or ``none``, fitted on the training part."""
    split_by: str = "time"
    """``time``: each series is cut into consecutive ``parts``. ``group``: whole series."""
    parts: tuple[float, ...] = (0.6, 0.2, 0.2)
    """Of ``time``: shares of train, validation and, if there are three, test, or numbers of rows,
    as ``8640,2880,2880``."""
    validation_share: float = 0.15
    """Of ``group`` and of ``root``: share of the groups, or of the training sequences."""
    test_share: float = 0.2
    """Of ``group``: share of the groups; 0: no test split."""
    split_seed: int = 0
    """Seed of the draw of groups or sequences."""


class ObservedInputs:
    """Source whose inputs have the mask of the observed values as further channels; picklable.

    A network that reads zeros for missing values does not know them from measurements.

    Args:
        source: examples with ``inputs`` (P,D) float32 and, where the data miss values,
            ``observed`` (P,D) bool.
    """

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"ObservedInputs({self.source!r})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        return {**self.source.describe(), "with_observed": True}

    def explain(self, index: int) -> str:
        """Returns why an example has ``mask`` False."""
        return str(self.source.explain(index))

    def __getitem__(self, index: int, /) -> SequenceExample:
        """Returns example ``index`` with ``inputs`` (P,2D) float32."""
        example: SequenceExample = self.source[index].copy()
        observed = example.pop("observed", None)
        if observed is None:
            observed = np.ones(example["inputs"].shape, bool)
        mask = observed.astype(np.float32)
        example["inputs"] = np.concatenate([example["inputs"], mask], axis=-1)
        return example


@dataclasses.dataclass
class SeriesExperiment(SequenceExperiment):
    """Experiment on series of one's own: forecasts or classes."""

    unit: ClassVar[str] = "window"
    """Word for an example in a report."""

    data: SeriesConfig = dataclasses.field(default_factory=SeriesConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._table: SeriesTable | None = None
        self._sequences: dict[str, LabelledSequences] = {}
        self._ends: list[str] = []

    # ---- Values ------------------------------------------------------------------------------

    def validate(self) -> None:
        """Checks the values as ``SequenceExperiment.validate``, and those of the data."""
        super().validate()
        data = self.data
        check_at_least("data", data, {"window": 1, "stride": 1, "period": 0})
        for name, options in (
            ("dataset", DATASETS),
            ("task", TASKS),
            ("split_by", SPLIT_KINDS),
        ):
            if (value := getattr(data, name)) not in options:
                raise ValueError(f"data.{name}: unknown {value!r}{nearest(value, options)}")
        parse_horizons(data.horizons)
        # Ignored, they would leave the labels among the values, or forecast nothing of the targets.
        if data.task == "forecast" and data.label:
            raise ValueError(
                f"data.label: expected none with data.task='forecast', received {data.label!r}; "
                "give --config.data.task=classify, or name the values in --config.data.columns"
            )
        if data.task == "classify" and data.targets:
            raise ValueError(
                "data.targets: expected none with data.task='classify', received "
                f"{', '.join(data.targets)}; give --config.data.task=forecast, or the column of "
                "classes as --config.data.label"
            )
        if data.task == "classify":
            for name, unused, text in (("horizons", ("1",), "1"), ("period", 0, "0")):
                if (value := getattr(data, name)) != unused:
                    raise ValueError(
                        f"data.{name}: expected {text} with data.task='classify', which forecasts "
                        f"nothing, received {value}; give --config.data.{name}={text}"
                    )
        if data.dataset == "tfds":
            self._validate_records()
        if data.dataset != "files":
            return
        if data.list and data.root:
            raise ValueError(
                "data.list, data.root: expected a table of series, or sequences with one class "
                f"each, received both, {data.list} and {data.root}"
            )
        if data.root and data.label:
            raise ValueError(
                "data.label: expected none with data.root, whose files have the classes of the "
                f"sequences, received {data.label!r}; a table is given by --config.data.list"
            )
        if data.task == "forecast" and not data.list:
            raise ValueError(
                "data.list: expected a table of series; give --config.data.list=FILE.csv"
            )
        if data.task == "classify" and not (data.root or (data.list and data.label)):
            raise ValueError(
                "data.label: expected a table and its column of classes; give "
                "--config.data.list=FILE.csv --config.data.label=COLUMN, or --config.data.root="
                "FOLDER of .ts files"
            )

    def _validate_records(self) -> None:
        data = self.data
        if data.task != "classify":
            raise ValueError(
                f"data.task: expected classify with data.dataset=tfds, received {data.task!r}; "
                "series that are forecast are a table, --config.data.list=FILE.csv"
            )
        if not data.root:
            raise ValueError(
                "data.root: expected TFDS's folder of data sets; give --config.data.root=FOLDER"
            )
        for name in ("list", "label", "columns", "time", "group", "split"):
            if value := getattr(data, name):
                raise ValueError(
                    f"data.{name}: expected none with data.dataset=tfds, whose records have keys, "
                    f"as data.tfds.label, and splits of their own, received {value!r}"
                )

    @property
    def steps_ahead(self) -> tuple[int, ...]:
        """The horizons H as ascending numbers."""
        return parse_horizons(self.data.horizons)

    # ---- Series ------------------------------------------------------------------------------

    @property
    def table(self) -> SeriesTable:
        """The series of ``data.list``, or the embedded ones."""
        if self._table is None:
            data = self.data
            self._table = (
                generated_series(data.window)
                if data.dataset == "embedded"
                else self.read(data.list)
            )
            for note in self._table.notes:
                logger.info("%s: %s", Path(data.list).name, note)
        return self._table

    def read(self, path: str, columns: Sequence[str] = ()) -> SeriesTable:
        """Reads a table with the columns of ``data``.

        Args:
          path: of the table.
          columns: of the values, alone beside times and groups, as a forecast needs them; empty:
            those of ``data``, with labels and splits.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: as ``data.datasets.series_csv.read_series``, with the flag's name.
        """
        data = self.data
        labelled = not columns and data.task == "classify"
        return with_flags(
            lambda: read_series(
                path,
                columns=columns or data.columns,
                time=data.time,
                group=data.group,
                label=data.label if labelled else "",
                split="" if columns else data.split,
                time_format=data.time_format,
                sort=data.sort,
                duplicates=data.duplicates,
                gaps=data.gaps,
                missing=(*MISSING, *data.missing),
                separator=data.separator,
                decimal=data.decimal,
            )
        )

    def sections(self) -> dict[str, tuple[Section, ...]]:
        """Returns the parts of the series by split.

        Raises:
          ValueError: as ``split_by_time`` and ``split_by_group``, with the flag's name.
        """
        data = self.data
        if data.split or data.split_by == "group":
            return with_flags(
                lambda: split_by_group(
                    self.table,
                    validation_share=data.validation_share,
                    test_share=data.test_share,
                    seed=data.split_seed,
                )
            )
        return with_flags(lambda: split_by_time(self.table, data.parts))

    # ---- What the network reads and predicts -------------------------------------------------

    def read_problem(self) -> Problem:
        """Returns the forecasts, or the classes, and the scaling of the training part."""
        data = self.data
        if data.task == "classify" and data.root:
            train = self._labelled("train")
            scaling = with_flags(lambda: Scaling.fit(train.sequences, cast(Kind, data.scaling)))
            missing = any(bool(np.isnan(x).any()) for x in self._all_sequences())
            return Problem(
                "classification",
                len(train.class_names),
                class_names=train.class_names,
                channels=train.channels,
                with_observed=missing,
                scaling=scaling.to_json(),
            )
        table = self.table
        parts = self.sections()["train"]
        scaling = with_flags(lambda: fit_scaling(table, parts, cast(Kind, data.scaling)))
        shared: dict[str, Any] = {
            "channels": table.channels,
            "with_observed": table.has_missing,
            "scaling": scaling.to_json(),
        }
        if data.task == "classify":
            names = table.class_names
            return Problem("classification", len(names), class_names=names, **shared)
        chosen = with_flags(lambda: table.channel_numbers(data.targets, "targets"))
        outputs = len(chosen) * len(self.steps_ahead)
        return Problem("regression", outputs, forecast_channels=tuple(chosen), **shared)

    def make_source(self, split: str) -> Any:
        """Returns the windows or the sequences of a split.

        Raises:
          ValueError: no such split, other channels than in training, or windows that do not fit.
        """
        problem = self.problem
        source: Any
        if self.data.task == "classify" and self.data.root:
            scaling = Scaling.from_json(problem.scaling)
            sequences = self._labelled(split)
            if not problem.with_observed and any(np.isnan(x).any() for x in sequences.sequences):
                raise ValueError(without_mask(f"data.root: split {split!r}"))
            source = SequenceSource(sequences, scaling=scaling)
        else:
            source = self._windows(split)
        return ObservedInputs(source) if problem.with_observed else source

    def _windows(self, split: str) -> ForecastWindows | LabelledWindows:
        data, problem, table, sections = self.data, self.problem, self.table, self.sections()
        if split not in sections:
            raise ValueError(
                f"split: expected one of {', '.join(sections)}, received {split!r}; three "
                "data.parts, a data.test_share above 0 or test rows in data.split make a test part"
            )
        if table.channels != problem.channels:
            raise ValueError(
                f"data.columns: expected those of the training, {', '.join(problem.channels)}, "
                f"received {', '.join(table.channels)}"
            )
        if table.has_missing and not problem.with_observed:
            raise ValueError(without_mask("data.list"))
        options: dict[str, Any] = {
            "window": data.window,
            "stride": data.stride,
            "scaling": Scaling.from_json(problem.scaling),
        }
        if data.task == "classify":
            return with_flags(lambda: LabelledWindows(table, sections[split], **options))
        options |= {"horizons": self.steps_ahead, "targets": problem.forecast_channels}
        return with_flags(lambda: ForecastWindows(table, sections[split], **options))

    def _labelled(self, split: str) -> LabelledSequences:
        """Returns the sequences of a split; validation is held out of the training sequences."""
        if split not in ("train", "validation", "test"):
            raise ValueError(f"split: expected train, validation or test, received {split!r}")
        if self.data.dataset == "tfds":
            self._sequences = self._sequences or self._read_records()
        elif split not in self._sequences:
            self._sequences |= self._read_files(split)
        if split not in self._sequences:
            raise ValueError(
                f"split: expected one of {', '.join(self._sequences)}, received {split!r}, which "
                f"{self._sequences['train'].name} does not have"
            )
        return self._sequences[split]

    def _read_files(self, split: str) -> dict[str, LabelledSequences]:
        """Returns the sequences of ``root`` that are in one file with those of a split."""
        found = read_sequences(self.data.root, "test" if split == "test" else "train")
        if found.targets is not None:
            raise ValueError(
                f"{self.data.root}: expected sequences with classes, received numbers as targets"
            )
        return {"test": found} if split == "test" else self._hold_out(found)

    def _read_records(self) -> dict[str, LabelledSequences]:
        """Returns the sequences of TFDS; its own validation split counts, if there is one."""
        try:
            found = read_sequence_records(self.data.root, self.data.tfds)
        except (ValueError, FileNotFoundError) as error:
            if not str(error).startswith("tfds."):
                raise
            raise type(error)(f"data.{error}") from error  # The flag.
        return found if "validation" in found else found | self._hold_out(found["train"])

    def _hold_out(self, train: LabelledSequences) -> dict[str, LabelledSequences]:
        data = self.data
        kept, held = with_flags(lambda: train.hold_out(data.validation_share, data.split_seed))
        return {"train": kept, "validation": held}

    def _all_sequences(self) -> Sequence[np.ndarray]:
        """Returns the sequences of all splits, so that all of them have the same channels."""
        found = [*self._labelled("train").sequences, *self._labelled("validation").sequences]
        # A split that is absent or cannot be read is reported where it is evaluated.
        with contextlib.suppress(FileNotFoundError, ValueError):
            found += self._labelled("test").sequences
        return found

    def make_model(self) -> SequenceModel:
        """Returns the network that ``model`` describes; a classifier has no forecasts."""
        model = super().make_model()
        if self.problem.objective == "classification":
            return model.clone(autoregressive_steps=0, relative=False)
        return model

    # ---- Scores ------------------------------------------------------------------------------

    def forecast_windows(self, split: str) -> ForecastWindows:
        """Returns the windows of a split, without the mask among the inputs."""
        source = self.source(split)
        windows: ForecastWindows = getattr(source, "source", source)
        return windows

    def make_scorer(self, split: str, *, complete: bool = False) -> Scorer | None:
        """Returns the function to the scores of forecasts, those of the naive ones beside them."""
        if self.problem.objective == "regression":
            return ForecastScorer(self.forecast_windows(split), self.data.period)
        return super().make_scorer(split, complete=complete)

    def scored_metrics(self, split: str) -> tuple[str, ...]:
        """Returns the names of ``make_scorer``'s metrics."""
        if self.problem.objective != "regression":
            return super().scored_metrics(split)
        kinds = ("last", "seasonal") if self.data.period else ("last",)
        naive = [f"{name}_{kind}" for kind in kinds for name in (*FORECAST_SCORES, *SCALED)]
        return (*FORECAST_SCORES, *naive)

    # ---- Files -------------------------------------------------------------------------------

    def make_prediction_data(self, paths: Sequence[str]) -> Loader:
        """Returns the last window of each file, whose continuation is forecast.

        Raises:
          ValueError: the run classifies.
        """
        problem = self.problem
        if problem.objective != "regression":
            raise ValueError(
                "data.task: expected a run that forecasts, received one that classifies; "
                "launch.evaluate classifies the sequences of a split"
            )
        windows = LastWindows(
            paths,
            lambda path: self.read(path, problem.channels),
            problem,
            window=self.data.window,
            horizons=self.steps_ahead,
        )
        self._ends = windows.ends
        source: Any = ObservedInputs(windows) if problem.with_observed else windows
        return Loader(source, batch_size=1, train=False, num_threads=0, max_bad_share=1.0)

    def describe_prediction(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the forecast of a file, for JSON; ``launch.predict`` prints it."""
        end = self._ends[record["index"]]
        return describe_forecast(record["predictions"], end, self.problem, self.steps_ahead)


class ForecastScorer:
    """Scores of forecasts in the series' own units, and those of the naive forecasts.

    ``rse``, ``corr``, ``rmse`` and ``mae`` (``data.series.scores``) of the network; with the
    endings ``_last`` and ``_seasonal`` those of the last value and of the value one period before;
    of these also ``squared_error`` and ``absolute_error`` in the scale of the targets, as the task
    has them of the network: with the scaling ``standard`` the MSE and MAE of papers on ETT.

    Args:
        windows: of the split.
        period: of the seasonal naive forecast, steps; 0: none.

    Raises:
        ValueError: the period is out of range.
    """

    def __init__(self, windows: ForecastWindows, period: int) -> None:
        self._windows = windows
        examples: list[Mapping[str, Any]] = [windows[i] for i in range(len(windows))]
        self._scaled = np.stack([example["targets"] for example in examples])
        self._mask = np.stack([example["target_mask"] for example in examples])
        self._targets = windows.inverse(self._scaled)
        self._naive: dict[str, float] = {}
        for name, steps in (("last", 1), ("seasonal", period)):
            if steps:
                found = with_flags(partial(windows.naive_forecasts, steps))
                scores = self._score_naive(found)
                self._naive |= {f"{score}_{name}": value for score, value in scores.items()}

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Returns the scores of records with ``index`` and ``predictions`` in the scale."""
        rows = np.array([record["index"] for record in records])
        predictions = np.array([record["predictions"] for record in records], np.float64)
        forecasts = self._windows.inverse(predictions)
        return forecast_scores(forecasts, self._targets[rows], self._mask[rows]) | self._naive

    def _score_naive(self, forecasts: np.ndarray) -> dict[str, float]:
        # Where no value comes before, there is no naive forecast.
        mask = self._mask & ~np.isnan(forecasts)
        if not mask.any():
            return dict.fromkeys((*FORECAST_SCORES, *SCALED), float("nan"))
        error = (forecasts.astype(np.float64) - self._scaled)[mask]
        scaled = {
            "squared_error": float((error**2).mean()),
            "absolute_error": float(np.abs(error).mean()),
        }
        filled = np.where(mask, forecasts, 0)
        return forecast_scores(self._windows.inverse(filled), self._targets, mask) | scaled


def parse_horizons(texts: Sequence[str]) -> tuple[int, ...]:
    """Returns the steps ahead of numbers and ranges.

    >>> parse_horizons(("1", "6", "12-14"))
    (1, 6, 12, 13, 14)

    Raises:
      ValueError: anything else, or numbers that do not ascend from at least 1.
    """
    steps: list[int] = []
    for text in texts:
        first, dash, last = str(text).partition("-")
        ends = (first.strip(), last.strip() if dash else first.strip())
        if not all(end.isdecimal() for end in ends):
            raise ValueError(
                f"data.horizons: expected numbers or ranges, as 3 or 1-24, received {text!r}"
            )
        if int(ends[1]) < int(ends[0]):
            raise ValueError(
                f"data.horizons: expected ranges from the smaller number to the larger one, "
                f"received {text!r}"
            )
        steps += range(int(ends[0]), int(ends[1]) + 1)
    if not steps or steps[0] < 1 or steps != sorted(set(steps)):
        raise ValueError(
            f"data.horizons: expected ascending numbers of at least 1, received {tuple(texts)}"
        )
    return tuple(steps)


def read_sequences(root: str, split: str) -> LabelledSequences:
    """Reads one split of a folder of ``.ts`` files, or of an NPZ file.

    Args:
      root: folder with ``NAME_TRAIN.ts`` and ``NAME_TEST.ts`` or one NPZ file, or an NPZ file.
      split: ``train`` or ``test``.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: no such split, or as ``read_ts`` and ``read_sequence_npz``.
    """
    path = Path(root)
    if not path.exists():
        raise FileNotFoundError(
            f"data.root: expected a folder of .ts files or an NPZ file, found nothing at {root}"
        )
    if path.is_dir() and not list(path.glob("*.ts")) and len(list(path.glob("*.npz"))) == 1:
        (path,) = path.glob("*.npz")
    if path.suffix.lower() == ".npz":
        return read_sequence_npz(path, split)
    if path.suffix.lower() == ".ts" and path.is_file():
        raise ValueError(
            f"data.root: expected the folder of NAME_TRAIN.ts and NAME_TEST.ts, received the file "
            f"{root}; give its folder"
        )
    if path.is_file():
        raise ValueError(
            f"data.root: expected a folder of .ts files or an NPZ file, received {root}; a table "
            "with a row for each time is given by --config.data.list"
        )
    return read_ts(path, split)


def generated_series(window: int, num_steps: int = 0) -> SeriesTable:
    """Returns a noisy sine and its lagged copy whose frequency changes, for tests.

    Args:
      window: steps of the windows; the frequency is kept for several of them.
      num_steps: T; 0: 40 windows.
    """
    steps = num_steps or 40 * window
    rng = np.random.default_rng(0)
    label = (np.arange(steps) // (3 * window) + rng.integers(2)) % 2
    phase = np.cumsum(2 * np.pi * (1 + label) / 24)
    noise = 0.1 * rng.normal(size=(steps, 2))
    values = np.stack([np.sin(phase), 2 + np.cos(phase)], 1) + noise
    series = Series(values, labels=label.astype(np.int32))
    return SeriesTable((series,), ("sine", "cosine"), ("slow", "fast"))


_ARGUMENTS = {
    **{name: name for name in ("columns", "time", "group", "label", "split", "targets", "period")},
    **{name: name for name in ("gaps", "duplicates", "parts", "validation_share", "test_share")},
    **{name: name for name in ("window", "horizons", "stride")},
    **{name: name for name in ("missing", "separator", "decimal")},
    "kind": "scaling",
    "arrays": "columns",
    "share": "validation_share",
    "table": "group",
}
"""Arguments of the readers, windows and splits, and the fields of ``SeriesConfig`` they are."""
_NAMES = "|".join(sorted(_ARGUMENTS, key=len, reverse=True))
_BEGIN = re.compile(rf"(?<![\w.])((?:{_NAMES})(?:, (?:{_NAMES}))*): (?=expected|unknown)")
_SETTING = re.compile(r"(?<![\w.])(sort|gaps|duplicates|time_format|missing|decimal)=")


def with_flags(call: Callable[[], Any]) -> Any:
    """Returns what a function returns; its errors name flags in place of arguments.

    Raises:
      ValueError: the function's, as ``data.columns: expected …`` for ``columns: expected …``.
    """
    try:
        return call()
    except ValueError as error:
        text = _BEGIN.sub(
            lambda found: (
                ", ".join(f"data.{_ARGUMENTS[name]}" for name in found[1].split(", ")) + ": "
            ),
            str(error),
        )
        text = _SETTING.sub(lambda found: f"--config.data.{found[1]}=", text)
        raise ValueError(text) from error
