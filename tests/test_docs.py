"""Documentation: commands, links, names and messages agree with the code; Sphinx is not needed."""

import ast
import functools
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flaxnets
from flaxnets.decoders.config import make_decoder
from flaxnets.models.config import CRNNConfig, make_crnn
from tests.experiments import grid

# ml_collections loads the file of an experiment by a deprecated function.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
NAMES = [page.relative_to(DOCS).as_posix() for page in PAGES]
FOREIGN = (
    "ModuleNotFoundError: No module named 'launch'",
    "Loaded runtime CuDNN library",
    "An NVIDIA GPU may be present",
    "Unknown flag in XLA_FLAGS",
    "RESOURCE_EXHAUSTED",
    "ConcretizationTypeError",
    "TracerBoolConversionError",
    "ScopeParamShapeError",
    "UnexpectedTracerError",
    "carry float32[8,8] against",
)
"""Messages of Python, JAX and Flax on the page of errors."""


def load_facts() -> Any:
    """Returns the module ``docs/_ext/from_code.py``, which is in no package."""
    spec = importlib.util.spec_from_file_location("from_code", DOCS / "_ext" / "from_code.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["from_code"] = module  # Dataclasses look their module up.
    spec.loader.exec_module(module)
    return module


FACTS = load_facts()


def commands_of(text: str) -> list[list[str]]:
    """Returns the words of each command of a page that runs a program of launch or data."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.S)
    shown = [block for info, block in blocks if not info or info.startswith("{code-cell}")]
    lines = [line for block in shown for line in block.replace("\\\n", " ").splitlines()]
    found = [line for line in lines if re.search(r"-m (launch|data)\.\w+", line)]
    found = [line.partition("||")[0].removesuffix("&").strip() for line in found]
    return [shlex.split(line, comments=True) for line in found if not line.startswith((">>>", "#"))]


COMMANDS = {
    f"{name}: {' '.join(command)}": command
    for name, page in zip(NAMES, PAGES, strict=True)
    for command in commands_of(page.read_text())
}


def test_pages_have_commands() -> None:
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("name", COMMANDS)
def test_programs_exist(name: str) -> None:
    command = COMMANDS[name]
    module = command[command.index("-m") + 1]
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").is_file(), module


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, command in COMMANDS.items()
        if any(word.startswith("--config=experiments/") for word in command)
        and not any(own in name for own in ("$", "my_cells:", "my_encoders:"))
    ],
)
def test_configurations_exist_and_make_a_model(name: str) -> None:
    given = [word for word in COMMANDS[name] if word.startswith("--config.")]
    spec = next(word for word in COMMANDS[name] if word.startswith("--config="))
    config = grid.parse(spec.removeprefix("--config=experiments/"), *given)
    if isinstance(config.model, CRNNConfig):
        make_crnn(config.model, num_classes=3, fixed_length=True)
    elif hasattr(config.model, "decoder"):
        make_decoder(config.model.decoder, vocabulary_size=10)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_pages(name: str) -> None:
    page = DOCS / name
    targets = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).is_file()] == []


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = re.findall(r"^(?!```)([\w/]+)$", (DOCS / "index.md").read_text(), re.M)
    assert sorted([f"{page}.md" for page in listed] + ["index.md"]) == NAMES


def documented() -> dict[str, list[str]]:
    """Returns the pages that document each name, by the name with its package."""
    found: dict[str, list[str]] = {}
    for page in sorted((DOCS / "reference").glob("*.md")):
        text, current = page.read_text(), ""
        for line in re.finditer(
            r"^(?:\.\. |```\{)(automodule|autoclass|currentmodule|py:data)(?:::|\}) (\S+)"
            r"(?:\n   :members:)?(?:\n   :exclude-members: (.*))?",
            text,
            re.M,
        ):
            kind, target, excluded = line.groups()
            if kind == "currentmodule":
                current = target
            elif kind == "automodule":
                module = importlib.import_module(target)
                left_out = [name.strip() for name in (excluded or "").split(",")]
                for name in getattr(module, "__all__", ()):
                    if name not in left_out:
                        found.setdefault(f"{target}.{name}", []).append(page.name)
            else:
                full = target if target.startswith("flaxnets.") else f"{current}.{target}"
                found.setdefault(full, []).append(page.name)
    return found


@pytest.mark.parametrize("room", [*FACTS.ROOMS, "layers"])
def test_every_public_name_is_in_the_reference(room: str) -> None:
    package = importlib.import_module(f"flaxnets.{room}")
    names = documented()
    assert [name for name in package.__all__ if f"{package.__name__}.{name}" not in names] == []


def test_public_names_are_found_in_their_packages() -> None:
    homes = {name: FACTS.find_room(name) for name in flaxnets.__all__}
    assert [name for name, home in homes.items() if home == "flaxnets"] == []


def test_every_cell_has_its_equations() -> None:
    for module in ("cells", "convolutional_cells", "linear_cells"):
        cells = importlib.import_module(f"flaxnets.recurrent.{module}")
        for name in importlib.import_module("flaxnets.recurrent").__all__:
            cell = getattr(cells, name, None)
            if isinstance(cell, type) and cell.__module__ == cells.__name__:
                assert (
                    ":math:" in str(cell.__doc__)
                    or "math::" in str(cell.__doc__)
                    or ("Base class" in str(cell.__doc__))
                ), name


@pytest.mark.subprocess
def test_programs_tell_their_flags() -> None:
    file = DOCS / "_ext" / "from_code.py"
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    programs = json.loads(done.stdout)
    assert sorted(programs) == FACTS.program_names()
    assert {"train", "evaluate", "predict", "caption", "export", "demo"} <= programs.keys()
    for name, program in programs.items():
        assert program["docstring"], name
        assert all(flag["help"] for flag in program["flags"]), name
    flags = {flag["name"]: flag for flag in programs["train"]["flags"]}
    assert {"config", "workdir", "coordinator"} <= flags.keys()
    assert flags["heartbeat_timeout"]["default"] == "30"


@functools.cache
def texts_of_the_code() -> list[str]:
    """Returns every text of the programs and packages; what is filled in is an ellipsis."""
    found = []
    for folder in ("flaxnets", "data", "launch", "experiments"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (getattr(part, "value", "…") for part in node.values)
                    found.append("".join(p if isinstance(p, str) else "…" for p in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def messages() -> list[str]:
    """Returns the messages in the terms of the page of errors, without those of others."""
    text = (DOCS / "guides" / "troubleshooting.md").read_text()
    terms = re.findall(r"^(`.*)\n: ", text, re.M)
    quoted = [message for term in terms for message in re.findall(r"`([^`]+)`", term)]
    return [message for message in quoted if not message.startswith(FOREIGN)]


@pytest.mark.parametrize("message", messages())
def test_messages_are_those_of_the_code(message: str) -> None:
    # Values stand in the message where the code fills them in.
    pieces = re.split(r"…|'[^']*'|\(process.*\)|\d[\w.]*|received [^;]*$", message)
    pieces = [piece.strip(" ;:,?") for piece in pieces]
    pieces = [piece.removeprefix("error: ") for piece in pieces if len(piece.strip(" ;:,?")) > 7]
    assert pieces
    for piece in pieces:
        assert any(piece in text for text in texts_of_the_code()), piece
