"""CTC by enumeration of all alignments, in NumPy and float64."""

import itertools

import numpy as np

Text = tuple[int, ...]


def draw_log_probs(seed: int, *shape: int, spread: float = 2.0) -> np.ndarray:
    """Returns normalised log-probabilities, float32."""
    logits = spread * np.random.default_rng(seed).standard_normal(shape)
    return (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)).astype(np.float32)


def collapse(path: tuple[int, ...], blank: int = 0) -> Text:
    """Returns the text of an alignment: repeated classes are merged, blanks are dropped."""
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def all_texts(log_probs: np.ndarray, blank: int = 0) -> dict[Text, float]:
    """Returns log p of every text with an alignment, from ``log_probs`` (S,K)."""
    steps, classes = log_probs.shape
    texts: dict[Text, float] = {}
    for path in itertools.product(range(classes), repeat=steps):
        text = collapse(path, blank)
        log_prob = log_probs[range(steps), path].sum(dtype=np.float64)
        texts[text] = np.logaddexp(texts.get(text, -np.inf), log_prob)
    return texts


def best_path(log_probs: np.ndarray, text: Text, blank: int = 0) -> tuple[int, ...]:
    """Returns the most probable alignment of a text, a class for each step of (S,K)."""
    steps, classes = log_probs.shape
    paths = itertools.product(range(classes), repeat=steps)
    return max(
        (path for path in paths if collapse(path, blank) == text),
        key=lambda path: log_probs[range(steps), path].sum(dtype=np.float64),
    )


def spans_of(path: tuple[int, ...], blank: int = 0) -> list[tuple[int, int]]:
    """Returns first step and the step after the last one of each character of an alignment."""
    spans, step = [], 0
    for label, run in itertools.groupby(path):
        end = step + len(list(run))
        if label != blank:
            spans.append((step, end))
        step = end
    return spans
