"""Continuation of sequences of frames by a trained run."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from flaxnets.inference.frame_files import (
    GIVEN,
    PREDICTED,
    draw_strip,
    limits_of,
    to_pictures,
    write_gif,
    write_mp4,
)
from flaxnets.inference.trained_model import TrainedModel

LEAST_SIDE = 128
"""Shorter side of the pictures in files, pixels, at least."""


@runtime_checkable
class ContinuesFrames(Protocol):
    """Configuration of an experiment whose model predicts the frames that follow given ones.

    Where it has an attribute ``frame_shape``, (H,W,C) in training, the error of a file with other
    frames tells it. It is no part of the protocol, whose check would read it from the data.
    """

    @property
    def horizon(self) -> tuple[int, int]:
        """Frames that are given, and those that were predicted in training."""

    def read_frames(self, path: str) -> np.ndarray:
        """Returns the last frames of a file, as many as are given, in the form of training.

        Returns:
          (T,H,W,C) uint8 in [0,255] of images, float32 of scaled fields.
        """

    def load_frames(self, split: str, index: int) -> np.ndarray:
        """Returns one sequence of a split, (T,H,W,C) as in a batch."""

    def in_units(self, frames: np.ndarray) -> np.ndarray:
        """Returns predicted frames (T,H,W,C) as the data have them.

        Args:
          frames: float32, in [0,1] of images, scaled of fields.

        Returns:
          uint8 in [0,255] of images; of fields float, in their own units.
        """


class TrainedForecaster:
    """A trained run that continues sequences of frames, compiled for this machine.

    Args:
      model: of a run whose configuration is ``ContinuesFrames`` and whose task has ``predict``, as
        ``flaxnets.tasks.frame_prediction.FramePrediction``.

    Attributes:
      config: the configuration of the run.

    Raises:
      ValueError: a run of another task.
    """

    def __init__(self, model: TrainedModel) -> None:
        self.config: Any = model.config
        task: Any = model.config.make_prediction_task()
        if not isinstance(self.config, ContinuesFrames) or not hasattr(task, "predict"):
            raise ValueError(
                "--workdir: expected a run that predicts frames, as experiments/conv_lstm.py, "
                f"received one of {model.config.name!r}"
            )
        self._variables = model.variables
        # The number of frames is part of the program that is compiled.
        self._predict = jax.jit(partial(task.predict, model.model), static_argnums=2)

    def predict(self, frames: np.ndarray, num_outputs: int) -> np.ndarray:
        """Returns the frames that follow.

        Args:
          frames: (N,T,H,W,C) uint8 in [0,255] or float32, T as in training.
          num_outputs: frames of each continuation, at least 1, also more than in training.

        Returns:
          (N,num_outputs,H,W,C) float32: in [0,1] of uint8 frames, else scaled as the inputs.
        """
        return np.asarray(self._predict(self._variables, frames, num_outputs))

    def continue_file(
        self, path: str, num_outputs: int, folder: Path, name: str
    ) -> Mapping[str, Any]:
        """Writes the continuation of a video or array into a folder, and returns the files.

        ``NAME.mp4`` and ``NAME.gif`` play the given and the predicted frames, ``NAME.png`` shows
        both as rows, and ``NAME.npz`` holds the arrays ``inputs`` and ``prediction`` as the data
        have them.

        Args:
          path: the file.
          num_outputs: frames of the continuation, at least 1.
          folder: where the files are written.
          name: of the files, without ending.

        Returns:
          Paths by ``mp4``, ``gif``, ``png`` and ``npz``, for JSON.

        Raises:
          OSError: the file cannot be read.
          ValueError: it is too short, or of another kind or size than in training.
        """
        given = self.config.read_frames(path)
        try:
            predicted = self.predict(given[None], num_outputs)[0]
        except Exception as error:
            # Convolutions read frames of any size; a patch or a dense layer does not.
            expected = getattr(self.config, "frame_shape", given.shape[1:])
            if given.shape[1:] == expected:
                raise
            raise ValueError(
                f"{path}: expected frames {expected}, as in training, received "
                f"{given.shape[1:]}, of which the network makes no prediction"
            ) from error
        limits = limits_of(given, predicted)
        rows = [
            to_pictures(frames, limits, least_side=LEAST_SIDE, border=border)
            for frames, border in ((given, GIVEN), (predicted, PREDICTED))
        ]
        files = {ending: folder / f"{name}.{ending}" for ending in ("mp4", "gif", "png", "npz")}
        pictures = np.concatenate(rows)
        write_mp4(files["mp4"], pictures)
        write_gif(files["gif"], pictures)
        draw_strip(rows).save(files["png"])
        inputs = given if given.dtype == np.uint8 else self.config.in_units(given)
        np.savez(files["npz"], inputs=inputs, prediction=self.config.in_units(predicted))
        return {ending: str(file) for ending, file in files.items()}
