"""Search space of a sweep: the fields of a configuration that vary, and their values.

    optimizer.learning_rate=log:1e-4:1e-1     a number, drawn on a logarithmic scale
    optimizer.momentum=0.5:0.99               a number; of an int field, an integer
    model.recurrent.features=64:256:64        a number in steps: 64, 128, 192, 256
    optimizer.schedule=constant,cosine        one of these, each of the field's type
    model.encoder.features=(8,8),(16,16)      one of these, of a field that is a tuple

What depends on other values, or belongs together, is drawn by a Python file that defines
``suggest(trial)``, which gets an ``optuna.Trial`` and returns values by the names of their fields.
"""

import ast
import dataclasses
import hashlib
import importlib.util
import itertools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flaxnets.configuration import nearest
from flaxnets.training.config import Config

if TYPE_CHECKING:
    from optuna import Trial

Label = None | bool | int | float | str
"""Value as Optuna stores it."""
Suggest = Callable[["Trial"], Mapping[str, Any]]
"""Function of a trial that draws values by the names of their fields."""

FIXED = ("best_metric", "best_mode", "eval_split")
"""Fields that judge the trials, so that all trials must share them."""

MAX_CELLS = 100_000


@dataclasses.dataclass(frozen=True)
class Choices:
    """Field that takes one of several values.

    Attributes:
      field: name of the field, as ``optimizer.name``.
      values: values of the field's type.
    """

    field: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.field}={','.join(map(str, self.labels()))}"

    def suggest(self, trial: "Trial") -> Any:
        """Returns a value that the trial draws."""
        labels = self.labels()
        return self.values[labels.index(trial.suggest_categorical(self.field, labels))]

    def labels(self) -> list[Label]:
        """Returns the values as Optuna stores them, which has no tuples."""
        return [repr(value) if isinstance(value, tuple) else value for value in self.values]


@dataclasses.dataclass(frozen=True)
class Range:
    """Field that takes a number in [low,high].

    Attributes:
      field: name of the field.
      low: least value.
      high: greatest value; with a ``step``, ``low`` plus a multiple of it.
      step: difference between two values; None: any number.
      log: True draws the number on a logarithmic scale.
      integer: True for a field of type int.
    """

    field: str
    low: Decimal
    high: Decimal
    step: Decimal | None
    log: bool
    integer: bool

    def __str__(self) -> str:
        kind = int if self.integer else float
        numbers = (self.low, self.high) if self.step is None else (self.low, self.high, self.step)
        scale = "log:" if self.log else ""
        return f"{self.field}={scale}{':'.join(str(kind(number)) for number in numbers)}"

    def suggest(self, trial: "Trial") -> Any:
        """Returns a value that the trial draws."""
        if self.integer:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(
                self.field, int(self.low), int(self.high), step=step, log=self.log
            )
        step_size = None if self.step is None else float(self.step)
        low, high = float(self.low), float(self.high)
        return trial.suggest_float(self.field, low, high, step=step_size, log=self.log)

    def labels(self) -> list[Label]:
        """Returns the values of a grid.

        Raises:
          ValueError: a range without steps, or one of more than ``MAX_CELLS`` values.
        """
        step = Decimal(1) if self.integer and not self.log and self.step is None else self.step
        if step is None:
            raise ValueError(
                f"space: expected values with commas between or LOW:HIGH:STEP for a grid over "
                f"{self.field}, received a range"
            )
        count = int((self.high - self.low) / step) + 1
        if count > MAX_CELLS:
            raise ValueError(
                f"space: expected at most {MAX_CELLS} values of {self.field} in a grid"
            )
        kind = int if self.integer else float
        return [kind(self.low + number * step) for number in range(count)]


Dimension = Choices | Range


def parse_spaces(texts: Sequence[str], config: Config) -> list[Dimension]:
    """Returns the dimensions that ``FIELD=VALUES`` texts describe.

    Args:
      texts: values of the flag ``--space``.
      config: configuration with the fields.

    Raises:
      ValueError: a field that the configuration does not have (with the nearest), that is named
        twice, or that cannot vary; no values, or values that are not of its type.
    """
    dimensions = [_parse(text, config) for text in texts]
    names = [dimension.field for dimension in dimensions]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"space: expected each field once, received {name} twice")
    return dimensions


