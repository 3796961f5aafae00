"""Rows of the ledger, a CSV file, their verdicts, and the result files of their figures.

A row is one figure of a paper's table, or one of an experiment without a paper, and what this
repository measured. All cells are text, so that a figure keeps its digits. ``ours``, ``spread``,
``seeds`` and ``hours`` are never typed: ``filled`` takes them from the file that ``files`` names,
which is

- a record of ``launch.reproduce``, ``reproduced/NAME.json``, or
- a cell of a table in a page of results, ``PAGE.md > KEY > … > COLUMN``: the keys are the first
  cells of the table's row.
"""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from flaxnets.configuration import nearest
from flaxnets.training.workdir import write_text_atomically

GRADES: Mapping[str, str] = {
    "R": "read in the authors' or a reference repository",
    "A": "in the paper's abstract",
    "S": "in a secondary page or a table of another paper",
    "M": "from memory, unchecked",
}
"""Evidence for a published figure."""
BETTER = ("higher", "lower", "equal")
"""The better end of a metric; ``equal``: both directions count as far from the target."""
NOT_RUN = "not run: "
"""Begin of the verdict of a row without a figure of ours; a reason follows."""
UNPUBLISHED = "no published figure"
"""Verdict of a row that has a figure of ours and no target."""
RECORDS = "reproduced"
"""Folder beside the ledger for the records of ``launch.reproduce``."""
_NUMBER = re.compile(r"([\d,]*\.?\d+(?:e-?\d+)?)\s*%?(?:\s*±\s*([\d,]*\.?\d+(?:e-?\d+)?))?")


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure: the paper's and ours.

    Attributes:
      name: unique key, as ``jsb_lstm``.
      paper: its title, or that of a study of this repository.
      arxiv: id; empty: not there.
      table: of the paper, as ``table 1``.
      row: of that table.
      data: data set.
      split: on which the metric is taken.
      metric: its key in the metrics of ``launch.evaluate``, or a column of a page.
      unit: ``%``: metrics are fractions and the row has percentages; others are words.
      better: one of ``BETTER``.
      target: the published figure; empty: none.
      grade: key of ``GRADES``; empty without a target.
      source: where the target was read.
      tolerance: distance from the target, to the worse side, that counts as reproduced.
      differs: what makes our measurement another one than the paper's, as another split; a row
        with it is never called reproduced.
      ours: mean over the seeds; empty: not run.
      spread: sample standard deviation over the seeds; empty: one seed.
      seeds: their number.
      command: template of the commands, separated by ``; ``, with ``{workdir}``, ``{root}``,
        ``{seed}`` and ``{out}``.
      files: file of our figures, below the ledger's folder.
      commit: that first had the figures, or that of the run.
      device: of the run.
      hours: of one seed.
      planned_hours: for one H100 and one seed, a lower bound: the roofline of ``launch.plan``,
        without evaluations and input, and 0.01 where it is less; empty: not planned without the
        data.
      verdict: as ``judge`` has it.
    """

    name: str
    paper: str
    arxiv: str
    table: str
    row: str
    data: str
    split: str
    metric: str
    unit: str
    better: str
    target: str
    grade: str
    source: str
    tolerance: str
    differs: str
    ours: str
    spread: str
    seeds: str
    command: str
    files: str
    commit: str
    device: str
    hours: str
    planned_hours: str
    verdict: str


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
"""Columns of the CSV file."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure as a result file has it.

    Attributes:
      ours: mean over the seeds.
      spread: over the seeds; empty: the file has none.
      seeds: their number; None: the file does not say.
      hours: of one seed; None: the file does not say.
    """

    ours: str
    spread: str
    seeds: str | None = None
    hours: str | None = None


def read_ledger(path: Path) -> list[Row]:
    """Reads the rows of a ledger.

    Raises:
      FileNotFoundError: no such file.
      ValueError: other columns, a line with another number of cells, or a name that occurs twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a ledger in CSV")
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        header = tuple(next(lines, ()))
        if header != COLUMNS:
            different = sorted(set(header) ^ set(COLUMNS)) or ["their order"]
            raise ValueError(
                f"{path}: expected the columns {', '.join(COLUMNS)}; different: "
                f"{', '.join(different)}"
            )
        rows = []
        for cells in lines:
            if len(cells) != len(COLUMNS):
                raise ValueError(
                    f"{path}, line {lines.line_num}: expected {len(COLUMNS)} cells, received "
                    f"{len(cells)}"
                )
            rows.append(Row(*cells))
    names = [row.name for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}: expected each name once, received {twice[0]} twice")
    return rows


