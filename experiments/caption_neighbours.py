"""Captions of similar images, as further references where captions are rewarded.

The five captions of a training image reward a model for knowing this image; what people say of
images like it rewards what could be said of one that nobody has described.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

ROWS = 1_000
"""Images whose similarities to all others are computed at a time."""
LEAST_DEVIATION = 0.05
"""Added to a feature's standard deviation, that features that hardly vary count for little."""


def find_neighbours(maps: Any, count: int) -> np.ndarray:
    """The images most like each image: by the cosine of their standardised mean features.

    Args:
      maps: random access to examples of ``features`` (h,w,D), of N images.
      count: K, from 1 to N - 1.

    Returns:
      (N,K) int32, the most similar first, never the image itself.

    Raises:
      ValueError: another count.
    """
    if not 1 <= count < len(maps):
        raise ValueError(f"data.num_neighbours: expected 0 to {len(maps) - 1}, received {count}")
    means = np.stack(
        [maps[index]["features"].mean((0, 1), dtype=np.float32) for index in range(len(maps))]
    )
    vectors = (means - means.mean(0)) / (means.std(0) + LEAST_DEVIATION)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    found = []
    for start in range(0, len(vectors), ROWS):
        similarities = vectors[start : start + ROWS] @ vectors.T
        rows = np.arange(len(similarities))
        similarities[rows, start + rows] = -np.inf
        found.append(np.argsort(-similarities, axis=1, kind="stable")[:, :count])
    return np.concatenate(found).astype(np.int32)


def add_captions(
    captions: Sequence[Sequence[str]], neighbours: np.ndarray, share: float
) -> tuple[tuple[tuple[str, ...], ...], list[np.ndarray]]:
    """Each image's captions and, behind them, those of its neighbours, with their weights.

    Args:
      captions: of each of N images, at least one of each.
      neighbours: (N,K), as ``find_neighbours`` gives them.
      share: λ in [0,1], what the neighbours' captions together count for; an image's own together
        count for 1 - λ.

    Returns:
      The captions of each image, and of each image (C,) float32, summing to 1.

    Raises:
      ValueError: a share out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"data.neighbour_share: expected 0 to 1, received {share}")
    joined, weights = [], []
    for own, others in zip(captions, neighbours, strict=True):
        further = tuple(text for other in others for text in captions[other])
        joined.append((*own, *further))
        parts = ((1 - share, len(own)), (share, len(further)))
        weights.append(np.repeat([total / n for total, n in parts], [n for _, n in parts]))
    return tuple(joined), [each.astype(np.float32) for each in weights]
