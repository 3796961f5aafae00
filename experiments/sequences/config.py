"""Configuration that the experiments on sequences share: model, task, loaders, scores."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from data.batches import Source
from data.loader import Loader
from data.series import CLASSIFICATION_STEP_KEYS, STEP_KEYS
from data.width_buckets import WidthBuckets
from flaxnets.configuration import check_at_least, nearest, runtime
from flaxnets.models.sequence_model import (
    SequenceModel,
    SequenceModelConfig,
    make_sequence_model,
)
from flaxnets.recurrent.config import AVERAGE
from flaxnets.tasks.sequence_regression import SequenceRegression
from flaxnets.tasks.step_prediction import StepPrediction, score_steps
from flaxnets.tasks.task import Task
from flaxnets.tasks.video_classification import VideoClassification
from flaxnets.training.config import Config, Scorer, UndefinedMethod
from flaxnets.training.workdir import write_text_atomically

PROBLEM_FILE = "problem.json"
"""File of the workdir that keeps the ``Problem``, so that the model is built without the data."""

OBJECTIVES = ("classification", "regression", "steps", "stream")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Inputs and outputs of a network, the same for all splits of a data set.

    Attributes:
      objective: ``classification``: a class for each sequence; ``regression``: forecasts or numbers
        for each; ``steps``: something at each step; ``stream``: as ``steps``, and the carry goes
        from window to window.
      num_outputs: K: classes, tokens, keys, or horizons times channels.
      num_tokens: V, where the inputs are tokens; 0: they are values.
      distribution: of ``steps`` and ``stream``: ``softmax`` or ``bernoulli``.
      class_names: of ``classification``, by label.
      tokens: the vocabulary, by id; empty where the inputs are values.
      channels: names of the inputs that are values; empty: not named.
      forecast_channels: numbers of the input channels that are forecast.
      with_observed: the mask of the values that are not missing follows them as further channels.
      scaling: of the inputs, ``data.series.Scaling.to_json``; None: not scaled.

    Raises:
      ValueError: an unknown objective.
    """

    objective: str
    num_outputs: int
    num_tokens: int = 0
    distribution: str = "softmax"
    class_names: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    forecast_channels: tuple[int, ...] = ()
    with_observed: bool = False
    scaling: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            near = nearest(self.objective, OBJECTIVES)
            raise ValueError(f"objective: unknown {self.objective!r}{near}")

    def to_json(self) -> dict[str, Any]:
        """Returns the attributes for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Problem":
        """Returns the problem that ``to_json`` gave."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
        }
        return cls(**values)


