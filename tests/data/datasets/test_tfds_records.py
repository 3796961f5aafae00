"""Data sets that TFDS has prepared, read by their keys without TensorFlow."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data.captions.images import read_image
from data.datasets.splits import make_split, read_split_file, write_split
from data.datasets.tfds_records import (
    TfdsConfig,
    prepare_command,
    read_captioned_records,
    read_labelled_records,
    read_sequence_records,
)
from data.features import digest_file
from data.moving_shapes.source import MovingShapes as MovingShapesSource
from data.tfds_builders.moving_shapes import MovingShapes, MovingShapesConfig
from data.video import decode, probe
from experiments import image_captioning, series
from experiments.video_classification import get_config
from tests.data.pictures import random_image
from tests.data.video_files import write_video

ROOT = Path(__file__).parents[3]
COUNT = 6
SIZES = {"train": 6, "validation": 2, "test": 2}
WITH_TENSORFLOW = Path(os.environ.get("TFDS_PYTHON", ROOT.parent / "venvs/tfds/bin/python"))
"""Python of an environment with tensorflow-cpu and tensorflow-datasets, for the stress test."""


class Things(tfds.core.GeneratorBasedBuilder):
    """Builder with a feature of each kind that can be written without TensorFlow."""

    VERSION = tfds.core.Version("1.10.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("one", "two")]  # noqa: RUF012
    code_path = None

    def __init__(self, *, folder: Path, **arguments: Any):
        self.folder = folder
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "file": features.Tensor(shape=(), dtype=np.object_),
                    "grey": features.Tensor(shape=(None, 6, 8, 1), dtype=np.uint8),
                    "image": features.Image(encoding_format="png"),
                    "image/id": np.int64,
                    "pixels": features.Tensor(shape=(6, 8, 3), dtype=np.uint8),
                    "captions": features.Sequence({"text": np.str_, "id": np.int64}),
                    "sequence": features.Tensor(shape=(None, 2), dtype=np.float32),
                    "tones": features.Sequence({"pitch": np.float64}),
                    "twice": features.Tensor(shape=(None,), dtype=np.int64),
                    "meta": features.FeaturesDict({"kind": np.str_, "person": np.int64}),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {
            "train": self._generate_examples(range(COUNT)),
            "extra": self._generate_examples([9]),
        }

    def _generate_examples(self, numbers: Any) -> Iterator[tuple[int, dict]]:
        for number in numbers:
            yield number, things(self.folder, number)


def things(folder: Path, number: int) -> dict[str, Any]:
    video = write_video(folder / f"{number}.avi", 5 + number)
    image = folder / f"{number}.png"
    Image.fromarray(random_image(9, 7, number)).save(image)
    return {
        "file": video.read_bytes(),
        "grey": random_image(6 * (number + 2), 8, number)[..., :1].reshape(-1, 6, 8, 1),
        "image": str(image),
        "image/id": 100 + number,
        "pixels": random_image(6, 8, number),
        "captions": [{"text": f" thing {number} ", "id": 1}, {"text": "", "id": 2}],
        "sequence": np.arange(2 * number + 2, dtype=np.float32).reshape(-1, 2),
        "tones": {"pitch": np.arange(number + 1) * 10.0},
        "twice": np.arange(2 * number + 2),
        "meta": {"kind": "ab"[number % 2], "person": number // 2},
    }


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    config = MovingShapesConfig(
        name="tiny", seed=7, **{f"{split}_examples": size for split, size in SIZES.items()}
    )
    MovingShapes(data_dir=folder, config=config).download_and_prepare(file_format="array_record")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("things")
    builder = Things(folder=tmp_path_factory.mktemp("files"), data_dir=folder, config="one")
    builder.download_and_prepare(file_format="array_record")
    return folder


def keys(**changes: Any) -> TfdsConfig:
    return TfdsConfig(**{"builder": "things", "video": "file", "label": "meta/kind", **changes})


def test_videos_of_a_tensor_with_class_labels(shapes: Path) -> None:
    files = read_labelled_records(shapes, TfdsConfig("moving_shapes"))
    assert files.layout == "TFDS's moving_shapes/tiny/1.0.0"
    assert {split: len(files.indices(split)) for split in SIZES} == SIZES
    for split, size in SIZES.items():
        source = MovingShapesSource(split, size, seed=7)
        chosen = files.take(files.indices(split))
        assert files.class_names == source.class_names
        for index, path in enumerate(chosen.paths):
            assert chosen.labels[index] == source[index]["label"]
            np.testing.assert_array_equal(decode(path, [3, 0]), source[index]["video"][[3, 0]])
            assert (probe(path).num_frames, probe(path).rate) == (16, 0)
    assert len({digest_file(path) for path in files.paths}) == len(files)
    assert "tensorflow" not in sys.modules


def test_labels_are_kept_in_the_cache(shapes: Path, tmp_path: Path) -> None:
    files = read_labelled_records(shapes, TfdsConfig("moving_shapes"), cache=tmp_path / "c")
    [kept] = (tmp_path / "c").iterdir()
    rows = json.loads(kept.read_bytes())
    kept.write_text(json.dumps([rows[1], *rows[1:]]))
    again = read_labelled_records(shapes, TfdsConfig("moving_shapes"), cache=tmp_path / "c")
    assert again.labels == (files.labels[1], *files.labels[1:])


def test_a_split_of_a_run_is_read_where_the_data_are_now(shapes: Path, tmp_path: Path) -> None:
    files = make_split(read_labelled_records(shapes, TfdsConfig("moving_shapes")))
    write_split(tmp_path / "split.csv", files)
    moved = Path(shutil.copytree(shapes, tmp_path / "moved"))
    read = read_split_file(tmp_path / "split.csv", moved, files.class_names)
    assert (read.names, read.splits, read.labels) == (files.names, files.splits, files.labels)
    np.testing.assert_array_equal(decode(read.paths[5], [2]), decode(files.paths[5], [2]))


def test_other_kinds_of_features(prepared: Path, tmp_path: Path) -> None:
    expected = [things(tmp_path, number) for number in range(COUNT)]
    files = read_labelled_records(prepared, keys(video="file", group="meta/person"))
    order = [things_number(path) for path in files.paths]  # TFDS shuffles.
    assert sorted(order) == [*range(COUNT)]
    assert files.class_names == ("a", "b")
    assert [files.class_names[label] for label in files.labels] == ["ab"[n % 2] for n in order]
    assert files.groups == tuple(str(n // 2) for n in order)
    assert files.notes == ("the splits extra were left out",)
    grey = read_labelled_records(prepared, keys(video="grey")).paths
    images = read_labelled_records(prepared, keys(), kind="image").paths
    pixels = read_labelled_records(prepared, keys(image="pixels"), kind="image").paths
    captions = read_captioned_records(prepared, keys(image_id="image/id"))
    sequences = read_sequence_records(prepared, keys())["train"]
    for index, number in enumerate(order):
        video = tmp_path / f"{number}.avi"
        np.testing.assert_array_equal(decode(files.paths[index], [4, 1]), decode(video, [4, 1]))
        three = np.repeat(expected[number]["grey"], 3, axis=-1)
        np.testing.assert_array_equal(decode(grey[index], range(number + 2)), three)
        np.testing.assert_array_equal(read_image(images[index]), random_image(9, 7, number))
        np.testing.assert_array_equal(read_image(pixels[index]), expected[number]["pixels"])
        assert captions.images.captions[index] == (f"thing {number}",)
        assert captions.images.image_ids[index] == 100 + number
        read = read_image(captions.images.paths[index])
        np.testing.assert_array_equal(read, random_image(9, 7, number))
        np.testing.assert_array_equal(sequences.sequences[index], expected[number]["sequence"])
        assert sequences.class_names[sequences.labels[index]] == "ab"[number % 2]
    assert captions.splits == ("train",) * COUNT


def things_number(path: str) -> int:
    return probe(path).num_frames - 5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"video": "fil"}, r"tfds\.video: expected a key of .*received 'fil'; did you mean 'file'"),
        (
            {"video": "image"},
            r"tfds\.video: expected .* with frames .*such as file, grey, meta/kind, rec",
        ),
        ({"label": "captions/text"}, r"tfds\.label: expected .* with one class, such as"),
        ({"label": "meta"}, r"tfds\.label: expected a key of .*meta/kind, meta/person"),
        ({"builder": "thing"}, r"received things in .*did you mean 'things'.*prepare it with pyth"),
        (
            {"builder": "things/two"},
            r"expected things/two, prepared by TFDS in .*builder\('things/t",
        ),
        (
            {"builder": "things/one:1.2.0"},
            r"expected a version that is prepared, 1\.10\.0, received 1",
        ),
        ({"builder": ""}, r"expected the name of a data set .*there are: things"),
    ],
)
def test_keys_and_builders_that_are_not_there(
    prepared: Path, changes: dict[str, str], told: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        read_labelled_records(prepared, keys(**changes))
    folder = prepared / "things" / "one" / "1.10.0"
    assert len(read_labelled_records(folder, keys(builder="", video="file"))) == COUNT


def test_several_configurations_versions_and_damage(prepared: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(prepared, tmp_path / "copy"))
    version = root / "things" / "one" / "1.10.0"

    def read(**changes: str) -> Any:
        return read_labelled_records(root, keys(video="file", **changes))

    shutil.copytree(version, root / "things" / "one" / "1.9.0")
    assert read().layout.endswith("1.10.0")  # The newest, not the last by letters.
    with pytest.raises(ValueError, match=r"expected version 1\.9\.0, as .*version 1\.10\.0; prep"):
        read(builder="things:1.9.0")
    shutil.copytree(version, root / "things" / "two" / "1.10.0")
    with pytest.raises(ValueError, match="expected one of things/one, things/two, received things"):
        read()

    info = json.loads((version / "dataset_info.json").read_bytes())
    info["fileFormat"] = "tfrecord"
    (version / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"expected array_record .*received tfrecord; .*builder\("):
        read(builder="things/one")
    shard = next((root / "things" / "two" / "1.10.0").glob("*train*"))
    shard.rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=f"1 of its files are missing: {shard.name}; prep"):
        read(builder="things/two")
    features = root / "things" / "two" / "1.10.0" / "features.json"
    features.write_text(features.read_text().replace("tensorflow_datasets.", "evil.", 1))
    with pytest.raises(ValueError, match=r"received 'evil\..*whose module would be imported"):
        read(builder="things/two")
    assert "download_and_prepare(file_format='array_record')" in prepare_command("a", "b")


def test_videos_of_tfds_are_those_of_an_experiment(shapes: Path, tmp_path: Path) -> None:
    config: Any = get_config()
    data: Any = config.data
    data.dataset, data.root, data.cache = "tfds", str(shapes), str(tmp_path)
    data.tfds.builder = "moving_shapes"
    data.size, data.num_steps = 64, 16
    config.model.encoder.frozen = False
    config.validate()
    source = MovingShapesSource("validation", SIZES["validation"], seed=7)
    with config.make_data("validation").batches() as batches:
        batch = next(batches)
    for row in range(SIZES["validation"]):
        np.testing.assert_array_equal(batch["video"][row], source[row]["video"])
        assert batch["label"][row] == source[row]["label"]
    data.tfds.video = "vidio"
    again: Any = get_config()
    again.data = data
    with pytest.raises(ValueError, match=r"data\.tfds\.video: .*did you mean 'video'"):
        again.make_data("validation")
    data.list = "list.csv"
    with pytest.raises(ValueError, match=r"data\.list: expected none with data\.dataset=tfds"):
        again.make_data("validation")


def test_captions_of_tfds_are_those_of_an_experiment(prepared: Path) -> None:
    config: Any = image_captioning.get_config()
    data = config.data
    data.kind, data.root = "tfds", str(prepared)
    data.tfds = keys(image_id="image/id")
    splits = {split: data.read(split) for split in ("train", "validation")}
    names = [name for split in splits.values() for name in split.names]
    assert sorted(names) == [100 + number for number in range(COUNT)]
    for split in splits.values():
        for index, name in enumerate(split.names):
            assert split.captions[index] == (f"thing {name - 100}",)
            pixels = split.inputs.decode(index)
            np.testing.assert_array_equal(pixels, random_image(9, 7, name - 100))


def test_sequences_of_tfds_are_those_of_an_experiment(prepared: Path, tmp_path: Path) -> None:
    config: Any = series.get_config()
    data = config.data
    data.dataset, data.task, data.root = "tfds", "classify", str(prepared)
    data.tfds = keys(sequence=("sequence", "tones/pitch"))
    data.validation_share, data.scaling = 0.34, "none"
    config.validate()
    splits = {split: config.source(split) for split in ("train", "validation")}
    assert {split: len(source) for split, source in splits.items()} == {
        "train": COUNT - 2,
        "validation": 2,
    }
    assert config.class_names == ("a", "b")
    expected = [things(tmp_path, number) for number in range(COUNT)]
    for source in splits.values():
        for index in range(len(source)):
            example = source[index]
            length = int(example["lengths"])
            number = length - 1
            steps, tone = expected[number]["sequence"], expected[number]["tones"]["pitch"]
            np.testing.assert_array_equal(example["inputs"][:length], np.c_[steps, tone])
            assert "ab"[example["label"]] == expected[number]["meta"]["kind"]
    with pytest.raises(ValueError, match=r"split: expected one of train, validation, received 't"):
        config.source("test")
    for fields, message in (
        ({"task": "forecast"}, r"data\.task: expected classify with data\.dataset=tfds"),
        ({"root": ""}, r"data\.root: expected TFDS's folder of data sets"),
        ({"list": "a.csv"}, r"data\.list: expected none with data\.dataset=tfds"),
        ({"group": "person"}, r"data\.group: expected none with data\.dataset=tfds"),
    ):
        again: Any = series.get_config()
        again.data = dataclasses.replace(data, **fields)
        with pytest.raises(ValueError, match=message):
            again.validate()
    again = series.get_config()
    again.data = dataclasses.replace(data, tfds=keys(sequence=("sequense",)))
    with pytest.raises(ValueError, match=r"data\.tfds\.sequence: .*did you mean 'sequence'"):
        again.make_data("train")
    again = series.get_config()
    again.data = dataclasses.replace(data, tfds=keys(sequence=("sequence", "image/id")))
    with pytest.raises(ValueError, match=r"data\.tfds\.sequence: expected a key .* 'image/id'"):
        again.make_data("train")
    again.data = dataclasses.replace(data, tfds=keys(sequence=("sequence", "twice")))
    with pytest.raises(ValueError, match=r"as many steps of each key, .*received \d of 'seq"):
        again.make_data("train")


class Unlabelled(tfds.core.GeneratorBasedBuilder):
    """Sequences whose test split has no labels."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None
    lengths = (2, 3)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "sequence": features.Tensor(shape=(None,), dtype=np.float32),
                    "label": features.ClassLabel(names=["a", "b", "c"]),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {"train": self._generate_examples((0, 2)), "test": self._generate_examples((-1, -1))}

    def _generate_examples(self, labels: Any) -> Iterator[tuple[int, dict]]:
        for number, label in enumerate(labels):
            steps = np.arange(self.lengths[number], dtype=np.float32)
            yield number, {"sequence": steps, "label": label}


