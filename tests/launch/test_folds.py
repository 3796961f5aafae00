"""The table of a cross-validation against values computed by hand."""

import re

import numpy as np
import pytest

from launch.folds import (
    Correct,
    fold_mean,
    format_table,
    record,
)


def cells(table: str, name: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def correct() -> dict[str, Correct]:
    """Two folds of 4 and 1 clips, recorded out of order; a baseline with one seed."""
    entered: dict[str, Correct] = {}
    record(entered, "CRNN", 2, 0, [(3, 3)])
    record(entered, "CRNN", 1, 0, [(0, 0), (1, 1), (2, 0), (0, 2)])
    record(entered, "CRNN", 1, 1, [(0, 0), (1, 1), (2, 2), (0, 0)])
    record(entered, "CRNN", 2, 1, [(3, 1)])
    record(entered, "middle frame", 1, 0, [(0, 1), (1, 0), (2, 2), (0, 2)])
    record(entered, "middle frame", 2, 0, [(3, 3)])
    return entered


def test_record_keeps_which_clips_were_correct(correct: dict[str, Correct]) -> None:
    assert correct["CRNN"] == {
        1: {0: [True, True, False, False], 1: [True] * 4},
        2: {0: [True], 1: [False]},
    }
    assert correct["middle frame"] == {1: {0: [False, False, True, False]}, 2: {0: [True]}}


def test_recording_a_run_again_replaces_it(correct: dict[str, Correct]) -> None:
    record(correct, "CRNN", 2, 1, [(3, 3)])
    assert correct["CRNN"][2] == {0: [True], 1: [True]}


def test_accuracy_is_over_clips_and_its_spread_over_seeds(correct: dict[str, Correct]) -> None:
    table = format_table(correct, num_classes=4)
    # Seed 0 has 3 of 5 clips correct, seed 1 has 4: 60 % and 80 %; their deviation is √200.
    assert cells(table, "CRNN") == ["CRNN", "70.0 ± 14.1", "75", "50"]


def test_one_seed_has_no_spread(correct: dict[str, Correct]) -> None:
    assert cells(format_table(correct, num_classes=4), "middle frame")[1:] == ["40.0", "25", "100"]


def test_the_heading_says_what_the_figures_are_of(correct: dict[str, Correct]) -> None:
    heading = format_table(correct, num_classes=4).splitlines()[0]
    assert "on 5 test clips of 2 folds, chance 25.0;" in heading
    assert heading.endswith("one clip is 20.0 points.")


def test_it_is_a_table_of_as_many_columns_in_each_row(correct: dict[str, Correct]) -> None:
    table = format_table(correct, num_classes=4)
    assert table.endswith("|\n")
    rows = table.splitlines()[2:]
    assert len(rows) == 2 + len(correct)
    assert {row.count("|") for row in rows} == {5}
    assert re.findall(r"fold \d", rows[0]) == ["fold 1", "fold 2"]
    assert not set(rows[1]) - set("|-")


def test_means_equal_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random((3, 4, 6)) < 0.6  # (folds, seeds, clips)
    correct: dict[str, Correct] = {}
    for fold, seed in np.ndindex(3, 4):
        record(correct, "x", fold + 1, seed, [(0, 0 if hit else 1) for hit in hits[fold, seed]])
    by_seed = 100 * hits.mean((0, 2))
    mean, spread = by_seed.mean(), by_seed.std(ddof=1)
    row = cells(format_table(correct, num_classes=2), "x")
    assert row[1] == f"{mean:.1f} ± {spread:.1f}"
    for fold in range(3):
        assert fold_mean(correct["x"], fold + 1) == pytest.approx(100 * hits[fold].mean())
        assert row[2 + fold] == f"{100 * hits[fold].mean():.0f}"
