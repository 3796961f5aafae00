"""Deterministic automata over characters: the form in which a search reads language models."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from flaxnets.typing import Array


class Automaton(NamedTuple):
    """A deterministic automaton with weights: an n-gram model or a lexicon.

    State 0 is the start of a text. Column c belongs to class c of the logits; the blank's column,
    which no character uses, belongs to the end of the text.
    """

    next_states: Array
    """(N,K) int32: the state after class k; -1 where it is forbidden, and at the end of text."""
    log_probs: Array
    """(N,K) float32, nats: log p(class | state), of the end of text in the blank's column; minus
    infinity where it is forbidden. A lexicon allows with 0, so it is not normalised."""


def check_automaton(name: str, automaton: Automaton, num_classes: int) -> None:
    """Checks that an automaton's tables fit to the logits.

    Raises:
      ValueError: tables that are not (N,num_classes).
    """
    shapes = automaton.next_states.shape, automaton.log_probs.shape
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][1] != num_classes:
        raise ValueError(
            f"{name}: expected tables (N,{num_classes}), one column for each class of the logits, "
            f"received {shapes[0]} and {shapes[1]}; was it made for another alphabet?"
        )


def make_automaton(next_states: np.ndarray, log_probs: np.ndarray, blank: int) -> Automaton:
    """Returns an automaton of tables whose column 0 is the end of text.

    Args:
      next_states: (N,K) integers; the characters in columns 1 to K-1.
      log_probs: (N,K) float.
      blank: class of the blank; the columns are moved such that it is the end of text.

    Raises:
      ValueError: a blank outside of [0,K).
    """
    classes = next_states.shape[1]
    if not 0 <= blank < classes:
        raise ValueError(f"blank: expected a class in [0,{classes}), received {blank}")
    order = np.insert(np.arange(1, classes), blank, 0)
    return Automaton(
        jnp.asarray(next_states[:, order], jnp.int32), jnp.asarray(log_probs[:, order], jnp.float32)
    )
