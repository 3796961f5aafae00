r"""Audio-visual CRNN: the frames of a video, and the sound around each of them.

``StreamFusion`` (``flaxnets/models/stream_fusion.py``): a CNN on the frames, a CNN on the log-mel
patches around them, an LSTM over the concatenated features; whole streams are dropped at random
(the idea of ModDrop, Neverova et al., arXiv:1501.00102).

    python -m launch.train --config=experiments/audio_visual.py:generated --workdir=runs/both
    python -m launch.train --config=experiments/audio_visual.py:generated --workdir=runs/frames \
        --config.streams="('video',)"                       and "('audio',)"
    python -m launch.train --config=experiments/audio_visual.py --workdir=runs/mine \
        --config.data.root=my_videos          class folders of videos with sound, or a list

Expected (``generated``): both streams above 95 %, each alone about 33.3 %, which it cannot exceed
but by chance: of nine classes the frames tell three groups, the sound three others
(``data/video/sounding_shapes.py``).

Deviations: no paper is followed to the letter. Frames are spread over the whole video, the sound is
seen in windows of ``data.patch_width`` columns of 10 ms around them.

Variants: none, for files of one's own; ``generated``; ``smoke``, a few seconds of it.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import numpy as np

from data.audio.log_mel import LogMel
from data.loader import Loader
from data.video.clips import VideoSource
from data.video.decoding import decode, probe
from data.video.sound_clips import DecodeSoundClip
from data.video.sounding_shapes import LOG_MEL, SoundingShapes
from data.video.streams import segment_centres
from data.video.transforms import SpatialTransform
from experiments.classification.config import FileClassification, FilesConfig
from flaxnets.configuration import nearest
from flaxnets.encoders.config import EncoderConfig
from flaxnets.heads.config import HeadConfig, make_head
from flaxnets.models.config import CRNNConfig, make_crnn
from flaxnets.models.stream_fusion import StreamFusion
from flaxnets.recurrent.config import RecurrentConfig, make_recurrent
from flaxnets.tasks.video_classification import VideoClassification
from flaxnets.training.config import OptimizerConfig

STREAMS = ("video", "audio")
VARIANTS = ("generated", "smoke")


@dataclasses.dataclass
class SoundClipsConfig(FilesConfig):
    """Location of the videos, and what is seen and heard of them."""

    num_frames: int = 16
    """T, frames of a clip, spread over the whole video."""
    size: int = 96
    """Height and width of the frames, pixels."""
    patch_width: int = 32
    """Columns of 10 ms of the log-mel patch around a frame, of 64 bands."""


def _cnn(*features: int) -> EncoderConfig:
    return EncoderConfig("small_cnn", features=features, strides=(2,) * len(features))


@dataclasses.dataclass
class AudioVisualConfig(FileClassification):
    """Hyper-parameters of the audio-visual CRNN."""

    kind: ClassVar[str] = "video"
    embedded_name: ClassVar[str] = "sounding_shapes"

    name: str = "audio-visual CRNN"
    num_steps: int = 300
    streams: tuple[str, ...] = STREAMS
    """Inputs of the network: ``video``, ``audio`` or both."""
    stream_dropout: float = 0.1
    """Probability that a whole stream of a clip is zeroed in training."""
    audio_encoder: EncoderConfig = dataclasses.field(default_factory=lambda: _cnn(16, 32, 64))
    """The encoder of the patches of sound; ``model.encoder`` is that of the frames."""
    data: SoundClipsConfig = dataclasses.field(default_factory=SoundClipsConfig)
    model: CRNNConfig = dataclasses.field(
        default_factory=lambda: CRNNConfig(
            _cnn(16, 32, 64, 128), RecurrentConfig("lstm", features=64), HeadConfig("mean")
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig("adamw", 3e-3, "cosine", 20, clip_norm=5.0)
    )

    @property
    def caches_features(self) -> bool:
        """A frozen encoder runs in every step: the frames are random."""
        return False

    def make_embedded(self, split: str) -> SoundingShapes:
        """Returns a split of the embedded clips."""
        return SoundingShapes(split, self.data.num_examples)

    def describe_preprocessing(self) -> dict[str, Any]:
        """Returns the settings of the frames and of the patches of sound."""
        clip = self._decode("test")
        settings = {"frames": clip.num_frames, "size": self.data.size, "width": clip.width}
        return {**settings, "log_mel": clip.log_mel.describe()}

    def describe_inputs(self) -> str:
        """Returns the inputs of the network in words."""
        return f"{' and '.join(self.streams)} at {self.data.num_frames} times"

    def make_model(self) -> nn.Module:
        """Returns a CNN for each stream, and the recurrent layer over all."""
        if not self.streams or set(self.streams) - set(STREAMS):
            raise ValueError(f"streams: expected some of {STREAMS}, received {self.streams}")
        model, none = self.model, RecurrentConfig("none")
        heard = dataclasses.replace(model, recurrent=none, encoder=self.audio_encoder)
        seen = {"video": dataclasses.replace(model, recurrent=none), "audio": heard}
        if len(self.streams) == 1:
            alone = dataclasses.replace(seen[self.streams[0]], recurrent=model.recurrent)
            return make_crnn(alone, len(self.class_names), fixed_length=self.embedded)
        return StreamFusion(
            {name: make_crnn(seen[name], None) for name in self.streams},
            make_head(model.head, len(self.class_names), fixed_length=self.embedded),
            make_recurrent(model.recurrent),
            stream_dropout=self.stream_dropout,
        )

    def make_task(self) -> VideoClassification:
        """Returns classification of clips."""
        return VideoClassification("clip", inputs=tuple(self.streams))

    def make_data(self, split: str) -> Loader:
        """Returns the clips of ``train``, ``validation`` or ``test``."""
        if self.embedded:
            return self.make_loader(self.make_embedded(split), None, self.batch_size, split)
        files = self.select(split)
        source = VideoSource(files.paths, files.labels)
        return self.make_loader(source, self._decode(split), self.batch_size, split)

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """Returns frames spread evenly over a video, (T,H,W,3) uint8."""
        if self.embedded:
            return self.make_embedded(split).clip(index)[0]
        path = self.select(split).paths[index]
        return decode(path, segment_centres(16, probe(path).num_frames), short_side=120)

    def _decode(self, split: str) -> DecodeSoundClip:
        data, train = self.data, split == "train"
        frames = SpatialTransform((data.size, data.size), keep_aspect=False)
        log_mel = LOG_MEL if self.embedded else LogMel()
        return DecodeSoundClip(data.num_frames, frames, log_mel, data.patch_width, train)


def get_config(variant: str | None = None) -> AudioVisualConfig:
    """Returns the configuration of a variant; None: for files of one's own.

    Raises:
      ValueError: an unknown variant.
    """
    config = AudioVisualConfig()
    if variant is None:
        return config
    if variant not in VARIANTS:
        raise ValueError(f"audio_visual:{variant}: no such variant{nearest(variant, VARIANTS)}")
    config.data.dataset, config.data.num_examples = "sounding_shapes", 1800
    if variant == "smoke":
        config.batch_size, config.num_steps, config.log_every, config.eval_every = 9, 6, 1, 3
        config.data.num_examples, config.optimizer.warmup_steps = 18, 0
        config.model.encoder, config.audio_encoder = _cnn(4, 8), _cnn(4, 8)
        config.model.recurrent.features = 8
    return config
