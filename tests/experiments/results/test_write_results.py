"""The README's tables are those of the kept files."""

import pytest

from experiments.results.write_results import README, fill, read_tables


def test_readme_holds_the_kept_tables() -> None:
    text = README.read_text()
    assert fill(text, read_tables()) == text


def test_blocks_are_replaced_and_names_must_fit() -> None:
    readme = "a\n<!-- results: x -->\nold\n<!-- end of results -->\nb"
    expected = "a\n<!-- results: x -->\nnew\n<!-- end of results -->\nb"
    assert fill(readme, {"x": "new\n"}) == expected
    with pytest.raises(ValueError, match=r"README\.md marks \['x'\], there are results \['y'\]"):
        fill(readme, {"y": "new"})
