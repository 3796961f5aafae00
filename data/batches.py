"""The contracts between the data and the models: keys, shapes, dtypes and ranges of a batch."""

from collections.abc import Mapping
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np

UNKNOWN_LABEL = -1


class VideoExample(TypedDict):
    """One video with its label, as a data source gives it.

    ``video`` or ``features`` is present, not both. With V views (clips × crops) of one video,
    as at test time, ``video`` is (V,T,H,W,3), ``lengths`` (V,), and ``audio`` has an axis V.
    """

    video: NotRequired[np.ndarray]
    """(T,H,W,3) uint8 in [0,255]; frames from ``lengths`` on are zero."""
    features: NotRequired[np.ndarray]
    """(T,...) float16 or float32: what a frozen encoder gave for each frame."""
    audio: NotRequired[np.ndarray]
    """(T,M,W,1) float32: M log-mel bands of W columns of sound around each frame, beside ``video``
    or ``features`` or alone (``data/audio.py``)."""
    lengths: np.ndarray
    """() int32, the number of valid frames, 1..T."""
    label: np.ndarray
    """() int32, the class from 0 on, or ``UNKNOWN_LABEL``."""
    mask: np.ndarray
    """() bool, False where the clip could not be decoded: it counts nowhere."""
    index: np.ndarray
    """() int32, the number of the example in its split."""


class VideoBatch(TypedDict):
    """``VideoExample`` stacked: each array has a leading axis B.

    Rows with ``mask`` False also fill up the last batch of a split.
    """

    video: NotRequired[np.ndarray]
    features: NotRequired[np.ndarray]
    audio: NotRequired[np.ndarray]
    lengths: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    index: np.ndarray


class Source(Protocol):
    """Random access to the examples of one split; picklable, since workers are spawned."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...
