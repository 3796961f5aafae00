"""Table of readers from files of evaluations."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

RESULT = {
    "split": "validation",
    "step": 1_500,
    "examples": 392.0,
    "character_error_rate": 0.004366,
    "word_error_rate": 0.03008,
    "exact_line_rate": 0.8648,
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.results.reading_table", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_rows_hold_the_figures_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "greedy.json").write_text(json.dumps(RESULT))
    out = tmp_path / "table.md"
    made = run(f"--out={out}", f"weight=0.3, greedy={tmp_path}/greedy.json")
    assert made.returncode == 0, made.stderr
    header, rule, row = out.read_text().splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row == "| weight=0.3, greedy | 0.44 | 3.01 | 86.5 | 392 | 1,500 |"
    refused = run(f"--out={out}", f"greedy={tmp_path}/missing.json")
    assert refused.returncode == 1
    assert "expected NAME=FILE of an evaluation that exists" in refused.stderr
