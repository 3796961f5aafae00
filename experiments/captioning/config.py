"""Configuration of a captioner, and the variants that all captioning experiments have.

How the recipe was found, on Flickr8k's validation images, which chose the checkpoint and, after
that, the exponent 1.15 of the search's length normalisation: a second stage (``flickr8k_sampled``)
in which a quarter of the words read are the model's own (arXiv:1506.03099) and captions are weighed
by their consensus (arXiv:1712.09532) adds 1 to 4 points of CIDEr. Soft attention is best after its
first 400 steps, Show and Tell after 3,200 of 4,800. Photographs enter whole, at 288², with mirror
images and corners, encoded once: a quarter of an hour on 2 cores. Tables:
``experiments/results/flickr8k.md``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from data.captions.images import read_image
from data.captions.vocabulary import Vocabulary
from data.loader import Loader
from experiments.captioning import scoring
from experiments.captioning.data import (
    CaptionDataConfig,
    describe_preprocessing,
    image_transform,
    make_loader,
    make_prediction_data,
    make_vocabulary,
    read_split,
)
from experiments.features.frozen_features import describe_frozen_encoder
from flaxnets.configuration import (
    check_at_least,
    check_dtype,
    check_rates,
    nearest,
    runtime,
)
from flaxnets.decoders.config import DecoderConfig, make_decoder
from flaxnets.decoders.search import SearchOptions
from flaxnets.encoders.config import EncoderConfig, make_encoder, weights_file, with_encoder_weights
from flaxnets.models.captioner import Captioner
from flaxnets.models.config import CRNNConfig, check_gives_maps, make_crnn
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.tasks.captioning import Captioning, ScheduledSampling
from flaxnets.tasks.task import Task
from flaxnets.training.config import (
    Config,
    Data,
    OptimizerConfig,
    Scorer,
)

VOCABULARY = "vocabulary.json"
"""File of the vocabulary in a workdir."""
VARIANTS = ("flickr8k", "flickr8k_sampled", "coco", "moving_shapes", "smoke")
COCO_IMAGES, COCO_CAPTIONS = 113_287, 566_747
"""Sizes of Karpathy's training split of COCO."""
COCO_EPOCHS = 10


@dataclasses.dataclass
class CaptionModelConfig:
    """A captioner: an encoder of images, or of the frames of videos, and a decoder."""

    encoder: EncoderConfig = dataclasses.field(
        default_factory=lambda: EncoderConfig(
            "efficientnet_lite0", weights="imagenet", frozen=True, frozen_statistics=True
        )
    )
    """If frozen, it encodes every image once, and the feature maps are cached; else it is
    fine-tuned at ``optimizer.multipliers["encoder"]`` times the learning rate."""
    recurrent: RecurrentConfig = dataclasses.field(
        default_factory=lambda: RecurrentConfig(
            "lstm", features=128, normalize_inputs=True, delta_features=True
        )
    )
    """Videos only: the recurrent layer over the features of the frames."""
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    """The decoder."""
    feature_dropout_rate: float = 0.3
    """Dropout of channels of the feature maps, the same ones in all regions of an image."""
    region_dropout_rate: float = 0.3
    """Dropout of regions, which the decoder then masks."""
    region_features: int = 512
    """Images only: width of the Dense + ReLU layer applied to each region; 0: none."""
    dtype: str = "float32"
    """Dtype of the arithmetic; parameters and logits stay float32."""


