"""``moving_shapes``, the embedded data set: no files, any size, random access.

The label of a clip is the motion of its one coloured object; a grey object that moves otherwise
distracts. How the scenes are drawn, and why neither a single frame nor the frames without
their order give the label away, is told in ``data.moving_shapes.scenes``.
"""

import operator

import numpy as np

from data.batches import VideoExample
from data.moving_shapes import captions as shape_captions
from data.moving_shapes.rendering import render
from data.moving_shapes.scenes import (
    CLASSES,
    NUM_FRAMES,
    PARTNER,
    Scene,
    draw_scene,
)

__all__ = ["CLASSES", "PARTNER", "SPLIT_SIZES", "MovingShapes"]

SPLIT_SIZES: dict[str, int] = {"train": 8000, "validation": 1000, "test": 2000}
"""Split -> its number of examples where none is asked for."""


class MovingShapes:
    """One split of the embedded data set.

    Example ``i`` depends on (seed, split, ``i``) alone, not on the size; splits share no stream.

    Args:
      split: "train", "validation" or "test".
      num_examples: the size; by default that of ``SPLIT_SIZES``.
      seed: of the whole data set, at least 0.

    Raises:
      ValueError: if the split is unknown, or size or seed are negative.
    """

    class_names: tuple[str, ...] = CLASSES

    def __init__(
        self, split: str = "train", num_examples: int | None = None, seed: int = 0
    ) -> None:
        if split not in SPLIT_SIZES:
            raise ValueError(f"split: expected one of {', '.join(SPLIT_SIZES)}, received {split!r}")
        if num_examples is not None and num_examples < 0:
            raise ValueError(f"num_examples: expected at least 0, received {num_examples}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, received {seed}")
        self.split = split
        self.num_examples = SPLIT_SIZES[split] if num_examples is None else num_examples
        self.seed = seed

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        # grain compares it when it restores the position of an iterator.
        return (
            f"MovingShapes(split={self.split!r}, num_examples={self.num_examples}, "
            f"seed={self.seed})"
        )

    def __getitem__(self, index: int, /) -> VideoExample:
        """Draw and render example ``index``.

        Args:
          index: 0..len-1.

        Returns:
          video (16,64,64,3) uint8 in [0,255]; lengths () int32, always 16; label () int32 in 0..7;
          mask () bool, always True; index () int32.

        Raises:
          IndexError: if the index is out of range; negative ones are.
        """
        scene = self.describe(index)
        return VideoExample(
            video=render(scene),
            lengths=np.asarray(NUM_FRAMES, np.int32),
            label=np.asarray(scene.label, np.int32),
            mask=np.asarray(True),
            index=np.asarray(index, np.int32),
        )

    def describe(self, index: int) -> Scene:
        """The scene of example ``index``: all its parameters, without rendering it.

        Args:
          index: 0..len-1.

        Raises:
          IndexError: if the index is out of range.
        """
        number = operator.index(index)
        if not 0 <= number < self.num_examples:
            raise IndexError(f"index: expected 0..{self.num_examples - 1}, received {number}")
        stream = (tuple(SPLIT_SIZES).index(self.split), number)
        return draw_scene(
            np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=stream))
        )

    def captions(self, index: int) -> tuple[str, ...]:
        """Five English sentences about example ``index``.

        Args:
          index: 0..len-1.

        Raises:
          IndexError: if the index is out of range.
        """
        return shape_captions.describe(self.describe(index))
