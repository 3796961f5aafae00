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
    or ``features`` or alone (``data/audio/log_mel.py``)."""
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


class CaptionExample(TypedDict):
    """One image, or video, with C of its captions, as a data source gives it.

    Of ``image``, ``features`` and ``video`` exactly one is present. Training pairs have C = 1; the
    captions of an image that are kept together have C of the image with the most.
    """

    image: NotRequired[np.ndarray]
    """(H,W,3) uint8 in [0,255]."""
    features: NotRequired[np.ndarray]
    """(h,w,D) or (R,D) float16 or float32: a frozen encoder's map of the image; (T,...) with
    ``lengths`` of a video's frames."""
    video: NotRequired[np.ndarray]
    """(T,H,W,3) uint8 in [0,255]; frames from ``lengths`` on are zero."""
    lengths: NotRequired[np.ndarray]
    """() int32, the number of valid frames, 1..T; with videos alone."""
    tokens: np.ndarray
    """(C,L) int32: ids of the words, ``<eos>`` (2), then ``<pad>`` (0); no ``<bos>``."""
    token_lengths: np.ndarray
    """(C,) int32, words + 1, as ``<eos>`` counts; 0 where there is no such caption."""
    caption_weights: NotRequired[np.ndarray]
    """(C,) float32, at least 0: what each caption's words count for in the loss; 1 where absent."""
    mask: np.ndarray
    """() bool, False where the image could not be decoded: it counts nowhere."""
    index: np.ndarray
    """() int32, the number of the example in its split."""


class CaptionBatch(TypedDict):
    """``CaptionExample`` stacked: each array has a leading axis B.

    Rows with ``mask`` False also fill up the last batch of a split; their ``token_lengths`` are 0.
    """

    image: NotRequired[np.ndarray]
    features: NotRequired[np.ndarray]
    video: NotRequired[np.ndarray]
    lengths: NotRequired[np.ndarray]
    tokens: np.ndarray
    token_lengths: np.ndarray
    caption_weights: NotRequired[np.ndarray]
    mask: np.ndarray
    index: np.ndarray


class Source(Protocol):
    """Random access to the examples of one split; picklable, since workers are spawned."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...
