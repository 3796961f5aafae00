"""Configuration of experiments on videos with sound: class folders, lists, or embedded clips."""

import dataclasses
from typing import Any, ClassVar

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


@dataclasses.dataclass
class SoundClipsConfig(FilesConfig):
    """Location of the videos, and what is seen and heard of them."""

    num_frames: int = 16
    """T, frames of a clip, spread over the whole video."""
    size: int = 96
    """Height and width of the frames, pixels."""
    patch_width: int = 32
    """Columns of 10 ms of the log-mel patch around a frame, of 64 bands."""


@dataclasses.dataclass
class SoundClipClassification(FileClassification):
    """Classification of videos with sound."""

    kind: ClassVar[str] = "video"
    embedded_name: ClassVar[str] = "sounding_shapes"

    data: SoundClipsConfig = dataclasses.field(default_factory=SoundClipsConfig)

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
