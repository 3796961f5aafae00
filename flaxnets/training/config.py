"""Typed configuration of an experiment: hyper-parameters, and the methods that build its parts."""

import contextlib
import contextvars
import dataclasses
import json
import math
import os
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import flax.linen as nn
import numpy as np

from flaxnets.configuration import local_path, nearest, path_field, runtime

if TYPE_CHECKING:  # The tasks import ``flaxnets.training.workdir``, which imports this.
    from flaxnets.tasks.task import Task


class Data(Protocol):
    """Batches of one split for this process, from any position on."""

    @property
    def num_examples(self) -> int:
        """Number of examples in the split, over all processes."""

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in one pass over the split."""

    def describe(self) -> dict[str, Any]:
        """Returns what determines the batches and their order, as JSON; checkpoints record it.

        A run resumes only where all of it is equal: the settings of the order, and what
        ``Config.describe_data`` and ``Config.describe_preprocessing`` return.
        """

    def batches(self, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        """Returns a new iterator that starts at batch number ``start``.

        Batch ``k`` is a function of the split and the seed alone: it depends neither on the number
        of processes or workers nor on ``start``.
        """


_REHEARSED: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar(
    "rehearsed", default=None
)


@contextlib.contextmanager
def rehearsal() -> Iterator[list[str]]:
    """Context in which ``make_data`` returns stand-ins for data that are expensive to make.

    It is a context and no argument, since the code that makes such data is called through the
    experiment's own methods.

    Yields:
      A list, to which ``stands_in`` adds the data that were stood in for.
    """
    expensive: list[str] = []
    token = _REHEARSED.set(expensive)
    try:
        yield expensive
    finally:
        _REHEARSED.reset(token)


def stands_in(name: str) -> bool:
    """Returns True inside ``rehearsal``, where the caller returns stand-ins, and notes ``name``."""
    expensive = _REHEARSED.get()
    if expensive is None:
        return False
    expensive.append(name)
    return True


Scorer = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, float]]
"""Function of the records of all examples of a split, with ``index``, to metrics by name."""


@dataclasses.dataclass
class OptimizerConfig:
    """Hyper-parameters of an optax optimizer; ``flaxnets.training.optimizer`` builds it."""

    name: str = "adam"
    """``sgd``, ``adam``, ``adamw`` or ``rmsprop``."""
    learning_rate: float = 1e-3
    """Peak learning rate, before the schedule and ``multipliers``."""
    schedule: str = "constant"
    """``constant``, ``cosine`` or ``linear`` decay to zero at the last step, ``step``, or
    ``onecycle``: from a 25th up to the peak and down to a 250,000th, both as half a cosine."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero."""
    rise_share: float = 0.3
    """Schedule ``onecycle``: share of the steps after which the peak is reached, in (0,1)."""
    cycle_momentum: bool = False
    """Schedule ``onecycle`` with ``adam``: the decay of the first moment goes from 0.95 to 0.85 at
    the peak and back, as by default in PyTorch's ``OneCycleLR``; ``b1`` is not read."""
    decay_every: int = 10_000
    """Schedule ``step``: steps between two decays."""
    decay_rate: float = 0.1
    """Schedule ``step``: factor of each decay."""
    decay_after: int = 0
    """Schedule ``step``: steps before the first period of ``decay_every``, at whose end the rate
    first decays."""
    momentum: float = 0.9
    """``sgd``: heavy-ball momentum; 0 keeps no buffer."""
    b1: float = 0.9
    """``adam``, ``adamw``: decay of the first moment."""
    b2: float = 0.999
    """``adam``, ``adamw``: decay of the second moment."""
    rms_decay: float = 0.9
    """``rmsprop``: decay of the mean square."""
    weight_decay: float = 0.0
    """Weight decay of arrays of two and more axes: L2 in the gradient for ``sgd``, ``adam`` and
    ``rmsprop``, decoupled for ``adamw``."""
    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0: no clipping."""
    multipliers: dict[str, float] = dataclasses.field(default_factory=dict)
    """Factors of the learning rate by parameter path or prefix of one, as
    ``{"classifier": 10.0, "decoder/embedding": 0.1}``; the longest matching prefix counts."""
    frozen: tuple[str, ...] = ()
    """Paths, or prefixes of paths, of parts that are not trained, as ``("encoder",)``: neither
    gradient nor weight decay, and the part runs as in evaluation: BatchNorm uses its running
    statistics and keeps them, nothing is dropped out."""


class UndefinedMethod(TypeError):
    """An experiment's configuration lacks a method that was needed."""

    def __init__(self, config: object, method: str) -> None:
        super().__init__(f"the experiment's {type(config).__name__} does not define {method}()")


