"""Batch contracts between data and models: keys, shapes, dtypes and ranges."""

from collections.abc import Mapping
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np

UNKNOWN_LABEL = -1
"""Label of padding rows, of undecodable clips and of clips without a label."""


class VideoExample(TypedDict):
    """One video with its label, an example of a source.

    At most one of ``video`` and ``features`` is present. With V views (clips × crops) per video, as
    at test time, ``video`` is (V,T,H,W,3), ``lengths`` (V,), and ``audio`` has a leading axis V.
    """

    video: NotRequired[np.ndarray]
    """(T,H,W,3) uint8 in [0,255]; frames from ``lengths`` on are zero."""
    features: NotRequired[np.ndarray]
    """(T,...) float16 or float32: a frozen encoder's features of each frame."""
    audio: NotRequired[np.ndarray]
    """(T,M,W,1) float32: log-mel patches of M bands and W columns around each frame
    (``data/audio/log_mel.py``), beside ``video`` or ``features``, or alone."""
    lengths: np.ndarray
    """() int32, the number of valid frames, 1..T."""
    label: np.ndarray
    """() int32, class index >= 0, or ``UNKNOWN_LABEL``."""
    mask: np.ndarray
    """() bool, False if the clip could not be decoded; excluded from loss and metrics."""
    index: np.ndarray
    """() int32, the number of the example in its split."""


class VideoBatch(TypedDict):
    """``VideoExample`` stacked: each array has a leading axis B.

    Rows with ``mask`` False also pad the last batch of a split.
    """

    video: NotRequired[np.ndarray]
    features: NotRequired[np.ndarray]
    audio: NotRequired[np.ndarray]
    lengths: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    index: np.ndarray


class CaptionExample(TypedDict):
    """One image or video with C of its captions, an example of a source.

    Exactly one of ``image``, ``features`` and ``video`` is present. C is 1 for training on (image,
    caption) pairs, and otherwise the largest number of captions that an image has.
    """

    image: NotRequired[np.ndarray]
    """(H,W,3) uint8 in [0,255]."""
    features: NotRequired[np.ndarray]
    """(h,w,D) or (R,D) float16 or float32: a frozen encoder's feature map or regions of the image;
    (T,...) with ``lengths``: those of a video's frames."""
    video: NotRequired[np.ndarray]
    """(T,H,W,3) uint8 in [0,255]; frames from ``lengths`` on are zero."""
    lengths: NotRequired[np.ndarray]
    """() int32, the number of valid frames, 1..T; videos only."""
    tokens: np.ndarray
    """(C,L) int32 word ids, then ``<eos>`` (2), then ``<pad>`` (0); without ``<bos>``."""
    token_lengths: np.ndarray
    """(C,) int32, number of tokens including ``<eos>``; 0 for absent captions."""
    caption_weights: NotRequired[np.ndarray]
    """(C,) float32 >= 0: weight of each caption's tokens in the loss; 1 if absent."""
    mask: np.ndarray
    """() bool, False if the image could not be decoded; excluded from loss and metrics."""
    index: np.ndarray
    """() int32, the number of the example in its split."""


class CaptionBatch(TypedDict):
    """``CaptionExample`` stacked: each array has a leading axis B.

    Rows with ``mask`` False also pad the last batch of a split; their ``token_lengths`` are 0.
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


class TranscriptExample(TypedDict):
    """One line of text or recording with its transcript, an example of a source.

    Exactly one of ``image`` and ``spectrogram`` is present; their widths differ between examples.
    """

    image: NotRequired[np.ndarray]
    """(H,W,C) uint8 in [0,255], a line of text."""
    spectrogram: NotRequired[np.ndarray]
    """(T,M) float32, log-mel bands of a recording."""
    lengths: np.ndarray
    """() int32, the number of valid columns or frames, at least 1."""
    tokens: np.ndarray
    """(L,) int32 character ids 1..K; 0 is CTC's blank."""
    token_lengths: np.ndarray
    """() int32, the number of characters; 0 for an empty text."""
    mask: np.ndarray
    """() bool, False if it could not be decoded; excluded from loss and metrics."""
    index: np.ndarray
    """() int32, the number of the example in its split."""


class TranscriptBatch(TypedDict):
    """``TranscriptExample`` stacked, each array with a leading axis B, padded with zeros.

    Images are padded at their right, spectrograms and ``tokens`` at their end. Rows with ``mask``
    False also fill a batch; their ``token_lengths`` are 0.
    """

    image: NotRequired[np.ndarray]
    spectrogram: NotRequired[np.ndarray]
    lengths: np.ndarray
    tokens: np.ndarray
    token_lengths: np.ndarray
    mask: np.ndarray
    index: np.ndarray


