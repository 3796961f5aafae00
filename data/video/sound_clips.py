"""Clips of videos with the sound around each of their frames."""

from dataclasses import dataclass

import numpy as np

from data.audio.decoding import read_audio
from data.audio.log_mel import LogMel, log_mel_patches
from data.batches import UNKNOWN_LABEL, VideoExample
from data.video.clips import FileRecord, UniformClip, explain_failure
from data.video.decoding import VideoError, decode, probe
from data.video.transforms import SpatialTransform, pad_clip


@dataclass(frozen=True)
class DecodeSoundClip:
    """Decodes a record of a ``VideoSource`` into frames and the log-mel patches around them.

    A video without sound, or an unreadable one, becomes an example with ``mask`` False.

    Attributes:
        num_frames: T, a frame of each of T equal parts of the video.
        transform: crops and resizes the frames.
        log_mel: of the sound.
        width: W, columns of a patch.
        train: random frames and crops; False takes the middle ones.
    """

    num_frames: int
    transform: SpatialTransform
    log_mel: LogMel
    width: int
    train: bool

    def __call__(self, record: FileRecord, rng: np.random.Generator) -> VideoExample:
        """Returns ``video`` (T,h,w,3) uint8 and ``audio`` (T,M,W,1) float32 of ``record``."""
        label, readable = record["label"], True
        try:
            video, audio, length = self._read(record["path"], rng if self.train else None)
        except (VideoError, FileNotFoundError):
            video = np.zeros((self.num_frames, *self.transform.size, 3), np.uint8)
            audio = np.zeros((self.num_frames, self.log_mel.num_mels, self.width, 1), np.float32)
            length, label, readable = np.asarray(1, np.int32), UNKNOWN_LABEL, False
        return VideoExample(
            video=video,
            audio=audio,
            lengths=length,
            label=np.asarray(label, np.int32),
            mask=np.asarray(readable),
            index=np.asarray(record["index"], np.int32),
        )

    def explain(self, record: FileRecord) -> str:
        """Returns why the video of ``record`` cannot be read as this transform does."""
        return explain_failure(record["path"], lambda: self._read(record["path"], None))

    def _read(
        self, path: str, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        info = probe(path)
        frames = UniformClip(self.num_frames).sample(info.num_frames, info.rate, rng)
        clip = decode(path, frames, short_side=max(self.transform.size))
        bands = self.log_mel(read_audio(path, self.log_mel.sample_rate)).T  # (M,F)
        patches = log_mel_patches(bands, frames / info.rate, self.width, hop=self.log_mel.hop)
        video, length = pad_clip(self.transform(clip, rng), self.num_frames)
        return video, pad_clip(patches, self.num_frames)[0], length
