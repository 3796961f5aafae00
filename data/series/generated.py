"""Generated tests of memory: the adding problem and copy memory.

As in the study of Bai et al. (1803.01271, section 4 and appendix), whose code (locuslab/TCN) fixes
what the text leaves open. Example i depends on (seed, split, i) alone.
"""

import math
from typing import Any

import numpy as np

from data.batches import SequenceExample
from data.series.sequences import check_index

SPLITS = ("train", "validation", "test")
MEMORY = 10
"""Symbols to be remembered in copy memory."""
CLASSES = 10
"""Symbols of copy memory: 0 blank, 1 to 8 remembered, 9 the delimiter."""


class _Generated:
    """Examples that are drawn as functions of (seed, split, index)."""

    def __init__(self, size: int, num_examples: int, split: str, seed: int):
        """Checks the arguments.

        Args:
            size: first argument of the subclass, which sets the length of its sequences.
            num_examples: at least 1.
            split: one of ``SPLITS``.
            seed: at least 0.

        Raises:
            ValueError: a number out of range or an unknown split.
        """
        if num_examples < 1:
            raise ValueError(f"num_examples: expected at least 1, received {num_examples}")
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, received {split!r}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, received {seed}")
        self._size, self.num_examples, self.split, self.seed = size, num_examples, split, seed

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return (
            f"{type(self).__name__}({self._size}, {self.num_examples}, split={self.split!r}, "
            f"seed={self.seed})"
        )

    def _draw(self, index: int) -> tuple[np.random.Generator, int]:
        """Returns the random numbers of an example, and its number."""
        number = check_index(index, self.num_examples)
        stream = (SPLITS.index(self.split), number)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=stream)), number


class AddingProblem(_Generated):
    """The sum of the two marked numbers of a sequence; a source, picklable.

    ``inputs`` (T,2): uniform numbers in [0,1), and zeros with a one at two different steps, drawn
    uniformly from all T (not one from each half, as in Hochreiter and Schmidhuber, 1997).
    ``targets`` (1,): the sum of the two numbers that are marked. The mean squared error of always
    answering 1, their mean, is 1/6.

    >>> example = AddingProblem(50, 10)[3]
    >>> numbers, marks = example["inputs"].T
    >>> bool(np.isclose(numbers[marks == 1].sum(), example["targets"][0]))
    True

    Args:
        length: steps T, at least 2; 600 in the study's largest task.
        num_examples: at least 1; the study trains on 50,000 and tests on 1,000.
        split: "train", "validation" or "test": separate random streams.
        seed: of the whole data set, at least 0.

    Raises:
        ValueError: a number out of range or an unknown split.
    """

    def __init__(
        self, length: int, num_examples: int = 50_000, *, split: str = "train", seed: int = 0
    ):
        if length < 2:
            raise ValueError(f"length: expected at least 2 steps, received {length}")
        super().__init__(length, num_examples, split, seed)
        self.length = length

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        return {
            "task": "adding",
            "length": self.length,
            "split": self.split,
            "data_seed": self.seed,
        }

    def __getitem__(self, index: int, /) -> SequenceExample:
        """Draws example ``index``.

        Raises:
            IndexError: the index is out of range.
        """
        generator, number = self._draw(index)
        inputs = np.zeros((self.length, 2), np.float32)
        inputs[:, 0] = generator.random(self.length, np.float32)
        marked = generator.choice(self.length, 2, replace=False)
        inputs[marked, 1] = 1
        return SequenceExample(
            inputs=inputs,
            targets=inputs[marked, 0].sum(keepdims=True),
            target_mask=np.ones(1, bool),
            lengths=np.asarray(self.length, np.int32),
            mask=np.asarray(True),
            index=np.asarray(number, np.int32),
        )


class CopyMemory(_Generated):
    """Symbols that are repeated after a delay; a source, picklable.

    ``tokens`` (T + 20,): 10 symbols drawn from 1 to 8, T − 1 zeros, and 11 delimiters (9);
    ``targets`` (T + 20,): T + 10 zeros, then the 10 symbols. Every step is predicted. A model
    without memory that knows the task has a mean cross entropy of ``baseline``. The reference feeds
    the symbols as numbers, in one channel; as tokens they may be embedded.

    >>> example = CopyMemory(3, 10)[0]
    >>> example["tokens"][10:].tolist()
    [0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]
    >>> bool((example["targets"][-10:] == example["tokens"][:10]).all())
    True

    Args:
        delay: T, at least 1; 1,000 in the study's largest task.
        num_examples: at least 1; the study trains on 10,000 and tests on 1,000.
        split: "train", "validation" or "test": separate random streams.
        seed: of the whole data set, at least 0.

    Raises:
        ValueError: a number out of range or an unknown split.
    """

    def __init__(
        self, delay: int, num_examples: int = 10_000, *, split: str = "train", seed: int = 0
    ):
        if delay < 1:
            raise ValueError(f"delay: expected at least 1 step, received {delay}")
        super().__init__(delay, num_examples, split, seed)
        self.delay = delay

    @property
    def baseline(self) -> float:
        """Mean cross entropy in nats of 10 uniform guesses among 8 and certain zeros before."""
        return MEMORY * math.log(8) / (self.delay + 2 * MEMORY)

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        return {"task": "copy", "delay": self.delay, "split": self.split, "data_seed": self.seed}

    def __getitem__(self, index: int, /) -> SequenceExample:
        """Draws example ``index``.

        Raises:
            IndexError: the index is out of range.
        """
        generator, number = self._draw(index)
        length = self.delay + 2 * MEMORY
        symbols = generator.integers(1, 9, MEMORY, np.int32)
        tokens, targets = np.zeros(length, np.int32), np.zeros(length, np.int32)
        tokens[:MEMORY] = symbols
        tokens[-MEMORY - 1 :] = CLASSES - 1
        targets[-MEMORY:] = symbols
        return SequenceExample(
            tokens=tokens,
            targets=targets,
            target_mask=np.ones(length, bool),
            lengths=np.asarray(length, np.int32),
            mask=np.asarray(True),
            index=np.asarray(number, np.int32),
        )
