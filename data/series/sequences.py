"""Sequences in memory as examples: classified, regressed, or predicted step by step."""

import functools
import hashlib
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from data.batches import SequenceExample
from data.series.scaling import Scaling
from data.series.tables import Section, SeriesTable

STEP_KEYS = ("inputs", "tokens", "observed", "starts", "targets", "target_mask")
"""Keys with an axis of steps, for ``data.width_buckets.WidthBuckets``. Targets of whole sequences
have none: ``CLASSIFICATION_STEP_KEYS``."""
CLASSIFICATION_STEP_KEYS = ("inputs", "tokens", "observed", "starts")


@dataclass(frozen=True, eq=False)
class LabelledSequences:
    """One split of a data set of sequences, with a class or with numbers to predict for each.

    Attributes:
        sequences: (T_i,D) float32 or float64 each, NaN where a value is missing, T_i >= 1.
        labels: (N,) int32 classes, or ``UNKNOWN_LABEL``; empty in a regression.
        class_names: names of the classes by label.
        targets: (N,K) float64, NaN where one is missing, in a regression; None otherwise.
        channels: names of the D channels; empty: not named.
        name: of the data set.
        notes: sentences about what was found in reading.

    Raises:
        ValueError: no sequences, shapes that do not belong together, or neither labels nor targets.
    """

    sequences: tuple[np.ndarray, ...]
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    class_names: tuple[str, ...] = ()
    targets: np.ndarray | None = None
    channels: tuple[str, ...] = ()
    name: str = ""
    notes: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        _check_sequences(self.sequences)
        count = len(self.sequences)
        given = len(self.labels) if self.targets is None else len(self.targets)
        if given != count or (self.targets is not None and self.targets.ndim != 2):
            what = "labels" if self.targets is None else "targets"
            shape = np.shape(self.labels if self.targets is None else self.targets)
            raise ValueError(
                f"{what}: expected one for each of the {count} sequences, received {shape}"
            )

    def __len__(self) -> int:
        return len(self.sequences)

    def lengths(self) -> np.ndarray:
        """Returns the steps of each sequence, (N,) int32."""
        return np.array([len(sequence) for sequence in self.sequences], np.int32)

    def take(self, indices: Iterable[int]) -> "LabelledSequences":
        """Returns the sequences at given positions, in that order."""
        chosen = [int(index) for index in indices]
        return LabelledSequences(
            tuple(self.sequences[i] for i in chosen),
            self.labels[chosen] if self.targets is None else self.labels,
            self.class_names,
            None if self.targets is None else self.targets[chosen],
            self.channels,
            self.name,
            self.notes,
        )

    def hold_out(
        self, share: float, seed: int = 0
    ) -> "tuple[LabelledSequences, LabelledSequences]":
        """Returns what remains to train on, and the held-out part, drawn class by class.

        Args:
            share: of the sequences of each class, in (0,1); a class with one sequence stays in the
                first part, with two or more at least one is held out.
            seed: of the draw.

        Raises:
            ValueError: a share out of range, or one that holds nothing out.
        """
        if not 0 < share < 1:
            raise ValueError(f"share: expected more than 0 and less than 1, received {share}")
        generator = np.random.default_rng(seed)
        classes = self.labels if self.targets is None else np.zeros(len(self), np.int32)
        held = np.zeros(len(self), bool)
        for label in np.unique(classes):
            members = generator.permutation(np.flatnonzero(classes == label))
            if len(members) > 1:
                size = min(len(members) - 1, max(1, round(share * len(members))))
                held[members[:size]] = True
        if not held.any():
            raise ValueError(
                f"share: expected a class with two sequences or more, received {len(self)} classes "
                "of one each"
            )
        return self.take(np.flatnonzero(~held)), self.take(np.flatnonzero(held))


def sequences_of_table(table: SeriesTable, sections: Sequence[Section]) -> LabelledSequences:
    """Returns sections of a table as sequences with one class each.

    Raises:
        ValueError: a table without labels, or a section whose steps have several.
    """
    if not table.class_names:
        raise ValueError(
            "table: expected a column of labels, received none; name it in read_series(label=...)"
        )
    labels = []
    for section in sections:
        series = table.series[section.series]
        assert series.labels is not None  # A table with names of classes has them.
        found = np.unique(series.labels[section.begin : section.end])
        if len(found) > 1:
            names = [table.class_names[i] if i >= 0 else "none" for i in found[:3]]
            raise ValueError(
                f"table: expected one label for each whole series, received {', '.join(names)} in "
                f"series {series.name!r}; classify windows (LabelledWindows), or name the column "
                "that tells one recording from the next as group"
            )
        labels.append(int(found[0]))
    return LabelledSequences(
        tuple(table.series[s.series].values[s.begin : s.end] for s in sections),
        np.array(labels, np.int32),
        table.class_names,
        channels=table.channels,
        notes=table.notes,
    )


