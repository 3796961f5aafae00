"""What the captioning experiments train on and are scored on: images, captions, features."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.batches import Source
from data.captions.examples import CaptionSource, ImageSource
from data.captions.images import ImageTransform, RandomCrop
from data.captions.length_buckets import LengthBuckets, choose_boundaries
from data.captions.vocabulary import Vocabulary, mirror_caption
from data.datasets import (
    coco_captions,
    coco_captions_tfds,
    flickr8k,
    karpathy,
)
from data.loader import Batch, Loader
from data.moving_shapes.source import MovingShapes
from data.sources import ConcatenatedSources
from experiments.captioning.caption_weights import (
    add_captions,
    count_frequencies,
    find_neighbours,
    weigh_captions,
)
from experiments.features.frozen_features import cache_features, digest_images, make_encode
from flaxnets.configuration import nearest, runtime
from flaxnets.encoders.config import EncoderConfig

FITS = ("stretch", "crop")
CORNERS = ((0.0, 0.0), (0.2, 0.2), (0.0, 0.2), (0.2, 0.0))
"""Top and left of windows over 4/5 of height and width, in the order in which they are added."""
KINDS = ("moving_shapes", "flickr8k", "karpathy", "coco", "coco_tfds")


@dataclasses.dataclass
class CaptionDataConfig:
    """Where images and captions come from, and how captions become tokens."""

    kind: str = "flickr8k"
    """``moving_shapes`` (embedded videos), ``flickr8k`` (its own folders), ``karpathy`` (the JSON
    of Karpathy's splits of Flickr8k, Flickr30k or COCO), ``coco`` (its own folder and JSON, the
    validation images as the test split) or ``coco_tfds`` (TFDS's coco_captions, where it has been
    prepared)."""
    root: str = ""
    """The data set's folder; with ``karpathy`` the folder of images, with ``coco_tfds`` TFDS's."""
    annotations: str = ""
    """``karpathy`` only: the JSON file."""
    cache: str = runtime("runs/features")
    """The folder of cached features and document frequencies."""
    image_size: int = 288
    """Height and width, pixels: a multiple of 32."""
    image_fit: str = "stretch"
    """``stretch``: the whole image becomes a square; ``crop``: its middle, as in ImageNet."""
    mirror: bool = True
    """Images only: whether training sees each image and its mirror image, whose captions exchange
    left and right; an epoch is twice as long."""
    num_corners: int = 4
    """Frozen encoders only: how many of an image's corners, 0 to 4, are further images
    of training with the same captions, each 4/5 as high and wide; with ``mirror`` the second and
    fourth are mirrored. An epoch is as much longer."""
    min_count: int = 5
    """Words that occur less often in training are unknown."""
    all_captions: bool = False
    """Whether a training example is an image with all of its captions, not with one: an encoder
    that trains then runs once for all of them."""
    consensus: float = 0.0
    """In training each caption's words count for 1 - this + this times its CIDEr-D against the
    image's other captions, relative to their mean (``caption_consensus.py``); 0: all alike."""
    num_neighbours: int = 0
    """Self-critical training: how many of the images most like a training image lend it their
    captions as further references (``caption_neighbours.py``)."""
    neighbour_share: float = 0.33
    """What the neighbours' captions together count for in a reward; the image's own count for the
    rest."""
    max_words: int = 0
    """Longer captions are cut in training; 0: none."""
    num_buckets: int = 8
    """Lengths that training batches are cut to."""
    num_train: int = 2_000
    """``moving_shapes`` only, as the next two."""
    num_validation: int = 200
    num_test: int = 500
    num_workers: int = runtime(0)


@dataclasses.dataclass(frozen=True)
class CaptionedSplit:
    """One split: inputs, captions and names.

    Attributes:
      inputs: examples of ``image`` or ``video``.
      captions: of each input.
      names: what the data set calls each input.
      digest: what tells the inputs' bytes from all others.
    """

    inputs: Any
    captions: tuple[tuple[str, ...], ...]
    names: tuple[str | int, ...]
    digest: str


def read_split(config: CaptionDataConfig, split: str) -> CaptionedSplit:
    """One split of the configured data set.

    Raises:
      ValueError: an unknown kind or split, or a path that is not given.
      FileNotFoundError: files that are not there.
    """
    if config.kind not in KINDS:
        raise ValueError(f"data.kind: unknown {config.kind!r}{nearest(config.kind, KINDS)}")
    if config.kind == "moving_shapes":
        sizes = {
            "train": config.num_train,
            "validation": config.num_validation,
            "test": config.num_test,
        }
        return _moving_shapes(split, sizes.get(split))
    if not config.root:
        raise ValueError(
            f"data.root: expected the folder of {config.kind}; give --config.data.root=…"
        )
    if config.kind == "karpathy" and not config.annotations:
        raise ValueError(
            "data.annotations: expected the JSON of Karpathy's splits, as dataset_coco.json; give "
            "--config.data.annotations=…"
        )
    return _images(config.kind, config.root, config.annotations, image_transform(config), split)


