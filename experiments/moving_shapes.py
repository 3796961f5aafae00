"""CNN, RNN or both: three networks compared on the embedded data set.

The label of a clip is the motion of its coloured object. The 8 classes are 4 motions and their
time-reversals: a network that cannot see the order of frames stays at 50 %, and a single frame says
almost nothing (chance: 12.5 %).

    python -m launch.train --config=experiments/moving_shapes.py:crnn --workdir=runs/crnn

Variants: ``crnn`` (default); ``cnn``, the same encoder with its features averaged over the frames;
``rnn``, the same recurrent layer on raw, downsampled frames; ``frame``, the CNN trained and tested
on one frame of each clip; ``smoke``, the CRNN for a few seconds. The numbers of parameters differ
by at most 3 %. ``make demo`` trains and compares the first three. Results:
experiments/results/moving_shapes.md.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from data.batches import Source
from data.loader import Loader
from data.moving_shapes.scenes import IMAGE_SIZE, NUM_FRAMES
from data.moving_shapes.source import LABELS, MovingShapes
from data.sources import FoldExamples
from flaxnets.configuration import nearest, runtime
from flaxnets.encoders.config import EncoderConfig, with_encoder_weights
from flaxnets.models.config import CRNNConfig, make_crnn
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.tasks.task import Task
from flaxnets.tasks.video_classification import VideoClassification
from flaxnets.training.config import Config, OptimizerConfig

NAMES = {
    "crnn": "CRNN",
    "cnn": "CNN-only",
    "rnn": "RNN-only",
    "frame": "CNN, one frame",
    "smoke": "CRNN, smoke",
}
"""Variants, and the names of their networks in tables."""


@dataclasses.dataclass
class DataConfig:
    """Sizes and folds of the embedded data set."""

    num_train: int = 20_000
    """Training clips."""
    num_validation: int = 500
    """Validation clips."""
    num_test: int = 2_000
    """Test clips."""
    label: str = "motion"
    """``motion`` of the coloured object, its ``shape``, which one frame shows, or ``both``."""
    single_frame: bool = False
    """Each clip is cut to one frame: a random one in training, the middle one at test."""
    seed: int = 0
    """Seed of the scenes; the clips are a function of it and their index."""
    fold: int = 0
    """Fold of a cross-validation within the training clips, from 1 on; its validation and test
    clips are parts of them (``data/sources.py``). 0: the data set's own splits."""
    num_folds: int = 3
    """Parts of the training clips, at least 3."""
    num_workers: int = runtime(0)
    """Processes that render training clips; 0: threads only."""


