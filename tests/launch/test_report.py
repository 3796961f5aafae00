"""The report: one whole, escaped page with the right numbers, and sentences for what is missing."""

import base64
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flaxnets.training.workdir import Workdir, WorkdirError
from launch import report_writer
from launch.experiment import load_experiment
from launch.report_clips import make_frames, make_strips
from launch.report_figures import MAX_DOTS, MAX_POINTS, make_charts
from launch.report_page import Run, build_page, config_groups, duration, percent
from launch.report_statistics import (
    Rate,
    confusion_matrix,
    most_confused,
    per_class,
    rank_of_label,
    speed_of,
    top_k_rate,
)
from launch.report_writer import write_report

ROOT = Path(__file__).parents[2]
EXPERIMENT = "experiments/moving_shapes.py:smoke"
VOID = {"img", "link", "meta"}


class Page(HTMLParser):
    """The elements of a page; fails where a tag is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def attributes(self, tag: str, name: str) -> list[str | None]:
        return [attrs.get(name) for element, attrs in self.elements if element == tag]


def make_record(index: int, label: int, probabilities: list[float]) -> dict[str, Any]:
    prediction = int(np.argmax(probabilities))
    return {
        "index": index,
        "label": label,
        "prediction": prediction,
        "probabilities": probabilities,
    }


# Three classes: two of three right, none of two, and none at all; one clip without a label.
PREDICTIONS = [
    make_record(0, 0, [0.8, 0.1, 0.1]),
    make_record(1, 0, [0.5, 0.3, 0.2]),
    make_record(2, 0, [0.3, 0.6, 0.1]),
    make_record(3, 1, [0.9, 0.06, 0.04]),
    make_record(4, 1, [0.7, 0.1, 0.2]),
    make_record(5, -1, [0.1, 0.2, 0.7]),
]
METRICS = [
    {
        "step": 10,
        "split": "train",
        "loss": 2.0,
        "accuracy": 0.1,
        "gradient_norm": 3.0,
        "learning_rate": 1e-3,
        "steps_per_second": 1.0,
        "clips_per_second": 8.0,
        "data_wait_share": 0.5,
    },
    {
        "step": 20,
        "split": "train",
        "loss": 1.0,
        "accuracy": 0.6,
        "gradient_norm": 1.0,
        "learning_rate": 5e-4,
        "steps_per_second": 2.0,
        "clips_per_second": 16.0,
        "data_wait_share": 0.2,
    },
    {"step": 10, "split": "validation", "loss": 1.8, "accuracy": 0.75, "examples": 4.0},
    {"step": 20, "split": "validation", "loss": 1.5, "accuracy": 0.5, "examples": 4.0},
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


def test_numbers_of_the_page_equal_a_hand_computation() -> None:
    page = Page(build_page(make_run()))
    text = page.text.replace("\u00a0", " ")
    assert "test accuracy 40.0 % 2 of 5 clips" in text
    assert "run 2 of 3 66.7 %" in text
    assert "jump 0 of 2 0.0 %" in text
    assert "sit 0 of 0 –" in text
    # (2/3 + 0/2) / 2; the class without a clip counts not.
    assert "mean over the classes, where each weighs the same, is 33.3 %" in text
    assert "jump run 2 100.0 %" in text
    assert "run jump 1 33.3 %" in text
    assert "best validation accuracy 75.0 % at step 10" in text
    assert "steps 20 of 40, of 8 clips each" in text
    # 10 steps at 1/s and 10 at 2/s.
    assert "training time 15.0 s" in text
    assert "steps per second 1.333" in text
    # 0.5 of 10 s and 0.2 of 5 s.
    assert "waiting for data 40.0 %" in text
    assert "1 of 6 clips have no label" in text
    titles = [title for title in page.attributes("td", "title") if title]
    assert "run → run: 2 of 3, 66.7\u00a0%" in titles
    assert "jump → run: 2 of 2, 100.0\u00a0%" in titles


def test_confusion_matrix_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels, guesses = rng.integers(0, 7, 300), rng.integers(0, 7, 300)
    records = [
        {"label": int(a), "prediction": int(b)} for a, b in zip(labels, guesses, strict=True)
    ]
    matrix = confusion_matrix(records, 8)
    expected = metrics.confusion_matrix(labels, guesses, labels=range(8))
    np.testing.assert_array_equal(matrix, expected)
    for label, rate in enumerate(per_class(matrix)):
        assert rate.count == np.sum(labels == label)
        assert rate.right == np.sum((labels == label) & (guesses == label))
    pairs = most_confused(matrix, limit=100)
    assert sum(pair.count for pair in pairs) == np.sum(labels != guesses)
    assert all(a.count >= b.count for a, b in itertools.pairwise(pairs))


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (1, 3), (180, 200)])
def test_wilson_interval_solves_its_equation(right: int, count: int) -> None:
    low, high = Rate(right, count).interval
    assert 0 <= low <= right / count <= high <= 1
    # Its ends are the p for which the observed share lies z standard errors away.
    for end in (low, high):
        distance = abs(right / count - end)
        standard_error = math.sqrt(end * (1 - end) / count)
        assert distance == pytest.approx(1.959964 * standard_error, abs=1e-9)


def test_rate_of_nothing_says_nothing() -> None:
    assert math.isnan(Rate(0, 0).share)
    assert Rate(0, 0).interval == (0.0, 1.0)
    assert percent(Rate(0, 0).share) == "–"


def test_rank_and_top_k() -> None:
    rng = np.random.default_rng(1)
    records = [make_record(i, int(rng.integers(9)), list(rng.random(9))) for i in range(50)]
    ranks = [1 + list(np.argsort(-np.array(r["probabilities"]))).index(r["label"]) for r in records]
    assert [rank_of_label(record) for record in records] == ranks
    unknown = make_record(50, -1, [1 / 9] * 9)
    assert top_k_rate([*records, unknown], 5) == Rate(sum(rank <= 5 for rank in ranks), 50)


def test_speed_needs_training_records() -> None:
    assert speed_of([]) is None
    assert speed_of([{"step": 5, "split": "validation", "loss": 1.0}]) is None
    without = [{"step": 4, "split": "train", "steps_per_second": 2.0}]
    speed = speed_of(without)
    assert speed is not None
    assert (speed.seconds, speed.data_wait_share) == (2.0, None)


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
    counts = [int(re.search(r": (\d+) of", str(a["title"]))[1]) for a in filled]  # type: ignore[index]
    assert sum(counts) == len(records)


def test_film_strips_are_the_frames() -> None:
    rng = np.random.default_rng(3)
    colours = rng.integers(0, 256, (16, 1, 1, 3))
    clip = np.broadcast_to(colours, (16, 24, 40, 3)).astype(np.uint8)
    frames = make_frames(clip)
    assert [frame.number for frame in frames] == [0, 2, 4, 6, 9, 11, 13, 15]
    for frame in frames:
        head, _, data = frame.source.partition(",")
        assert head == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.format == "JPEG"
        assert image.size == (frame.width, frame.height) == (40, 24)
        difference = np.asarray(image, int) - clip[frame.number]
        assert np.abs(difference).max() <= 6


def test_large_frames_shrink_and_short_clips_give_what_they_have() -> None:
    frames = make_frames(np.zeros((3, 240, 320, 3), np.uint8))
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert {(frame.width, frame.height) for frame in frames} == {(176, 132)}


@pytest.mark.parametrize(
    "clip",
    [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((4, 8, 8), np.uint8), np.zeros((4, 8, 8, 3))],
)
def test_a_clip_of_another_kind_is_refused(clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected \(T,H,W,3\) uint8"):
        make_frames(clip)


def test_strips_show_right_and_wrong_clips() -> None:
    rng = np.random.default_rng(4)
    records = [
        make_record(i, int(rng.integers(8)), list(rng.dirichlet(np.full(8, 0.5))))
        for i in range(200)
    ]
    names = [f"name {k}" for k in range(8)]
    right, wrong = make_strips(records, names, load_clip)
    assert (len(right.strips), len(wrong.strips)) == (6, 6)
    assert len({strip.label for strip in right.strips}) == 6
    assert all(strip.label == strip.prediction for strip in right.strips)
    assert all(strip.label != strip.prediction for strip in wrong.strips)
    surest = [strip.guesses[0].probability for strip in wrong.strips]
    mistakes = [r["probabilities"] for r in records if r["label"] != r["prediction"]]
    assert surest == sorted((max(values) for values in mistakes), reverse=True)[:6]
    for strip in [*right.strips, *wrong.strips]:
        top = [guess.probability for guess in strip.guesses[:5]]
        assert top == sorted(records[strip.index]["probabilities"], reverse=True)[:5]
        # The true class is always among those shown, wherever it ranks.
        assert [guess.name for guess in strip.guesses if guess.is_label] == [strip.label]


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


def test_charts_place_points_on_their_scales() -> None:
    charts = {chart.title: chart for chart in make_charts(METRICS)}
    assert list(charts) == ["Loss", "Accuracy", "Learning rate", "Gradient norm"]
    train, validation = charts["Accuracy"].lines
    assert train.path == "M50.00 90.00L100.00 40.00"
    assert [(dot.x, dot.y) for dot in validation.dots] == [(50.0, 25.0), (100.0, 50.0)]
    assert [tick.text for tick in charts["Loss"].y_ticks] == ["1", "1.5", "2"]
    assert [tick.text for tick in charts["Gradient norm"].y_ticks] == ["0", "1", "2", "3"]


def test_charts_of_long_wide_and_broken_series() -> None:
    steps = range(1, 5001)
    records = [
        {"step": s, "split": "train", "loss": None if s == 7 else 10.0 ** (-s / 1000)}
        for s in steps
    ]
    (chart,) = make_charts(records)
    assert chart.title == "Loss (logarithmic)"
    assert MAX_DOTS < chart.lines[0].path.count("L") < MAX_POINTS
    assert chart.lines[0].dots == ()
    assert "mean of 13 records" in chart.note
    assert make_charts([{"step": 1, "split": "train", "loss": None}]) == []
    (constant,) = make_charts([{"step": s, "split": "train", "loss": 0.0} for s in (1, 2)])
    assert constant.lines[0].path == "M50.00 50.00L100.00 50.00"
    (other,) = make_charts([{"step": 1, "split": "validation", "cider": 0.9}], best_metric="cider")
    assert other.title == "Cider"


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

    captions = [{"index": 0, "label": 0, "caption": "a ball"}]
    text = Page(build_page(make_run(predictions=captions))).text
    assert "hold no probabilities of classes" in text


def test_unknown_labels_leave_the_predictions() -> None:
    unknown = [dict(record, label=-1) for record in PREDICTIONS]
    text = Page(build_page(make_run(predictions=unknown, class_names=()))).text
    assert "6 of 6 clips have no label" in text
    assert "Confusion matrix" not in text
    assert "Unlabelled the first clips predicted class 0 clip 0" in text


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


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workdir:
    """A run that has done nothing but write its configuration."""
    monkeypatch.chdir(ROOT)
    with Workdir(tmp_path / "run") as claimed:
        claimed.claim(EXPERIMENT, load_experiment(EXPERIMENT))
    return claimed


def write_predictions(workdir: Workdir, split: str) -> None:
    records = [
        make_record(index, index % 8, [0.3 if k == 1 else 0.1 for k in range(8)])
        for index in range(8)
    ]
    path = workdir.predictions(split)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_an_empty_run_has_a_page(workdir: Workdir) -> None:
    path = write_report(workdir)
    assert path == workdir.path / "report.html"
    text = Page(path.read_text()).text
    assert "No predictions for the split test" in text
    assert "no checkpoints" in text
    assert "No curves" in text


def test_a_run_with_predictions_has_all_parts(workdir: Workdir) -> None:
    write_predictions(workdir, "validation")
    lines = "".join(json.dumps(record) + "\n" for record in METRICS)
    (workdir.path / "metrics.jsonl").write_text(lines + '{"step": 30, "spl')
    os.utime(workdir.path / "metrics.jsonl", (0, 0))
    page = Page(write_report(workdir, "validation", [{"Model": "CRNN"}]).read_text())
    text = page.text.replace("\u00a0", " ")
    assert "validation accuracy 12.5 % 1 of 8 clips" in text
    # One clip is right and six of the wrong ones are shown, of 8 frames each.
    assert len(page.attributes("img", "src")) == 7 * 8
    assert "anticlockwise" in text
    assert "older than" not in text
    os.utime(workdir.predictions("validation"), (0, 0))
    (workdir.path / "metrics.jsonl").touch()
    assert "older than the last training record" in write_report(workdir, "validation").read_text()


def test_a_split_without_predictions_is_evaluated_first(
    workdir: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model:
        def __init__(self, config: object, workdir: Workdir) -> None:
            self.workdir = workdir

        def evaluate(self, split: str) -> None:
            write_predictions(self.workdir, split)

    monkeypatch.setattr(report_writer, "TrainedModel", Model)
    assert "1 of 8 clips" in Page(write_report(workdir, "test").read_text()).text
    with pytest.raises(ValueError, match="--split=train: the training split has no end"):
        write_report(workdir, "train")


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda w: (w.path / "config.json").unlink(), WorkdirError, "no config.json in it"),
        (lambda w: w.predictions("test").write_text("{}\n{"), ValueError, "no JSON records"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    workdir: Workdir, prepare: Callable[[Workdir], object], error: type[Exception], message: str
) -> None:
    workdir.predictions("test").parent.mkdir()
    prepare(workdir)
    with pytest.raises(error, match=message):
        write_report(workdir)


def test_an_empty_file_of_predictions_is_told(workdir: Workdir) -> None:
    workdir.predictions("test").parent.mkdir()
    workdir.predictions("test").touch()
    assert "holds no record" in Page(write_report(workdir).read_text()).text


def test_the_program_prints_the_path(workdir: Workdir) -> None:
    write_predictions(workdir, "test")
    command = [sys.executable, "-m", "launch.report", f"--workdir={workdir.path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(workdir.path / "report.html")