@dataclasses.dataclass
class Config:
    """Hyper-parameters of a run, and the methods that build its parts.

    An experiment subclasses this: it adds its fields and defines ``make_model``, ``make_task`` and
    ``make_data``; the other methods have defaults. Programs that need more of an experiment say so
    in a protocol of their own, whose methods the subclass may define too: ``PredictsFiles`` and
    ``WritesResults`` (``flaxnets/inference/trained_model.py``), ``DecodesTogether``
    (``trained_captioner.py``), ``ContinuesFrames`` (``trained_forecaster.py``), ``ShowsClips`` and
    ``ShowsCaptions`` (``launch/reports``), ``ShowsImages`` (``launch/caption.py``),
    ``HasBaselines`` (``launch/crossvalidate.py``).
    """

    name: str = "model"
    """Name of the network in tables."""
    seed: int = 0
    """Seed of the initial parameters, the order of the data, augmentation and dropout."""
    batch_size: int = 32
    """Examples in a batch, over all devices and processes."""
    num_steps: int = 1_000
    """Training steps (updates of the parameters)."""
    eval_every: int = 100
    """Steps between two evaluations of ``eval_split``; the last step always evaluates, and a long
    run also after a tenth of its steps (``flaxnets.training.loop.first_evaluation``)."""
    eval_split: str = "validation"
    """Split that selects the best checkpoint; empty: no evaluation, the last checkpoint counts."""
    best_metric: str = "accuracy"
    """Metric of ``eval_split`` that ranks checkpoints."""
    best_mode: str = "max"
    """``max`` or ``min``: the better end of ``best_metric``."""
    patience: int = 0
    """Evaluations in a row without a better ``best_metric`` that end the training; 0: never."""
    log_every: int = runtime(20)
    """Steps between two records of the training metrics, and lines of the log."""
    checkpoint_every: int = runtime(100)
    """Steps between two checkpoints; evaluations and the last step save too."""
    keep_checkpoints: int = runtime(2)
    """Number of newest checkpoints kept beside the best one."""
    accumulate_steps: int = 1
    """Micro-batches in a step, of ``batch_size / accumulate_steps`` examples each; their gradients
    are summed."""
    ema_decay: float = 0.0
    """Decay d of the exponential moving average of the parameters, at most (1 + n) / (10 + n) at
    step n; evaluation and inference use the average. 0: no average."""
    initialize_from: str = path_field()
    """Workdir of a run whose best checkpoint gives the initial parameters and statistics; empty:
    none. Step, optimizer and schedule start anew."""
    initialize_except: tuple[str, ...] = ()
    """Top-level parts that ``initialize_from`` does not load, as ``("classifier",)``."""
    max_nonfinite_steps: int = runtime(0)
    """Steps in a row with a non-finite loss or gradient that are skipped; one more ends the run."""
    compilation_cache: str = path_field(runtime=True)
    """Folder of compiled programs that later runs reuse; empty: none. They are executed, so the
    folder must be one's own."""
    strategy: str = runtime("jit")
    """``jit``, ``pmap`` or ``single``; see ``flaxnets.training.parallel``."""
    fsdp: int = runtime(1)
    """Devices over which each copy of the state is sharded; needs the strategy ``jit``."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def make_model(self) -> nn.Module:
        """Returns the network, a Linen module."""
        raise UndefinedMethod(self, "make_model")

    def frozen_parts(self) -> tuple[str, ...]:
        """First parts of the paths of parameters that the model's settings freeze."""
        return ()

    def make_optimizer_config(self) -> OptimizerConfig:
        """The optimizer's settings in force: ``optimizer``, with ``frozen_parts`` frozen, too."""
        frozen = dict.fromkeys((*self.optimizer.frozen, *self.frozen_parts()))
        return dataclasses.replace(self.optimizer, frozen=tuple(frozen))

    def make_task(self) -> "Task":
        """Returns the task: loss, metrics, and how the network is called."""
        raise UndefinedMethod(self, "make_task")

    def make_data(self, split: str) -> Data:
        """Returns the batches of a split: ``train`` without end, any other once and in order."""
        raise UndefinedMethod(self, "make_data")

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the variables to start from, given random ones: loads pretrained weights."""
        return variables

    def adapt_variables(
        self, saved: Mapping[str, Any], initial: Mapping[str, Any], folder: Path
    ) -> Mapping[str, Any]:
        """Returns the variables of the run of ``initialize_from`` as this run's model has them.

        By default as they are; an experiment whose classes may be others moves their weights.

        Args:
          saved: Linen's collections of the other run.
          initial: those of this run's model, with its initial values.
          folder: the other run's workdir.
        """
        return saved

    def make_scorer(self, split: str, *, complete: bool = False) -> Scorer | None:
        """Returns a function that scores a split as a whole, for metrics that are no means.

        Args:
          split: the split whose records are scored.
          complete: includes slow metrics: True after training, False during it.
        """
        return None

    def scored_metrics(self, split: str) -> tuple[str, ...]:
        """Returns the names of the metrics of ``make_scorer``; empty: not known beforehand."""
        return ()

    def make_prediction_task(self) -> "Task":
        """Returns the task of a trained model, built without the training data."""
        return self.make_task()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label; empty if the labels have none.

        The workdir records them (``data.json``), and a trained model is used under these names.
        """
        return ()

    def describe_data(self, split: str) -> Mapping[str, Any]:
        """Returns what identifies the examples of a split, as JSON; reads no example.

        The workdir records it for the splits that training reads, and other data are refused. It
        depends on names relative to the data's folder, so the folder may be moved. By default the
        class names alone.

        Returns:
          ``class_names``, and what ``data.loader.describe_examples`` returns.
        """
        return {"class_names": list(self.class_names)}

    def describe_preprocessing(self) -> Mapping[str, Any]:
        """Returns what the model's inputs depend on besides the files, as JSON.

        A trained model is refused where it is not what the workdir recorded.
        """
        return {}

    def describe_inference(self) -> Mapping[str, Any] | None:
        """Returns how the trained model is used without this experiment; None: it cannot be.

        The workdir records it as ``model.json``, from which ``flaxnets.load`` makes a function of
        files, equal to that of ``make_prediction_data`` and ``make_prediction_task``.

        Returns:
          ``kind``: ``video_classification``, ``image_classification``, ``sound_classification``,
          ``captioning`` or ``transcription``; ``name``; ``network``: what ``make_model`` returns;
          ``preprocessing``: the settings of ``flaxnets/inference/runtime/preprocessing.py`` at
          test. Of classifiers ``labels``, and ``averaging``: ``VideoClassification.loss_kind``. Of
          captioners ``search``: the fields of ``SearchOptions``, of readers those of ``CTCSearch``.
          ``encoder``: None, or for a network on features of a frozen encoder
          ``config``, the fields of its ``EncoderConfig``; ``pool``: ``max``, ``mean`` or ``none``;
          ``feature_dtype``, to which the features are rounded; ``digest`` of the weights.
        """
        return None

    def set_fold(self, fold: int) -> None:
        """Selects the fold of a cross-validation, from 1 on."""
        raise UndefinedMethod(self, "set_fold")

    def hold_out_fold(self, fold: int) -> None:
        """Holds out another fold as the split ``validation``, for a nested cross-validation."""
        raise UndefinedMethod(self, "hold_out_fold")

    def save_assets(self, folder: Path) -> None:
        """Writes files that the model depends on, as a vocabulary, when a run starts.

        Raises:
          ValueError: the folder holds other assets.
        """

    def load_assets(self, folder: Path) -> None:
        """Reads what ``save_assets`` wrote, before a trained model is used."""

    def resume_assets(self, folder: Path) -> None:
        """Reads what ``save_assets`` wrote and training needs again, as a split of the data.

        ``train`` calls it before the data are made; the folder may be that of a new run.
        """

    def check_variables(self, variables: Mapping[str, Any]) -> None:
        """Checks that a checkpoint's variables fit what ``load_assets`` read.

        Raises:
          ValueError: they do not; the message names the difference.
        """

    def validate(self) -> None:
        """Localizes the paths; raises ValueError for values with which a run cannot start."""
        localize(self)
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
    """Yields the path and value of each leaf of a dataclass, as ('optimizer.b1', 0.9)."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def describe_fields(config: Config) -> str:
    """Returns name, data and all values of a configuration as Markdown.

    >>> print(describe_fields(Config(name="CRNN")).splitlines()[0])
    CRNN
    """
    values = dict(flatten(config))
    data = values.get("data.list") or values.get("data.root")
    data = data or values.get("data.dataset") or values.get("data.kind")
    title = f"{config.name} on {data}" if data else config.name
    rows = [f"| {name} | `{value}` |" for name, value in values.items()]
    return "\n".join([title, "", "| field | value |", "| --- | --- |", *rows])


def set_runtime(config: Config, text: str) -> None:
    """Sets a field that may differ from the run's, in place.

    Args:
      config: the configuration of a run.
      text: ``FIELD=VALUE``.

    Raises:
      ValueError: no such field, one that must not differ, or a value of another type.
    """
    name, equals, value = text.partition("=")
    values = dict(flatten(config))
    changeable = {*_marked_fields(config, "runtime"), *_marked_fields(config, "evaluation")}
    if not equals or name not in values:
        hint = nearest(name, values, cutoff=0.4)
        raise ValueError(f"--config.{name}: no such field of the configuration{hint}")
    # The place of a file changes no result: what is read there is compared with the record.
    if name not in changeable | set(_marked_fields(config, "path")):
        raise ValueError(
            f"--config.{name}: expected as it was in training, {values[name]!r}; only these may "
            f"differ: {', '.join(sorted(changeable))}"
        )
    kind = type(values[name])
    known = {"true": True, "false": False} if kind is bool else None
    try:
        parsed = known[value.lower()] if known else kind(value)
    except (KeyError, ValueError):
        raise ValueError(f"--config.{name}: expected {kind.__name__}, received {value!r}") from None
    *parents, last = name.split(".")
    owner: Any = config
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, last, parsed)


def set_chosen(config: Config, values: Mapping[str, Any]) -> None:
    """Sets fields of evaluation to values that were chosen for a trained run, in place.

    Args:
      config: the configuration of a run.
      values: by path of the field, as ``Workdir.read_chosen`` returns them.

    Raises:
      ValueError: a field that the configuration does not have or that is not of evaluation.
    """
    known = set(_marked_fields(config, "evaluation"))
    for name, value in values.items():
        if name not in known:
            raise ValueError(
                f"{name}: expected a field of evaluation{nearest(name, known, cutoff=0.4)}"
            )
        set_runtime(config, f"{name}={value}")


def localize(config: Any, prefix: str = "") -> None:
    """Replaces the values of path fields by local paths, in place.

    ``~`` becomes the home folder, and what exists at a relative path is named by its absolute one,
    so that a run works from any folder; the defaults stay as they are.

    Raises:
      ValueError: a URL; names the field.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            localize(value, f"{prefix}{field.name}.")
        elif field.metadata.get("path") and value not in ("", *field.metadata["names"]):
            local = local_path(prefix + field.name, value)
            if value != field.default and os.path.exists(local):
                local = os.path.abspath(local)
            setattr(config, field.name, local)


