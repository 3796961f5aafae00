"""A cell of one's own: one new file outside of the repository, no other change."""

import json
from pathlib import Path

import pytest

from tests.experiments.grid import OWN_CELL
from tests.launch.programs import MOVING_SHAPES, finish, sentence, start, succeed


@pytest.mark.slow
def test_a_cell_in_a_file_elsewhere_trains_and_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_cell.py").write_text(OWN_CELL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    workdir = f"--workdir={tmp_path / 'run'}"
    recurrent = "--config.model.recurrent"
    flags = (f"{recurrent}.cell=own_cell:LeakyCell", f"{recurrent}.num_layers=2")
    succeed(start("train", MOVING_SHAPES, workdir, *flags, f"{recurrent}.bidirectional=True"))
    recorded = json.loads((tmp_path / "run/config.json").read_text())
    assert recorded["config"]["model"]["recurrent"]["cell"] == "own_cell:LeakyCell"
    # The workdir names code outside of the repository, which the user has to allow.
    refused = sentence(finish(start("evaluate", workdir, "--split=test")))
    assert f"would import {tmp_path / 'own_cell.py'}" in refused
    assert "add --allow_code=own_cell" in refused
    allowed = ("--split=test", "--allow_code=own_cell")
    assert json.loads(succeed(start("evaluate", workdir, *allowed)))["step"] == 6
