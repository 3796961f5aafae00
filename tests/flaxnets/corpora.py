"""Captions of random words, as tuples and as the arrays that rewards are computed on."""

import numpy as np

EOS = 2
Caption = tuple[int, ...]
Corpus = list[list[Caption]]


def random_corpus(
    seed: int, images: int, vocabulary: int = 12, references: tuple[int, int] = (1, 5)
) -> tuple[list[Caption], Corpus]:
    """Captions of few different words, so that n-grams repeat; candidates hold unseen ones too."""
    rng = np.random.default_rng(seed)

    def caption(words: int, lengths: tuple[int, int]) -> Caption:
        n = rng.integers(*lengths)
        return tuple(int(word) for word in rng.integers(4, 4 + words, n))

    corpus = [
        [
            caption(vocabulary, (1, 13))
            for _ in range(rng.integers(references[0], references[1] + 1))
        ]
        for _ in range(images)
    ]
    candidates = [caption(vocabulary + 3, (0, 13)) for _ in range(images)]
    candidates[0] = corpus[0][0]  # An identical one,
    candidates[1] = ()  # an empty one,
    candidates[2] = (corpus[2][0][0],) * 9  # one of repetitions,
    candidates[3] = (4 + vocabulary, 5 + vocabulary) * 3  # and one of unseen words alone.
    corpus[4] = [(5, 5, 5, 5, 5, 5)] * 2
    candidates[4] = (5, 5, 5)
    return candidates, corpus


def tokens(captions: list[Caption], length: int) -> np.ndarray:
    """(C,length) int32, ended with ``<eos>`` where there is room."""
    array = np.zeros((len(captions), length), np.int32)
    for row, caption in zip(array, captions, strict=True):
        ended = (*caption, EOS)[:length]
        row[: len(ended)] = ended
    return array


def pack(corpus: Corpus, length: int = 15) -> np.ndarray:
    """(N,C,length) int32, rows of <pad> where an image has fewer captions."""
    array = np.zeros((len(corpus), max(map(len, corpus)), length), np.int32)
    for image, captions in zip(array, corpus, strict=True):
        image[: len(captions)] = tokens(captions, length)
    return array
