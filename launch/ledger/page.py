"""Pages of the ledger: aligned text, a table for the documentation, self-contained HTML."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from launch import reports
from launch.ledger.rows import GRADES, NOT_RUN, UNPUBLISHED, Row

MARKS = ("<!-- ledger -->", "<!-- end of ledger -->")
"""Lines of the documentation's page between which its tables stand."""
COLUMNS = ("name", "paper", "metric", "published", "ours", "verdict")
"""Columns of the list on the terminal."""
KINDS: Mapping[str, str] = {
    "reproduced": "reproduced",
    "off": "off by more than the tolerance, or measured otherwise",
    "unpublished": "without a published figure",
    "open": "not run",
}
"""Kinds of verdicts, and the words that count them."""


def kind_of(row: Row) -> str:
    """Returns the kind of a row's verdict, a key of ``KINDS``."""
    if row.verdict.startswith(NOT_RUN):
        return "open"
    return {"reproduced": "reproduced", UNPUBLISHED: "unpublished"}.get(row.verdict, "off")


def count_kinds(rows: Sequence[Row]) -> str:
    """Returns how many rows have which kind of verdict, in words."""
    kinds = [kind_of(row) for row in rows]
    return ", ".join(f"{kinds.count(kind)} {words}" for kind, words in KINDS.items())


def published(row: Row) -> str:
    """Returns the published figure with its unit and grade, as ``8.45 (M)``; ``–``: none."""
    return f"{_with_unit(row.target, row)} ({row.grade})" if row.target else "–"


def measured(row: Row) -> str:
    """Returns our figure, with spread and number of seeds, as ``14.05 ± 0.78, 3 seeds``."""
    if not row.ours:
        return "–"
    text = _with_unit(row.ours + (f" ± {row.spread}" if row.spread else ""), row)
    if row.seeds:
        text += f", {row.seeds} seed{'s' * (row.seeds != '1')}"
    return text


def _with_unit(text: str, row: Row) -> str:
    return f"{text} {row.unit}" if row.unit and text else text


def by_paper(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Returns the rows of each paper, by title and arXiv id, in the ledger's order."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.paper, row.arxiv), []).append(row)
    return groups


def format_list(rows: Sequence[Row]) -> str:
    """Returns the rows as text, with columns two spaces apart."""
    lines = [COLUMNS]
    for row in rows:
        paper = row.arxiv or row.paper
        metric = f"{row.data}: {row.metric}"
        lines.append((row.name, paper, metric, published(row), measured(row), row.verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def format_markdown(rows: Sequence[Row]) -> str:
    """Returns a section with a table for each paper, as Markdown."""
    parts = [f"{len(rows)} rows: {count_kinds(rows)}."]
    for (paper, arxiv), members in by_paper(rows).items():
        title = f"{paper} ([{arxiv}](https://arxiv.org/abs/{arxiv}))" if arxiv else paper
        lines = [
            f"## {title}",
            "",
            "| row | data, split | metric | published | ours | verdict |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in members:
            cells = (
                f"`{row.name}`<br>{_place(row)}",
                _where(row),
                row.metric.replace("_", " "),
                published(row),
                measured(row),
                row.verdict,
            )
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _place(row: Row) -> str:
    return ", ".join(filter(None, (row.table, row.row)))


def _where(row: Row) -> str:
    return ", ".join(filter(None, (row.data, row.split)))


def fill_page(page: str, rows: Sequence[Row]) -> str:
    """Returns a page of the documentation with the ledger's tables between its marks.

    Raises:
      ValueError: not exactly one pair of marks.
    """
    block = re.compile(rf"({MARKS[0]}\n).*?({MARKS[1]})", re.DOTALL)
    if len(block.findall(page)) != 1:
        raise ValueError(f"page: expected one {MARKS[0]} … {MARKS[1]}, received another number")
    return block.sub(lambda match: f"{match[1]}{format_markdown(rows)}{match[2]}", page)


def build_page(rows: Sequence[Row]) -> str:
    """Returns the page as HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(reports.__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    kinds = [kind_of(row) for row in rows]
    return environment.get_template("ledger.html.jinja").render(
        total=len(rows),
        counts=[(kind, kinds.count(kind), words) for kind, words in KINDS.items()],
        grades=GRADES,
        papers=[
            {
                "number": number,
                "title": paper,
                "arxiv": arxiv,
                "counts": count_kinds(members),
                "rows": [_shown(row) for row in members],
            }
            for number, ((paper, arxiv), members) in enumerate(by_paper(rows).items())
        ],
    )


def _shown(row: Row) -> dict[str, Any]:
    """Returns what the page shows of a row."""
    details = {
        "published in": row.source,
        "tolerance": row.tolerance,
        "ours differs in": row.differs,
        "figures from": row.files,
        "commit": row.commit,
        "device": row.device,
        "hours a seed": row.hours,
        "planned, H100 hours": row.planned_hours,
    }
    return {
        "name": row.name,
        "place": _place(row),
        "where": _where(row),
        "metric": row.metric.replace("_", " "),
        "better": {"higher": "more is better", "lower": "less is better"}.get(row.better, "equal"),
        "published": published(row),
        "ours": measured(row),
        "kind": kind_of(row),
        "verdict": row.verdict,
        "details": {name: value for name, value in details.items() if value},
        "commands": row.command.split("; "),
    }
