"""A small random decoder, and reference searches in plain Python and NumPy, float64."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.decoders.hypotheses import BOS, EOS, PAD, UNK, DecodeStep
from flaxnets.typing import Array

VOCABULARY = 7
"""``<pad>``, ``<bos>``, ``<eos>``, ``<unk>`` and three words."""
WORDS = (4, 5, 6)


class Answer(NamedTuple):
    tokens: tuple[int, ...]
    log_prob: float
    score: float
    ended: bool


def normalizer(form: str, alpha: float) -> Callable[[int], float]:
    return {
        "none": lambda n: 1.0,
        "mean": lambda n: float(n),
        "wu": lambda n: ((5.0 + n) / 6.0) ** alpha,
    }[form]


class Decoder:
    """h' = tanh(W h + E[token]), logits U h' + b, from an h of each row's own."""

    def __init__(
        self,
        seed: int,
        vocabulary: int = VOCABULARY,
        features: int = 6,
        end: float = 0.0,
        scale: float = 2.0,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.vocabulary, self.features = vocabulary, features
        self.recurrent = rng.normal(size=(features, features)) / features**0.5
        self.embedding = rng.normal(size=(vocabulary, features))
        self.output = rng.normal(size=(features, vocabulary)) * scale / features**0.5
        self.bias = np.zeros(vocabulary)
        self.bias[EOS] = end
        self.bias[UNK] = 1.0  # So that forbidding it matters.

    def initial(self, batch_size: int, seed: int = 0) -> np.ndarray:
        """Returns a carry (B,F) float32."""
        return np.random.default_rng(seed).normal(size=(batch_size, self.features)).astype("f4")

    def decode_step(self) -> DecodeStep:
        parameters = [
            jnp.asarray(x, jnp.float32)
            for x in (self.recurrent, self.embedding, self.output, self.bias)
        ]

        def decode_step(carry: Array, tokens: Array) -> tuple[Array, Array]:
            recurrent, embedding, output, bias = parameters
            hidden = jnp.tanh(carry @ recurrent + embedding[tokens])
            return hidden, hidden @ output + bias

        return decode_step

    def step(self, hidden: np.ndarray, token: int) -> tuple[np.ndarray, np.ndarray]:
        """Maps h (F,) and a token to h' and log-probabilities (V,)."""
        hidden = np.tanh(hidden @ self.recurrent + self.embedding[token])
        logits = hidden @ self.output + self.bias
        top = logits.max()
        return hidden, logits - top - np.log(np.exp(logits - top).sum())

    def log_prob(self, hidden: np.ndarray, tokens: tuple[int, ...]) -> float:
        total = 0.0
        for previous, token in zip((BOS, *tokens), tokens, strict=False):
            hidden, log_probs = self.step(hidden, previous)
            total += log_probs[token]
        return total


def exhaustive(
    decoder: Decoder, hidden: np.ndarray, length: int, norm: Callable[[int], float]
) -> list[Answer]:
    """Returns every sentence that ends within ``length`` tokens, best first."""
    answers = []
    for n in range(length):
        for words in itertools.product(WORDS, repeat=n):
            tokens = (*words, EOS)
            log_prob = decoder.log_prob(hidden, tokens)
            answers.append(Answer(tokens, log_prob, log_prob / norm(n + 1), True))
    return sorted(answers, key=lambda answer: -answer.score)


def repeats(words: tuple[int, ...], n: int) -> bool:
    """Returns True if an n-gram occurs twice."""
    grams = [words[i : i + n] for i in range(len(words) - n + 1)]
    return len(set(grams)) < len(grams)


def reference_beam(
    decoder: Decoder,
    hidden: np.ndarray,
    *,
    beam_size: int,
    length: int,
    norm: Callable[[int], float],
    ngram: int = 0,
    groups: int = 1,
    penalty: float = 0.0,
    unknown: bool = False,
) -> list[Answer]:
    """Beam search of one row with lists, without any early exit."""
    size = beam_size // groups
    live: list[list[tuple[float, tuple[int, ...], np.ndarray]]]
    live = [[(0.0, (), hidden)] for _ in range(groups)]
    pool: list[list[Answer]] = [[] for _ in range(groups)]
    for _ in range(length):
        taken: list[int] = []
        for group in range(groups):
            candidates = []
            for total, tokens, state in live[group]:
                after, log_probs = decoder.step(state, tokens[-1] if tokens else BOS)
                for word in range(decoder.vocabulary):
                    if word in (PAD, BOS) or (word == UNK and not unknown):
                        continue
                    if ngram and word != EOS and repeats((*tokens, word), ngram):
                        continue
                    value = total + log_probs[word]
                    candidates.append(
                        (value - penalty * taken.count(word), value, (*tokens, word), after)
                    )
            candidates.sort(key=lambda candidate: -candidate[0])
            live[group] = []
            chosen = []
            for _, value, tokens, after in candidates[:size]:
                chosen.append(tokens[-1])
                if tokens[-1] == EOS:
                    pool[group].append(Answer(tokens, value, value / norm(len(tokens)), True))
                else:
                    live[group].append((value, tokens, after))
            taken += chosen
            pool[group] = sorted(pool[group], key=lambda answer: -answer.score)[:size]
    if any(pool):
        answers = [answer for own in pool for answer in own]
    else:
        answers = [
            Answer(tokens, value, value / norm(length), False)
            for own in live
            for value, tokens, _ in own
        ]
    return sorted(answers, key=lambda answer: -answer.score)


def answers_of(hypotheses: tuple[Array, ...], row: int) -> list[Answer]:
    """Returns the answers of one row without empty slots; checks the form of all slots."""
    tokens, lengths, log_probs, scores, ended = (np.asarray(x[row]) for x in hypotheses)
    answers = []
    for k in range(len(tokens)):
        n = int(lengths[k])
        assert not np.any(tokens[k, n:]), "expected <pad> after the end"
        if not n:
            assert log_probs[k] == -np.inf
            assert scores[k] == -np.inf
            assert not ended[k]
            continue
        sentence = tuple(int(token) for token in tokens[k, :n])
        assert (sentence[-1] == EOS) == ended[k]
        assert not set(sentence[:-1]) & {PAD, BOS, EOS}
        answers.append(Answer(sentence, float(log_probs[k]), float(scores[k]), bool(ended[k])))
    return answers


def assert_same(actual: list[Answer], expected: list[Answer]) -> None:
    assert [answer.tokens for answer in actual] == [answer.tokens for answer in expected]
    for name in ("log_prob", "score"):
        np.testing.assert_allclose(
            [getattr(answer, name) for answer in actual],
            [getattr(answer, name) for answer in expected],
            rtol=2e-5,
            atol=2e-5,
        )
    assert [answer.ended for answer in actual] == [answer.ended for answer in expected]


def assert_equal_trees(actual: tuple[Array, ...], expected: tuple[Array, ...]) -> None:
    """Compares integers exactly, floats to rounding; minus infinity equals itself."""
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
