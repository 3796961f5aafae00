"""What every search shares: the step it calls, what it gives back, which words it may choose.

A search calls ``advance(carry, tokens (B,) int32) -> (carry, logits (B,V))``: one step of a decoder
that has read ``tokens``, for a batch of B. The carry is a pytree of arrays (B,...); what never
changes (an image's features) is closed over. K hypotheses of a row are run by ``jax.vmap`` over an
axis 1 of the carry, so that what is closed over is not repeated.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.typing import Array, Carry

PAD, BOS, EOS, UNK = range(4)
"""The ids of ``<pad>``, ``<bos>``, ``<eos>`` and ``<unk>``; words come after them."""

Advance = Callable[[Carry, Array], tuple[Carry, Array]]
"""Carry (B,...) and the tokens just read, (B,) int32, to the carry and logits (B,V) of the next."""

NORMALIZATIONS = ("none", "mean", "wu")


class Hypotheses(NamedTuple):
    """The K answers of each row: those that ended before others, then best scores first.

    A slot that no hypothesis fills has length 0, no token but ``<pad>``, and minus infinity for
    ``log_probs`` and ``scores``.
    """

    tokens: Array
    """(B,K,L) int32: words, ``<eos>`` where it ended, then ``<pad>``; no ``<bos>``."""
    lengths: Array
    """(B,K) int32 in [0,L]: words, and the ``<eos>`` where it ended."""
    log_probs: Array
    """(B,K) float32: log-probability of the tokens under the model, whose softmax is over the whole
    vocabulary, whatever temperature, truncation, blocking or penalty acted on the choice."""
    scores: Array
    """(B,K) float32: what the order is by, ``log_probs`` under the length normalisation."""
    ended: Array
    """(B,K) bool: whether ``<eos>`` was reached within L tokens."""


@dataclasses.dataclass(frozen=True)
class WordRules:
    """Which words may follow.

    ``<pad>`` and ``<bos>`` never do.

    Attributes:
      no_repeat_ngram_size: n: a word is blocked that would complete an n-gram of words which the
        hypothesis holds already, at whatever place, overlapping or not; 1 blocks every word it
        holds. ``<eos>`` is never blocked. Where nothing at all would be left to choose, nothing is
        blocked. 0: blocks nothing.
      forbid_unknown: whether ``<unk>`` is never chosen.
    """

    no_repeat_ngram_size: int = 0
    forbid_unknown: bool = True

    def __post_init__(self) -> None:
        if self.no_repeat_ngram_size < 0:
            raise ValueError(
                f"no_repeat_ngram_size: expected at least 0, received {self.no_repeat_ngram_size}"
            )

    def log_probs(self, logits: Array, tokens: Array, step: Array) -> Array:
        """The model's log-probabilities, minus infinity for words that may not follow.

        Args:
          logits: (B,K,V) any float; the softmax is computed in float32.
          tokens: (B,K,L) int32, the hypotheses; read before ``step`` only.
          step: () int32, how many tokens they hold.

        Returns:
          (B,K,V) float32. No word's probability is added to another's: they no longer sum to one.
        """
        b, k, v = logits.shape
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        ids = jnp.arange(v)
        allowed = (ids != PAD) & (ids != BOS)
        if self.forbid_unknown:
            allowed &= ids != UNK
        log_probs = jnp.where(allowed, log_probs, -jnp.inf)
        if not self.no_repeat_ngram_size:
            return log_probs
        repeated, words = _completions(tokens, step, self.no_repeat_ngram_size)
        rows, columns = jnp.ogrid[:b, :k]
        bounds = jnp.where(repeated, -jnp.inf, jnp.inf)
        blocked = log_probs.at[rows[..., None], columns[..., None], words].min(bounds)
        nothing_left = jnp.max(blocked, axis=-1, keepdims=True) == -jnp.inf
        return jnp.where(nothing_left, log_probs, blocked)


def _completions(tokens: Array, step: Array, n: int) -> tuple[Array, Array]:
    """Where a word followed what the hypothesis ends with now: (B,K,P) bool, and the words there.

    P = L − n + 1, and at least 1: the places where an n-gram may start.
    """
    b, k, length = tokens.shape
    if n > length:
        return jnp.zeros((b, k, 1), bool), jnp.full((b, k, 1), PAD)
    places = length - n + 1
    # Of a hypothesis shorter than n nothing is read: there step - n, the last start, is negative.
    start = jnp.maximum(step - n + 1, 0)
    equal = jnp.broadcast_to(jnp.arange(places) <= step - n, (b, k, places))
    for offset in range(n - 1):
        last = jax.lax.dynamic_slice_in_dim(tokens, start + offset, 1, axis=2)
        equal &= tokens[..., offset : offset + places] == last
    return equal, tokens[..., n - 1 :]


def length_normalizer(form: str, alpha: float) -> Callable[[Array | int], Array]:
    r"""What a log-probability of n tokens, ``<eos>`` included, is divided by to give a score.

    ``none``: 1. ``mean``: n. ``wu``: :math:`((5+n)/6)^α` (Wu et al., 1609.08144, equation 14).
    All are at least 1 and never fall with n, which the beam's early exit relies on.

    Args:
      form: one of ``NORMALIZATIONS``.
      alpha: of ``wu`` alone, at least 0.

    Raises:
      ValueError: another form, or a negative ``alpha``.
    """
    if form not in NORMALIZATIONS:
        raise ValueError(f"length_normalization: expected one of {NORMALIZATIONS}, received {form}")
    if not alpha >= 0:
        raise ValueError(f"length_alpha: expected at least 0, received {alpha}")

    def normalizer(n: Array | int) -> Array:
        steps = jnp.maximum(jnp.asarray(n, jnp.float32), 1.0)
        if form == "none":
            return jnp.ones_like(steps)
        return steps if form == "mean" else ((5.0 + steps) / 6.0) ** alpha

    return normalizer


def check_at_least(minimum: int, **values: int) -> None:
    """Refuses arguments below ``minimum``, naming them.

    Raises:
      ValueError: one of ``values`` is smaller.
    """
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name}: expected at least {minimum}, received {value}")


def infer_batch_size(advance: Advance, carry: Carry, batch_size: int | None) -> int:
    """B, and that one step of ``advance`` keeps the carry's shapes and gives logits (B,V).

    Args:
      advance: the step.
      carry: pytree of (B,...).
      batch_size: B where the carry holds no array; None: the size of the carry's first axes.

    Raises:
      ValueError: no array to tell B by, leaves that disagree about it, a step that changes the
        shapes, dtypes or structure of its carry, or logits of another shape or without floats.
    """
    sizes = {leaf.shape[0] if jnp.ndim(leaf) else None for leaf in jax.tree.leaves(carry)}
    if batch_size is not None:
        sizes.add(batch_size)
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            "carry: expected arrays (B,...) of one B, or batch_size where it holds none, "
            f"received first axes of sizes {sorted(sizes, key=str)}"
        )
    b = sizes.pop()
    assert b is not None
    after, logits = jax.eval_shape(advance, carry, jax.ShapeDtypeStruct((b,), jnp.int32))
    before = jax.eval_shape(lambda tree: tree, carry)
    described = [
        (jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)])
        for tree in (before, after)
    ]
    if described[0] != described[1]:
        raise ValueError(f"advance: expected a carry like its own, {before}, received {after}")
    if logits.ndim != 2 or logits.shape[0] != b or logits.shape[1] <= UNK:
        raise ValueError(
            f"advance: expected logits ({b},V) with V > {UNK}, received shape {logits.shape}"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"advance: expected logits of a float dtype, received {logits.dtype}")
    return b


def repeat_carry(carry: Carry, count: int) -> Carry:
    """Leaves (B,...) to (B,count,...)."""
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf[:, None], (leaf.shape[0], count, *leaf.shape[1:])), carry
    )


def gather(tree: Carry, indices: Array) -> Carry:
    """Leaves (B,K,...) to (B,J,...): of each row those at ``indices`` (B,J), all in [0,K)."""

    def pick(leaf: Array) -> Array:
        return jax.vmap(lambda row, index: row.at[index].get(mode="promise_in_bounds"))(
            leaf, indices
        )

    return jax.tree.map(pick, tree)


def rank(hypotheses: Hypotheses) -> Hypotheses:
    """Orders each row's hypotheses: ended ones first, then by falling score; ties stay in order."""
    # Two stable orderings, the finer first: they compile in half the time of a sort by two keys.
    k = hypotheses.scores.shape[1]
    hypotheses = gather(hypotheses, jax.lax.top_k(hypotheses.scores, k)[1])
    return gather(hypotheses, jax.lax.top_k(hypotheses.ended.astype(jnp.float32), k)[1])
