"""Sources of sequences of frames: their interface, and those that are drawn anew in training."""

from typing import Any, Protocol

import numpy as np

from data.batches import FrameExample
from data.series.scaling import Scaling
from data.series.sequences import check_index

SPLITS = ("train", "validation", "test")


class FrameSource(Protocol):
    """Source of sequences of frames, all of one shape; picklable."""

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H,W,C) of the frames."""

    @property
    def scaling(self) -> Scaling | None:
        """Scaling of the channels of fields, which ``frames`` has been put into; None: images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> FrameExample: ...

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        ...


def frame_example(frames: np.ndarray, index: int, readable: bool = True) -> FrameExample:
    """Returns an example of a source.

    Args:
        frames: (T,H,W,C) uint8 or float32.
        index: number of the example in its split.
        readable: False for one that could not be read.
    """
    return FrameExample(frames=frames, mask=np.asarray(readable), index=np.asarray(index, np.int32))


class GeneratedSequences:
    """Sequences that a function of random numbers draws; a source, picklable.

    Sequence ``i`` depends only on (seed, split, ``i``), not on the number of examples; splits use
    separate random streams. ``draw`` gives others: a ``data.loader.Loader`` over
    ``range(len(source))`` with ``transform=source.draw`` draws every sequence of every epoch anew,
    and resumes exactly, because its random numbers depend on the seed and the position alone.

    A subclass defines ``generate``, ``frame_shape``, and the rest of ``describe``.

    Args:
        split: "train", "validation" or "test".
        num_sequences: number of examples, at least 1.
        num_frames: T of each, at least 1.
        seed: of the split's sequences, at least 0.

    Raises:
        ValueError: an unknown split, or numbers out of range.
    """

    scaling = None

    def __init__(self, split: str, num_sequences: int, num_frames: int, seed: int):
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, received {split!r}")
        if num_sequences < 1 or num_frames < 1 or seed < 0:
            raise ValueError(
                "num_sequences, num_frames, seed: expected at least 1, 1 and 0, received "
                f"{num_sequences}, {num_frames} and {seed}"
            )
        self.split = split
        self.num_sequences = num_sequences
        self.num_frames = num_frames
        self.seed = seed

    def __len__(self) -> int:
        return self.num_sequences

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"{type(self).__name__}({self.describe()})"

    def __getitem__(self, index: int, /) -> FrameExample:
        """Returns sequence ``index``: ``frames`` (T,H,W,C) uint8.

        Raises:
            IndexError: the index is out of range.
        """
        number = check_index(index, len(self))
        stream = np.random.SeedSequence(self.seed, spawn_key=(SPLITS.index(self.split), number))
        return self.draw(number, np.random.default_rng(stream))

    def draw(self, index: int, rng: np.random.Generator) -> FrameExample:
        """Returns a sequence that the random numbers draw, under the number ``index``."""
        return frame_example(self.generate(rng), index)

    def generate(self, rng: np.random.Generator) -> np.ndarray:
        """Returns one sequence, (T,H,W,C) uint8 in [0,255]."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method generate")

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the sequences, for JSON; a ``Loader``'s ``identity``."""
        return {
            "split": self.split,
            "num_frames": self.num_frames,
            "sequence_seed": self.seed,
        }
