"""Words, vocabulary and padding of captions."""

import json
import pickle
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from data.captions.vocabulary import (
    BOS,
    EOS,
    PAD,
    UNK,
    Vocabulary,
    join_words,
    mirror_caption,
    pad_captions,
    separate_words,
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


@pytest.mark.parametrize(
    "words",
    [
        "एक कुत्ता घास पर दौड़ रहा है",  # Hindi
        "একটি কুকুর ক্ষেতে দৌড়াচ্ছে র\u200d্যাব",  # Bengali
        "ஒரு நாய் புல்வெளியில் ஓடுகிறது",  # Tamil
        "ఒక కుక్క గడ్డి మీద పరుగెడుతోంది",  # Telugu
        "ಒಂದು ನಾಯಿ ಹುಲ್ಲಿನ ಮೇಲೆ",  # Kannada
        "ഒരു നായ പുല്ലിൽ ഓടുന്നു",  # Malayalam
        "ਇੱਕ ਕੁੱਤਾ ਘਾਹ ਤੇ",  # Panjabi
        "كَلْبٌ يَجْرِي عَلَى العُشْبِ",  # vocalised Arabic
        "سگ می\u200cدود کتاب\u200cها",  # Persian
        "כֶּלֶב רָץ צה״ל ג׳ירפה",  # pointed Hebrew
        "một con chó đang chạy trên bãi cỏ",  # Vietnamese
        "한국어 개가 잔디 위를 달린다",  # Korean
        "ውሻ በሣር ላይ ይሮጣል",  # Amharic
        "col·laboració i̇stanbul ծնո՞ւնդ",
    ],
)
def test_words_of_many_scripts_are_not_torn(words: str) -> None:
    for form in ("NFC", "NFD", "NFC"):
        given = unicodedata.normalize(form, words)
        assert split_words(given) == unicodedata.normalize("NFC", words).split()
        assert split_words(f"«{given}», {given}!")[:2] == split_words(words)[:2]
    assert join_words(split_words(words)) == unicodedata.normalize("NFC", words)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("两只狗在草地上跑。", "两 只 狗 在 草 地 上 跑"),
        ("犬がコンピューターで走る", "犬 が コンピューター で 走 る"),
        ("เด็กดื่มน้ำ", "เ ด็ ก ดื่ ม น้ำ"),
        ("ຫມາແລ່ນ", "ຫ ມ າ ແ ລ່ ນ"),
        ("ខ្មែរ", "ខ្មែ រ"),
        ("ခွေးပြေး", "ခွေး ပြေး"),
    ],
)
def test_scripts_without_spaces_are_split_into_characters_and_joined_again(
    caption: str, words: str
) -> None:
    assert split_words(caption) == words.split()
    assert split_words(unicodedata.normalize("NFD", caption)) == words.split()
    assert join_words(words.split()) == caption.rstrip("。")
    assert separate_words(caption).split() == words.split()
    vocabulary = Vocabulary.from_captions([caption], min_count=1)
    assert vocabulary.decode(vocabulary.encode(caption)) == caption.rstrip("。")


def test_marks_of_direction_and_soft_hyphens_do_not_divide_words() -> None:
    caption = "\ufeffSnow\u00adboard\u200e \u202bשלום\u202c dog\u200d \u200ccat a\u2060b"
    assert split_words(caption) == ["snowboard", "שלום", "dog", "cat", "ab"]
    assert split_words("dog\u200bcat dog\u2028cat dog\x85cat dog\fcat") == ["dog", "cat"] * 4


PIECES = [*"aS't-. É\u0130\u03a3\u00df\u0301\u0327\u093f\u094d\u0926\u200d\u200c\u00ad"]
PIECES += [*'\u0e01\u0e33\u17d2\u1780\u4e00\u30ab\u30fc\uff9e\u2019"\u05e9\u05f4\ufe0f\U0001f44d']


@given(
    st.text(
        st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(PIECES)), max_size=20
    )
)
@settings(max_examples=500, deadline=None)
def test_words_of_any_text(text: str) -> None:
    words = split_words(text)
    for form in ("NFC", "NFD"):
        assert split_words(unicodedata.normalize(form, text)) == words
    assert split_words(" ".join(words)) == words
    assert split_words(join_words(words)) == words
    assert all(split_words(word) == [word] for word in words)
    # No letter is lost, and none of the marks that follow it.
    kept = unicodedata.normalize("NFC", regex.sub(r"(?![\u200b-\u200d])\p{Cf}", "", text.lower()))
    attached = regex.findall(r"[\p{L}\p{N}]\p{M}*", kept)
    assert regex.findall(r"[\p{L}\p{N}]\p{M}*", " ".join(words)) == attached


@given(st.text(st.characters(max_codepoint=127), max_size=30))
@settings(max_examples=300, deadline=None)
def test_words_of_ascii_are_those_of_all_scripts(text: str) -> None:
    # The accented letter takes the way of other scripts.
    assert split_words(text + " é") == [*split_words(text), "é"]


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


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("一\u200c只", ["一", "只"]),
        ("น\u200cا", ["น", "ا"]),
        ("ض\u200cー", ["ض", "ー"]),
        ("e\u200d\u200d犬", ["e", "犬"]),
        ("ca\u0301\u200d\u0301\u200d e\u00ad\u200d", ["cá\u0301", "e"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("क्\u200dष", ["क्\u200dष"]),
    ],
)
def test_joiners_that_join_nothing_are_dropped(caption: str, words: list[str]) -> None:
    for form in ("NFC", "NFD"):
        assert split_words(unicodedata.normalize(form, caption)) == [
            unicodedata.normalize("NFC", word) for word in words
        ]
    assert Vocabulary.from_captions([caption], min_count=1).decode(
        Vocabulary.from_captions([caption], min_count=1).encode(caption)
    )
