"""LRCN: long-term recurrent convolutional networks for action recognition.

Donahue et al., arXiv:1411.4389 (v4, PAMI 2017), section 4 and its reference code.

    python -m launch.train --config=experiments/lrcn_ucf101.py --workdir=runs/lrcn \
        --config.data.root=/data/ucf101
    python -m launch.evaluate --workdir=runs/lrcn --split=test

Expected (paper, v4, mean of the three splits, RGB): single frame 67.37 %, LRCN-fc6 68.20 %. Not yet
reproduced here: UCF101 was not at hand.

Settings of the paper, which are the defaults: clips of 16 frames at the native rate, frames scaled
to 240×320 and cropped to a square, mirrored at random; 24 clips a batch; LSTM of 256; dropout 0.9
before it and 0.5 after it; SGD with momentum 0.9, rate 0.001 divided by 10 each 10k of 30k steps,
weight decay 0.005, gradients clipped at 5; the new layers learn 10 times as fast; every step is
asked for the label; at test the probabilities are averaged over steps, clips and 10 crops.

Deviations:
  - EfficientNet-Lite0 (ImageNet) encodes the frames, at 224², instead of the CaffeNet/ZF hybrid's
    fc6 at 227²; its BatchNorm statistics stay those of ImageNet.
  - At test 8 clips are spread evenly over each video, instead of clips at a stride of 8 frames.
  - Validation, for the choice of the checkpoint, is on 3 of the 18 training groups of the fold.
  - The forget gate's bias starts at 1.

Variants:
  - ``smoke``: the same network with a small encoder on the embedded data, for seconds.
  - ``ut_interaction``: see ``experiments/ut_interaction.py``, whose 60 clips it is trained on.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from data.datasets.ucf101 import VideoList, read_split
from data.loader import Loader
from data.moving_shapes.source import MovingShapes
from data.video.clips import DecodeClip, VideoSource
from data.video.decoding import decode, probe
from data.video.sampling import DenseClip
from data.video.transforms import SpatialTransform
from experiments import ut_interaction
from flaxnets.configuration import nearest, runtime
from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.pretrained import load_efficientnet_lite0
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import StepClassifier
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.tasks.task import Task
from flaxnets.tasks.video_classification import VideoClassification
from flaxnets.training.config import Config, OptimizerConfig

VARIANTS = ("smoke", "ut_interaction")
NUM_FRAMES = 16


@dataclasses.dataclass
class DataConfig:
    """Where the videos are and how clips are cut from them."""

    dataset: str = "ucf101"
    """``ucf101`` or ``moving_shapes``."""
    root: str = ""
    """The folder of UCF101: ``UCF-101/`` and ``ucfTrainTestlist/``, or ``videos/``, ``splits/``."""
    fold: int = 1
    validation_groups: tuple[str, ...] = ("23", "24", "25")
    """Groups of the fold's training list that choose the checkpoint; none: all of it trains."""
    frame_size: tuple[int, int] = (240, 320)
    crop_size: int = 224
    flip: bool = True
    """UCF101's labels have no direction. Off wherever one has."""
    test_clips: int = 8
    test_crops: int = 10
    """1, or 10: the corners and the centre, each also mirrored."""
    num_examples: int = 64
    """Of each split of ``moving_shapes``."""
    max_bad_share: float = runtime(0.01)
    """Training fails when more than this share of the videos cannot be decoded."""
    num_threads: int = runtime(0)
    """Decoding threads; 0: one more than the processors."""
    num_workers: int = runtime(0)
    """Decoding processes; 0 decodes in threads alone, the better choice on few processors."""


@dataclasses.dataclass
class ModelConfig:
    """The network."""

    encoder: str = "efficientnet_lite0"
    """``efficientnet_lite0`` (ImageNet weights) or ``small_cnn`` (random ones)."""
    freeze_encoder: bool = False
    recurrent_features: int = 256
    encoder_dropout: float = 0.9
    recurrent_dropout: float = 0.5
    chunk_frames: int = 32
    """Frames that the encoder sees at once in evaluation: 10 crops of 8 clips are 1,280."""
    remat: str = runtime("none")
    """Which of the encoder's maps are computed again for the gradient, to save memory: ``none``,
    ``elementwise`` or ``full``."""
    dtype: str = "float32"


