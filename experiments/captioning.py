"""What the captioning experiments share; each of them says which decoder, and how it is trained."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from data.caption_examples import ImageSource
from data.caption_scores import WITHOUT_JAVA, CaptionScorer
from data.captions import Vocabulary
from data.coco_results import write_results
from data.images import ImageTransform, read_image
from data.loader import Loader
from data.synthetic import MovingShapes
from data.synthetic_captions import tells_motion
from experiments.caption_data import (
    CaptionDataConfig,
    make_loader,
    make_vocabulary,
    read_split,
)
from experiments.caption_prediction import make_prediction_data
from flaxnets.decoders.caption import CaptionDecoder
from flaxnets.decoders.search import SearchOptions
from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.pretrained import load_efficientnet_lite0
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.models.captioner import Captioner
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.training.captioning import Captioning, ScheduledSampling
from flaxnets.training.config import Config, OptimizerConfig, Scorer, nearest, runtime
from flaxnets.training.data import Data
from flaxnets.training.task import Task

logger = logging.getLogger(__name__)

VOCABULARY = "vocabulary.json"
CELLS: Mapping[str, Any] = {"lstm": LSTMCell, "gru": GRUCell}
VARIANTS = ("flickr8k", "coco", "moving_shapes", "smoke")


@dataclasses.dataclass
class DecoderConfig:
    """The sizes of a decoder, and of the encoder of videos."""

    cell: str = "lstm"
    """``lstm`` or ``gru``."""
    features: int = 512
    embed_features: int = 512
    attention_features: int = 512
    dropout_rate: float = 0.5
    embed_dropout_rate: float = 0.5
    region_dropout_rate: float = 0.3
    """On the channels of the image's maps."""
    dtype: str = "float32"
    encoder_features: tuple[int, ...] = (32, 32, 32)
    """Videos only: maps of the encoder's layers, each at half the size of the one before."""
    recurrent_features: int = 128
    """Videos only: of the recurrent layer over the encoder's features."""


