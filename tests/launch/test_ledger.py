"""Ledger of papers: rows, verdicts, figures of files, runs of a row, pages."""

import dataclasses
import doctest
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import program
from launch.ledger import reproduction
from launch.ledger import rows as ledger_rows
from launch.ledger.page import build_page, fill_page, format_list, format_markdown, kind_of
from launch.ledger.reproduction import (
    LEDGER_FILE,
    LEDGER_PAGE,
    RESULT,
    WRITTEN,
    check_data,
    check_seeds,
    commands_of,
    folder_of,
    make_record,
    read_metrics,
    read_result,
    read_results,
    run_seed,
    write_record,
)
from launch.ledger.rows import (
    COLUMNS,
    NOT_RUN,
    Row,
    filled,
    find_problems,
    find_row,
    judge,
    read_ledger,
    write_ledger,
)
from tests.launch.programs import ROOT, finish, sentence, start
from tests.launch.reports.pages import Page

PAGE = """# A page

<!-- results -->
| task | network | measured | seeds | minutes |
| --- | --- | --- | --- | --- |
| a | lstm | **1,234.5 ± 0.5** | 3 | 90 |
| a | gru | not run |  |  |
<!-- end of results -->

| network | measured |
| --- | --- |
| lstm | 7 |
| a | 8 |
"""
ROW = Row(
    name="a_lstm",
    paper="A & <B>",
    arxiv="1234.5678",
    table="table 1",
    row="LSTM",
    data="music",
    split="test",
    metric="loss",
    unit="",
    better="lower",
    target="1234.0",
    grade="M",
    source="memory",
    tolerance="1",
    differs="",
    ours="1234.5",
    spread="0.5",
    seeds="3",
    command="python -m launch.train --workdir={workdir}/run --config.data.root={root}/music "
    "--config.seed={seed}; python -m launch.evaluate --workdir={workdir}/run --out={out}",
    files="page.md > a > lstm > measured",
    commit="abc",
    device="2-core CPU",
    hours="1.50",
    planned_hours="",
    verdict="reproduced",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of results with a page and a ledger of one row."""
    (tmp_path / "page.md").write_text(PAGE)
    write_ledger(tmp_path / "ledger.csv", [ROW])
    return tmp_path


def test_examples_run() -> None:
    assert doctest.testmod(ledger_rows).failed == 0


def changed(**values: str) -> Row:
    return dataclasses.replace(ROW, **values)


def test_rows_are_read_as_they_were_written(folder: Path) -> None:
    path = folder / "ledger.csv"
    rows = [ROW, changed(name="b", paper='say "x", then\ny')]
    write_ledger(path, rows)
    assert read_ledger(path) == rows
    with pytest.raises(ValueError, match="unknown row 'a_lstn'; did you mean 'a_lstm'"):
        find_row(rows, "a_lstn")
    path.write_text(path.read_text().replace("tolerance", "slack", 1))
    with pytest.raises(ValueError, match="different: slack, tolerance"):
        read_ledger(path)
    write_ledger(path, [ROW, ROW])
    with pytest.raises(ValueError, match="each name once, received a_lstm twice"):
        read_ledger(path)
    path.write_text(",".join(COLUMNS) + "\na,b\n")
    with pytest.raises(ValueError, match="line 2: expected 25 cells, received 2"):
        read_ledger(path)
    with pytest.raises(FileNotFoundError, match="expected a ledger"):
        read_ledger(folder / "none.csv")


@pytest.mark.parametrize(
    ("better", "ours", "verdict"),
    [
        ("lower", "1235.0", "reproduced"),
        ("lower", "1235.1", "off by +1.1"),
        ("lower", "1000", "reproduced"),
        ("higher", "1233.0", "reproduced"),
        ("higher", "1232.99", "off by -1.01"),
        ("higher", "2000", "reproduced"),
        ("equal", "1233.0", "reproduced"),
        ("equal", "1235.5", "off by +1.5"),
    ],
)
def test_verdicts_follow_from_target_tolerance_and_figure(
    better: str, ours: str, verdict: str
) -> None:
    assert judge(changed(better=better, ours=ours)) == verdict
    # What was measured otherwise is never called reproduced.
    other = judge(changed(better=better, ours=ours, differs="another split"))
    assert other.startswith("off by ")
    assert other.endswith(": another split")


def test_verdicts_of_rows_without_a_figure_or_a_target() -> None:
    assert judge(changed(ours="", verdict="not run: no data")) == "not run: no data"
    assert judge(changed(ours="", verdict="reproduced")) == NOT_RUN
    assert judge(changed(target="")) == "no published figure"


def test_figures_are_those_of_the_named_cell(folder: Path) -> None:
    stale = changed(ours="1", spread="", seeds="", hours="", verdict="off by more")
    assert filled(stale, folder) == ROW
    # A command of several trainings takes more than the minutes of the last one.
    several = changed(command=f"{ROW.command}; {ROW.command}", hours="9.00")
    assert filled(several, folder).hours == "9.00"
    # The table that a program wrote goes first.
    assert filled(changed(files="page.md > lstm > measured"), folder).ours == "7"
    for files, message in (
        ("page.md > a > lstm > mesured", "expected one cell .* received none"),
        ("page.md > a > measured", "expected one cell .* received 2"),
        ("page.md > a > gru > measured", "expected a number, received 'not run'"),
        ("page.md", "expected PAGE.md > KEY"),
        ("none.md > a > b", "no file"),
    ):
        with pytest.raises(ValueError, match=message):
            filled(changed(files=files), folder)


def test_what_is_wrong_with_a_row_is_told(folder: Path) -> None:
    assert find_problems([ROW], folder) == []
    for values, message in (
        ({"ours": "1234.6"}, "ours: expected 1234.5, as page.md > a > lstm > measured gives"),
        ({"verdict": "off by +0.5"}, "verdict: expected reproduced"),
        ({"hours": "2"}, "hours: expected 1.50"),
        ({"grade": "B"}, "grade: expected one of R, A, S, M, received 'B'"),
        ({"source": ""}, "source: expected with a target"),
        ({"better": "more"}, "better: expected one of higher, lower, equal"),
        ({"tolerance": "few"}, "tolerance: expected a number, received 'few'"),
        ({"files": ""}, "files: expected the file of the figure 1234.5"),
        ({"files": "", "ours": "", "verdict": "not run: "}, "expected a reason after"),
        ({"paper": ""}, "paper: expected a text"),
    ):
        problems = find_problems([changed(**values)], folder)
        assert any(message in problem for problem in problems), (message, problems)


def test_commands_are_filled_in_and_data_are_looked_for(tmp_path: Path) -> None:
    train, evaluate = commands_of(ROW, workdir="/w", root="/d a", seed=2)
    assert train[3:] == ["--workdir=/w/run", "--config.data.root=/d a/music", "--config.seed=2"]
    assert evaluate[-1] == "--out=/w/metrics.json"
    with pytest.raises(ValueError, match="expected python -m MODULE"):
        commands_of(changed(command="make demo"), workdir="", root="", seed=0)
    with pytest.raises(ValueError, match="a_lstm: needs music as music below --root, received no"):
        check_data(ROW, "")
    with pytest.raises(ValueError, match="which is not there"):
        check_data(ROW, str(tmp_path))
    (tmp_path / "music").mkdir()
    check_data(ROW, str(tmp_path))
    check_data(changed(command="python -m launch.train"), "")
    # Rows with equal commands share their runs.
    rows = [ROW, changed(name="b"), changed(name="c", command="python -m x")]
    assert [folder_of(row, rows) for row in rows] == ["a_lstm", "a_lstm", "c"]


def result(seed: int, **metrics: float) -> dict[str, Any]:
    return {
        "command": ROW.command,
        "seed": seed,
        "metrics": metrics,
        "seconds": 3600.0 * (seed + 1),
        "commit": "abc",
        "device": "2-core CPU",
    }


def test_a_record_has_all_seeds_and_the_row_follows_from_it(folder: Path) -> None:
    results = [result(0, loss=1234.2), result(1, loss=1234.6)]
    row = write_record(changed(commit="", seeds=""), results, folder)
    assert (row.ours, row.spread, row.seeds, row.hours) == ("1234.4", "0.3", "2", "1.50")
    assert (row.commit, row.verdict) == ("abc", "reproduced")
    assert row.files == "reproduced/a_lstm.json"
    assert json.loads((folder / row.files).read_text())["values"] == {"0": 1234.2, "1": 1234.6}
    assert find_problems([row], folder) == []
    # The ledger must not say more than the record.
    assert find_problems([dataclasses.replace(row, ours="1234.3")], folder)
    percent = make_record(changed(unit="%"), [result(0, loss=0.25)])
    assert percent["values"] == {"0": 25.0}
    with pytest.raises(ValueError, match="the runs have no 'loss'; did you mean 'losses'"):
        make_record(ROW, [result(0, losses=1.0)])
    with pytest.raises(ValueError, match="expected a finite loss, received nan of seed 1; the row"):
        make_record(ROW, [result(0, loss=1.0), result(1, loss=float("nan"))])


def test_more_seeds_are_not_replaced_by_fewer(tmp_path: Path) -> None:
    for seed in (2, 0, 10):
        (tmp_path / f"seed{seed}").mkdir()
        (tmp_path / f"seed{seed}" / RESULT).write_text(json.dumps(result(seed, loss=1.0)))
    (tmp_path / "seed1").mkdir()
    assert [each["seed"] for each in read_results(tmp_path, ROW)] == [0, 2, 10]
    three = changed(ours="1.0", seeds="3")
    check_seeds([three, changed(ours="", seeds="")], 3)
    with pytest.raises(ValueError, match="the figure of 3 seeds, and 2 would replace it: give --s"):
        check_seeds([three], 2)


def test_metrics_are_those_of_the_evaluation_or_of_all_folds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected metrics.json or crossvalidation.json"):
        read_metrics(tmp_path, ROW)
    folds = {"CRNN": {"1": {"0": [True, False]}, "2": {"0": [True, True]}}, "linear": {}}
    (tmp_path / "crossvalidation.json").write_text(json.dumps(folds))
    assert read_metrics(tmp_path, ROW) == {"accuracy": 0.75}
    (tmp_path / "metrics.json").write_text('{"loss": 1.5, "split": "test", "nan": null}')
    found = read_metrics(tmp_path, ROW)
    assert found.pop("loss") == 1.5
    assert [*found] == ["nan"]
    assert math.isnan(found["nan"])


def test_a_seed_that_is_done_is_skipped_and_one_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, started = [143, 0, 0], []

    class Job:
        """Stands for the processes: writes what the last command of the row would."""

        def __init__(self, commands: Any, environments: Any, **options: Any) -> None:
            self.words = commands[0]

        def run(self) -> int:
            started.append(self.words[3])
            if out := [word for word in self.words if word.startswith("--out=")]:
                Path(out[0].removeprefix("--out=")).write_text('{"loss": 2.0}')
            return codes.pop(0)

    monkeypatch.setattr(reproduction, "LocalJob", Job)
    monkeypatch.setattr(reproduction, "describe_device", lambda: "2-core CPU")
    assert run_seed(tmp_path, ROW, 1, "/d") == 143  # Preempted: it has saved a checkpoint.
    assert read_result(tmp_path, ROW, 1) is None
    assert run_seed(tmp_path, ROW, 1, "/d") == 0
    assert started == ["launch.train", "launch.train", "launch.evaluate"]
    done = read_result(tmp_path, ROW, 1)
    assert done is not None
    assert done["metrics"] == {"loss": 2.0}
    assert len((tmp_path / "seed1" / "times.jsonl").read_text().splitlines()) == 3
    assert run_seed(tmp_path, ROW, 1, "/d") == 0
    assert len(started) == 3
    with pytest.raises(ValueError, match="take another --workdir"):
        read_result(tmp_path, changed(command="python -m x"), 1)


def test_figures_of_rows_are_no_changes_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ROOT", tmp_path)
    assert program.describe_commit(WRITTEN) == ""  # No repository.
    names = (LEDGER_FILE, LEDGER_PAGE, "experiments/results/reproduced/a.json", "launch/train.py")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "x")):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    commit = program.describe_commit()
    assert re.fullmatch("[0-9a-f]{12}", commit)
    for each in names[:3]:
        (tmp_path / each).write_text("new")
    assert program.describe_commit() == f"{commit} with changes"
    assert program.describe_commit(WRITTEN) == commit
    (tmp_path / names[3]).write_text("new")
    assert program.describe_commit(WRITTEN) == f"{commit} with changes"


def test_pages_show_every_row_and_escape_texts() -> None:
    rows = [
        ROW,
        changed(name="b", verdict="off by +2"),
        changed(name="c", ours="", verdict="not run: <no> data", paper="Other", arxiv=""),
        changed(name="d", target="", grade="", verdict="no published figure"),
    ]
    assert [kind_of(row) for row in rows] == ["reproduced", "off", "open", "unpublished"]
    page = Page(build_page(rows))
    assert "A & <B>" in page.text
    assert "not run: <no> data" in page.text
    assert "https://arxiv.org/abs/1234.5678" in page.attributes("a", "href")
    assert "1234.5 ± 0.5, 3 seeds" in page.text
    table = format_markdown(rows)
    assert table.startswith("4 rows: 1 reproduced, 1 off")
    assert all(f"`{row.name}`" in table for row in rows)
    lines = format_list(rows).splitlines()
    assert len(lines) == 5
    assert lines[0].index("verdict") == lines[1].index("reproduced")
    filled_page = fill_page("x\n<!-- ledger -->\nold\n<!-- end of ledger -->\ny\n", rows)
    assert "old" not in filled_page
    assert fill_page(filled_page, rows) == filled_page
    with pytest.raises(ValueError, match="expected one <!-- ledger -->"):
        fill_page("x", rows)


@pytest.mark.subprocess
def test_a_row_that_is_not_there_names_the_nearest(folder: Path) -> None:
    done = finish(start("reproduce", f"--ledger={folder / 'ledger.csv'}", "a_lstn"))
    assert sentence(done) == "error: unknown row 'a_lstn'; did you mean 'a_lstm'?"


@pytest.mark.stress
def test_a_row_is_reproduced_from_its_command(folder: Path) -> None:
    command = (
        "python -m launch.train --config=experiments/moving_shapes.py:smoke "
        "--workdir={workdir}/run --config.seed={seed}; "
        "python -m launch.evaluate --workdir={workdir}/run --split=test --out={out}"
    )
    row = changed(
        name="shapes", command=command, metric="accuracy", unit="%", target="12.5", tolerance="1",
        better="higher", files="", ours="", spread="", seeds="", verdict="not run: no time",
    )  # fmt: skip
    ledger = folder / "ledger.csv"
    write_ledger(ledger, [ROW, row])
    words = [
        sys.executable, "-m", "launch.reproduce", "shapes", "--seeds=2", f"--ledger={ledger}",
        f"--workdir={folder / 'runs'}",
    ]  # fmt: skip
    script = subprocess.run(
        [*words, "--slurm=--time=30 --job_name=a", "--dry_run"],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "#SBATCH --array=0-1" in script
    assert 'launch.reproduce shapes --seeds=2 --share="$SLURM_ARRAY_TASK_ID"/2 ' in script
    share = subprocess.run([*words, "--share=0/2"], cwd=ROOT, capture_output=True, text=True)
    assert "1 of 2 seeds are done" in share.stdout, share.stderr
    first = folder / "runs" / "shapes" / "seed0" / RESULT
    before = first.stat().st_mtime_ns
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == before
    rows = read_ledger(ledger)
    assert rows[0] == ROW
    assert rows[1].seeds == "2"
    assert rows[1].device.endswith("CPU")
    assert find_problems(rows, folder) == []
    listed = subprocess.run(
        [sys.executable, "-m", "launch.reproduce", "--json", f"--ledger={ledger}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(listed.stdout) == [dataclasses.asdict(each) for each in rows]
    check = subprocess.run(
        [sys.executable, "-m", "launch.reproduce", "--check", f"--ledger={ledger}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (check.returncode, check.stdout.strip()) == (0, "2 rows agree with their files")
