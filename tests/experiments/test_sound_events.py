"""Classification of sounds: folds, files of one's own, ablations, bad input."""

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import flaxnets.inference
from experiments.sound_events import SoundEventsConfig, get_config
from flaxnets.training.parallel import DataParallel
from flaxnets.training.workdir import Workdir
from tests.data.audio.tones import tone
from tests.data.audio.wavs import write_wav
from tests.experiments import grid

ESC10 = Path(__file__).parents[2].parent / "shared" / "data" / "esc10" / "esc10.csv"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two classes of three recordings of other lengths in each of three folds."""
    rows = ["file,label,fold"]
    for number in range(18):
        label, fold = "ab"[number % 2], number // 6 + 1
        name = f"{label}/{number}.wav"
        seconds = 0.2 + 0.05 * number
        write_wav(tmp_path / name, tone(300 + 20 * number, seconds, 16_000), 16_000)
        rows.append(f"{name},{label},{fold}")
    (tmp_path / "sounds.csv").write_text("\n".join(rows))
    return tmp_path / "sounds.csv"


def small(variant: str, table: Path | str, **data: Any) -> SoundEventsConfig:
    config = get_config(variant)
    config.data.list = str(table)
    config.data.seconds, config.batch_size = 0.5, 8
    for name, value in data.items():
        setattr(config.data, name, value)
    return config


def indices(config: SoundEventsConfig, split: str) -> set[str]:
    return set(config.select(split).names)


def test_each_fold_is_tested_once_and_trains_no_network_that_is_tested_on_it(table: Path) -> None:
    tested: Counter[str] = Counter()
    for fold in (1, 2, 3):
        config = small("esc10", table)
        config.set_fold(fold)
        config.validate()
        assert len(indices(config, "train")) == 12
        assert not indices(config, "train") & indices(config, "test")
        with pytest.raises(ValueError, match="which has none"):
            config.select("validation")
        tested.update(indices(config, "test"))
    assert len(tested) == 18
    assert set(tested.values()) == {1}
    config = small("esc10", table, validation_fold=3)
    config.set_fold(1)
    config.eval_split = "validation"
    sides = [indices(config, split) for split in ("train", "validation", "test")]
    assert [len(side) for side in sides] == [6, 6, 6]
    assert len(set().union(*sides)) == 18


def test_batches_are_windows_of_one_length(table: Path) -> None:
    config = small("folder", table, test_windows=2)
    train = grid.first_batch(config)
    assert train["spectrogram"].shape == (8, 26, 64)
    for row, length in zip(train["spectrogram"], train["lengths"], strict=True):
        assert row[: length - 1].any()
        assert not row[length:].any()
    with config.make_data("test").batches() as batches:
        test = next(batches)
    assert test["spectrogram"].shape == (8, 2, 26, 64)
    assert test["lengths"].shape == (8, 2)
    assert test["label"][test["mask"]].tolist() == list(config.select("test").labels)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (("recurrent.cell=none",), 8),
        (("encoder.name=raw_columns", "head.pool=attention"), 63),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_each_part_alone(flags: tuple[str, ...], steps: int) -> None:
    config = grid.parse("sound_events.py:smoke", *(f"--config.model.{flag}" for flag in flags))
    model, batch = config.make_model(), grid.first_batch(config)
    assert model.steps(np.array([63])).tolist() == [steps]
    losses, moved = grid.train_two_steps(config, batch)
    assert np.isfinite(losses).all()
    assert all(value > 0 for value in jax.tree.leaves(moved["classifier"]))
    assert ("recurrent" in moved) == ("cell=none" not in flags[0])


@pytest.mark.slow
def test_a_trained_model_reads_files(table: Path, tmp_path: Path) -> None:
    from flaxnets.inference.trained_model import TrainedModel
    from flaxnets.training.loop import train

    config = small("folder", table)
    config.num_steps = config.eval_every = 2
    config.optimizer.warmup_steps = 0
    config.model.encoder.features, config.model.recurrent.features = (4, 4, 4), 4
    strategy = DataParallel(jax.devices()[:1])
    with Workdir(tmp_path / "run") as workdir:
        workdir.claim("sound_events.py", config)
        train(config, workdir, strategy=strategy, show_progress=False)
    files = [str(table.parent / "a/0.wav"), str(table), str(table.parent / "b/17.wav")]
    found = list(TrainedModel(config, Workdir(tmp_path / "run")).predict(files))
    loaded: Any = flaxnets.load(tmp_path / "run")
    used = list(loaded.predict_each(files))
    assert isinstance(used[1], flaxnets.inference.MediaError)
    assert sorted(record["index"] for record in found) == [0, 1, 2]
    for record in found:
        if record["index"] == 1:
            assert "its sound is not readable" in record["error"]
        else:
            assert sum(record["probabilities"]) == pytest.approx(1, abs=1e-4)
            own = used[record["index"]].probabilities
            np.testing.assert_allclose(own, record["probabilities"], atol=1e-5)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_longer_recordings_than_a_flag_says_are_left_out(table: Path) -> None:
    flags = (f"--config.data.list={table}", "--config.data.max_seconds=0.5")
    config = grid.parse("sound_events.py", *flags)
    # The recordings last 0.2 to 1.05 s.
    source = config._source([str(table.parent / name) for name in ("a/0.wav", "b/17.wav")])
    assert [bool(source[index]["mask"]) for index in (0, 1)] == [True, False]
    assert "expected at most 0.5 s, received 1.1 s" in source.explain(1)
    assert config.describe_inference()["preprocessing"]["max_seconds"] == 0.5


def test_what_does_not_fit_is_refused(table: Path) -> None:
    with pytest.raises(ValueError, match="sound_events:esc1: no such variant; did you mean"):
        get_config("esc1")
    with pytest.raises(ValueError, match=r"data.root: expected a folder with a folder of record"):
        get_config().validate()
    for change, message in (
        (lambda c: setattr(c.model.head, "pool", "none"), "model.head.pool: expected a pooling"),
        (lambda c: setattr(c.model.encoder, "frozen", True), "model.encoder.frozen: expected Fal"),
        (lambda c: setattr(c.data, "seconds", 0.0), "data.seconds: expected more than 0 s"),
        (lambda c: setattr(c.data, "max_seconds", 0.0), "data.max_seconds: expected more than"),
        (lambda c: setattr(c.data, "normalisation", "x"), "normalisation: expected one of"),
        (lambda c: setattr(c.augmentation, "speed", 2.0), "speed: expected 0 to 0.5"),
        (lambda c: setattr(c.data, "dataset", "moving_shapes"), "data.dataset: unknown"),
    ):
        config = small("folder", table)
        change(config)
        with pytest.raises(ValueError, match=message):
            config.validate()
    config = small("esc10", table, fold=2, validation_fold=2)
    with pytest.raises(ValueError, match="validation_fold: expected another fold than fold = 2"):
        config.select("train")


@pytest.mark.skipif(not ESC10.is_file(), reason=f"{ESC10} is not there")
def test_esc10() -> None:
    config = get_config("esc10")
    config.data.list = str(ESC10)
    assert len(config.class_names) == 10
    loader = config.make_data("test")
    assert loader.num_examples == 80
    with loader.batches() as batches:
        batch = next(batches)
    assert batch["spectrogram"].shape == (16, 3, 251, 64)
    assert batch["mask"].all()


def test_a_report_shows_the_spectrogram_of_a_recording(table: Path) -> None:
    config = small("esc10", table)
    names = config.select("test").names
    clip = config.load_clip("test", 1)
    seconds = 0.2 + 0.05 * int(Path(names[1]).stem)
    assert clip.shape[::3] == (1, 3)
    assert abs(clip.shape[2] - 120 * seconds) <= 120 * 0.02
    assert clip.dtype == np.uint8
    assert config.unit == "recording"
    (table.parent / names[0]).write_bytes(b"no sound")
    with pytest.raises(ValueError, match=names[0]):
        config.load_clip("test", 0)
    assert get_config("smoke").load_clip("test", 3).shape[::3] == (1, 3)
