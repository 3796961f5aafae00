"""Numbers of parameters of the papers' networks, and the pages of results that have them."""

from pathlib import Path

from experiments.results.parameter_table import NETWORKS, make_table

RESULTS = Path(__file__).parents[3] / "experiments" / "results"


def test_the_page_has_the_table() -> None:
    table = make_table("moving_mnist")
    assert "| 3 layers, 128-64-64 | 7,585,296 |" in table
    assert len(table.splitlines()) == 2 + len(NETWORKS)
    assert table in (RESULTS / "moving_mnist.md").read_text()


def test_the_recogniser_of_text_has_as_many_as_its_authors() -> None:
    # As PyTorch counts the network of the authors' code: a second bias in each LSTM and direction,
    # BatchNorm after the third, fifth and seventh convolution, where the paper's table has it after
    # the fifth and sixth, and biases of these convolutions.
    stages = ((1, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512))
    convolutions = sum(9 * below * above + above for below, above in stages)
    convolutions += 4 * 512 * 512 + 512 + 2 * (256 + 512 + 512)  # The last of 2×2, BatchNorm.
    lstms = sum(2 * 4 * 256 * (width + 256 + 2) for width in (512, 256))
    theirs = convolutions + lstms + (512 * 256 + 256) + (512 * 37 + 37)
    assert theirs == 8_331_301
    ours = theirs - 2 * 2 * 4 * 256 - 2 * 256 - 2 * 512
    table = make_table("text_lines")
    assert f"| CRNN | {ours:,} |" in table
    assert table in (RESULTS / "text_lines.md").read_text()
