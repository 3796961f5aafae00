"""A few rounds of ``tests.chaos.run``; eighty take an hour."""

from pathlib import Path

import pytest

from tests.chaos.run import play


@pytest.mark.stress
def test_a_run_survives_a_few_kills(tmp_path: Path) -> None:
    counts = play(6, seed=1, folder=tmp_path)
    assert counts["rounds"] == 6
    assert counts["runs"] >= 3
