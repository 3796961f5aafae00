r"""Action recognition on videos of one's own: class folders, a list, or UCF101's layout.

    python -m launch.train --config=experiments/video_classification.py --workdir=runs/mine \
        --config.data.root=my_videos
    python -m launch.evaluate --workdir=runs/mine --split=test
    python -m launch.predict --workdir=runs/mine clip.mp4
    python -m launch.report --workdir=runs/mine

``my_videos`` has a folder for each class, with or without ``train/``, ``validation/`` (``val``,
``valid``) and ``test/`` above them. A list does as well, CSV or TSV with a header, or the lists of
Kinetics and MMAction2, one for each split:

    --config.data.list=videos.csv                          path,label[,group][,split]
    --config.data.list=train.txt --config.data.validation_list=val.txt \
        --config.data.test_list=test.txt --config.data.class_list=classes.txt \
        --config.data.root=/data/kinetics                  PATH LABEL

Published data sets are read in their own format (``data/datasets``), ``hmdb51``, ``jester``,
``jhmdb``, ``kinetics``, ``something`` and ``ucf101``, with their splits; where the labels of the
test videos are not published, those of validation are tested:

    --config.data.dataset=hmdb51 --config.data.root=/data/hmdb51 --config.data.fold=1

Splits that the data lack are made: drawn with ``seed``, in proportion for each class, whole groups
on one side (``data.group_pattern``, or the list's column), copies of one video on one side. The
workdir keeps the split in ``split.csv``.

Many videos are read faster from what ``python -m data.convert my_videos --out=CONVERTED`` makes of
them, which ``--config.data.root=CONVERTED`` takes like the original. A data set that TFDS has
prepared is read by the keys of its features, without TensorFlow (``data/datasets/tfds_records.py``
has the command that prepares it):

    --config.data.dataset=tfds --config.data.root=DATA_DIR \
        --config.data.tfds.builder=ucf101/ucf101_1 --config.data.tfds.video=video \
        --config.data.tfds.label=label

The method is LRCN's (arXiv:1411.4389), for few videos and a CPU: a frozen encoder sees three
streams, frames and differences of frames (LRCN: optical flow) of the whole image and of the square
around the motion, whose features are computed once and cached; LSTMs read each stream in both
directions, their logits are averaged over the steps, and the predictions of all are averaged. A
stream of video is classified in windows (``launch.predict --stream --window``), since an LSTM of
both directions needs the whole clip.

The settings are for tens to hundreds of videos: 100 steps read 3,200 clips. Beyond that,
``--config.num_steps``. They were chosen by ``experiments.features.compare_recipes`` on real clips,
which motion decides, and drawn ones, which appearance decides; experiments/results/own_videos.md
has the figures, and those of linear classifiers. Three networks a stream cost seconds and make the
choice of the checkpoint by a few validation videos harmless. Where the background tells nothing,
``--config.data.streams=difference_whole,difference_square`` is worth a try. Optical flow takes the
place of differences by ``--config.data.streams=rgb_whole,flow_whole,flow_square``. It lies in the
folder ``--config.data.flow``, written there by ``python -m data.flow`` or at its first use (extra
``flow``), or published.

``--config.model.encoder.frozen=False`` fine-tunes the encoder with one LSTM on frames instead, on
random crops; it wants thousands of videos and a GPU. ``--config.data.images=flow`` reads optical
flow in place of the frames then.

Preprocessing at test, of the frozen encoder (``data/video/streams.py``): of the n frames of a video
those at floor((k + 1/2) · n / 24), k = 0…23, are resized to 224² as a whole, whatever their aspect
ratio (bilinear, antialiased); stream ``rgb_whole`` is the frame, stream ``difference_whole`` the
differences of the frames 12 and 4 before and 4 and 12 behind it, ``difference_square`` the same of
the full-height square around the column with half of the motion on either side. Features are the
maximum over space of the encoder's last feature maps. View v of 2 takes the steps floor((k + (v +
1/2) / 2) · 24 / 16), k = 0…15; the logits are averaged over the steps, the probabilities over the
streams and views. Fine-tuned models see clips of ``UniformClip(16).views(…, 2)``, resized in the
same way.

Variants:
  - ``smoke``: a small encoder on the embedded data, a few seconds.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import numpy as np

from data.datasets.action_sets import ACTION_SETS
from data.datasets.jester import RATE as JESTER_RATE
from data.loader import Loader
from data.moving_shapes.source import MovingShapes
from data.sources import SelectedExamples
from data.video.clips import DecodeClip, UniformClip, VideoReader, VideoSource
from data.video.feature_clips import VideoFeatures
from data.video.flow import IMAGES, FlowTransform, make_reader
from data.video.frame_folders import FrameFolders
from data.video.streams import FLOW_STREAMS, CutFeatures, StreamSource, segment_centres
from data.video.transforms import SpatialTransform
from experiments.classification.config import FileClassification, FilesConfig, configure
from experiments.features.frozen_features import (
    ProjectedCRNNConfig,
    cache_features,
    describe_frozen_encoder,
    encode_example,
    fit_projection,
    in_memory,
    make_encode,
)
from flaxnets.configuration import check_at_least, nearest, path_field, runtime
from flaxnets.encoders.config import EncoderConfig
from flaxnets.heads.config import HeadConfig
from flaxnets.models.config import make_crnn
from flaxnets.models.late_fusion import LateFusion
from flaxnets.recurrent.config import RecurrentConfig, reads_maps
from flaxnets.tasks.task import Task
from flaxnets.tasks.video_classification import VideoClassification
from flaxnets.training.config import Config, OptimizerConfig

_FITTED_STEPS = 20_000
"""Most images on whose features the principal components are fitted."""


@dataclasses.dataclass
class DataConfig(FilesConfig):
    """Location of the videos, and the images of them that the encoder sees."""

    streams: tuple[str, ...] = ("rgb_whole", "difference_whole", "difference_square")
    """Streams of images of each video (``data/video/streams.py``) for a frozen encoder."""
    images: str = "rgb"
    """Images that a fine-tuned encoder reads: ``rgb``, the frames, or ``flow``."""
    flow: str = path_field("runs/flow", runtime=True)
    """Folder of the optical flow, for streams of it and ``images=flow``; it is computed there where
    it is missing, but not beside published flow."""
    pool: str = "max"
    """Pooling of a frozen encoder's feature maps over space: ``max`` or ``mean``."""
    stored_steps: int = 24
    """Images of each video and stream that are encoded and cached."""
    num_steps: int = 16
    """T, steps of a clip, spread over the whole video."""
    test_views: int = 2
    """Clips of each video at test."""
    flip: bool = False
    """Videos are also seen mirrored. Off, as labels may have a direction ("left", "right")."""
    size: int = 224
    """Height and width of the images, pixels."""


