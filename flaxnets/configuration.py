"""Fields of configurations, local paths, and parts that are chosen by name."""

import dataclasses
import difflib
import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def runtime(default: Any) -> Any:
    """Returns a dataclass field that changes how a run is carried out, not what it computes.

    Such a field may differ when a run is resumed.
    """
    return dataclasses.field(default=default, metadata={"runtime": True})


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
      ``; did you mean 'x'?``, or ``; there are a, b`` where none is near.
    """
    names = list(names)
    matches = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
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
    """Refuses dropout rates outside [0,1).

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
