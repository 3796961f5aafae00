"""Table of metrics from files of evaluations."""

import doctest
import json
from pathlib import Path

import pytest

from experiments.results import metric_table
from experiments.results.metric_table import make_table


def test_rows_hold_means_and_deviations_of_the_files(tmp_path: Path) -> None:
    for number, rmse in enumerate((13.0, 14.0, 15.0)):
        result = {"rmse": rmse, "rmse_linear": 1234.5, "examples": 1500.0, "step": 10}
        (tmp_path / f"{number}.json").write_text(json.dumps(result))
    files = ",".join(f"{tmp_path}/{number}.json" for number in range(3))
    table = make_table([f"CNN, window=30={files}", f"one={tmp_path}/0.json"], ["rmse"], 2)
    header, rule, several, one = table.splitlines()
    assert header.count("|") == rule.count("|") == one.count("|")
    assert several == "| CNN, window=30 | 14.00 ± 1.00 | 1,500 | 3 |"
    assert one == "| one | 13.00 | 1,500 | 1 |"
    with pytest.raises(ValueError, match="unknown 'rmes'; did you mean 'rmse'"):
        make_table([f"one={tmp_path}/0.json"], ["rmes"], 2)
    with pytest.raises(ValueError, match="expected NAME=FILE,… of evaluations that exist"):
        make_table([f"one={tmp_path}/9.json"], ["rmse"], 2)


def test_doctests() -> None:
    assert doctest.testmod(metric_table) == (0, 1)
