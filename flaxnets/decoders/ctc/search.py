r"""Search for the text of logits: best path, and prefix beam search with models of language.

The probability of a text is the sum over its alignments. Prefix beam search (Graves 2012,
"Supervised Sequence Labelling with Recurrent Neural Networks", section 7.5.3; Hannun et al.,
1408.2873, algorithm 1) keeps for each prefix the log-probabilities of its alignments that end in a
blank and of those that do not. At each step a prefix stays or is extended by a character; an
extension that is a prefix of the beam already is added to it. The W prefixes of the highest

.. math::
    \log p(y) + \mathrm{weight} · \log p_{LM}(y) + \mathrm{bonus} · |y|

remain; at the end of the text :math:`p_{LM}` gets its probability of the end too.

Prefixes are recognised by 64 bits of a hash, carried along with them. Two different prefixes of one
beam are taken for equal with a probability of about W²·S / 2⁶⁴ in a line, 10⁻¹⁵ for W = 10 and
S = 232. What happened is kept as the parent and the new character of each slot and step; the texts
are read from it once, at the end.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.decoders.ctc.alignment import align
from flaxnets.decoders.ctc.automaton import Automaton, check_automaton
from flaxnets.decoders.ctc.loss import (
    IMPOSSIBLE,
    SMALLEST,
    check_logits,
    ctc_losses,
    log_add,
)
from flaxnets.layers.padding import check_lengths
from flaxnets.typing import Array


class Transcripts(NamedTuple):
    """The N best texts of each row, best first.

    A slot without a text has length 0, ``log_probabilities`` and ``scores`` of minus infinity, and
    confidences of 0. Both are NaN in rows where a valid step holds NaN.
    """

    tokens: Array
    """(B,N,L) int32: characters, padded with 0."""
    lengths: Array
    """(B,N) int32 in [0,L]."""
    log_probabilities: Array
    """(B,N) float32, nats: log p(text | logits), over the alignments that were found; a lower bound
    in a beam search, exact for ``greedy``."""
    scores: Array
    """(B,N) float32: what the texts are sorted by, with language model and bonus."""
    starts: Array
    """(B,N,L) int32: first step of each character in the text's best alignment."""
    ends: Array
    """(B,N,L) int32: the step after its last one."""
    confidences: Array
    """(B,N) float32 in [0,1]: p(text | logits)."""
    character_confidences: Array
    """(B,N,L) float32 in [0,1]: each character's largest probability within its span; 0 in padding.
    """


@functools.partial(jax.jit, static_argnames=("max_length", "blank"))
def greedy(
    log_probs: Array, steps: Array, *, max_length: int | None = None, blank: int = 0
) -> Transcripts:
    """Returns the text of the most probable alignment, N = 1.

    Repeated classes are merged, then blanks are dropped. Its spans are those of that alignment.

    >>> log_probs = jax.nn.log_softmax(9 * jax.nn.one_hot(jnp.array([[1, 1, 0, 1, 2]]), 3))
    >>> found = greedy(log_probs, jnp.array([5]))
    >>> found.tokens[0, 0].tolist(), found.lengths.tolist()
    ([1, 1, 2, 0, 0], [[3]])

    Args:
      log_probs: (B,S,K) float, normalised; computed in float32.
      steps: (B,) integers in [0,S], valid steps.
      max_length: L, greatest number of characters, of which the first are returned; None: S.
      blank: class of the blank.

    Raises:
      ValueError: shapes or dtypes that do not agree, ``max_length`` less than 1, or a blank outside
        of the classes.
    """
    log_probs, steps = _check(log_probs, steps, blank)
    s = log_probs.shape[1]
    size = _check_max_length(max_length, s)
    best = jnp.argmax(log_probs, axis=2)  # (B,S)
    before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=blank)[:, :s]
    valid = jnp.arange(s) < steps[:, None]
    emits = valid & (best != blank)
    begins = emits & (best != before)
    tokens, lengths = _compact(jnp.where(begins, best, -1), size)
    # A step that emits belongs to the character that began last.
    number = jnp.cumsum(begins, axis=1) - 1
    within = (number[..., None] == jnp.arange(size)) & emits[..., None]  # (B,S,L)
    counts = jnp.sum(within, axis=1, dtype=jnp.int32)
    starts = jnp.where(counts > 0, jnp.argmax(within, axis=1), 0).astype(jnp.int32)
    highest = jnp.max(log_probs, axis=2, initial=SMALLEST)[..., None]
    peaks = jnp.exp(jnp.max(jnp.where(within, highest, IMPOSSIBLE), axis=1, initial=IMPOSSIBLE))
    log_probability = -ctc_losses(log_probs, steps, tokens, lengths, blank=blank)
    found = Transcripts(
        tokens,
        lengths,
        log_probability,
        log_probability,
        starts,
        starts + counts,
        jnp.exp(log_probability),
        peaks,
    )
    return Transcripts(*(field[:, None] for field in found))