class SequenceSource:
    """Sequences with their class or their numbers, a source of ``SequenceExample``; picklable.

    Args:
        data: one split.
        scaling: fitted on the training split; None: the values as they are.
        target_scaling: of the K numbers of a regression, fitted on the training split; None: as
            they are.
        length: steps to which the examples are padded; None: to the longest of the split; 0: not
            at all, for ``WidthBuckets`` with ``CLASSIFICATION_STEP_KEYS``.
        with_observed: yield ``observed``; None: where this split misses values. Give it where
            another split does.

    Raises:
        ValueError: a sequence that is longer than ``length``, or whose numbers are all missing.
    """

    def __init__(
        self,
        data: LabelledSequences,
        *,
        scaling: Scaling | None = None,
        target_scaling: Scaling | None = None,
        length: int | None = None,
        with_observed: bool | None = None,
    ):
        self.data = data
        self.scaling = scaling
        self.target_scaling = target_scaling
        self.length = _padded_length(data.lengths(), length)
        if data.targets is not None and (empty := np.isnan(data.targets).all(1)).any():
            raise ValueError(
                f"data: expected at least one target for each sequence, received none (NaN) for "
                f"{int(empty.sum())} of {len(data)}, first number {int(np.argmax(empty))}; leave "
                "them out (LabelledSequences.take)"
            )
        missing = any(bool(np.isnan(sequence).any()) for sequence in data.sequences)
        if with_observed is False and missing:
            raise ValueError(
                "with_observed: expected True or None for data that miss values, received False"
            )
        self.with_observed = missing if with_observed is None else with_observed

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"SequenceSource({self.describe()})"

    def lengths(self) -> np.ndarray:
        """Returns the steps of each sequence, (N,) int32."""
        return self.data.lengths()

    @functools.cached_property
    def _content(self) -> str:
        targets = self.data.labels if self.data.targets is None else self.data.targets
        return digest([*self.data.sequences, targets])

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        return {
            "data": self.data.name,
            "content": self._content,
            "class_names": list(self.data.class_names),
            "scaling": self.scaling.to_json() if self.scaling else None,
            "target_scaling": self.target_scaling.to_json() if self.target_scaling else None,
            "padded_length": self.length,
        }

    def __getitem__(self, index: int, /) -> SequenceExample:
        """Returns example ``index``: ``inputs`` with ``label`` () or ``targets`` (K,).

        Raises:
            IndexError: the index is out of range.
        """
        number = check_index(index, len(self))
        values = self.data.sequences[number]
        inputs, seen = scaled_inputs(values, self.scaling)
        size = self.length or len(values)
        example = SequenceExample(
            inputs=pad_steps(inputs, size),
            lengths=np.asarray(len(values), np.int32),
            mask=np.asarray(True),
            index=np.asarray(number, np.int32),
        )
        if self.with_observed:
            example["observed"] = pad_steps(seen, size)
        if self.data.targets is None:
            example["label"] = np.asarray(self.data.labels[number], np.int32)
        else:
            numbers = self.data.targets[number]
            targets = self.target_scaling.apply(numbers) if self.target_scaling else numbers
            example["targets"] = np.nan_to_num(np.asarray(targets, np.float32), nan=0.0)
            example["target_mask"] = ~np.isnan(numbers)
        return example


