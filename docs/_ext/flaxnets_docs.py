"""Sphinx extension: pages and tables that are made from the code, so that they cannot get stale.

- ``{launch-program} NAME``: docstring and flags of a program, from its own definitions.
- ``{public-names}``: the table of everything that ``flaxnets`` exports, with links.
- ``{parts} MODULE:TABLE``: the names that flags accept for a kind of part, with their classes.
- ``{newcomer-times}``: the measured times of ``newcomer_times.json``.
- ``{path-of-the-data}``: the picture, drawn in the colours of the page.

It also cleans the reference: attributes that Flax adds to each module are left out of signatures,
and so are methods whose docstring only refers to their interface.
"""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from from_code import (
    ROOT,
    Flag,
    attribute_docstring,
    experiment_names,
    find_room,
    program_names,
    read_program,
)
from path_picture import draw_path
from sphinx.domains.python import PyObject
from sphinx.util.docutils import SphinxDirective


class MarkdownDirective(SphinxDirective):
    """Base class of directives whose content is made as reStructuredText."""

    def parse(self, text: str) -> list[nodes.Node]:
        """Returns the nodes of reStructuredText, whatever the language of the page."""
        from docutils.parsers.rst import Parser  # myst pages have another parser
        from docutils.utils import new_document

        document = new_document(self.env.docname, self.state.document.settings)
        document.settings.env = self.env
        Parser().parse(text, document)
        return list(document.children)


class LaunchProgram(MarkdownDirective):
    """``{launch-program} NAME``: its docstring and its flags."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns the section's content."""
        name = self.arguments[0]
        self.env.note_dependency(str(ROOT / "launch" / f"{name}.py"))
        docstring, described = read_program(name)
        first, _, rest = docstring.partition("\n\n")
        rows = [
            [f"``--{flag.name}``", _describe(flag), flag.help.replace("*", r"\*")]
            for flag in described
        ]
        text = f"{first}\n\n{_literal_tables(rest)}\n\n"
        table = [list_table(self, ("flag", "value", "meaning"), rows)] if rows else []
        return [*self.parse(text), *table]


class ProgramHelp(SphinxDirective):
    """``{program-help} MODULE``: what a program prints with ``--help``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns the text as it is."""
        command = [sys.executable, "-m", self.arguments[0], "--help"]
        wide = {**os.environ, "COLUMNS": "96"}
        text = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=ROOT, env=wide
        ).stdout
        block = nodes.literal_block(text, text)
        block["language"] = "none"
        return [block]


def _describe(flag: Flag) -> str:
    kind = {"bool": "true or false", "int": "integer", "string": "text"}.get(flag.type, flag.type)
    if flag.default:
        return f"{kind}; default ``{flag.default}``"
    return kind


def _literal_tables(text: str) -> str:
    """Marks indented commands and aligned columns of a docstring as literal blocks."""
    blocks = re.split(r"\n\s*\n", text)
    made = []
    for block in blocks:
        lines = block.splitlines()
        # "Exit codes:" with indented rows in the same paragraph.
        if len(lines) > 1 and not lines[0].startswith(" ") and lines[1].startswith("  "):
            head = lines[0].rstrip()
            body = textwrap.indent(textwrap.dedent("\n".join(lines[1:])), "    ")
            made.append(f"{head if head.endswith(':') else head + ':'}:\n\n{body}")
        elif lines and all(line.startswith("    ") or not line for line in lines):
            made.append("::\n\n" + block)
        else:
            made.append(block)
    return "\n\n".join(made)