def to_dict(config: Config) -> dict[str, Any]:
    """Returns all values, nested as the dataclasses are, for JSON."""
    return dataclasses.asdict(config)


def update(config: Any, values: Mapping[str, Any], prefix: str = "") -> None:
    """Sets fields in place from a dict as ``to_dict`` makes it.

    Raises:
      ValueError: a field that the configuration does not have, and names the nearest one, or a
        value of another type.
    """
    names = {field.name for field in dataclasses.fields(config)}
    hints = typing.get_type_hints(type(config))
    for name, value in values.items():
        if name not in names:
            near = nearest(name, names)
            raise ValueError(f"{prefix}{name}: no such field of the configuration{near}")
        current = getattr(config, name)
        if not _fits(hints[name], value):
            kind = getattr(hints[name], "__name__", hints[name])
            raise ValueError(f"{prefix}{name}: expected a value of type {kind}, received {value!r}")
        if dataclasses.is_dataclass(current):
            update(current, value, f"{prefix}{name}.")
        else:
            # JSON has no tuples; a list in the file stands for one.
            setattr(config, name, tuple(value) if isinstance(value, list) else value)


def override(config: Any, values: Mapping[str, Any]) -> None:
    """Sets fields in place by their paths, as ``{"data.fold": 2}``.

    Raises:
      ValueError: as ``update``.
    """
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    update(config, nested)