def _make_model_config() -> ProjectedCRNNConfig:
    return ProjectedCRNNConfig(
        EncoderConfig("efficientnet_lite0", weights="imagenet", frozen=True),
        RecurrentConfig(
            "lstm", features=64, bidirectional=True, input_features=64, dropout_rate=0.5
        ),
        HeadConfig(dropout_rate=0.5),
        dropout_rate=0.5,
        chunk_frames=32,
    )


@dataclasses.dataclass
class VideoClassificationConfig(FileClassification):
    """Hyper-parameters of action recognition on one's own videos."""

    kind: ClassVar[str] = "video"
    published: ClassVar[Mapping[str, Any]] = ACTION_SETS

    name: str = "CRNN"
    batch_size: int = 32
    num_steps: int = 100
    eval_every: int = 20
    patience: int = 3
    checkpoint_every: int = runtime(100)
    label_smoothing: float = 0.1
    """Share of the target probability, in [0,1), that is spread over all classes."""
    mixup: float = 0.4
    """Frozen encoder only: α of the Beta distribution of mixup's weights; 0: no mixup."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ProjectedCRNNConfig = dataclasses.field(default_factory=_make_model_config)
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            name="adamw",
            learning_rate=3e-3,
            schedule="cosine",
            warmup_steps=20,
            weight_decay=1e-2,
            clip_norm=5.0,
        )
    )

    def validate(self) -> None:
        """Checks the values as ``FileClassification.validate``, and those of the clips."""
        super().validate()
        data = self.data
        check_at_least("data", data, {"num_steps": 1, "test_views": 1, "size": 1})
        check_at_least("model", self.model, {"projection_features": 1, "members": 1})
        if data.images not in IMAGES:
            raise ValueError(f"data.images: unknown {data.images!r}{nearest(data.images, IMAGES)}")
        if not self.caches_features:
            return
        if data.images != "rgb":
            raise ValueError(
                "data.images: expected rgb with a frozen encoder, whose images data.streams names, "
                f"received {data.images!r}; give --config.data.streams=rgb_whole,flow_whole"
            )
        if data.stored_steps < data.num_steps:
            raise ValueError(
                f"data.stored_steps: expected at least data.num_steps = {data.num_steps}, received "
                f"{data.stored_steps}"
            )
        if reads_maps(self.model.recurrent):
            raise ValueError(
                f"model.recurrent.cell: {self.model.recurrent.cell} reads feature maps, and the "
                "cached features are vectors; choose a cell on vectors, as lstm, or "
                "--config.model.encoder.frozen=False"
            )

    def describe_preprocessing(self) -> dict[str, Any]:
        """Returns the settings of the images, and the frozen encoder with its weights' digest."""
        data = self.data
        if self.caches_features:
            return {**self._describe_streams(self._streams(())), **self.describe_encoder()}
        described = {"num_steps": data.num_steps, "transform": dataclasses.asdict(self._transform)}
        return described if data.images == "rgb" else {**described, "images": data.images}

    def describe_inference(self) -> dict[str, Any] | None:
        """Returns the networks, behind their encoder where it is frozen, and clips as at test.

        None for optical flow, which an exported model could not compute.
        """
        data = self.data
        if data.images == "flow" or (self.caches_features and self._streams(()).has_flow):
            return None
        clips: dict[str, Any] = {
            "kind": "clip",
            "sampler": "uniform",
            "num_frames": data.num_steps,
            "num_clips": data.test_views,
            "short_side": data.size,
            "size": [data.size, data.size],
            "keep_aspect": False,
        }
        if self.caches_features:
            source = self._streams(())
            clips = {
                "kind": "streams",
                "streams": list(source.streams),
                "num_steps": data.num_steps,
                "stored_steps": source.num_steps,
                "num_views": data.test_views,
                "mirror": source.mirror,
                "size": source.size,
                "gap": source.gap,
            }
        return {
            "kind": "video_classification",
            "name": self.name,
            "labels": list(self.class_names),
            "network": self.make_model(),
            "encoder": describe_frozen_encoder(self.model.encoder, data.pool)
            if self.caches_features
            else None,
            "averaging": "clip",
            "preprocessing": clips,
        }

    def make_model(self) -> nn.Module:
        """Returns a network for each stream of cached features, or the network on frames."""
        network = make_crnn(
            self.model,
            len(self.class_names),
            cached_features=self.caches_features,
            fixed_length=self.caches_features or self.embedded,
        )
        if not self.caches_features:
            return network
        return LateFusion(network, self.model.members, self.model.projection_features)

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the variables with the encoder's weights, or the projection of its features.

        The projection is fitted to the training videos. Components along which they hardly vary,
        as there are with few videos, are zero: other videos may vary along them.
        """
        if not self.caches_features:
            return super().initial_variables(variables)
        examples = self._examples("train")
        every = -(-len(examples) * self.data.stored_steps // _FITTED_STEPS)
        found = [examples[index] for index in range(0, len(examples), every)]
        features = np.stack([example["features"] for example in found if example["mask"]])
        streams = len(self.data.streams)
        n, views, steps, width = features.shape  # (N,S,T,D), or (N,2S,T,D) with mirrored ones
        by_stream = features.reshape(n, streams, views // streams, steps, width).swapaxes(0, 1)
        kernels, biases = [], []
        for stream in by_stream:
            rows = stream.reshape(-1, width).astype(np.float32)
            kernel, bias = fit_projection(
                rows, self.model.projection_features, whitening=self.model.whitening
            )
            varies = (rows @ kernel).std(0) > 1e-2
            kernels.append(kernel * varies)
            biases.append(bias * varies)
        projection = {"kernel": np.stack(kernels), "bias": np.stack(biases)}
        return {**variables, "params": {**variables["params"], "projection": projection}}

    def frozen_parts(self) -> tuple[str, ...]:
        """Returns the projection, or ``encoder`` where it is frozen and part of the network."""
        return ("projection",) if self.caches_features else super().frozen_parts()

    def make_task(self) -> Task:
        """Returns classification of clips by their logits averaged over the steps."""
        return VideoClassification(
            loss_kind="clip",
            label_smoothing=self.label_smoothing,
            mixup=self.mixup if self.caches_features else 0.0,
        )

    def make_data(self, split: str) -> Loader:
        """Returns the clips of ``train``, ``validation`` or ``test``."""
        if split == "train":
            self.announce()
        if self.embedded:
            clips = MovingShapes(split, self.data.num_examples)
            return self.make_loader(clips, None, self.batch_size, split)
        if self.caches_features:
            return self.make_loader(self._examples(split), self._cut(split), self.batch_size, split)
        files = self.select(split)
        source = VideoSource(files.paths, files.labels, self._reader(self.data.images))
        return self.make_loader(source, self._decode(split), self.batch_size, split)

    def make_prediction_data(self, paths: Sequence[str]) -> Loader:
        """Returns the clips of the given files, cut as at test; unreadable ones are masked."""
        if not self.caches_features:
            videos = VideoSource(tuple(paths), reader=self._reader(self.data.images))
            return self.make_loader(videos, self._decode("test"), 1)
        source = self._streams(tuple(paths))
        encode = make_encode(self.model.encoder, self.data.pool)
        examples = [encode_example(source[index], encode) for index in range(len(source))]
        return self.make_loader(VideoFeatures(examples, source), self._cut("test"), 1)

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """Returns 16 frames spread evenly over a video, (16,H,W,3) uint8."""
        if self.embedded:
            return MovingShapes(split, self.data.num_examples)[index]["video"]
        path, reader = self.select(split).paths[index], self._reader("rgb")
        return reader.decode(
            path, segment_centres(16, reader.probe(path).num_frames), short_side=120
        )

    def describe_inputs(self) -> str:
        """Returns the inputs of the network in words."""
        if self.caches_features:
            streams, members = ", ".join(self.data.streams), self.model.members
            networks = "a network" if members == 1 else f"{members} networks"
            return f"{networks} for each of {streams}, {self.data.num_steps} steps"
        return f"{self.data.num_steps} frames"

    def _reader(self, images: str) -> VideoReader:
        """Returns the reader of frames, ``rgb``, or ``flow``."""
        if images == "rgb":
            return FrameFolders(JESTER_RATE if self.data.dataset == "jester" else 25.0)
        return make_reader(images, videos=self._root, flow=self.data.flow)

    # ---- Frozen encoder: streams of images, whose features are cached ---------------------------

    def _streams(self, paths: tuple[str, ...], labels: tuple[int, ...] = ()) -> StreamSource:
        data = self.data
        has_flow = any(stream in FLOW_STREAMS for stream in data.streams)
        return StreamSource(
            VideoSource(paths, labels or None, self._reader("rgb")),
            data.streams,
            data.stored_steps,
            size=data.size,
            mirror=data.flip,
            flow=self._reader("flow") if has_flow else None,
        )

    def _describe_streams(self, source: StreamSource) -> dict[str, Any]:
        return {
            "streams": source.streams,
            "steps": source.num_steps,
            "size": source.size,
            "gap": source.gap,
            "mirror": source.mirror,
            "pool": self.data.pool,
        }

    def _examples(self, split: str) -> SelectedExamples:
        """Returns the cached features of a split; all splits and folds share one cache."""
        files, positions = self.in_order_of_names(split)
        source = self._streams(files.paths, files.labels)
        cached = cache_features(
            self.data.cache,
            source,
            self.model.encoder,
            self.data.pool,
            preprocessing=self._describe_streams(source),
            # No paths: moved videos are the same, and the labels are those of the list.
            source=[source.digest(path) for path in files.paths],
        )
        features = VideoFeatures(in_memory(cached), source, files.labels)
        return SelectedExamples(features, positions)

    def _cut(self, split: str) -> CutFeatures:
        data = self.data
        return CutFeatures(
            split == "train",
            num_steps=data.num_steps,
            num_views=data.test_views,
            mirror=data.flip,
        )

    # ---- Fine-tuning: clips of frames ------------------------------------------------------------

    def _decode(self, split: str) -> DecodeClip:
        return DecodeClip(
            UniformClip(self.data.num_steps),
            self._transform,
            train=split == "train",
            num_clips=self.data.test_views if split == "test" else 1,
            short_side=self.data.size,
        )

    @property
    def _transform(self) -> SpatialTransform:
        size = self.data.size
        kind = SpatialTransform if self.data.images == "rgb" else FlowTransform
        return kind((size, size), flip=self.data.flip, keep_aspect=False)


def get_config(variant: str | None = None) -> Config:
    """Returns the configuration of a variant; None: for files of one's own.

    Raises:
      ValueError: an unknown variant.
    """
    config: Config = configure(VideoClassificationConfig(), "video_classification", variant)
    return config
