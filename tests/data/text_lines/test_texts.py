"""Embedded texts: lengths, characters, splits."""

from collections import Counter

import numpy as np
import pytest

from data.text_lines.texts import ALPHABET, LEAST, MOST, WORDS, draw_text, split_of


def test_texts_belong_to_their_split_and_use_every_character() -> None:
    counts: Counter[str] = Counter()
    by_split = {}
    for split in ("train", "validation", "test"):
        texts = [draw_text(np.random.default_rng(i), split) for i in range(1500)]
        by_split[split] = set(texts)
        assert all(split_of(text) == split for text in texts)
        assert all(LEAST <= len(text) <= MOST and text == text.strip() for text in texts)
        assert len(by_split[split]) > 1300
        counts.update("".join(texts))
    assert not ALPHABET.unknown(counts)
    assert set(counts) == set(ALPHABET.characters)
    assert min(counts.values()) > 50
    assert not by_split["train"] & (by_split["validation"] | by_split["test"])
    assert not by_split["validation"] & by_split["test"]


def test_words_are_different_and_splits_have_their_shares() -> None:
    assert len(set(WORDS)) == len(WORDS) > 350
    shares = Counter(split_of(str(number)) for number in range(5000))
    assert shares["train"] / 5000 == pytest.approx(0.8, abs=0.03)
    assert shares["test"] / 5000 == pytest.approx(0.1, abs=0.02)
    with pytest.raises(ValueError, match="split: expected one of train"):
        draw_text(np.random.default_rng(0), "dev")