@dataclasses.dataclass
class CaptionConfig(Config):
    """The hyper-parameters of a captioner.

    Features of a frozen EfficientNet-Lite0 are encoded once and cached; with
    ``data.frozen_encoder`` False the encoder is part of the network and is fine-tuned at
    ``optimizer.multipliers["encoder"]`` times the learning rate, its BatchNorm frozen.
    """

    name: str = "captioner"
    batch_size: int = 64
    best_metric: str = "CIDEr"
    num_steps: int = 3_752
    """8 epochs of Flickr8k's pairs."""
    eval_every: int = 469
    checkpoint_every: int = runtime(469)
    log_every: int = runtime(50)
    patience: int = 3
    label_smoothing: float = 0.1
    attention_penalty: float = 0.0
    """Of the doubly stochastic attention; 0: none."""
    sampling_increase: float = 0.0
    """Scheduled sampling: what its probability rises by at a time; 0: teacher forcing."""
    sampling_every: int = 1_000
    """Scheduled sampling: steps between two rises."""
    sampling_maximum: float = 0.25
    data: CaptionDataConfig = dataclasses.field(default_factory=CaptionDataConfig)
    model: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    search: SearchOptions = dataclasses.field(
        default_factory=lambda: SearchOptions(beam_size=5, length_normalization="wu")
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            name="adam", learning_rate=1e-3, schedule="cosine", warmup_steps=200, clip_norm=1.0
        )
    )

    def __post_init__(self) -> None:
        # Not a field: flags cannot set it.
        self._vocabulary: Vocabulary | None = None

    def make_decoder(self, **sizes: Any) -> CaptionDecoder:
        """The experiment's decoder, with the attributes that all decoders share."""
        raise self._missing("make_decoder")

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of the training captions, or of the trained model."""
        if self._vocabulary is None:
            self._vocabulary = make_vocabulary(self.data)
        return self._vocabulary

    def save_assets(self, folder: Path) -> None:
        """Writes the vocabulary, or checks that the folder has the same."""
        path = folder / VOCABULARY
        if path.exists():
            Vocabulary.load(path).require_same(self.vocabulary)
        else:
            self.vocabulary.save(path)

    def load_assets(self, folder: Path) -> None:
        """Takes the vocabulary of a trained model."""
        self._vocabulary = Vocabulary.load(folder / VOCABULARY)

    def make_model(self) -> nn.Module:
        """The decoder, with an encoder where the inputs are no features.

        Raises:
          ValueError: an unknown cell.
        """
        model = self.model
        if model.cell not in CELLS:
            raise ValueError(f"model.cell: unknown {model.cell!r}{nearest(model.cell, set(CELLS))}")
        decoder = self.make_decoder(
            vocabulary_size=len(self.vocabulary),
            make_cell=partial(CELLS[model.cell], model.features, dtype=model.dtype),
            embed_features=model.embed_features,
            dropout_rate=model.dropout_rate,
            embed_dropout_rate=model.embed_dropout_rate,
            dtype=model.dtype,
        )
        if self.data.kind == "moving_shapes":
            encoder: nn.Module | None = self._make_video_encoder()
        elif self.data.frozen_encoder:
            encoder = None
        else:
            encoder = EfficientNetLite0(dtype=model.dtype)
        return Captioner(
            decoder,
            encoder=encoder,
            freeze_statistics=self.data.kind != "moving_shapes",
            dropout_rate=model.region_dropout_rate,
        )

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """With an encoder that is fine-tuned, its ImageNet weights."""
        if self.data.kind == "moving_shapes" or self.data.frozen_encoder:
            return variables
        loaded = load_efficientnet_lite0()
        return {
            name: {**variables[name], "encoder": loaded[name]} if name in loaded else tree
            for name, tree in variables.items()
        }

    def make_task(self) -> Task:
        """Words after words; evaluation searches by ``search``."""
        return Captioning(**self._task_options())

    def make_prediction_task(self) -> Task:
        """The search alone."""
        return Captioning(**self._task_options())

    def make_data(self, split: str) -> Loader:
        """Captions of similar length in training; images with all captions else."""
        return self._loader(split, pairs=True)

    def make_scorer(self, split: str, *, complete: bool = False) -> Scorer:
        """BLEU, ROUGE-L and CIDEr of a split's captions; ``complete``: all that Java allows, too.

        Images that could not be decoded have no caption and do not count.
        """
        captions = read_split(self.data, split).captions
        metrics = None if complete else WITHOUT_JAVA

        @functools.lru_cache(maxsize=1)
        def scorer_of(indices: tuple[int, ...]) -> CaptionScorer[int]:
            return CaptionScorer({index: captions[index] for index in indices})

        def score(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
            found = {int(record["index"]): str(record["caption"]) for record in records}
            scored = scorer_of(tuple(sorted(found))).score(found, metrics=metrics)
            if scored.left_out:
                logger.info("%s", scored.left_out)
            scores = dict(scored.corpus)
            if self.data.kind == "moving_shapes":
                scenes = MovingShapes(split, len(captions))
                right = [
                    tells_motion(caption, scenes.describe(index))
                    for index, caption in found.items()
                ]
                scores["motion_accuracy"] = float(np.mean(right))
            return scores

        return score

    def make_prediction_data(self, paths: Sequence[str]) -> Data:
        """Image files, in the given order.

        Raises:
          ValueError: a model of videos.
        """
        if self.data.kind == "moving_shapes":
            raise ValueError("images: this model captions the videos of the embedded data set")
        return make_prediction_data(
            paths,
            self.data.image_size,
            self.batch_size,
            frozen_encoder=self.data.frozen_encoder,
        )

    def read_image(self, path: str) -> np.ndarray:
        """An image file, upright, (H,W,3) uint8."""
        return read_image(path)

    def crop_image(self, image: np.ndarray) -> np.ndarray:
        """The middle of an image (H,W,3) uint8 as the model sees it."""
        return ImageTransform(self.data.image_size)(image)

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """A video's frames, or an image as the only one, (T,H,W,3) uint8."""
        if self.data.kind == "moving_shapes":
            video: np.ndarray = read_split(self.data, split).inputs[index]["video"]
            return video
        return self.load_image(split, index)[None]

    def load_image(self, split: str, index: int) -> np.ndarray:
        """An image of a split, (H,W,3) uint8; of a video the frame in the middle."""
        inputs = read_split(self.data, split).inputs
        if self.data.kind == "moving_shapes":
            video: np.ndarray = inputs[index]["video"]
            return video[len(video) // 2]
        if isinstance(inputs, ImageSource):
            return read_image(inputs.paths[index])
        image: np.ndarray = inputs.decode(index)
        return image

    def references(self, split: str) -> tuple[tuple[str, ...], ...]:
        """The captions that people wrote, of each example of a split."""
        return read_split(self.data, split).captions

    def score_examples(self, split: str, records: Sequence[Mapping[str, Any]]) -> list[float]:
        """CIDEr of each record's caption, as ``make_scorer`` makes one of all."""
        captions = read_split(self.data, split).captions
        found = {int(record["index"]): str(record["caption"]) for record in records}
        scorer = CaptionScorer({index: captions[index] for index in found})
        scores = scorer.score(found, metrics=("CIDEr",)).per_image["CIDEr"]
        return [scores[int(record["index"])] for record in records]

    def write_results(self, path: Path, split: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes captions as COCO's result file, ``SPLIT.coco.json``.

        Image ids are the data set's where they are integers, else the places in the split.
        """
        names = read_split(self.data, split).names
        captions = {}
        for record in records:
            name = names[record["index"]]
            captions[name if isinstance(name, int) else record["index"]] = record["caption"]
        write_results(path.with_suffix(".coco.json"), captions)

    def check_same_outputs(self, other: Config) -> None:
        """Compares the vocabularies."""
        if isinstance(other, CaptionConfig):
            self.vocabulary.require_same(other.vocabulary)

    def _task_options(self) -> dict[str, Any]:
        sampling = None
        if self.sampling_increase:
            sampling = ScheduledSampling(
                self.sampling_increase, self.sampling_every, self.sampling_maximum
            )
        return {
            "words": self.vocabulary.decode,
            "options": self.search,
            "label_smoothing": self.label_smoothing,
            "attention_penalty": self.attention_penalty,
            "scheduled_sampling": sampling,
        }

    def _loader(self, split: str, *, pairs: bool) -> Loader:
        return make_loader(
            self.data,
            split,
            self.vocabulary,
            batch_size=self.batch_size,
            seed=self.seed,
            pairs=pairs,
        )

    def _make_video_encoder(self) -> nn.Module:
        model = self.model
        encoder = SmallCNN(
            tuple(model.encoder_features),
            (2,) * len(model.encoder_features),
            input_size=32,
            dtype=model.dtype,
        )
        make_cell = partial(LSTMCell, model.recurrent_features, dtype=model.dtype)
        recurrent = Recurrent(make_cell, normalize_inputs=True, delta_features=True)
        return CRNN(classifier=None, encoder=encoder, recurrent=recurrent, pool="flatten")


def configure(config: Any, experiment: str, variant: str | None) -> Any:
    """Sets the data of a variant: ``flickr8k`` (the default), ``coco``, embedded videos.

    ``moving_shapes`` captions the embedded videos; ``smoke`` does so for seconds.

    Raises:
      ValueError: an unknown variant.
    """
    variant = variant or "flickr8k"
    if variant not in VARIANTS:
        raise ValueError(f"{experiment}:{variant}: no such variant{nearest(variant, VARIANTS)}")
    config.name = f"{config.name}, {variant}"
    if variant == "coco":
        config.data.kind = "karpathy"
    if variant not in ("moving_shapes", "smoke"):
        return config
    config.data.kind, config.data.min_count = "moving_shapes", 1
    config.batch_size, config.num_steps = 32, 1_500
    config.eval_every = config.checkpoint_every = 500
    config.search.max_steps = 24
    config.optimizer.learning_rate, config.optimizer.schedule = 2e-3, "cosine"
    config.optimizer.warmup_steps, config.optimizer.clip_norm = 50, 1.0
    config.model.features = config.model.embed_features = 128
    config.model.attention_features = 128
    config.model.dropout_rate = config.model.embed_dropout_rate = 0.1
    config.model.region_dropout_rate = 0.0
    if variant == "smoke":
        config.model.encoder_features = (4, 4)
        config.model.recurrent_features = config.model.attention_features = 8
        config.model.features = config.model.embed_features = 16
        config.batch_size, config.num_steps = 8, 6
        config.eval_every = config.checkpoint_every = 3
        config.log_every = 1
        config.optimizer.warmup_steps = 0
        config.search.method = "greedy"
        config.data.num_train, config.data.num_validation, config.data.num_test = 32, 12, 12
        config.data.num_buckets = 1
    return config
