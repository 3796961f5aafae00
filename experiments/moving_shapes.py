"""CNN, RNN or both? The three networks on the embedded data set.

A clip's label is the motion of its one coloured object, and the classes are each other's
time-reversed partners: a network that cannot see order stays at 50 %, one frame alone says next to
nothing (chance 12.5 %).

    python -m launch.train --config=experiments/moving_shapes.py:crnn --workdir=runs/crnn

Variants: ``crnn`` (the default), ``cnn`` (the same encoder, its features
averaged over the frames), ``rnn`` (the same
recurrent layer on raw, downsampled frames), each of the same number of parameters to within 3 %;
``frame`` (the CNN, trained and tested on one frame of each clip); ``smoke`` (the CRNN for seconds).
``make demo`` trains and compares the first three.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from data.batches import Source
from data.loader import Loader
from data.moving_shapes.source import MovingShapes
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


@dataclasses.dataclass
class DataConfig:
    """The embedded data set."""

    num_train: int = 20_000
    num_validation: int = 500
    num_test: int = 2_000
    single_frame: bool = False
    """Whether each clip is cut down to one frame: a random one in training, the middle at test."""
    seed: int = 0
    fold: int = 0
    """Of a cross-validation within the training clips, from 1 on: its test and validation clips are
    parts of them (``data/sources.py``). 0: none."""
    num_folds: int = 3
    """Parts of the training clips, 3 or more."""
    num_workers: int = runtime(0)


@dataclasses.dataclass(frozen=True)
class OneFrame:
    """Cuts a clip down to one frame."""

    train: bool

    def __call__(
        self, example: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The example with a video of (1,H,W,3)."""
        num_frames = len(example["video"])
        frame = int(rng.integers(num_frames)) if self.train else num_frames // 2
        video = example["video"][frame : frame + 1]
        return {**example, "video": video, "lengths": np.asarray(1, np.int32)}


@dataclasses.dataclass
class MovingShapesConfig(Config):
    """The comparison's hyper-parameters."""

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
        """The motions."""
        return MovingShapes.class_names

    def make_model(self) -> nn.Module:
        """The network of the grid that ``model`` describes; every clip has the same length."""
        return make_crnn(self.model, len(self.class_names), fixed_length=True)

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Puts pretrained weights into the encoder, where ``model.encoder.weights`` names them."""
        return with_encoder_weights(self.model.encoder, variables)

    def frozen_parts(self) -> tuple[str, ...]:
        """The encoder, where it is frozen."""
        return ("encoder",) if self.model.encoder.frozen else ()

    def make_task(self) -> Task:
        """The clip's label from the scores averaged over its steps."""
        return VideoClassification(loss_kind="clip")

    def set_fold(self, fold: int) -> None:
        """The fold whose part of the training clips is tested.

        Raises:
          ValueError: it is none of 1 to ``data.num_folds``.
        """
        if not 1 <= fold <= self.data.num_folds:
            raise ValueError(
                f"fold: expected 1 to data.num_folds = {self.data.num_folds}, received {fold}"
            )
        self.data.fold = fold

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """The 16 frames of a clip, (16,64,64,3) uint8."""
        if self.data.fold:
            return self._clips(split)[index]["video"]
        # Of any size: a clip does not depend on how many there are.
        return MovingShapes(split, index + 1, seed=self.data.seed)[index]["video"]

    def make_data(self, split: str) -> Loader:
        """The embedded clips; any split of ``MovingShapes``, or of the fold."""
        train = split == "train"
        return Loader(
            self._clips(split),
            transform=OneFrame(train) if self.data.single_frame else None,
            batch_size=self.batch_size,
            train=train,
            seed=self.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=self.data.num_workers if train else 0,
        )

    def _clips(self, split: str) -> Source:
        data = self.data
        if data.fold:
            clips = MovingShapes("train", data.num_train, seed=data.seed)
            return FoldExamples(clips, split, num_folds=data.num_folds, fold=data.fold)
        sizes = {"train": data.num_train, "validation": data.num_validation, "test": data.num_test}
        return MovingShapes(split, sizes.get(split), seed=data.seed)


def get_config(variant: str | None = None) -> MovingShapesConfig:
    """The configuration of a variant.

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
