"""Figures of the page: attention on the image word by word, labels over time, no foreign HTML."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from flaxnets.inference.runtime.columns import Columns
from flaxnets.inference.runtime.results import Caption, Character, Prediction, Transcript
from launch.serving.figures import draw_captions, draw_problem, draw_transcript, tabulate_steps

EVIL = "</span><script>alert(1)</script>'\"&"
GREY = np.full((40, 60, 3), 128, np.uint8)


class Tags(HTMLParser):
    """Names of the tags and the text of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def caption(
    words: tuple[str, ...], attention: np.ndarray | None = None, **kwargs: float
) -> Caption:
    log_probability = kwargs.get("log_probability", -1.0)
    return Caption(words, " ".join(words), log_probability, True, attention)


def test_each_word_has_a_mask_that_is_clear_where_the_attention_is() -> None:
    attention = np.zeros((2, 4, 6), np.float32)
    attention[0, 0, 0] = attention[1, 3, 5] = 1.0
    page = Tags(draw_captions(GREY, [caption(("red", "ball"), attention)]))
    masks = [a["src"] for tag, a in page.tags if tag == "img" and "mask" in (a.get("class") or "")]
    assert len(masks) == 2
    opacities = []
    for url in masks:
        data = base64.b64decode(str(url).partition(",")[2])
        opacities.append(np.asarray(Image.open(io.BytesIO(data)))[..., 1])
    first, second = opacities
    assert first[:2, :2].max() < 30 < 150 < first[-4:, -4:].min()
    np.testing.assert_array_equal(first, second[::-1, ::-1])
    labels = [a["for"] for tag, a in page.tags if tag == "label"]
    radios = [a["id"] for tag, a in page.tags if tag == "input"]
    assert labels == radios
    assert len(set(radios)) == 2


def test_captions_without_attention_have_plain_words_and_no_hint() -> None:
    text = draw_captions(GREY, [caption(("a", "b")), caption((), log_probability=-9.0)])
    page = Tags(text)
    assert not [tag for tag, _ in page.tags if tag in ("label", "input")]
    assert "Point at a word" not in text
    assert "no words" in page.text


def test_alternatives_have_bars_of_their_relative_probability() -> None:
    captions = [caption(("a",), log_probability=value) for value in (-1.0, -1.0 - np.log(2), -90.0)]
    widths = re.findall(r'class="bar" style="width:(\d+)px"', draw_captions(GREY, captions))
    assert widths == ["80", "40", "0"]


def test_weights_that_are_zero_or_not_finite_give_a_mask() -> None:
    for value in (0.0, np.nan):
        attention = np.full((1, 3, 3), value, np.float32)
        assert "mask" in draw_captions(GREY, [caption(("a",), attention)])


def test_html_in_words_and_reasons_is_text() -> None:
    attention = np.ones((1, 2, 2), np.float32)
    for text in (
        draw_captions(GREY, [caption((EVIL,)), caption((EVIL,), attention)]),
        draw_problem(EVIL),
    ):
        page = Tags(text)
        assert EVIL in page.text
        assert "script" not in {tag for tag, _ in page.tags}


def test_wrong_images_and_no_captions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(H,W,3\) uint8"):
        draw_captions(GREY.astype(np.float32), [caption(("a",))])
    with pytest.raises(ValueError, match="at least one"):
        draw_captions(GREY, [])


def test_the_table_holds_the_classes_that_lead_at_some_time() -> None:
    steps = np.zeros((4, 6), np.float32)
    steps[:, 1], steps[3, 4], steps[:, 0] = 0.6, 0.9, 0.1
    times = np.asarray([0.0, 0.5, 1.0, 1.5], np.float32)
    prediction = Prediction(tuple("abcdef"), steps.mean(axis=0), times, steps)
    table = tabulate_steps(prediction, 2)
    assert list(dict.fromkeys(table["label"])) == ["b", "e"]
    assert table["seconds"] == [*times.tolist()] * 2
    assert table["probability"][4:] == pytest.approx([0, 0, 0, 0.9], abs=1e-4)
    assert not tabulate_steps(Prediction(("a",), np.ones(1, np.float32)), 2)["label"]


def test_characters_lie_over_their_columns() -> None:
    characters = (
        Character("<", 0.95, 0, 30),
        Character(" ", 0.9, 30, 60),
        Character("b", 0.2, 60, 120),
    )
    transcript = Transcript(EVIL, 0.5, characters)
    line = Columns(np.full((16, 60, 1), 200, np.uint8), 2.0, 120)
    page = Tags(draw_transcript(line, transcript, "columns"))
    assert "script" not in [tag for tag, _ in page.tags]
    assert EVIL in page.text
    spans = [a for tag, a in page.tags if tag == "span" and a.get("class") == "span"]
    assert [a["style"] for a in spans] == [
        "left:0.000%;width:25.000%",
        "left:25.000%;width:25.000%",
        "left:50.000%;width:50.000%",
    ]
    assert spans[0]["title"] == "< 0.95, 0–30 columns"
    unsure = [a for tag, a in page.tags if "unsure" in (a.get("class") or "")]
    assert [a["title"] for a in unsure] == ["b 0.20, 60–120 columns"]
    (picture,) = (a["src"] for tag, a in page.tags if tag == "img")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(str(picture).partition(",")[2]))))
    np.testing.assert_array_equal(shown, line.inputs[..., 0])
    # A spectrogram: its loud low band is dark, and below.
    frames = np.zeros((50, 8), np.float32)
    frames[:, 0] = 5.0
    sound = draw_transcript(Columns(frames, 0.01, 0.5), Transcript("", 1.0, ()), "s")
    assert "no text" in sound
    (picture,) = (a["src"] for tag, a in Tags(sound).tags if tag == "img")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(str(picture).partition(",")[2]))))
    assert shown.shape == (8, 50)
    assert shown[-1].max() < 10 < 240 < shown[:-1].min()
