r"""Character n-gram model with Witten-Bell smoothing, as an automaton for the search.

.. math::
    p(c | h) = \frac{n(h, c) + T(h) \, p(c | h')}{n(h) + T(h)}

where n counts events in the training texts, T(h) is the number of different events after the
context h, and h′ is h without its oldest symbol (interpolated; Witten and Bell 1991, method C; Chen
and Goodman 1998, section 2.6). Below the empty context stands the uniform distribution over the
characters and the end of text, so that every character has a probability. The start of a text is a
symbol of contexts, its end an event.

Contexts that occur at least ``minimum_count`` times are states; the state after a character is the
longest suffix of context and character that is one. So the model is a deterministic automaton: a
search carries one number for each prefix.

No library fits: KenLM is a C++ build that a scan cannot call, nltk's models are dictionaries.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from flaxnets.decoders.ctc.automaton import Automaton, make_automaton


@dataclasses.dataclass(frozen=True)
class CharacterNgram:
    """Counts of a character n-gram model.

    As an automaton it takes 8 · N · (K+1) bytes for N states and K characters.

    >>> model = train_ngram([[1, 2], [1, 2, 1]], num_characters=2, order=2, minimum_count=1)
    >>> model.num_states  # no context, and the start, 1 and 2 as contexts
    4
    >>> [round(float(p), 4) for p in np.exp(model.log_probs()[0])]  # (n + 3 / 3) / (7 + 3)
    [0.3, 0.4, 0.3]

    Attributes:
      num_characters: K, whose ids are 1 to K; 0 is the end of text as an event.
      order: n: contexts have at most n - 1 symbols.
      backoffs: (N,) int32: the state without its oldest symbol; states with shorter contexts come
        first, the empty one is 0.
      next_states: (3,M) int32: state, character and the state whose context is longer by it.
      events: (3,E) int32: state, event in [0,K], count.
      start: state at the start of a text.
    """

    num_characters: int
    order: int
    backoffs: np.ndarray
    next_states: np.ndarray
    events: np.ndarray
    start: int

    @property
    def num_states(self) -> int:
        """N."""
        return len(self.backoffs)

    def log_probs(self) -> np.ndarray:
        """Returns log p(event | state), nats, (N,K+1) float32; column 0 is the end of text."""
        counts = np.zeros((self.num_states, self.num_characters + 1))
        counts[self.events[0], self.events[1]] = self.events[2]
        kinds = (counts > 0).sum(axis=1, keepdims=True)
        sums = counts.sum(axis=1, keepdims=True)
        probabilities = np.full_like(counts, 1 / counts.shape[1])
        for states in self._by_length():
            lower = probabilities[self.backoffs[states]]
            weighted = counts[states] + kinds[states] * lower
            probabilities[states] = weighted / (sums[states] + kinds[states])
        return np.log(probabilities).astype(np.float32)

    def automaton(self, *, blank: int = 0) -> Automaton:
        """Returns the tables for ``beam_search``; the end of text is in the blank's column.

        Raises:
          ValueError: a blank outside of [0,K].
        """
        following = np.zeros((self.num_states, self.num_characters + 1), np.int32)
        states, characters, targets = self.next_states
        longer = np.full_like(following, -1)
        longer[states, characters] = targets
        for states in self._by_length():
            following[states] = following[self.backoffs[states]]
            following[states] = np.where(longer[states] >= 0, longer[states], following[states])
        following[:, 0] = -1
        # State 0 of an automaton is the start of a text, here the empty context.
        order = np.arange(self.num_states)
        order[[0, self.start]] = order[[self.start, 0]]
        swapped = np.where(following >= 0, order[following], -1)
        return make_automaton(swapped[order], self.log_probs()[order], blank)

    def bits_per_character(self, texts: Iterable[Any]) -> float:
        """Returns the cross-entropy of texts in bits for each event: characters and ends of texts.

        Args:
          texts: sequences of character ids in [1,K].

        Raises:
          ValueError: no texts, or ids outside of [1,K].
        """
        tables = self.automaton()
        following, log_probs = np.asarray(tables.next_states), np.asarray(tables.log_probs)
        nats, events = 0.0, 0
        for text in texts:
            state = 0
            for character in _check_text(text, self.num_characters).tolist():
                nats -= float(log_probs[state, character])
                state = following[state, character]
            nats -= float(log_probs[state, 0])
            events += len(text) + 1
        if not events:
            raise ValueError("texts: expected at least one, received none")
        return nats / events / float(np.log(2))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the model as int32 arrays, for safetensors; tables are computed from counts."""
        sizes = np.array([self.num_characters, self.order, self.start], np.int32)
        arrays = {"backoffs": self.backoffs, "next_states": self.next_states, "events": self.events}
        return {"sizes": sizes, **arrays}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "CharacterNgram":
        """Returns the model of ``to_arrays``.

        Raises:
          ValueError: arrays that are missing, or numbers of states outside of the model.
        """
        names = ("sizes", "backoffs", "next_states", "events")
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ValueError(f"arrays: expected {', '.join(names)}, received no {missing[0]}")
        sizes, backoffs, next_states, events = (np.asarray(arrays[name]) for name in names)
        characters, order, start = (int(size) for size in sizes)
        model = cls(characters, order, backoffs, next_states, events, start)
        n = model.num_states
        numbered = ((backoffs, n), (next_states[[0, 2]], n), (np.array([start]), n))
        limits = (*numbered, (events[0], n), (events[1], characters + 1))
        for values, limit in limits:
            if values.size and not (values.min() >= 0 and values.max() < limit):
                raise ValueError(
                    f"arrays: expected states in [0,{n}) and events in [0,{characters}], "
                    "received others; the file is damaged"
                )
        return model

    def _by_length(self) -> list[np.ndarray]:
        """Returns the numbers of the states, those of each context's length together."""
        lengths = np.zeros(self.num_states, np.int32)
        for _ in range(self.order - 1):
            # Each backoff shortens a context by one symbol.
            lengths[1:] = lengths[self.backoffs[1:]] + 1
        return [np.flatnonzero(lengths == length) for length in range(lengths.max() + 1)]