@dataclasses.dataclass
class SequenceExperiment(Config):
    """Experiment on sequences; a subclass defines ``read_problem`` and ``make_source``.

    A source has ``__len__``, ``__getitem__`` to a ``SequenceExample`` and ``describe``, as those of
    ``data.series``. One with ``plan(train=…)`` orders its own batches, as a stream; of one with
    ``lengths()`` the batches are filled by steps where ``batch_steps`` is set.
    """

    best_metric: str = "loss"
    best_mode: str = "min"
    batch_steps: int = 0
    """Steps of a batch, padding included: sequences of similar length make one, as many as fit; 0:
    ``batch_size`` sequences, all padded to one length."""
    loss_kind: str = "squared"
    """Regression only: ``squared`` or ``absolute``."""
    label_smoothing: float = 0.0
    """Classification only: share of the target probability, in [0,1), spread over all classes."""
    mixup: float = 0.0
    """Classification of values only: α of the Beta distribution of mixup's weights (Zhang et al.,
    1710.09412), over the steps that both sequences have; 0: no mixup."""
    num_threads: int = runtime(0)
    """Threads that read examples; 0: that of the caller, which is faster for examples in memory."""
    model: SequenceModelConfig = dataclasses.field(default_factory=SequenceModelConfig)

    def __post_init__(self) -> None:
        # No fields, so they are neither flags nor part of config.json.
        self._problem: Problem | None = None
        self._sources: dict[str, Any] = {}

    # ---- What a subclass defines -------------------------------------------------------------

    def read_problem(self) -> Problem:
        """Returns what the network reads and predicts, from the training data."""
        raise UndefinedMethod(self, "read_problem")

    def make_source(self, split: str) -> Any:
        """Returns the examples of ``train``, ``validation`` or, if there is one, ``test``.

        Raises:
          ValueError: no such split.
        """
        raise UndefinedMethod(self, "make_source")

    # ---- What follows from it ----------------------------------------------------------------

    @property
    def problem(self) -> Problem:
        """Inputs and outputs of the network: the trained model's, or else the data's."""
        if self._problem is None:
            self._problem = self.read_problem()
        return self._problem

    def source(self, split: str) -> Any:
        """Returns the examples of a split, made once."""
        if split not in self._sources:
            self._sources[split] = self.make_source(split)
        return self._sources[split]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by label; empty of problems without."""
        return self.problem.class_names

    def validate(self) -> None:
        """Checks the values as ``Config.validate``, and those of the batches."""
        super().validate()
        check_at_least("config", self, {"batch_steps": 0, "num_threads": 0})
        if not 0 <= self.mixup < math.inf:
            raise ValueError(f"mixup: expected at least 0, received {self.mixup}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected in [0,1), received {self.label_smoothing}")

    def make_model(self) -> SequenceModel:
        """Returns the network that ``model`` describes, for the problem's inputs and outputs."""
        problem = self.problem
        pooled = problem.objective in ("classification", "regression")
        pool = self.model.head.pool
        if not pooled and pool != "none":
            raise ValueError(
                f"model.head.pool: expected 'none', since each step is predicted, received {pool!r}"
            )
        if problem.objective == "regression" and pool == "none":
            raise ValueError(
                "model.head.pool: expected a pooling over time, as last, since a sequence has one "
                "forecast, received 'none'"
            )
        if not pooled and self.model.recurrent.bidirectional:
            raise ValueError(
                "model.recurrent.bidirectional: expected False, since a step that is predicted "
                "would be read, received True"
            )
        if not pooled and self.model.recurrent.cell == AVERAGE:
            raise ValueError(
                "model.recurrent.cell: expected a recurrent cell or 'none', since the average over "
                "time would read the steps that are predicted, received 'average'"
            )
        model = make_sequence_model(
            self.model,
            problem.num_outputs,
            num_tokens=problem.num_tokens,
            forecast_channels=problem.forecast_channels,
            with_observed=problem.with_observed,
        )
        if not pooled and model.stride > 1:
            raise ValueError(
                f"model.encoder.pools: expected none, since each step is predicted, received "
                f"{self.model.encoder.pools}"
            )
        return model

    def make_task(self) -> Task:
        """Returns the task of the problem's objective."""
        problem = self.problem
        classified = problem.objective == "classification"
        if self.label_smoothing and not classified:
            raise ValueError(
                f"label_smoothing: expected 0 without classes, received {self.label_smoothing}"
            )
        if self.mixup and (not classified or problem.num_tokens):
            raise ValueError(
                f"mixup: expected 0, as only values with classes are mixed, received {self.mixup}"
            )
        if classified:
            inputs = "tokens" if problem.num_tokens else "inputs"
            return VideoClassification(
                loss_kind="clip",
                inputs=(inputs,),
                label_smoothing=self.label_smoothing,
                mixup=self.mixup,
            )
        if problem.objective == "regression":
            return SequenceRegression(self.loss_kind)
        carried = self.batch_size if problem.objective == "stream" else 0
        return StepPrediction(problem.distribution, carried)

    def make_data(self, split: str) -> Loader:
        """Returns the batches of a split: ``train`` without end, any other once and in order."""
        source, train = self.source(split), split == "train"
        options: dict[str, Any] = {}
        if hasattr(source, "plan"):
            options["plan"] = source.plan(train=train)
        elif self.batch_steps and hasattr(source, "lengths"):
            pooled = self.problem.objective in ("classification", "regression")
            options["plan"] = WidthBuckets(
                source.lengths(),
                batch_width=self.batch_steps,
                row_multiple=jax.device_count() * self.accumulate_steps,
                step_keys=CLASSIFICATION_STEP_KEYS if pooled else STEP_KEYS,
                train=train,
                seed=self.seed,
            )
        return Loader(
            source,
            batch_size=self.batch_size,
            train=train,
            identity=source.describe(),
            seed=self.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=self.num_threads,
            **options,
        )

    def make_scorer(self, split: str, *, complete: bool = False) -> Scorer | None:
        """Returns the function to perplexity and bits a step, of predicted tokens and keys."""
        if self.problem.objective in ("steps", "stream"):
            return score_steps
        return None

    def scored_metrics(self, split: str) -> tuple[str, ...]:
        """Returns the names of ``make_scorer``'s metrics."""
        return ("perplexity", "bits") if self.problem.objective in ("steps", "stream") else ()

    # ---- What a run keeps --------------------------------------------------------------------

    def describe_data(self, split: str) -> dict[str, Any]:
        """Returns the classes, and what identifies the examples of a split."""
        return {"class_names": list(self.class_names), **self.source(split).describe()}

    def describe_preprocessing(self) -> dict[str, Any]:
        """Returns the scaling and the vocabulary."""
        problem = self.problem
        return {"scaling": problem.scaling, "tokens": list(problem.tokens)}

    def save_assets(self, folder: Path) -> None:
        """Writes the problem of the run."""
        text = json.dumps(self.problem.to_json(), ensure_ascii=False, indent=1)
        write_text_atomically(folder / PROBLEM_FILE, text)

    def load_assets(self, folder: Path) -> None:
        """Reads the problem of a trained run, so that its model is built without its data."""
        self._problem = Problem.from_json(json.loads((folder / PROBLEM_FILE).read_text()))


def examples_of(source: Source, indices: Sequence[int] | None = None) -> list[Mapping[str, Any]]:
    """Returns examples of a source; all of them by default."""
    return [source[i] for i in (range(len(source)) if indices is None else indices)]
