"""Trainings on converted data sets: the same batches, and shards that are damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.convert import convert
from experiments import crnn_text_lines, image_captioning, image_classification
from experiments.video_classification import get_config
from tests.data.pictures import random_image
from tests.data.video_files import write_video


def make_videos(root: Path) -> Path:
    for number in range(12):
        write_video(
            root / ("Wave", "Clap")[number % 2] / f"{number}.avi", 4 + number, size=(24, 32)
        )
    return root


def configured(root: Path, make: Any = get_config) -> Any:
    config: Any = make()
    config.data.root, config.data.size = str(root), 16
    config.batch_size = 8
    config.model.encoder.frozen = False
    return config


def damage(out: Path) -> Path:
    """Changes a byte of a shard and returns it."""
    shard = sorted(out.glob("*.arrayrecord"))[1]
    packed = bytearray(shard.read_bytes())
    packed[-1] ^= 1
    shard.write_bytes(packed)
    return shard


def test_batches_of_videos_equal_those_of_files(tmp_path: Path) -> None:
    root = make_videos(tmp_path / "videos")
    convert(root, tmp_path / "out", shard_bytes=30_000)
    for split, count in (("train", 3), ("validation", 1), ("test", 1)):
        batches = []
        for folder in (root, tmp_path / "out"):
            config = configured(folder)
            config.validate()
            iterator: Any = config.make_data(split).batches()
            with iterator:
                batches.append([next(iterator) for _ in range(count)])
        for first, second in zip(*batches, strict=True):
            for name in first:
                np.testing.assert_array_equal(first[name], second[name])


def test_damaged_shards_end_a_training_or_are_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(make_videos(tmp_path / "videos"), out, shard_bytes=30_000)
    shard = damage(out)
    config = configured(out)
    with pytest.raises(
        ValueError, match=rf"data\.bad_shards: 1 shards .*{shard.name} \(wrong chec"
    ):
        config.make_data("train")
    config.data.bad_shards = "skip"
    assert len(config.files) < 12
    lines = config.describe_choices()
    assert any("of 12 files were left out with 1 shards" in line for line in lines)
    trusting = configured(out)
    trusting.data.bad_shards = "trust"
    assert len(trusting.files) == 12
    trusting.data.bad_shards = "trusting"
    with pytest.raises(ValueError, match=r"data\.bad_shards: expected fail, .*'trusting'.*'trust'"):
        trusting.validate()


def test_images_captions_and_lines_of_shards(tmp_path: Path) -> None:
    for number in range(12):
        for kind, folder, width in (
            ("images", "ab"[number % 2], 9),
            ("captions", "", 9),
            ("lines", "", 80),
        ):
            path = tmp_path / kind / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random_image(12, width, number)).save(path)
            if kind != "images":
                path.with_suffix(".txt").write_text(f"text {number}")
    for kind in ("images", "captions", "lines"):
        convert(tmp_path / kind, tmp_path / f"{kind}_out", shard_bytes=2_000)
    both = [tmp_path / "images", tmp_path / "images_out"]
    images = [configured(root, image_classification.get_config) for root in both]
    batches = []
    for config in images:
        iterator: Any = config.make_data("train").batches()
        with iterator:
            batches.append(next(iterator))
    np.testing.assert_array_equal(batches[0]["video"], batches[1]["video"])

    captions: list[Any] = [image_captioning.get_config() for _ in range(2)]
    lines: list[Any] = [crnn_text_lines.get_config() for _ in range(2)]
    for index, end in enumerate(("", "_out")):
        captions[index].data.root = str(tmp_path / f"captions{end}")
        lines[index].data.dataset, lines[index].data.root = "files", str(tmp_path / f"lines{end}")
    first, second = (config.data.read("train") for config in captions)
    assert first.captions == second.captions
    assert first.digest == second.digest
    np.testing.assert_array_equal(first.inputs[1]["image"], second.inputs[1]["image"])
    one, other = (config.lines for config in lines)
    assert (one.names, one.splits, one.texts) == (other.names, other.splits, other.texts)

    for config, kind in ((captions[1], "captions"), (lines[1], "lines")):
        damage(tmp_path / f"{kind}_out")
        image_captioning._list_images.cache_clear()
        config._lines = None
        with pytest.raises(ValueError, match="1 shards are not as they were written"):
            _ = config.data.listed if kind == "captions" else config.lines
        config.data.bad_shards = "skip"
        names = (config.data.listed if kind == "captions" else config.lines).names
        assert 0 < len(names) < 12
