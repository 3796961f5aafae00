"""Labelled image files as examples, and as clips of one frame for a model of clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.batches import UNKNOWN_LABEL, Source, VideoExample
from data.captions.images import ImageError, ImageTransform, read_image
from data.video.clips import FileSource
from data.video.transforms import SpatialTransform


class ImageSource(FileSource):
    """Random access to image files and their labels, undecoded."""

    def explain(self, index: int) -> str:
        """Returns why image ``index`` cannot be decoded."""
        try:
            read_image(self.paths[index])
        except (ImageError, FileNotFoundError) as error:
            return str(error)
        return f"{self.paths[index]}: decoding failed before, but succeeds now"


@dataclass(frozen=True)
class WholeImages:
    """Random access to decoded images of one size, for a frozen encoder.

    Attributes:
        images: the files and their labels.
        transform: resizes and crops, as at test.
    """

    images: ImageSource
    transform: ImageTransform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Returns ``image`` (size,size,3) uint8, ``label``, ``index`` () int32, ``mask`` () bool.

        An image that cannot be decoded is blank, with ``mask`` False.
        """
        record = self.images[index]
        label, readable = record["label"], True
        try:
            image = self.transform(read_image(record["path"]))
        except (ImageError, FileNotFoundError):
            image = np.zeros((self.transform.size, self.transform.size, 3), np.uint8)
            label, readable = UNKNOWN_LABEL, False
        return {
            "image": image,
            "label": np.asarray(label, np.int32),
            "mask": np.asarray(readable),
            "index": np.asarray(index, np.int32),
        }

    def explain(self, index: int) -> str:
        """Returns why image ``index`` cannot be decoded."""
        return self.images.explain(index)


@dataclass(frozen=True)
class ImageFeatures:
    """Encoded images under the labels of a list, as clips of one step.

    Attributes:
        features: the examples, with ``features`` (D,) or (h,w,D).
        images: the source that was encoded, in the same order.
        labels: class indices, in the same order; None: those of ``features``.
    """

    features: Source | Sequence[Mapping[str, np.ndarray]] = field(repr=False)
    images: WholeImages
    labels: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int, /) -> VideoExample:
        """Returns ``features`` (1,...) with the other entries of ``VideoExample``."""
        example: Mapping[str, Any] = self.features[index]
        label = example["label"]
        if self.labels is not None and example["mask"]:
            label = np.asarray(self.labels[index], np.int32)
        return VideoExample(
            features=example["features"][None],
            lengths=np.asarray(1, np.int32),
            label=label,
            mask=example["mask"],
            index=np.asarray(index, np.int32),
        )

    def explain(self, index: int) -> str:
        """Returns why image ``index`` cannot be decoded."""
        return self.images.explain(index)


@dataclass(frozen=True)
class DecodeImage:
    """Decodes a record of an ``ImageSource`` into a clip of one frame.

    Attributes:
        transform: resizes and crops, as at test.
        random: crops in training; None: as at test.
    """

    transform: ImageTransform
    random: SpatialTransform | None = None

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> VideoExample:
        """Returns ``video`` (1,h,w,3) uint8 with the other entries of ``VideoExample``."""
        label, readable = record["label"], True
        try:
            image = read_image(record["path"])
            video = (
                self.transform(image)[None]
                if self.random is None
                else self.random(image[None], rng)
            )
        except (ImageError, FileNotFoundError):
            video = np.zeros((1, self.transform.size, self.transform.size, 3), np.uint8)
            label, readable = UNKNOWN_LABEL, False
        return VideoExample(
            video=video,
            lengths=np.asarray(1, np.int32),
            label=np.asarray(label, np.int32),
            mask=np.asarray(readable),
            index=np.asarray(record["index"], np.int32),
        )
