"""Data of the captioning experiments: images or features with captions, from files to batches.

``read_split`` reads a split, ``training_views`` adds mirrored and corner crops, ``model_inputs``
replaces images by cached feature maps of a frozen encoder, and ``make_loader`` makes the batches.
``make_prediction_data`` makes batches of image files without captions.
"""

import copy
import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast, get_args

import jax
import numpy as np

from data.batches import Source
from data.captions.examples import CaptionSource, ImageSource
from data.captions.images import MAX_PIXELS, ImageTransform, RandomCrop, check_max_pixels
from data.captions.length_buckets import LengthBuckets, choose_boundaries
from data.captions.vocabulary import Vocabulary, mirror_caption
from data.datasets import (
    coco_captions,
    coco_captions_tfds,
    flickr8k,
    karpathy,
)
from data.datasets.captioned_images import CaptionedImages, Missing, first_few
from data.loader import Batch, Loader, describe_examples
from data.moving_shapes.source import MovingShapes
from data.sources import ConcatenatedSources
from experiments.captioning.caption_weights import (
    add_captions,
    count_frequencies,
    find_neighbours,
    weigh_captions,
)
from experiments.features.frozen_features import (
    Encode,
    cache_features,
    describe_encoder,
    digest_images,
    make_encode,
)
from flaxnets.configuration import nearest, path_field, runtime
from flaxnets.encoders.config import EncoderConfig

logger = logging.getLogger(__name__)

CORNERS = ((0.0, 0.0), (0.2, 0.2), (0.0, 0.2), (0.2, 0.0))
"""(top, left) of the corner crops, as shares of height and width, in the order of use."""
CORNER_SIZE = 0.8
"""Height and width of a corner crop, as a share of the image's."""
FITS = ("stretch", "crop")
MISSING = get_args(Missing)
KINDS = ("moving_shapes", "flickr8k", "karpathy", "coco", "coco_tfds")


@dataclasses.dataclass
class CaptionDataConfig:
    """Source of images and captions, views of the images, and the captions' tokens."""

    kind: str = "flickr8k"
    """``moving_shapes``: the embedded videos. ``flickr8k``: its own folders. ``karpathy``: the JSON
    of Karpathy's splits of Flickr8k, Flickr30k or COCO. ``coco``: its own folder and JSON, with the
    validation images as the test split. ``coco_tfds``: TFDS's coco_captions, once prepared."""
    root: str = path_field(runtime=True)
    """Folder of the data set; for ``karpathy`` the folder of images, for ``coco_tfds`` TFDS's
    folder. Required except for ``moving_shapes`` and for captions of other images. It may be moved:
    the workdir records the vocabulary, and digests of the lists."""
    annotations: str = path_field(runtime=True)
    """``karpathy`` only: the JSON file."""
    missing: str = runtime("error")
    """Treatment of listed images without a file: ``error``, or ``skip`` to leave them out and log
    their number; a run refuses another list than that of its training. Not for ``coco_tfds``, whose
    images are in its records."""
    max_pixels: int = runtime(MAX_PIXELS)
    """Larger images count as unreadable; they are refused before they are decoded. Each thread that
    reads images needs up to 8 bytes a pixel, 20 for WebP."""
    cache: str = path_field("runs/features", runtime=True)
    """Folder of cached features and document frequencies."""
    image_size: int = 288
    """Height and width of the encoder's images, pixels; a multiple of 32."""
    image_fit: str = "stretch"
    """``stretch``: the whole image is resized to a square. ``crop``: the centre crop, as for
    ImageNet."""
    mirror: bool = True
    """Images only: training sees each image also mirrored, with left and right exchanged in its
    captions. An epoch is twice as long."""
    num_corners: int = 4
    """Frozen encoders only: corner crops, 0 to 4, that are further training images with the same
    captions, each 4/5 as high and wide as the image. With ``mirror`` the second and fourth are
    mirrored. Each makes the epoch longer by the number of images."""
    min_count: int = 5
    """Words with fewer occurrences in the training captions are unknown."""
    all_captions: bool = False
    """A training example is an image with all its captions instead of one, so that an encoder that
    trains runs once for all of them."""
    consensus: float = 0.0
    """λ in [0,1]: in training the words of a caption have the weight 1 - λ + λ × its CIDEr-D
    against the image's other captions, relative to their mean
    (``experiments/captioning/caption_weights.py``). 0: equal weights."""
    num_neighbours: int = 0
    """Self-critical training only: number of most similar training images whose captions are
    further references of an image (``experiments/captioning/caption_weights.py``). 0: none."""
    neighbour_share: float = 0.33
    """Total weight, in [0,1], of the neighbours' captions in a reward; the image's own captions
    have the rest."""
    max_words: int = 0
    """Number of words to which training captions are cut; 0: not cut."""
    num_buckets: int = 8
    """Lengths to which training batches are padded."""
    num_train: int = 2_000
    """``moving_shapes`` only: training videos."""
    num_validation: int = 200
    """``moving_shapes`` only: validation videos."""
    num_test: int = 500
    """``moving_shapes`` only: test videos."""
    num_workers: int = runtime(0)
    """Processes that read training examples; 0: threads only."""

    def read(self, split: str) -> "CaptionedSplit":
        """Returns a split of the configured data set; see ``read_split``."""
        return _read_known(self, split)


