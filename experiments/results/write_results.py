"""Puts measured tables into the README: from files that commands wrote, never by hand.

    python -m experiments.results.write_results moving_shapes=runs/demo/table.md \
        ut_interaction=runs/ut/crossvalidation.md

Keeps each table in ``experiments/results/NAME.md`` and copies all of them into the README between
``<!-- results: NAME -->`` and ``<!-- end of results -->``. Without arguments only the README is
written anew.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
README = ROOT / "README.md"
_BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def fill(readme: str, tables: Mapping[str, str]) -> str:
    """The README's text with every marked block replaced by the table of its name.

    Raises:
      ValueError: a block without a table, or a table without a block.
    """
    named = [match.group(2) for match in _BLOCK.finditer(readme)]
    if sorted(named) != sorted(tables):
        raise ValueError(f"README.md marks {sorted(named)}, there are results {sorted(tables)}")
    return _BLOCK.sub(
        lambda match: f"{match.group(1)}{tables[match.group(2)].strip()}\n{match.group(3)}", readme
    )


def read_tables() -> dict[str, str]:
    """The kept tables by name."""
    return {path.stem: path.read_text() for path in sorted(RESULTS.glob("*.md"))}


def main(arguments: Sequence[str]) -> None:
    """Keeps the named files and rewrites the README."""
    RESULTS.mkdir(exist_ok=True)
    for argument in arguments:
        name, _, path = argument.partition("=")
        if not path or not Path(path).is_file():
            raise SystemExit(f"error: {argument}: expected NAME=FILE of a table that exists")
        (RESULTS / f"{name}.md").write_text(Path(path).read_text())
    README.write_text(fill(README.read_text(), read_tables()))


if __name__ == "__main__":
    main(sys.argv[1:])
