"""Fields of configurations, local paths, and parts: chosen by name, described as JSON."""

import dataclasses
import difflib
import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np


def runtime(default: Any) -> Any:
    """Returns a dataclass field that changes how a run is carried out, not what it computes.

    Such a field may differ when a run is resumed.
    """
    return dataclasses.field(default=default, metadata={"runtime": True})


def of_evaluation(default: Any) -> Any:
    """Returns a dataclass field that changes how a trained model is evaluated and used.

    Such a field may differ where a run is used that has been trained, as the width of a search, but
    not when its training resumes, whose evaluations select the best checkpoint.
    """
    return dataclasses.field(default=default, metadata={"evaluation": True})


def path_field(default: str = "", *, runtime: bool = False, names: tuple[str, ...] = ()) -> Any:
    """Returns a dataclass field that holds a path; ``flaxnets.training.config.localize`` reads it.

    Args:
      default: the path, or empty.
      runtime: the path may differ when a run is resumed, as for ``runtime``.
      names: values that are no paths.
    """
    metadata = {"path": True, "runtime": runtime, "names": names}
    return dataclasses.field(default=default, metadata=metadata)


# One slash suffices: pathlib makes ``gs:/bucket`` of ``gs://bucket``. One letter is a drive.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(argument: str, text: str) -> str:
    """Returns a path with the home folder in place of a leading ``~``.

    Args:
      argument: the flag or field that the error names.
      text: the path, as it was given; empty stays empty.

    Raises:
      ValueError: a URL, or the home folder of an unknown user.
    """
    if _URL.match(text):
        raise ValueError(
            f"{argument}: expected a path on this machine, received the URL {text!r}; mount the "
            "storage, or copy its files"
        )
    expanded = os.path.expanduser(text)
    if expanded.startswith("~") and not os.path.lexists(expanded):
        raise ValueError(
            f"{argument}: no home folder for {text!r}; a file whose name starts with ~ is given as "
            f"./{text}"
        )
    return expanded


