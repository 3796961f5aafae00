"""Table of runs: states, best metrics, order, and the page."""

import json
from pathlib import Path
from typing import Any

import filelock
import pytest

from launch.reports.run_table import (
    build_runs_page,
    find_runs,
    format_table,
    overlay,
    ranked,
    row_of,
    shorten,
)
from tests.launch.programs import (
    finish,
    sentence,
    start,
    succeed,
)
from tests.launch.reports.pages import Page


def write_run(folder: Path, values: list[float | None], **config: Any) -> Path:
    """Writes a workdir with an evaluation every 10 steps; None: one without the metric."""
    folder.mkdir(parents=True)
    full = {
        "best_metric": "accuracy",
        "best_mode": "max",
        "eval_split": "validation",
        "num_steps": 40,
        "patience": 0,
        **config,
    }
    text = json.dumps({"experiment": "experiments/x.py:tiny", "config": full})
    (folder / "config.json").write_text(text)
    lines = []
    for number, value in enumerate(values, 1):
        common = {"step": 10 * number, "loss": 1.0 / number}
        lines.append({**common, "split": "train", "steps_per_second": 2.0})
        lines.append({**common, "split": "validation", full["best_metric"]: value})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "b/whole", [0.25, 0.5, 0.75, 0.5])
    write_run(tmp_path / "half", [0.25, 0.875])
    write_run(tmp_path / "early", [0.5, 0.25, 0.25], patience=2)
    write_run(tmp_path / "loss", [3.0, 1.5, 2.0, 2.5], best_metric="error", best_mode="min")
    write_run(tmp_path / "empty", [])
    write_run(tmp_path / "blind", [None])
    write_run(tmp_path / "going", [0.125])
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text("[1]")
    return tmp_path


def test_state_and_best_of_each_run(runs: Path) -> None:
    with filelock.FileLock(runs / "going/lock"):
        found = {run.name: run for run in find_runs(runs)}
    assert list(found) == ["b/whole", "blind", "early", "empty", "going", "half", "loss"]
    assert {name: run.state for name, run in found.items()} == {
        "b/whole": "finished",
        "blind": "unfinished",
        "early": "stopped early",
        "empty": "not begun",
        "going": "running",
        "half": "unfinished",
        "loss": "finished",
    }
    assert {name: (run.best, run.best_step) for name, run in found.items()} == {
        "b/whole": (0.75, 30),
        "blind": (None, None),
        "early": (0.5, 10),
        "empty": (None, None),
        "going": (0.125, 10),
        "half": (0.875, 20),
        "loss": (1.5, 20),
    }
    assert found["b/whole"].seconds == 20
    assert found["b/whole"].step == 40
    # Reading the state takes no lock, and one that is left says nothing.
    assert {run.state for run in find_runs(runs) if run.name == "going"} == {"unfinished"}


def test_the_best_come_first_and_metrics_are_not_mixed(runs: Path) -> None:
    order = [run.name for run in ranked(find_runs(runs))]
    assert order == ["half", "b/whole", "early", "going", "blind", "empty", "loss"]
    lines = format_table([row_of(run) for run in ranked(find_runs(runs))]).splitlines()
    columns = "run best at step state step time experiment differs in"
    assert lines[0].split() == columns.split()
    assert lines[1].split("  ")[0] == "half"
    assert "20 of 40" in lines[1]
    assert "accuracy 0.875" in lines[1]
    assert lines[2].startswith("b/whole  accuracy 0.75")
    assert "20.0\u00a0s  experiments/x.py:tiny" in lines[2]


def test_a_row_names_the_flags_in_which_runs_of_a_task_differ(tmp_path: Path) -> None:
    long = "x" * 99
    for name, rate, width in (("a", 0.1, 8), ("b", 0.2, 8), ("c", 0.2, 16)):
        config = {"optimizer": {"rate": rate}, "width": width, "same": 1}
        write_run(tmp_path / name, [0.5], **config)
    write_run(tmp_path / "other", [0.5], data={"root": "/other/waves"}, note=long)
    write_run(tmp_path / "third", [0.5], data={"root": "/other/waves"}, note="y")
    runs = find_runs(tmp_path)
    rows = {run.name: row_of(run, runs) for run in runs}
    assert rows["a"]["differs in"] == "optimizer.rate=0.1, width=8"
    assert rows["c"]["differs in"] == "optimizer.rate=0.2, width=16"
    assert rows["other"]["differs in"] == f"note={'x' * 23}…"
    assert rows["other"]["experiment"] == "experiments/x.py:tiny on waves"
    assert row_of(runs[0])["differs in"] == "–"


def test_the_page_has_links_and_charts_for_each_task(tmp_path: Path) -> None:
    for number in range(10):
        write_run(tmp_path / f"run {number}", [0.25, 0.5])
    write_run(tmp_path / "waves", [0.5], data={"root": "/other/waves"})
    (tmp_path / "run 3" / "report.html").touch()
    html = build_runs_page("runs", ranked(find_runs(tmp_path)), base="../there")
    page = Page(html)
    assert "../there/run%203/report.html" in page.attributes("a", "href")
    assert "../there/waves" in page.attributes("a", "href")
    assert "Curves of x Loss" in page.text
    assert "Curves of x on waves Loss" in page.text
    hues = {style for style in page.attributes("g", "style") if style}
    assert len(hues) == 2  # The ninth and the tenth run have colours of their own.


def test_curves_of_all_lie_over_each_other(runs: Path) -> None:
    found = find_runs(runs)
    names = {record["split"] for record in overlay(found)}
    assert names == {"b/whole", "blind", "early", "going", "half", "loss"}
    page = Page(build_runs_page("a <folder>", ranked(found)))
    assert "7 in a <folder>" in page.text
    descriptions = [text for text in page.attributes("div", "aria-label") if text]
    [accuracy] = [text for text in descriptions if text.startswith("Accuracy")]
    assert "half from 25\u00a0% at step 10 to 87.5\u00a0% at step 20" in accuracy
    assert "loss" not in accuracy.partition(":")[2]
    assert any(text.startswith("Error over the steps: loss from 3 ") for text in descriptions)


@pytest.mark.slow
def test_the_program(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "runs.html"
    listed = start("runs", str(runs), "--match=l", f"--out={page}")
    nowhere = start("runs", str(runs / "none"))
    nothing = start("runs", str(runs / "other"))
    lines = succeed(listed).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "half",
        "b/whole",
        "early",
        "blind",
        "loss",
        str(page),
    ]
    assert "<h1>Runs</h1>" in page.read_text()
    assert sentence(finish(nowhere)).endswith(
        "none: no such folder; expected one with workdirs of runs"
    )
    assert sentence(finish(nothing)).endswith("other: expected workdirs of runs, found none")


def test_many_differences_are_cut_on_a_terminal_and_whole_on_the_page(tmp_path: Path) -> None:
    text = "data.size=[2, 2], " + ", ".join(f"field{n}=value{n}" for n in range(40))
    cut = shorten(text, 100)
    assert cut.startswith("data.size=[2, 2], field0=value0")
    assert len(cut) < 120
    assert int(cut.split(" and ")[1].split()[0]) + cut.count("=") == 41
    assert shorten("a=1, b=2", 100) == "a=1, b=2"
