"""Cross-validation in one command, and as an array of jobs with a shared workdir."""

import json
from pathlib import Path

import pytest

from tests.launch.programs import MOVING_SHAPES, start, succeed


@pytest.mark.stress
def test_an_array_of_folds_gives_the_table_of_one_command(tmp_path: Path) -> None:
    together, array = tmp_path / "together", tmp_path / "array"
    seeds = "--seeds=0"
    one = start("crossvalidate", MOVING_SHAPES, seeds, "--folds=1,2,3", f"--workdir={together}")
    elements = [
        start("crossvalidate", MOVING_SHAPES, seeds, f"--folds={fold}", f"--workdir={array}")
        for fold in (1, 2, 3)
    ]
    table = succeed(one)
    assert "on 32 test clips of 3 folds" in table
    for element in elements:
        succeed(element)
    trained = sorted(array.glob("fold*_seed0/metrics.jsonl"))
    assert len(trained) == 3
    before = [path.stat().st_mtime_ns for path in trained]
    last = start("crossvalidate", MOVING_SHAPES, seeds, "--folds=1,2,3", f"--workdir={array}")
    assert succeed(last) == table
    assert [path.stat().st_mtime_ns for path in trained] == before
    right = json.loads((array / "crossvalidation.json").read_text())
    assert sum(len(hits["0"]) for hits in right["CRNN, smoke"].values()) == 32
