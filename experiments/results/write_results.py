r"""Puts measured tables into their pages: from files that commands wrote, never by hand.

    python -m experiments.results.write_results moving_shapes=runs/demo/table.md \
        ut_interaction=runs/ut/crossvalidation.md

``experiments/results/NAME.md`` has a heading, a few sentences, the command, and the table between
``<!-- results -->`` and ``<!-- end of results -->``; ``README.md`` beside it lists the pages.
"""

import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from flaxnets.configuration import local_path
from flaxnets.training.workdir import write_text_atomically

RESULTS = Path(__file__).parent
_BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)


def fill(page: str, table: str) -> str:
    """Returns a page's text with another table between its marks.

    Raises:
      ValueError: not exactly one pair of marks.
    """
    count = len(_BLOCK.findall(page))
    if count != 1:
        raise ValueError(
            "page: expected one <!-- results --> … <!-- end of results -->, "
            f"received {count or 'none'}"
        )
    return _BLOCK.sub(lambda match: f"{match[1]}{table.strip()}\n{match[2]}", page)


def format_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def read_rows(page: str, header: Sequence[str]) -> list[list[str]]:
    r"""Returns the rows of the first table with a header in a Markdown text.

    >>> read_rows("Text.\n\n| a | b |\n| --- | --- |\n| x | 1 |\n", ["a", "b"])
    [['x', '1']]

    Raises:
      ValueError: no such table, or a row of another number of cells.
    """
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    if list(header) not in lines:
        raise ValueError(f"previous: expected a table with the columns {', '.join(header)}")
    rows = list(itertools.takewhile(bool, lines[lines.index(list(header)) + 2 :]))
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"previous: expected {len(header)} cells, received {' | '.join(row)}")
    return rows


def read_previous(path: str | None, header: Sequence[str]) -> list[list[str]]:
    """Returns ``read_rows`` of the file of ``--previous``; none without one.

    Raises:
      ValueError: as ``read_rows``, or no such file.
    """
    if not path:
        return []
    file = Path(local_path("previous", path))
    if not file.is_file():
        raise ValueError(f"previous: no such file: {path}")
    return read_rows(file.read_text(encoding="utf-8"), header)


def main(arguments: Sequence[str]) -> None:
    """Writes the named tables into their pages."""
    for argument in arguments:
        name, _, path = argument.partition("=")
        if not path or not Path(path).is_file():
            raise SystemExit(f"error: {argument}: expected NAME=FILE of a table that exists")
        page = RESULTS / f"{name}.md"
        if not page.is_file():
            names = ", ".join(sorted(path.stem for path in RESULTS.glob("[a-z]*.md")))
            raise SystemExit(f"error: {argument}: expected the name of a page: {names}")
        write_text_atomically(page, fill(page.read_text(), Path(path).read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