class SoundExample(TypedDict):
    """One labelled recording, an example of a source.

    With V windows per recording, as at test time, ``spectrogram`` is (V,T,M) and ``lengths`` (V,).
    """

    spectrogram: np.ndarray
    """(T,M) float32, log-mel bands; frames from ``lengths`` on are zero."""
    lengths: np.ndarray
    """() int32, the number of valid frames, 1..T."""
    label: np.ndarray
    """() int32, class index >= 0, or ``UNKNOWN_LABEL``."""
    mask: np.ndarray
    """() bool, False if it could not be decoded; excluded from loss and metrics."""
    index: np.ndarray
    """() int32, the number of the example in its split."""


class SequenceExample(TypedDict):
    """One sequence, one window of a stream, or one window of a series; an example of a source.

    Exactly one of ``inputs`` and ``tokens`` is present, and at most one of ``label`` and
    ``targets``, which stands with its ``target_mask``. Four uses:

    ======================== ========================= ===========================================
    use                      target                    source
    ======================== ========================= ===========================================
    classification           ``label``                 ``data.series.SequenceSource``
    next step                ``targets`` (T,...)       ``data.series.NextSteps``, ``StreamWindows``
    forecast                 ``targets`` (H,C)         ``data.series.ForecastWindows``
    regression of a sequence ``targets`` (K,)          ``data.series.SequenceSource``
    ======================== ========================= ===========================================

    In the batches of a stream (``data.series.StreamWindows``), row r of batch k + 1 continues row
    r of batch k. The carry is kept for each row, and ``starts`` alone says where it is reset: also
    at the first step of every pass over the stream, so that nothing but the batches is needed.
    """

    inputs: NotRequired[np.ndarray]
    """(T,D) float32, scaled; steps from ``lengths`` on and missing values are zero."""
    tokens: NotRequired[np.ndarray]
    """(T,) int32 ids in 0..V-1; steps from ``lengths`` on are zero."""
    observed: NotRequired[np.ndarray]
    """(T,D) bool, False where a value of ``inputs`` is missing or padding; absent from data that
    miss none."""
    starts: NotRequired[np.ndarray]
    """(T,) bool, True where another sequence begins: the carry is reset before that step. Absent:
    at step 0 alone."""
    lengths: np.ndarray
    """() int32, the number of valid steps, 1..T."""
    label: NotRequired[np.ndarray]
    """() int32, class index >= 0, or ``UNKNOWN_LABEL``."""
    targets: NotRequired[np.ndarray]
    """(T,) int32 class or token of each step, (T,D) float32 values of each step, (H,C) float32 of C
    channels at H horizons, or (K,) float32 of the whole sequence; zero where ``target_mask`` is
    False."""
    target_mask: NotRequired[np.ndarray]
    """bool, False where a target is missing or padding: excluded from loss and metrics. Of the
    shape of ``targets``; of (T,D) targets (T,)."""
    mask: np.ndarray
    """() bool, False for padding rows; excluded from loss and metrics."""
    index: np.ndarray
    """() int32, the number of the example in its split."""


class SequenceBatch(TypedDict):
    """``SequenceExample`` stacked: each array has a leading axis B.

    Rows with ``mask`` False also pad the last batch of a split; their ``target_mask`` is False.
    """

    inputs: NotRequired[np.ndarray]
    tokens: NotRequired[np.ndarray]
    observed: NotRequired[np.ndarray]
    starts: NotRequired[np.ndarray]
    lengths: np.ndarray
    label: NotRequired[np.ndarray]
    targets: NotRequired[np.ndarray]
    target_mask: NotRequired[np.ndarray]
    mask: np.ndarray
    index: np.ndarray


class FrameExample(TypedDict):
    """One sequence of frames, whose first frames are seen and whose others are predicted."""

    frames: np.ndarray
    """(T,H,W,C) uint8 in [0,255], images; or float32, scaled fields. T is the same for all."""
    mask: np.ndarray
    """() bool, False if it could not be read; excluded from loss and metrics."""
    index: np.ndarray
    """() int32, the number of the example in its split."""


class FrameBatch(TypedDict):
    """``FrameExample`` stacked: each array has a leading axis B.

    Rows with ``mask`` False also pad the last batch of a split.
    """

    frames: np.ndarray
    mask: np.ndarray
    index: np.ndarray


class Source(Protocol):
    """Random access to the examples of one split; picklable, because workers are spawned."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...
