"""Words, vocabulary and padding of captions."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.captions.vocabulary import (
    BOS,
    EOS,
    PAD,
    UNK,
    Vocabulary,
    mirror_caption,
    pad_captions,
    split_words,
)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A child in a pink dress .", "a child in a pink dress"),
        ("A man's T-shirt, snow-covered.", "a man 's t-shirt snow-covered"),
        ("a man 's dog", "a man 's dog"),
        ("The dogs' owner\N{RIGHT SINGLE QUOTATION MARK}s hat", "the dogs owner 's hat"),
        ("He doesn't , it's 'quoted' \"too\"", "he doesn't it 's quoted too"),
        ("merry-go-round -- and -dash- ; #1 (3.5) & 'sun'", "merry-go-round and dash 1 3 5 sun"),
        ("O'Brien's Café_bar", "o'brien 's café bar"),
        (" \t. , !", ""),
        ("", ""),
    ],
)
def test_words_of_a_caption(caption: str, words: str) -> None:
    assert split_words(caption) == words.split()
    assert split_words(words) == words.split()


def test_left_and_right_change_places_in_a_mirror() -> None:
    caption = "Left of a right-handed man, on the LEFT, a bright leftover rights ."
    mirrored = "right of a left-handed man, on the right, a bright leftover rights ."
    assert mirror_caption(caption) == mirrored
    assert split_words(mirror_caption(mirrored)) == split_words(caption)


def test_ids_follow_frequency_and_the_alphabet() -> None:
    vocabulary = Vocabulary.from_captions(["b a b.", "C c b", "a d"], min_count=2)
    assert vocabulary.words == ("b", "a", "c")
    assert len(vocabulary) == 7
    assert vocabulary.encode("A b, d c") == [5, 4, UNK, 6, EOS]
    assert vocabulary.encode("...") == [EOS]
    assert [vocabulary.word(i) for i in range(7)] == ["<pad>", "<bos>", "<eos>", "<unk>", *"bac"]


def test_the_order_of_captions_does_not_matter() -> None:
    captions = ["a dog runs", "the dog", "a cat", "two cats run"]
    assert Vocabulary.from_captions(captions, 1) == Vocabulary.from_captions(captions[::-1], 1)


def test_decoding_stops_at_the_end() -> None:
    vocabulary = Vocabulary(("dog", "a"))
    ids = np.asarray([BOS, 5, 4, UNK, PAD, EOS, 4, 99], np.int32)
    assert vocabulary.decode(ids) == "a dog <unk>"
    assert vocabulary.decode([]) == ""
    assert vocabulary.decode(vocabulary.encode("A dog.")) == "a dog"
    for wrong in (6, -1):
        with pytest.raises(ValueError, match=f"ids: expected 0 to 5, received {wrong}"):
            vocabulary.decode([4, wrong])


def test_saved_and_loaded(tmp_path: Path) -> None:
    vocabulary = Vocabulary(("hund", "größe", "'s", "t-shirt"))
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded == vocabulary
    assert loaded.digest == vocabulary.digest
    assert pickle.loads(pickle.dumps(loaded)).encode("hund 's x") == [4, 6, UNK, EOS]
    vocabulary.require_same(loaded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: "no json", "as Vocabulary.save writes it"),
        (lambda content: json.dumps([1]), "no list of words"),
        (lambda content: json.dumps({**content, "words": "abc"}), "no list of words"),
        (lambda content: json.dumps({**content, "words": [1]}), "no list of words"),
        (lambda content: json.dumps({**content, "format": 9}), "format 1, received 9"),
        (lambda content: json.dumps({**content, "words": ["b", "a"]}), "under the digest"),
    ],
)
def test_a_damaged_file(tmp_path: Path, change: Callable, message: str) -> None:
    path = tmp_path / "vocabulary.json"
    Vocabulary(("a", "b")).save(path)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message):
        Vocabulary.load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Vocabulary.load(tmp_path / "vocabulary.json")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "b", "c"), r"this one of 6 ids.* of 7, lacks 1 words \(c\)$"),
        (("a",), r"has besides 1 words \(b\)$"),
        (("a", "c"), r"lacks 1 words \(c\); has besides 1 words \(b\)"),
        (("b", "a"), "another order: id 4 is 'a' instead of 'b'"),
    ],
)
def test_another_vocabulary_is_refused(words: tuple[str, ...], message: str) -> None:
    mine, other = Vocabulary(("a", "b")), Vocabulary(words)
    assert mine != other
    assert mine.digest != other.digest
    with pytest.raises(ValueError, match=message):
        mine.require_same(other)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "b", "a"), "expected each once, received a repeatedly"),
        (("Dog",), "as split_words gives them, received Dog"),
        (("<unk>",), "as split_words gives them"),
        (("two words",), "as split_words gives them"),
    ],
)
def test_words_that_cannot_occur(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary(words)


def test_no_frequent_words() -> None:
    with pytest.raises(ValueError, match="occur 5 times, received 2 different words"):
        Vocabulary.from_captions(["a dog"])
    with pytest.raises(ValueError, match="min_count: expected at least 1"):
        Vocabulary.from_captions(["a dog"], 0)


def test_padding() -> None:
    tokens, lengths = pad_captions([[4, 5, EOS], np.asarray([6, EOS])], 3, 4)
    assert tokens.dtype == lengths.dtype == np.int32
    assert tokens.tolist() == [[4, 5, 2, 0], [6, 2, 0, 0], [0, 0, 0, 0]]
    assert lengths.tolist() == [3, 2, 0]
    for num_captions, num_tokens in ((1, 4), (2, 2)):
        with pytest.raises(ValueError, match="received 2, the longest of 3"):
            pad_captions([[4, 5, EOS], [6, EOS]], num_captions, num_tokens)