def image_transform(config: CaptionDataConfig) -> ImageTransform:
    """What makes images equally large.

    Raises:
        ValueError: an unknown ``image_fit``.
    """
    if config.image_fit not in FITS:
        fits = nearest(config.image_fit, FITS)
        raise ValueError(f"data.image_fit: unknown {config.image_fit!r}{fits}")
    return ImageTransform(config.image_size, stretch=config.image_fit == "stretch")


@functools.lru_cache(maxsize=8)
def _moving_shapes(split: str, size: int | None) -> CaptionedSplit:
    shapes = MovingShapes(split, size)
    captions = tuple(shapes.captions(index) for index in range(len(shapes)))
    return CaptionedSplit(shapes, captions, tuple(range(len(shapes))), "")


@functools.lru_cache(maxsize=8)
def _images(
    kind: str, root: str, annotations: str, transform: ImageTransform, split: str
) -> CaptionedSplit:
    if kind == "coco_tfds":
        prepared = coco_captions_tfds.read_split(root, split)
        digest = f"coco_captions {Path(root).resolve()} {split}"
        images: Any = prepared.images(transform)
        return CaptionedSplit(images, prepared.captions, prepared.image_ids, digest)
    if kind == "flickr8k":
        listed = flickr8k.read_split(root, split)
    elif kind == "coco":
        listed = coco_captions.read_split(root, split)
    else:
        listed = karpathy.read_split(annotations, root, split)
    images = ImageSource(listed.paths, transform)
    return CaptionedSplit(images, listed.captions, listed.image_ids, digest_images(listed.paths))


def make_vocabulary(config: CaptionDataConfig) -> Vocabulary:
    """The words of the training captions."""
    captions = read_split(config, "train").captions
    texts = (text for texts in captions for text in texts)
    return Vocabulary.from_captions(texts, config.min_count)


def model_inputs(
    config: CaptionDataConfig, encoder: EncoderConfig, split: CaptionedSplit
) -> Source:
    """What the model sees: videos, images, or the cached maps of images."""
    if not caches_features(config, encoder):
        inputs: Source = split.inputs
        return inputs
    return cache_features(
        config.cache,
        split.inputs,
        encoder,
        "none",
        preprocessing=dataclasses.asdict(split.inputs.transform),
        source=split.digest,
    )


def caches_features(config: CaptionDataConfig, encoder: EncoderConfig) -> bool:
    """Whether the encoder runs once, before training, and is no part of the network."""
    return encoder.frozen and config.kind != "moving_shapes"


def change_images(split: CaptionedSplit, **changes: Any) -> CaptionedSplit:
    """The split with other values of its images' ``ImageTransform``."""
    images = copy.copy(split.inputs)
    images.transform = dataclasses.replace(images.transform, **changes)
    return dataclasses.replace(split, inputs=images)


def mirror_split(split: CaptionedSplit) -> CaptionedSplit:
    """The mirror images of a split's images, with what their captions say."""
    captions = tuple(tuple(map(mirror_caption, texts)) for texts in split.captions)
    return dataclasses.replace(change_images(split, mirror=True), captions=captions)


def training_views(
    config: CaptionDataConfig, split: CaptionedSplit, *, cached: bool = True
) -> list[CaptionedSplit]:
    """What training sees of a split's images, each view a split of its own.

    Raises:
        ValueError: ``num_corners`` out of range.
    """
    if not 0 <= config.num_corners <= len(CORNERS):
        raise ValueError(
            f"data.num_corners: expected 0 to {len(CORNERS)}, received {config.num_corners}"
        )
    views = [split, mirror_split(split)] if config.mirror else [split]
    # An encoder that trains sees parts of images at random instead.
    corners = CORNERS[: config.num_corners] if cached else ()
    for number, (top, left) in enumerate(corners):
        view = change_images(split, window=(top, left, top + 0.8, left + 0.8))
        views.append(mirror_split(view) if config.mirror and number % 2 else view)
    return views


