"""Film strips in a report: the clips that it shows, their frames and most probable classes."""

import base64
import dataclasses
import io
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from launch.reports.statistics import rank_of_label

CLIPS = 6
"""Film strips of correct clips, and as many of wrong ones."""
TOP = 5
"""Most probable classes shown for each clip."""
MAX_SIDE = 176
"""Longer side of an embedded frame, pixels; larger frames are downscaled."""

SPECTROGRAM_SIDE = 640
"""The same of a picture of a recording."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame; ``source`` is a JPEG or PNG as a ``data:`` URL."""

    number: int
    width: int
    height: int
    source: str


@dataclasses.dataclass(frozen=True)
class Guess:
    """One of the most probable classes of a clip; ``rank`` starts at 1."""

    name: str
    probability: float
    rank: int
    is_label: bool


@dataclasses.dataclass(frozen=True)
class Strip:
    """A clip with its most probable classes; ``problem`` is the reason for missing frames."""

    index: int
    label: str | None
    prediction: str
    guesses: tuple[Guess, ...]
    frames: tuple[Frame, ...] = ()
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Group:
    """Clips with a title; ``choice`` tells how they were selected."""

    title: str
    choice: str
    strips: list[Strip]


@runtime_checkable
class ShowsClips(Protocol):
    """Configuration of an experiment whose examples can be shown."""

    def load_clip(self, split: str, index: int) -> np.ndarray:
        """Returns the frames of one example, (T,H,W,3) uint8; an image is one frame."""


def make_strips(
    predictions: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    load_clip: Callable[[int], np.ndarray],
    *,
    max_side: int = MAX_SIDE,
    random_sample: bool = False,
) -> list[Group]:
    """Returns groups of correct and wrong clips; without any labels, the first clips.

    Args:
      predictions: records ``{"index", "label" (-1 unknown), "prediction", "probabilities": [K]}``.
      class_names: names of the K classes.
      load_clip: maps an index to frames (T,H,W,3) uint8. If it raises, the clip has no frames.
      max_side: longest side of a frame, pixels.
      random_sample: the wrong clips, and instead of correct ones a random sample of the others.
    """
    known = [record for record in predictions if record["label"] >= 0]
    correct = [record for record in known if record["label"] == record["prediction"]]
    wrong = [record for record in known if record["label"] != record["prediction"]]
    wrong.sort(key=lambda record: -max(record["probabilities"]))
    mistakes = ("Wrong", "the most confident mistakes first", wrong[:CLIPS])
    if not known:
        groups = [("Unlabelled", "the first ones", list(predictions[:CLIPS]))]
    elif random_sample:
        others = correct + wrong[CLIPS:]
        drawn = random.Random(0).sample(others, min(CLIPS, len(others)))
        groups = [mistakes, ("Random", "a fixed random sample of the others", drawn)]
    else:
        choice = "the most confident one of each of several classes"
        groups = [("Correct", choice, _confident_by_class(correct)), mistakes]

    def load(index: int) -> list[Frame]:
        return make_frames(load_clip(index), max_side=max_side)

    return [
        Group(title, text, [_make_strip(record, class_names, load) for record in records])
        for title, text, records in groups
    ]


def _confident_by_class(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns ``CLIPS`` records of evenly spaced classes; several per class if these are few."""
    by_class: dict[int, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: -max(record["probabilities"])):
        by_class.setdefault(record["label"], []).append(record)
    labels = sorted(by_class)
    apart = max(len(labels) / CLIPS, 1.0)
    labels = [labels[int(apart * i)] for i in range(min(CLIPS, len(labels)))]
    # The most confident of each class, then the second most confident of each, and so on.
    ranked = [(rank, k) for k in labels for rank in range(len(by_class[k][:CLIPS]))]
    return [by_class[k][rank] for rank, k in sorted(ranked)[:CLIPS]]


def _make_strip(
    record: Mapping[str, Any], names: Sequence[str], load: Callable[[int], list[Frame]]
) -> Strip:
    probabilities, label = record["probabilities"], record["label"]
    order = sorted(range(len(names)), key=lambda k: -probabilities[k])
    shown = [(rank, k) for rank, k in enumerate(order[:TOP], start=1)]
    if label >= 0 and label not in order[:TOP]:
        shown.append((rank_of_label(record), label))
    strip = Strip(
        index=record["index"],
        label=names[label] if label >= 0 else None,
        prediction=names[record["prediction"]],
        guesses=tuple(Guess(names[k], probabilities[k], rank, k == label) for rank, k in shown),
    )
    try:
        frames = tuple(load(record["index"]))
    except Exception as error:  # Any error of a data set: one bad clip must not stop the page.
        logger.warning("clip %d has no film strip", strip.index, exc_info=True)
        return dataclasses.replace(strip, problem=f"could not be loaded: {error}")
    return dataclasses.replace(strip, frames=frames)


def make_frames(clip: np.ndarray, count: int = 8, max_side: int = MAX_SIDE) -> list[Frame]:
    """Returns evenly spaced frames of a clip, including the first and the last.

    Args:
      clip: (T,H,W,3) uint8, T at least 1.
      count: number of frames; a shorter clip gives all its frames.
      max_side: longest side of a frame, pixels.

    Raises:
      ValueError: a clip of another shape or dtype.
    """
    if clip.ndim != 4 or clip.shape[-1] != 3 or not clip.size or clip.dtype != np.uint8:
        raise ValueError(
            f"clip: expected (T,H,W,3) uint8 with T at least 1, received {clip.shape} {clip.dtype}"
        )
    count = min(count, len(clip))
    return [
        make_image(int(number), clip[number], max_side)
        for number in np.linspace(0, len(clip) - 1, count).round().astype(int)
    ]


def make_drawing(number: int, pixels: np.ndarray) -> Frame:
    """Returns pixels (H,W,3) uint8 as a PNG of the same size, which shows them exactly."""
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return Frame(number, image.width, image.height, f"data:image/png;base64,{encoded}")


def make_image(number: int, pixels: np.ndarray, max_side: int) -> Frame:
    """Returns pixels (H,W,3) uint8 as a JPEG of at most ``max_side`` pixels per side."""
    image = Image.fromarray(pixels)
    image.thumbnail((max_side, max_side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85, subsampling=0, optimize=True)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return Frame(number, image.width, image.height, f"data:image/jpeg;base64,{encoded}")
