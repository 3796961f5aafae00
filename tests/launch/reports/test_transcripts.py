"""Transcripts in a report: alignments, error rates of lines, bins and groups, and the page."""

import dataclasses
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from data.text_lines.scores import ErrorSums, bootstrap_interval, confusions, error_rates
from flaxnets.training.config import describe_run
from flaxnets.training.workdir import Workdir
from launch.program import load_experiment
from launch.reports.run_page import build_page, write_report
from launch.reports.transcripts import (
    BINS,
    GROUPS,
    LINES,
    ShowsTranscripts,
    Transcripts,
    align,
    make_transcripts,
    show_changed,
)
from tests.launch.reports.pages import Page
from tests.launch.reports.test_run_page import CONFIG, make_run

ROOT = Path(__file__).parents[3]
EXPERIMENT = "experiments/crnn_text_lines.py:smoke"
TEXTS = st.text("ab <é\u0303\u0323ש\u200d", max_size=12)


@dataclasses.dataclass
class Reader:
    """Reader of given texts; each picture is a line of the width of its text."""

    references: Sequence[str]
    books: Sequence[str] = ()
    unit: str = "line"

    def texts(self, split: str) -> Sequence[str]:
        return self.references

    def names(self, split: str) -> Sequence[str]:
        return [f"{index}.png" for index in range(len(self.references))]

    def groups(self, split: str) -> Sequence[str]:
        return self.books or [""] * len(self.references)

    def make_scorer(
        self, split: str, *, complete: bool = False
    ) -> Callable[[Sequence[Mapping[str, Any]]], Mapping[str, float]]:
        def score(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
            sums = self.sums(records)
            names = ("character_error_rate", "word_error_rate", "exact_line_rate")
            return {name: getattr(sums, name) for name in names}

        return score

    def sums(self, records: Sequence[Mapping[str, Any]]) -> ErrorSums:
        return error_rates(self._pairs(records))

    def confusions(
        self, split: str, records: Sequence[Mapping[str, Any]]
    ) -> Mapping[tuple[str, str], int]:
        return confusions(self._pairs(records))

    def error_interval(
        self, split: str, records: Sequence[Mapping[str, Any]]
    ) -> tuple[float, float]:
        return bootstrap_interval(self._pairs(records), resamples=20)

    def load_clip(self, split: str, index: int) -> np.ndarray:
        return np.full((1, 8, 4 + len(self.references[index]), 3), 200, np.uint8)

    def _pairs(self, records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
        return [(record["text"], self.references[record["index"]]) for record in records]


def read(references: Sequence[str], texts: Sequence[str], **values: Any) -> Transcripts:
    reader = Reader(references, **values)
    assert isinstance(reader, ShowsTranscripts)
    return make_transcripts(reader, "test", records_of(texts))


def records_of(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"index": index, "text": text, "confidence": 1 / (index + 1)}
        for index, text in enumerate(texts)
    ]


def spoil(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Returns references of rising length, and texts with random errors, few in most lines."""
    rng = np.random.default_rng(seed)
    references, texts = [], []
    for index in range(count):
        characters = rng.choice(list("aeno st"), 3 + index)
        references.append("".join(characters).strip() or "a")
        changed = [c if rng.random() > 0.1 else rng.choice(["", "x", c + "e"]) for c in characters]
        texts.append("".join(changed).strip())
    return references, texts


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS)
def test_an_alignment_makes_both_texts(text: str, reference: str) -> None:
    pieces = align(text, reference)
    assert "".join(piece.text for piece in pieces) == unicodedata.normalize("NFC", text)
    assert "".join(piece.reference for piece in pieces) == unicodedata.normalize("NFC", reference)
    for piece in pieces:
        assert piece.text or piece.reference
        kinds = {"equal": piece.text == piece.reference, "insert": not piece.reference}
        kinds["delete"] = not piece.text
        assert kinds.get(piece.kind, not any(kinds.values()))
    for before, piece in itertools.pairwise(pieces):
        assert piece.kind != before.kind
    for name in ("text", "reference"):
        sides = [getattr(piece, name) for piece in pieces if getattr(piece, name)]
        # Marks stay with the character that they are drawn on.
        assert not any(unicodedata.combining(side[0]) for side in sides[1:])


@settings(max_examples=100, deadline=None)
@given(st.text("abc", max_size=10), st.text("abc", max_size=10))
def test_an_alignment_has_the_edits_of_the_error_rate(text: str, reference: str) -> None:
    edits = sum(
        max(len(piece.text), len(piece.reference))
        for piece in align(text, reference)
        if piece.kind != "equal"
    )
    assert edits == Levenshtein.distance(text, reference)


def test_a_changed_mark_takes_its_letter_along() -> None:
    assert [(p.kind, p.reference, p.text) for p in align("abq", "abq\u0303")] == [
        ("equal", "ab", "ab"),
        ("replace", "q\u0303", "q"),
    ]
    assert align("e\u0301", "é")[0].kind == "equal"
    assert show_changed("a\u200db \u202e") == "a\u200db␣U+202E"


def test_totals_and_confusions_are_those_of_the_metrics() -> None:
    references, texts = spoil(40)
    found = read(references, texts)
    sums = Reader(references).sums(records_of(texts))
    assert found.rates["character_error_rate"] == sums.character_error_rate
    assert (found.substitutions, found.insertions, found.deletions) == (
        sums.substitutions,
        sums.insertions,
        sums.deletions,
    )
    assert (found.errors, found.characters) == (sums.character_errors, sums.characters)
    assert (found.words, found.exact.correct) == (sums.words, sums.exact_lines)
    assert found.more_confused == 0
    assert sum(pair.count for pair in found.confused) == sums.character_errors
    assert math.isclose(sum(pair.share for pair in found.confused), 1)
    counts = [pair.count for pair in found.confused]
    assert counts == sorted(counts, reverse=True)


def test_the_worst_lines_and_random_others() -> None:
    references, texts = spoil(40)
    worst, drawn = read(references, texts).selections
    assert (len(worst.lines), len(drawn.lines)) == (LINES, LINES)
    rates = [line.character_error_rate for line in worst.lines]
    every = [Reader(references).sums([r]).character_error_rate for r in records_of(texts)]
    assert rates == sorted(every, reverse=True)[:LINES]
    shown = {line.index for line in (*worst.lines, *drawn.lines)}
    assert len(shown) == 2 * LINES
    assert read(references, texts).selections == [worst, drawn]
    for line in worst.lines:
        assert (line.reference, line.text) == (references[line.index], texts[line.index])
        assert line.frames[0].width == 4 + len(line.reference)


def test_bins_hold_all_lines_and_groups_have_their_rates() -> None:
    references, texts = spoil(41)
    references[0], texts[0] = 125 * "a ", 125 * "a "
    books = [("b", "<a>", "")[index % 3] for index in range(41)]
    found = read(references, texts, books=books)
    for chart in found.charts:
        assert len(chart.bars) == BINS
        assert len(chart.x_ticks) == BINS + 1
        counts = [int(bar.count) for bar in chart.bars]
        assert sum(counts) == 41
        assert max(counts) - min(counts) <= 4
        edges = [float(tick.text) for tick in chart.x_ticks]
        assert edges == sorted(set(edges))
        assert not any("e" in tick.text for tick in chart.x_ticks)
    assert [chart.title for chart in found.charts] == [
        "Character error by length",
        "Character error by confidence",
    ]
    rates = [group.character_error_rate for group in found.groups]
    assert rates == sorted(rates, reverse=True)
    assert sum(group.count for group in found.groups) == 41
    for group in found.groups:
        records = [
            record
            for record, book in zip(records_of(texts), books, strict=True)
            if (book or "(no group)") == group.name
        ]
        sums = Reader(references).sums(records)
        assert group.character_error_rate == sums.character_error_rate
        assert (group.count, group.characters) == (sums.lines, sums.characters)


def test_many_groups_are_cut_and_unknown_confidences_have_no_chart() -> None:
    references, texts = spoil(GROUPS + 3)
    reader = Reader(references, [str(index) for index in range(GROUPS + 3)])
    records = [{**record, "confidence": math.nan} for record in records_of(texts)]
    found = make_transcripts(reader, "test", records)
    assert (len(found.groups), found.more_groups) == (GROUPS, 3)
    assert [chart.title for chart in found.charts] == ["Character error by length"]
    text = Page(build_page(make_run(**page_of(found)))).text
    assert "and 3 with lower errors" in text
    assert "confidence – ; line" in text


def test_lines_without_errors_and_few_lines() -> None:
    found = read(["Haus"], ["Haus"])
    assert (found.errors, found.confused, found.charts, found.groups) == (0, [], [], [])
    assert found.selections[0].lines == []
    assert [line.text for line in found.selections[1].lines] == ["Haus"]
    assert all(len(chart.bars) > 1 for chart in read(["ab"] * 40, ["ab"] * 40).charts)
    text = Page(build_page(make_run(**page_of(found)))).text.replace("\u00a0", " ")
    assert "test character error 0.00 % 0 of 4 characters" in text
    assert "No character has an error." in text


def page_of(found: Transcripts, **values: Any) -> dict[str, Any]:
    return {
        "predictions": [{"index": 0, "text": "a", "confidence": 1.0}],
        "class_names": (),
        "transcripts": found,
        "unit": found.unit,
        "config": {**CONFIG, "best_metric": "character_error_rate"},
        **values,
    }


def test_a_page_shows_differences_and_escapes_texts() -> None:
    nasty = "<b>&amp; שלום</b>"
    found = read([nasty, "ein Haus"], [nasty.replace("&", "8"), "einHause"], books=["<i>", "b"])
    page = build_page(make_run(**page_of(found)))
    text = Page(page).text
    assert "<b>&amp;" not in page.replace("<b>8", "")
    assert "<i>" in text
    assert re.search(r'<mark title="read as 8">&amp;</mark>', page)
    assert re.search(r'<mark title="instead of &amp;">8</mark>', page)
    assert '<del title="not read">␣</del>' in page
    assert '<ins title="inserted">e</ins>' in page
    assert page.count('dir="auto"') == 4
    assert "(inserted) e 1 33.3" in text
    assert "space (not read) 1 33.3" in text
    assert '<img src="data:image/jpeg' in page
    assert "batches of" not in text


def test_speech_has_spectrograms_and_words() -> None:
    found = make_transcripts(
        Reader(["a b", "a b c d e f"], unit="recording"),
        "test",
        records_of(["a c", "a x c d e f"]),
        metric="word_error_rate",
    )
    worst = found.selections[0]
    assert worst.choice == "the highest word error first"
    assert [line.index for line in worst.lines] == [0, 1]
    page = build_page(make_run(**page_of(found)))
    assert 'alt="spectrogram of recording 0"' in page
    assert "test recordings read exactly" in Page(page).text


def test_an_unreadable_line_costs_only_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Reader, split: str, index: int) -> np.ndarray:
        raise OSError("no such image: <a>.png")

    monkeypatch.setattr(Reader, "load_clip", fail)
    found = read(["Haus"], ["Hau"])
    assert found.selections[0].lines[0].frames == ()
    page = Page(build_page(make_run(**page_of(found))))
    assert "could not be loaded: no such image: <a>.png" in page.text


def test_a_run_of_a_reader_has_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config: Any = load_experiment(EXPERIMENT)
    with Workdir(tmp_path / "run") as workdir:
        workdir.claim(EXPERIMENT, config)
    config.save_assets(workdir.path)
    workdir.checkpoints.mkdir()
    workdir.record_run(describe_run(config))
    workdir.record_evaluated("test", config.describe_data("test"))
    texts = config.texts("test")
    path = workdir.predictions("test")
    path.parent.mkdir()
    # One of two lines was read.
    path.write_text(json.dumps({"index": 1, "text": texts[1][:-1], "confidence": 0.5}) + "\n")
    assert isinstance(config, ShowsTranscripts)
    assert config.load_clip("test", 1).shape[::3] == (1, 3)
    page = write_report(workdir).read_text()
    text = Page(page).text
    assert "1 of 2 lines could not be loaded and count nowhere." in text
    assert f"1 of {len(texts[1])} characters" in text
    assert page.count('<img src="data:image/jpeg') == 1
