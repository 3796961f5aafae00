r"""Classification of images of one's own: class folders or a list; a CNN alone.

    python -m launch.train --config=experiments/image_classification.py --workdir=runs/mine \
        --config.data.root=my_images
    python -m launch.evaluate --workdir=runs/mine --split=test
    python -m launch.predict --workdir=runs/mine photograph.jpg

Folders, lists and splits are those of ``experiments/video_classification.py``.

The encoder is frozen, and its features are computed once and cached; a linear classifier on them is
trained. ``--config.model.encoder.frozen=False`` fine-tunes the encoder on random crops.

Preprocessing at test: the short side is resized to 224 pixels (bilinear, antialiased) and the
centre cropped; the feature maps are averaged over space. An image is a clip of one frame.

Variants:
  - ``smoke``: a small encoder on single frames of the embedded data, a few seconds.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import numpy as np

from data.captions.images import ImageTransform, read_image
from data.features import digest_file
from data.labelled_images import DecodeImage, ImageFeatures, ImageSource, WholeImages
from data.loader import Loader
from data.moving_shapes.source import MovingShapes
from data.sources import SelectedExamples
from data.video.transforms import SpatialTransform
from experiments.classification.config import FileClassification, FilesConfig, configure
from experiments.features.frozen_features import (
    cache_features,
    describe_frozen_encoder,
    in_memory,
    make_encode,
)
from experiments.moving_shapes import OneFrame
from flaxnets.configuration import check_at_least, runtime
from flaxnets.encoders.config import EncoderConfig
from flaxnets.heads.config import HeadConfig
from flaxnets.models.config import CRNNConfig, make_crnn, pool_of
from flaxnets.recurrent.config import NONE, RecurrentConfig
from flaxnets.tasks.task import Task
from flaxnets.tasks.video_classification import VideoClassification
from flaxnets.training.config import Config, OptimizerConfig


@dataclasses.dataclass
class DataConfig(FilesConfig):
    """Location of the images, and their size."""

    flip: bool = False
    """Fine-tuning only: training images are mirrored at random. Off, as labels may have a direction
    ("left", "right")."""
    size: int = 224
    """Height and width of the images, pixels."""


@dataclasses.dataclass
class ImageClassificationConfig(FileClassification):
    """Hyper-parameters of the classification of one's own images."""

    kind: ClassVar[str] = "image"

    name: str = "CNN"
    batch_size: int = 64
    num_steps: int = 500
    eval_every: int = 50
    patience: int = 5
    checkpoint_every: int = runtime(200)
    label_smoothing: float = 0.0
    """Share of the target probability, in [0,1), that is spread over all classes."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: CRNNConfig = dataclasses.field(
        default_factory=lambda: CRNNConfig(
            EncoderConfig("efficientnet_lite0", weights="imagenet", frozen=True),
            RecurrentConfig(NONE),
            HeadConfig(dropout_rate=0.5),
            chunk_frames=32,
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            name="adamw",
            learning_rate=2e-3,
            schedule="cosine",
            warmup_steps=20,
            weight_decay=1e-2,
            clip_norm=5.0,
        )
    )

    def validate(self) -> None:
        """Checks the values as ``FileClassification.validate``, and that no recurrence is asked."""
        super().validate()
        check_at_least("data", self.data, {"size": 1})
        if self.model.recurrent.cell != NONE:
            raise ValueError(
                f"model.recurrent.cell: expected 'none', as an image has one step, received "
                f"{self.model.recurrent.cell!r}; experiments/video_classification.py reads videos"
            )

    def describe_preprocessing(self) -> dict[str, Any]:
        """Returns the transform of the images, and the frozen encoder with its weights' digest."""
        described: dict[str, Any] = {"transform": dataclasses.asdict(self._transform)}
        if self.caches_features:
            return {**described, "pool": self._pool, **self.describe_encoder()}
        return {**described, "random": dataclasses.asdict(self._random)}

    def describe_inference(self) -> dict[str, Any]:
        """Returns the classifier, behind its encoder where it is frozen, and images as at test."""
        transform = self._transform
        return {
            "kind": "image_classification",
            "name": self.name,
            "labels": list(self.class_names),
            "network": self.make_model(),
            "encoder": describe_frozen_encoder(self.model.encoder, self._pool)
            if self.caches_features
            else None,
            "averaging": "clip",
            "preprocessing": {
                "kind": "image",
                "size": transform.size,
                "short_side": transform.short_side,
                "resampling": transform.resampling,
                "stretch": transform.stretch,
            },
        }

    def make_model(self) -> nn.Module:
        """Returns the classifier of features, behind the encoder where it is fine-tuned."""
        return make_crnn(
            self.model,
            len(self.class_names),
            cached_features=self.caches_features,
            fixed_length=True,
        )

    def make_task(self) -> Task:
        """Returns classification of clips of one frame."""
        return VideoClassification(loss_kind="clip", label_smoothing=self.label_smoothing)

    def make_data(self, split: str) -> Loader:
        """Returns the images of ``train``, ``validation`` or ``test``."""
        if split == "train":
            self.announce()
        if self.embedded:
            clips = MovingShapes(split, self.data.num_examples)
            return self.make_loader(clips, OneFrame(split == "train"), self.batch_size, split)
        if self.caches_features:
            return self.make_loader(self._examples(split), None, self.batch_size, split)
        files = self.select(split)
        decode = DecodeImage(self._transform, self._random if split == "train" else None)
        source = ImageSource(files.paths, files.labels)
        return self.make_loader(source, decode, self.batch_size, split)

    def make_prediction_data(self, paths: Sequence[str]) -> Loader:
        """Returns the given files, resized as at test; unreadable ones are masked."""
        source = ImageSource(tuple(paths))
        if not self.caches_features:
            return self.make_loader(source, DecodeImage(self._transform), self.batch_size)
        whole = WholeImages(source, self._transform)
        encode = make_encode(
            self.model.encoder, "mean" if pool_of(self.model) == "mean" else "none"
        )
        examples = []
        for index in range(len(whole)):
            example = dict(whole[index])
            examples.append({**example, "features": encode(example.pop("image")[None])[0]})
        return self.make_loader(ImageFeatures(examples, whole), None, self.batch_size)

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """Returns an image as a clip of one frame, (1,H,W,3) uint8."""
        if self.embedded:
            clip = MovingShapes(split, self.data.num_examples)[index]["video"]
            return clip[len(clip) // 2 :][:1]
        return read_image(self.select(split).paths[index])[None]

    def describe_inputs(self) -> str:
        """Returns the inputs of the network in words."""
        return f"images of {self.data.size}²"

    @property
    def _pool(self) -> str:
        """Pooling over space of the features that are cached: ``mean``, or ``none`` for maps."""
        return "mean" if pool_of(self.model) == "mean" else "none"

    @property
    def _transform(self) -> ImageTransform:
        return ImageTransform(self.data.size)

    @property
    def _random(self) -> SpatialTransform:
        return SpatialTransform((self.data.size, self.data.size), flip=self.data.flip)

    def _examples(self, split: str) -> SelectedExamples:
        """Returns the cached features of a split; all splits and folds share one cache."""
        files, positions = self.in_order_of_names(split)
        whole = WholeImages(ImageSource(files.paths, files.labels), self._transform)
        cached = cache_features(
            self.data.cache,
            whole,
            self.model.encoder,
            self._pool,
            preprocessing={"transform": dataclasses.asdict(self._transform), "pool": self._pool},
            # No paths: moved images are the same, and the labels are those of the list.
            source=[digest_file(path) for path in files.paths],
        )
        return SelectedExamples(ImageFeatures(in_memory(cached), whole, files.labels), positions)


def get_config(variant: str | None = None) -> Config:
    """Returns the configuration of a variant; None: for files of one's own.

    Raises:
      ValueError: an unknown variant.
    """
    config: Config = configure(ImageClassificationConfig(), "image_classification", variant)
    return config