class NextSteps:
    """Prediction of each next step of whole sequences, a source of ``SequenceExample``; picklable.

    Of a sequence x_1..x_T the inputs are x_1..x_{T-1} and the targets x_2..x_T: the first step is
    not predicted.

    Args:
        sequences: (T_i,) integer tokens each, or (T_i,D) values each, as piano rolls of zeros and
            ones; T_i >= 2, all of one kind.
        length: steps to which the T_i − 1 inputs are padded; None: to the most of all; 0: not at
            all, for ``WidthBuckets`` with ``STEP_KEYS``.
        name: of the data set, for ``describe``.

    Raises:
        ValueError: no sequences, other shapes, a sequence of one step, one that is longer than
            ``length``, or values that are missing.
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        *,
        length: int | None = None,
        name: str = "",
    ):
        self.sequences = tuple(sequences)
        _check_sequences(self.sequences)
        if short := [i for i, x in enumerate(self.sequences) if len(x) < 2]:
            raise ValueError(
                f"sequences: expected at least 2 steps in each, received one step in {len(short)}, "
                f"first number {short[0]}; leave them out"
            )
        floating = [x for x in self.sequences if x.dtype.kind == "f"]
        if any(not np.isfinite(x).all() for x in floating):
            raise ValueError(
                "sequences: expected finite values, received NaN or infinite ones; fill or leave "
                "out what is missing"
            )
        self.name = name
        self.length = _padded_length(self.lengths(), length)

    def __len__(self) -> int:
        return len(self.sequences)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"NextSteps({self.describe()})"

    def lengths(self) -> np.ndarray:
        """Returns the predicted steps of each sequence, (N,) int32."""
        return np.array([len(x) - 1 for x in self.sequences], np.int32)

    @functools.cached_property
    def _content(self) -> str:
        return digest(self.sequences)

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        return {"data": self.name, "content": self._content, "padded_length": self.length}

    def __getitem__(self, index: int, /) -> SequenceExample:
        """Returns example ``index``: ``tokens`` or ``inputs`` with ``targets`` of each step.

        Raises:
            IndexError: the index is out of range.
        """
        number = check_index(index, len(self))
        steps = self.sequences[number]
        count = len(steps) - 1
        size = self.length or count
        return step_example(
            steps[:-1],
            steps[1:],
            np.ones(count, bool),
            size=size,
            index=number,
        )


def step_example(
    inputs: np.ndarray,
    targets: np.ndarray,
    target_mask: np.ndarray,
    *,
    size: int,
    index: int,
    starts: np.ndarray | None = None,
) -> SequenceExample:
    """Returns an example whose targets are those of each step, padded to ``size`` steps.

    Args:
        inputs: (T,) integer tokens or (T,D) values.
        targets: as the inputs.
        target_mask: (T,) bool.
        size: steps of the padded example, at least T.
        index: of the example.
        starts: (T,) bool; None: the example has no such key.
    """
    kind: Literal["tokens", "inputs"] = "tokens" if inputs.ndim == 1 else "inputs"
    dtype = np.int32 if kind == "tokens" else np.float32
    example = SequenceExample(
        targets=pad_steps(targets.astype(dtype), size),
        target_mask=pad_steps(target_mask, size),
        lengths=np.asarray(len(inputs), np.int32),
        mask=np.asarray(True),
        index=np.asarray(index, np.int32),
    )
    example[kind] = pad_steps(inputs.astype(dtype), size)
    if starts is not None:
        example["starts"] = pad_steps(starts, size)
    return example


def scaled_inputs(values: np.ndarray, scaling: Scaling | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns (T,D) float32 with zeros where a value is missing, and (T,D) bool where it is not."""
    seen = ~np.isnan(values)
    inputs = scaling.apply(values) if scaling else np.asarray(values, np.float32)
    return np.where(seen, inputs, np.float32(0)), seen


def pad_steps(array: np.ndarray, size: int) -> np.ndarray:
    """Returns an array of (T,...) with zeros behind its steps, (size,...)."""
    if len(array) == size:
        return np.ascontiguousarray(array)
    padded = np.zeros((size, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def digest(arrays: Iterable[np.ndarray]) -> str:
    """Returns the SHA-256 of the contents, shapes and types of arrays, 32 digits."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:32]


def check_index(index: int, count: int) -> int:
    """Returns the index of one of ``count`` examples as an int.

    Raises:
        IndexError: it is out of range, as negative ones are.
    """
    number = operator.index(index)
    if not 0 <= number < count:
        raise IndexError(f"index: expected 0 to {count - 1}, received {number}")
    return number


def _padded_length(lengths: np.ndarray, length: int | None) -> int:
    longest = int(lengths.max())
    if length is None:
        return longest
    if length and longest > length:
        raise ValueError(
            f"length: expected at least the {longest} steps of the longest sequence, received "
            f"{length}"
        )
    return length


def _check_sequences(sequences: Sequence[np.ndarray]) -> None:
    if not sequences:
        raise ValueError("sequences: expected at least one, received none")
    first = sequences[0]
    for number, sequence in enumerate(sequences):
        same = sequence.ndim == first.ndim and sequence.shape[1:] == first.shape[1:]
        fits = sequence.ndim == 2 or (sequence.ndim == 1 and sequence.dtype.kind in "iu")
        if not same or not fits or not sequence.size:
            raise ValueError(
                "sequences: expected (T,) integer tokens or (T,D) values with the same D and at "
                f"least one step, received {sequence.shape} {sequence.dtype} at number {number}, "
                f"{first.shape} at number 0"
            )
