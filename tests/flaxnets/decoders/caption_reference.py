"""Caption decoders in NumPy, one caption and one word at a time, written from the papers.

Complex numbers pass through: an imaginary perturbation gives derivatives (complex step).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.flaxnets.recurrent import reference

Array = np.ndarray
Params = dict[str, Any]
DecodeWord = Callable[[Array], tuple[Array, Array | None]]
"""An embedded word (E,) to logits (V,) of the next word and attention weights (R,) or None."""


def maxout_lstm(params: Params, carry: tuple[Array, Array], x: Array) -> tuple[Any, Array]:
    """Maxout LSTM of 1612.00563, section 2."""
    cell, hidden = carry
    gates = x @ params["input_kernel"] + hidden @ params["hidden_kernel"] + params["bias"]
    i, f, o, a, b = np.split(gates, 5)
    cell = reference.sigmoid(f) * cell + reference.sigmoid(i) * np.where(a.real > b.real, a, b)
    hidden = reference.sigmoid(o) * np.tanh(cell)
    return (cell, hidden), hidden


def step_of(params: Params) -> Any:
    """Returns the step of the cell that has these parameters."""
    width, columns = params["hidden_kernel"].shape
    gates = columns // width
    return {3: reference.gru, 4: reference.lstm, 5: maxout_lstm}[gates]


def zeros(params: Params) -> Any:
    """Returns a carry of zeros."""
    width, columns = params["hidden_kernel"].shape
    return np.zeros(width) if columns == 3 * width else (np.zeros(width), np.zeros(width))


def hidden_of(carry: Any) -> Array:
    return carry[1] if isinstance(carry, tuple) else carry


def affine(params: Params, name: str, x: Array) -> Array:
    return x @ params[f"{name}_kernel"] + params.get(f"{name}_bias", 0)


def attend(params: Params, regions: Array, hidden: Array) -> Array:
    """Attention weights of 1502.03044, equations 4 to 6."""
    energies = [
        np.tanh(affine(params, "key", v) + affine(params, "query", hidden)) @ params["score_vector"]
        for v in regions
    ]
    return np.exp(energies) / np.exp(energies).sum() if len(energies) else np.zeros(0)


def show_and_tell(params: Params, regions: Array, **_: Any) -> DecodeWord:
    cell = params["cell"]
    state = {"carry": zeros(cell)}
    step = step_of(cell)

    def read(x: Array) -> Array:
        state["carry"], hidden = step(cell, state["carry"], x)
        return hidden

    read(affine(params, "image", mean(regions)))
    return lambda word: (affine(params, "vocabulary", read(word)), None)


def mean(regions: Array) -> Array:
    return regions.mean(0) if len(regions) else np.zeros(regions.shape[1])


def lrcn(params: Params, regions: Array, **_: Any) -> DecodeWord:
    lower, upper = params["word_cell"], params["image_cell"]
    state = {"lower": zeros(lower), "upper": zeros(upper)}
    step = step_of(lower)

    def decode(word: Array) -> tuple[Array, None]:
        state["lower"], hidden = step(lower, state["lower"], word)
        both = np.concatenate([hidden, mean(regions)])
        state["upper"], hidden = step(upper, state["upper"], both)
        return affine(params, "vocabulary", hidden), None

    return decode


def soft_attention(params: Params, regions: Array, hard: bool = False) -> DecodeWord:
    cell = dict(params["cell"])
    cell["input_kernel"] = np.concatenate([cell["input_kernel"], params["context_kernel"]])
    starts = [
        np.tanh(affine(params, f"start_{n}", mean(regions)))
        for n in (0, 1)
        if f"start_{n}_kernel" in params
    ]
    state = {"carry": tuple(starts) if len(starts) == 2 else starts[0]}
    step = step_of(cell)

    def decode(word: Array) -> tuple[Array, Array]:
        hidden = hidden_of(state["carry"])
        weights = attend(params, regions, hidden)
        read = np.eye(len(weights))[weights.argmax()] if hard else weights
        context = read @ regions
        if "gate_kernel" in params:
            context = reference.sigmoid(affine(params, "gate", hidden)) * context
        state["carry"], hidden = step(cell, state["carry"], np.concatenate([word, context]))
        if "deep_hidden_kernel" in params:
            hidden = word + affine(params, "deep_hidden", hidden)
            hidden = hidden + affine(params, "deep_context", context)
        return affine(params, "vocabulary", hidden), weights

    return decode


def att2in(params: Params, regions: Array, **_: Any) -> DecodeWord:
    cell = dict(params["cell"])
    words = cell["input_kernel"]
    width = cell["hidden_kernel"].shape[0]
    # The context reaches the candidate: the columns after the gates i, f, o; of others, the third.
    context_rows = np.zeros((regions.shape[1], words.shape[1]), params["context_kernel"].dtype)
    first = 3 * width if words.shape[1] == 5 * width else 2 * width
    context_rows[:, first : first + params["context_kernel"].shape[1]] = params["context_kernel"]
    cell["input_kernel"] = np.concatenate([words, context_rows])
    state = {"carry": zeros(cell)}
    step = step_of(cell)

    def decode(word: Array) -> tuple[Array, Array]:
        weights = attend(params, regions, hidden_of(state["carry"]))
        x = np.concatenate([word, weights @ regions])
        state["carry"], hidden = step(cell, state["carry"], x)
        return affine(params, "vocabulary", hidden), weights

    return decode


def up_down(params: Params, regions: Array, **_: Any) -> DecodeWord:
    attention_cell, language_cell = params["attention_cell"], params["language_cell"]
    state = {"attention": zeros(attention_cell), "language": zeros(language_cell)}
    step = step_of(attention_cell)

    def decode(word: Array) -> tuple[Array, Array]:
        x = np.concatenate([hidden_of(state["language"]), mean(regions), word])
        state["attention"], hidden = step(attention_cell, state["attention"], x)
        weights = attend(params, regions, hidden)
        x = np.concatenate([weights @ regions, hidden])
        state["language"], hidden = step(language_cell, state["language"], x)
        return affine(params, "vocabulary", hidden), weights

    return decode


def caption(
    make_decode: Callable[..., DecodeWord],
    params: Params,
    regions: Array,
    tokens: Array,
    token_lengths: Array,
    mask: Array | None = None,
) -> tuple[Array, Array]:
    """Returns logits (B,C,L,V) and attention (B,C,L,R), zero from ``token_lengths`` on."""
    b, c, num_steps = tokens.shape
    logits = np.zeros((b, c, num_steps, params["vocabulary_bias"].shape[0]), complex)
    attention = np.zeros((b, c, num_steps, regions.shape[1]), complex)
    for row in range(b):
        exists = np.ones(regions.shape[1], bool) if mask is None else mask[row]
        for number in range(c):
            decode = make_decode(params, regions[row][exists])
            previous = 1
            for t in range(token_lengths[row, number]):
                word_logits, weights = decode(params["embedding"][previous])
                logits[row, number, t] = word_logits
                if weights is not None:
                    attention[row, number, t, exists] = weights
                previous = tokens[row, number, t]
    return logits, attention