def make_loader(
    config: CaptionDataConfig,
    encoder: EncoderConfig,
    split: str,
    vocabulary: Vocabulary,
    *,
    batch_size: int,
    seed: int,
    pairs: bool,
) -> Loader:
    """Batches of a split, in training of captions of similar length.

    Args:
      config: the data.
      encoder: of the model; a frozen one's feature maps are cached.
      split: ``train`` without end; any other once and in order, with all captions.
      vocabulary: of the model.
      batch_size: rows.
      seed: of the order.
      pairs: whether a training row is one caption of an image, not all of them.
    """
    train = split == "train"
    read = read_split(config, split)
    has_images = config.kind != "moving_shapes"
    cached = caches_features(config, encoder)
    augment = None
    if train and has_images and not cached:
        # As for ImageNet: 256 for a crop of 224.
        read = change_images(read, size=config.image_size * 8 // 7)
        augment = RandomCrop(config.image_size)
    weights = None
    if train and config.consensus:
        frequencies = count_frequencies(read.captions, vocabulary, config.cache)
        # What is said of a view is what is said of the image, left and right exchanged at most.
        weights = weigh_captions(read.captions, vocabulary, frequencies, config.consensus)
    if train and config.num_neighbours:
        _check_neighbours(config, cached=cached, pairs=pairs)
        neighbours = find_neighbours(model_inputs(config, encoder, read), config.num_neighbours)
        captions, weights = add_captions(read.captions, neighbours, config.neighbour_share)
        read = dataclasses.replace(read, captions=captions)
    seen = training_views(config, read, cached=cached) if train and has_images else [read]
    source = CaptionSource(
        ConcatenatedSources([model_inputs(config, encoder, part) for part in seen]),
        [texts for part in seen for texts in part.captions],
        vocabulary,
        pairs=train and pairs,
        weights=None if weights is None else weights * len(seen),
        max_words=config.max_words or None if train else None,
        names=[name for part in seen for name in part.names],
    )
    order = None
    if train:
        lengths = source.example_lengths
        boundaries = choose_boundaries(lengths, config.num_buckets)
        order = LengthBuckets(lengths, boundaries, batch_size=batch_size, seed=seed)
    return Loader(
        source,
        batch_size=batch_size,
        train=train,
        order=order,
        transform=augment,
        seed=seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.num_workers if train else 0,
        max_bad_share=0.05 if train else 1.0,
    )


def _check_neighbours(config: CaptionDataConfig, *, cached: bool, pairs: bool) -> None:
    if pairs or not cached or config.consensus:
        raise ValueError(
            f"data.num_neighbours: expected 0, received {config.num_neighbours}: images lend their "
            "captions to self-critical training on cached features, without data.consensus"
        )


# Image files to be captioned, as batches that a trained captioner reads.


class UncaptionedImages(ImageSource):
    """Image files as examples of captioning that have no caption."""

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """As ``ImageSource``, with one caption of length 0."""
        none = {"tokens": np.zeros((1, 1), np.int32), "token_lengths": np.zeros(1, np.int32)}
        return {**super().__getitem__(index), **none}


class EncodedBatches:
    """A loader's batches with a frozen encoder's maps, float16, in place of images.

    A whole batch is encoded at once, while the loader's threads read the next.
    """

    def __init__(self, loader: Loader, encode: Callable[[np.ndarray], np.ndarray]) -> None:
        self._loader, self._encode = loader, encode

    @property
    def num_examples(self) -> int:
        """The number of files."""
        return self._loader.num_examples

    @property
    def batches_per_epoch(self) -> int:
        """The batches that hold every file once."""
        return self._loader.batches_per_epoch

    @property
    def bad(self) -> dict[int, str]:
        """The number of each file found unreadable so far, with the reason."""
        return self._loader.bad

    def describe(self) -> dict[str, Any]:
        """See ``Loader``."""
        return self._loader.describe()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """One pass in order."""
        with self._loader.batches(start) as batches:
            for batch in batches:
                images = batch.pop("image")
                yield {**batch, "features": self._encode(images).astype(np.float16)}


def make_prediction_data(
    paths: Sequence[str], transform: ImageTransform, batch_size: int, encoder: EncoderConfig
) -> Loader | EncodedBatches:
    """Image files in the given order; what cannot be read has ``mask`` False.

    Args:
      paths: the files.
      transform: makes them equally large.
      batch_size: rows at most; a multiple of the devices.
      encoder: of the model, which reads a frozen encoder's feature maps in place of images.
    """
    devices = jax.device_count()
    loader = Loader(
        UncaptionedImages(tuple(paths), transform),
        batch_size=min(batch_size, -(-len(paths) // devices) * devices),
        train=False,
        max_bad_share=1.0,
    )
    return EncodedBatches(loader, make_encode(encoder, "none")) if encoder.frozen else loader