def _fits(hint: Any, value: Any) -> bool:
    """Returns True if a value, as JSON has it, is of a field's type; unknown types fit any."""
    kind = typing.get_origin(hint) or hint
    if dataclasses.is_dataclass(kind):
        return isinstance(value, Mapping)
    accepted = {
        bool: (bool,),
        int: (int,),
        float: (int, float),
        str: (str,),
        tuple: (list, tuple),
        dict: (Mapping,),
    }.get(kind)
    return accepted is None or (
        isinstance(value, accepted) and isinstance(value, bool) == (kind is bool)
    )


def differences(
    recorded: Mapping[str, Any], config: Config, *, include_runtime: bool = False
) -> list[str]:
    """Returns a line for each value that differs, as ``optimizer.b1: 0.8 there, 0.9 now``.

    Args:
      recorded: nested values of an earlier run, as ``to_dict`` wrote them.
      config: the configuration of this run.
      include_runtime: compares also fields made by ``runtime``, which may differ between calls.
    """
    then = dict(_flatten_mapping(recorded))
    now = dict(_flatten_mapping(to_dict(config)))
    ignored = set() if include_runtime else set(_marked_fields(config, "runtime"))
    lines = []
    for name in sorted((then.keys() | now.keys()) - ignored):
        old, new = then.get(name, "absent"), now.get(name, "absent")
        if not _equal(old, new):
            lines.append(f"{name}: {old!r} there, {new!r} now")
    return lines


