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
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from data.batches import Source
from data.datasets.ucf101 import UCF101_GROUP, VideoList, read_split
from data.features import digest_file
from data.loader import Loader
from data.moving_shapes.source import MovingShapes
from data.video.clips import DecodeClip, VideoSource
from data.video.decoding import decode, probe
from data.video.feature_clips import FeatureClip, WholeVideos
from data.video.sampling import DenseClip
from data.video.transforms import SpatialTransform
from experiments.features.frozen_features import cache_features, encode_example, make_encode
from flaxnets.configuration import nearest, runtime
from flaxnets.encoders.config import EncoderConfig, with_encoder_weights
from flaxnets.heads.config import PER_STEP, HeadConfig
from flaxnets.models.config import CRNNConfig, make_crnn, pool_of
from flaxnets.recurrent.config import NONE, RecurrentConfig
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
    group_pattern: str = UCF101_GROUP
    """Regular expression whose first group is the recording group in a file's name."""
    frame_size: tuple[int, int] = (240, 320)
    crop_size: int = 224
    flip: bool = True
    """UCF101's labels have no direction. Off wherever one has."""
    test_clips: int = 8
    test_crops: int = 10
    """1, or 10: the corners and the centre, each also mirrored."""
    num_examples: int = 64
    """Of each split of ``moving_shapes``."""
    cache: str = runtime("runs/features")
    """The folder of a frozen encoder's cached features; empty: it encodes in every step."""
    max_bad_share: float = runtime(0.01)
    """Training fails when more than this share of the videos cannot be decoded."""
    num_threads: int = runtime(0)
    """Decoding threads; 0: one more than the processors."""
    num_workers: int = runtime(0)
    """Decoding processes; 0 decodes in threads alone, the better choice on few processors."""


@dataclasses.dataclass
class LRCNConfig(Config):
    """LRCN's hyper-parameters, the paper's by default."""

    name: str = "LRCN"
    batch_size: int = 24
    num_steps: int = 30_000
    eval_every: int = 5_000
    checkpoint_every: int = runtime(1_000)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: CRNNConfig = dataclasses.field(
        default_factory=lambda: CRNNConfig(
            EncoderConfig("efficientnet_lite0", weights="imagenet"),
            RecurrentConfig("lstm", features=256),
            HeadConfig(dropout_rate=0.5),
            dropout_rate=0.9,
            # 10 crops of 8 clips are 1,280 frames.
            chunk_frames=32,
        )
    )
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

    @property
    def caches_features(self) -> bool:
        """Whether the encoder runs once, before training, and is no part of the network."""
        data = self.data
        return bool(self.model.encoder.frozen and data.cache and data.dataset == "ucf101")

    def make_model(self) -> nn.Module:
        """Encoder, recurrent layer, head: the paper's LSTM and logits at each step by default."""
        return make_crnn(
            self.model,
            len(self.class_names),
            cached_features=self.caches_features,
            # Videos shorter than a clip are padded.
            fixed_length=self.data.dataset == "moving_shapes",
        )

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Puts pretrained weights into the encoder."""
        if self.caches_features:
            return variables
        return with_encoder_weights(self.model.encoder, variables)

    def make_optimizer_config(self) -> OptimizerConfig:
        """The optimizer without multipliers of parts that the network does not have."""
        optimizer = super().make_optimizer_config()
        if self.model.recurrent.cell != NONE:
            return optimizer
        multipliers = {n: x for n, x in optimizer.multipliers.items() if n != "recurrent"}
        return dataclasses.replace(optimizer, multipliers=multipliers)

    def frozen_parts(self) -> tuple[str, ...]:
        """The encoder, where it is frozen and part of the network."""
        return ("encoder",) if self.model.encoder.frozen and not self.caches_features else ()

    def make_task(self) -> Task:
        """The label asked of each step, or of the clip where the head pools over time."""
        per_step = self.model.head.pool == PER_STEP
        return VideoClassification(loss_kind="per_step" if per_step else "clip")

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
        train = split == "train"
        if self.caches_features:
            return self._loader(self._features(source), self._cut_clip(split), size, train=train)
        return self._loader(source, self._decode_clip(split), size, train=train)

    def make_prediction_data(self, paths: Sequence[str]) -> Loader:
        """Clips of the given files, cut as at test."""
        source = VideoSource(tuple(paths))
        if not self.caches_features:
            return self._loader(source, self._decode_clip("test"), 1, train=False)
        whole = self._whole_videos(source)
        encode = make_encode(self.model.encoder, self._pool)
        examples = [encode_example(whole[index], encode) for index in range(len(whole))]
        return self._loader(examples, self._cut_clip("test"), 1, train=False)

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
        return read_split(
            data.root,
            split,
            data.fold,
            validation_groups=data.validation_groups,
            group_pattern=data.group_pattern,
        )

    @property
    def _pool(self) -> str:
        """How cached feature maps are pooled over space."""
        return "mean" if pool_of(self.model) == "mean" else "none"

    def _features(self, source: VideoSource) -> Source:
        """Features of every frame of the videos, plain and mirrored, from the cache."""
        whole = self._whole_videos(source)
        return cache_features(
            self.data.cache,
            whole,
            self.model.encoder,
            self._pool,
            preprocessing={
                "transform": dataclasses.asdict(whole.transform),
                "short_side": whole.short_side,
                "pool": self._pool,
            },
            source={path: digest_file(path) for path in source.paths},
        )

    def _whole_videos(self, source: VideoSource) -> WholeVideos:
        return WholeVideos(source, self._transform(1), short_side=self.data.frame_size[0])

    def _cut_clip(self, split: str) -> FeatureClip:
        num_clips = self.data.test_clips if split == "test" else 1
        return FeatureClip(DenseClip(NUM_FRAMES), train=split == "train", num_clips=num_clips)

    def _decode_clip(self, split: str) -> DecodeClip:
        data = self.data
        test = split == "test"
        return DecodeClip(
            DenseClip(NUM_FRAMES),
            self._transform(data.test_crops if test else 1),
            train=split == "train",
            num_clips=data.test_clips if test else 1,
            short_side=data.frame_size[0],
        )

    def _transform(self, test_crops: int) -> SpatialTransform:
        data = self.data
        # The share of the frame's height that the crop takes, in both dimensions.
        share = (data.crop_size / data.frame_size[0]) ** 2
        return SpatialTransform(
            (data.crop_size, data.crop_size),
            scale=(share, share),
            stretch=1.0,
            flip=data.flip,
            test_scale=share,
            test_crops=test_crops,  # type: ignore[arg-type]
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
        from experiments import ut_interaction  # Only this variant needs its parts.

        return ut_interaction.get_config()
    if variant != "smoke":
        raise ValueError(f"lrcn_ucf101:{variant}: no such variant{nearest(variant, VARIANTS)}")
    config = LRCNConfig(batch_size=8, num_steps=6, eval_every=3, checkpoint_every=3, log_every=1)
    config.data.dataset, config.data.num_examples = "moving_shapes", 20
    config.model.encoder = EncoderConfig("small_cnn", features=(8, 8, 16), strides=(4, 2, 2))
    config.model.recurrent.features = 8
    return config
