"""Language model and lexicon of readers of lines and speech, made of the training texts.

``flaxnets.tasks.ctc.CTCSearch`` decides whether a search reads them.
"""

from collections.abc import Iterable
from pathlib import Path

import safetensors
from safetensors.numpy import load_file, save_file

from data.files import write_atomically
from data.text_lines.alphabet import Alphabet, normalise
from flaxnets.decoders.ctc.character_ngram import CharacterNgram, train_ngram
from flaxnets.decoders.ctc.lexicon import is_of_word
from flaxnets.tasks.ctc import TRAINING, CTCSearch


def train_language_model(texts: Iterable[str], alphabet: Alphabet, order: int) -> CharacterNgram:
    """Returns the n-gram model of training texts, whose characters are all of the alphabet.

    >>> alphabet = Alphabet.from_texts(["Haus", "Hof"])
    >>> train_language_model(["Haus", "Hof"], alphabet, 3).num_characters
    6

    Args:
      texts: the training texts.
      alphabet: of the model.
      order: n, in [1,10].

    Raises:
      UnknownCharacter: a text with another character.
      ValueError: no texts, or an order out of range.
    """
    return train_ngram([alphabet.encode(text) for text in texts], len(alphabet), order=order)


def save_language_model(path: Path, model: CharacterNgram) -> None:
    """Writes an n-gram model."""
    write_atomically(path, lambda place: save_file(model.to_arrays(), place))


def load_language_model(path: Path, alphabet: Alphabet) -> CharacterNgram:
    """Returns the n-gram model of a file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, or the model of another alphabet.
    """
    try:
        model = CharacterNgram.from_arrays(load_file(path))
    except (safetensors.SafetensorError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path}: damaged ({error}); delete it, and it is trained anew from the training texts"
        ) from error
    if model.num_characters != len(alphabet):
        raise ValueError(
            f"{path}: expected a model of the alphabet's {len(alphabet)} characters, received one "
            f"of {model.num_characters}; delete it, and it is trained anew from the training texts"
        )
    return model


def words_of(texts: Iterable[str]) -> list[str]:
    """Returns the different words of texts, sorted: runs of letters and the marks on them.

    >>> words_of(["Haus, Hof 12", "Haus-Tür"])
    ['Haus', 'Hof', 'Tür']
    """
    found = set()
    for text in texts:
        spaced = "".join(c if is_of_word(c) else " " for c in normalise(text))
        found.update(spaced.split())
    return sorted(found)


def read_words(path: str | Path) -> list[str]:
    """Returns the words of a file, one or more a line, in UTF-8.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another encoding, or no words.
    """
    try:
        words = words_of(Path(path).read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"search.lexicon: expected UTF-8 in {path}, received other bytes ({error}); convert it"
        ) from error
    if not words:
        raise ValueError(f"search.lexicon: expected words in {path}, received none")
    return words


def describe_search(search: CTCSearch) -> str:
    """Returns the search in words.

    >>> describe_search(CTCSearch(width=10, language_model_weight=0.5))
    'beam of 10, 6-gram of characters × 0.5'
    """
    if not search.width:
        return "greedy"
    parts = [f"beam of {search.width}"]
    if search.language_model_weight:
        parts.append(f"{search.ngram_order}-gram of characters × {search.language_model_weight:g}")
    if search.character_bonus:
        parts.append(f"bonus {search.character_bonus:g}")
    if search.lexicon:
        own = search.lexicon == TRAINING
        parts.append(f"words of {'the training texts' if own else search.lexicon}")
    return ", ".join(parts)
