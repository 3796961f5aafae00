"""Remaining lives: parts of the training file, the test files where they are, baselines."""

from pathlib import Path

import numpy as np
import pytest

from data.datasets.cmapss import read_engines
from data.series import SeriesTable
from experiments.remaining_life import (
    RemainingLifeConfig,
    generated_engines,
    get_config,
    window_means,
)
from tests.data.shared_data import shared


def write(path: Path, engines: SeriesTable, rows: int | None = None) -> None:
    """Writes engines as a file of C-MAPSS, or each one's first rows alone."""
    lines = [
        " ".join(map(str, [series.name, number + 1, *values.round(4)]))
        for series in engines.series
        for number, values in enumerate(series.values[:rows])
    ]
    path.write_text("\n".join(lines))


def config_of(root: Path) -> RemainingLifeConfig:
    config = get_config("smoke")
    config.data.dataset, config.data.root = "cmapss", str(root)
    config.validate()
    return config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns a folder with a training file."""
    (tmp_path / "all").mkdir()
    write(tmp_path / "all" / "train_FD001.txt", generated_engines())
    return tmp_path / "all"


def test_each_engine_is_in_one_part_and_its_cuts_are_measured_at_their_ends(folder: Path) -> None:
    config = config_of(folder)
    sections = config.sections()
    parts = {name: {section.series for section in found} for name, found in sections.items()}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 16
    assert {name: len(found) for name, found in parts.items()} == {
        "train": 12,
        "validation": 2,
        "test": 2,
    }
    lives = config.lives("validation")
    assert len(lives) == 2 * config.data.cuts
    engines = config.engines.series
    for number, (section, end) in enumerate(zip(sections["validation"], lives.ends, strict=True)):
        assert tuple(end) == (section.series, section.end - 1)
        assert lives.uncapped[number] == len(engines[section.series]) - section.end
    assert config.source("train")[0]["targets"][0] == pytest.approx(
        config.lives("train").lives[0] / 125
    )
    config_by_file = config_of(folder / "train_FD001.txt")
    assert config_by_file.source("test").describe() == config.source("test").describe()


def test_the_test_files_are_read_where_they_are(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(folder)
    with caplog.at_level("INFO"):
        assert len(config.lives("test")) == 4
    assert "no test_FD001.txt" in caplog.text
    assert "2 engines cut off 2 times each" in caplog.text
    # An evaluation may have the test files alone.
    alone = tmp_path / "alone"
    alone.mkdir()
    write(alone / "test_FD001.txt", generated_engines(3), rows=35)
    evaluated = config_of(alone)
    evaluated._problem = config.problem
    with pytest.raises(ValueError, match=r"received none of the name RUL_FD001\.txt"):
        evaluated.lives("test")
    (alone / "RUL_FD001.txt").write_text("20\n130\n7\n")
    with caplog.at_level("INFO"):
        lives = evaluated.lives("test")
        score = evaluated.make_scorer("test")
    assert "test: 3 engines of test_FD001.txt" in caplog.text
    assert lives.lives.tolist() == [20, 125, 7]
    assert lives.ends[:, 1].tolist() == [34] * 3
    records = [{"index": i, "predictions": [1.0]} for i in range(3)]
    found = score(records)
    assert found["rmse"] == pytest.approx(np.sqrt((105**2 + 0 + 118**2) / 3))
    assert found["rmse_uncapped"] == pytest.approx(np.sqrt((105**2 + 5**2 + 118**2) / 3))
    assert found["phm_score"] == pytest.approx(np.expm1(10.5) + np.expm1(11.8), rel=1e-6)
    assert "rmse_linear" not in found


def test_the_linear_regression_is_the_best_on_its_own_windows() -> None:
    config = get_config("smoke")
    score = config.make_scorer("train")
    train = config.source("train").source
    records = [
        {"index": i, "predictions": [float(train.lives.mean()) / 125]} for i in range(len(train))
    ]
    found = score(records)
    assert set(config.scored_metrics("train")) == set(found)
    assert found["rmse_mean"] == pytest.approx(found["rmse"], rel=1e-5)
    assert found["rmse_linear"] < found["rmse_mean"]
    first = train[0]
    count = int(first["lengths"])
    np.testing.assert_allclose(
        window_means(train)[0], [*first["inputs"][:count].mean(0), 1], rtol=1e-5, atol=1e-6
    )


def test_wrong_values_are_refused(folder: Path) -> None:
    config = get_config()
    with pytest.raises(ValueError, match=r"--config\.data\.root=FOLDER"):
        config.validate()
    config = config_of(folder)
    config.data.subset = "FD1"
    with pytest.raises(ValueError, match=r"data\.subset: unknown 'FD1'; did you mean 'FD001'"):
        config.validate()
    config.data.subset = "FD002"
    with pytest.raises(FileNotFoundError, match="train_FD002"):
        config.source("train")
    config = config_of(folder)
    config.data.validation_share = 0.95
    with pytest.raises(ValueError, match=r"data\.validation_share, data\.test_share: .*sum"):
        config.source("train")
    config = config_of(folder)
    config.data.test_share = 0.0
    with pytest.raises(ValueError, match=r"split: expected one of train, validation, received"):
        config.source("test")


def test_the_shared_engines() -> None:
    config = get_config()
    config.data.root = str(shared("cmapss"))
    sizes = {name: len({s.series for s in found}) for name, found in config.sections().items()}
    assert sizes == {"train": 75, "validation": 10, "test": 15}
    assert len(config.lives("test")) == 150
    assert len(read_engines(config.training_file).series) == 100
