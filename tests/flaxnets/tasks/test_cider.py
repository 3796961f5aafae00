"""CIDEr-D against pycocoevalcap and against the formula in Python; files; errors."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.tasks.cider import DocumentFrequencies, cider_d
from tests.flaxnets.corpora import (
    EOS,
    Caption,
    Corpus,
    pack,
    random_corpus,
    tokens,
)

cider = jax.jit(cider_d)


def ngrams(caption: Caption, n: int) -> Counter[Caption]:
    return Counter(caption[i : i + n] for i in range(len(caption) - n + 1))


def reference_cider(candidates: list[Caption], corpus: Corpus, frequent: Corpus) -> list[float]:
    """Returns the formula's value with the document frequencies of ``frequent``."""
    images = [
        {gram for caption in captions for n in range(1, 5) for gram in ngrams(caption, n)}
        for captions in frequent
    ]
    df = Counter(gram for grams in images for gram in grams)

    def vector(caption: Caption, n: int) -> dict[Caption, float]:
        return {
            gram: count * (math.log(len(frequent)) - math.log(max(1, df[gram])))
            for gram, count in ngrams(caption, n).items()
        }

    def norm(values: dict[Caption, float]) -> float:
        return math.sqrt(sum(value**2 for value in values.values()))

    found = []
    for candidate, captions in zip(candidates, corpus, strict=True):
        total = 0.0
        for caption in captions:
            delta = max(len(candidate) - 1, 0) - max(len(caption) - 1, 0)
            for n in range(1, 5):
                own, other = vector(candidate, n), vector(caption, n)
                both = sum(min(own[g], other[g]) * other[g] for g in own if g in other)
                if norm(own) and norm(other):
                    total += both / norm(own) / norm(other) * math.exp(-(delta**2) / 72)
        found.append(10 * total / 4 / len(captions))
    return found


def with_eos(captions: list[Caption]) -> list[Caption]:
    return [(*caption, EOS) for caption in captions]


@pytest.mark.parametrize("count_eos", [True, False])
def test_equals_the_formula(count_eos: bool) -> None:
    candidates, corpus = random_corpus(0, 40)
    _, frequent = random_corpus(1, 60)
    frequencies = DocumentFrequencies.count(pack(frequent), count_eos=count_eos)
    actual = cider(frequencies, tokens(candidates, 14), pack(corpus))
    if count_eos:
        candidates = with_eos(candidates)
        corpus, frequent = ([with_eos(image) for image in each] for each in (corpus, frequent))
    expected = reference_cider(candidates, corpus, frequent)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert np.mean(np.array(expected) > 0.1) > 0.6


@pytest.mark.parametrize("vocabulary", [5, 300])
def test_equals_pycocoevalcap(vocabulary: int) -> None:
    scorer = pytest.importorskip("pycocoevalcap.cider.cider", reason="pycocoevalcap is missing")
    candidates, corpus = random_corpus(vocabulary, 50, vocabulary)

    def text(caption: Caption) -> str:
        return " ".join(f"w{word}" for word in caption)

    # pycocoevalcap counts the references that it found.
    mean, expected = scorer.Cider().compute_score(
        {image: [text(caption) for caption in captions] for image, captions in enumerate(corpus)},
        {image: [text(candidate)] for image, candidate in enumerate(candidates)},
    )
    frequencies = DocumentFrequencies.count(pack(corpus), count_eos=False)
    actual = cider(frequencies, tokens(candidates, 14), pack(corpus))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.mean(actual), mean, rtol=1e-5)
    np.testing.assert_allclose(reference_cider(candidates, corpus, corpus), expected, rtol=1e-9)


def test_an_identical_caption_has_ten_and_one_of_other_words_zero() -> None:
    corpus = [[(4, 5, 6, 7, 8)], [(9, 10, 11, 12)], [(13, 14)]]
    frequencies = DocumentFrequencies.count(pack(corpus), count_eos=False)
    candidates = tokens([(4, 5, 6, 7, 8), (4, 5, 6, 7), (13, 14)], 8)
    # The last one has no 3-grams and no 4-grams to agree in.
    found = cider(frequencies, candidates, pack(corpus))
    np.testing.assert_allclose(found, [10, 0, 5], rtol=1e-5)


def test_an_ending_is_rewarded_where_it_counts() -> None:
    corpus = [[(4, 5, 6)], [(7, 8, 9)]]
    cut = np.array([[4, 5, 6, 0], [7, 8, 9, 0]])
    ended = np.array([[4, 5, 6, EOS], [7, 8, 9, EOS]])
    for count_eos in (True, False):
        frequencies = DocumentFrequencies.count(pack(corpus), count_eos=count_eos)
        better = cider(frequencies, ended, pack(corpus)) > cider(frequencies, cut, pack(corpus))
        assert np.all(better == count_eos)