def train_ngram(
    texts: Iterable[Any], num_characters: int, *, order: int = 5, minimum_count: int = 2
) -> CharacterNgram:
    """Returns the n-gram model of training texts.

    Args:
      texts: sequences of character ids in [1,K], such as an alphabet encodes them.
      num_characters: K.
      order: n in [1,10]; contexts have at most n - 1 symbols.
      minimum_count: occurrences from which on a context is a state; more of them save memory.

    Raises:
      ValueError: no texts, ids outside of [1,K], or numbers outside of their ranges.
    """
    if not 1 <= order <= 10:
        raise ValueError(f"order: expected in [1,10], received {order}")
    if minimum_count < 1:
        raise ValueError(f"minimum_count: expected at least 1, received {minimum_count}")
    if num_characters < 1:
        raise ValueError(f"num_characters: expected at least 1, received {num_characters}")
    sequences = [_check_text(text, num_characters) for text in texts]
    if not sequences:
        raise ValueError("texts: expected at least one, received none")
    # Position i: the last symbol of a context and the event after it; 0 is both start and end.
    symbols = np.concatenate([np.concatenate([[0], text]) for text in sequences]).astype(np.int64)
    events = np.concatenate([np.concatenate([text, [0]]) for text in sequences]).astype(np.int64)
    offsets = np.concatenate([np.arange(len(text) + 1) for text in sequences])
    classes = num_characters + 1

    backoffs: list[np.ndarray] = [np.zeros(1, np.int64)]
    next_states: list[np.ndarray] = []
    counted: list[np.ndarray] = []
    states = np.zeros(len(symbols), np.int64)  # Of contexts of ``length`` symbols; -1: no state.
    total, start = 1, 0
    for length in range(order):
        if length:
            shorter, positions = states, np.flatnonzero((states >= 0) & (offsets >= length - 1))
            oldest = symbols[positions - length + 1]
            keys, firsts, inverse, counts = np.unique(
                shorter[positions] * classes + oldest,
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            kept = counts >= minimum_count
            numbers = np.where(kept, total + np.cumsum(kept) - 1, -1)
            states = np.full(len(symbols), -1, np.int64)
            states[positions] = numbers[inverse]
            backoffs.append(keys[kept] // classes)
            # The same context without its newest symbol is a state too, as it occurs as often.
            newest = positions[firsts[kept]]
            if length == 1:
                before = np.zeros(len(newest), np.int64)
                start = int(states[0]) if states[0] >= 0 else 0
            else:
                before = shorter[newest - 1]
            arcs = np.stack([before, symbols[newest], numbers[kept]])
            next_states.append(arcs[:, arcs[1] > 0])  # The start follows nothing.
            total += int(kept.sum())
        found = np.flatnonzero(states >= 0)
        pairs, counts = np.unique(states[found] * classes + events[found], return_counts=True)
        counted.append(np.stack([pairs // classes, pairs % classes, counts]))
    no_arcs = np.zeros((3, 0), np.int64)
    return CharacterNgram(
        num_characters,
        order,
        np.concatenate(backoffs).astype(np.int32),
        np.concatenate([no_arcs, *next_states], axis=1).astype(np.int32),
        np.concatenate(counted, axis=1).astype(np.int32),
        start,
    )


def _check_text(text: Any, num_characters: int) -> np.ndarray:
    ids = np.asarray(text, np.int64).reshape(-1)
    if ids.size and not (ids.min() >= 1 and ids.max() <= num_characters):
        raise ValueError(
            f"texts: expected character ids in [1,{num_characters}], received {ids.min()} to "
            f"{ids.max()}; encode them by the model's alphabet"
        )
    return ids
