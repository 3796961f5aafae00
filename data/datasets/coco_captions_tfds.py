"""TFDS's prepared ``coco_captions``, read without TensorFlow.

COCO of 2014 in Karpathy's splits, images and captions in the same records. Its preparation needs
TensorFlow once, on any machine, and must write the format that is readable without it::

    tfds.builder("coco_captions", data_dir=DIR).download_and_prepare(file_format="array_record")
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data.captions.examples import DecodedImages
from data.captions.images import MAX_PIXELS, ImageTransform, decode_image
from data.datasets.captioned_images import find_split
from data.datasets.karpathy import SPLITS


class RecordImages(DecodedImages):
    """Random access to the images of TFDS records, decoded to one size; picklable.

    Args:
        records: TFDS's data source, with ``image`` still encoded.
        transform: resizes the images to one size.
        max_pixels: larger images are refused before they are decoded.
    """

    def __init__(self, records: Any, transform: ImageTransform, *, max_pixels: int = MAX_PIXELS):
        super().__init__(transform, max_pixels=max_pixels)
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"RecordImages({self._records!r}, {self.transform})"

    def decode(self, index: int) -> np.ndarray:
        """Decodes the image of record ``index``; see ``data.captions.images.decode_image``."""
        record = self._records[index]
        name = f"record {index}, {record['image/filename'].decode()}"
        return decode_image(io.BytesIO(record["image"]), name, max_pixels=self.max_pixels)


@dataclass(frozen=True)
class PreparedCaptions:
    """One split of the prepared data set.

    Attributes:
        records: TFDS's data source, with ``image`` still encoded.
        captions: the original captions of each image, by ascending id.
        image_ids: COCO's ids.
        digest: SHA-256 of all images in order, wherever the records lie.
    """

    records: Any
    captions: tuple[tuple[str, ...], ...]
    image_ids: tuple[int, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.records)

    def images(self, transform: ImageTransform, *, max_pixels: int = MAX_PIXELS) -> RecordImages:
        """Returns the source of the images, decoded and resized by ``transform``."""
        return RecordImages(self.records, transform, max_pixels=max_pixels)


def read_split(data_dir: str | Path, split: str, *, restval: bool = True) -> PreparedCaptions:
    """Reads the captions of one split and opens its images; reads all records once.

    Args:
        data_dir: TFDS's folder of data sets, or the version's folder in it.
        split: "train", "validation" (also called "val", "dev"), "test", or "restval" alone.
        restval: add ``restval`` to "train".

    Raises:
        FileNotFoundError: the data set is not prepared there.
        ValueError: the split is unknown or not prepared, or the files are of another format or data
            set, or name code outside of TFDS.
    """
    name = find_split(split, SPLITS)
    directory = _find(Path(data_dir))
    check_features(directory / "features.json")
    builder = tfds.builder_from_directory(directory)
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{directory}: expected array_record files, which are read without TensorFlow, "
            f"received {builder.info.file_format.value}; prepare the data set again with "
            'download_and_prepare(file_format="array_record")'
        )
    expected = {"image", "image/id", "image/filename", "captions"}
    lacking = expected - set(builder.info.features or {})
    if builder.name != "coco_captions" or lacking:
        raise ValueError(f"{directory}: expected coco_captions, received {builder.name}")
    names = ["train", "restval"] if name == "train" and restval else [name]
    absent = [name for name in names if name not in builder.info.splits]
    if absent:
        raise ValueError(
            f"split: {directory} lacks {', '.join(absent)}, it has {', '.join(builder.info.splits)}"
        )
    records = builder.as_data_source(
        split="+".join(names), decoders={"image": tfds.decode.SkipDecoding()}
    )
    captions, image_ids, digest = [], [], hashlib.sha256()
    for record in records:
        digest.update(hashlib.sha256(record["image"]).digest())
        numbered = zip(record["captions"]["id"], record["captions"]["text"], strict=True)
        captions.append(tuple(text.decode().strip() for _, text in sorted(numbered)))
        image_ids.append(int(record["image/id"]))
    return PreparedCaptions(records, tuple(captions), tuple(image_ids), digest.hexdigest())


def _find(data_dir: Path) -> Path:
    if (data_dir / "features.json").is_file():
        return data_dir
    versions = [path.parent for path in data_dir.glob("coco_captions/*/*/features.json")]
    if not versions:
        raise FileNotFoundError(
            f"{data_dir}: expected coco_captions, prepared by TFDS, in "
            f"{data_dir / 'coco_captions'}; its preparation needs TensorFlow"
        )
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def check_features(path: Path) -> None:
    """Refuses features whose class TFDS would import from a module that is not its own.

    Raises:
        ValueError: such a class, or no JSON.
    """
    try:
        names = [*_named_classes(json.loads(path.read_bytes()))]
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected the JSON of TFDS's features ({type(error).__name__}: {error}); "
            "prepare the data set again"
        ) from error
    strange = [name for name in names if not name.startswith("tensorflow_datasets.")]
    if strange:
        raise ValueError(
            f"{path}: expected features of tensorflow_datasets, received {strange[0]!r}, whose "
            "module would be imported; prepare the data set again"
        )


def _named_classes(value: Any) -> Iterator[str]:
    """Yields the classes that nested values of ``features.json`` name, by old and new keys."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(inner, str):
                yield inner
            else:
                yield from _named_classes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _named_classes(inner)
