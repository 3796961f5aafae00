"""Pages of results and the program that fills them."""

import re
from pathlib import Path

import pytest

from experiments.results import write_results
from experiments.results.write_results import RESULTS, fill, main


def test_the_table_between_the_marks_is_replaced() -> None:
    page = "a\n<!-- results -->\nold\n<!-- end of results -->\nb"
    expected = "a\n<!-- results -->\nnew\n<!-- end of results -->\nb"
    assert fill(page, "new\n") == expected
    with pytest.raises(ValueError, match=r"page: expected one <!-- results -->.*received none"):
        fill("a", "new")


def test_a_table_goes_into_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_results, "RESULTS", tmp_path)
    page, table = tmp_path / "layers.md", tmp_path / "table.txt"
    page.write_text("<!-- results -->\n<!-- end of results -->\n")
    table.write_text("| a |\n")
    main([f"layers={table}"])
    assert page.read_text() == "<!-- results -->\n| a |\n<!-- end of results -->\n"
    with pytest.raises(SystemExit, match=r"layer=.*expected the name of a page: layers"):
        main([f"layer={table}"])


def test_the_index_lists_every_page() -> None:
    pages = {path.name for path in RESULTS.glob("*.md")} - {"README.md"}
    index = (RESULTS / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+\.md)\)", index)) == pages
