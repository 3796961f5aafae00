"""Facts that the documentation takes from the code: programs with their flags, public names.

Nothing here needs Sphinx, so that the tests can use it.
"""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("encoders", "recurrent", "heads", "decoders", "models", "tasks", "training", "inference")
"""Packages of flaxnets whose names the public interface re-exports."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a program as its page shows it."""

    name: str
    type: str
    default: str
    help: str


def read_program(name: str) -> tuple[str, list[Flag]]:
    """Returns the docstring and the flags of ``launch.NAME``, and forgets its flags again.

    Programs define flags of the same names, so no two of them can be loaded at the same time.
    """
    module = importlib.import_module(f"launch.{name}")
    values = flags.FLAGS
    if name not in _PROGRAMS:
        key_flags = values.get_key_flags_for_module(module.__name__)
        _PROGRAMS[name] = [_describe_flag(flag) for flag in key_flags]
        for owner, defined in list(values.flags_by_module_dict().items()):
            # Its own, and those of its parts, as predict_stream of predict.
            if owner == module.__name__ or owner.startswith(f"{module.__name__}_"):
                for flag in list(defined):
                    delattr(values, flag.name)
    return inspect.getdoc(module) or "", _PROGRAMS[name]


_PROGRAMS: dict[str, list[Flag]] = {}


def _describe_flag(flag: Any) -> Flag:
    default = "" if flag.default is None else str(flag.default_as_str).strip("'")
    kind = flag.flag_type() if hasattr(flag, "flag_type") else "string"
    if getattr(flag.parser, "enum_values", None):
        kind = " | ".join(flag.parser.enum_values)
    if isinstance(flag, flags.MultiFlag):
        kind, default = "text, may be repeated", "" if default == "[]" else default
    text = " ".join((flag.help or "").split())
    text = text.removesuffix("; repeat this option to specify a list of values")
    text = re.sub(r"^<[\w|]+>: ", "", text)  # absl's list of the values, which are the type.
    return Flag(flag.name, kind, default, text)


def program_names() -> list[str]:
    """Returns the names of all programs: files of ``launch`` that run as ``__main__``."""
    return sorted(
        path.stem
        for path in (ROOT / "launch").glob("*.py")
        if not path.stem.startswith("_") and '__name__ == "__main__"' in path.read_text()
    )


def experiment_names() -> list[str]:
    """Returns the names of all experiments: files of ``experiments`` that define ``get_config``."""
    files = (ROOT / "experiments").glob("*.py")
    return sorted(file.stem for file in files if "def get_config(" in file.read_text())


def find_room(name: str) -> str:
    """Returns the package whose page documents a name of ``flaxnets``."""
    for room in ROOMS:
        package = importlib.import_module(f"flaxnets.{room}")
        if name in package.__all__:
            return package.__name__
    return "flaxnets"


def attribute_docstring(package: str, name: str) -> str:
    """Returns the docstring below an assignment, looked for where the package imports it from."""
    for module in _sources(package):
        tree = ast.parse(inspect.getsource(module))
        for statement, following in zip(tree.body, tree.body[1:], strict=False):
            targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
            named = any(isinstance(t, ast.Name) and t.id == name for t in targets)
            if (
                named
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                return inspect.cleandoc(str(following.value.value))
    return ""


def _sources(package: str) -> Iterator[Any]:
    module = importlib.import_module(package)
    yield module
    for file in sorted(Path(str(module.__file__)).parent.glob("*.py")):
        if file.stem != "__init__":
            yield importlib.import_module(f"{package}.{file.stem}")


if __name__ == "__main__":  # Prints the programs as JSON, for the tests.
    sys.path.insert(0, str(ROOT))
    programs = {name: read_program(name) for name in program_names()}
    described = {
        name: {"docstring": docstring, "flags": [dataclasses.asdict(flag) for flag in defined]}
        for name, (docstring, defined) in programs.items()
    }
    sys.stdout.write(json.dumps(described))
