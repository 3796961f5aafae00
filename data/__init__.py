"""Data: from files to batches of NumPy arrays, without JAX.

The packages ``video``, ``audio``, ``captions``, ``text_lines``, ``series``, ``frames`` and
``moving_shapes`` each hold one kind of data, ``datasets`` the readers of formats on disk.
``data.loader`` and ``data.features`` are not imported here: grain itself imports JAX, which a
source alone does not need.
"""

from data.batches import (
    UNKNOWN_LABEL,
    CaptionBatch,
    CaptionExample,
    Source,
    VideoBatch,
    VideoExample,
)
from data.sources import ConcatenatedSources, FoldExamples

__all__ = [
    "UNKNOWN_LABEL",
    "CaptionBatch",
    "CaptionExample",
    "ConcatenatedSources",
    "FoldExamples",
    "Source",
    "VideoBatch",
    "VideoExample",
]
