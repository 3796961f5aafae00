"""Series of one's own: files, splits, scores beside naive forecasts, and what is refused."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.series import Scaling, forecast_scores
from experiments.lstnet import get_config as lstnet
from experiments.sequences.config import Problem
from experiments.sequences.forecast_files import LastWindows, describe_forecast
from experiments.sequences.series import ForecastScorer, ObservedInputs, parse_horizons
from experiments.series import OwnSeriesConfig
from experiments.series import get_config as series
from flaxnets.inference import trained_model
from flaxnets.inference.trained_model import TrainedModel
from flaxnets.training.loop import train
from flaxnets.training.parallel import DataParallel
from flaxnets.training.workdir import Workdir
from tests.data.shared_data import shared

ROOT = Path(__file__).parents[2]
STEPS = 80


def write(path: Path, *, missing: bool = False, times: list[int] | None = None) -> Path:
    """Writes a table of two channels, the second of which is the first one a step before."""
    values = np.sin(np.arange(STEPS + 1) * np.pi / 6) * 3 + 10
    cells = [[f"{b:.6f}", f"{a:.6f}"] for a, b in itertools.pairwise(values)]
    if missing:
        cells[5][0], cells[70][1] = "", ""
    hours = times or list(range(STEPS))
    rows = [",".join([str(t), *row]) for t, row in zip(hours, cells, strict=False)]
    path.write_text("\n".join(["hour,x,lag", *rows, ""]))
    return path


def config_of(path: Path, **fields: Any) -> OwnSeriesConfig:
    """Returns the small network on a table, with other fields of the data."""
    config = series("smoke")
    config.data.dataset, config.data.list, config.data.time = "files", str(path), "hour"
    config.data.stride = 1
    if fields.get("task") == "classify":
        config.data.horizons, config.data.period = ("1",), 0
    for name, value in fields.items():
        setattr(config.data, name, value)
    config.validate()
    return config


def test_windows_and_scaling_are_those_of_the_parts(tmp_path: Path) -> None:
    config = config_of(write(tmp_path / "a.csv"), targets=("lag",), horizons=("1", "3-4"))
    problem = config.problem
    assert (problem.num_outputs, problem.forecast_channels) == (3, (1,))
    assert config.steps_ahead == (1, 3, 4)
    train_part = config.table.series[0].values[:48]
    np.testing.assert_allclose(problem.scaling["offsets"], train_part.mean(0))
    assert len(config.source("test")) == 16 - 4 + 1
    example = config.source("train")[0]
    assert example["inputs"].shape == (12, 2)
    assert example["targets"].shape == (3, 1)
    config = config_of(tmp_path / "a.csv", parts=(50.0, 10.0))
    assert len(config.source("validation")) == 9
    with pytest.raises(ValueError, match="split: expected one of train, validation, received 'te"):
        config.source("test")


@pytest.mark.slow
@pytest.mark.subprocess
def test_a_network_on_missing_values_evaluates_and_forecasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write(tmp_path / "a.csv", missing=True)
    config = config_of(table, period=12)
    assert isinstance(config.source("train"), ObservedInputs)
    assert config.source("train")[0]["inputs"].shape == (12, 4)
    assert config.source("train")[0]["inputs"][5].tolist()[::2] == [0, 0]
    strategy = DataParallel(jax.devices()[:1])
    monkeypatch.setattr(trained_model, "DataParallel", lambda: strategy)
    config.num_steps = config.eval_every = 2
    with Workdir(tmp_path / "run") as workdir:
        workdir.claim("experiments/series.py:smoke", config)
        train(config, workdir, strategy=strategy, show_progress=False)
    model = TrainedModel(config, Workdir(tmp_path / "run"))
    metrics = model.evaluate("test")
    assert set(config.scored_metrics("test")) <= set(metrics)
    assert metrics["examples"] == len(config.source("test"))
    # A period before, a sine has the same value.
    assert metrics["rmse_seasonal"] == pytest.approx(0, abs=1e-5)
    assert metrics["rmse_last"] > 0.5
    windows = config.forecast_windows("test")
    records = (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()
    forecasts = windows.inverse(np.array([json.loads(line)["predictions"] for line in records]))
    targets = windows.inverse(np.stack([windows[i]["targets"] for i in range(len(windows))]))
    mask = np.stack([windows[i]["target_mask"] for i in range(len(windows))])
    for name, value in forecast_scores(forecasts, targets, mask).items():
        assert metrics[name] == pytest.approx(value)

    short = tmp_path / "short.csv"
    short.write_text("hour,x,lag\n1,2,3\n")
    done = subprocess.run(
        [sys.executable, "-m", "launch.predict", f"--workdir={tmp_path / 'run'}", table, short],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    lines = {(line := json.loads(text))["path"]: line for text in done.stdout.splitlines()}
    assert lines[str(table)]["after"] == "79"
    steps = lines[str(table)]["forecast"]
    assert [step["step"] for step in steps] == [1, 2]
    assert [sorted(step["values"]) for step in steps] == [["lag", "x"]] * 2
    assert "expected at least the 12 rows of a window, received 1" in lines[str(short)]["error"]


def test_classes_of_windows_and_of_sequences(tmp_path: Path) -> None:
    rows = [f"{t},{t % 5},{'up' if t % 20 < 10 else 'down'}" for t in range(60)]
    table = tmp_path / "a.csv"
    table.write_text("\n".join(["hour,x,class", *rows]))
    config = config_of(table, task="classify", label="class")
    assert config.class_names == ("down", "up")
    assert config.source("train")[0]["inputs"].shape == (12, 1)
    assert config.make_model().autoregressive_steps == 0
    assert config.scored_metrics("test") == ()

    values = np.random.default_rng(0).normal(size=(12, 9, 2)).astype(np.float32)
    labels = np.arange(12) % 2
    arrays = {
        f"{split}_{name}": value
        for split in ("train", "test")
        for name, value in (("x", values), ("y", labels))
    }
    np.savez(tmp_path / "s.npz", classes=np.array(["a", "b"]), **arrays)
    config = config_of(Path(""), list="", root=str(tmp_path / "s.npz"), task="classify", time="")
    assert [len(config.source(split)) for split in ("train", "validation", "test")] == [10, 2, 12]
    assert config.problem.class_names == ("a", "b")
    problem = config.problem
    assert not problem.with_observed
    # Values are missing in the test split alone, whose examples have the mask as the others.
    holed = values.copy()
    holed[0, 3, 1] = np.nan
    np.savez(tmp_path / "s.npz", classes=np.array(["a", "b"]), **{**arrays, "test_x": holed})
    fields: dict[str, Any] = {"list": "", "root": str(tmp_path / "s.npz"), "task": "classify"}
    config = config_of(Path(""), time="", **fields)
    assert [config.source(split)[0]["inputs"].shape[1] for split in ("train", "test")] == [4, 4]
    config = config_of(Path(""), time="", **fields)
    config._problem = problem
    with pytest.raises(ValueError, match=r"data\.root: split 'test': expected values without gaps"):
        config.source("test")
    kept = {name: array for name, array in arrays.items() if name.startswith("train")}
    np.savez(tmp_path / "s.npz", classes=np.array(["a", "b"]), **kept)
    assert not config_of(Path(""), time="", **fields).problem.with_observed
    with pytest.raises(
        FileNotFoundError, match=r"data\.root: expected a folder of \.ts files .*gone"
    ):
        config_of(Path(""), list="", root=str(tmp_path / "gone"), task="classify").source("train")
    with pytest.raises(ValueError, match=r"received .*a\.csv; a table with a row for each time"):
        config_of(Path(""), list="", root=str(table), task="classify").source("train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": ("lga",)}, r"data\.targets: expected one of .*did you mean 'lag'\?"),
        ({"columns": ("x", "lgg")}, r"a\.csv: data\.columns: .*did you mean 'lag'\?"),
        ({"time": "huor"}, r"data\.time: expected one of .*did you mean 'hour'\?"),
        ({"horizons": ("90",)}, r"data\.window, data\.horizons: expected a window of 12 and a "),
        ({"horizons": ("3-1",)}, r"data\.horizons: expected ranges from the smaller .* '3-1'"),
        ({"horizons": ("1", "24-12")}, r"data\.horizons: expected ranges .* received '24-12'"),
        ({"horizons": ("3", "1-3")}, r"data\.horizons: expected ascending numbers"),
        ({"label": "lag"}, r"data\.label: expected none with data\.task='forecast', received 'lag"),
        (
            {"task": "classify", "label": "lag", "targets": ("x",)},
            r"data\.targets: expected none with data\.task='classify', received x",
        ),
        (
            {"task": "classify", "label": "lag", "period": 24},
            r"data\.period: expected 0 with data\.task='classify', .*received 24",
        ),
        (
            {"task": "classify", "label": "lag", "horizons": ("1-3",)},
            r"data\.horizons: expected 1 with data\.task='classify', .*received \('1-3',\)",
        ),
        (
            {"task": "classify", "list": "", "root": "x", "label": "lag"},
            r"data\.label: expected none with data\.root, whose files have the classes",
        ),
        ({"decimal": ";"}, r"data\.separator, data\.decimal: expected one character"),
        ({"horizons": ("soon",)}, r"data\.horizons: expected numbers or ranges, as 3 or 1-24"),
        ({"period": 99}, r"data\.period: expected 1 to 64"),
        ({"parts": (0.9, 0.2)}, r"data\.parts: expected two or three shares"),
        ({"scaling": "std"}, r"data\.scaling: expected one of standard"),
        ({"split_by": "group"}, r"data\.group: expected at least 3 groups"),
        ({"split_by": "tme"}, r"data\.split_by: unknown 'tme'; did you mean 'time'\?"),
        ({"task": "classify"}, r"data\.label: expected a table and its column of classes"),
        ({"root": "x"}, r"data\.list, data\.root: expected a table of series, or"),
        ({"list": "", "dataset": "files"}, r"--config\.data\.list=FILE\.csv"),
    ],
)
def test_wrong_values_are_refused_by_the_flags_name(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=message):
        ForecastScorer(
            (config := config_of(path, **fields)).forecast_windows("test"), config.data.period
        )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "9,10,x",
            r"line 11, column 'lag': expected a number, received 'x'.*--config\.data\.missing= if",
        ),
        ('9,10,"1,5"', r"received '1,5'; set --config\.data\.decimal=','"),
        ("7,10,11", r"line 11, column 'hour': .*set --config\.data\.sort=True"),
        ("8,10,11", r"line 11, .*as in .*line 10.*set --config\.data\.duplicates='first'"),
        ("12,10,11", r"expected a row every 1, received 1 gaps: 8 to 12; set --config\.data\.gaps"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.csv")
    path.write_text("\n".join([*path.read_text().splitlines()[:10], line]))
    with pytest.raises(ValueError, match=message):
        config_of(path).source("train")


def test_groups_on_two_sides_and_targets_that_are_all_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"{t},{'train' if t < 40 else 'test'},a,{t}" for t in range(60)]
    path.write_text("\n".join(["hour,part,room,x", *rows]))
    with pytest.raises(ValueError, match="line 42: expected each group on one side of the split"):
        config_of(path, group="room", split="part").source("train")
    path.write_text("\n".join(["hour,x,y", *[f"{t},{t},{t if t < 30 else ''}" for t in range(60)]]))
    config = config_of(path, targets=("y",))
    assert len(config.source("train")) > 0
    with pytest.raises(ValueError, match=r"data\.targets: expected observed values in the section"):
        config.source("test")


def test_settings_of_text_files_and_columns_that_have_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"{t}|{t % 7},5|{-999 if t % 9 == 0 else 4}" for t in range(80)]
    path.write_text("\n".join(["hour|x|y", *rows]))
    fields: dict[str, Any] = {"separator": "|", "decimal": ",", "missing": ("-999", "off")}
    values = config_of(path, **fields).table.series[0].values
    assert values[1].tolist() == [1.5, 4]
    assert np.isnan(values[::9, 1]).all()
    path.write_text("\n".join(["hour,x,class", *[f"{t},{t}," for t in range(60)]]))
    with pytest.raises(ValueError, match=r"data\.label: expected the class of at least one row"):
        config_of(path, task="classify", label="class").source("train")
    rows = [f"{t},{'train' if t < 40 else 'test'},a,{t}" for t in range(60)]
    path.write_text("\n".join(["hour,part,room,x", *rows]))
    with pytest.raises(ValueError, match="'a' in train and test; give all its rows one split, or"):
        config_of(path, group="room", split="part").source("train")
    with pytest.raises(ValueError, match="name the column of groups, or leave the column of split"):
        config_of(path, split="part", columns=("x",)).source("train")
    path.write_text("\n".join(["hour,room,x", "1,a,1", "0,a,2"]))
    with pytest.raises(ValueError, match=r"set --config\.data\.sort=True, or give local times"):
        config_of(path, group="room").source("train")


def test_a_network_without_a_mask_refuses_missing_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(write(tmp_path / "a.csv"))
    problem = config.problem
    assert not problem.with_observed
    assert not config.make_model().with_observed
    gaps = write(tmp_path / "gaps.csv", missing=True)
    config = config_of(gaps)
    assert config.make_model().with_observed
    config._problem = problem
    with pytest.raises(ValueError, match=r"data\.list: expected values without gaps, as those of"):
        config.source("test")
    early = tmp_path / "early.csv"  # A missing value before the last window does not matter.
    early.write_text("\n".join(gaps.read_text().splitlines()[:60]))
    batches = [*config.make_prediction_data([str(gaps), str(early)]).batches()]
    assert [bool(batch["mask"][0]) for batch in batches] == [False, True]
    assert "gaps.csv: expected values without gaps" in caplog.text
    # With the mask, a channel that is forecast still needs a value to go on from.
    rows = early.read_text().splitlines()
    early.write_text("\n".join([*rows[:-12], *[f"{row.rsplit(',', 1)[0]}," for row in rows[-12:]]]))
    config = config_of(gaps)
    (batch,) = config.make_prediction_data([str(early)]).batches()
    assert not batch["mask"][0]
    assert "in the last 12 rows, received none of lag" in caplog.text


def test_the_part_behind_the_last_gap_is_continued(tmp_path: Path) -> None:
    times = [*range(40), *range(50, 90)]
    path = write(tmp_path / "a.csv", times=times)
    config = config_of(path, gaps="split")
    found = LastWindows(
        [str(path)],
        lambda path: config.read(path, ("x", "lag")),
        config.problem,
        window=12,
        horizons=(1,),
    )
    assert (found.explain(0), found.ends) == ("", ["89"])
    assert found[0]["mask"]
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:51]))
    options: dict[str, Any] = {"window": 12, "horizons": (1,)}
    short = LastWindows(
        [str(path)], lambda path: config.read(path, ("x", "lag")), config.problem, **options
    )
    assert "at least the 12 rows of a window behind the last gap, received 10" in short.explain(0)


def test_forecasts_keep_their_step_beside_a_channel_of_that_name() -> None:
    problem = Problem("regression", 2, channels=("step", "x"), forecast_channels=(0, 1))
    problem = dataclasses.replace(
        problem, scaling=Scaling("none", np.zeros(2), np.ones(2)).to_json()
    )
    found = describe_forecast([[5.0, 6.0]], "9", problem, (3,))
    assert found == {"after": "9", "forecast": [{"step": 3, "values": {"step": 5.0, "x": 6.0}}]}


def test_a_constant_channel_is_scaled_safely(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["hour,x,y", *[f"{t},{t % 7},5" for t in range(80)]]))
    config = config_of(path)
    assert not config.source("test")[0]["inputs"][:, 1].any()
    score = config.make_scorer("test")
    assert score is not None
    count = len(config.source("test"))
    records = [{"index": i, "predictions": [[0.0, 0.0]] * 2} for i in range(count)]
    assert np.isfinite(score(records)["corr"])


def test_another_file_has_the_channels_of_the_training(tmp_path: Path) -> None:
    config = config_of(write(tmp_path / "a.csv"))
    problem = config.problem
    other = tmp_path / "b.csv"
    other.write_text((tmp_path / "a.csv").read_text().replace("lag", "late"))
    config = config_of(other)
    config._problem = problem
    with pytest.raises(ValueError, match="expected those of the training, x, lag, received x, la"):
        config.source("test")


def test_horizons() -> None:
    assert parse_horizons(("3",)) == (3,)
    assert parse_horizons(("1-3", "6")) == (1, 2, 3, 6)


def test_lstnet_on_exchange_rates_has_the_published_sizes() -> None:
    config = lstnet()
    config.data.list = str(shared("forecasting/exchange_rate.csv"))
    model = config.make_model()
    shapes = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, 168, 8)), train=False),
        jax.random.key(0),
    )["params"]
    # laiguokun/LSTNet: convolution (50,1,6,8), GRU of 50, skip-GRU of 5, linear layer of 50 + 24·5.
    assert shapes["encoder"]["conv_0"]["kernel"].shape == (6, 8, 50)
    assert jax.tree.leaves(shapes["head"])[-1].shape == (170, 8)
    assert shapes["autoregression"]["kernel"].shape == (24, 1)
    score = config.make_scorer("test")
    assert score is not None
    records = [{"index": i, "predictions": [[0.0] * 8]} for i in range(1_518)]
    assert score(records)["rse_last"] == pytest.approx(0.0171, abs=5e-5)