class _Beam(NamedTuple):
    """Prefixes of the beam, (B,W); sorted by score after each step."""

    in_blank: Array
    """float32: log-probability of the alignments that end in a blank."""
    in_label: Array
    """float32: of those that end in the last character."""
    last: Array
    """int32: last character; -1 of the empty prefix."""
    lengths: Array
    """int32: number of characters."""
    hashes: tuple[Array, Array]
    """uint32: hash of the prefix."""
    parents: tuple[Array, Array]
    """uint32: hash of the prefix without its last character."""
    model_state: Array
    """int32: state of the language model."""
    model_score: Array
    """float32: log-probability of the prefix by the language model."""
    word_state: Array
    """int32: state of the lexicon."""


@functools.partial(
    jax.jit, static_argnames=("width", "max_length", "blank", "characters", "results")
)
def beam_search(
    log_probs: Array,
    steps: Array,
    *,
    width: int,
    max_length: int | None = None,
    blank: int = 0,
    language_model: Automaton | None = None,
    lexicon: Automaton | None = None,
    weight: float | Array = 1.0,
    bonus: float | Array = 0.0,
    characters: int = 16,
    results: int = 1,
) -> Transcripts:
    """Returns the best texts that a beam of prefixes finds, for a batch at once.

    Without a text of the lexicon at the end of a row, its text is the empty one.

    >>> log_probs = jnp.log(jnp.array([[[0.6, 0.4], [0.6, 0.4]]]))  # Graves, figure 7.5
    >>> found = beam_search(log_probs, jnp.array([2]), width=2, results=2)
    >>> found.tokens[0].tolist()
    [[1, 0], [0, 0]]
    >>> [round(float(confidence), 4) for confidence in found.confidences[0]]
    [0.64, 0.36]

    Args:
      log_probs: (B,S,K) float, normalised; computed in float32.
      steps: (B,) integers in [0,S], valid steps.
      width: W, prefixes that are kept at each step.
      max_length: L, greatest number of characters; a prefix of L is not extended. None: S.
      blank: class of the blank.
      language_model: automaton of the same classes, such as a ``CharacterNgram``'s.
      lexicon: automaton of the same classes; texts that it forbids are not found.
      weight: weight of the language model's log-probability.
      bonus: added for each character, in nats; makes up for a language model's preference of short
        texts.
      characters: most probable characters at each step, by which prefixes are extended; others
        are not tried. K - 1 or more: all of them.
      results: N, texts that are returned, at most ``width``.

    Raises:
      ValueError: shapes or dtypes that do not agree, a number less than 1, ``results`` above
        ``width``, a blank outside of the classes, or an automaton of other classes.
    """
    log_probs, steps = _check(log_probs, steps, blank)
    b, s, k = log_probs.shape
    size = _check_max_length(max_length, s)
    for name, value in (("width", width), ("characters", characters), ("results", results)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, received {value}")
    if results > width:
        raise ValueError(
            f"results: expected at most width = {width}, received {results}; widen the beam"
        )
    for name, automaton in (("language_model", language_model), ("lexicon", lexicon)):
        if automaton is not None:
            check_automaton(name, automaton, k)
    # Beyond the last step the blank has probability 1, so every prefix stays as it is.
    valid = (jnp.arange(s) < steps[:, None])[..., None]
    is_blank = jnp.arange(k) == blank
    log_probs = jnp.where(
        valid, jnp.maximum(log_probs, SMALLEST), jnp.where(is_blank, 0, IMPOSSIBLE)
    )
    chosen_log_probs, chosen = jax.lax.top_k(
        jnp.where(is_blank, IMPOSSIBLE, log_probs), min(characters, k - 1)
    )  # (B,S,C)

    def take_step(
        beam: _Beam, inputs: tuple[Array, Array, Array]
    ) -> tuple[_Beam, tuple[Array, Array]]:
        emitted, best, best_ids = inputs  # (B,K), (B,C), (B,C)
        stay, extended = _candidates(beam, emitted, best, best_ids, blank)
        extended = jnp.where((beam.lengths < size)[..., None], extended, IMPOSSIBLE)
        model_scores = jnp.broadcast_to(beam.model_score[..., None], extended.shape)
        ids = best_ids[:, None, :]
        if language_model is not None:
            of_ids = language_model.log_probs[beam.model_state[..., None], ids]
            model_scores += jnp.maximum(of_ids, SMALLEST)
        if lexicon is not None:
            allowed = lexicon.next_states[beam.word_state[..., None], ids] >= 0
            extended = jnp.where(allowed, extended, IMPOSSIBLE)
        # Scores of all candidates: the prefixes as they are, then their extensions.
        scores = log_add(*stay) + weight * beam.model_score + bonus * beam.lengths
        longer = extended + weight * model_scores + bonus * (beam.lengths[..., None] + 1)
        pool = jnp.concatenate([scores, longer.reshape(b, -1)], axis=1)
        picked = jax.lax.top_k(pool, width)[1]  # (B,W)
        is_new = picked >= width
        new = jnp.where(is_new, picked - width, 0)
        slots = jnp.where(is_new, new // best.shape[1], picked)
        ids = jnp.where(is_new, _pick(best_ids, new % best.shape[1]), -1)
        return (
            _next_beam(
                beam,
                (_pick(stay[0], slots), _pick(stay[1], slots)),
                _pick(extended.reshape(b, -1), new),
                _pick(model_scores.reshape(b, -1), new),
                slots,
                ids,
                language_model,
                lexicon,
            ),
            (slots, ids),
        )

    inputs = jax.tree.map(lambda x: x.swapaxes(0, 1), (log_probs, chosen_log_probs, chosen))
    beam, history = jax.lax.scan(take_step, _first_beam(b, width), inputs)
    log_probability = log_add(beam.in_blank, beam.in_label)
    model_score = beam.model_score
    if language_model is not None:
        model_score += jnp.maximum(language_model.log_probs[beam.model_state, blank], SMALLEST)
    if lexicon is not None:
        complete = lexicon.log_probs[beam.word_state, blank] > -jnp.inf
        log_probability = jnp.where(complete, log_probability, IMPOSSIBLE)
    scores = log_probability + weight * model_score + bonus * beam.lengths
    scores, best_slots = jax.lax.top_k(scores, results)
    log_probability = _pick(log_probability, best_slots)
    tokens, lengths = _read_texts(history, best_slots, size)
    # Where a lexicon leaves nothing, the first text is the empty one.
    nothing = (scores < _DEAD) & (jnp.arange(results) == 0)
    empty = jnp.sum(log_probs[..., blank], axis=1)[:, None]
    return _transcripts(
        log_probs,
        steps,
        tokens,
        jnp.where(scores < _DEAD, 0, lengths),
        jnp.where(nothing, empty, log_probability),
        jnp.where(nothing, empty, scores),
        blank,
    )


_DEAD = IMPOSSIBLE / 2
"""Prefixes below this log-probability do not exist; their slots are not filled."""


def _candidates(
    beam: _Beam, log_probs: Array, best: Array, best_ids: Array, blank: int
) -> tuple[tuple[Array, Array], Array]:
    """Returns log-probabilities after one step, without language model and lexicon.

    Args:
      beam: prefixes (B,W).
      log_probs: (B,K) of the step.
      best: (B,C), those of the characters that extend prefixes.
      best_ids: (B,C) int32, their classes.
      blank: class of the blank.

    Returns:
      ``in_blank`` and ``in_label`` (B,W) of the prefixes that stay, and ``in_label`` (B,W,C) of the
      new extensions; impossible for those that are prefixes of the beam already, to which their
      probability is added.
    """
    total = log_add(beam.in_blank, beam.in_label)
    of_last = jnp.where(
        beam.last >= 0, _pick(log_probs, jnp.maximum(beam.last, 0)), IMPOSSIBLE
    )  # (B,W)
    # (B,W,W): whether the first is the second without its last character. Slots that are not
    # filled hold copies of prefixes, which must not come to life.
    alive = total > _DEAD
    is_parent = alive[:, :, None] & (alive & (beam.last >= 0))[:, None, :]
    for own, parent in zip(beam.hashes, beam.parents, strict=True):
        is_parent &= own[:, :, None] == parent[:, None, :]
    # A character after itself is a new one only after a blank.
    before = jnp.where(
        beam.last[:, :, None] == beam.last[:, None, :],
        beam.in_blank[:, :, None],
        total[:, :, None],
    )
    merged = jnp.max(jnp.where(is_parent, before, IMPOSSIBLE), axis=1)  # (B,W)
    in_label = log_add(beam.in_label, merged) + of_last
    stay = total + log_probs[:, blank : blank + 1], jnp.maximum(in_label, IMPOSSIBLE)

    same = beam.last[..., None] == best_ids[:, None, :]  # (B,W,C)
    extended = best[:, None, :] + jnp.where(same, beam.in_blank[..., None], total[..., None])
    exists = jnp.any(is_parent[..., None] & same[:, None], axis=2)
    return stay, jnp.where(exists, IMPOSSIBLE, jnp.maximum(extended, IMPOSSIBLE))


def _next_beam(
    beam: _Beam,
    stay: tuple[Array, Array],
    extended: Array,
    model_score: Array,
    slots: Array,
    ids: Array,
    language_model: Automaton | None,
    lexicon: Automaton | None,
) -> _Beam:
    """Returns the beam of the chosen prefixes: those of ``slots``, extended where ``ids`` >= 0.

    All (B,W): ``stay`` and ``extended`` are the new log-probabilities of either kind.
    """
    old = jax.tree.map(lambda field: _pick(field, slots), beam)
    is_new = ids >= 0
    hashes = tuple(
        jnp.where(is_new, _hash(own, ids, number), own) for number, own in enumerate(old.hashes)
    )
    parents = tuple(
        jnp.where(is_new, own, parent) for own, parent in zip(old.hashes, old.parents, strict=True)
    )

    def follow(automaton: Automaton | None, state: Array) -> Array:
        if automaton is None:
            return state
        following = automaton.next_states[state, jnp.maximum(ids, 0)]
        return jnp.where(is_new, jnp.maximum(following, 0), state)

    return _Beam(
        in_blank=jnp.where(is_new, IMPOSSIBLE, stay[0]),
        in_label=jnp.where(is_new, extended, stay[1]),
        last=jnp.where(is_new, ids, old.last),
        lengths=old.lengths + is_new,
        hashes=(hashes[0], hashes[1]),
        parents=(parents[0], parents[1]),
        model_state=follow(language_model, old.model_state),
        model_score=jnp.where(is_new, model_score, old.model_score),
        word_state=follow(lexicon, old.word_state),
    )


def _first_beam(b: int, width: int) -> _Beam:
    """Returns the beam before the first step: the empty prefix, in slot 0."""
    impossible = jnp.full((b, width), IMPOSSIBLE, jnp.float32)
    zeros = jnp.zeros((b, width), jnp.int32)
    hashes = zeros.astype(jnp.uint32)
    return _Beam(
        in_blank=impossible.at[:, 0].set(0),
        in_label=impossible,
        last=zeros - 1,
        lengths=zeros,
        hashes=(hashes, hashes),
        parents=(hashes, hashes),
        model_state=zeros,
        model_score=jnp.zeros_like(impossible),
        word_state=zeros,
    )


def _hash(hashes: Array, ids: Array, number: int) -> Array:
    """Returns the hashes of prefixes that are extended by ``ids``; two functions, 0 and 1.

    The final mixing is MurmurHash3's, which spreads every bit over the word: a plain polynomial
    modulo 2^32 has collisions of regular texts whatever its multiplier.
    """
    factors = ((0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35), (0x27D4EB2F, 0x7FEB352D, 0x846CA68B))[number]
    first, second, third = (jnp.uint32(factor) for factor in factors)
    mixed = (hashes ^ ((ids + 1).astype(jnp.uint32) * first)) * second
    mixed = (mixed ^ (mixed >> 13)) * third
    return (mixed ^ (mixed >> 16)) + first


def _read_texts(history: tuple[Array, Array], slots: Array, size: int) -> tuple[Array, Array]:
    """Returns tokens (B,N,size) and lengths (B,N) of the prefixes that end in ``slots`` (B,N).

    ``history``: slots of the parents and new characters or -1, each (S,B,W).
    """

    def back(slots: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        parents, ids = step
        return _pick(parents, slots), _pick(ids, slots)

    ids = jax.lax.scan(back, slots, history, reverse=True)[1]  # (S,B,N)
    s, b, n = ids.shape
    tokens, lengths = _compact(ids.transpose(1, 2, 0).reshape(b * n, s), size)
    return tokens.reshape(b, n, size), lengths.reshape(b, n)


def _transcripts(
    log_probs: Array,
    steps: Array,
    tokens: Array,
    lengths: Array,
    log_probability: Array,
    scores: Array,
    blank: int,
) -> Transcripts:
    """Returns texts with the spans of their best alignments; dead ones are empty."""
    b, n, size = tokens.shape
    tokens = jnp.where(jnp.arange(size) < lengths[..., None], tokens, 0)
    repeated = functools.partial(jnp.repeat, repeats=n, axis=0)
    flat = tokens.reshape(b * n, size), lengths.reshape(b * n)
    spans = align(repeated(log_probs), repeated(steps), *flat, blank=blank)
    starts, ends, confidences = (field.reshape(b, n, size) for field in spans)
    dead = scores < _DEAD
    log_probability = jnp.where(dead, -jnp.inf, log_probability)
    return Transcripts(
        tokens,
        lengths,
        log_probability,
        jnp.where(dead, -jnp.inf, scores),
        starts,
        ends,
        jnp.exp(log_probability),
        confidences,
    )


def _compact(ids: Array, size: int) -> tuple[Array, Array]:
    """Returns the entries of ``ids`` (B,S) that are not -1, moved to the front, and their number.

    (B,size) int32, padded with 0, and (B,) int32; entries beyond ``size`` are left out.
    """
    filled = ids >= 0
    positions = jnp.where(filled, jnp.cumsum(filled, axis=1) - 1, size)

    def place(ids: Array, positions: Array) -> Array:
        return jnp.zeros((size,), jnp.int32).at[positions].set(ids, mode="drop")

    # By vmap, which tells XLA that rows are independent: sharded ones stay on their devices.
    tokens = jax.vmap(place)(ids.astype(jnp.int32), positions)
    return tokens, jnp.minimum(jnp.sum(filled, axis=1, dtype=jnp.int32), size)


def _pick(values: Array, indices: Array) -> Array:
    """Returns ``values`` (B,W) at ``indices`` (B,N), all in [0,W)."""
    return jnp.take_along_axis(values, indices, axis=1, mode="promise_in_bounds")


def _check(log_probs: Array, steps: Array, blank: int) -> tuple[Array, Array]:
    """Returns log-probabilities as float32, zero in padding, and steps as int32."""
    b, s, _ = check_logits("log_probs", log_probs, blank)
    steps = check_lengths(steps, b, s)
    valid = jnp.arange(s) < steps[:, None]
    return jnp.where(valid[..., None], log_probs.astype(jnp.float32), 0), steps


def _check_max_length(max_length: int | None, steps: int) -> int:
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length: expected at least 1, received {max_length}")
    return max(steps, 1) if max_length is None else max_length
