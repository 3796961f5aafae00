"""Table of the study of sequences from workdirs."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.deep_conv_lstm import get_config as get_sensors
from experiments.results import sequence_table
from experiments.results.sequence_table import HEADER, Run, format_table, make_row, read_run
from experiments.results.write_results import read_previous, read_rows
from experiments.tcn_sequences import get_config
from flaxnets.training.config import to_dict


def make_workdir(path: Path, variant: str, config: Any, results: dict[str, Any]) -> Path:
    path.mkdir()
    file = "deep_conv_lstm" if "motions" in variant else "tcn_sequences"
    record = {"experiment": f"experiments/{file}.py{variant}", "config": to_dict(config)}
    (path / "config.json").write_text(json.dumps(record))
    rates = [{"step": n, "split": "train", "steps_per_second": n} for n in (1, 4, 5)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(rate) + "\n" for rate in rates))
    for split, metrics in results.items():
        text = json.dumps({"split": split, "step": 40, **metrics})
        (path / f"{split}.json").write_text(text)
    return path


def test_a_row_is_the_mean_of_its_seeds(tmp_path: Path) -> None:
    runs = []
    for seed, loss in enumerate((8.4, 8.6)):
        config = get_config("jsb,elman")
        config.seed, config.model.recurrent.features = seed, 16
        path = tmp_path / str(seed)
        # The test split goes before the validation.
        results = {"test": {"loss": loss}, "validation": {"loss": 0.0}}
        runs.append(read_run(make_workdir(path, ":jsb,elman", config, results)))
    assert [(run.variant, run.split, run.seconds) for run in runs] == [
        (("jsb", "elman"), "test", 0.25)
    ] * 2
    parameters = 88 * 16 + 16 * 16 + 16 + 17 * 88
    cells = ["jsb", "elman", f"{parameters:,}", "8.91", "8.50 ± 0.14", "test", "2", "40", "0.25"]
    assert make_row(("jsb", "elman"), runs) == cells
    with pytest.raises(ValueError, match="expected runs of different seeds"):
        make_row(("jsb", "elman"), [runs[0], runs[0]])


def test_every_variant_stands_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    families = {task: sequence_table.FAMILIES[task] for task in ("copy", "basic_motions")}
    monkeypatch.setattr(sequence_table, "FAMILIES", families)
    config = get_sensors("basic_motions")
    results = {"validation": {"loss": 0.1, "accuracy": 0.975}}
    run = read_run(make_workdir(tmp_path / "run", ":basic_motions", config, results))
    assert run.variant == ("basic_motions", "deep_conv_lstm")
    table = format_table([run])
    (row,) = (line for line in table.splitlines() if "| basic_motions | deep_conv_lstm" in line)
    assert "| – | 97.5 % | validation | 1 | 40 |" in row
    assert table.count("not run") == 7 + 2


@pytest.mark.slow
def test_rows_of_earlier_runs_are_kept() -> None:
    earlier = Run(("jsb", "gru"), 299_292, 0, "test", 8.4, 900, 0.5)
    replaced = Run(("jsb", "lstm"), 300_248, 0, "test", 8.5, 900, 0.5)
    previous = read_rows("# Results\n\n" + format_table([earlier, replaced]) + "\nText.\n", HEADER)
    run = Run(("jsb", "lstm"), 300_248, 0, "test", 8.0, 900, 0.5)
    assert format_table([run], previous) == format_table([earlier, run])
    with pytest.raises(ValueError, match="previous: expected a table with the columns task"):
        read_rows("| task | network |\n| --- | --- |\n", HEADER)
    with pytest.raises(ValueError, match="previous: expected 9 cells, received"):
        read_rows(format_table([]) + "| jsb | gru | 1 |", HEADER)
    with pytest.raises(ValueError, match=r"previous: no such file: none\.md"):
        read_previous("none.md", HEADER)


@pytest.mark.slow
def test_rows_of_networks_that_have_changed_are_not_kept() -> None:
    earlier = Run(("jsb", "gru"), 299_291, 0, "test", 8.4, 900, 0.5)
    assert format_table([], read_rows(format_table([earlier]), HEADER)) == format_table([])


def test_other_workdirs_are_refused(tmp_path: Path) -> None:
    config = get_config("jsb,gru")
    bare = make_workdir(tmp_path / "bare", ":jsb,gru", config, {})
    with pytest.raises(ValueError, match=r"expected test\.json or validation\.json"):
        read_run(bare)
    other = make_workdir(tmp_path / "other", ":smoke", config, {"test": {"loss": 1.0}})
    with pytest.raises(ValueError, match="expected a run of tcn_sequences"):
        read_run(other)


def test_a_workdir_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*none: no such folder"):
        sequence_table.main(["sequence_table", str(tmp_path / "none")])


def test_values_have_the_units_of_the_paper() -> None:
    run = Run(("adding", "gru"), 69_151, 0, "test", 0.0000534, 900, 0.5)
    row = make_row(("adding", "gru"), [run])
    assert row[3:5] == ["5.3e-05", "5.34e-05"]