def describe_run(config: Config) -> dict[str, Any]:
    """Returns what ``data.json`` of a workdir records: class names, preprocessing and splits."""
    splits = [split for split in ("train", config.eval_split) if split]
    return plain(
        {
            "class_names": list(config.class_names),
            "preprocessing": config.describe_preprocessing(),
            "splits": {split: config.describe_data(split) for split in splits},
        }
    )


def plain(described: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a description as it is read from a JSON file, so that both compare equal."""
    values: dict[str, Any] = json.loads(json.dumps(described))
    return values


def data_differences(recorded: Mapping[str, Any], described: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each way in which data differ from those of a run.

    Args:
      recorded: what a ``Data.describe`` or a ``Config.describe_data`` returned then.
      described: what it returns now.
    """
    there, now = plain(recorded), plain(described)
    lines = []
    names = there.pop("class_names", None), now.pop("class_names", None)
    if names[0] != names[1]:
        lines.append(_class_difference(*names))
    files, targets, order = (
        (there.pop(name, None), now.pop(name, None)) for name in ("files", "targets", "order")
    )
    if files[0] != files[1]:
        lines.append("other files are listed")
    elif targets[0] != targets[1]:
        lines.append("the same files have other labels or captions")
    elif order[0] != order[1]:
        lines.append("the same files are listed in another order")
    then, here = dict(_flatten_mapping(there)), dict(_flatten_mapping(now))
    return lines + [
        f"{name}: {then.get(name, 'absent')!r} there, {here.get(name, 'absent')!r} now"
        for name in sorted(then.keys() | here.keys())
        if then.get(name, "absent") != here.get(name, "absent")
    ]


def _class_difference(there: list[str] | None, now: list[str] | None) -> str:
    if there is None or now is None or len(there) != len(now):
        counts = ["none" if names is None else f"{len(names)}" for names in (there, now)]
        strange = sorted(set(there or ()) ^ set(now or ()))
        which = f" ({', '.join(strange[:3])}{', ...' if len(strange) > 3 else ''})"
        return f"classes: {counts[0]} there, {counts[1]} now{which if strange else ''}"
    label = next(k for k in range(len(now)) if there[k] != now[k])
    same = ", the same classes in another order" if sorted(there) == sorted(now) else ""
    return f"class {label}: {there[label]!r} there, {now[label]!r} now{same}"


def _flatten_mapping(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten_mapping(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def _marked_fields(config: Any, mark: str, prefix: str = "") -> Iterator[str]:
    """Yields the paths of the fields with a mark: ``runtime``, ``evaluation`` or ``path``."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _marked_fields(value, mark, f"{prefix}{field.name}.")
        elif field.metadata.get(mark):
            yield prefix + field.name


def _equal(old: Any, new: Any) -> bool:
    both_numbers = isinstance(old, int | float) and isinstance(new, int | float)
    if both_numbers and math.isnan(old) and math.isnan(new):
        return True
    return bool(old == new)
