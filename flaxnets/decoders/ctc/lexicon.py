"""Lexicon: the automaton of texts whose words are all in a list."""

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flaxnets.decoders.ctc.automaton import Automaton, make_automaton

logger = logging.getLogger(__name__)


def make_lexicon(
    words: Iterable[Sequence[int] | np.ndarray],
    num_characters: int,
    *,
    separators: Iterable[int] = (),
    blank: int = 0,
) -> Automaton:
    """Returns a prefix tree of words; separators lead from the end of a word back to its root.

    Texts are words with one or more separators between them, before or after them; the empty text
    is one. The tables take 8 · N · (K+1) bytes for a tree of N prefixes.

    >>> lexicon = make_lexicon([[1, 2], [1, 3]], 4, separators=[4])
    >>> lexicon.next_states[0].tolist()  # 1 begins a word, 4 separates
    [-1, 1, -1, -1, 0]

    Args:
      words: sequences of character ids in [1,K], not empty and without separators.
      num_characters: K.
      separators: character ids that stand between words: the blank space, punctuation. None: each
        text is one word.
      blank: class of the blank of the logits.

    Raises:
      ValueError: no words, an empty one, one with a separator in it, or ids outside of [1,K].
    """
    between = sorted({int(separator) for separator in separators})
    _check_ids("separators", between, num_characters)
    children: list[dict[int, int]] = [{}]
    ends: set[int] = {0}
    for number, word in enumerate(words):
        ids: list[Any] = np.asarray(word).tolist()
        _check_ids(f"words[{number}]", ids, num_characters)
        if not ids or not set(ids).isdisjoint(between):
            raise ValueError(
                f"words[{number}]: expected at least one character and no separator, received ids "
                f"{ids}; split words at separators first"
            )
        state = 0
        for character in ids:
            if character not in children[state]:
                children[state][character] = len(children)
                children.append({})
            state = children[state][character]
        ends.add(state)
    if len(children) == 1:
        raise ValueError("words: expected at least one, received none")
    next_states = np.full((len(children), num_characters + 1), -1, np.int32)
    for state, arcs in enumerate(children):
        next_states[state, list(arcs)] = list(arcs.values())
    complete = np.array(sorted(ends))
    next_states[np.ix_(complete, np.array(between, int))] = 0
    log_probs = np.where(next_states >= 0, 0, -np.inf)
    log_probs[complete, 0] = 0  # The end of text.
    return make_automaton(next_states, log_probs, blank)


def is_of_word(character: str) -> bool:
    """Returns True for letters and combining marks, of which words consist."""
    return unicodedata.category(character)[0] in "LM"


def make_word_lexicon(words: Sequence[str], alphabet: Sequence[str]) -> Automaton:
    """Returns the automaton of texts of these words, with all other characters between them.

    Words with characters that the alphabet lacks cannot be read: they are left out, and counted in
    the log.

    >>> lexicon = make_word_lexicon(["ab", "a"], (" ", "a", "b"))
    >>> lexicon.next_states[0].tolist()  # " " separates, "a" begins a word
    [-1, 0, 1, -1]

    Args:
      words: of letters and marks only, in NFC.
      alphabet: characters of the ids 1 to K, in NFC.

    Raises:
      ValueError: no word is of the alphabet's characters.
    """
    ids = {character: number for number, character in enumerate(alphabet, 1)}
    unknown = [word for word in words if any(character not in ids for character in word)]
    if unknown:
        logger.info(
            "lexicon: %d of %d words have characters that the alphabet lacks and are left out: %s",
            *(len(unknown), len(words), ", ".join(unknown[:3]) + ", …" * (len(unknown) > 3)),
        )
    if len(unknown) == len(words):
        raise ValueError(
            "search.lexicon: expected words of the alphabet's characters, received none among "
            f"{len(words)}; is it a list for another script?"
        )
    left_out = set(unknown)
    known = [[ids[character] for character in word] for word in words if word not in left_out]
    between = [number for character, number in ids.items() if not is_of_word(character)]
    return make_lexicon(known, len(ids), separators=between)


def _check_ids(name: str, ids: Sequence[int], num_characters: int) -> None:
    wrong = [character for character in ids if not 1 <= character <= num_characters]
    if wrong:
        raise ValueError(
            f"{name}: expected character ids in [1,{num_characters}], received {wrong[0]}"
        )
