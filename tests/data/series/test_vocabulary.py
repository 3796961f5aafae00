"""Vocabularies: order, round trip, unknown tokens named and counted."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.series.vocabulary import UnknownTokens, Vocabulary


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1))
def test_round_trip_of_any_characters(text: str) -> None:
    vocabulary = Vocabulary.from_characters(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32
    assert "".join(vocabulary.decode(ids)) == text
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert again == vocabulary
    np.testing.assert_array_equal(again.encode(list(text)), ids)


def test_frequent_words_first() -> None:
    vocabulary = Vocabulary.from_tokens(["b", "a", "b", "c", "a", "b"])
    assert vocabulary.tokens == ("b", "a", "c")
    assert Vocabulary.from_tokens(["<unk>", "a", "a"], with_unknown=True).tokens == ("a", "<unk>")
    assert "a" in vocabulary
    assert "d" not in vocabulary


def test_unknown_tokens() -> None:
    vocabulary = Vocabulary.from_characters("abc")
    with pytest.raises(
        UnknownTokens, match=r"test: .* 2 others: 'é' \(U\+00E9 .* 2 times, 'd' \("
    ) as e:
        vocabulary.encode("abédé", "test")
    assert e.value.counts == {"é": 2, "d": 1}
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)
    with pytest.raises(UnknownTokens, match="'word' once; train on texts that have them, or set"):
        vocabulary.encode(["word", "a"])
    marked = Vocabulary.from_characters("abc", with_unknown=True)
    assert marked.encode("abéd").tolist() == [1, 2, 0, 0]
    assert marked.encode(["a", "zz"]).tolist() == [1, 0]
    assert vocabulary.encode("").tolist() == []


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="tokens: expected each once, received 'a' again"):
        Vocabulary(["a", "b", "a"])
    with pytest.raises(ValueError, match="tokens: expected texts that are not empty"):
        Vocabulary([""])
    with pytest.raises(ValueError, match="tokens: expected a text with tokens, received none"):
        Vocabulary.from_tokens([])
    with pytest.raises(ValueError, match="text: expected characters"):
        Vocabulary.from_characters("")
    with pytest.raises(ValueError, match="ids: expected 0 to 2, received 3"):
        Vocabulary(["a", "b", "c"]).decode([0, 3])
    with pytest.raises(ValueError, match=r"Vocabulary\.to_json"):
        Vocabulary.from_json({"a": 0})
