"""Embedded lines: drawn deterministically, as announced, legible by their ink."""

import doctest
import itertools
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageFont

from data.text_lines import synthetic_lines
from data.text_lines.alphabet import Alphabet
from data.text_lines.rendering import line_width, render_line, undrawable
from data.text_lines.synthetic_lines import SPLIT_SIZES, SyntheticLines
from data.text_lines.texts import ALPHABET


def test_examples_keep_the_contract() -> None:
    lines = SyntheticLines("train", 40, height=32)
    widths, counts = lines.lengths(), lines.token_lengths()
    assert widths.dtype == counts.dtype == np.int32
    for index in range(40):
        example = lines[index]
        image = example["image"]
        assert image.shape == (32, widths[index], 1)
        assert image.dtype == np.uint8
        assert example["lengths"] == widths[index]
        assert example["token_lengths"] == counts[index] == len(example["tokens"])
        assert lines.alphabet.decode(example["tokens"]) == lines.text(index)
        assert example["mask"]
        assert example["index"] == index
    assert len(SyntheticLines("test")) == SPLIT_SIZES["test"]
    for index in (-1, 40):
        with pytest.raises(IndexError, match=r"expected 0\.\.39"):
            lines[index]


def test_lines_depend_on_seed_split_and_index_alone() -> None:
    lines = SyntheticLines("validation", 5, height=32)
    again = pickle.loads(pickle.dumps(SyntheticLines("validation", 900, height=32)))
    np.testing.assert_array_equal(lines[3]["image"], again[3]["image"])
    assert repr(pickle.loads(pickle.dumps(lines))) == repr(lines) != repr(again)
    others = (SyntheticLines("test", 5, height=32), SyntheticLines("validation", 5, seed=1))
    assert len({lines.text(3), lines.text(2), *(other.text(3) for other in others)}) == 4


def test_widths_leave_ctc_room_at_a_stride_of_four() -> None:
    lines = SyntheticLines("train", 2000, height=32)
    widths = lines.lengths()
    assert widths.max() <= 336
    assert 120 < np.median(widths) < 180
    for index, width in enumerate(widths):
        text = lines.text(index)
        repeats = sum(a == b for a, b in itertools.pairwise(text))
        assert width // 4 >= len(text) + repeats, text


def test_ink_is_where_the_text_is() -> None:
    lines = SyntheticLines("train", 1, height=48)
    style = replace(lines.style(0), noise=0.0, texture=0.0, fading=0.0, elastic=0.0, slant=0.0)
    style = replace(style, ink=0.0, paper=255.0, stroke=0.0, blur=0.0, slope=0.0, wave=0.0)
    style = replace(style, raised=0.0)
    empty, full = (render_line(text, style, 48)[..., 0] for text in ("     ", "WWWWW"))
    assert (empty == 255).all()
    assert full.min() < 30
    margins = [round(48 * margin) for margin in style.margins]
    assert (full[:, : margins[0] - 2] == 255).all()
    assert (full[:, full.shape[1] - margins[1] + 2 :] == 255).all()
    # A capital stands on the baseline, a comma hangs below it.
    rows = {t: np.flatnonzero(render_line(t, style, 48)[..., 0].min(1) < 128) for t in "H,"}
    assert rows["H"].min() > 2
    assert rows[","].max() > rows["H"].max() < 46
    wide = replace(style, stretch=2 * style.stretch)
    assert line_width("WWWWW", wide, 48) - line_width("WWWWW", style, 48) > 0.8 * (
        full.shape[1] - sum(margins)
    )


def test_no_line_is_cut_at_its_top_or_bottom() -> None:
    lines = SyntheticLines("train", 60, height=48)
    for index in range(60):
        style = replace(lines.style(index), noise=0.0, texture=0.0, ink=0.0, paper=255.0)
        image = render_line("Qjgy|(Ä"[:6], style, 48)
        assert image[[0, -1]].min() > 60, index


def test_lines_are_legible() -> None:
    lines = SyntheticLines("train", 60, height=32)
    for index in range(60):
        low, paper = np.percentile(lines[index]["image"], [1, 60])
        assert paper - low > 60, index


def test_given_texts() -> None:
    texts = ["cafe", "Haus 7"]
    lines = SyntheticLines("test", 5, texts=texts, height=32)
    assert [lines.text(index) for index in range(5)] == [*texts, *texts, "cafe"]
    assert lines.alphabet == Alphabet.from_texts(texts)
    assert len(SyntheticLines(texts=texts)) == 2
    assert SyntheticLines(texts=texts, alphabet=ALPHABET)[0]["tokens"].tolist() == (
        ALPHABET.encode("cafe").tolist()
    )
    assert repr(lines) != repr(SyntheticLines("test", 5, texts=["cafe", "Haus 8"], height=32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split: expected one of train"),
        ({"num_examples": 0}, "num_examples: expected at least 1"),
        ({"height": 7}, "height: expected at least 8"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"texts": []}, "none that is empty"),
        ({"texts": ["a", ""]}, "none that is empty"),
        ({"texts": ["a", "two\nlines"]}, "one line each, without control characters"),
        ({"texts": ["ſo ſo", "о"]}, r"'ſ' \(U\+017F\) 2 times, 'о' \(U\+043E\) once; give font="),
        ({"alphabet": Alphabet(["a"])}, "alphabet: expected the characters of the texts"),
        ({"texts": ["ab"], "alphabet": Alphabet(["a"])}, r"without 'b' \(U\+0062\) once"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticLines(**options)


def test_a_font_of_ones_own(tmp_path: Path) -> None:
    font = ImageFont.load_default(10)
    assert isinstance(font, ImageFont.FreeTypeFont)
    (tmp_path / "own.ttf").write_bytes(font.font_bytes)
    path = str(tmp_path / "own.ttf")
    assert undrawable("aſ 9", path) == "ſ"
    own, embedded = SyntheticLines("train", 2, font=path), SyntheticLines("train", 2)
    assert abs(int(own.lengths()[0]) - int(embedded.lengths()[0])) < 20
    with pytest.raises(FileNotFoundError, match="a scalable font"):
        SyntheticLines(font=str(tmp_path / "none.ttf"))
    (tmp_path / "bad.ttf").write_text("no font")
    with pytest.raises(ValueError, match=r"font: expected a scalable font .*bad.ttf"):
        SyntheticLines(font=str(tmp_path / "bad.ttf"))


def test_example_of_the_documentation() -> None:
    assert doctest.testmod(synthetic_lines) == (0, 3)
