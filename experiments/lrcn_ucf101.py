r"""LRCN: long-term recurrent convolutional networks for action recognition.

Donahue et al., arXiv:1411.4389 (v4, PAMI 2017), section 4, and its reference code.

    python -m launch.train --config=experiments/lrcn_ucf101.py --workdir=runs/lrcn \
        --config.data.root=/data/ucf101
    python -m launch.evaluate --workdir=runs/lrcn --split=test

Any encoder, cell and head by flags, here ResNet-18 from a file of weights, a ConvGRU on its feature
maps and attention over the steps:

    python -m launch.train --config=experiments/lrcn_ucf101.py --workdir=runs/convgru \
        --config.data.root=/data/ucf101 --config.model.encoder.name=resnet18 \
        --config.model.encoder.weights=resnet18.pth --config.model.recurrent.cell=convgru \
        --config.model.head.pool=attention

``--config.model.encoder.frozen=True`` encodes every frame of every video once, the centre crop and
its mirror image, and caches the features in ``data.cache``. Training then samples clips of both
views, and each clip at test has these 2 views instead of 10 crops. With ``--config.data.cache=``
the frozen encoder runs in every step instead, on random crops.

Expected (paper, v4, mean of the three splits, RGB): single frame 67.37 %, LRCN-fc6 68.20 %. Not yet
reproduced here: UCF101 was not available.

Settings of the paper, which are the defaults: clips of 16 frames at the native rate; frames resized
to 240×320, cropped to a square and mirrored at random; batches of 24 clips; an LSTM of 256 units
with dropout 0.9 before and 0.5 after it; logits and cross-entropy at every step; SGD with momentum
0.9, learning rate 0.001, divided by 10 every 10,000 of 30,000 steps, and 10 times as high for the
new layers; weight decay 0.005; gradients clipped at norm 5; at test the probabilities are averaged
over steps, clips and 10 crops.

Deviations:
  - EfficientNet-Lite0 (ImageNet) at 224² encodes the frames, instead of the CaffeNet/ZF hybrid's
    fc6 at 227². Its BatchNorm, which CaffeNet does not have, is fine-tuned: it normalises with the
    statistics of the batch and updates the running averages. To keep ImageNet's statistics, set
    ``--config.model.encoder.frozen_statistics=True``.
  - At test 8 clips are spread evenly over each video, instead of clips at a stride of 8 frames.
  - 3 of the 18 training groups of the fold are held out for validation, which selects the
    checkpoint.
  - The bias of the forget gate is initialised to 1.

Variants:
  - ``smoke``: a small encoder on the embedded data, a few seconds.
  - ``ut_interaction``: ``experiments/ut_interaction.py``, LRCN adapted to 60 clips.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from data.datasets.ucf101 import UCF101_GROUP, VideoList, read_split
from data.features import digest_file
from data.loader import Loader
from data.moving_shapes.source import MovingShapes
from data.video.clips import DecodeClip, DenseClip, VideoSource
from data.video.decoding import decode, probe
from data.video.feature_clips import FeatureClip, VideoFeatures, WholeVideos
from data.video.transforms import SpatialTransform
from experiments.features.frozen_features import (
    cache_features,
    describe_encoder,
    describe_frozen_encoder,
    encode_example,
    make_encode,
)
from flaxnets.configuration import check_at_least, nearest, path_field, runtime
from flaxnets.encoders.config import EncoderConfig, weights_file, with_encoder_weights
from flaxnets.heads.config import PER_STEP, HeadConfig
from flaxnets.models.config import CRNNConfig, make_crnn, pool_of
from flaxnets.recurrent.config import NONE, RecurrentConfig
from flaxnets.tasks.task import Task
from flaxnets.tasks.video_classification import VideoClassification
from flaxnets.training.config import Config, OptimizerConfig
from flaxnets.training.workdir import Workdir

VARIANTS = ("smoke", "ut_interaction")
DATASETS = ("ucf101", "moving_shapes")
NUM_FRAMES = 16
"""T, frames of a clip."""


@dataclasses.dataclass
class DataConfig:
    """Location of the videos, and the clips cut from them."""

    dataset: str = "ucf101"
    """``ucf101``, or ``moving_shapes``, the embedded data set."""
    root: str = path_field(runtime=True)
    """Folder of UCF101, with ``UCF-101/`` and ``ucfTrainTestlist/``, or ``videos/`` and
    ``splits/``; required for ``ucf101``, but not for predictions. It may be moved: the workdir
    records the classes, and digests of the lists."""
    fold: int = 1
    """Official split, 1 to 3."""
    validation_groups: tuple[str, ...] = ("23", "24", "25")
    """Groups of the fold's training list that are held out to select the checkpoint; empty: all
    groups train."""
    group_pattern: str = UCF101_GROUP
    """Regular expression whose first group is the recording group in a file's name."""
    frame_size: tuple[int, int] = (240, 320)
    """Height and width, pixels. Decoded frames are resized so that their short side has this
    height; the width is the paper's, for videos of 4:3."""
    crop_size: int = 224
    """Height and width of the crops, pixels."""
    flip: bool = True
    """Clips are also seen mirrored: at random in training, as further views at test. Switch it off
    where a label has a direction; UCF101's have none."""
    test_clips: int = 8
    """Clips of each video at test."""
    test_crops: int = 10
    """Crops of each clip at test. 1: the centre; 5: also the corners; 10: these also mirrored,
    which needs ``flip``."""
    num_examples: int = 64
    """``moving_shapes`` only: clips of each split."""
    cache: str = path_field("runs/features", runtime=True)
    """Folder of a frozen encoder's cached features; empty: the encoder runs in every step."""
    max_bad_share: float = runtime(0.01)
    """Training fails when more than this share of the videos, in [0,1], cannot be decoded."""
    num_threads: int = runtime(0)
    """Decoding threads; 0: one more than the CPU cores."""
    num_workers: int = runtime(0)
    """Decoding processes; 0: threads only, which is faster on few cores."""