def make_cells(dimensions: Sequence[Dimension]) -> list[dict[str, Label]]:
    """Returns every combination of values by field; the last dimension varies fastest.

    Raises:
      ValueError: no dimension, a range without steps, or more than ``MAX_CELLS`` combinations.
    """
    if not dimensions:
        raise ValueError("space: expected --space of at least one field for a grid, received none")
    count = math.prod(len(dimension.labels()) for dimension in dimensions)
    if count > MAX_CELLS:
        raise ValueError(f"space: expected at most {MAX_CELLS} cells of a grid, received {count}")
    names = [dimension.field for dimension in dimensions]
    columns = [dimension.labels() for dimension in dimensions]
    return [dict(zip(names, row, strict=True)) for row in itertools.product(*columns)]


def load_suggest(path: Path) -> tuple[Suggest, str]:
    """Returns ``suggest`` of a Python file, and a digest of the file's text.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it defines no ``suggest``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"space_file: no file {path}; expected one with suggest(trial)")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    module_spec = importlib.util.spec_from_file_location(f"sweep_space_{digest}", path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"space_file: {path} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    suggest = getattr(module, "suggest", None)
    if not callable(suggest):
        raise ValueError(f"space_file: {path} defines no suggest(trial)")
    return suggest, digest


def draw(
    trial: "Trial", dimensions: Sequence[Dimension], suggest: Suggest | None
) -> dict[str, Any]:
    """Returns the values that a trial draws, by field.

    Args:
      trial: draws the values.
      dimensions: each gives one value.
      suggest: gives further values; None: there are none.

    Raises:
      ValueError: ``suggest`` does not return values by field, or returns one of a dimension.
    """
    values = {dimension.field: dimension.suggest(trial) for dimension in dimensions}
    if suggest is None:
        return values
    further = suggest(trial)
    if not isinstance(further, Mapping):
        raise ValueError(
            "space_file: expected suggest(trial) to return values by field, received "
            f"{type(further).__name__}"
        )
    if twice := values.keys() & further.keys():
        raise ValueError(f"space_file: {', '.join(sorted(twice))} is given by --space, too")
    return {**values, **further}


def _parse(text: str, config: Config) -> Dimension:
    name, equals, values = text.partition("=")
    if not equals or not name:
        raise ValueError(f"space: expected FIELD=VALUES, received {text!r}")
    kind = _checked_kinds(config, [name])[name]
    if not values.strip():
        raise ValueError(f"space: expected values of {name}, received none")
    if kind in (int, float) and ":" in values:
        return _parse_range(name, values, integer=kind is int)
    if typing.get_origin(kind) is tuple or kind is tuple:
        chosen = _parse_tuples(name, values)
    else:
        chosen = [_parse_value(name, part.strip(), kind) for part in values.split(",")]
    conformed = [_conform(name, value, kind) for value in chosen]
    for value in conformed:
        if conformed.count(value) > 1:
            raise ValueError(f"space: expected each value of {name} once, received {value} twice")
    return Choices(name, tuple(conformed))


def _parse_range(name: str, text: str, *, integer: bool) -> Range:
    log = text.startswith("log:")
    parts = text.removeprefix("log:").split(":")
    form = "LOW:HIGH, LOW:HIGH:STEP or log:LOW:HIGH"
    if len(parts) not in ((2,) if log else (2, 3)):
        raise ValueError(f"space: expected {form} for {name}, received {text!r}")
    try:
        low, high, *rest = (Decimal(part.strip()) for part in parts)
    except InvalidOperation:
        raise ValueError(
            f"space: expected {form} of numbers for {name}, received {text!r}"
        ) from None
    step = rest[0] if rest else None
    numbers = (low, high, *rest)
    if not all(number.is_finite() for number in numbers):
        raise ValueError(f"space: expected finite numbers for {name}, received {text!r}")
    if integer and any(number % 1 for number in numbers):
        raise ValueError(f"space: expected integers for {name}, received {text!r}")
    if not low < high:
        raise ValueError(f"space: expected LOW below HIGH for {name}, received {text!r}")
    if log and low <= 0:
        raise ValueError(f"space: expected LOW above 0 for {name} with log, received {text!r}")
    if step is not None:
        if not 0 < step <= high - low:
            raise ValueError(
                f"space: expected STEP from 0 to HIGH - LOW for {name}, received {text!r}"
            )
        high = low + int((high - low) / step) * step
    return Range(name, low, high, step, log, integer)


def _parse_tuples(name: str, text: str) -> list[Any]:
    try:
        values = ast.literal_eval(f"[{text}]")
    except (SyntaxError, ValueError):
        values = []
    if not values or not all(isinstance(value, tuple) for value in values):
        raise ValueError(f"space: expected tuples for {name}, as (8,8),(16,16), received {text!r}")
    return list(values)


def _parse_value(name: str, text: str, kind: Any) -> Any:
    """Returns one value of a list; ``_conform`` checks its type."""
    kinds = typing.get_args(kind) if _is_union(kind) else (kind,)
    if type(None) in kinds and text.lower() == "none":
        return None
    for one in kinds:
        if one is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if one in (int, float):
            try:
                return one(text)
            except ValueError:
                continue
    return text


def apply(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """Sets fields of a configuration by their names, in place.

    Args:
      config: is changed.
      values: by the names of their fields, as ``optimizer.learning_rate``.

    Returns:
      The values as they were set: an integer becomes a float if the field is one.

    Raises:
      ValueError: no such field (with the nearest), or a value that is not of its type.
    """
    kinds, applied = _checked_kinds(config, values), {}
    for name, value in values.items():
        applied[name] = _conform(name, value, kinds[name])
        *path, last = name.split(".")
        owner: Any = config
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, applied[name])
    return applied


def flag(name: str, value: Any) -> str:
    """Returns ``--config.NAME=VALUE``, which sets the value in ``launch.train``."""
    if isinstance(value, bool):
        value = str(value).lower()
    elif value is None:
        value = "none"
    return f"--config.{name}={value}"


def _field_kinds(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the type of each leaf of a configuration, by its name with dots."""
    hints = typing.get_type_hints(type(config))
    kinds: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            kinds |= _field_kinds(value, f"{prefix}{field.name}.")
        else:
            kinds[prefix + field.name] = hints[field.name]
    return kinds


