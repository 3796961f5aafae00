"""Typed results of models: predictions, steps of streams, captions, transcripts."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Label:
    """One class of a prediction."""

    label: str
    """Name of the class."""
    probability: float
    """In [0,1]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """Classes of one clip or image."""

    labels: tuple[str, ...] = dataclasses.field(repr=False)
    """Names of all K classes, in the model's order."""
    probabilities: np.ndarray = dataclasses.field(repr=False)
    """(K,) float32 in [0,1]; their sum is one."""
    times: np.ndarray | None = dataclasses.field(default=None, repr=False)
    """(T,) float32, seconds from the start of the clip to each step that the model read; None for
    images and for models without outputs at each step."""
    step_probabilities: np.ndarray | None = dataclasses.field(default=None, repr=False)
    """(T,K) float32, the probabilities at each step alone; None where ``times`` is."""

    def __repr__(self) -> str:
        return f"Prediction(label={self.label!r}, probability={self.probability:.4f})"

    @property
    def label(self) -> str:
        """Name of the most probable class."""
        return self.labels[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """Probability of the most probable class, in [0,1]."""
        return float(self.probabilities.max())

    def top(self, k: int = 5) -> tuple[Label, ...]:
        """Returns the k most probable classes, the most probable one first."""
        return top_labels(self.labels, self.probabilities, k)


@dataclasses.dataclass(frozen=True, eq=False)
class StreamStep:
    """Classes of a stream after one of its steps."""

    step: int
    """Number of the step, from 0 on."""
    time: float
    """Seconds from the start of the stream to the frame."""
    labels: tuple[str, ...] = dataclasses.field(repr=False)
    """Names of all K classes, in the model's order."""
    probabilities: np.ndarray = dataclasses.field(repr=False)
    """(K,) float32 in [0,1], of this step alone."""
    smoothed: np.ndarray = dataclasses.field(repr=False)
    """(K,) float32 in [0,1], as the model classifies the clip of all steps so far, or of the last
    ones with a window."""
    latency: float = 0.0
    """Seconds from the arrival of the frame to this result."""

    def top(self, k: int = 5, *, smoothed: bool = True) -> tuple[Label, ...]:
        """Returns the k most probable classes, the most probable one first."""
        values = self.smoothed if smoothed else self.probabilities
        return top_labels(self.labels, values, k)


@dataclasses.dataclass(frozen=True)
class Caption:
    """One caption of an image or video."""

    words: tuple[str, ...]
    text: str
    """The words joined as the script has it, most by spaces."""
    log_probability: float
    """Of all tokens, the end token included, in nats, under the model or the ensemble."""
    ended: bool
    """The end token was reached within the maximum length."""
    attention: np.ndarray | None = None
    """(n,h,w) float32, attention weights over an image at each of n words, each summing to one; for
    a video (n,T), over its steps."""


@dataclasses.dataclass(frozen=True)
class Character:
    """One character of a transcript."""

    character: str
    confidence: float
    """In [0,1], its largest probability within its span."""
    start: float
    """Left border in columns of the image as it was, or seconds from the start of the recording.
    The span holds the steps that emit the character, which are fewer than it covers."""
    end: float
    """Right border, or end."""


@dataclasses.dataclass(frozen=True)
class Transcript:
    """Text of a line or recording."""

    text: str
    confidence: float
    """In [0,1], probability of the text given the input; a lower bound of a beam search."""
    characters: tuple[Character, ...] = dataclasses.field(repr=False)
    """Those of the text, in order."""


@dataclasses.dataclass(frozen=True)
class TextStep:
    """Characters that a part of a stream completed."""

    step: int
    """Number of the part, from 0 on."""
    time: float
    """Seconds from the start of the stream to the end of what has been read."""
    text: str
    """The characters; those of all parts, one after the other, are the text of the stream."""
    characters: tuple[Character, ...] = dataclasses.field(repr=False)
    latency: float = 0.0
    """Seconds from the arrival of the samples to this result."""


def top_labels(labels: tuple[str, ...], probabilities: np.ndarray, k: int) -> tuple[Label, ...]:
    """Returns the k most probable classes, the most probable one first; ties in their order.

    Args:
      labels: names of K classes.
      probabilities: (K,) float.
      k: at least 1; at most K are returned.

    Raises:
      ValueError: ``k`` below 1.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, received {k}")
    order = np.argsort(-probabilities, kind="stable")[:k]
    return tuple(Label(labels[i], float(probabilities[i])) for i in order)


def to_json(value: Any) -> Any:
    """Returns results as JSON has them: dataclasses as dictionaries, arrays as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value
