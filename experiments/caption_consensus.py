"""How much a caption says what an image's other captions say, and the frequencies it takes.

Phan et al., "Consensus-based Sequence Training for Video Captioning", arXiv:1712.09532, weigh the
cross-entropy of each caption by its CIDEr against the others of its video (their WXE).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from data.captions import EOS, Vocabulary
from flaxnets.cider import DocumentFrequencies, cider_d

ROWS = 256
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
    tokens = np.zeros((-(-len(encoded) // ROWS) * ROWS, most, width), np.int32)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids), : ids.shape[1]] = np.where(ids[:, :1] == EOS, 0, ids)
    scores = np.zeros(tokens.shape[:2], np.float32)
    for start in range(0, len(tokens), ROWS):
        part = jnp.asarray(tokens[start : start + ROWS])
        for number in range(most if most > 1 else 0):
            others = jnp.delete(part, number, axis=1)
            scores[start : start + ROWS, number] = cider_d(frequencies, part[:, number], others)
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
