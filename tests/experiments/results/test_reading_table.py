"""Table of readers from files of evaluations."""

import json
from pathlib import Path

import pytest
from absl.testing import flagsaver

from experiments.results import reading_table

RESULT = {
    "split": "validation",
    "step": 1_500,
    "examples": 392.0,
    "character_error_rate": 0.004366,
    "word_error_rate": 0.03008,
    "exact_line_rate": 0.8648,
}


def test_rows_hold_the_figures_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "greedy.json").write_text(json.dumps(RESULT))
    out = tmp_path / "table.md"
    with flagsaver.as_parsed(out=str(out)):
        reading_table.main(["", f"weight=0.3, greedy={tmp_path}/greedy.json"])
    header, rule, row = out.read_text().splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row == "| weight=0.3, greedy | 0.44 | 3.01 | 86.5 | 392 | 1,500 |"


@pytest.mark.parametrize("argument", ["greedy.json", "greedy=missing.json"])
def test_arguments_without_a_file_are_refused(argument: str) -> None:
    with flagsaver.as_parsed(out="table.md"), pytest.raises(SystemExit, match="NAME=FILE"):
        reading_table.main(["", argument])
