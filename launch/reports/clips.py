"""The clips that a report shows: which ones, their frames and their likeliest classes."""

import base64
import dataclasses
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from launch.reports.statistics import rank_of_label

CLIPS = 6
"""Film strips of right clips, and as many of wrong ones."""
TOP = 5
"""Classes shown of a clip."""
MAX_SIDE = 176
"""Longer side of an embedded frame, pixels; larger frames are shrunk."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame as a ``data:`` address of a JPEG."""

    number: int
    width: int
    height: int
    source: str


@dataclasses.dataclass(frozen=True)
class Guess:
    """One class of a clip's likeliest."""

    name: str
    probability: float
    rank: int
    is_label: bool


@dataclasses.dataclass(frozen=True)
class Strip:
    """A clip with its likeliest classes; ``problem`` tells why it has no frames."""

    index: int
    label: str | None
    prediction: str
    guesses: tuple[Guess, ...]
    frames: tuple[Frame, ...] = ()
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Group:
    """Clips under one heading, and how they were chosen."""

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
) -> list[Group]:
    """Right and wrong clips; where no label is known, some clips.

    Args:
      predictions: ``{"index", "label" (-1 unknown), "prediction", "probabilities": [K]}`` each.
      class_names: K of them.
      load_clip: an index to its frames, (T,H,W,3) uint8. A clip that it fails for has no frames.
    """
    known = [record for record in predictions if record["label"] >= 0]
    right = [record for record in known if record["label"] == record["prediction"]]
    wrong = [record for record in known if record["label"] != record["prediction"]]
    wrong.sort(key=lambda record: -max(record["probabilities"]))
    groups = [
        ("Right", "the surest clip of each of several classes", _surest_by_class(right)),
        ("Wrong", "the surest mistakes first", wrong[:CLIPS]),
    ]
    if not known:
        groups = [("Unlabelled", "the first clips", list(predictions[:CLIPS]))]
    return [
        Group(title, text, [_make_strip(record, class_names, load_clip) for record in records])
        for title, text, records in groups
    ]


def _surest_by_class(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """``CLIPS`` of the records: from classes evenly spaced, and more of each if these are few."""
    by_class: dict[int, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: -max(record["probabilities"])):
        by_class.setdefault(record["label"], []).append(record)
    labels = sorted(by_class)
    apart = max(len(labels) / CLIPS, 1.0)
    labels = [labels[int(apart * place)] for place in range(min(CLIPS, len(labels)))]
    # The surest of each class, then the second surest of each, and so on.
    ranked = [(rank, k) for k in labels for rank in range(len(by_class[k][:CLIPS]))]
    return [by_class[k][rank] for rank, k in sorted(ranked)[:CLIPS]]


def _make_strip(
    record: Mapping[str, Any], names: Sequence[str], load_clip: Callable[[int], np.ndarray]
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
        frames = tuple(make_frames(load_clip(record["index"])))
    except Exception as error:  # Whatever a data set raises, one clip must not cost the page.
        logger.warning("clip %d has no film strip", strip.index, exc_info=True)
        return dataclasses.replace(strip, problem=f"could not be loaded: {error}")
    return dataclasses.replace(strip, frames=frames)


def make_frames(clip: np.ndarray, count: int = 8, max_side: int = MAX_SIDE) -> list[Frame]:
    """Evenly spaced frames of a clip, the first and the last among them.

    Args:
      clip: (T,H,W,3) uint8, T at least 1.
      count: frames wanted; a shorter clip gives all it has.
      max_side: longer side at most, pixels.

    Raises:
      ValueError: another shape or dtype.
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


def make_image(number: int, pixels: np.ndarray, max_side: int) -> Frame:
    """Pixels (H,W,3) uint8 as a JPEG of at most ``max_side`` pixels a side."""
    image = Image.fromarray(pixels)
    image.thumbnail((max_side, max_side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85, subsampling=0, optimize=True)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return Frame(number, image.width, image.height, f"data:image/jpeg;base64,{encoded}")
