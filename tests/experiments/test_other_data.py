"""Data that a trained model is evaluated on: the run's, moved, or others."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.classification.other_data import Given, place
from experiments.crnn_text_lines import get_config
from experiments.transcription.config import write_lines

RUN = {"a.png": "train", "b.png": "validation", "c.png": "test"}


@pytest.mark.parametrize(
    ("matched", "given", "positions", "splits"),
    [
        (["a.png", None, "c.png"], Given(), [0, 2], ("train", "test")),
        (["a.png", "b.png", "c.png", None], Given(root=True), [0, 1, 2], tuple(RUN.values())),
        ([None, None], Given(root=True), [0, 1], ("test", "test")),
        (["a.png", None], Given(list=True), [0, 1], ("train", "test")),
        (["c.png"], Given(list=True), [0], ("test",)),
    ],
)
def test_no_training_file_is_tested(
    matched: Any, given: Given, positions: Any, splits: Any
) -> None:
    placed = place(matched, ("",) * len(matched), RUN, given, "lines")
    assert (placed.positions, placed.splits) == (positions, splits)


def write_folder(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for number, (name, text) in enumerate(texts.items()):
        Image.fromarray(np.full((16, 60), 255 - number, np.uint8)).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(text)


def trained(folder: Path, **data: str) -> Any:
    """Returns the configuration of an evaluation of a run of ten lines."""
    run = folder / "run"
    if not run.exists():
        write_folder(folder / "mine", {f"{i}.png": f"line {i}" for i in range(10)})
        config = get_config()
        config.data.root = str(folder / "mine")
        run.mkdir()
        (run / "config.json").write_text(
            json.dumps({"experiment": "", "config": {"data": {"root": config.data.root}}})
        )
        (run / "alphabet.json").write_text(json.dumps(config.alphabet.to_json()))
        write_lines(run / "split.csv", config.lines)
    config = get_config()
    config.data.root = str(folder / "mine")
    for name, value in data.items():
        setattr(config.data, name, value)
    config.load_assets(run)
    return config


def run_split(folder: Path, split: str) -> list[str]:
    with (folder / "run" / "split.csv").open(encoding="utf-8") as file:
        return [row["file"] for row in csv.DictReader(file) if row["split"] == split]


def test_the_runs_own_lines_keep_their_split_wherever_they_are(tmp_path: Path) -> None:
    own = trained(tmp_path)
    test = sorted(run_split(tmp_path, "test"))
    assert sorted(own.lines.select("test").names) == test
    (tmp_path / "mine").rename(tmp_path / "moved")
    moved = trained(tmp_path, root=str(tmp_path / "moved"))
    assert sorted(moved.lines.select("test").names) == test
    above = trained(tmp_path, root=str(tmp_path))  # The same lines as "moved/…".
    assert sorted(above.lines.select("test").names) == test
    (tmp_path / "moved" / test[0]).unlink()
    with pytest.raises(FileNotFoundError, match=test[0]):
        _ = trained(tmp_path, root=str(tmp_path / "moved")).lines


def test_other_lines_are_tested(tmp_path: Path) -> None:
    trained(tmp_path)
    write_folder(tmp_path / "held", {f"{i}.png": f"another {i}" for i in range(3)})
    # Names as those of the run, other texts.
    other = trained(tmp_path, root=str(tmp_path / "held"))
    assert other.texts("test") == ["another 0", "another 1", "another 2"]
    table = tmp_path / "held" / "list.csv"
    table.write_text("file,text\n0.png,another 0\n2.png,another 2\n")
    listed = trained(tmp_path, list=str(table))
    assert listed.texts("test") == ["another 0", "another 2"]
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        _ = trained(tmp_path, list=str(tmp_path / "gone.csv")).lines


def test_a_list_of_run_and_new_lines_tests_no_training_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path)
    write_folder(tmp_path / "held", {"new.png": "a new line"})
    training = run_split(tmp_path, "train")[0]
    table = tmp_path / "both.csv"
    number = training.removesuffix(".png")
    table.write_text(f"file,text\nmine/{training},line {number}\nheld/new.png,a new line\n")
    caplog.set_level("INFO")
    config = trained(tmp_path, list=str(table))
    assert config.texts("test") == ["a new line"]
    assert config.texts("train") == [f"line {number}"]
    assert "1 of 2 lines are the run's and keep their split, 1 of them trained" in caplog.text


def test_changed_texts_are_told_and_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path)
    name = run_split(tmp_path, "test")[0]
    (tmp_path / "mine" / name).with_suffix(".txt").write_text("corrected")
    caplog.set_level("INFO")
    table = tmp_path / "mine.csv"
    rows = [f"mine/{i}.png,{'corrected' if f'{i}.png' == name else f'line {i}'}" for i in range(10)]
    table.write_text("file,text\n" + "\n".join(rows) + "\n")
    config = trained(tmp_path, list=str(table))
    assert "corrected" in config.texts("test")
    assert "1 texts differ from those of the run" in caplog.text
