"""What the captioning experiments train on and are scored on: images, captions, features."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.batches import Source
from data.caption_examples import CaptionSource, ImageSource
from data.captions import Vocabulary
from data.datasets import coco_captions_tfds, flickr8k, karpathy
from data.images import ImageTransform, RandomCrop
from data.length_buckets import LengthBuckets, choose_boundaries
from data.loader import Loader
from data.synthetic import MovingShapes
from experiments.frozen_features import digest_images, load_maps
from flaxnets.cider import DocumentFrequencies
from flaxnets.training.config import nearest, runtime

KINDS = ("moving_shapes", "flickr8k", "karpathy", "coco_tfds")


@dataclasses.dataclass
class CaptionDataConfig:
    """Where images and captions come from, and how captions become tokens."""

    kind: str = "flickr8k"
    """``moving_shapes`` (embedded videos), ``flickr8k`` (its own folders), ``karpathy`` (the JSON
    of Karpathy's splits of Flickr8k, Flickr30k or COCO) or ``coco_tfds`` (TFDS's coco_captions,
    where it has been prepared)."""
    root: str = ""
    """The data set's folder; with ``karpathy`` the folder of images, with ``coco_tfds`` TFDS's."""
    annotations: str = ""
    """``karpathy`` only: the JSON file."""
    cache: str = runtime("runs/features")
    """The folder of cached features and document frequencies."""
    frozen_encoder: bool = True
    """Whether an encoder that is not trained runs once and its maps are cached."""
    image_size: int = 224
    min_count: int = 5
    """Words that occur less often in training are unknown."""
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
    return _images(config.kind, config.root, config.annotations, config.image_size, split)


@functools.lru_cache(maxsize=8)
def _moving_shapes(split: str, size: int | None) -> CaptionedSplit:
    shapes = MovingShapes(split, size)
    captions = tuple(shapes.captions(index) for index in range(len(shapes)))
    return CaptionedSplit(shapes, captions, tuple(range(len(shapes))), "")


@functools.lru_cache(maxsize=8)
def _images(kind: str, root: str, annotations: str, size: int, split: str) -> CaptionedSplit:
    transform = ImageTransform(size)
    if kind == "coco_tfds":
        prepared = coco_captions_tfds.read_split(root, split)
        digest = f"coco_captions {Path(root).resolve()} {split}"
        images: Any = prepared.images(transform)
        return CaptionedSplit(images, prepared.captions, prepared.image_ids, digest)
    if kind == "flickr8k":
        listed = flickr8k.read_split(root, split)
    else:
        listed = karpathy.read_split(annotations, root, split)
    images = ImageSource(listed.paths, transform)
    return CaptionedSplit(images, listed.captions, listed.image_ids, digest_images(listed.paths))


def make_vocabulary(config: CaptionDataConfig) -> Vocabulary:
    """The words of the training captions."""
    captions = read_split(config, "train").captions
    return Vocabulary.count((text for texts in captions for text in texts), config.min_count)


def model_inputs(config: CaptionDataConfig, split: CaptionedSplit) -> Source:
    """What the model sees: videos, images, or the cached maps of images."""
    if config.kind == "moving_shapes" or not config.frozen_encoder:
        inputs: Source = split.inputs
        return inputs
    return load_maps(config.cache, split.inputs, split.digest)


def make_loader(
    config: CaptionDataConfig,
    split: str,
    vocabulary: Vocabulary,
    *,
    batch_size: int,
    seed: int,
    pairs: bool,
) -> Loader:
    """Batches of a split: of pairs in buckets of similar length, or of images with all captions.

    Args:
      config: the data.
      split: ``train`` without end; any other once and in order, with all captions.
      vocabulary: of the model.
      batch_size: rows.
      seed: of the order.
      pairs: whether a training row is one caption of an image, not all of them.
    """
    train = split == "train"
    read = read_split(config, split)
    source = CaptionSource(
        model_inputs(config, read),
        read.captions,
        vocabulary,
        pairs=train and pairs,
        max_words=config.max_words or None if train else None,
        names=read.names,
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
        transform=None if config.frozen_encoder or not train else RandomCrop(config.image_size),
        seed=seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.num_workers if train else 0,
        max_bad_share=0.05 if train else 1.0,
    )


def count_frequencies(config: CaptionDataConfig, vocabulary: Vocabulary) -> DocumentFrequencies:
    """Document frequencies of the training captions, from the cache where they lie there."""
    captions = read_split(config, "train").captions
    text = "\n\n".join("\n".join(texts) for texts in captions)
    digest = _digest(text, vocabulary.digest)
    path = Path(config.cache) / f"frequencies_{digest}.npz"
    if path.is_file():
        return DocumentFrequencies.load(path)
    frequencies = DocumentFrequencies.count(_encode(texts, vocabulary) for texts in captions)
    path.parent.mkdir(parents=True, exist_ok=True)
    frequencies.save(path)
    return frequencies


def _encode(texts: Sequence[str], vocabulary: Vocabulary) -> np.ndarray:
    ids = [vocabulary.encode(text) for text in texts]
    width = max(map(len, ids))
    return np.array([caption + [0] * (width - len(caption)) for caption in ids], np.int32)


def _digest(*texts: str) -> str:
    import hashlib

    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]