@dataclasses.dataclass(frozen=True)
class CaptionedSplit:
    """One split of a data set: inputs, captions and names.

    Attributes:
      inputs: random access to N examples with ``image`` or ``video``.
      captions: the captions of each input.
      names: the data set's name or id of each input.
      digest: identifies the bytes of the inputs; empty for embedded videos.
    """

    inputs: Any
    captions: tuple[tuple[str, ...], ...]
    names: tuple[str | int, ...]
    digest: str

    def describe(self) -> dict[str, Any]:
        """Returns what identifies names and captions, wherever the images lie, for JSON."""
        return describe_examples(self.names, self.captions)


def read_split(config: CaptionDataConfig, split: str) -> CaptionedSplit:
    """Returns a split of the configured data set.

    Raises:
      ValueError: an unknown kind or split, or a missing path in the configuration.
      FileNotFoundError: missing files.
    """
    return config.read(split)


def _read_known(config: CaptionDataConfig, split: str) -> CaptionedSplit:
    """Returns a split of a data set in ``KINDS``."""
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
    check_missing(config)
    check_max_pixels(config.max_pixels)
    transform = image_transform(config)
    return _images(
        config.kind,
        config.root,
        config.annotations,
        transform,
        split,
        cast(Missing, config.missing),
        config.max_pixels,
    )


def check_missing(config: CaptionDataConfig) -> None:
    """Raises ValueError for an unknown value of ``data.missing``."""
    if config.missing not in MISSING:
        raise ValueError(
            f"data.missing: unknown {config.missing!r}{nearest(config.missing, MISSING)}"
        )


def image_transform(config: CaptionDataConfig) -> ImageTransform:
    """Returns the transform of images to one size.

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
    kind: str,
    root: str,
    annotations: str,
    transform: ImageTransform,
    split: str,
    missing: Missing,
    max_pixels: int,
) -> CaptionedSplit:
    if kind == "coco_tfds":
        prepared = coco_captions_tfds.read_split(root, split)
        images: Any = prepared.images(transform, max_pixels=max_pixels)
        return CaptionedSplit(images, prepared.captions, prepared.image_ids, prepared.digest)
    if kind == "flickr8k":
        listed = flickr8k.read_split(root, split, missing=missing)
    elif kind == "coco":
        listed = coco_captions.read_split(root, split, missing=missing)
    else:
        listed = karpathy.read_split(annotations, root, split, missing=missing)
    return split_of_images(listed, split, transform, max_pixels)


def split_of_images(
    listed: CaptionedImages, split: str, transform: ImageTransform, max_pixels: int
) -> CaptionedSplit:
    """Returns the split of captioned image files; logs how many of them are missing."""
    if listed.missing:
        logger.warning(
            "data.missing: left out %d of %d images of the split %s, whose files are not there: %s",
            len(listed.missing),
            len(listed) + len(listed.missing),
            split,
            first_few(listed.missing),
        )
    images = ImageSource(listed.paths, transform, max_pixels=max_pixels)
    return CaptionedSplit(images, listed.captions, listed.image_ids, digest_images(listed.paths))


def describe_preprocessing(config: CaptionDataConfig, encoder: EncoderConfig) -> dict[str, Any]:
    """Returns the transform of images, and a frozen encoder with its weights' digest, for JSON."""
    if config.kind == "moving_shapes":
        return {}
    frozen = describe_encoder(encoder) if encoder.frozen else {}
    return {"transform": dataclasses.asdict(image_transform(config)), **frozen}


def make_vocabulary(config: CaptionDataConfig) -> Vocabulary:
    """Returns the vocabulary of the training captions."""
    captions = read_split(config, "train").captions
    texts = (text for texts in captions for text in texts)
    return Vocabulary.from_captions(texts, config.min_count)


def model_inputs(
    config: CaptionDataConfig, encoder: EncoderConfig, split: CaptionedSplit
) -> Source:
    """Returns the model's inputs: videos, images, or the cached feature maps of images."""
    if not caches_features(config, encoder):
        inputs: Source = split.inputs
        return inputs
    # Another limit may read images that the cache has as unreadable.
    limit = {} if config.max_pixels == MAX_PIXELS else {"max_pixels": config.max_pixels}
    return cache_features(
        config.cache,
        split.inputs,
        encoder,
        "none",
        preprocessing=dataclasses.asdict(split.inputs.transform) | limit,
        source=split.digest,
    )


def caches_features(config: CaptionDataConfig, encoder: EncoderConfig) -> bool:
    """Returns whether the model is trained on cached features, without the encoder."""
    return encoder.frozen and config.kind != "moving_shapes"


def change_images(split: CaptionedSplit, **changes: Any) -> CaptionedSplit:
    """Returns the split with other values of its images' ``ImageTransform``."""
    images = copy.copy(split.inputs)
    images.transform = dataclasses.replace(images.transform, **changes)
    return dataclasses.replace(split, inputs=images)


