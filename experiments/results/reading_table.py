r"""Table of readers of lines and of speech from the files of their evaluations.

    python -m launch.evaluate --workdir=runs/fraktur --split=validation --out=runs/greedy.json
    python -m experiments.results.reading_table --out=runs/text_lines.md \
        "random split, greedy=runs/greedy.json"

Each argument is ``NAME=FILE``: a name of the row, and a file of ``launch.evaluate --out``.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.results.write_results import format_rows
from flaxnets.configuration import local_path
from flaxnets.training.workdir import write_text_atomically

HEADER = ("reader", "characters wrong, %", "words wrong, %", "exact lines, %", "lines", "step")

_OUT = flags.DEFINE_string("out", None, "File for the table, Markdown.", required=True)


def make_row(name: str, result: Mapping[str, Any]) -> list[str]:
    """Returns name, error rates in %, number of examples, and step of the checkpoint."""
    return [
        name,
        f"{100 * result['character_error_rate']:.2f}",
        f"{100 * result['word_error_rate']:.2f}",
        f"{100 * result['exact_line_rate']:.1f}",
        f"{result['examples']:,.0f}",
        f"{result['step']:,}",
    ]


def main(argv: Sequence[str]) -> None:
    """Writes the table."""
    rows = []
    for argument in argv[1:]:
        name, _, path = argument.rpartition("=")
        if not name or not Path(path).is_file():
            raise SystemExit(f"error: {argument}: expected NAME=FILE of an evaluation that exists")
        rows.append(make_row(name, json.loads(Path(path).read_text())))
    write_text_atomically(local_path("out", _OUT.value), format_rows(HEADER, rows))


if __name__ == "__main__":
    app.run(main)