def list_table(
    directive: SphinxDirective, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> nodes.Node:
    """Returns a table whose cells are reStructuredText, in a frame that scrolls sideways."""
    assert isinstance(directive, MarkdownDirective)
    return directive.parse("\n".join(list_table_lines((header, *rows))))[0]


def list_table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a table as lines of reStructuredText; the first row is the header."""
    lines = [".. list-table::", "   :header-rows: 1", "   :class: made-from-code", ""]
    for row in rows:
        for column, cell in enumerate(row):
            lines.append(f"   {'* -' if column == 0 else '  -'} {cell or '..'}")
    return lines


class PublicNames(MarkdownDirective):
    """``{public-names}``: what ``flaxnets`` exports, grouped by the package that defines it."""

    def run(self) -> list[nodes.Node]:
        """Returns the table."""
        flaxnets = importlib.import_module("flaxnets")
        rows = []
        for name in sorted(flaxnets.__all__, key=str.lower):
            home = find_room(name)
            role = "data" if name.isupper() and not inspect.isclass(getattr(flaxnets, name)) else ""
            role = role or ("class" if inspect.isclass(getattr(flaxnets, name)) else "func")
            rows.append([f":py:{role}:`~{home}.{name}`", f"``{home}``", _summary(home, name)])
        return [list_table(self, ("name", "package", "what it is"), rows)]


def _summary(home: str, name: str) -> str:
    value = getattr(importlib.import_module(home), name)
    if inspect.isclass(value) or inspect.isfunction(value):
        text = (inspect.getdoc(value) or "").partition("\n\n")[0]
        return " ".join(text.split())
    return " ".join(attribute_docstring(home, name).split()).partition(". ")[0]


class Parts(MarkdownDirective):
    """``{parts} MODULE:TABLE``: a table of parts by the names that flags accept."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns the table."""
        module, _, table = self.arguments[0].partition(":")
        rows = []
        for name, part in getattr(importlib.import_module(module), table).items():
            options = ""
            while hasattr(part, "func"):  # A partial names the class that it makes.
                options = ", ".join(f"{k}={v!r}" for k, v in part.keywords.items())
                part = part.func
            package = ".".join(part.__module__.split(".")[:2])
            role = "class" if inspect.isclass(part) else "func"
            target = f":py:{role}:`~{package}.{part.__name__}`" if part is not None else ""
            first = (inspect.getdoc(part) or "").partition("\n\n")[0]
            rows.append([f"``{name}``", f"{target} {options}".strip(), " ".join(first.split())])
        return [list_table(self, ("name", "class", "what it is"), rows)]


class NewcomerTimes(MarkdownDirective):
    """``{newcomer-times}``: measured times from a clone to a result."""

    def run(self) -> list[nodes.Node]:
        """Returns the table and the line that says where it was measured."""
        file = ROOT / "docs" / "newcomer_times.json"
        self.env.note_dependency(str(file))
        record = json.loads(file.read_text())
        rows = [
            [path["what"], f"``{path['command']}``", _minutes(path["seconds"])]
            for path in record["paths"]
        ]
        table = list_table(self, ("path", "command", "time"), rows)
        return [table, *self.parse(record["measured_on"])]


def _minutes(seconds: float | None) -> str:
    if seconds is None:
        return "not measured yet"
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


class PathOfTheData(SphinxDirective):
    """``{path-of-the-data}``: the picture, once for wide and once for narrow screens."""

    option_spec: ClassVar[dict[str, Any]] = {"alt": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Returns the two drawings, of which the style sheet shows one."""
        return [
            nodes.raw("", f'<div class="path-{layout}">{draw_path(layout)}</div>', format="html")
            for layout in ("wide", "narrow")
        ]


DTYPE = re.compile(
    r"~?str \| ~?type\[~?(typing\.)?Any\] \| ~?(numpy\.)?dtype"
    r" \| ~?(jax\._src\.typing\.)?SupportsDType"
)


def clean_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str | None, Any] | None:
    """Removes ``parent`` and ``name``, which Flax adds to modules; writes defaults as code."""
    if not signature:
        return None
    signature = re.sub(r",?\s*parent: [^=]*= <[^>]*>", "", signature)
    if what == "class":
        signature = re.sub(r",?\s*name: str \| None = None", "", signature)
    signature = signature.replace("(, ", "(").replace(", *)", ")").replace("(*)", "()")
    signature = re.sub(r"<PjitFunction of <function (?:[\w.]*\.)?(\w+)[^>]*>>", r"\1", signature)
    signature = re.sub(r"<(?:class|function) '?(?:[\w.]*\.)?(\w+)'?[^>]*>", r"\1", signature)
    signature = re.sub(r"<(\w+)[^<>]*>", r"\1", signature)
    signature = DTYPE.sub("Dtype", signature)
    return signature, DTYPE.sub("Dtype", returns) if returns else returns


def skip_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out methods that an interface documents, and those that Linen calls by itself."""
    doc = inspect.getdoc(obj) or ""
    if name == "setup" or doc.startswith("See ``"):
        return True
    if name == "__call__" and not getattr(obj, "__doc__", None):
        return True
    return None


def convert_tables(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Writes the Markdown tables of docstrings as tables of reStructuredText."""
    made: list[str] = []
    rows: list[str] = []
    for line in [*lines, ""]:
        if line.lstrip().startswith("|"):
            rows.append(line)
            continue
        if len(rows) > 1 and re.fullmatch(r"\s*\|[\s:|-]+\|\s*", rows[1]):
            cells = [row.strip()[1:-1].split("|") for row in (rows[0], *rows[2:])]
            table = list_table_lines([[cell.strip() for cell in row] for row in cells])
            rows = [" " * _indentation(rows[0]) + row if row else "" for row in ("", *table, "")]
        made += rows
        rows = []
        made.append(line)
    lines[:] = made[:-1]


def escape_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Writes the absolute values of docstrings so that they are no substitutions."""
    for i, line in enumerate(lines):
        if "|" in line and ":math:" not in line and not line.startswith("    "):
            lines[i] = re.sub(r"(?<![`|\\])\|(?=[^\s|])", r"\\|", line)


def mark_literals(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Marks indented examples of a docstring, commands and equations, as literal blocks."""
    made: list[str] = []
    for i, line in enumerate(lines):
        before = next((old for old in reversed(made) if old.strip()), "")
        starts = line.strip() and made and not made[-1].strip()
        deeper = _indentation(line) - _indentation(before) >= 4
        plain = not before.lstrip().startswith(("..", "- ", ">>>", "...", "::"))
        if starts and deeper and plain and i and not line.lstrip().startswith((".. ", "- ")):
            made += [" " * _indentation(before) + "::", ""]
        made.append(line)
    lines[:] = made


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


COLON = "\ue000"
"""Stands for a colon while napoleon reads a docstring."""


def hide_colons(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keeps napoleon from taking the words before a colon for the type of an attribute."""
    if what in ("attribute", "data", "property"):
        colon = r"(?<![:\w`]):(?![:\w])|(?<=\w):(?=\s|$)|(?<=``):(?=\s|$)"
        lines[:] = [re.sub(colon, COLON, line) for line in lines]


def show_colons(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Undoes ``hide_colons``."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def find_reexport(app: Any, env: Any, node: nodes.Element, content: nodes.Node) -> Any:
    """Links a name to the page of the package that exports it, whichever module defines it."""
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    root, name = node["reftarget"].split(".")[0], node["reftarget"].rpartition(".")[2]
    same = [full for full in domain.objects if full.rpartition(".")[2] == name]
    same = [full for full in same if "." not in node["reftarget"] or full.startswith(f"{root}.")]
    if len(same) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", same[0], node, content)


def fill_in(app: Any, docname: str, source: list[str]) -> None:
    """Replaces ``@programs@`` and ``@experiments@`` by one section for each of them."""
    if docname == "reference/programs":
        sections = [
            f"(launch-{name})=\n## launch.{name}\n\n```{{launch-program}} {name}\n```\n"
            for name in program_names()
        ]
        source[0] = source[0].replace("@programs@", "\n".join(sections))
    if docname == "reference/experiments":
        sections = [
            f"## {name}\n\n```{{eval-rst}}\n.. automodule:: experiments.{name}\n   :members:\n```\n"
            for name in experiment_names()
        ]
        source[0] = source[0].replace("@experiments@", "\n".join(sections))


def setup(app: Any) -> dict[str, bool]:
    """Registers the directives and the events."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # Sphinx says Variables.
    app.add_directive("launch-program", LaunchProgram)
    app.add_directive("program-help", ProgramHelp)
    app.add_directive("public-names", PublicNames)
    app.add_directive("parts", Parts)
    app.add_directive("newcomer-times", NewcomerTimes)
    app.add_directive("path-of-the-data", PathOfTheData)
    app.connect("autodoc-process-signature", clean_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", convert_tables, priority=80)
    app.connect("autodoc-process-docstring", escape_bars, priority=85)
    app.connect("autodoc-process-docstring", mark_literals, priority=90)
    app.connect("autodoc-process-docstring", hide_colons, priority=100)  # napoleon: 500
    app.connect("autodoc-process-docstring", show_colons, priority=900)
    app.connect("missing-reference", find_reexport)
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
