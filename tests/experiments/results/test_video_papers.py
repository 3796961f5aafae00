"""Table of the video papers: read from files, complete, and of the same test clips."""

import json
from pathlib import Path

import pytest

from experiments.results.video_papers import (
    PAPERS,
    ROOT,
    command,
    format_table,
    is_complete,
    read_correct,
    read_rows,
)
from launch.program import load_experiment


def write_run(folder: Path, correct: dict[str, dict[int, dict[int, list[bool]]]]) -> None:
    folder.mkdir(parents=True)
    (folder / "crossvalidation.json").write_text(json.dumps(correct))
    for fold, by_seed in next(iter(correct.values())).items():
        for seed in by_seed:
            run = folder / f"fold{fold:02d}_seed{seed}"
            run.mkdir()
            records = [
                {"step": step, "split": "train", "loss": 1.0, "steps_per_second": rate}
                for step, rate in ((20, 10.0), (100, 20.0))
            ]
            lines = [json.dumps(record) + "\n" for record in records]
            (run / "metrics.jsonl").write_text("".join(lines))


def test_rows_come_from_the_files_of_finished_runs(tmp_path: Path) -> None:
    own = {1: {0: [True, True], 1: [True, False]}, 2: {0: [True, False], 1: [True, False]}}
    linear = {1: {0: [True, False]}, 2: {0: [False, False]}}
    write_run(tmp_path / "shipped", {"CRNN": own, "mean of 8 frames": linear})
    write_run(tmp_path / "gru_rcn", {"GRU-RCN": {1: {0: [True, True]}}})  # of fold 1 alone
    correct = read_correct(tmp_path / "shipped")
    assert is_complete(correct, [1, 2], [0, 1])
    assert not is_complete(correct, [1, 2, 3], [0])
    assert not is_complete(read_correct(tmp_path / "ts_lstm"), [1], [0])
    rows = read_rows(tmp_path, [1, 2], [0, 1])
    assert [row.name for row in rows] == ["CRNN (shipped recipe)", "mean of 8 frames"]
    assert rows[0].accuracies() == [75, 50]
    assert rows[0].seconds == pytest.approx(20 / 10 + 80 / 20)
    table = format_table(rows)
    assert "Accuracy in % on 4 test clips of 2 folds" in table
    assert f"| `{PAPERS['shipped']}` | 62.5 ± 17.7 | 2 | 50 | 6 |" in table
    assert "| mean of 8 frames | linear baseline | 25.0 | – | 0 | – |" in table
    assert [row.name for row in read_rows(tmp_path, [1], [0])][1] == "GRU-RCN"
    # Of seeds that are not all finished, those that are.
    (some, *_) = read_rows(tmp_path, [1, 2], [1, 2])
    assert some.accuracies() == [50]


def test_rows_of_other_clips_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "shipped", {"CRNN": {1: {0: [True, True]}}})
    write_run(tmp_path / "gru_rcn", {"GRU-RCN": {1: {0: [True]}}})
    with pytest.raises(ValueError, match=r"rows: expected .* test clips by fold for all"):
        format_table(read_rows(tmp_path, [1], [0]))
    with pytest.raises(ValueError, match="rows: expected at least one finished network"):
        format_table([])


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_every_network_of_the_table_has_a_variant_for_ut_interaction(tmp_path: Path) -> None:
    names = set()
    for name, experiment in PAPERS.items():
        config = load_experiment(str(ROOT / "experiments" / experiment))
        assert config.eval_split == ""  # Nothing is selected on a test sequence.
        names.add(config.name)
        assert command(name, "set1", tmp_path, [1], [0])[3].endswith(experiment)
    assert len(names) == len(PAPERS)
