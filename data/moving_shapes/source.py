"""Embedded video data set: random access to any number of clips, without files.

The label of a clip is the motion of its coloured object, the target; a grey object with another
motion distracts. ``data.moving_shapes.scenes`` describes how scenes are drawn, and why neither a
single frame nor the unordered frames reveal the label.
"""

import operator
from typing import Any

import numpy as np

from data.batches import VideoExample
from data.moving_shapes.captions import describe_scene
from data.moving_shapes.rendering import render
from data.moving_shapes.scenes import (
    CLASSES,
    NUM_FRAMES,
    SHAPES,
    Scene,
    draw_scene,
)

SPLIT_SIZES: dict[str, int] = {"train": 8000, "validation": 1000, "test": 2000}
"""Split -> default number of examples."""
LABELS: dict[str, tuple[str, ...]] = {
    "motion": CLASSES,
    "shape": SHAPES,
    "both": tuple(f"{motion} {shape}" for motion in CLASSES for shape in SHAPES),
}
"""Property of the target that a label tells -> names of the classes."""


class MovingShapes:
    """One split of the embedded data set.

    Example ``i`` depends only on (seed, split, ``i``), not on the number of examples; splits use
    separate random streams.

    Args:
      split: "train", "validation" or "test".
      num_examples: number of clips, at least 0; None takes that of ``SPLIT_SIZES``.
      seed: of the whole data set, at least 0.
      label: ``motion`` of the target, which needs the order of the frames, its ``shape``, which one
        frame shows, or ``both``.

    Attributes:
      class_names: names of the classes, by label.

    Raises:
      ValueError: the split or the label is unknown, or ``num_examples`` or ``seed`` is negative.
    """

    class_names: tuple[str, ...] = CLASSES

    def __init__(
        self,
        split: str = "train",
        num_examples: int | None = None,
        seed: int = 0,
        label: str = "motion",
    ) -> None:
        if split not in SPLIT_SIZES:
            raise ValueError(f"split: expected one of {', '.join(SPLIT_SIZES)}, received {split!r}")
        if num_examples is not None and num_examples < 0:
            raise ValueError(f"num_examples: expected at least 0, received {num_examples}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, received {seed}")
        if label not in LABELS:
            raise ValueError(f"label: expected one of {', '.join(LABELS)}, received {label!r}")
        self.class_names = LABELS[label]
        self._label = label
        self.split = split
        self.num_examples = SPLIT_SIZES[split] if num_examples is None else num_examples
        self.seed = seed

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return (
            f"MovingShapes(split={self.split!r}, num_examples={self.num_examples}, "
            f"seed={self.seed}, label={self._label!r})"
        )

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON."""
        return {
            "class_names": list(self.class_names),
            "split": self.split,
            "num_examples": self.num_examples,
            "scene_seed": self.seed,
        }

    def __getitem__(self, index: int, /) -> VideoExample:
        """Draws and renders example ``index``.

        Args:
          index: 0..len-1.

        Returns:
          ``video`` (16,64,64,3) uint8 in [0,255], ``lengths`` () int32 = 16, ``label`` () int32 in
          0..7, 0..5 or 0..47, ``mask`` () bool = True, ``index`` () int32.

        Raises:
          IndexError: the index is out of range, as negative ones are.
        """
        scene = self.scene(index)
        return VideoExample(
            video=render(scene),
            lengths=np.asarray(NUM_FRAMES, np.int32),
            label=np.asarray(self._label_of(scene), np.int32),
            mask=np.asarray(True),
            index=np.asarray(index, np.int32),
        )

    def _label_of(self, scene: Scene) -> int:
        shape = SHAPES.index(scene.target.shape)
        labels = {"motion": scene.label, "shape": shape, "both": scene.label * len(SHAPES) + shape}
        return labels[self._label]

    def scene(self, index: int) -> Scene:
        """Returns the parameters of example ``index`` without rendering it.

        Args:
          index: 0..len-1.

        Raises:
          IndexError: the index is out of range.
        """
        number = operator.index(index)
        if not 0 <= number < self.num_examples:
            raise IndexError(f"index: expected 0..{self.num_examples - 1}, received {number}")
        stream = (tuple(SPLIT_SIZES).index(self.split), number)
        return draw_scene(
            np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=stream))
        )

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns five English captions of example ``index``.

        Args:
          index: 0..len-1.

        Raises:
          IndexError: the index is out of range.
        """
        return describe_scene(self.scene(index))
