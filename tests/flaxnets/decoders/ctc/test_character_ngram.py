"""The character n-gram model against dictionaries, and in the search."""

from collections import Counter, defaultdict

import numpy as np
import pytest
import safetensors.numpy

from flaxnets.decoders.ctc import CharacterNgram, beam_search, train_ngram
from tests.flaxnets.decoders.ctc.reference import draw_log_probs

CHARACTERS = 4
History = tuple[int, ...]


def draw_texts(count: int = 60) -> list[list[int]]:
    """Returns texts of a Markov chain, of which some are empty."""
    generator = np.random.default_rng(0)
    chain = generator.dirichlet(np.full(CHARACTERS, 0.4), CHARACTERS + 1)
    texts = []
    for _ in range(count):
        text = [0]
        for _ in range(generator.integers(0, 9)):
            text.append(int(generator.choice(CHARACTERS, p=chain[text[-1]])) + 1)
        texts.append(text[1:])
    return texts


class Reference:
    """Modified Kneser-Ney smoothing by its definition, in dictionaries."""

    def __init__(self, texts: list[list[int]], order: int, minimum_count: int):
        occurrences: defaultdict[History, Counter[int]] = defaultdict(Counter)
        before: defaultdict[tuple[History, int], set[int]] = defaultdict(set)
        for text in texts:
            symbols = (0, *text, 0)
            for position in range(1, len(symbols)):
                for length in range(min(order - 1, position) + 1):
                    context = symbols[position - length : position]
                    occurrences[context][symbols[position]] += 1
                    if position > length:
                        event = symbols[position]
                        before[context, event].add(symbols[position - length - 1])
        self.counts: dict[History, dict[int, int]] = {}
        self.discounts: list[list[float]] = []
        for length in range(order):
            own = {
                context: dict(events)
                if length == order - 1 or context[:1] == (0,)
                else {event: len(before[context, event]) for event in events}
                for context, events in occurrences.items()
                if len(context) == length
            }
            of_counts = Counter(count for events in own.values() for count in events.values())
            ratio = of_counts[1] / max(of_counts[1] + 2 * of_counts[2], 1)
            discounts = [0.0]
            for count in (1, 2, 3):
                more = (count + 1) * ratio * of_counts[count + 1] / max(of_counts[count], 1)
                discounts.append(min(max(count - more, 0.1), count - 0.1))
            self.discounts.append(discounts)
            self.counts |= {
                context: events
                for context, events in own.items()
                if not context or occurrences[context].total() >= minimum_count
            }
        self.order = order

    def probability(self, event: int, history: History) -> float:
        context = history[max(0, len(history) - self.order + 1) :]
        while context not in self.counts:
            context = context[1:]
        counts, discounts = self.counts[context], self.discounts[len(context)]
        lower = self.probability(event, context[1:]) if context else 1 / (CHARACTERS + 1)
        own = counts.get(event, 0)
        left_over = sum(discounts[min(count, 3)] for count in counts.values())
        return (own - discounts[min(own, 3)] + left_over * lower) / sum(counts.values())


@pytest.mark.parametrize(("order", "minimum_count"), [(1, 1), (2, 1), (3, 2), (5, 1), (5, 3)])
def test_equals_dictionaries(order: int, minimum_count: int) -> None:
    texts = draw_texts()
    model = train_ngram(texts, CHARACTERS, order=order, minimum_count=minimum_count)
    tables = model.automaton()
    reference = Reference(texts, order, minimum_count)
    assert model.num_states == len(reference.counts)
    following, log_probs = np.asarray(tables.next_states), np.asarray(tables.log_probs)
    np.testing.assert_allclose(np.exp(log_probs.astype(float)).sum(axis=1), 1, rtol=1e-6)
    bits, events = 0.0, 0
    for text in [*texts, [4, 4, 4, 4, 3, 3, 2, 1, 2, 1], [1, 3, 1, 3, 4, 2]]:
        state = 0
        history: History = (0,)
        for event in (*text, 0):
            expected = [reference.probability(other, history) for other in range(CHARACTERS + 1)]
            np.testing.assert_allclose(np.exp(log_probs[state]), expected, rtol=1e-5)
            bits -= np.log2(expected[event])
            events += 1
            state, history = following[state, event], (*history, event)
        assert state == -1  # The end of text.
    found = model.bits_per_character([*texts, [4, 4, 4, 4, 3, 3, 2, 1, 2, 1], [1, 3, 1, 3, 4, 2]])
    np.testing.assert_allclose(found, bits / events, rtol=1e-6)


def test_longer_contexts_predict_training_texts_better() -> None:
    texts = draw_texts(400)
    bits = [
        train_ngram(texts, CHARACTERS, order=order).bits_per_character(texts) for order in (1, 2, 4)
    ]
    assert bits[0] > bits[1] > bits[2] > 0
    assert bits[0] < np.log2(CHARACTERS + 1)


def test_saved_as_safetensors() -> None:
    model = train_ngram(draw_texts(), CHARACTERS, order=3)
    saved = safetensors.numpy.save(model.to_arrays())
    loaded = CharacterNgram.from_arrays(safetensors.numpy.load(saved))
    for table, again in zip(model.automaton(), loaded.automaton(), strict=True):
        np.testing.assert_array_equal(table, again)
    broken = model.to_arrays()
    assert {broken[name].dtype.itemsize for name in ("backoffs", "events")} == {1}
    broken["backoffs"] = np.full_like(broken["backoffs"], 10**6, np.int32)
    with pytest.raises(ValueError, match="arrays: expected states"):
        CharacterNgram.from_arrays(broken)
    del broken["events"]
    with pytest.raises(ValueError, match=r"arrays: expected .* received no events"):
        CharacterNgram.from_arrays(broken)


@pytest.mark.parametrize("blank", [0, 4])
def test_a_beam_weighs_texts_by_the_model(blank: int) -> None:
    model = train_ngram(draw_texts(), CHARACTERS, order=3)
    log_probs = draw_log_probs(8, 3, 8, CHARACTERS + 1)
    found = beam_search(
        log_probs,
        np.array([8, 7, 4]),
        width=20,
        results=20,
        characters=4,
        blank=blank,
        language_model=model.automaton(blank=blank),
        weight=0.5,
    )
    for row in range(3):
        for slot in range(20):
            tokens = np.asarray(found.tokens[row, slot, : found.lengths[row, slot]])
            if not np.isfinite(found.scores[row, slot]):
                continue
            # Ids of the model count the characters from 1; the classes leave out the blank.
            ids = tokens + (tokens < blank)
            nats = model.bits_per_character([ids]) * (len(ids) + 1) * np.log(2)
            expected = found.log_probabilities[row, slot] - 0.5 * nats
            np.testing.assert_allclose(found.scores[row, slot], expected, rtol=1e-4)
    assert np.isfinite(found.scores[:, 0]).all()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"texts: expected character ids in \[1,4\], received 2 to 5"
    ):
        train_ngram([[2, 5]], CHARACTERS)
    with pytest.raises(ValueError, match="texts: expected at least one"):
        train_ngram([], CHARACTERS)
    with pytest.raises(ValueError, match="order: expected"):
        train_ngram([[1]], CHARACTERS, order=0)
    with pytest.raises(ValueError, match="minimum_count: expected"):
        train_ngram([[1]], CHARACTERS, minimum_count=0)
    with pytest.raises(ValueError, match="blank: expected"):
        train_ngram([[1]], CHARACTERS).automaton(blank=5)
