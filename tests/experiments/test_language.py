"""Language model and lexicon of readers: files, words, and what a search may find with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.text_lines.alphabet import Alphabet
from experiments.transcription.language import (
    load_language_model,
    read_words,
    save_language_model,
    train_language_model,
    words_of,
)
from flaxnets.decoders.ctc.automaton import Automaton
from flaxnets.decoders.ctc.lexicon import make_word_lexicon
from flaxnets.training.config import differences, set_chosen, set_runtime, to_dict
from flaxnets.training.workdir import LANGUAGE_MODEL
from tests.experiments import grid

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
TEXTS = ("Haus und Hof.", "Hof, Haus", "ein Hau\u0364s")
ALPHABET = Alphabet.from_texts(TEXTS)


def allows(lexicon: Automaton, text: str) -> bool:
    state = 0
    for character in ALPHABET.encode(text):
        state = int(np.asarray(lexicon.next_states)[state, character])
        if state < 0:
            return False
    return bool(np.asarray(lexicon.log_probs)[state, 0] == 0)


def test_a_saved_model_has_the_same_probabilities(tmp_path: Path) -> None:
    path = tmp_path / LANGUAGE_MODEL
    model = train_language_model(TEXTS, ALPHABET, 4)
    save_language_model(path, model)
    again = load_language_model(path, ALPHABET)
    np.testing.assert_array_equal(again.log_probs(), model.log_probs())
    other = Alphabet.from_texts(["Haus"])
    with pytest.raises(ValueError, match="expected a model of the alphabet's 4 characters"):
        load_language_model(path, other)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="damaged"):
        load_language_model(path, ALPHABET)


def test_a_lexicon_allows_its_words_with_anything_between() -> None:
    lexicon = make_word_lexicon(words_of(TEXTS), ALPHABET.characters)
    for text in ("", "Hof", "und Haus, Hof.", ". Hau\u0364s"):
        assert allows(lexicon, text), text
    for text in ("Ha", "HausHof", "uHof", "Hof d"):
        assert not allows(lexicon, text), text


def test_words_that_cannot_be_read_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "words.txt"
    path.write_text("Hof\nZebra\n\nHaus-Hund 12\n", encoding="utf-8")
    words = read_words(path)
    assert words == ["Haus", "Hof", "Hund", "Zebra"]
    with caplog.at_level("INFO"):
        assert allows(make_word_lexicon(words, ALPHABET.characters), "Haus")
    assert "1 of 4 words have characters that the alphabet lacks and are left out: Zebra" in (
        caplog.text
    )
    with pytest.raises(ValueError, match="expected words of the alphabet's characters"):
        make_word_lexicon(["Zebra"], ALPHABET.characters)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="expected UTF-8"):
        read_words(path)
    path.write_text("12\n")
    with pytest.raises(ValueError, match="expected words in"):
        read_words(path)


def config_of(tmp_path: Path, *flags: str) -> Any:
    """Returns a reader's configuration of three lines, of whose images only names count."""
    table = tmp_path / "lines.csv"
    rows = [f'{n}.png,"{text}",train' for n, text in enumerate(TEXTS)]
    table.write_text("\n".join(["file,text,split", *rows, "3.png,Hof,validation", ""]))
    return grid.parse(
        "crnn_text_lines.py", f"--config.data.list={table}", "--config.data.test_share=0", *flags
    )


def test_a_run_keeps_its_model_and_a_search_reads_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for number in range(4):
        (tmp_path / f"{number}.png").write_text(str(number))  # No copies of each other.
    config = config_of(tmp_path)
    config.save_assets(run)
    assert config.make_task().language_model is None
    flags = ("--config.search.width=3", "--config.search.language_model_weight=0.5")
    trained = config_of(tmp_path, *flags, "--config.search.lexicon=training")
    trained.load_assets(run)
    task = trained.make_task()
    np.testing.assert_array_equal(
        task.language_model.log_probs, config.language_model.automaton().log_probs
    )
    assert allows(task.lexicon, "und Hof")
    assert not allows(task.lexicon, "undHof")
    # A run without the file has the texts of its split.
    kept = (run / LANGUAGE_MODEL).read_bytes()
    (run / LANGUAGE_MODEL).unlink()
    again = config_of(tmp_path, *flags)
    again.load_assets(run)
    again.save_assets(run)
    assert (run / LANGUAGE_MODEL).read_bytes() == kept


def test_a_search_may_differ_in_evaluation_but_not_when_training_resumes() -> None:
    config = grid.parse("crnn_text_lines.py", "--config.data.dataset=synthetic")
    recorded = to_dict(config)
    set_chosen(config, {"search.width": 8, "search.language_model_weight": 0.25})
    set_runtime(config, "search.character_bonus=0.5")
    set_runtime(config, "search.lexicon=training")
    search = config.search
    assert (search.width, search.language_model_weight, search.character_bonus) == (8, 0.25, 0.5)
    assert search.lexicon == "training"
    config.validate()
    assert "search.width: 0 there, 8 now" in differences(recorded, config)
    for name in ("seed", "data.root", "search.widht"):
        with pytest.raises(ValueError, match=f"{name}: expected a field of evaluation"):
            set_chosen(config, {name: "1"})
    with pytest.raises(ValueError, match=r"search\.ngram_order: expected as it was in training"):
        set_runtime(config, "search.ngram_order=3")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("width=-1", "search.width: expected at least 0"),
        ("language_model_weight=-0.5", "search.language_model_weight: expected at least 0"),
        ("ngram_order=0", "search.ngram_order: expected at least 1"),
        ("ngram_order=11", "search.ngram_order: expected at most 10"),
    ],
)
def test_wrong_values_are_refused(flag: str, message: str) -> None:
    config = grid.parse(
        "crnn_text_lines.py", "--config.data.dataset=synthetic", f"--config.search.{flag}"
    )
    with pytest.raises(ValueError, match=message):
        config.validate()