@pytest.mark.slow
def test_samples_share_the_references_of_their_image() -> None:
    candidates, corpus = random_corpus(2, 30)
    frequencies = DocumentFrequencies.count(pack(corpus))
    samples = tokens(candidates, 14).reshape(10, 3, 14)
    references = pack(corpus)[:10]
    together = cider(frequencies, samples, references)
    assert together.shape == (10, 3)
    one_by_one = cider(frequencies, samples.reshape(30, 14), np.repeat(references, 3, axis=0))
    np.testing.assert_allclose(together.ravel(), one_by_one, rtol=1e-6, atol=1e-6)
    mapped = jax.jit(jax.vmap(cider_d, (None, 1, None), 1))(frequencies, samples, references)
    np.testing.assert_allclose(mapped, together, rtol=1e-6, atol=1e-6)


def test_references_weigh_what_they_are_given() -> None:
    candidates, corpus = random_corpus(4, 20)
    frequencies = DocumentFrequencies.count(pack(corpus))
    own, references = tokens(candidates, 14), pack(corpus)
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 2.0, references.shape[:2]).astype(np.float32)
    each = np.stack(
        [cider(frequencies, own, references[:, [c]]) for c in range(references.shape[1])], 1
    )
    exists = references[..., 0] != 0
    shares = np.where(exists, weights, 0)
    expected = (shares * each).sum(1) / np.maximum(shares.sum(1), 1e-9)
    found = np.asarray(cider_d(frequencies, own, references, jnp.asarray(weights)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found - cider(frequencies, own, references)).max() > 0.01
    nothing = cider_d(frequencies, own, references, jnp.zeros(weights.shape))
    np.testing.assert_array_equal(nothing, 0)
    with pytest.raises(ValueError, match=r"weights: expected shape \(20, .*, received \(2, 3\)"):
        cider_d(frequencies, own, references, jnp.ones((2, 3)))


def test_tokens_after_the_end_and_absent_captions_change_nothing() -> None:
    candidates, corpus = random_corpus(3, 20)
    frequencies = DocumentFrequencies.count(pack(corpus))
    own, others = tokens(candidates, 14), pack(corpus)
    plain = cider(frequencies, own, others)
    rng = np.random.default_rng(0)

    def with_rubbish(array: np.ndarray) -> np.ndarray:
        after = np.cumsum(array == EOS, axis=-1) - (array == EOS) > 0
        return np.where(after, rng.integers(0, 20, array.shape), array).astype(np.int32)

    np.testing.assert_array_equal(
        cider(frequencies, with_rubbish(own), with_rubbish(others)), plain
    )
    more = np.pad(others, ((0, 0), (0, 2), (0, 3)))
    np.testing.assert_allclose(
        cider(frequencies, np.pad(own, ((0, 0), (0, 4))), more), plain, rtol=1e-6
    )
    counted = DocumentFrequencies.count(list(with_rubbish(more)))
    jax.tree.map(np.testing.assert_array_equal, counted, frequencies)
    nothing = cider(frequencies, own, np.zeros_like(others))
    np.testing.assert_array_equal(nothing, np.zeros(20))


def test_captions_shorter_than_four_words() -> None:
    corpus = [[(4, 5)], [(4,)], [(6, 4)]]
    candidates = [(4, 5), (4,), (6,)]
    frequencies = DocumentFrequencies.count(pack(corpus, 3), count_eos=False)
    expected = reference_cider(candidates, corpus, corpus)
    for length in (2, 3, 6):
        actual = cider(frequencies, tokens(candidates, length), pack(corpus, length))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_vocabulary_beyond_what_pairs_of_words_fit_in_32_bits() -> None:
    candidates, corpus = random_corpus(4, 300, 60_000, (5, 5))
    rng = np.random.default_rng(0)
    # Candidates of their references' n-grams, broken up, so that most are found.
    candidates = [
        tuple(captions[0][: rng.integers(1, 9)] + captions[1][: rng.integers(1, 9)])
        for captions in corpus
    ]
    frequencies = DocumentFrequencies.count(pack(corpus), count_eos=False)
    assert all(leaf.dtype in (jnp.int32, jnp.float32) for leaf in jax.tree.leaves(frequencies))
    actual = cider(frequencies, tokens(candidates, 20), pack(corpus))
    np.testing.assert_allclose(actual, reference_cider(candidates, corpus, corpus), rtol=1e-4)


def test_counts_that_are_near_all_images_keep_their_precision() -> None:
    """An n-gram in all images but one has an idf log N - log df near zero."""
    corpus = [[(4, 5, 6, 7, 4, 8)]] * 9_999 + [[(9, 10)]]
    frequencies = DocumentFrequencies.count(pack(corpus), count_eos=False)
    candidates, some = [(4, 5, 6, 7, 8)], [[(4, 5, 6, 7, 4, 8)]]
    actual = cider(frequencies, tokens(candidates, 8), pack(some))
    np.testing.assert_allclose(actual, reference_cider(candidates, some, corpus), rtol=1e-4)


def test_one_image_alone_weighs_nothing() -> None:
    corpus = [[(4, 5, 6, 7)]]
    frequencies = DocumentFrequencies.count(pack(corpus))
    assert float(cider(frequencies, tokens(corpus[0], 8), pack(corpus))[0]) == 0


def test_images_without_captions_and_captions_without_words_count() -> None:
    frequencies = DocumentFrequencies.count(
        [[[4, 5, EOS]], np.zeros((0, 0)), np.zeros((2, 3), np.int32), np.zeros((1, 0))]
    )
    np.testing.assert_allclose(frequencies.unseen_idf, math.log(4), rtol=1e-6)
    np.testing.assert_allclose(frequencies.idf[0], [math.log(4)] * 3, rtol=1e-6)
    empty = DocumentFrequencies.count(np.zeros((3, 2, 0), np.int32))
    np.testing.assert_array_equal(
        cider(empty, [[4, 5]] * np.ones((2, 1), int), pack([[(6,)]] * 2)), 0
    )


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ((3, 4), (2, 5, 6), "references: expected those of 3 images, received those of 2"),
        ((3,), (3, 5, 6), r"candidates: expected integers \(N,L\) or \(N,S,L\), received int32"),
        ((3, 4), (3, 5), r"references: expected integers \(N,C,M\), received .* shape \(3, 5\)"),
        ((3, 0), (3, 5, 6), "candidates: expected integers"),
        ((3, 4), (3, 5, 0), "references: expected integers"),
    ],
)
def test_bad_shapes(candidates: tuple[int, ...], references: tuple[int, ...], message: str) -> None:
    frequencies = DocumentFrequencies.count([[[4, 5, EOS]]])
    with pytest.raises(ValueError, match=message):
        cider(frequencies, jnp.zeros(candidates, jnp.int32), jnp.zeros(references, jnp.int32))
    with pytest.raises(ValueError, match="candidates: expected integers"):
        cider(frequencies, jnp.zeros((3, 4)), jnp.zeros((3, 1, 4), jnp.int32))


