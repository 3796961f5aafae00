"""Classification of files of one's own: what one command does, and what the workdir keeps."""

import logging
import shutil
from pathlib import Path
from typing import Any

import av
import jax
import numpy as np
import pytest
from PIL import Image

from data.datasets.list_file import read_list
from experiments import image_classification, video_classification
from experiments.classification.config import FileClassification
from flaxnets.encoders.config import EncoderConfig
from flaxnets.inference import trained_model
from flaxnets.inference.trained_model import TrainedModel, read_predictions
from flaxnets.training.loop import train
from flaxnets.training.parallel import DataParallel
from flaxnets.training.workdir import Workdir, WorkdirError
from tests.data.pictures import random_image
from tests.data.video_files import write_video


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> DataParallel:
    strategy = DataParallel(jax.devices()[:1])
    monkeypatch.setattr(trained_model, "DataParallel", lambda: strategy)
    return strategy


def small(config: Any, root: Path, tmp_path: Path) -> Any:
    """Returns the experiment with a small encoder of random weights, for a few steps."""
    config.data.root, config.data.cache = str(root), str(tmp_path / "cache")
    config.data.size = 16
    config.batch_size, config.num_steps, config.eval_every, config.log_every = 8, 4, 2, 1
    config.checkpoint_every = 2
    config.optimizer.warmup_steps = 0
    config.model.encoder = EncoderConfig("small_cnn", features=(4, 8), strides=(2, 2), frozen=True)
    if isinstance(config, video_classification.VideoClassificationConfig):
        config.data.stored_steps, config.data.num_steps = 4, 2
        config.model.projection_features = 4
        config.model.recurrent.features = config.model.recurrent.input_features = 4
    return config


def train_in(
    folder: Path, config: FileClassification, strategy: DataParallel, **options: Any
) -> Any:
    with Workdir(folder) as workdir:
        workdir.claim("experiments/own.py", config)
        return train(config, workdir, strategy=strategy, show_progress=False, **options)


def messy_videos(root: Path) -> Path:
    """Writes three classes of videos as people have them."""
    write_video(root / "Wave" / "Übung 1.MP4", 9, size=(32, 48), codec="libx264")
    write_video(root / "Wave" / "b.AVI", 5, size=(48, 32), rate=10)
    write_video(root / "Wave" / "c.mkv", 20, size=(24, 24), rate=50, codec="ffv1")
    write_video(root / "Clap" / "deep" / "b.AVI", 7, rate=15, codec="mjpeg", pixels="yuvj420p")
    write_video(root / "Clap" / "日本.webm", 6, codec="libvpx")
    write_video(root / "Clap" / "one.avi", 1)
    write_video(root / "Alone" / "only.avi", 4)
    plain = write_video(root / "plain.mp4", 8, codec="libx264")
    with av.open(str(plain)) as reads, av.open(str(root / "Wave" / "phone.mov"), "w") as writes:
        stream = reads.streams.video[0]
        copy: Any = writes.add_stream_from_template(stream)
        copy.set_display_rotation(90)
        for packet in reads.demux(stream):
            if packet.size:
                packet.stream = copy
                writes.mux(packet)
    plain.unlink()
    shutil.copy(root / "Wave" / "b.AVI", root / "Wave" / "copy of b.avi")
    (root / "Clap" / "empty.mp4").touch()
    (root / "Clap" / "._b.AVI").write_bytes(b"litter")
    (root / ".DS_Store").write_bytes(b"litter")
    (root / "Clap" / "notes.txt").write_text("litter")
    return root


@pytest.mark.slow
def test_videos_from_folder_to_prediction(
    tmp_path: Path, one_device: DataParallel, caplog: pytest.LogCaptureFixture
) -> None:
    root, folder = messy_videos(tmp_path / "videos"), tmp_path / "run"
    make = video_classification.get_config
    config: Any = small(make(), root, tmp_path)
    with caplog.at_level(logging.INFO):
        # Stopped after its first evaluation, as a run that is killed.
        train_in(folder, config, one_device, on_evaluation=lambda step, metrics: True)
    said = caplog.text
    assert "9 videos of 3 classes" in said
    assert "1 empty files" in said
    assert "1 classes have one video: Alone" in said
    assert "python -m launch.predict --workdir=" in said
    split = (folder / "split.csv").read_text()
    rows = {row.path: row.split for row in read_list(folder / "split.csv", ())}
    assert rows["Alone/only.avi"] == "train"
    assert rows["Wave/b.AVI"] == rows["Wave/copy of b.avi"]

    # A video that comes later is no part of the run, and neither is another seed's split.
    write_video(root / "Clap" / "new.avi", 5)
    moved = root.rename(tmp_path / "moved")
    again: Any = small(make(), moved, tmp_path)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert train_in(folder, again, one_device).step == 4
    assert "1 files of the data are not in the split of this run" in caplog.text
    assert "Clap/new.avi; a new --workdir splits all anew" in caplog.text
    assert (folder / "split.csv").read_text() == split

    trained: Any = small(make(), moved, tmp_path)
    model = TrainedModel(trained, Workdir(folder))
    assert model.evaluate("test")["examples"] == sum(side == "test" for side in rows.values())
    predictions = read_predictions(Workdir(folder).predictions("test"))
    frames = trained.load_clip("test", 0)
    assert frames.dtype == np.uint8
    assert frames.ndim == 4

    # Prediction needs no data of the training, and equals what evaluation found.
    paths = [trained.select("test").paths[0], str(moved / "Clap" / "notes.txt")]
    shutil.copy(paths[0], tmp_path / "elsewhere.avi")
    expected = predictions[0]["probabilities"]
    shutil.rmtree(moved)
    alone: Any = small(make(), moved, tmp_path)
    found = TrainedModel(alone, Workdir(folder))
    records = {r["index"]: r for r in found.predict([str(tmp_path / "elsewhere.avi"), paths[1]])}
    assert found.class_names == ("Alone", "Clap", "Wave")
    # Cached features are rounded to float16.
    np.testing.assert_allclose(records[0]["probabilities"], expected, atol=1e-3)
    assert "error" in records[1]
    with pytest.raises(FileNotFoundError, match=r"--config.data.root=FOLDER"):
        TrainedModel(small(make(), tmp_path, tmp_path), Workdir(folder)).evaluate("test")