def mirror_split(split: CaptionedSplit) -> CaptionedSplit:
    """Returns the split with its images mirrored and left and right exchanged in the captions."""
    captions = tuple(tuple(map(mirror_caption, texts)) for texts in split.captions)
    return dataclasses.replace(change_images(split, mirror=True), captions=captions)


def training_views(
    config: CaptionDataConfig, split: CaptionedSplit, *, cached: bool = True
) -> list[CaptionedSplit]:
    """Returns the views of a split's images for training, each as a split.

    Args:
      config: the data.
      split: the training split, of images.
      cached: whether feature maps are cached; only these have corner crops.

    Raises:
      ValueError: ``num_corners`` out of range.
    """
    if not 0 <= config.num_corners <= len(CORNERS):
        raise ValueError(
            f"data.num_corners: expected 0 to {len(CORNERS)}, received {config.num_corners}"
        )
    views = [split, mirror_split(split)] if config.mirror else [split]
    # An encoder that trains sees random crops instead.
    corners = CORNERS[: config.num_corners] if cached else ()
    for number, (top, left) in enumerate(corners):
        view = change_images(split, window=(top, left, top + CORNER_SIZE, left + CORNER_SIZE))
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
    """Returns the batches of a split, in training of captions of similar length.

    Args:
      config: the data.
      encoder: the model's encoder; feature maps of a frozen one are cached.
      split: ``train`` repeats forever; any other split is one pass in order, with all captions.
      vocabulary: the model's vocabulary.
      batch_size: B, examples of a batch over all processes.
      seed: seed of the order and of random crops.
      pairs: whether a training example is an image with one caption instead of all.

    Raises:
      ValueError: a field of the configuration is out of range, or does not go with the others.
    """
    train = split == "train"
    read = read_split(config, split)
    preprocessing = {"preprocessing": describe_preprocessing(config, encoder)}
    identity = {**read.describe(), **preprocessing, "vocabulary": vocabulary.digest}
    has_images = config.kind != "moving_shapes"
    cached = caches_features(config, encoder)
    augment = None
    if train and has_images and not cached:
        # The proportion of ImageNet: 256 pixels for a crop of 224.
        read = change_images(read, size=config.image_size * 8 // 7)
        augment = RandomCrop(config.image_size)
    weights = None
    if train and config.consensus:
        frequencies = count_frequencies(read.captions, vocabulary, config.cache)
        # All views share them: their captions differ from the image's in left and right alone.
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
        identity=identity,
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
            f"data.num_neighbours: expected 0, received {config.num_neighbours}: neighbours' "
            "captions need self-critical training on cached features, without data.consensus"
        )


class UncaptionedImages(ImageSource):
    """Image files as examples without a caption, for prediction."""

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Returns the example of ``ImageSource`` with one caption of length 0."""
        none = {"tokens": np.zeros((1, 1), np.int32), "token_lengths": np.zeros(1, np.int32)}
        return {**super().__getitem__(index), **none}


class EncodedBatches:
    """Batches of a loader with float16 features of a frozen encoder in place of images.

    Each batch is encoded while the loader's threads prefetch the next.

    Args:
      loader: batches with ``image`` (B,H,W,3) uint8.
      encode: the frozen encoder of images.
    """

    def __init__(self, loader: Loader, encode: Encode) -> None:
        self._loader, self._encode = loader, encode

    @property
    def num_examples(self) -> int:
        """Number of files."""
        return self._loader.num_examples

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that hold every file once."""
        return self._loader.batches_per_epoch

    @property
    def bad(self) -> dict[int, str]:
        """Unreadable files found so far, index -> reason."""
        return self._loader.bad

    def describe(self) -> dict[str, Any]:
        """Returns the settings that fix the order, as ``Loader.describe``."""
        return self._loader.describe()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yields the batches in order, from batch number ``start`` on."""
        with self._loader.batches(start) as batches:
            for batch in batches:
                images = batch.pop("image")
                yield {**batch, "features": self._encode(images).astype(np.float16)}


def make_prediction_data(
    paths: Sequence[str],
    transform: ImageTransform,
    batch_size: int,
    encoder: EncoderConfig,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Loader | EncodedBatches:
    """Returns batches of image files in the given order; unreadable ones have ``mask`` False.

    Args:
      paths: the files.
      transform: resizes the images to one size.
      batch_size: greatest number of rows; a multiple of the number of devices.
      encoder: the model's encoder; a frozen one's feature maps replace the images.
      max_pixels: larger images are unreadable.

    Raises:
      ValueError: ``max_pixels`` out of range.
    """
    check_max_pixels(max_pixels)
    devices = jax.device_count()
    loader = Loader(
        UncaptionedImages(tuple(paths), transform, max_pixels=max_pixels),
        batch_size=min(batch_size, -(-len(paths) // devices) * devices),
        train=False,
        max_bad_share=1.0,
    )
    return EncodedBatches(loader, make_encode(encoder, "none")) if encoder.frozen else loader