@dataclasses.dataclass
class LRCNConfig(Config):
    """LRCN's hyper-parameters, the paper's by default."""

    name: str = "LRCN"
    batch_size: int = 24
    num_steps: int = 30_000
    eval_every: int = 5_000
    checkpoint_every: int = runtime(1_000)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            name="sgd",
            learning_rate=1e-3,
            schedule="step",
            decay_every=10_000,
            decay_rate=0.1,
            momentum=0.9,
            weight_decay=0.005,
            clip_norm=5.0,
            multipliers={"recurrent": 10.0, "classifier": 10.0},
        )
    )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The actions, by label."""
        if self.data.dataset == "moving_shapes":
            return MovingShapes.class_names
        return self._videos("train").class_names

    def make_model(self) -> nn.Module:
        """Encoder, LSTM, a classifier of each step."""
        model = self.model
        encoders = {
            "efficientnet_lite0": lambda: EfficientNetLite0(remat=model.remat, dtype=model.dtype),
            "small_cnn": lambda: SmallCNN(
                (8, 8, 16), (4, 2, 2), remat=model.remat, dtype=model.dtype
            ),
        }
        if model.encoder not in encoders:
            near = nearest(model.encoder, list(encoders))
            raise ValueError(f"model.encoder: unknown {model.encoder!r}{near}")
        return CRNN(
            classifier=StepClassifier(
                len(self.class_names), dropout_rate=model.recurrent_dropout, dtype=model.dtype
            ),
            encoder=encoders[model.encoder](),
            recurrent=Recurrent(partial(LSTMCell, model.recurrent_features, dtype=model.dtype)),
            dropout_rate=model.encoder_dropout,
            chunk_frames=model.chunk_frames,
            freeze_encoder=model.freeze_encoder,
        )

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Puts the ImageNet weights into the encoder, where it is the one that has them."""
        if self.model.encoder != "efficientnet_lite0":
            return variables
        pretrained = load_efficientnet_lite0()
        return {
            name: {**tree, "encoder": pretrained[name]} if name in pretrained else tree
            for name, tree in variables.items()
        }

    def make_task(self) -> Task:
        """Each step is asked for the label."""
        return VideoClassification(loss_kind="per_step")

    def set_fold(self, fold: int) -> None:
        """One of UCF101's official splits, 1 to 3."""
        self.data.fold = fold

    def make_data(self, split: str) -> Loader:
        """Clips of ``train``, ``validation`` or ``test``."""
        if self.data.dataset == "moving_shapes":
            clips = MovingShapes(split, self.data.num_examples)
            return self._loader(clips, None, self.batch_size, train=split == "train")
        videos = self._videos(split)
        source = VideoSource(videos.paths, videos.labels)
        size = 1 if split == "test" else self.batch_size  # A test video is many clips.
        return self._loader(source, self._decode_clip(split), size, train=split == "train")

    def make_prediction_data(self, paths: Sequence[str]) -> Loader:
        """Clips of the given files, cut as at test."""
        source = VideoSource(tuple(paths))
        return self._loader(source, self._decode_clip("test"), 1, train=False)

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """16 frames spread evenly over the video."""
        if self.data.dataset == "moving_shapes":
            return MovingShapes(split, self.data.num_examples)[index]["video"]
        path = self._videos(split).paths[index]
        frames = np.linspace(0, probe(path).num_frames - 1, NUM_FRAMES).round().astype(int)
        return decode(path, frames, short_side=self.data.frame_size[0])

    def _videos(self, split: str) -> VideoList:
        data = self.data
        if not data.root:
            raise ValueError(
                "data.root: expected the folder of UCF101; give --config.data.root=/data/ucf101"
            )
        groups = data.validation_groups
        return read_split(data.root, split, data.fold, validation_groups=groups)

    def _decode_clip(self, split: str) -> DecodeClip:
        data = self.data
        # The share of the frame's height that the crop takes, in both dimensions.
        share = (data.crop_size / data.frame_size[0]) ** 2
        test = split == "test"
        return DecodeClip(
            DenseClip(NUM_FRAMES),
            SpatialTransform(
                (data.crop_size, data.crop_size),
                scale=(share, share),
                stretch=1.0,
                flip=data.flip,
                test_scale=share,
                test_crops=data.test_crops if test else 1,  # type: ignore[arg-type]
            ),
            train=split == "train",
            num_clips=data.test_clips if test else 1,
            short_side=data.frame_size[0],
        )

    def _loader(self, source: Any, transform: Any, batch_size: int, *, train: bool) -> Loader:
        return Loader(
            source,
            transform=transform,
            batch_size=-(-batch_size // jax.device_count()) * jax.device_count(),
            train=train,
            seed=self.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=self.data.num_threads or None,
            num_workers=self.data.num_workers if train else 0,
            max_bad_share=self.data.max_bad_share if train else 1.0,
        )


def get_config(variant: str | None = None) -> Config:
    """The configuration of a variant; without one, the paper's.

    Raises:
      ValueError: an unknown variant.
    """
    if variant is None:
        return LRCNConfig()
    if variant == "ut_interaction":
        return ut_interaction.get_config()
    if variant != "smoke":
        raise ValueError(f"lrcn_ucf101:{variant}: no such variant{nearest(variant, VARIANTS)}")
    config = LRCNConfig(batch_size=8, num_steps=6, eval_every=3, checkpoint_every=3, log_every=1)
    config.data.dataset, config.data.num_examples = "moving_shapes", 20
    config.model.encoder, config.model.recurrent_features = "small_cnn", 8
    return config