@dataclasses.dataclass
class LRCNConfig(Config):
    """Hyper-parameters of LRCN; the defaults are the paper's."""

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

    def __post_init__(self) -> None:
        # No field, so it is neither a flag nor part of config.json.
        self._class_names: tuple[str, ...] = ()

    def validate(self) -> None:
        """Checks the values as ``Config.validate``, and those of the data."""
        super().validate()
        weights_file(self.model.encoder)  # It is there.
        data = self.data
        if data.dataset not in DATASETS:
            raise ValueError(
                f"data.dataset: unknown {data.dataset!r}{nearest(data.dataset, DATASETS)}"
            )
        if not 1 <= data.crop_size <= data.frame_size[0]:
            raise ValueError(
                f"data.crop_size: expected 1 to the frames' height, data.frame_size[0] = "
                f"{data.frame_size[0]}, received {data.crop_size}"
            )
        if data.test_crops not in (1, 10):
            raise ValueError(f"data.test_crops: expected 1 or 10, received {data.test_crops}")
        check_at_least("data", data, {"test_clips": 1, "num_examples": 1, "num_workers": 0})

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the actions, by label: the trained model's, or else the data's."""
        if self.data.dataset == "moving_shapes":
            return MovingShapes.class_names
        return self._class_names or self._videos("train").class_names

    def load_assets(self, folder: Path) -> None:
        """Reads the names of a trained model's classes."""
        self._class_names = tuple(Workdir(folder).read_data()["class_names"])

    def describe_data(self, split: str) -> dict[str, Any]:
        """Returns the classes, and digests of the list and its labels."""
        if self.data.dataset == "moving_shapes":
            return MovingShapes(split, self.data.num_examples).describe()
        return self._videos(split).describe()

    def describe_preprocessing(self) -> dict[str, Any]:
        """Returns the settings of the clips, and the frozen encoder with its weights' digest."""
        return {
            "num_frames": NUM_FRAMES,
            "short_side": self.data.frame_size[0],
            "transform": dataclasses.asdict(self._transform(1)),
            **(describe_encoder(self.model.encoder) if self.caches_features else {}),
        }

    def describe_inference(self) -> dict[str, Any]:
        """Returns the network behind its encoder, and clips and crops as at test."""
        data, cached = self.data, self.caches_features
        encoder = describe_frozen_encoder(self.model.encoder, self._pool) if cached else None
        per_step = self.model.head.pool == PER_STEP
        return {
            "kind": "video_classification",
            "name": self.name,
            "labels": list(self.class_names),
            "network": self.make_model(),
            "encoder": encoder,
            "averaging": "per_step" if per_step else "clip",
            "preprocessing": {
                "kind": "clip",
                "sampler": "dense",
                "num_frames": NUM_FRAMES,
                "num_clips": data.test_clips,
                "short_side": data.frame_size[0],
                "size": [data.crop_size, data.crop_size],
                "scale": self._transform(1).test_scale,
                "crops": 5 if data.test_crops == 10 and not cached else 1,
                "mirror": data.flip if cached else data.test_crops == 10,
            },
        }

    @property
    def caches_features(self) -> bool:
        """True if the network is trained on cached features, without the encoder."""
        data = self.data
        return bool(self.model.encoder.frozen and data.cache and data.dataset == "ucf101")

    def make_model(self) -> nn.Module:
        """Returns encoder, recurrent layer and head; by default an LSTM and logits at each step."""
        return make_crnn(
            self.model,
            len(self.class_names),
            cached_features=self.caches_features,
            # Videos shorter than a clip are padded.
            fixed_length=self.data.dataset == "moving_shapes",
        )

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the variables with the pretrained weights of the encoder."""
        if self.caches_features:
            return variables
        return with_encoder_weights(self.model.encoder, variables)

    def make_optimizer_config(self) -> OptimizerConfig:
        """Returns the optimizer's settings without multipliers of parts that the network lacks."""
        optimizer = super().make_optimizer_config()
        if self.model.recurrent.cell != NONE:
            return optimizer
        multipliers = {n: x for n, x in optimizer.multipliers.items() if n != "recurrent"}
        return dataclasses.replace(optimizer, multipliers=multipliers)

    def frozen_parts(self) -> tuple[str, ...]:
        """Returns ``encoder`` where it is frozen and part of the network."""
        return ("encoder",) if self.model.encoder.frozen and not self.caches_features else ()

    def make_task(self) -> Task:
        """Returns classification at each step, or of the clip where the head pools over time."""
        per_step = self.model.head.pool == PER_STEP
        return VideoClassification(loss_kind="per_step" if per_step else "clip")

    def set_fold(self, fold: int) -> None:
        """Selects one of UCF101's official splits, 1 to 3."""
        self.data.fold = fold

    def make_data(self, split: str) -> Loader:
        """Returns the clips of ``train``, ``validation`` or ``test``."""
        if self.data.dataset == "moving_shapes":
            clips = MovingShapes(split, self.data.num_examples)
            return self._loader(clips, None, self.batch_size, split, clips.describe())
        videos = self._videos(split)
        source = VideoSource(videos.paths, videos.labels)
        size = 1 if split == "test" else self.batch_size  # Each test video is many clips.
        described = videos.describe()
        if self.caches_features:
            features = self._features(source)
            return self._loader(features, self._cut_clip(split), size, split, described)
        return self._loader(source, self._decode_clip(split), size, split, described)

    def make_prediction_data(self, paths: Sequence[str]) -> Loader:
        """Returns the clips of the given files, cut as at test; unreadable ones are masked."""
        source = VideoSource(tuple(paths))
        if not self.caches_features:
            return self._loader(source, self._decode_clip("test"), 1)
        whole = self._whole_videos(source)
        encode = make_encode(self.model.encoder, self._pool)
        examples = [encode_example(whole[index], encode) for index in range(len(whole))]
        features = VideoFeatures(examples, whole)
        return self._loader(features, self._cut_clip("test"), 1)

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """Returns 16 frames spread evenly over a video, (16,H,W,3) uint8."""
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
        """Pooling over space of the features that are cached: ``mean``, or ``none`` for maps."""
        return "mean" if pool_of(self.model) == "mean" else "none"

    def _features(self, source: VideoSource) -> VideoFeatures:
        """Returns the cached features of every frame; encodes them where the cache lacks them."""
        whole = self._whole_videos(source)
        features = cache_features(
            self.data.cache,
            whole,
            self.model.encoder,
            self._pool,
            preprocessing={
                "transform": dataclasses.asdict(whole.transform),
                "short_side": whole.short_side,
                "pool": self._pool,
            },
            # No paths: moved videos are the same, and the list has the labels.
            source=[digest_file(path) for path in source.paths],
        )
        return VideoFeatures(features, whole, source.labels)

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
        # ``scale`` is a share of the area; at this one the crop is ``crop_size`` pixels high.
        share = (data.crop_size / data.frame_size[0]) ** 2
        return SpatialTransform(
            (data.crop_size, data.crop_size),
            scale=(share, share),
            stretch=1.0,
            flip=data.flip,
            test_scale=share,
            test_crops=test_crops,  # type: ignore[arg-type]
        )

    def _loader(
        self,
        source: Any,
        transform: Any,
        batch_size: int,
        split: str = "",
        described: Mapping[str, Any] | None = None,
    ) -> Loader:
        """Returns the batches of a split that ``described`` identifies, or of unlabelled files."""
        train = split == "train"
        return Loader(
            source,
            transform=transform,
            batch_size=-(-batch_size // jax.device_count()) * jax.device_count(),
            train=train,
            identity={**(described or {}), "preprocessing": self.describe_preprocessing()},
            seed=self.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=self.data.num_threads or None,
            num_workers=self.data.num_workers if train else 0,
            max_bad_share=self.data.max_bad_share if train else 1.0,
        )


def get_config(variant: str | None = None) -> Config:
    """Returns the configuration of a variant; None: the paper's.

    Raises:
      ValueError: an unknown variant.
    """
    if variant is None:
        return LRCNConfig()
    if variant == "ut_interaction":
        from experiments import ut_interaction  # Imports scikit-learn.

        return ut_interaction.get_config()
    if variant != "smoke":
        raise ValueError(f"lrcn_ucf101:{variant}: no such variant{nearest(variant, VARIANTS)}")
    config = LRCNConfig(batch_size=8, num_steps=6, eval_every=3, checkpoint_every=3, log_every=1)
    config.data.dataset, config.data.num_examples = "moving_shapes", 20
    config.model.encoder = EncoderConfig("small_cnn", features=(8, 8, 16), strides=(4, 2, 2))
    config.model.recurrent.features = 8
    return config