def nearest(name: str, names: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Returns the hint that an error about an unknown name ends with.

    Args:
      name: as it was given.
      names: all that exist.
      cutoff: least similarity in [0,1] of the name that is suggested.

    Returns:
      ``; did you mean 'x'?``, or ``; there are a, b`` where none is near. Case counts little.

    >>> nearest("Cider", ["BLEU-4", "CIDEr"])
    "; did you mean 'CIDEr'?"
    """
    names = list(names)
    matches = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    if same := [known for known in names if known.casefold() == name.casefold()]:
        matches = same
    if matches:
        return f"; did you mean {matches[0]!r}?"
    return f"; there are {', '.join(sorted(names))}"


def find_part(
    argument: str, name: str, table: Mapping[str, Callable[..., Any]], expected: str
) -> Callable[..., Any]:
    """Returns the part that a table, or a module, has under a name.

    Args:
      argument: the flag or field that the error names, as ``recurrent.cell``.
      name: a key of ``table``, or ``package.module:Name``, which is imported.
      table: parts by name.
      expected: the kind of part in words, as ``a recurrent cell (flaxnets or flax.linen)``.

    Raises:
      ValueError: an unknown name, a module that cannot be imported, or one without that name.
    """
    if ":" not in name:
        if name not in table:
            raise ValueError(f"{argument}: unknown {name!r}{nearest(name, table)}")
        return table[name]
    module_name, _, attribute = name.partition(":")
    if not attribute.isidentifier():
        raise ValueError(f"{argument}: expected package.module:Name, {expected}, received {name!r}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # A module of the user's may raise anything.
        raise ValueError(
            f"{argument}: cannot import {module_name!r} of {name!r} "
            f"({type(error).__name__}: {error}); expected package.module:Name, {expected}, of a "
            "module on PYTHONPATH"
        ) from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; expected {expected}"
        raise ValueError(f"{argument}: {module_name} has no {attribute!r}{hint}")
    part: Callable[..., Any] = getattr(module, attribute)
    if not callable(part):
        raise ValueError(
            f"{argument}: expected {expected}, received {name!r}, of type {type(part).__name__}"
        )
    return part


def parameters_of(part: Callable[..., Any]) -> frozenset[str]:
    """Returns the names of the arguments that a constructor or function takes."""
    try:
        return frozenset(inspect.signature(part).parameters)
    except ValueError:  # Some built-in callables tell nothing.
        return frozenset()


DTYPES = ("float32", "bfloat16", "float16")
"""Dtypes of the arithmetic of a model."""
_DTYPE_WORDS = {"half": "float16", "single": "float32", "float": "float32", "double": "float64"}


def check_dtype(field: str, name: Any, names: Sequence[str] = DTYPES) -> None:
    """Refuses a dtype that a model, or a file, cannot have.

    >>> check_dtype("model.dtype", "fp16")
    Traceback (most recent call last):
    ValueError: model.dtype: unknown 'fp16'; did you mean 'float16'?

    Args:
      field: the field or argument that the error names.
      name: of the dtype.
      names: that are allowed.

    Raises:
      ValueError: none of ``names``, with the nearest: that of an abbreviation, as fp16, or of
        another spelling, as torch.half.
    """
    if name in names:
        return
    spelled = re.sub(r"[\s_-]|precision", "", str(name).lower().split(".")[-1])
    meant = _DTYPE_WORDS.get(spelled) or re.sub(r"^(f|fp|tf)(?=\d)", "float", spelled)
    if meant == "float64" and meant not in names:
        meant = "float32"  # The widest; by its letters float16 would be as near.
    # The abbreviations are far from their names, so the hint always suggests one (cutoff 0).
    hint = nearest(re.sub(r"^bf(?=\d)", "bfloat", meant), names, cutoff=0.0)
    raise ValueError(f"{field}: unknown {name!r}{hint}")


def check_dtype_argument(dtype: Any) -> None:
    """Refuses the name of a dtype that does not exist; dtypes themselves, as jnp.float32, pass.

    Raises:
      ValueError: a string that is none of ``DTYPES`` nor float64, with the nearest.
    """
    if isinstance(dtype, str):
        check_dtype("dtype", dtype, (*DTYPES, "float64"))


def check_at_least(prefix: str, config: Any, least: Mapping[str, int]) -> None:
    """Refuses integers below their bounds.

    Args:
      prefix: the configuration's path, for errors, as ``model.recurrent``.
      config: an object with the fields.
      least: the smallest value of each field.

    Raises:
      ValueError: a smaller value.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if value < bound:
            raise ValueError(f"{prefix}.{name}: expected at least {bound}, received {value}")


def check_rates(prefix: str, config: Any, *names: str) -> None:
    """Refuses rates, as of dropout, outside [0,1).

    Args:
      prefix: the configuration's path, for errors.
      config: an object with the fields.
      *names: the fields.

    Raises:
      ValueError: a rate outside.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise ValueError(f"{prefix}.{name}: expected 0 to below 1, received {value}")


# Parts as JSON: the network of a trained model is rebuilt without the experiment that made it.

OWN_PACKAGES = ("decoders", "encoders", "heads", "layers", "models", "recurrent")
"""Packages of flaxnets whose parts a description may name, beside what ``flax.linen`` exports."""


def describe_part(part: Any) -> Any:
    """Describes a part as JSON; ``build_part`` makes it again.

    Numbers, texts and None stand for themselves. The rest are objects of one key or two:
    ``{"part": "module:Name", "fields": {…}}`` an instance of a dataclass, as a Linen module, with
    the fields that differ from their defaults; ``{"name": "module:Name"}`` a class or function;
    ``{"partial": …, "arguments": […], "keywords": {…}}``; ``{"dtype": "float32"}``;
    ``{"tuple": […]}``, ``{"list": […]}``, ``{"mapping": {…}}``.

    Args:
      part: a Linen module or dataclass, and whatever stands in its fields.

    Raises:
      ValueError: a value that has no such description, as a lambda; names its type.

    >>> from flaxnets import StepClassifier
    >>> described = describe_part(StepClassifier(3, dropout_rate=0.5))
    >>> described["part"], described["fields"]
    ('flaxnets.heads.classifier:StepClassifier', {'num_classes': 3, 'dropout_rate': 0.5})
    >>> build_part(described) == StepClassifier(3, dropout_rate=0.5)
    True
    """
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if isinstance(part, (tuple, list)):
        kind = "tuple" if isinstance(part, tuple) else "list"
        return {kind: [describe_part(item) for item in part]}
    if isinstance(part, Mapping):
        if not all(isinstance(key, str) for key in part):
            raise ValueError(f"part: expected mappings with texts as keys, received {part!r:.80}")
        return {"mapping": {key: describe_part(value) for key, value in part.items()}}
    if isinstance(part, partial):
        return {
            "partial": describe_part(part.func),
            "arguments": [describe_part(item) for item in part.args],
            "keywords": {key: describe_part(value) for key, value in part.keywords.items()},
        }
    if isinstance(part, np.dtype) or (isinstance(part, type) and issubclass(part, np.generic)):
        return {"dtype": np.dtype(part).name}
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {
            field.name: describe_part(getattr(part, field.name))
            for field in dataclasses.fields(part)
            # Of Linen: where a module stands in another one, which the other's fields tell.
            if field.init and field.name not in ("parent", "name") and _is_given(part, field)
        }
        return {"part": _qualified_name(type(part)), "fields": fields}
    if isinstance(getattr(part, "dtype", None), np.dtype) and not hasattr(part, "shape"):
        return {"dtype": part.dtype.name}  # jnp.float32 is neither a dtype nor a class of NumPy.
    if callable(part):
        return {"name": _qualified_name(part)}
    raise ValueError(f"part: expected a value that JSON can describe, received {part!r:.80}")


def build_part(described: Any, *, allow_code: bool = False) -> Any:
    """Makes the part that ``describe_part`` described.

    A description is data and may have come from elsewhere: unless ``allow_code``, it may name
    dataclasses and functions of ``OWN_PACKAGES`` and ``flax.linen`` alone.

    Args:
      described: JSON.
      allow_code: also names of other modules, which are imported.

    Raises:
      ValueError: no such description, a name that is not allowed or does not exist, or fields that
        the part does not have.
    """

    def build(value: Any) -> Any:
        return build_part(value, allow_code=allow_code)

    if described is None or isinstance(described, (bool, int, float, str)):
        return described
    keys = set(described) if isinstance(described, Mapping) else set()
    try:
        if keys == {"part", "fields"}:
            part = _named(described["part"], allow_code)
            if not (isinstance(part, type) and dataclasses.is_dataclass(part)):
                raise ValueError(f"description: expected a dataclass, received {described['part']}")
            return part(**{key: build(value) for key, value in described["fields"].items()})
        if keys == {"partial", "arguments", "keywords"}:
            keywords = {key: build(value) for key, value in described["keywords"].items()}
            return partial(
                build(described["partial"]), *map(build, described["arguments"]), **keywords
            )
        if keys == {"name"}:
            return _named(described["name"], allow_code)
        if keys == {"dtype"}:
            return np.dtype(described["dtype"])
        if keys == {"tuple"}:
            return tuple(map(build, described["tuple"]))
        if keys == {"list"}:
            return list(map(build, described["list"]))
        if keys == {"mapping"}:
            return {key: build(value) for key, value in described["mapping"].items()}
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"description: cannot build {described!r:.80}: {error}") from error
    raise ValueError(
        f"description: expected a part as flaxnets.configuration.describe_part writes it, received "
        f"{described!r:.80}"
    )


def _is_given(part: Any, field: "dataclasses.Field[Any]") -> bool:
    value, default = getattr(part, field.name), field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return not (value is default or (type(value) is type(default) and bool(value == default)))


def _qualified_name(part: Any) -> str:
    for module in ("flax.linen", getattr(part, "__module__", None)):
        name = str(getattr(part, "__qualname__", getattr(part, "__name__", "")))
        try:
            found: Any = importlib.import_module(str(module))
            for word in name.split("."):
                found = getattr(found, word)
        except (ImportError, AttributeError, ValueError):
            continue
        if found is part:
            return f"{module}:{name}"
    raise ValueError(
        f"part: expected classes and functions of a module, received {part!r:.80}, which cannot be "
        "found by its name; define it at the top level of a module"
    )


def _named(name: Any, allow_code: bool) -> Any:
    """Returns what stands under ``module:Name``, if it is allowed."""
    module, _, words = str(name).partition(":")
    if not isinstance(name, str) or not all(map(str.isidentifier, words.split("."))):
        raise ValueError(f"description: expected module:Name, received {name!r:.80}")
    first, _, rest = module.partition(".")
    own = first == "flaxnets" and rest.partition(".")[0] in OWN_PACKAGES
    if not (allow_code or own or module == "flax.linen"):
        raise ValueError(
            f"description: names {name!r:.80}, code from outside of flaxnets' parts; if you trust "
            "it, load with allow_code=True"
        )
    try:
        found: Any = importlib.import_module(module)
        for word in words.split("."):
            found = getattr(found, word)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"description: no {name!r:.80} here ({error})") from error
    # A module has names of others, too, as flaxnets.encoders.pretrained:os.
    if not callable(found) or (own and not allow_code and found.__module__ != module):
        raise ValueError(f"description: {name!r:.80} is no part of {module}")
    return found
