"""Methods by which a run that predicts frames continues files and shows its sequences."""

import numpy as np

from data.frames import FrameSource
from data.series.scaling import Scaling
from experiments.frames.files import FrameDataConfig, read_last_frames
from flaxnets.inference.frame_files import limits_of, to_pictures


class ContinuedFrames:
    """Part of a configuration that makes it ``flaxnets.inference.ContinuesFrames``.

    The configuration has a field ``data`` and the methods ``source`` and ``field_scaling``.
    """

    data: FrameDataConfig

    def source(self, split: str) -> FrameSource:
        """Returns the sequences of a split."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method source")

    def field_scaling(self) -> Scaling | None:
        """Returns the scaling of the training's fields; None: images."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method field_scaling")

    @property
    def horizon(self) -> tuple[int, int]:
        """Frames that are given, and those that are predicted in training."""
        return self.data.num_inputs, self.data.num_outputs

    def read_frames(self, path: str) -> np.ndarray:
        """Returns the last frames of a file, as many as are given, in the form of training.

        Returns:
          (T,H,W,C) uint8 in [0,255] of images, float32 of scaled fields.

        Raises:
          FileNotFoundError, VideoError, ValueError: as ``experiments.frames.files``'
            ``read_last_frames``.
        """
        return read_last_frames(self.data, path, self.field_scaling())

    def load_frames(self, split: str, index: int) -> np.ndarray:
        """Returns one sequence of a split, (T,H,W,C) as in a batch."""
        return self.source(split)[index]["frames"]

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """Returns one sequence of a split as pictures, (T,H,W,3) uint8."""
        return to_pictures(frames := self.load_frames(split, index), limits_of(frames))

    def in_units(self, frames: np.ndarray) -> np.ndarray:
        """Returns predicted frames as the data have them.

        Args:
          frames: (T,H,W,C) float32, in [0,1] of images, scaled of fields.

        Returns:
          uint8 in [0,255] of images; float64 in their own units of fields.
        """
        scaling = self.field_scaling()
        if scaling is not None:
            return scaling.inverse(frames)
        return np.round(255 * np.clip(frames, 0, 1)).astype(np.uint8)