def write_ledger(path: Path, rows: Sequence[Row]) -> None:
    """Writes the rows of a ledger, all or nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(dataclasses.astuple(row) for row in rows)
    write_text_atomically(path, text.getvalue())


def find_row(rows: Sequence[Row], name: str) -> Row:
    """Returns the row of a name.

    Raises:
      ValueError: an unknown name, with the nearest.
    """
    by_name = {row.name: row for row in rows}
    if name not in by_name:
        raise ValueError(f"unknown row {name!r}{nearest(name, by_name, cutoff=0.0)}")
    return by_name[name]


def judge(row: Row) -> str:
    """Returns the verdict of a row by its target, tolerance and our figure.

    ``reproduced``: no worse than the target by more than the tolerance, or no farther from it where
    ``better`` is ``equal``; ``off by`` our figure minus the target; ``not run`` and the reason,
    which stands in the row alone.

    >>> lstm = Row(*[""] * len(COLUMNS))
    >>> lstm = dataclasses.replace(lstm, better="lower", target="8.45", tolerance="0.05")
    >>> judge(dataclasses.replace(lstm, ours="8.49"))
    'reproduced'
    >>> judge(dataclasses.replace(lstm, ours="8.61"))
    'off by +0.16'
    >>> judge(dataclasses.replace(lstm, ours="8.40", differs="validation split"))
    'off by -0.05: validation split'
    """
    if not row.ours:
        return row.verdict if row.verdict.startswith(NOT_RUN) else NOT_RUN
    if not row.target:
        return UNPUBLISHED
    difference = Decimal(row.ours) - Decimal(row.target)
    worse = {"higher": -difference, "lower": difference}.get(row.better, abs(difference))
    if worse <= Decimal(row.tolerance) and not row.differs:
        return "reproduced"
    return f"off by {difference:+f}" + (f": {row.differs}" if row.differs else "")


def filled(row: Row, folder: Path) -> Row:
    """Returns a row with the figures of its file and the verdict that follows from them.

    Args:
      row: of a ledger.
      folder: of the ledger and the result files.

    Raises:
      ValueError: no such file, table, row or column.
    """
    if row.files:
        figure = read_figure(row, folder)
        row = dataclasses.replace(row, ours=figure.ours, spread=figure.spread)
        if figure.seeds is not None:
            row = dataclasses.replace(row, seeds=figure.seeds)
        if figure.hours is not None:
            row = dataclasses.replace(row, hours=figure.hours)
    return dataclasses.replace(row, verdict=judge(row))


def read_figure(row: Row, folder: Path) -> Figure:
    """Returns the figure of a row as its file has it.

    Raises:
      ValueError: no such file, table, row or column.
    """
    name, *keys = row.files.split(" > ")
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{row.name}: files: no file {path}")
    if path.suffix == ".json":
        record = json.loads(path.read_text(encoding="utf-8"))
        values = list(record["values"].values())
        return Figure(
            format_like(sum(values) / len(values), row.target),
            format_like(record["spread"], row.target) if len(values) > 1 else "",
            str(len(values)),
            f"{record['hours']:.2f}",
        )
    if len(keys) < 2:
        raise ValueError(
            f"{row.name}: files: expected PAGE.md > KEY > … > COLUMN, received {row.files!r}"
        )
    figure = read_cell(path, keys[:-1], keys[-1])
    if row.command.count("launch.train") > 1:  # The page has the minutes of the last one alone.
        figure = dataclasses.replace(figure, hours=None)
    return figure


def read_cell(path: Path, keys: Sequence[str], column: str) -> Figure:
    """Returns the figure of a cell of a Markdown table.

    The tables that ``experiments.results.write_results`` wrote go before others of the page. Seeds
    are those of the columns ``seeds`` or ``runs``, hours those of ``minutes``, if the table has
    them.

    Args:
      path: of the page.
      keys: first cells of the row.
      column: name of the column.

    Raises:
      ValueError: no such row and column, several, or a cell that is no number.
    """
    page = path.read_text(encoding="utf-8")
    written = "".join(re.findall(r"<!-- results -->\n(.*?)<!-- end", page, re.DOTALL))
    found: list[dict[str, str]] = []
    for text in (written, page):
        found = found or [
            dict(zip(header, cells, strict=False))
            for header, cells in rows_of_tables(text)
            if cells[: len(keys)] == list(keys) and column in header
        ]
    where = f"{path.name} > {' > '.join([*keys, column])}"
    if len(found) != 1:
        raise ValueError(f"files: expected one cell {where}, received {len(found) or 'none'}")
    number = _NUMBER.match(found[0][column])
    if number is None:
        raise ValueError(f"files: {where}: expected a number, received {found[0][column]!r}")
    seeds = found[0].get("seeds") or found[0].get("runs")
    minutes = found[0].get("minutes")
    return Figure(
        number[1].replace(",", ""),
        (number[2] or "").replace(",", ""),
        seeds or None,
        f"{int(minutes) / 60:.2f}" if minutes and minutes.isdecimal() else None,
    )


def rows_of_tables(text: str) -> Iterator[tuple[list[str], list[str]]]:
    r"""Yields header and cells of each row of the tables in a Markdown text.

    >>> list(rows_of_tables("| a | b |\n|---|---|\n| **x** | 1 |\n"))
    [(['a', 'b'], ['x', '1'])]
    """
    header: list[str] | None = None
    for line in text.splitlines():
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip().replace("**", "") for cell in line.strip().strip("|").split("|")]
        if header is None:
            header = cells
        elif not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            yield header, cells


def format_like(value: float, target: str) -> str:
    """Returns a number with as many digits as a published one.

    >>> format_like(8.4049, "8.45"), format_like(0.0000534, "5.3e-5"), format_like(93.25, "")
    ('8.40', '5.3e-05', '93.25')
    """
    mantissa, exponent, _ = target.lower().partition("e")
    digits = len(mantissa.partition(".")[2]) if target else 2
    return f"{value:.{digits}{'e' if exponent else 'f'}}"


def find_problems(rows: Sequence[Row], folder: Path) -> list[str]:
    """Returns what is wrong with the rows, a sentence each: values, figures, verdicts.

    Args:
      rows: of the ledger.
      folder: of the ledger and the result files.
    """
    problems: list[str] = []
    for row in rows:
        problems += _find_wrong_values(row)
        try:
            fresh = filled(row, folder)
        except (ValueError, KeyError, InvalidOperation) as error:
            problems.append(f"{row.name}: {error}")
            continue
        for column in ("ours", "spread", "seeds", "hours", "verdict"):
            here, there = getattr(row, column), getattr(fresh, column)
            if here != there:
                problems.append(
                    f"{row.name}: {column}: expected {there or 'none'}, as "
                    f"{row.files or 'the other columns'} gives, received {here or 'none'}; "
                    "python -m launch.reproduce --update writes it"
                )
    return problems


def _find_wrong_values(row: Row) -> Iterator[str]:
    for column in ("name", "paper", "data", "metric", "command", "verdict"):
        if not getattr(row, column):
            yield f"{row.name}: {column}: expected a text, received none"
    if row.better not in BETTER:
        yield f"{row.name}: better: expected one of {', '.join(BETTER)}, received {row.better!r}"
    for column in ("target", "tolerance", "ours", "spread", "seeds", "hours", "planned_hours"):
        text = getattr(row, column)
        try:
            Decimal(text or "0")
        except InvalidOperation:
            yield f"{row.name}: {column}: expected a number, received {text!r}"
    for column in ("grade", "source", "tolerance"):
        if bool(row.target) != bool(getattr(row, column)):
            yield f"{row.name}: {column}: expected with a target, and only then"
    if row.grade and row.grade not in GRADES:
        yield f"{row.name}: grade: expected one of {', '.join(GRADES)}, received {row.grade!r}"
    if row.ours and not row.files:
        yield f"{row.name}: files: expected the file of the figure {row.ours}, received none"
    if row.verdict == NOT_RUN:
        yield f"{row.name}: verdict: expected a reason after {NOT_RUN!r}, received none"
