"""Configuration that the papers on action recognition share: clips of UCF101, and their features.

A paper is a file with a subclass of ``ClipClassification``: its network, its hyper-parameters and
the settings of its clips. The network sees one of

- random crops of decoded clips, through its encoder;
- clips of cached features of every frame, where the encoder is frozen;
- ``data.streams``: images spread over the whole video, of frames and of motion, of which each
  stream, and each endpoint of ``levels``, is an input of its own, encoded once and cached.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from data.datasets.ucf101 import UCF101_GROUP, UT_INTERACTION_GROUP, VideoList, read_split
from data.loader import Loader
from data.moving_shapes.source import MovingShapes
from data.video.clips import (
    ClipSampler,
    DecodeClip,
    DenseClip,
    UniformClip,
    VideoReader,
    VideoSource,
)
from data.video.decoding import decode, probe
from data.video.feature_clips import FeatureClip, VideoFeatures, WholeVideos
from data.video.streams import STREAMS, CutFeatures, CutJoined, JoinedFeatures, StreamSource
from data.video.transforms import SpatialTransform
from experiments.features.frozen_features import (
    Encode,
    cache_features,
    describe_encoder,
    describe_frozen_encoder,
    encode_example,
    in_memory,
    make_encode,
    shared_encode,
)
from flaxnets.configuration import check_at_least, check_rates, nearest, path_field, runtime
from flaxnets.encoders.config import EncoderConfig, weights_file, with_encoder_weights
from flaxnets.heads.config import PER_STEP
from flaxnets.models.config import CRNNConfig, make_crnn, pool_of
from flaxnets.recurrent.config import NONE
from flaxnets.tasks.video_classification import VideoClassification
from flaxnets.training.config import Config, OptimizerConfig
from flaxnets.training.workdir import Workdir

DATASETS = ("ucf101", "moving_shapes")
SAMPLERS = ("dense", "uniform")
VARIANTS = ("smoke", "ut_interaction")


@dataclasses.dataclass
class ClipsConfig:
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
    num_frames: int = 16
    """T, frames of a clip."""
    sampling: str = "dense"
    """``dense``: a window of the video; ``uniform``: a frame of each of T equal parts of it."""
    rate: float = 0.0
    """``dense`` only: frames/s of the clips; 0: those of the video."""
    frame_size: tuple[int, int] = (240, 320)
    """Height and width, pixels. Decoded frames are resized so that their short side has this
    height; the width is the paper's, for videos of 4:3."""
    crop_size: int = 224
    """Height and width of the crops, or of the images of ``streams``, pixels."""
    flip: bool = True
    """Clips are also seen mirrored: at random in training, as further views at test. Switch it off
    where a label has a direction; UCF101's have none."""
    test_clips: int = 8
    """Clips of each video at test."""
    test_crops: int = 10
    """Crops of each clip at test. 1: the centre; 5: also the corners; 10: these also mirrored,
    which needs ``flip``. Cached features have the centre crop, ``streams`` the whole image."""
    streams: tuple[str, ...] = ()
    """Streams of images of whole videos (``data/video/streams.py``) that a frozen encoder sees in
    place of clips; empty: clips of frames."""
    stored_steps: int = 25
    """``streams`` only: images of each video that are encoded and cached."""
    pool: str = "mean"
    """``streams`` only: pooling of feature maps to vectors, ``mean`` or ``max``."""
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
class ClipClassification(Config):
    """Action recognition on clips of UCF101, or of another data set in its format."""

    stream_names: ClassVar[tuple[str, ...]] = STREAMS
    """Possible values of ``data.streams``."""
    transform_type: ClassVar[type[SpatialTransform]] = SpatialTransform
    """Crop of the clips; of optical flow it mirrors directions, too."""

    label_smoothing: float = 0.0
    """Share of the target probability, in [0,1), that is spread over all classes."""
    mixup: float = 0.0
    """Features only: α of the Beta distribution of mixup's weights; 0: no mixup."""
    data: ClipsConfig = dataclasses.field(default_factory=ClipsConfig)
    model: CRNNConfig = dataclasses.field(default_factory=CRNNConfig)

    def __post_init__(self) -> None:
        # No field, so it is neither a flag nor part of config.json.
        self._class_names: tuple[str, ...] = ()

    def validate(self) -> None:
        """Checks the values as ``Config.validate``, and those of the data."""
        super().validate()
        weights_file(self.model.encoder)  # It is there.
        data = self.data
        for name, value, known in (
            ("dataset", data.dataset, DATASETS),
            ("sampling", data.sampling, SAMPLERS),
            ("pool", data.pool, ("mean", "max")),
            *(("streams", stream, self.stream_names) for stream in data.streams),
        ):
            if value not in known:
                raise ValueError(f"data.{name}: unknown {value!r}{nearest(value, known)}")
        if not 1 <= data.crop_size <= data.frame_size[0]:
            raise ValueError(
                f"data.crop_size: expected 1 to the frames' height, data.frame_size[0] = "
                f"{data.frame_size[0]}, received {data.crop_size}"
            )
        if data.test_crops not in (1, 5, 10):
            raise ValueError(f"data.test_crops: expected 1, 5 or 10, received {data.test_crops}")
        if data.test_crops == 10 and not data.flip and self.encodes_frames:
            raise ValueError(
                "data.test_crops: expected 1 or 5 with data.flip=False, received 10, half of which "
                "are mirrored"
            )
        least = {"num_frames": 1, "test_clips": 1, "num_examples": 1, "num_workers": 0, "rate": 0}
        check_at_least("data", data, least)
        check_rates("config", self, "label_smoothing")
        check_rates("config.model.head", self.model.head, "dropout_rate")
        if not data.streams:
            return
        if data.stored_steps < data.num_frames:
            raise ValueError(
                f"data.stored_steps: expected at least data.num_frames = {data.num_frames}, "
                f"received {data.stored_steps}"
            )
        cached = bool(data.cache) or self.embedded
        if not (self.stream_encoder(data.streams[0]).frozen and cached):
            raise ValueError(
                "data.streams: expected a frozen encoder and a folder for its features, received "
                f"model.encoder.frozen={self.model.encoder.frozen} and data.cache={data.cache!r}; "
                "with --config.data.streams=() an encoder is fine-tuned on clips"
            )

    # ---- What a run keeps --------------------------------------------------------------------

    @property
    def embedded(self) -> bool:
        """True if the embedded data set takes the place of files."""
        return self.data.dataset == "moving_shapes"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the actions, by label: the trained model's, or else the data's."""
        if self.embedded:
            return MovingShapes.class_names
        return self._class_names or self._videos("train").class_names

    def load_assets(self, folder: Path) -> None:
        """Reads the names of a trained model's classes."""
        self._class_names = tuple(Workdir(folder).read_data()["class_names"])

    def describe_data(self, split: str) -> dict[str, Any]:
        """Returns the classes, and digests of the list and its labels."""
        if self.embedded:
            return MovingShapes(split, self.data.num_examples).describe()
        return self._videos(split).describe()

    def describe_preprocessing(self) -> dict[str, Any]:
        """Returns the settings of the clips, and the frozen encoder with its weights' digest."""
        data = self.data
        if data.streams:
            return {
                "num_frames": data.num_frames,
                "streams": {name: list(each) for name, each in self.inputs.items()},
                **_describe_stream(self.make_stream(VideoSource(()), data.streams[0]), self.pool),
                "encoders": {s: describe_encoder(self.stream_encoder(s)) for s in data.streams},
            }
        sampling = {"sampling": data.sampling, "rate": data.rate}
        return {
            "num_frames": data.num_frames,
            **({} if sampling == {"sampling": "dense", "rate": 0.0} else sampling),
            "short_side": data.frame_size[0],
            "transform": dataclasses.asdict(self._transform(1)),
            **(describe_encoder(self.model.encoder) if self.caches_features else {}),
        }

    def describe_inference(self) -> dict[str, Any] | None:
        """Returns the network behind its encoder, and clips and crops as at test.

        None for inputs that only this configuration makes: streams, and clips of another rate.
        """
        data, cached = self.data, self.caches_features
        if data.streams or data.rate:
            return None
        encoder = describe_frozen_encoder(self.model.encoder, self.pool) if cached else None
        return {
            "kind": "video_classification",
            "name": self.name,
            "labels": list(self.class_names),
            "network": self.make_model(),
            "encoder": encoder,
            "averaging": self.loss_kind,
            "preprocessing": {
                "kind": "clip",
                "sampler": data.sampling,
                "num_frames": data.num_frames,
                "num_clips": data.test_clips,
                "short_side": data.frame_size[0],
                "size": [data.crop_size, data.crop_size],
                "scale": self._transform(1).test_scale,
                "crops": 5 if data.test_crops > 1 and not cached else 1,
                "mirror": data.flip if cached else data.test_crops == 10,
            },
        }

    def set_fold(self, fold: int) -> None:
        """Selects one of UCF101's official splits, 1 to 3."""
        self.data.fold = fold

    # ---- Model -------------------------------------------------------------------------------

    @property
    def caches_features(self) -> bool:
        """True if the network is trained on cached features of clips, without the encoder."""
        data = self.data
        frozen = self.model.encoder.frozen and bool(data.cache)
        return frozen and data.dataset == "ucf101" and not data.streams

    @property
    def encodes_frames(self) -> bool:
        """True if the encoder is part of the network."""
        return not (self.caches_features or self.data.streams)

    @property
    def levels(self) -> tuple[str, ...]:
        """Endpoints of the encoder that the network reads; an empty name: its last feature maps."""
        return (self.model.encoder.level,)

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        """Stream and endpoint of each input of the network, by the input's name."""
        pairs = [(stream, level) for stream in self.data.streams for level in self.levels]
        if len(pairs) == 1:
            return {"features": pairs[0]}
        if len(self.levels) == 1:
            return {stream: (stream, level) for stream, level in pairs}
        if len(self.data.streams) == 1:
            return {level: (stream, level) for stream, level in pairs}
        return {f"{stream}.{level}": (stream, level) for stream, level in pairs}

    @property
    def pool(self) -> str:
        """Pooling over space of the features that are cached; ``none`` for maps."""
        if pool_of(self.model) != "mean":
            return "none"
        return self.data.pool if self.data.streams else "mean"

    @property
    def loss_kind(self) -> str:
        """``per_step``, or ``clip`` where the head pools over time."""
        return "per_step" if self.model.head.pool == PER_STEP else "clip"

    def stream_encoder(self, stream: str, level: str = "") -> EncoderConfig:
        """Returns the frozen encoder of the images of a stream, with its endpoint."""
        return dataclasses.replace(self.model.encoder, level=level)

    def make_model(self) -> nn.Module:
        """Returns encoder, recurrent layer and head; by default an LSTM and logits at each step."""
        return make_crnn(
            self.model,
            len(self.class_names),
            cached_features=not self.encodes_frames,
            # Videos shorter than a clip are padded.
            fixed_length=self.embedded or bool(self.data.streams),
        )

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the variables with the pretrained weights of the encoder."""
        if not self.encodes_frames:
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
        return ("encoder",) if self.model.encoder.frozen and self.encodes_frames else ()

    def make_task(self) -> VideoClassification:
        """Returns classification at each step, or of the clip where the head pools over time."""
        return VideoClassification(
            loss_kind=self.loss_kind,
            label_smoothing=self.label_smoothing,
            mixup=0.0 if self.encodes_frames else self.mixup,
            inputs=tuple(self.inputs),
        )

    # ---- Batches -----------------------------------------------------------------------------

    def make_data(self, split: str) -> Loader:
        """Returns the clips of ``train``, ``validation`` or ``test``."""
        if self.data.streams:
            return self._stream_data(split)
        if self.embedded:
            clips = MovingShapes(split, self.data.num_examples)
            return self._loader(clips, None, self.batch_size, split, clips.describe())
        videos = self._videos(split)
        source = self.make_source(videos.paths, videos.labels)
        size = 1 if split == "test" else self.batch_size  # Each test video is many clips.
        described = videos.describe()
        if self.caches_features:
            features = self._features(source)
            return self._loader(features, self._cut_clip(split), size, split, described)
        return self._loader(source, self._decode_clip(split), size, split, described)

    def make_prediction_data(self, paths: Sequence[str]) -> Loader:
        """Returns the clips of the given files, cut as at test; unreadable ones are masked."""
        source = self.make_source(tuple(paths))
        if self.data.streams:
            videos = VideoSource(tuple(paths))
            joined = self._encode_streams(
                {s: self.make_stream(videos, s) for s in self.data.streams}
            )
            return self._loader(joined, self._cut_streams("test"), 1)
        if not self.caches_features:
            return self._loader(source, self._decode_clip("test"), 1)
        whole = self._whole_videos(source)
        encode = make_encode(self.model.encoder, self.pool)
        features = VideoFeatures(_encode_all(whole, encode), whole)
        return self._loader(features, self._cut_clip("test"), 1)

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """Returns 16 frames spread evenly over a video, (16,H,W,3) uint8."""
        if self.embedded:
            return MovingShapes(split, self.data.num_examples)[index]["video"]
        path = self._videos(split).paths[index]
        frames = np.linspace(0, probe(path).num_frames - 1, 16).round().astype(int)
        return decode(path, frames, short_side=self.data.frame_size[0])

    def make_source(
        self, paths: tuple[str, ...], labels: tuple[int, ...] | None = None
    ) -> VideoSource:
        """Returns the videos of which clips are cut."""
        return VideoSource(paths, labels)

    def make_stream(self, videos: VideoSource, stream: str) -> StreamSource:
        """Returns the images of a stream of ``data.streams``."""
        data = self.data
        return StreamSource(
            videos,
            (stream,),
            data.stored_steps,
            size=data.crop_size,
            mirror=data.flip,
            flow=self.read_flow(stream),
        )

    def read_flow(self, stream: str) -> VideoReader | None:
        """Returns the reader of the optical flow of a stream; None, as here, for other streams."""
        return None

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

    # ---- Clips of frames, or of the cached features of every frame ------------------------------

    def _features(self, source: VideoSource) -> VideoFeatures:
        """Returns the cached features of every frame; encodes them where the cache lacks them."""
        whole = self._whole_videos(source)
        features = cache_features(
            self.data.cache,
            whole,
            self.model.encoder,
            self.pool,
            preprocessing={
                "transform": dataclasses.asdict(whole.transform),
                "short_side": whole.short_side,
                "pool": self.pool,
            },
            # No paths: moved videos are the same, and the list has the labels.
            source=[source.reader.digest(path) for path in source.paths],
        )
        return VideoFeatures(features, whole, source.labels)

    def _whole_videos(self, source: VideoSource) -> WholeVideos:
        return WholeVideos(source, self._transform(1), short_side=self.data.frame_size[0])

    @property
    def _sampler(self) -> ClipSampler:
        data = self.data
        if data.sampling == "uniform":
            return UniformClip(data.num_frames)
        return DenseClip(data.num_frames, rate=data.rate or None)

    def _cut_clip(self, split: str) -> FeatureClip:
        num_clips = self.data.test_clips if split == "test" else 1
        return FeatureClip(self._sampler, train=split == "train", num_clips=num_clips)

    def _decode_clip(self, split: str) -> DecodeClip:
        data = self.data
        test = split == "test"
        return DecodeClip(
            self._sampler,
            self._transform(data.test_crops if test else 1),
            train=split == "train",
            num_clips=data.test_clips if test else 1,
            short_side=data.frame_size[0],
        )

    def _transform(self, test_crops: int) -> SpatialTransform:
        data = self.data
        # ``scale`` is a share of the area; at this one the crop is ``crop_size`` pixels high.
        share = (data.crop_size / data.frame_size[0]) ** 2
        return self.transform_type(
            (data.crop_size, data.crop_size),
            scale=(share, share),
            stretch=1.0,
            flip=data.flip,
            test_scale=share,
            test_crops=test_crops,  # type: ignore[arg-type]
        )

    # ---- Streams of images of whole videos, whose features are cached ----------------------------

    def _stream_data(self, split: str) -> Loader:
        described = self.describe_data(split)
        cut = self._cut_streams(split)
        if self.embedded:
            clips = MovingShapes(split, self.data.num_examples)
            nothing = VideoSource(())
            drawn = {
                s: _DrawnStream(clips, self.make_stream(nothing, s)) for s in self.data.streams
            }
            joined = self._encode_streams(drawn)
        else:
            # All videos of the fold in the order of their names, so that the folds share a cache.
            parts = [self._videos(name) for name in self._splits]
            rows = [zip(part.names, part.paths, part.labels, strict=True) for part in parts]
            names, paths, labels = zip(*sorted({row for part in rows for row in part}), strict=True)
            position = {name: number for number, name in enumerate(names)}
            chosen = tuple(position[name] for name in self._videos(split).names)
            videos = VideoSource(paths, labels)
            features = {n: self._cached(videos, *pair) for n, pair in self.inputs.items()}
            joined = JoinedFeatures(features, labels, chosen, videos)
        views = self.data.test_clips * (1 + self.data.flip)  # Of each video at test.
        size = self.batch_size if split == "train" else -(-self.batch_size // views)
        return self._loader(joined, cut, size, split, described)

    @property
    def _splits(self) -> tuple[str, ...]:
        return ("train", *(("validation",) if self.data.validation_groups else ()), "test")

    def _cut_streams(self, split: str) -> CutJoined:
        data = self.data
        cut = CutFeatures(
            split == "train",
            num_steps=data.num_frames,
            num_views=data.test_clips if split == "test" else 1,
            mirror=data.flip,
        )
        return CutJoined(cut, tuple(self.inputs))

    def _cached(self, videos: VideoSource, stream: str, level: str) -> Any:
        source = self.make_stream(videos, stream)
        cached = cache_features(
            self.data.cache,
            source,
            self.stream_encoder(stream, level),
            self.pool,
            preprocessing={"streams": source.streams, **_describe_stream(source, self.pool)},
            # No paths: moved videos are the same, and the list has the labels.
            source=[source.digest(path) for path in videos.paths],
        )
        return in_memory(cached)

    def _encode_streams(self, sources: Mapping[str, Any]) -> JoinedFeatures:
        """Returns the features of sources of images, by stream, encoded now and not cached."""
        features = {
            name: _encode_all(
                sources[stream], shared_encode(self.stream_encoder(stream, level), self.pool)
            )
            for name, (stream, level) in self.inputs.items()
        }
        first = next(iter(features.values()))
        labels = tuple(int(example["label"]) for example in first)
        videos = next(iter(sources.values())).videos
        return JoinedFeatures(features, labels, tuple(range(len(first))), videos)


@dataclasses.dataclass(frozen=True)
class _DrawnStream:
    """Clips of the embedded data set as images of a stream, as ``StreamSource`` gives them."""

    clips: MovingShapes
    stream: StreamSource

    @property
    def videos(self) -> VideoSource:
        return self.stream.videos

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return {**self.clips[index], "video": self.stream.images(self.clips[index]["video"])}


def _encode_all(source: Any, encode: Encode) -> list[dict[str, np.ndarray]]:
    return [encode_example(source[index], encode) for index in range(len(source))]


def _describe_stream(source: StreamSource, pool: str) -> dict[str, Any]:
    """Returns the settings of the images that the encoder sees, for JSON."""
    return {
        "steps": source.num_steps,
        "size": source.size,
        "gap": source.gap,
        "mirror": source.mirror,
        "pool": pool,
    }


def step_schedule() -> OptimizerConfig:
    """Returns LRCN's optimizer: SGD whose rate is divided by 10 every 10,000 steps (1411.4389)."""
    return OptimizerConfig(
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


def parse_variant(experiment: str, variant: str | None, own: Sequence[str] = ()) -> list[str]:
    """Returns the names in a variant, as ``conv_pooling,ut_interaction``.

    Args:
      experiment: name of its file, for the error.
      variant: names of ``VARIANTS`` and ``own``, separated by commas; None: none.
      own: variants of this experiment.

    Raises:
      ValueError: an unknown name.

    >>> parse_variant("gru_rcn", "stacked,smoke", ("stacked",))
    ['stacked', 'smoke']
    """
    names = variant.split(",") if variant else []
    known = (*own, *VARIANTS)
    for name in names:
        if name not in known:
            raise ValueError(f"{experiment}:{variant}: no such variant{nearest(name, known)}")
    return names


def make_small(config: Any, *streams: str) -> None:
    """Changes a paper's configuration to ``smoke``, in place: the embedded data, a few seconds.

    Args:
      config: a ``ClipClassification``; sizes of the network are the caller's.
      *streams: the streams that the network reads; none: frames.
    """
    config.batch_size, config.num_steps, config.log_every = 8, 6, 1
    config.eval_every = config.checkpoint_every = 3
    config.optimizer.warmup_steps = 0
    config.data.dataset, config.data.num_examples = "moving_shapes", 20
    config.data.streams, config.data.num_frames = streams, 16
    config.data.sampling, config.data.rate = "dense", 0.0
    if streams:
        config.data.stored_steps = config.data.num_frames = 8
        config.data.test_clips, config.data.crop_size = 2, 32
    config.model.encoder = EncoderConfig(
        "small_cnn", features=(8, 8, 16), strides=(4, 2, 2), frozen=bool(streams)
    )
    config.model.recurrent.features = 8


def adapt_to_ut_interaction(config: Any, *streams: str, size: int = 224, steps: int = 16) -> None:
    """Changes a paper's configuration to UT-Interaction's 54 training clips, in place.

    Leave one sequence out (``experiments/ut_interaction.py``, from where the schedule and the
    regularisation are taken as they stand): a frozen EfficientNet-Lite0 on streams of images, the
    last checkpoint. Nothing is selected on a test sequence.

    Args:
      config: a ``ClipClassification``; the network's sizes are the caller's.
      *streams: the streams that the network reads.
      size: height and width of the images, pixels.
      steps: T.
    """
    data = config.data
    data.group_pattern, data.validation_groups = UT_INTERACTION_GROUP, ()
    data.streams, data.stored_steps, data.num_frames = streams, 2 * steps, steps
    data.crop_size, data.pool, data.test_clips = size, "max", 4
    data.cache = data.cache or ClipsConfig.cache
    config.batch_size, config.num_steps, config.eval_every = 54, 100, 100
    config.eval_split, config.checkpoint_every = "", 100
    config.label_smoothing, config.mixup = 0.1, 0.4
    config.model.encoder = EncoderConfig("efficientnet_lite0", weights="imagenet", frozen=True)
    config.model.dropout_rate = config.model.head.dropout_rate = 0.5
    config.optimizer = OptimizerConfig(
        name="adamw",
        learning_rate=3e-3,
        schedule="cosine",
        warmup_steps=20,
        weight_decay=1e-2,
        clip_norm=5.0,
    )