def test_splits_without_labels_are_read_and_empty_sequences_refused(tmp_path: Path) -> None:
    Unlabelled(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    read = read_sequence_records(tmp_path, TfdsConfig("unlabelled"))
    assert read["train"].class_names == read["test"].class_names == ("a", "b", "c")
    assert sorted(read["train"].labels.tolist()) == [0, 2]
    assert read["test"].labels.tolist() == [-1, -1]
    assert {len(x) for x in read["test"].sequences} == {2, 3}
    shutil.rmtree(tmp_path / "unlabelled")
    builder = Unlabelled(data_dir=tmp_path)
    builder.lengths = (2, 0)
    builder.download_and_prepare(file_format="array_record")
    with pytest.raises(ValueError, match=r"tfds\.sequence: .* at least one, received 0 of 'seq"):
        read_sequence_records(tmp_path, TfdsConfig("unlabelled"))


@pytest.mark.stress
@pytest.mark.subprocess
def test_the_stock_builder_of_ucf101(tmp_path: Path) -> None:
    """Prepares TFDS's own ``ucf101`` from files of ours, in another environment, and trains.

    Its downloads are replaced by a folder with the same structure; the rest is the builder's.
    """
    if not WITH_TENSORFLOW.is_file():
        pytest.skip(
            f"{WITH_TENSORFLOW} is missing: an environment with tensorflow-cpu (TFDS_PYTHON)"
        )
    sources = tmp_path / "sources"
    lists = sources / "splits" / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    names: dict[str, list[str]] = {"train": [], "test": []}
    for number in range(12):
        label = ("Archery", "BandMarching")[number % 2]
        name = f"v_{label}_g{number:02d}_c01.avi"
        write_video(sources / "videos" / "UCF101" / name, 6 + number, size=(48, 64))
        names["test" if number >= 8 else "train"].append(f"{label}/{name}")
    for split, found in names.items():
        (lists / f"{split}list01.txt").write_text("\n".join(found))
    script = (
        "import sys, tensorflow_datasets as tfds\n"
        "folders = {'videos': sys.argv[1] + '/videos', 'splits': sys.argv[1] + '/splits'}\n"
        "tfds.download.DownloadManager.download_and_extract = lambda self, urls: folders\n"
        "builder = tfds.builder('ucf101/ucf101_1', data_dir=sys.argv[2])\n"
        "builder.download_and_prepare(file_format='array_record')\n"
    )
    root = tmp_path / "prepared"
    path = f"{WITH_TENSORFLOW.parent}:{os.environ['PATH']}"  # The builder calls ffmpeg.
    subprocess.run(
        [str(WITH_TENSORFLOW), "-c", script, str(sources), str(root)],
        check=True,
        env={**os.environ, "PATH": path},
    )
    files = read_labelled_records(root, TfdsConfig("ucf101/ucf101_1"))
    assert len(files.class_names) == 101
    assert sorted(probe(path).num_frames for path in files.paths) == list(range(6, 18))
    for path in files.paths:
        assert decode(path, [0]).shape == (1, 48, 64, 3)
    config = "experiments/video_classification.py"
    flags = {
        **{"dataset": "tfds", "root": root, "tfds.builder": "ucf101/ucf101_1", "size": "32"},
        **{"num_steps": "4", "cache": tmp_path / "cache"},
    }
    model = {"name": "small_cnn", "weights": "", "frozen": "False", "features": "4,4,8"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch.train", f"--config={config}"),
            f"--workdir={tmp_path / 'run'}",
            *(f"--config.data.{name}={value}" for name, value in flags.items()),
            *(f"--config.model.encoder.{name}={value}" for name, value in model.items()),
            *("--config.model.encoder.strides=4,2,2", "--config.num_steps=3"),
            *("--config.batch_size=4", "--config.eval_every=3", "--config.log_every=1"),
            *("--config.checkpoint_every=3", "--config.optimizer.warmup_steps=0"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "validation" in metrics
