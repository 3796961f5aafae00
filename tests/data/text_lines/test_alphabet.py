"""Alphabet: texts to ids and back, characters that it lacks."""

import doctest
import json
import pickle
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.text_lines import alphabet as module
from data.text_lines.alphabet import Alphabet, UnknownCharacter

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4).filter(any))
def test_texts_come_back_in_the_composed_form(texts: list[str]) -> None:
    alphabet = Alphabet.from_texts(texts)
    assert list(alphabet.characters) == sorted(set(alphabet.characters))
    for text in texts:
        ids = alphabet.encode(text)
        assert ids.dtype == np.int32
        assert not len(ids) or (ids.min() >= 1 and ids.max() <= len(alphabet))
        assert alphabet.decode(ids) == unicodedata.normalize("NFC", text)
    assert alphabet.unknown(texts) == {}


def test_decomposed_text_has_the_ids_of_the_composed_one() -> None:
    alphabet = Alphabet.from_texts(["caf\u00e9"])
    assert len(alphabet) == 4
    np.testing.assert_array_equal(alphabet.encode("cafe\u0301"), alphabet.encode("caf\u00e9"))
    # A small e above has no composed form with its letter.
    old = Alphabet.from_texts(["scho\u0364n"])
    assert "\u0364" in old
    assert len(old.encode("scho\u0364n")) == 6


def test_padding_is_left_out_and_other_ids_are_refused() -> None:
    alphabet = Alphabet(["a", "b"])
    assert alphabet.decode(np.array([2, 1, 1, 0, 0])) == "baa"
    assert alphabet.decode([]) == ""
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f"ids: expected 0 to 2, received {wrong}"):
            alphabet.decode([1, wrong])


def test_unknown_characters_are_named_with_their_code_points() -> None:
    alphabet = Alphabet.from_texts(["Haus"])
    with pytest.raises(UnknownCharacter, match=r"'ſ' \(U\+017F LATIN SMALL LETTER LONG S\)") as e:
        alphabet.encode("Hauſ")
    assert e.value.character == "ſ"
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)
    with pytest.raises(UnknownCharacter, match=r"'\\u0364' \(U\+0364"):
        alphabet.encode("Ha\u0364us")
    assert alphabet.unknown(["Maus", "aus", "Miau"]) == {"M": 2, "i": 1}


def test_json_and_pickle_keep_the_ids() -> None:
    alphabet = Alphabet.from_texts(["ſo 1\u0364"])
    again = Alphabet.from_json(json.loads(json.dumps(alphabet.to_json())))
    assert again == alphabet == pickle.loads(pickle.dumps(alphabet))
    np.testing.assert_array_equal(again.encode("so 1".replace("s", "ſ")), alphabet.encode("ſo 1"))
    with pytest.raises(ValueError, match="list of characters"):
        Alphabet.from_json("abc")


@pytest.mark.parametrize(
    ("characters", "message"),
    [
        ([], "at least one"),
        (["ab"], "one code point each, received 'ab'"),
        (["\u212b"], r"composed form \(NFC\), received '.' \(U\+212B ANGSTROM SIGN\)"),
        (["b", "a"], "order of their code points"),
        (["a", "a"], "each once"),
    ],
)
def test_bad_characters_are_refused(characters: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Alphabet(characters)
    with pytest.raises(ValueError, match="texts with characters"):
        Alphabet.from_texts(["", ""])


def test_examples_of_the_documentation() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted >= 5
