"""TFDS's coco_captions, in a small data set of the same features, read without TensorFlow."""

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data.captions.examples import CaptionSource
from data.captions.images import ImageTransform, read_image
from data.captions.vocabulary import Vocabulary
from data.datasets import coco_captions_tfds
from data.datasets.coco_captions_tfds import PreparedCaptions

SIZES = {"train": 3, "restval": 2, "val": 2, "test": 1}


class CocoCaptions(tfds.core.GeneratorBasedBuilder):
    """Builder with the features and splits of TFDS's own, without its downloads."""

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2014")]  # noqa: RUF012
    code_path = None

    def __init__(self, *, images: Path, **arguments: Any):
        self.images = images
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "image": features.Image(encoding_format="jpeg"),
                    "image/filename": features.Text(),
                    "image/id": np.int64,
                    "objects": features.Sequence(
                        {
                            "id": np.int64,
                            "area": np.int64,
                            "bbox": features.BBoxFeature(),
                            "label": features.ClassLabel(num_classes=80),
                            "is_crowd": np.bool_,
                        }
                    ),
                    "captions": features.Sequence({"text": np.str_, "id": np.int64}),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        numbers = iter(range(100, 200))
        return {
            split: self._generate_examples([next(numbers) for _ in range(size)])
            for split, size in SIZES.items()
        }

    def _generate_examples(self, numbers: list[int]) -> Iterator[tuple[int, dict]]:
        for number in numbers:
            yield (
                number,
                {
                    "image": str(self.images / f"{number}.jpg"),
                    "image/filename": f"{number}.jpg",
                    "image/id": number,
                    "objects": [],
                    "captions": [
                        {"id": 2, "text": f"second of {number} .\n"},
                        {"id": 1, "text": f"first of {number} é"},
                    ],
                },
            )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, data_dir = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("tfds")
    rng = np.random.default_rng(0)
    for number in range(100, 100 + sum(SIZES.values())):
        shape = (20, 30) if number == 101 else (20, 30, 3)  # one is grey
        path = images / f"{number}.jpg"
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
        if number == 102:
            path.write_bytes(path.read_bytes()[:300])
    builder = CocoCaptions(images=images, data_dir=data_dir)
    builder.download_and_prepare(file_format="array_record")
    (data_dir / "pictures").symlink_to(images)
    return data_dir


def check(prepared: Path, split: PreparedCaptions, numbers: set[int]) -> None:
    assert set(split.image_ids) == numbers
    transform = ImageTransform(8)
    source = split.images(transform)
    assert len(source) == len(split) == len(numbers)
    for index, number in enumerate(split.image_ids):
        assert split.captions[index] == (f"first of {number} é", f"second of {number} .")
        example = source[index]
        assert example["index"] == index
        if number == 102:
            assert not example["mask"]
            assert not example["image"].any()
            assert f"record {index}, 102.jpg: " in source.explain(index)
        else:
            expected = transform(read_image(prepared / f"pictures/{number}.jpg"))
            assert example["mask"]
            np.testing.assert_array_equal(example["image"], expected)


@pytest.mark.parametrize(
    ("split", "restval", "numbers"),
    [
        ("train", True, {100, 101, 102, 103, 104}),
        ("train", False, {100, 101, 102}),
        ("restval", True, {103, 104}),
        ("validation", True, {105, 106}),
        ("val", True, {105, 106}),
        ("test", True, {107}),
    ],
)
def test_splits(prepared: Path, split: str, restval: bool, numbers: set[int]) -> None:
    check(prepared, coco_captions_tfds.read_split(prepared, split, restval=restval), numbers)
    assert "tensorflow" not in sys.modules


def test_the_version_s_folder_itself(prepared: Path) -> None:
    folder = prepared / "coco_captions/2014/1.1.0"
    check(prepared, coco_captions_tfds.read_split(folder, "val"), {105, 106})


def test_as_the_inputs_of_captions(prepared: Path) -> None:
    split = coco_captions_tfds.read_split(prepared, "validation")
    source = CaptionSource(
        split.images(ImageTransform(8)),
        split.captions,
        Vocabulary(("first", "second")),
        pairs=True,
    )
    source = pickle.loads(pickle.dumps(source))
    assert [int(source[i]["tokens"][0, 0]) for i in range(4)] == [4, 5, 4, 5]
    assert source[3]["image"].shape == (8, 8, 3)


def test_what_is_not_there(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected coco_captions, prepared by TFDS, in"):
        coco_captions_tfds.read_split(tmp_path, "train")
    with pytest.raises(ValueError, match=r"split: expected one of .*did you mean 'restval'"):
        coco_captions_tfds.read_split(prepared, "restvl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fileFormat": "tfrecord"}, "expected array_record files.*received tfrecord; prepare"),
        ({"splits": "train"}, "lacks restval, it has train"),
        ({"name": "coco"}, "expected coco_captions, received coco"),
    ],
)
def test_prepared_otherwise(
    prepared: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    folder = tmp_path / "coco_captions/2014/1.1.0"
    folder.mkdir(parents=True)
    for path in (prepared / "coco_captions/2014/1.1.0").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    info = json.loads((folder / "dataset_info.json").read_text())
    if "splits" in change:
        info["splits"] = [split for split in info["splits"] if split["name"] == change["splits"]]
    else:
        info |= change
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=message):
        coco_captions_tfds.read_split(tmp_path, "train")


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_features_of_other_modules_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / "their_features.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "coco_captions/2014/1.1.0"
    folder.mkdir(parents=True)
    features = {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": {"image": {key: "their_features.Image", "content": {}}}},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"name": "coco_captions"}))
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match=r"features\.json: expected .*'their_features\.Image'"):
        coco_captions_tfds.read_split(tmp_path, "train")
    assert "their_features" not in sys.modules
