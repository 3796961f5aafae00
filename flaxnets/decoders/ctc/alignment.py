"""Alignment of a text with the steps of its logits: the span and the confidence of each character.

The best alignment of a given text (Viterbi), by the recursion of ``loss`` with maxima for sums. A
character's span holds the steps at which it is emitted itself; models trained with CTC emit short
peaks with blanks between them, so who crops characters puts the borders into the middle of the
gaps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.decoders.ctc.loss import (
    IMPOSSIBLE,
    Emissions,
    bounded_log_softmax,
    check_arguments,
    emissions,
    fits,
    repeats,
)
from flaxnets.typing import Array


class Spans(NamedTuple):
    """Spans of the characters of a text; zeros beyond its length, and where it does not fit."""

    starts: Array
    """(B,L) int32: first step of each character."""
    ends: Array
    """(B,L) int32: the step after its last one."""
    confidences: Array
    """(B,L) float32 in [0,1]: the character's largest probability within its span."""


def align(
    logits: Array, steps: Array, labels: Array, label_lengths: Array, *, blank: int = 0
) -> Spans:
    """Returns the spans of the labels in their most probable alignment.

    >>> logits = 9 * jax.nn.one_hot(jnp.array([[0, 1, 1, 0, 2]]), 3)
    >>> spans = align(logits, jnp.array([5]), jnp.array([[1, 2]]), jnp.array([2]))
    >>> spans.starts.tolist(), spans.ends.tolist()
    ([[1, 4]], [[3, 5]])

    Args:
      logits: (B,S,K) float, logits or log-probabilities; computed in float32 at least.
      steps: (B,) integers in [0,S], valid steps.
      labels: (B,L) integers in [0,K), none of them ``blank``; padded with anything.
      label_lengths: (B,) integers in [0,L].
      blank: class of the blank.

    Raises:
      ValueError: as ``ctc_losses``.
    """
    steps, labels, lengths = check_arguments(logits, steps, labels, label_lengths, blank)
    s = logits.shape[1]
    valid = jnp.arange(s) < steps[:, None]
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    log_probs = bounded_log_softmax(jnp.where(valid[..., None], wide, 0))
    emitted = emissions(log_probs, steps, labels, blank)
    positions = _best_labels(emitted, repeats(labels), lengths)  # (S,B), -1 in blanks
    possible = fits(labels, lengths, steps)
    emits = positions.T[..., None] == jnp.arange(labels.shape[1])  # (B,S,L)
    emits &= (valid & possible[:, None])[..., None]
    counts = jnp.sum(emits, axis=1, dtype=jnp.int32)
    starts = jnp.where(counts > 0, jnp.argmax(emits, axis=1), 0).astype(jnp.int32)
    of_labels = emitted.label[..., 1:].swapaxes(0, 1)
    best = jnp.max(jnp.where(emits, of_labels, IMPOSSIBLE), axis=1, initial=IMPOSSIBLE)
    return Spans(starts, starts + counts, jnp.exp(best).astype(jnp.float32))


def _best_labels(emitted: Emissions, repeated: Array, lengths: Array) -> Array:
    """Returns the number of the label in which the best alignment is at each step, (S,B) int32.

    Blanks give -1. States have numbers: the blank before label i is 2i, label i is 2i+1; a step
    moves on by 0, 1 or 2 of them. Moves are kept as int8 for the way back.
    """
    _, b, columns = emitted.label.shape
    dtype = emitted.label.dtype
    start = jnp.where(jnp.arange(columns) == 0, jnp.zeros((), dtype), IMPOSSIBLE)
    impossible = jnp.full((b, columns), IMPOSSIBLE, dtype)

    def step(state: tuple[Array, Array], emission: Emissions) -> tuple[tuple[Array, Array], Array]:
        blanks, labels = state  # Column i of labels: label i-1, the state before blank i.
        either = jnp.maximum(blanks, labels)
        from_label = labels > blanks
        shift = ((0, 0), (1, 0))
        skip = jnp.pad(from_label[:, :-1] & ~repeated, shift)
        before = jnp.where(repeated, blanks[:, :-1], either[:, :-1])
        before = jnp.pad(before, shift, constant_values=IMPOSSIBLE)
        moved = jnp.where(before > labels, jnp.where(skip, 2, 1), 0)
        moves = jnp.stack([from_label, moved], axis=1).astype(jnp.int8)
        return (either + emission.blank, jnp.maximum(labels, before) + emission.label), moves

    (blanks, labels), moves = jax.lax.scan(
        step, (jnp.broadcast_to(start, (b, columns)), impossible), emitted
    )
    last = jnp.stack([blanks, labels], axis=1)  # (B,2,L+1)
    last = jnp.take_along_axis(last, lengths[:, None, None], axis=2)[:, :, 0]
    final = 2 * lengths - (last[:, 1] > last[:, 0])

    def back(state: Array, moves: Array) -> tuple[Array, Array]:
        # Blank 2i is column i, label 2i+1 column i+1.
        taken = jax.vmap(lambda row, kind, column: row[kind, column])(
            moves, state % 2, (state + 1) // 2
        )
        return state - taken, jnp.where(state % 2 == 1, state // 2, -1)

    return jax.lax.scan(back, final, moves, reverse=True)[1]
