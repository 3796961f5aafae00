"""The typed configuration that every experiment extends, and what can be said of two of them."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import numpy as np

from flaxnets.configuration import nearest, runtime
from flaxnets.tasks.task import Task

# What training asks of data: batches from any position on, and what fixes their order.


class Data(Protocol):
    """Batches of one split for this process."""

    @property
    def num_examples(self) -> int:
        """Examples in the split, over all processes."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one pass over the split."""

    def describe(self) -> dict[str, Any]:
        """What fixes the order of the batches, as JSON; a checkpoint records it."""

    def batches(self, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        """A fresh pass from batch number ``start`` on.

        Batch ``k`` is a function of the split and the seed alone: neither the number of processes
        or workers nor ``start`` changes it.
        """


Scorer = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, float]]
"""Records of all examples of a split, with ``index``, to metrics by name."""


@dataclasses.dataclass
class OptimizerConfig:
    """An optax optimizer with its schedule; see ``flaxnets.training.optimizer``."""

    name: str = "adam"
    """``sgd``, ``adam`` or ``adamw``."""
    learning_rate: float = 1e-3
    """The peak, before the schedule and the multipliers."""
    schedule: str = "constant"
    """``constant``, ``cosine`` or ``linear`` (to zero at the last step), ``step``."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly from zero."""
    decay_every: int = 10_000
    """``step`` only: steps between two decays."""
    decay_rate: float = 0.1
    """``step`` only: factor of a decay."""
    momentum: float = 0.9
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    """On arrays of two and more axes. L2 in the gradient for ``sgd`` and ``adam``, decoupled for
    ``adamw``."""
    clip_norm: float = 0.0
    """Bound of the gradient's global norm; 0 clips nothing."""
    multipliers: dict[str, float] = dataclasses.field(default_factory=dict)
    """Factors of the learning rate by parameters' paths or what these begin with, as
    ``{"classifier": 10.0, "decoder/embedding": 0.1}``; the longest name that fits counts."""
    frozen: tuple[str, ...] = ()
    """Parameters that never change, named likewise, as ``("encoder",)``."""


class UndefinedMethod(TypeError):
    """The experiment does not define a method that what was asked for needs."""


