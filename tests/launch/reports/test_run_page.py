"""The page of a report: self-contained, escaped, with correct numbers and notes."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from launch.reports.captions import CaptionAttention, make_galleries
from launch.reports.run_page import (
    Run,
    build_page,
    config_groups,
    duration,
    name_of,
)
from tests.launch.reports.pages import Page
from tests.launch.reports.records import METRICS, make_record

# Three classes: two of three correct, none of two, no clips; and one clip without a label.
PREDICTIONS = [
    make_record(0, 0, [0.8, 0.1, 0.1]),
    make_record(1, 0, [0.5, 0.3, 0.2]),
    make_record(2, 0, [0.3, 0.6, 0.1]),
    make_record(3, 1, [0.9, 0.06, 0.04]),
    make_record(4, 1, [0.7, 0.1, 0.2]),
    make_record(5, -1, [0.1, 0.2, 0.7]),
]

CONFIG = {
    "num_steps": 40,
    "batch_size": 8,
    "eval_split": "validation",
    "best_metric": "accuracy",
    "best_mode": "max",
    "optimizer": {"learning_rate": 1e-3, "multipliers": {}},
}


def load_clip(index: int) -> np.ndarray:
    return np.full((16, 12, 20, 3), index, np.uint8)


def make_run(**changes: Any) -> Run:
    values: dict[str, Any] = {
        "experiment": "experiments/shapes.py:tiny",
        "workdir": "runs/tiny",
        "config": CONFIG,
        "metrics": METRICS,
        "split": "test",
        "class_names": ("run", "jump", "sit"),
        "predictions": PREDICTIONS,
        "load_clip": load_clip,
    }
    return Run(**{**values, **changes})


def test_the_page_is_one_file() -> None:
    html = build_page(make_run())
    page = Page(html)
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    for tag, attrs in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            if name in attrs:
                assert str(attrs[name]).startswith(("data:", "#")), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs)


def test_names_and_paths_are_escaped() -> None:
    nasty = "<script>alert('&amp;')</script>\"<b>"
    run = make_run(
        experiment=f"experiments/{nasty}.py",
        workdir=nasty,
        class_names=(nasty, "jump & run", "sit"),
        config={**CONFIG, nasty: nasty, "group": {nasty: [nasty]}},
        notes=(nasty,),
        split=nasty,
    )
    html = build_page(run, comparison=[{nasty: nasty, "x": nasty}])
    page = Page(html)
    assert "<script" not in html
    assert nasty in page.text
    assert "jump & run" in page.text
    assert any(nasty in str(title) for title in page.attributes("td", "title"))


def test_images_are_not_called_clips() -> None:
    text = Page(build_page(make_run(load_clip=lambda index: load_clip(index)[:1]))).text
    assert "2 of 5 images" in text
    assert "batches of 8 images" in text
    assert "clips" not in text
    unseen = Page(build_page(make_run(load_clip=None))).text
    assert "2 of 5 examples" in unseen


def test_a_verdict_is_a_mark_and_no_word_that_may_be_a_class() -> None:
    page = build_page(make_run(class_names=("right", "wrong", "correct")))
    verdicts = re.findall(r'<span class="verdict" title="(\w+)"><span aria-hidden="true">(.)', page)
    assert set(verdicts) == {("correct", "✓"), ("wrong", "✗")}


def test_the_page_names_date_commit_and_command() -> None:
    told = {"trained": "from 2026-01-02", "commit": "0123abc", "command": "python -m launch.train"}
    page = build_page(make_run(provenance=told))
    text = Page(page).text
    assert "trained from 2026-01-02 commit 0123abc command python -m launch.train" in text
    assert 'class="provenance"' not in build_page(make_run())


def test_a_comparison_links_to_the_other_reports() -> None:
    rows = [{"network": "CNN", "href": "../cnn/report.html"}, {"network": "both"}]
    page = Page(build_page(make_run(), comparison=rows))
    assert page.attributes("a", "href") == ["../cnn/report.html"]
    assert "network CNN both" in page.text
    assert "../cnn" not in page.text


def test_the_cells_of_a_confusion_matrix_shrink_with_the_window() -> None:
    page = build_page(make_run())
    assert 'class="matrix large" style="--n:3"' in page
    assert "calc((100vw - 162px) / var(--n))" in page


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({}, "x:tiny"),
        ({"data": {"root": "/home/me/waves"}}, "x:tiny on waves"),
        ({"data": {"root": "/data/ut_interaction/set1"}}, "x:tiny on ut_interaction/set1"),
        ({"data": {"root": "", "list": "lists/mine.csv"}}, "x:tiny on mine.csv"),
        ({"data": {"root": "", "kind": "moving_shapes"}}, "x:tiny on moving_shapes"),
        ({"data": {"fold": 1}}, "x:tiny"),
    ],
)
def test_the_name_of_a_run_says_its_data(config: dict[str, Any], name: str) -> None:
    assert name_of("experiments/x.py:tiny", config) == name


def test_numbers_of_the_page_equal_a_hand_computation() -> None:
    page = Page(build_page(make_run()))
    text = page.text.replace("\u00a0", " ")
    assert "test accuracy 40.0 % 2 of 5 clips" in text
    assert "run 2 of 3 66.7 %" in text
    assert "jump 0 of 2 0.0 %" in text
    assert "sit 0 of 0 –" in text
    # (2/3 + 0/2) / 2; a class without clips does not count.
    assert "mean over classes, weighted equally, is 33.3 %" in text
    assert "jump run 2 100.0 %" in text
    assert "run jump 1 33.3 %" in text
    assert "best validation accuracy 75.0 % at step 10" in text
    assert "steps 20 of 40, batches of 8 clips" in text
    # 10 steps at 1/s and 10 at 2/s.
    assert "training time 15.0 s" in text
    assert "steps per second 1.333" in text
    # 0.5 of 10 s and 0.2 of 5 s.
    assert "waiting for data 40.0 %" in text
    assert "1 of 6 examples have no label" in text
    titles = [title for title in page.attributes("td", "title") if title]
    assert "run → run: 2 of 3, 66.7\u00a0%" in titles
    assert "jump → run: 2 of 2, 100.0\u00a0%" in titles


@pytest.mark.parametrize("num_classes", [6, 8, 30, 101])
def test_confusion_matrix_of_any_size(num_classes: int) -> None:
    rng = np.random.default_rng(2)
    records = [
        make_record(i, i % num_classes, list(rng.dirichlet(np.ones(num_classes))))
        for i in range(2 * num_classes)
    ]
    names = [f"name {k}" for k in range(num_classes)]
    html = build_page(make_run(class_names=names, predictions=records))
    section = re.search(r'<section id="confusion">.*?</table>', html, re.S)
    assert section is not None
    page = Page(section[0] + "</div></div></section>")
    scopes = page.attributes("th", "scope")
    assert scopes.count("col") == scopes.count("row") == num_classes
    cells = [attrs for tag, attrs in page.elements if tag == "td" and "class" not in attrs]
    filled = [attrs for tag, attrs in page.elements if tag == "td" and "title" in attrs]
    assert len(cells) + len(filled) == num_classes**2
    counts = [int(re.search(r": (\d+) of", str(a["title"]))[1]) for a in filled]
    assert sum(counts) == len(records)


def test_an_unreadable_clip_costs_only_its_frames() -> None:
    def fail(index: int) -> np.ndarray:
        if index == 0:
            raise OSError("no such video: <a>.avi")
        return load_clip(index)

    page = Page(build_page(make_run(load_clip=fail)))
    assert "could not be loaded: no such video: <a>.avi" in page.text
    assert len(page.attributes("img", "src")) == 8 * 4


def test_images_and_curves_have_texts() -> None:
    page = Page(build_page(make_run()))
    assert all(page.attributes("img", "alt"))
    charts = [attrs for tag, attrs in page.elements if attrs.get("role") == "img"]
    assert len(charts) == 4
    assert "train from 2 at step 10 to 1 at step 20" in str(charts[0]["aria-label"])
    assert "validation from 1.8 at step 10 to 1.5 at step 20" in str(charts[0]["aria-label"])


def test_configuration_shows_every_value() -> None:
    groups = config_groups({"seed": 0, "name": "", "a": {"b": {"c": (1, 2)}, "d": {}}, "e": None})
    assert groups == [
        ("run", [("seed", "0"), ("name", '""'), ("e", "null")]),
        ("a", [("b.c", "[1, 2]"), ("d", "{}")]),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.46, "7.5 s"), (125, "2 min 05 s"), (3725, "1 h 02 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds).replace("\u00a0", " ") == text


def test_comparison_is_the_first_table() -> None:
    rows = [{"Model": "CNN-only", "Accuracy": "49 %"}, {"Model": "CRNN", "Time": "3 min"}]
    text = Page(build_page(make_run(), comparison=rows)).text
    assert "Comparison Model Accuracy Time CNN-only 49 % – CRNN – 3 min Result" in text


def test_parts_that_are_missing_are_told() -> None:
    text = Page(build_page(make_run(metrics=[], predictions=[], notes=["No predictions."]))).text
    assert "No predictions." in text
    assert "No curves: metrics.jsonl holds no record yet." in text
    assert "Configuration" in text

    text = Page(build_page(make_run(load_clip=None))).text
    assert "No film strips: the experiment does not define load_clip()." in text

    boxes = [{"index": 0, "label": 0, "boxes": [[1, 2, 3, 4]]}]
    text = Page(build_page(make_run(predictions=boxes))).text
    assert "hold no class probabilities" in text


def test_unknown_labels_leave_the_predictions() -> None:
    unknown = [dict(record, label=-1) for record in PREDICTIONS]
    text = Page(build_page(make_run(predictions=unknown, class_names=()))).text
    assert "6 of 6 examples have no label" in text
    assert "Confusion matrix" not in text
    assert "Unlabelled the first ones predicted class 0 clip 0" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("run", "jump")}, "expected the probabilities of 2 classes .* received 3"),
        (
            {"predictions": [*PREDICTIONS, make_record(9, 0, [0.5, 0.5])]},
            "every record, received 2, 3",
        ),
        ({"predictions": [dict(PREDICTIONS[0], label=3)]}, "from 0 to 2, received 3 and 0"),
    ],
)
def test_predictions_of_another_experiment_are_refused(
    changes: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_page(make_run(**changes))


def make_captions(clip_length: int) -> Run:
    records = [
        {"index": i, "caption": f"<i>dog</i> {i}", "log_probability": -1.25, "ended": i != 0}
        for i in range(4)
    ]
    weights = np.full((2, 2, 2) if clip_length == 1 else (2, 5), 0.25)
    image = np.zeros((8, 8, 3), np.uint8) if clip_length == 1 else None
    galleries = make_galleries(
        records,
        [(f"<b>person</b> {i}", "another") for i in range(4)],
        [0.5, 1.25, 0.0, 0.75],
        lambda index: np.full((clip_length, 12, 20, 3), index, np.uint8),
        lambda indices: {
            i: CaptionAttention(("<i>dog</i>", str(i)), weights, image) for i in indices
        },
    )
    return make_run(
        predictions=records,
        class_names=(),
        config={**CONFIG, "best_metric": "CIDEr"},
        scores={"BLEU-1": 0.61234, "CIDEr": 0.625, "motion_accuracy": 0.5},
        galleries=galleries,
    )


def test_captions_have_scores_and_a_gallery() -> None:
    html = build_page(make_captions(1))
    page = Page(html)
    text = page.text.replace("\u00a0", " ")
    assert "BLEU-1 0.612 CIDEr 0.625 motion accuracy 50.0 %" in text
    assert "Captions of 4 examples" in text
    assert "METEOR needs Java" in text
    # The two best, the worst, then the remaining one.
    order = re.findall(r"<i>dog</i> (\d) ?…? CIDEr (\d\.\d\d) , log-probability -1\.2", text)
    assert order == [("1", "1.25"), ("3", "0.75"), ("2", "0.00"), ("0", "0.50")]
    assert "<i>dog</i> 0 …" in text
    assert "<b>person</b> 3" in text
    assert "<i>dog" not in html
    assert "<b>person" not in html
    assert "Confusion matrix" not in text
    assert "hold no class probabilities" not in text
    # An image and two words with attention for each.
    assert len(page.attributes("img", "src")) == 4 * 3
    assert all(page.attributes("img", "alt"))
    assert page.attributes("img", "alt").count("attention at <i>dog</i>") == 4


def test_captions_of_videos_have_film_strips_and_steps() -> None:
    page = Page(build_page(make_captions(5)))
    assert len(page.attributes("img", "src")) == 4 * 5
    titles = [title for title in page.attributes("td", "title") if title]
    assert len(titles) == 4 * 2 * 5
    assert titles[0] == "step 0: 25.0\u00a0%"
    assert "Attention weights at each word, over the 5 steps of the video" in page.text
