"""C-MAPSS: remaining life, cut engines, windows."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from data.datasets.cmapss import (
    RemainingLife,
    cut_engines,
    read_engines,
    read_remaining_lives,
    remaining_life,
)
from data.series.splits import split_by_group
from data.series.tables import Section, SeriesTable
from data.series.windows import fit_scaling
from tests.data.shared_data import shared


def write(folder: Path, *lives: int, name: str = "train.txt") -> Path:
    rows = [
        f"{engine} {cycle} " + " ".join(f"{engine * 1000 + cycle + j}" for j in range(24)) + "  "
        for engine, life in enumerate(lives, 1)
        for cycle in range(1, life + 1)
    ]
    path = folder / name
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def engines(tmp_path: Path) -> SeriesTable:
    return read_engines(write(tmp_path, 50, 40, 200))


def test_engines(engines: SeriesTable) -> None:
    assert [(s.name, len(s)) for s in engines.series] == [("1", 50), ("2", 40), ("3", 200)]
    assert engines.channels[0] == "setting_1"
    assert engines.channels[-1] == "sensor_21"
    life = remaining_life(engines.series[2])
    assert life[:76].tolist() == [125] * 75 + [124]
    assert life[-1] == 0
    assert remaining_life(engines.series[2], 0)[0] == 199
    assert remaining_life(engines.series[1], 125, after=10)[-1] == 10


def test_windows(engines: SeriesTable) -> None:
    source = RemainingLife(engines, engines.whole(), window=30, channels=["sensor_2"])
    assert len(source) == 290
    number = 0
    for series in engines.series:
        for cycle in range(len(series)):
            example = source[number]
            length = min(cycle + 1, 30)
            assert example["lengths"] == length
            expected = series.values[cycle + 1 - length : cycle + 1, [4]]
            np.testing.assert_array_equal(example["inputs"][:length], expected)
            assert not example["inputs"][length:].any()
            assert example["targets"].tolist() == [min(125, len(series) - 1 - cycle)]
            number += 1
    assert repr(pickle.loads(pickle.dumps(source))) == repr(source)


def test_cut_engines(engines: SeriesTable) -> None:
    whole = engines.whole()
    cuts = [cut_engines(engines, whole, seed=seed) for seed in range(200)]
    for cut in cuts:
        for section, series in zip(cut, engines.series, strict=True):
            assert section.begin == 0
            assert 31 <= section.end < len(series)
    assert {cut[1].end for cut in cuts} == set(range(31, 40))
    assert cut_engines(engines, whole, seed=3) == cuts[3]
    # Of each engine alone: others beside it change nothing.
    assert cut_engines(engines, whole[1:], seed=3) == cuts[3][1:]
    source = RemainingLife(engines, cuts[0], last_only=True, cap=0)
    assert len(source) == 3
    for index, section in enumerate(cuts[0]):
        life = len(engines.series[index]) - section.end
        assert source[index]["targets"].tolist() == [life]
        assert life >= 1
        last = source[index]["inputs"][source[index]["lengths"] - 1]
        np.testing.assert_array_equal(last, engines.series[index].values[section.end - 1])


def test_lives_of_the_test_engines(tmp_path: Path, engines: SeriesTable) -> None:
    path = tmp_path / "RUL.txt"
    path.write_text("12 \n98\n200\n")
    lives = read_remaining_lives(path, engines)
    source = RemainingLife(engines, engines.whole(), after=lives, last_only=True)
    assert source.lives.tolist() == [12, 98, 125]
    path.write_text("12\n98\n")
    with pytest.raises(ValueError, match="expected a line for each of the 3 engines, received 2"):
        read_remaining_lives(path, engines)
    path.write_text("12\nx\n3\n")
    with pytest.raises(ValueError, match="line 2: expected a number of cycles, received 'x'"):
        read_remaining_lives(path, engines)


def test_wrong_arguments(tmp_path: Path, engines: SeriesTable) -> None:
    with pytest.raises(ValueError, match="expected whole engines of more than shortest = 45 cycl"):
        cut_engines(engines, engines.whole(), shortest=45)
    with pytest.raises(ValueError, match="received cycles 0 to 35 of the 50 of engine 1"):
        cut_engines(engines, (Section(0, 0, 35),))
    with pytest.raises(ValueError, match=r"did you mean 'sensor_2'\?"):
        RemainingLife(engines, engines.whole(), channels=["sensor2"])
    with pytest.raises(ValueError, match="window, cap: expected at least 1 and 0"):
        RemainingLife(engines, engines.whole(), window=0)
    with pytest.raises(ValueError, match="sections: expected at least one"):
        RemainingLife(engines, ())
    with pytest.raises(ValueError, match="after: expected the cycles after each of the 3 engines"):
        RemainingLife(engines, engines.whole(), after=np.zeros(2))
    text = write(tmp_path, 5).read_text().splitlines()
    path = tmp_path / "b.txt"
    path.write_text("\n".join([*text[:3], text[4], *text[:1]]))
    with pytest.raises(ValueError, match=r"line 5, column 'cycle': expected a time after 5"):
        read_engines(path)
    path.write_text("\n".join(line.rsplit(maxsplit=1)[0] for line in text))
    with pytest.raises(ValueError, match="names: expected one for each of the 25 columns"):
        read_engines(path)


def test_the_shared_engines() -> None:
    engines = read_engines(shared("cmapss/train_FD001.txt"))
    lengths = [len(series) for series in engines.series]
    assert (len(lengths), sum(lengths), min(lengths), max(lengths)) == (100, 20_631, 128, 362)
    splits = split_by_group(engines, validation_share=0.2, test_share=0)
    scaling = fit_scaling(engines, splits["train"])
    # Columns 5, 6, 10, 15, 21, 23 and 24, counted from 1 with engine and cycle, never change.
    assert [c + 3 for c in scaling.constant] == [5, 6, 10, 15, 21, 23, 24]
    train = RemainingLife(engines, splits["train"], scaling=scaling)
    assert len(train) == sum(s.end for s in splits["train"])
    assert np.isfinite(train[100]["inputs"]).all()
    development = RemainingLife(
        engines, cut_engines(engines, splits["validation"]), scaling=scaling, last_only=True
    )
    assert len(development) == 20
    assert (development.lives >= 1).all()