@dataclasses.dataclass
class Config:
    """The hyper-parameters of a run, and the methods that build its parts.

    An experiment subclasses this with its fields and defines the ``make_`` methods.
    """

    name: str = "model"
    """What tables call this network."""
    seed: int = 0
    batch_size: int = 32
    """Examples in a batch over all devices and processes."""
    num_steps: int = 1_000
    eval_every: int = 100
    """Steps between two evaluations of ``eval_split``; the last step always evaluates."""
    eval_split: str = "validation"
    """The split that chooses the best checkpoint; empty: none, the last one counts."""
    best_metric: str = "accuracy"
    best_mode: str = "max"
    """``max`` or ``min``: which end of ``best_metric`` is the best."""
    patience: int = 0
    """Evaluations in a row without a better ``best_metric`` after which training ends; 0: never."""
    log_every: int = runtime(20)
    """Steps between two records of the training metrics."""
    checkpoint_every: int = runtime(100)
    """Steps between two checkpoints; the last step always saves."""
    keep_checkpoints: int = runtime(2)
    """Newest checkpoints kept beside the best."""
    accumulate_steps: int = 1
    """Micro-batches of ``batch_size / accumulate_steps`` examples whose gradients make one step."""
    ema_decay: float = 0.0
    """Share of the old average of parameters that a step keeps, at most (1 + n) / (10 + n) at step
    n; evaluation, inference and the best checkpoint are of the average. 0: none."""
    initialize_from: str = ""
    """The workdir of a run whose best checkpoint gives the parameters to start with; empty: none.
    Step, optimizer and schedule start anew."""
    initialize_except: tuple[str, ...] = ()
    """First parts of paths that ``initialize_from`` leaves as they are, as ``("classifier",)``."""
    max_nonfinite_steps: int = runtime(0)
    """Steps in a row with a loss or gradient that is not finite that are skipped; one more ends the
    run."""
    compilation_cache: str = runtime("")
    """A folder in which compiled programs are kept for the next run; empty: none."""
    strategy: str = runtime("jit")
    """``jit``, ``pmap`` or ``single``; see ``flaxnets.training.parallel``."""
    fsdp: int = runtime(1)
    """Devices that share one copy of parameters and optimizer state; only ``jit`` shares."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def make_model(self) -> nn.Module:
        """The network, a Linen module."""
        raise self._missing("make_model")

    def frozen_parts(self) -> tuple[str, ...]:
        """First parts of the paths of parameters that the model's settings freeze."""
        return ()

    def make_optimizer_config(self) -> OptimizerConfig:
        """The optimizer's settings in force: ``optimizer``, with ``frozen_parts`` frozen, too."""
        frozen = dict.fromkeys((*self.optimizer.frozen, *self.frozen_parts()))
        return dataclasses.replace(self.optimizer, frozen=tuple(frozen))

    def make_task(self) -> Task:
        """What the network is trained and evaluated on."""
        raise self._missing("make_task")

    def make_prediction_task(self) -> Task:
        """``make_task`` for trained models, of which none needs the training data."""
        return self.make_task()

    def make_data(self, split: str) -> Data:
        """The batches of a split: ``train`` without end, any other once and in order."""
        raise self._missing("make_data")

    def make_prediction_data(self, paths: Sequence[str]) -> Data:
        """The batches of files without labels, in the given order."""
        raise self._missing("make_prediction_data")

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """The frames of one example, (T,H,W,3) uint8, for people to look at."""
        raise self._missing("load_clip")

    def read_image(self, path: str) -> np.ndarray:
        """An image file, (H,W,3) uint8, for people to look at."""
        raise self._missing("read_image")

    def crop_image(self, image: np.ndarray) -> np.ndarray:
        """The part of an image (H,W,3) uint8 that the model sees."""
        raise self._missing("crop_image")

    def references(self, split: str) -> Sequence[Sequence[str]]:
        """The captions that people wrote, of each example of a split."""
        raise self._missing("references")

    def score_examples(self, split: str, records: Sequence[Mapping[str, Any]]) -> list[float]:
        """``best_metric`` of each of a split's records, where it is no mean over examples."""
        raise self._missing("score_examples")

    def write_results(self, path: Path, split: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes records of a split as its benchmark asks, if it does, beside their ``path``."""

    def check_same_outputs(self, other: "Config") -> None:
        """Raises ValueError where outputs of the other's model mean something else than its own."""

    def save_assets(self, folder: Path) -> None:
        """Writes what the model depends on beside the configuration, when a run starts.

        Raises:
          ValueError: the folder holds something else.
        """

    def load_assets(self, folder: Path) -> None:
        """Reads what ``save_assets`` wrote, before a trained model is used."""

    def check_variables(self, variables: Mapping[str, Any]) -> None:
        """Checks that a checkpoint's variables belong to what ``load_assets`` read.

        Raises:
          ValueError: they do not; the message says what differs.
        """

    def make_scorer(self, split: str, *, complete: bool = False) -> Scorer | None:
        """What scores the outputs of a whole split together, where means over examples do not do.

        It is given the records of all examples and returns metrics by name.

        Args:
          split: whose examples they are.
          complete: whether scores that take long are wanted, too: after training, not during it.
        """
        return None

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """The variables to start from, given the random ones: the place of pretrained weights."""
        return variables

    def set_fold(self, fold: int) -> None:
        """Chooses the fold of a cross-validation, from 1 on."""
        raise self._missing("set_fold")

    def baselines(self) -> dict[str, list[tuple[int, int]]]:
        """What simpler means reach: name to (label, prediction) of each test example, in order."""
        return {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by label; empty where the labels have none."""
        return ()

    def _missing(self, method: str) -> "UndefinedMethod":
        return UndefinedMethod(f"the experiment's {type(self).__name__} does not define {method}()")

    def validate(self) -> None:
        """Raises ValueError for values with which no run can start."""
        positive = ("batch_size", "num_steps", "eval_every", "log_every", "checkpoint_every")
        for name in (*positive, "keep_checkpoints", "accumulate_steps"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, received {value}")
        for name in ("patience", "max_nonfinite_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, received {getattr(self, name)}")
        if self.batch_size % self.accumulate_steps:
            raise ValueError(
                f"accumulate_steps: expected a divisor of batch_size = {self.batch_size}, received "
                f"{self.accumulate_steps}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected 0 to below 1, received {self.ema_decay}")
        if self.best_mode not in ("max", "min"):
            raise ValueError(f"best_mode: expected 'max' or 'min', received {self.best_mode!r}")


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ('optimizer.learning_rate', 0.001) for each leaf of a dataclass."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def to_dict(config: Config) -> dict[str, Any]:
    """Every value in force, nested as the dataclasses are, for JSON."""
    return dataclasses.asdict(config)


def update(config: Any, values: Mapping[str, Any], prefix: str = "") -> None:
    """Sets the fields named by ``values``, a dict as ``to_dict`` makes it, in place.

    Raises:
      ValueError: a name that the configuration does not have, with the nearest that it has.
    """
    names = {field.name for field in dataclasses.fields(config)}
    for name, value in values.items():
        if name not in names:
            near = nearest(name, names)
            raise ValueError(f"{prefix}{name}: no such field of the configuration{near}")
        current = getattr(config, name)
        if dataclasses.is_dataclass(current):
            update(current, value, f"{prefix}{name}.")
        else:
            # JSON has no tuples; a list in the file stands for one.
            setattr(config, name, tuple(value) if isinstance(value, list) else value)


# How the configuration in force differs from that of an earlier run.


def differences(
    recorded: Mapping[str, Any], config: Config, *, include_runtime: bool = False
) -> list[str]:
    """One line for each value that differs: ``optimizer.learning_rate: 0.01 there, 0.001 now``.

    Args:
      recorded: nested values as ``to_dict`` wrote them.
      config: the configuration in force.
      include_runtime: whether fields made by ``runtime`` count too.
    """
    then = dict(_flatten_mapping(recorded))
    now = dict(_flatten_mapping(to_dict(config)))
    ignored = set() if include_runtime else set(_runtime_fields(config))
    lines = []
    for name in sorted((then.keys() | now.keys()) - ignored):
        old, new = then.get(name, "absent"), now.get(name, "absent")
        if not _equal(old, new):
            lines.append(f"{name}: {old!r} there, {new!r} now")
    return lines


def _flatten_mapping(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten_mapping(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def _runtime_fields(config: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _runtime_fields(value, f"{prefix}{field.name}.")
        elif field.metadata.get("runtime"):
            yield prefix + field.name


def _equal(old: Any, new: Any) -> bool:
    both_numbers = isinstance(old, int | float) and isinstance(new, int | float)
    if both_numbers and math.isnan(old) and math.isnan(new):
        return True
    return bool(old == new)
