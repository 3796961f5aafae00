"""The repository's ledger: experiments, figures, verdicts, commands, the documentation's page."""

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from experiments.results.sequence_table import ACCURACIES, PUBLISHED
from launch.ledger.page import fill_page
from launch.ledger.reproduction import commands_of
from launch.ledger.rows import find_problems, read_ledger
from tests.experiments import grid
from tests.experiments.results import plans

# ml_collections loads the file of an experiment by a deprecated function.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "experiments" / "results"
ROWS = read_ledger(RESULTS / "ledger.csv")
COMMANDS = sorted({row.command: row for row in ROWS}.values(), key=lambda row: row.name)
"""A row for each different command."""


def test_figures_are_those_of_the_named_files_and_verdicts_follow() -> None:
    assert find_problems(ROWS, RESULTS) == []


def test_every_experiment_has_a_row() -> None:
    files = [
        path
        for path in sorted((ROOT / "experiments").glob("*.py"))
        if "\ndef get_config(" in path.read_text()
    ]
    assert len(files) > 15
    # UT-Interaction's file is a variant of LRCN's.
    commands = "; ".join(row.command for row in ROWS).replace(
        "lrcn_ucf101.py:ut_interaction", "ut_interaction.py"
    )
    missing = [path.name for path in files if f"--config=experiments/{path.name}" not in commands]
    assert missing == []


def test_rows_that_were_not_run_have_no_figures() -> None:
    for row in ROWS:
        if row.verdict.startswith("not run"):
            assert (row.ours, row.spread, row.seeds, row.hours, row.commit) == ("",) * 5, row.name
        else:
            assert row.commit, row.name
            assert row.device, row.name
            assert row.seeds, row.name


def test_published_figures_are_those_of_the_table_of_sequences() -> None:
    by_name = {row.name: row for row in ROWS}
    for task, figures in PUBLISHED.items():
        for family, figure in figures.items():
            scale = 100 if task in ACCURACIES else 1
            target = float(by_name[f"{task}_{family}"].target)
            assert target == pytest.approx(scale * figure), (task, family)


@functools.cache
def flags_of(module: str) -> set[str]:
    """Returns the names of a program's flags, from its text: programs define them at import."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    text = path.read_text()
    names = set(re.findall(r"(?:DEFINE_\w+|define_path)\(\s*\"(\w+)\"", text))
    return names | ({"workdir"} if "define_run(" in text else set())


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_commands_parse(row: Any) -> None:
    assert "{seed}" in row.command or "experiments.benchmarks" in row.command
    commands = commands_of(row, workdir="/runs", root="/data", seed=1)
    for words in commands:
        module = words[2]
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
        flags = [word for word in words[3:] if not word.startswith("--config.")]
        assert all(re.match(r"--\w+=", flag) for flag in flags), shlex.join(words)
        assert {flag[2:].partition("=")[0] for flag in flags} <= flags_of(module), module
        specs = [flag for flag in flags if flag.startswith("--config=")]
        if specs:
            given = [word for word in words if word.startswith("--config.")]
            config = grid.parse(specs[0].removeprefix("--config=experiments/"), *given)
            assert config.num_steps > 0
            assert "smoke" not in specs[0]
    measured = any(word.startswith("--out=/runs/metrics.json") for word in commands[-1])
    programs = ("launch.crossvalidate", "launch.nested_search", "benchmarks")
    assert measured or any(name in row.command for name in programs), row.name


PLANNED = [row for row in COMMANDS if row.planned_hours]
QUICK = (
    *("cmapss_both", "jsb_lstm", "japanese_vowels_cnn"),
    *("unsupervised_lstm_hmdb51", "ts_lstm_hmdb51", "audio_visual_frames"),
)


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[pytest.mark.stress] * (row.name not in QUICK)) for row in PLANNED],
    ids=lambda row: row.name,
)
def test_commands_plan(row: Any) -> None:
    assert plans.format_hours(plans.planned_hours(row)) == row.planned_hours


def test_only_what_has_no_stand_in_is_not_planned() -> None:
    assert {row.name for row in PLANNED} >= set(QUICK)
    for row in COMMANDS:
        left_out = any(word in row.command for word in plans.UNPLANNED)
        assert bool(row.planned_hours) != left_out, row.name


def test_the_page_of_the_documentation_is_that_of_the_ledger() -> None:
    page = (ROOT / "docs" / "reference" / "ledger.md").read_text()
    assert fill_page(page, ROWS) == page
