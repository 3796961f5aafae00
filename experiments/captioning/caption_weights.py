"""How much a caption says what an image's other captions say, and the frequencies it takes.

Phan et al., "Consensus-based Sequence Training for Video Captioning", arXiv:1712.09532, weigh the
cross-entropy of each caption by its CIDEr against the others of its video (their WXE).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from data.captions.vocabulary import EOS, Vocabulary
from flaxnets.tasks.cider import DocumentFrequencies, cider_d

# Captions of similar images, as further references where captions are rewarded.
#
# The five captions of a training image reward a model for knowing this image; what people say of
# images like it rewards what could be said of one that nobody has described.

SIMILARITY_ROWS = 1_000
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
    for start in range(0, len(vectors), SIMILARITY_ROWS):
        similarities = vectors[start : start + SIMILARITY_ROWS] @ vectors.T
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


CIDER_ROWS = 256
"""Images that are scored at a time."""


def count_frequencies(
    captions: Sequence[Sequence[str]], vocabulary: Vocabulary, cache: str
) -> DocumentFrequencies:
    """Document frequencies of the training captions, from the cache where they lie there.

    Args:
      captions: of each image.
      vocabulary: of the model.
      cache: the folder of the cache.
    """
    text = "\n\n".join("\n".join(texts) for texts in captions)
    digest = hashlib.sha256(f"{text}\0{vocabulary.digest}".encode()).hexdigest()[:24]
    path = Path(cache) / f"frequencies_{digest}.npz"
    if path.is_file():
        return DocumentFrequencies.load(path)
    frequencies = DocumentFrequencies.count(_encode(texts, vocabulary) for texts in captions)
    path.parent.mkdir(parents=True, exist_ok=True)
    frequencies.save(path)
    return frequencies


def weigh_captions(
    captions: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    frequencies: DocumentFrequencies,
    share: float,
) -> list[np.ndarray]:
    r"""What each caption's words count for in the loss.

    .. math:: w_i = 1 - λ + λ \frac{s_i}{\bar s}

    with s_i the CIDEr-D of an image's caption against its other captions; where all are 0, as
    where there is only one, w is 1. The mean over an image's captions is 1.

    Deviation: the paper does not divide by the image's mean, so that images of which people say
    much the same count for more.

    Args:
      captions: of each image.
      vocabulary: of the model.
      frequencies: of the training captions.
      share: λ in [0,1].

    Returns:
      (C,) float32 of each image's C captions.

    Raises:
      ValueError: a share out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"data.consensus: expected 0 to 1, received {share}")
    encoded = [_encode(texts, vocabulary) for texts in captions]
    most = max(map(len, encoded))
    width = max(ids.shape[1] for ids in encoded)
    tokens = np.zeros((-(-len(encoded) // CIDER_ROWS) * CIDER_ROWS, most, width), np.int32)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids), : ids.shape[1]] = np.where(ids[:, :1] == EOS, 0, ids)
    scores = np.zeros(tokens.shape[:2], np.float32)
    for start in range(0, len(tokens), CIDER_ROWS):
        part = jnp.asarray(tokens[start : start + CIDER_ROWS])
        for number in range(most if most > 1 else 0):
            others = jnp.delete(part, number, axis=1)
            scores[start : start + CIDER_ROWS, number] = cider_d(
                frequencies, part[:, number], others
            )
    weights = []
    for ids, found in zip(encoded, scores, strict=False):
        score = found[: len(ids)]
        relative = score / score.mean() if score.any() else np.ones_like(score)
        weights.append((1 - share + share * relative).astype(np.float32))
    return weights


def _encode(texts: Sequence[str], vocabulary: Vocabulary) -> np.ndarray:
    """(C,L) int32, ``<eos>`` behind the words, then ``<pad>``."""
    ids = [vocabulary.encode(text) for text in texts]
    width = max(map(len, ids))
    return np.array([caption + [0] * (width - len(caption)) for caption in ids], np.int32)
