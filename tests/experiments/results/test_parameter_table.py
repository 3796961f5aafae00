"""Numbers of parameters of networks that predict frames, and their page of results."""

from pathlib import Path

from experiments.results.parameter_table import NETWORKS, make_table

RESULTS = Path(__file__).parents[3] / "experiments" / "results"


def test_the_page_has_the_table() -> None:
    table = make_table()
    assert "| 3 layers, 128-64-64 | 7,585,296 |" in table
    assert len(table.splitlines()) == 2 + len(NETWORKS)
    assert table in (RESULTS / "moving_mnist.md").read_text()