@dataclasses.dataclass(frozen=True)
class OneFrame:
    """Cuts a clip to one frame.

    Attributes:
      train: takes a random frame; False: the middle one.
    """

    train: bool

    def __call__(
        self, example: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Returns the example with ``video`` (1,H,W,3) and ``lengths`` 1."""
        num_frames = len(example["video"])
        frame = int(rng.integers(num_frames)) if self.train else num_frames // 2
        video = example["video"][frame : frame + 1]
        return {**example, "video": video, "lengths": np.asarray(1, np.int32)}


@dataclasses.dataclass
class MovingShapesConfig(Config):
    """Hyper-parameters of the comparison; the defaults are the CRNN's."""

    batch_size: int = 32
    num_steps: int = 500
    eval_every: int = 250
    checkpoint_every: int = runtime(250)
    model: CRNNConfig = dataclasses.field(
        default_factory=lambda: CRNNConfig(
            EncoderConfig("small_cnn", features=(32, 32, 32), strides=(2, 2, 2), input_size=32),
            RecurrentConfig("lstm", features=128, normalize_inputs=True, delta_features=True),
            spatial_pool="flatten",
        )
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            name="adam", learning_rate=2e-3, schedule="cosine", warmup_steps=50, clip_norm=1.0
        )
    )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        if self.data.label not in LABELS:
            near = nearest(self.data.label, LABELS)
            raise ValueError(f"data.label: unknown {self.data.label!r}{near}")
        return LABELS[self.data.label]

    def describe_data(self, split: str) -> dict[str, Any]:
        """Returns the classes, the split and the seed of the scenes, or the fold."""
        data = self.data
        if not data.fold:
            return self._make(split, self._sizes.get(split)).describe()
        clips = self._make("train", data.num_train).describe()
        return {**clips, "split": split, "fold": data.fold, "num_folds": data.num_folds}

    def make_model(self) -> nn.Module:
        """Returns the network that ``model`` describes, for clips of one length."""
        return make_crnn(self.model, len(self.class_names), fixed_length=True)

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the variables with the pretrained weights of the encoder, if it has any."""
        return with_encoder_weights(self.model.encoder, variables)

    def frozen_parts(self) -> tuple[str, ...]:
        """Returns ``encoder`` where it is frozen."""
        return ("encoder",) if self.model.encoder.frozen else ()

    def make_task(self) -> Task:
        """Returns classification of clips by their logits averaged over the steps."""
        return VideoClassification(loss_kind="clip")

    def describe_inference(self) -> dict[str, Any]:
        """Returns the network, for videos of any size, 16 frames of which are stretched to 64²."""
        return {
            "kind": "video_classification",
            "name": self.name,
            "labels": list(self.class_names),
            "network": self.make_model(),
            "encoder": None,
            "averaging": "clip",
            "preprocessing": {
                "kind": "clip",
                "sampler": "uniform",
                "num_frames": 1 if self.data.single_frame else NUM_FRAMES,
                "size": [IMAGE_SIZE, IMAGE_SIZE],
                "keep_aspect": False,
            },
        }

    def set_fold(self, fold: int) -> None:
        """Selects the fold whose part of the training clips is tested.

        Raises:
          ValueError: not 1 to ``data.num_folds``.
        """
        if not 1 <= fold <= self.data.num_folds:
            raise ValueError(
                f"fold: expected 1 to data.num_folds = {self.data.num_folds}, received {fold}"
            )
        self.data.fold = fold

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """Returns the frames of a clip, (16,64,64,3) uint8."""
        if self.data.fold:
            return self._clips(split)[index]["video"]
        # A clip is a function of the seed and its index, not of the number of clips.
        return self._make(split, index + 1)[index]["video"]

    def make_data(self, split: str) -> Loader:
        """Returns the clips of a split of ``MovingShapes``, or of the fold."""
        train = split == "train"
        return Loader(
            self._clips(split),
            transform=OneFrame(train) if self.data.single_frame else None,
            batch_size=self.batch_size,
            train=train,
            identity=self.describe_data(split),
            seed=self.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=self.data.num_workers if train else 0,
        )

    def _clips(self, split: str) -> Source:
        data = self.data
        if data.fold:
            clips = self._make("train", data.num_train)
            return FoldExamples(clips, split, num_folds=data.num_folds, fold=data.fold)
        return self._make(split, self._sizes.get(split))

    def _make(self, split: str, size: int | None) -> MovingShapes:
        return MovingShapes(split, size, seed=self.data.seed, label=self.data.label)

    @property
    def _sizes(self) -> dict[str, int]:
        data = self.data
        return {"train": data.num_train, "validation": data.num_validation, "test": data.num_test}


def get_config(variant: str | None = None) -> MovingShapesConfig:
    """Returns the configuration of a variant; None: ``crnn``.

    Raises:
      ValueError: an unknown variant.
    """
    variant = variant or "crnn"
    if variant not in NAMES:
        raise ValueError(f"moving_shapes:{variant}: no such variant{nearest(variant, set(NAMES))}")
    config = MovingShapesConfig(name=NAMES[variant])
    model = config.model
    if variant in ("cnn", "frame"):
        model.recurrent = RecurrentConfig("average", features=1024, normalize_inputs=True)
        model.head.hidden_features = 64
        config.data.single_frame = variant == "frame"
    elif variant == "rnn":
        model.encoder = EncoderConfig("downsampled_frames", input_size=16)
        model.recurrent.features = 93
    elif variant == "smoke":
        model.encoder.features, model.encoder.strides = (8, 8), (4, 2)
        model.recurrent.features = 16
        config.batch_size, config.num_steps = 8, 6
        config.eval_every = config.checkpoint_every = 3
        config.log_every = 1
        config.optimizer.warmup_steps = 0
        config.data.num_train, config.data.num_validation, config.data.num_test = 32, 12, 12
    return config
