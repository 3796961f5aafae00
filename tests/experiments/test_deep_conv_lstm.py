"""DeepConvLSTM: the published network, its parts alone, sequences and labelled rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import series
from experiments.deep_conv_lstm import get_config
from experiments.results.sequence_table import count_parameters

STEPS = 72


def test_the_network_is_the_published_one() -> None:
    convolutions = 5 * 64 + 64 + 3 * (5 * 64 * 64 + 64)
    recurrent = 4 * 128 * (6 * 64 + 128 + 1) + 4 * 128 * (128 + 128 + 1)
    both = get_config("basic_motions")
    assert count_parameters("basic_motions", both) == convolutions + recurrent + 129 * 4
    dense = (6 * 64 + 1) * 128
    cnn = get_config("basic_motions,cnn")
    assert count_parameters("basic_motions", cnn) == convolutions + dense + 129 * 4
    alone = 4 * 128 * (6 + 128 + 1) + 4 * 128 * (128 + 128 + 1)
    rnn = get_config("basic_motions,rnn")
    assert count_parameters("basic_motions", rnn) == alone + 129 * 4


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("basicmotions", "did you mean 'basic_motions'"),
        ("csv,cnnn", "did you mean 'cnn'"),
    ],
)
def test_unknown_variants_are_refused(variant: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_config(variant)


def test_validation_is_held_out_of_the_training_series(tmp_path: Path) -> None:
    for split, labels in (("TRAIN", "aaaaabbbbb"), ("TEST", "ab")):
        rows = [f"{number},{number + 1},{len(split)}:{c}" for number, c in enumerate(labels)]
        header = "@problemName Two\n@univariate true\n@classLabel true a b\n@data\n"
        (tmp_path / f"Two_{split}.ts").write_text(header + "\n".join(rows) + "\n")
    config = get_config("folder,rnn")
    config.data.root = str(tmp_path)
    config.validate()
    assert config.class_names == ("a", "b")
    sizes = [len(config.source(split)) for split in ("train", "validation", "test")]
    assert sizes == [8, 2, 2]
    # Mean 0 and deviation 1 of the training part alone.
    values = np.concatenate([config.source("train")[i]["inputs"] for i in range(8)])
    np.testing.assert_allclose(values.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(values.std(), 1, atol=1e-6)


def test_targets_and_sequences_are_smoothed_and_mixed_by_flag() -> None:
    config = get_config("smoke")
    config.label_smoothing, config.mixup = 0.1, 0.4
    config.validate()
    task: Any = config.make_task()
    assert (task.label_smoothing, task.mixup, task.inputs) == (0.1, 0.4, ("inputs",))
    for field, value in (
        ("label_smoothing", 1.0),
        ("mixup", -0.1),
        ("mixup", float("inf")),
    ):
        wrong = get_config("smoke")
        setattr(wrong, field, value)
        with pytest.raises(ValueError, match=rf"{field}: expected .*, received {value}"):
            wrong.validate()
    for field in ("label_smoothing", "mixup"):
        forecast = series.get_config("smoke")
        setattr(forecast, field, 0.5)
        with pytest.raises(ValueError, match=rf"{field}: expected 0.*, received 0.5"):
            forecast.make_task()


def test_windows_of_labelled_rows_overlap_by_half(tmp_path: Path) -> None:
    path = tmp_path / "sensors.csv"
    lines = ["recording,x,y,activity"]
    for recording in range(8):
        lines += [
            f"{recording},{step},{step % 3},{'walk' if step > 40 else 'stand'}"
            for step in range(STEPS)
        ]
    path.write_text("\n".join(lines) + "\n")
    config = get_config("csv")
    data = config.data
    data.list, data.label, data.group, data.split_by = str(path), "activity", "recording", "group"
    config.validate()
    assert config.class_names == ("stand", "walk")
    windows = config.source("test")
    # Ends at steps 23, 35, 47, 59 and 71 of each recording.
    assert len(windows) % 5 == 0
    assert windows[0]["inputs"].shape == (24, 2)
    assert [int(windows[i]["label"]) for i in range(5)] == [0, 0, 1, 1, 1]
    assert (config.model.head.pool, config.make_model().stride) == ("last", 1)
