"""Weights of reference captions: agreement with the image's others, captions of similar images.

``weigh_captions`` weighs the cross-entropy of each caption by its CIDEr-D against the other
captions of its image (Phan et al., "Consensus-based Sequence Training for Video Captioning",
arXiv:1712.09532, their WXE). ``add_captions`` gives an image the captions of the most similar
images as further references of self-critical training: the image's own five reward what a model
memorises of this image, those of similar images what also holds for unseen ones.
``count_frequencies`` counts the document frequencies that CIDEr-D needs.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from data.batches import Source
from data.captions.vocabulary import EOS, Vocabulary
from flaxnets.tasks.cider import DocumentFrequencies, cider_d

CIDER_ROWS = 256
"""Images scored at once."""
SIMILARITY_ROWS = 1_000
"""Images whose similarities to all others are computed at once."""
MIN_DEVIATION = 0.05
"""Added to the standard deviation of each feature, so that nearly constant ones count little."""


def weigh_captions(
    captions: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    frequencies: DocumentFrequencies,
    share: float,
) -> list[np.ndarray]:
    r"""Returns the weight of each caption's words in the loss.

    .. math:: w_i = 1 - λ + λ \frac{s_i}{\bar s}

    s_i is the CIDEr-D of caption i against the other captions of its image, s̄ the mean over the
    image's captions; w_i = 1 where all s_i are 0, as for a single caption. An image's weights have
    a mean of 1.

    Deviation: the paper does not divide by s̄, so images whose captions agree have larger weights.

    Args:
      captions: the captions of each image.
      vocabulary: the model's vocabulary.
      frequencies: document frequencies of the training captions.
      share: λ in [0,1].

    Returns:
      (C,) float32 for each image, one weight for each of its C captions.

    Raises:
      ValueError: ``share`` out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"data.consensus: expected 0 to 1, received {share}")
    encoded = [_encode(texts, vocabulary) for texts in captions]
    most = max(map(len, encoded))
    width = max(ids.shape[1] for ids in encoded)
    # Padded to whole blocks of CIDER_ROWS images, so that cider_d is compiled once.
    tokens = np.zeros((-(-len(encoded) // CIDER_ROWS) * CIDER_ROWS, most, width), np.int32)
    for row, ids in enumerate(encoded):
        # A caption without words becomes padding, which counts as no reference.
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
    for ids, found in zip(encoded, scores, strict=False):  # The padding has no captions.
        score = found[: len(ids)]
        relative = score / score.mean() if score.any() else np.ones_like(score)
        weights.append((1 - share + share * relative).astype(np.float32))
    return weights


def find_neighbours(features: Source, count: int) -> np.ndarray:
    """Returns the most similar images of each image.

    Similarity is the cosine of the images' standardised mean features.

    Args:
      features: N examples with ``features`` (h,w,D).
      count: K, from 1 to N - 1.

    Returns:
      (N,K) int32, the most similar first, without the image itself.

    Raises:
      ValueError: ``count`` out of range.
    """
    if not 1 <= count < len(features):
        raise ValueError(
            f"data.num_neighbours: expected 0 to {len(features) - 1}, received {count}"
        )
    means = np.stack(
        [
            features[index]["features"].mean((0, 1), dtype=np.float32)
            for index in range(len(features))
        ]
    )
    vectors = (means - means.mean(0)) / (means.std(0) + MIN_DEVIATION)
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
    """Returns each image's captions followed by those of its neighbours, and their weights.

    Args:
      captions: the captions of each of N images, at least one each.
      neighbours: (N,K) int, as from ``find_neighbours``.
      share: λ in [0,1], total weight of the neighbours' captions; the image's own have 1 - λ.

    Returns:
      The captions of each image, and (C,) float32 weights for each image, which sum to 1.

    Raises:
      ValueError: ``share`` out of range.
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


def count_frequencies(
    captions: Sequence[Sequence[str]], vocabulary: Vocabulary, cache: str
) -> DocumentFrequencies:
    """Returns the document frequencies of captions; counts those that the cache lacks.

    Args:
      captions: the captions of each image.
      vocabulary: the model's vocabulary.
      cache: folder of the cache.
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


def _encode(texts: Sequence[str], vocabulary: Vocabulary) -> np.ndarray:
    """Returns (C,L) int32: word ids, ``<eos>``, then ``<pad>``."""
    ids = [vocabulary.encode(text) for text in texts]
    width = max(map(len, ids))
    return np.array([caption + [0] * (width - len(caption)) for caption in ids], np.int32)