@dataclasses.dataclass
class CaptionConfig(Config):
    """Hyper-parameters of a captioner.

    An experiment sets ``model.decoder`` and the training that its paper describes; ``configure``
    sets the data. Defaults are for Flickr8k.
    """

    name: str = "captioner"
    batch_size: int = 64
    best_metric: str = "CIDEr"
    num_steps: int = 4_690
    """10 epochs of Flickr8k's (image, caption) pairs, 1.7 epochs of all views of its images."""
    eval_every: int = 938
    checkpoint_every: int = runtime(938)
    log_every: int = runtime(50)
    patience: int = 3
    ema_decay: float = 0.9995
    label_smoothing: float = 0.1
    """Share of the target probability, in [0,1), that is spread over the vocabulary."""
    attention_penalty: float = 0.0
    """Weight λ of the doubly stochastic attention's penalty; 0: none."""
    reinforce_weight: float = 0.1
    """Weight λ_r of hard attention's REINFORCE term (``flaxnets/decoders/show_attend_tell.py``)."""
    entropy_weight: float = 0.002
    """Weight λ_e of the entropy of hard attention."""
    sampling_increase: float = 0.0
    """Scheduled sampling: increase of the probability at a time; 0: teacher forcing."""
    sampling_every: int = 1_000
    """Scheduled sampling: steps between two increases."""
    sampling_maximum: float = 0.25
    """Scheduled sampling: greatest probability that a step reads a word sampled from the model."""
    data: CaptionDataConfig = dataclasses.field(default_factory=CaptionDataConfig)
    model: CaptionModelConfig = dataclasses.field(default_factory=CaptionModelConfig)
    search: SearchOptions = dataclasses.field(
        default_factory=lambda: SearchOptions(
            beam_size=5, length_normalization="wu", length_alpha=1.15
        )
    )
    """The search for captions in evaluation."""
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            name="adamw",
            learning_rate=1e-3,
            schedule="cosine",
            warmup_steps=200,
            weight_decay=0.2,
            clip_norm=1.0,
        )
    )

    def __post_init__(self) -> None:
        # No field, so it is neither a flag nor part of config.json.
        self._vocabulary: Vocabulary | None = None

    def validate(self) -> None:
        """Checks the values as ``Config.validate``, and that sampled words come from a model."""
        super().validate()
        weights_file(self.model.encoder)  # It is there.
        sampled = self.sampling_increase >= self.sampling_maximum > 0 and self.sampling_every == 1
        if sampled and not self.initialize_from:
            raise ValueError(
                "initialize_from: expected the workdir of a trained captioner, because training "
                "reads the model's own words from the first steps on, received ''"
            )

    @property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the training captions, or of the trained model."""
        if self._vocabulary is None:
            self._vocabulary = make_vocabulary(self.data)
        return self._vocabulary

    def save_assets(self, folder: Path) -> None:
        """Writes the vocabulary, or checks that the folder has the same one."""
        path = folder / VOCABULARY
        if path.exists():
            Vocabulary.load(path).require_same(self.vocabulary)
        else:
            self.vocabulary.save(path)

    def load_assets(self, folder: Path) -> None:
        """Reads the vocabulary of a trained model."""
        self._vocabulary = Vocabulary.load(folder / VOCABULARY)

    def describe_data(self, split: str) -> dict[str, Any]:
        """Returns digests of the names and captions of a split."""
        return read_split(self.data, split).describe()

    def describe_preprocessing(self) -> dict[str, Any]:
        """Returns the transform of the images, and a frozen encoder with its weights' digest."""
        return describe_preprocessing(self.data, self.model.encoder)

    def describe_inference(self) -> dict[str, Any] | None:
        """Returns the captioner of images behind its encoder; None for captions of videos."""
        if self.is_video:
            return None
        encoder, transform = self.model.encoder, image_transform(self.data)
        return {
            "kind": "captioning",
            "name": self.name,
            "network": self.make_model(),
            # As ``make_prediction_data`` rounds them.
            "encoder": describe_frozen_encoder(encoder, "none", dtype="float16")
            if encoder.frozen
            else None,
            "search": dataclasses.asdict(self.search),
            "preprocessing": {
                "kind": "image",
                "size": transform.size,
                "short_side": transform.short_side,
                "resampling": transform.resampling,
                "stretch": transform.stretch,
            },
        }

    def check_variables(self, variables: Mapping[str, Any]) -> None:
        """Checks that the vocabulary has as many ids as the embedding has rows."""
        rows, ids = len(variables["params"]["decoder"]["embedding"]), len(self.vocabulary)
        if rows != ids:
            raise ValueError(
                f"{VOCABULARY}: expected {rows} ids, as the checkpoint embeds, received {ids}; "
                "the file beside the checkpoint is another model's"
            )

    @property
    def is_video(self) -> bool:
        """True for captions of videos, False for captions of images."""
        return self.data.kind == "moving_shapes"

    def make_model(self) -> nn.Module:
        """Returns the decoder, with an encoder unless its features are cached.

        Raises:
          ValueError: an unknown part, or parts that do not go together.
        """
        model = self.model
        check_dtype("model.dtype", model.dtype)
        check_at_least("model", model, {"region_features": 0})
        check_rates("model", model, "feature_dropout_rate", "region_dropout_rate")
        decoder = make_decoder(model.decoder, len(self.vocabulary), dtype=model.dtype)
        encoder: nn.Module | None = None
        if not self.is_video and hasattr(decoder, "attention_features"):
            # Attention over the one region of a vector is a constant.
            name = f"model.decoder.name: {model.decoder.name}"
            check_gives_maps(model.encoder, name, "a decoder without attention, as show_and_tell")
        if self.is_video:
            frames = CRNNConfig(
                model.encoder, model.recurrent, spatial_pool="flatten", dtype=model.dtype
            )
            encoder = make_crnn(frames, None)
        elif not model.encoder.frozen:
            encoder = make_encoder(model.encoder, dtype=model.dtype)
        return Captioner(
            decoder,
            encoder=encoder,
            freeze_statistics=model.encoder.frozen_statistics and not self.is_video,
            feature_dropout_rate=model.feature_dropout_rate,
            region_dropout_rate=model.region_dropout_rate,
            region_features=model.region_features,
        )

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the variables with the pretrained weights of an encoder inside the network."""
        encoder = self.model.encoder
        if self.is_video:
            frames = {
                name: tree["encoder"] for name, tree in variables.items() if "encoder" in tree
            }
            loaded = with_encoder_weights(encoder, frames)
            return {
                name: {**tree, "encoder": loaded[name]} if name in loaded else tree
                for name, tree in variables.items()
            }
        return variables if encoder.frozen else with_encoder_weights(encoder, variables)

    def frozen_parts(self) -> tuple[str, ...]:
        """Returns the path of the frames' encoder where it is frozen and part of the network."""
        return ("encoder/encoder",) if self.is_video and self.model.encoder.frozen else ()

    def make_task(self) -> Task:
        """Returns captioning, evaluated by the search of ``search``."""
        return Captioning(**self._task_options())

    def make_prediction_task(self) -> Task:
        """Returns captioning, which needs no training data for the search."""
        return Captioning(**self._task_options())

    def make_data(self, split: str) -> Loader:
        """Returns batches of captions of similar length in training, else of all captions."""
        return self._loader(split, pairs=not self.data.all_captions)

    def make_scorer(self, split: str, *, complete: bool = False) -> Scorer:
        """Returns the scorer of a split; ``complete`` adds the metrics that need Java."""
        return scoring.make_scorer(self.data, split, complete=complete)

    def scored_metrics(self, split: str) -> tuple[str, ...]:
        """Returns the names of the caption metrics."""
        return scoring.metric_names(self.data)

    def make_prediction_data(self, paths: Sequence[str]) -> Data:
        """Returns the images of files, in the given order.

        Raises:
          ValueError: the model captions videos.
        """
        if self.is_video:
            raise ValueError("images: this model captions the videos of the embedded data set")
        return make_prediction_data(
            paths,
            image_transform(self.data),
            self.batch_size,
            self.model.encoder,
            max_pixels=self.data.max_pixels,
        )

    def read_image(self, path: str) -> np.ndarray:
        """Returns the image of a file, upright, (H,W,3) uint8."""
        return read_image(path, max_pixels=self.data.max_pixels)

    def crop_image(self, image: np.ndarray) -> np.ndarray:
        """Returns the part of an image (H,W,3) uint8 that the model sees, at its aspect ratio."""
        transform = image_transform(self.data)
        return image if transform.stretch else transform(image)

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """Returns the frames of a video, or an image as a single frame, (T,H,W,3) uint8."""
        return scoring.load_clip(self.data, split, index)

    def references(self, split: str) -> tuple[tuple[str, ...], ...]:
        """Returns the human captions of each example of a split."""
        return read_split(self.data, split).captions

    def score_examples(self, split: str, records: Sequence[Mapping[str, Any]]) -> list[float]:
        """Returns the CIDEr of each record's caption; ``make_scorer`` has their mean."""
        return scoring.score_examples(self.data, split, records)

    def write_results(self, path: Path, split: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes captions as COCO's result file, ``SPLIT.coco.json``, beside ``path``.

        Image ids are the data set's if they are integers, else the indices in the split.
        """
        scoring.write_results(self.data, path, split, records)

    def check_same_outputs(self, other: Config) -> None:
        """Raises ValueError if the other model has another vocabulary."""
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
            "reinforce_weight": self.reinforce_weight,
            "entropy_weight": self.entropy_weight,
            "scheduled_sampling": sampling,
        }

    def _loader(self, split: str, *, pairs: bool) -> Loader:
        return make_loader(
            self.data,
            self.model.encoder,
            split,
            self.vocabulary,
            batch_size=self.batch_size,
            seed=self.seed,
            pairs=pairs,
        )


def configure(config: Any, experiment: str, variant: str | None) -> Any:
    """Returns a configuration with the data of a variant, changed in place.

    ``flickr8k`` (default) and ``coco``, Karpathy's split of COCO, caption photographs.
    ``flickr8k_sampled`` starts from a run of ``flickr8k``, the workdir ``initialize_from``: each
    input word is sampled from the model with a probability of 1/4, and captions are weighed by
    their agreement with the others of their image (``data.consensus``). ``moving_shapes`` captions
    the embedded videos; ``smoke`` is a small network on them, for a few seconds.

    Args:
      config: a ``CaptionConfig`` of Flickr8k.
      experiment: name of the experiment, for the error.
      variant: the variant; None: ``flickr8k``.

    Raises:
      ValueError: an unknown variant; self-critical training has no ``flickr8k_sampled``.
    """
    variant = variant or "flickr8k"
    self_critical = getattr(config, "self_critical", False)
    variants = [name for name in VARIANTS if not (self_critical and name == "flickr8k_sampled")]
    if variant not in variants:
        raise ValueError(f"{experiment}:{variant}: no such variant{nearest(variant, variants)}")
    config.name = f"{config.name}, {variant}"
    if variant == "flickr8k_sampled":
        config.num_steps, config.eval_every, config.checkpoint_every = 1_200, 400, 400
        config.sampling_increase, config.sampling_every = config.sampling_maximum, 1
        config.data.consensus = 1.0
        config.ema_decay = 0.995
        config.optimizer.learning_rate, config.optimizer.warmup_steps = 2.5e-4, 50
    if variant == "coco":
        config.data.kind, config.data.num_corners = "karpathy", 0
        rows = COCO_IMAGES if self_critical else COCO_CAPTIONS
        # Half an epoch, because an epoch also has the mirror images.
        config.eval_every = config.checkpoint_every = rows // config.batch_size
        config.num_steps = COCO_EPOCHS * config.eval_every
    if variant not in ("moving_shapes", "smoke"):
        return config
    config.data.kind, config.data.min_count = "moving_shapes", 1
    config.data.num_train, config.data.all_captions = 20_000, True
    config.batch_size, config.num_steps = 32, 6_000
    config.eval_every = config.checkpoint_every = 1_000
    # Steps of a video are not equally informative, and the captions have no noise to smooth.
    config.attention_penalty = config.label_smoothing = config.ema_decay = 0.0
    config.search.max_steps = 24
    config.optimizer.name, config.optimizer.weight_decay = "adam", 0.0
    config.optimizer.learning_rate, config.optimizer.schedule = 2e-3, "cosine"
    config.optimizer.warmup_steps, config.optimizer.clip_norm = 50, 1.0
    decoder = config.model.decoder
    decoder.features = decoder.embed_features = decoder.attention_features = 128
    decoder.dropout_rate = decoder.embed_dropout_rate = 0.1
    config.model.encoder = EncoderConfig(
        "small_cnn", features=(32, 32, 32), strides=(2, 2, 2), input_size=32
    )
    config.model.feature_dropout_rate = config.model.region_dropout_rate = 0.0
    config.model.region_features = 0
    if variant == "smoke":
        config.model.encoder.features, config.model.encoder.strides = (4, 4), (2, 2)
        config.model.recurrent.features = decoder.attention_features = 8
        decoder.features = decoder.embed_features = 16
        config.batch_size, config.num_steps = 8, 6
        config.eval_every = config.checkpoint_every = 3
        config.log_every = 1
        config.optimizer.warmup_steps = 0
        config.search.method = "greedy"
        config.data.num_train, config.data.num_validation, config.data.num_test = 32, 12, 12
        config.data.num_buckets = 1
    return config