def test_saved_and_loaded(tmp_path: Path) -> None:
    for count_eos in (True, False):
        _, corpus = random_corpus(5, 30)
        frequencies = DocumentFrequencies.count(pack(corpus), count_eos=count_eos)
        path = tmp_path / "frequencies.npz"
        frequencies.save(path)
        loaded = DocumentFrequencies.load(path)
        assert jax.tree.structure(loaded) == jax.tree.structure(frequencies)
        jax.tree.map(np.testing.assert_array_equal, loaded, frequencies)
        assert [each.name for each in tmp_path.iterdir()] == ["frequencies.npz"]


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DocumentFrequencies.load(tmp_path / "none.npz")
    whole = tmp_path / "whole.npz"
    DocumentFrequencies.count([[[4, 5, EOS]]]).save(whole)
    path = tmp_path / "bad.npz"
    np.savez(path, words=np.zeros(3))
    bare = tmp_path / "bare.npy"
    np.save(bare, np.zeros(3))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:300])
    text = tmp_path / "text.npz"
    text.write_text("a dog")
    empty = tmp_path / "empty.npz"
    empty.write_bytes(b"")
    for wrong in (path, bare, cut, text, empty, tmp_path):
        with pytest.raises(ValueError, match="path: expected document frequencies of format 1"):
            DocumentFrequencies.load(wrong)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([], "references: expected at least one image, received none"),
        (np.zeros((3, 4), np.int32), r"references: expected integers \(C,M\) for each image"),
        (np.zeros((3, 4, 5)), r"received float64 of shape \(4, 5\) for image 0"),
        ([[[-1, 4]]], r"references: expected ids in \[0, 2\^31\), received -1 to 4"),
        ([[[2**31, 4]]], "references: expected ids in"),
    ],
)
def test_bad_references_to_count(references: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DocumentFrequencies.count(references)
