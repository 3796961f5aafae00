"""Texts as tokens: Penn Treebank's convention, characters, unknown ones."""

from pathlib import Path

import numpy as np
import pytest

from data.datasets.token_files import find_corpus, read_and_cut, read_tokens
from data.series.streams import StreamWindows
from data.series.vocabulary import UnknownTokens
from tests.data.shared_data import shared

PARTS = {
    "train": " the cat <unk> the mat \n the dog \n",
    "valid": " the bird <unk> \n",
    "test": " a cat \n",
}


def corpus(folder: Path, form: str) -> Path:
    for name, text in PARTS.items():
        (folder / form.format(name)).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "form", ["ptb.{}.txt", "{}.txt", "wiki.{}.tokens", "my{}.txt", "a{{}}-{}.txt"]
)
def test_words(tmp_path: Path, form: str) -> None:
    found = read_tokens(find_corpus(corpus(tmp_path, form)))
    # Frequent words first, then by code point; the ends of the two lines count.
    assert found.vocabulary.tokens == ("the", "<eos>", "<unk>", "cat", "dog", "mat")
    assert found.texts["train"].tolist() == [0, 3, 2, 0, 5, 1, 0, 4, 1]
    assert found.texts["validation"].tolist() == [0, 2, 2, 1]
    assert found.texts["test"].tolist() == [2, 3, 1]
    assert len(found.notes) == 2
    assert "<unk> for 1 of 4 tokens, 1 others: 'bird' once" in found.notes[0]


def test_words_that_training_never_had(tmp_path: Path) -> None:
    root = corpus(tmp_path, "{}.txt")
    (root / "train.txt").write_text("the cat\n")
    with pytest.raises(
        UnknownTokens, match=r"valid.txt: .* received 2 others: '<unk>' once, 'bird"
    ):
        read_tokens(find_corpus(root))
    marked = read_tokens(find_corpus(root), with_unknown=True)
    assert marked.vocabulary.tokens[0] == "<unk>"
    again = read_tokens({"test": root / "test.txt"}, vocabulary=marked.vocabulary)
    np.testing.assert_array_equal(again.texts["test"], marked.texts["test"])


def test_characters_that_training_never_had(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("aabb" * 5 + "abé€é", encoding="utf-8")
    with pytest.raises(
        UnknownTokens,
        match=r"a\.txt, validation: .* 2 others: 'é' \(U\+00E9 .*\) 2 times, '€' \(U\+20AC .*once",
    ):
        read_and_cut(path, shares=(0.8, 0.2))
    found = read_and_cut(path, shares=(0.8, 0.2), with_unknown=True)
    assert found.texts["validation"].tolist() == [1, 2, 0, 0, 0]
    assert "<unk> for 3 of 5 tokens" in found.notes[0]


def test_line_ends_and_marks(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xef\xbb\xbfone two\r\n\r\nthree \x0c four")
    words = read_tokens({"train": path})
    assert words.vocabulary.decode(words.texts["train"]) == [
        *("one", "two", "<eos>", "<eos>", "three", "four", "<eos>"),
    ]
    characters = read_tokens({"train": path}, "character")
    text = "".join(characters.vocabulary.decode(characters.texts["train"]))
    assert text == "one two\r\n\r\nthree \x0c four"
    words = read_and_cut(path, "word", shares=(0.5, 0.5), with_unknown=True)
    assert [len(ids) for ids in words.texts.values()] == [3, 4]


def test_several_corpora_in_a_folder_are_refused(tmp_path: Path) -> None:
    corpus(tmp_path, "my{}.txt")
    (tmp_path / "alonetrain.txt").write_text("without a validation file")
    assert set(find_corpus(tmp_path)) == {"train", "validation", "test"}
    corpus(tmp_path, "your{}.txt")
    with pytest.raises(ValueError, match=r"one corpus, received mytrain\.txt, yourtrain\.txt"):
        find_corpus(tmp_path)
    corpus(tmp_path, "ptb.{}.txt")
    assert find_corpus(tmp_path)["train"].name == "ptb.train.txt"


def test_a_text_that_is_too_short_for_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one line of words")
    with pytest.raises(ValueError, match=r"lines, at whose ends words are cut, .* received 1;"):
        read_and_cut(path, "word")
    path.write_text("abc")
    with pytest.raises(ValueError, match=r"characters, for the shares \(0\.9, 0\.05, 0\.05\), rec"):
        read_and_cut(path, shares=(0.9, 0.05, 0.05))


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="or a folder of texts, there is none"):
        find_corpus(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"expected a training file named ptb\.train\.txt"):
        find_corpus(tmp_path)
    path = tmp_path / "a.txt"
    path.write_text(" \n")
    with pytest.raises(ValueError, match="expected a text, received an empty one"):
        read_tokens({"train": path})
    path.write_text("a b")
    with pytest.raises(ValueError, match="files: expected a training text"):
        read_tokens({"test": path})
    with pytest.raises(ValueError, match=r"files: expected splits among train, .* received dev"):
        read_tokens({"train": path, "dev": path})
    with pytest.raises(ValueError, match="unit: expected 'word' or 'character'"):
        read_tokens({"train": path}, "byte")
    for shares in ((1.0,), (0.5, 0.6), (1.0, 0.0)):
        with pytest.raises(ValueError, match="shares: expected two or three above 0"):
            read_and_cut(path, shares=shares)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="expected text in UTF-8"):
        read_and_cut(path)


def test_tiny_shakespeare() -> None:
    found = read_and_cut(shared("tinyshakespeare/input.txt"))
    assert len(found.vocabulary) == 65
    assert {split: len(ids) for split, ids in found.texts.items()} == {
        "train": 1_003_854,
        "validation": 111_540,
    }
    assert found.notes == ()
    text = "".join(found.vocabulary.decode(found.texts["train"][:14]))
    assert text == "First Citizen:"
    windows = StreamWindows(found.texts["train"], rows=64, window=128)
    assert windows.num_predicted == 1_003_853
    assert windows.plan(train=True).batches_per_epoch == -(-15_686 // 128)
