"""Functions of exported readers and sound classifiers, whose columns become steps."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .functions import Carry, Clips, Texts

ROWS_AT_ONCE = 16
"""Most windows that the function of a sound classifier is given."""


class ExportedStream:
    """Functions of a stream of an export, see ``functions.ColumnFunctions``."""

    def __init__(self, functions: Any, exported: Mapping[str, Any]) -> None:
        """Reads nothing yet.

        Args:
          functions: of the folder, by name.
          exported: ``export`` of its ``model.json``.
        """
        self._functions = functions
        self.stride, self.obstacle = int(exported["stride"]), str(exported["obstacle"])
        before, after = exported["context"] or (0, 0)
        self.context = int(before), int(after)

    def start(self) -> Carry:
        """Returns the carry before the first chunk."""
        return self._functions["start"]()

    def step(
        self, carry: Carry, inputs: np.ndarray, length: int, first: int, count: int
    ) -> tuple[Carry, np.ndarray, np.ndarray | None]:
        """Reads the next steps of a recording."""
        lengths, counts = np.array([[length], [count]], np.int32)
        carry, steps, clips = self._functions["step"](
            carry, inputs[None], lengths, np.int32(first), counts
        )
        all_clips = None if clips is None else np.asarray(clips)[0, :count]
        return carry, np.asarray(steps)[0, :count], all_clips


class ExportedReader(ExportedStream):
    """Functions of an exported reader, see ``functions.ReaderFunctions``."""

    def __init__(self, functions: Any, exported: Mapping[str, Any]) -> None:
        """Reads nothing yet; arguments as ``ExportedStream``."""
        super().__init__(functions, exported)
        self.beam_width = int(exported["own_beam_width"])
        self._exported_width = int(exported["beam_width"])

    def read(self, inputs: np.ndarray, lengths: np.ndarray, beam_width: int) -> Texts:
        """Searches the texts with the exported searches, greedy or a beam of one width."""
        if beam_width not in (0, self._exported_width):
            raise ValueError(
                f"beam_width: expected 0 (greedy) or {self._exported_width}, the width that was "
                f"exported, received {beam_width}"
            )
        found = self._functions["beam" if beam_width else "greedy"](inputs, lengths)
        return Texts(*jax.device_get(found))


class ExportedSoundClassifier:
    """Functions of an exported classifier of sounds, see ``functions.ClassifierFunctions``.

    Attributes:
      columns: those of a stream.
    """

    causal = False

    def __init__(self, functions: Any, exported: Mapping[str, Any]) -> None:
        """Reads nothing yet; arguments as ``ExportedStream``."""
        self._functions = functions
        self.columns = ExportedStream(functions, exported)
        self.obstacle = self.columns.obstacle

    def classify(self, frames: np.ndarray, lengths: np.ndarray) -> Clips:
        """Classifies windows; ``ROWS_AT_ONCE`` at a time."""
        clip = self._functions["clip"]
        parts = []
        for start in range(0, len(frames), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            parts.append(np.asarray(clip(frames[rows], lengths[rows])[0]))
        return Clips(np.concatenate(parts), None)

    def start(self, batch_size: int) -> Carry:
        """Raises: sounds are read chunk by chunk, by ``columns``."""
        raise NotImplementedError

    def step(self, carry: Carry, frames: np.ndarray) -> tuple[Carry, np.ndarray, np.ndarray]:
        """Raises, as ``start``."""
        raise NotImplementedError