def _checked_kinds(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Returns the type of each field of a configuration, after a check that the names may vary."""
    kinds = _field_kinds(config)
    for name in names:
        if name not in kinds:
            near = nearest(name, kinds, cutoff=0.4)
            raise ValueError(f"space: no field {name} in the configuration{near}")
        if name in FIXED:
            raise ValueError(f"space: {name} judges the trials; give it by --objective or --config")
        if typing.get_origin(kinds[name]) is dict or kinds[name] is dict:
            raise ValueError(f"space: {name} is a dict, which no flag can set")
    return kinds


def _conform(name: str, value: Any, kind: Any) -> Any:
    """Returns the value in the field's type; raises ValueError if it is not of that type."""
    kinds = typing.get_args(kind) if _is_union(kind) else (kind,)
    for one in kinds:
        if one is float and type(value) in (int, float) and math.isfinite(value):
            return float(value)
        if one in (bool, int, str, type(None)) and type(value) is one:
            return value
        if (one is tuple or typing.get_origin(one) is tuple) and isinstance(value, tuple | list):
            # JSON and YAML have no tuples.
            inner = typing.get_args(one)
            each = inner[:1] * len(value) if inner[1:] == (Ellipsis,) else inner
            if not inner:
                return tuple(value)
            if len(each) == len(value):
                return tuple(_conform(name, v, k) for v, k in zip(value, each, strict=True))
    shown = getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind)
    raise ValueError(f"space: expected {shown} for {name}, received {value!r}")


def _is_union(kind: Any) -> bool:
    """Returns whether a type is one of several, as ``int | None``."""
    return typing.get_origin(kind) in (typing.Union, types.UnionType)