@pytest.mark.slow
def test_images_from_list_to_prediction(tmp_path: Path, one_device: DataParallel) -> None:
    root, folder = tmp_path / "images", tmp_path / "run"
    lines = ["image,class"]
    for k in range(12):
        name = f"{k}.{'JPG' if k % 2 else 'png'}"
        root.mkdir(exist_ok=True)
        Image.fromarray(random_image(20, 14 + k, seed=k)).save(root / name)
        lines.append(f"{name},{'odd' if k % 2 else 'even'}")
    (root / "list.csv").write_text("\n".join(lines))
    config: Any = small(image_classification.get_config(), root, tmp_path)
    config.data.root, config.data.list = "", str(root / "list.csv")
    train_in(folder, config, one_device)
    model = TrainedModel(config, Workdir(folder))
    metrics = model.evaluate("test")
    assert metrics["examples"] == len(config.select("test"))
    (expected, *_) = read_predictions(Workdir(folder).predictions("test"))
    (record,) = model.predict([config.select("test").paths[0]])
    np.testing.assert_allclose(record["probabilities"], expected["probabilities"], atol=1e-3)
    assert config.load_clip("test", 0).shape[0] == 1


def test_fine_tuning_reads_pixels(tmp_path: Path) -> None:
    root = messy_videos(tmp_path / "videos")
    config: Any = small(video_classification.get_config(), root, tmp_path)
    config.model.encoder.frozen = False
    config.validate()
    batch = next(config.make_data("train").batches())
    assert batch["video"].shape[1:] == (2, 16, 16, 3)
    test = next(config.make_data("test").batches())
    assert test["video"].shape[1:] == (2, 2, 16, 16, 3)  # two views
    for k in range(8):
        path = tmp_path / "images" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_image(20, 30, seed=k)).save(path)
    images: Any = small(image_classification.get_config(), tmp_path / "images", tmp_path)
    images.model.encoder.frozen = False
    images.validate()
    assert next(images.make_data("train").batches())["video"].shape[1:] == (1, 16, 16, 3)


def test_folds_and_unknown_splits(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    for name in "ab":
        for number in range(4):
            write_video(root / name / f"{number}.avi", 4 + number, size=(16, 16))
    config: Any = small(video_classification.get_config(), root, tmp_path)
    with pytest.raises(ValueError, match="received 'eval'"):
        config.select("eval")
    config.set_fold(2)
    config.data.num_folds = 4
    folds = config.files
    assert sum(side == "test" for side in folds.splits) == 2
    config.set_fold(9)
    with pytest.raises(ValueError, match="expected 1 to num_folds = 4, or 0, received 9"):
        _ = config.files


BAD = {
    "no root": (lambda config: setattr(config.data, "root", ""), r"data.root: expected a folder"),
    "stored steps": (lambda config: setattr(config.data, "stored_steps", 1), "data.stored_steps"),
    "dataset": (lambda config: setattr(config.data, "dataset", "file"), "did you mean 'files'"),
    "cell on maps": (lambda config: setattr(config.model.recurrent, "cell", "convlstm"), "vectors"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_values(tmp_path: Path, change: Any, message: str) -> None:
    config: Any = small(video_classification.get_config(), tmp_path, tmp_path)
    change(config)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_bad_images_and_variants(tmp_path: Path) -> None:
    config: Any = small(image_classification.get_config(), tmp_path, tmp_path)
    config.model.recurrent.cell = "lstm"
    with pytest.raises(ValueError, match=r"model.recurrent.cell: expected 'none'"):
        config.validate()
    for module in (image_classification, video_classification):
        with pytest.raises(ValueError, match="no such variant"):
            module.get_config("smok")


def test_the_known_classes_stay(tmp_path: Path) -> None:
    # A workdir that was claimed but has not begun makes its split anew.
    config: Any = small(video_classification.get_config(), tmp_path, tmp_path)
    (tmp_path / "split.csv").write_text("path,label\n")
    config.resume_assets(tmp_path)
    assert config._split_file is None
    with pytest.raises((FileNotFoundError, WorkdirError)):
        config.load_assets(tmp_path)
