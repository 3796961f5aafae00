"""Common parts of the searches: the decoder's step, hypotheses, word rules, length normalisation.

A search calls ``decode_step(carry, tokens (B,) int32) -> (carry, logits (B,V))``, one step of a
decoder that reads ``tokens``. The carry is a pytree of arrays (B,...). What never changes, such as
an image's memory, is closed over: the K hypotheses of a row run by ``jax.vmap`` over axis 1 of the
carry, so what is closed over is not repeated K times.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.typing import Array, Carry

PAD, BOS, EOS, UNK = range(4)
"""Ids of ``<pad>``, ``<bos>``, ``<eos>`` and ``<unk>``; words follow."""

DecodeStep = Callable[[Carry, Array], tuple[Carry, Array]]
"""Carry (B,...) and input tokens (B,) int32 to the new carry and the next token's logits (B,V)."""

NORMALIZATIONS = ("none", "mean", "wu")


class Hypotheses(NamedTuple):
    """The K captions found for each row: ended ones first, then by falling score.

    An empty slot has length 0, only ``<pad>`` tokens, and minus infinity for ``log_probs`` and
    ``scores``. Both are NaN where the model gave NaN, or no allowed word a probability: such a
    caption has not ended and is ``<pad>`` from there on. Outside of ``jit`` a search raises an
    error instead (``check_finite``).
    """

    tokens: Array
    """(B,K,L) int32: words, ``<eos>`` if it ended, then ``<pad>``; no ``<bos>``."""
    lengths: Array
    """(B,K) int32 in [0,L], ``<eos>`` included."""
    log_probs: Array
    """(B,K) float32, nats: log p(tokens) under the model with a softmax over the whole vocabulary;
    temperature, truncation, word rules and penalties act on the choice only."""
    scores: Array
    """(B,K) float32: ``log_probs`` divided by the length normalisation; sorted by it."""
    ended: Array
    """(B,K) bool: ``<eos>`` was reached within L tokens."""


@dataclasses.dataclass(frozen=True)
class WordRules:
    """Words that a search may choose; ``<pad>`` and ``<bos>`` it never may.

    Attributes:
      no_repeat_ngram_size: n: blocks a word that would complete an n-gram which the hypothesis
        contains already, overlapping or not; 1 blocks every word it contains, 0 nothing. ``<eos>``
        is never blocked. Where no word would be left, none is blocked.
      forbid_unknown: ``<unk>`` is never chosen.
    """

    no_repeat_ngram_size: int = 0
    forbid_unknown: bool = True

    def __post_init__(self) -> None:
        if self.no_repeat_ngram_size < 0:
            raise ValueError(
                f"no_repeat_ngram_size: expected at least 0, received {self.no_repeat_ngram_size}"
            )

    def log_probs(self, logits: Array, tokens: Array, step: Array) -> Array:
        """Returns the model's log-probabilities, minus infinity for words that are not allowed.

        Args:
          logits: (B,K,V), any float dtype; the softmax is computed in float32.
          tokens: (B,K,L) int32, the hypotheses; only positions before ``step`` are read.
          step: () int32, the number of their tokens.

        Returns:
          (B,K,V) float32, not renormalised: the allowed words' probabilities sum to less than one.
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
        # A scatter by minimum: positions that repeat nothing scatter +inf, which changes nothing.
        # A scatter that sets values would let such a position undo another's -inf of that word.
        bounds = jnp.where(repeated, -jnp.inf, jnp.inf)
        blocked = log_probs.at[rows[..., None], columns[..., None], words].min(bounds)
        # Of -inf alone argmax would choose <pad>, and sampling would compute -inf - (-inf) = NaN.
        nothing_left = jnp.max(blocked, axis=-1, keepdims=True) == -jnp.inf
        return jnp.where(nothing_left, log_probs, blocked)


def _completions(tokens: Array, step: Array, n: int) -> tuple[Array, Array]:
    """Returns the earlier positions of the hypothesis's last n-1 words, and the words after them.

    Both (B,K,P), bool and int32, with P = max(1, L − n + 1) positions where an n-gram may start.
    """
    b, k, length = tokens.shape
    if n > length:
        return jnp.zeros((b, k, 1), bool), jnp.full((b, k, 1), PAD)
    positions = length - n + 1
    # A hypothesis shorter than n repeats nothing: its last start, step - n, is negative.
    start = jnp.maximum(step - n + 1, 0)
    equal = jnp.broadcast_to(jnp.arange(positions) <= step - n, (b, k, positions))
    for offset in range(n - 1):
        last = jax.lax.dynamic_slice_in_dim(tokens, start + offset, 1, axis=2)
        equal &= tokens[..., offset : offset + positions] == last
    return equal, tokens[..., n - 1 :]


def length_normalizer(form: str, alpha: float) -> Callable[[Array | int], Array]:
    r"""Returns the divisor of a caption's log-probability as a function of its length.

    With n tokens, ``<eos>`` included, the score is :math:`s(y) = \log p(y) / \mathrm{norm}(n)`:

    - ``none``: 1;
    - ``mean``: n, the mean log-probability of a token;
    - ``wu``: :math:`((5+n)/6)^α` (Wu et al., 1609.08144, equation 14, without its coverage term).

    All are at least 1 and never fall with n: the beam's early exit relies on both.

    Args:
      form: one of ``NORMALIZATIONS``.
      alpha: exponent α of ``wu``, at least 0.

    Raises:
      ValueError: an unknown form, or an ``alpha`` that is negative or not finite.

    >>> float(length_normalizer("wu", 1.0)(7))
    2.0
    """
    if form not in NORMALIZATIONS:
        raise ValueError(f"length_normalization: expected one of {NORMALIZATIONS}, received {form}")
    check_penalty("length_alpha", alpha)

    def normalizer(n: Array | int) -> Array:
        # At least 1: an empty caption (n = 0, log p = 0) must not become NaN.
        steps = jnp.maximum(jnp.asarray(n, jnp.float32), 1.0)
        if form == "none":
            return jnp.ones_like(steps)
        return steps if form == "mean" else ((5.0 + steps) / 6.0) ** alpha

    return normalizer


def check_at_least(minimum: int, **values: int) -> None:
    """Checks that all arguments are at least ``minimum``.

    Raises:
      ValueError: one of ``values`` is smaller.
    """
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name}: expected at least {minimum}, received {value}")


def check_penalty(name: str, value: float) -> None:
    """Checks that a penalty is a finite number of float32, at least 0.

    Raises:
      ValueError: another value; infinity times a count of zero would be NaN.
    """
    if not value >= 0:  # Not value < 0, which is False for NaN.
        raise ValueError(f"{name}: expected at least 0, received {value}")
    if value > float(jnp.finfo(jnp.float32).max):
        raise ValueError(f"{name}: expected a finite float32, received {value}")


def check_finite(hypotheses: Hypotheses) -> Hypotheses:
    """Returns the hypotheses, unless they show that the model's logits were not finite.

    Values are known outside of ``jit`` only; within, such hypotheses have ``log_probs`` of NaN.

    Raises:
      ValueError: naming the rows.
    """
    if isinstance(hypotheses.log_probs, jax.core.Tracer):
        return hypotheses
    failed = jnp.flatnonzero(jnp.isnan(hypotheses.log_probs).any(axis=1)).tolist()
    if failed:
        raise ValueError(
            "decode_step: expected finite logits, received NaN or infinity, or -inf for every word "
            f"that may be chosen, in rows {failed[:8]} of the batch; has the training diverged?"
        )
    return hypotheses


def infer_batch_size(decode_step: DecodeStep, carry: Carry, batch_size: int | None) -> int:
    """Returns B, and checks the shapes of one step.

    A step that changes its carry's dtype would otherwise fail deep inside ``while_loop``.

    Args:
      decode_step: the step; it is traced by ``jax.eval_shape``, not run.
      carry: pytree of (B,...).
      batch_size: B where the carry holds no array; None: the size of the carry's first axes.

    Raises:
      ValueError: B unknown, or leaves that disagree about it; a step that changes the shapes,
        dtypes or structure of its carry; logits that are not (B,V) floats.
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
    after, logits = jax.eval_shape(decode_step, carry, jax.ShapeDtypeStruct((b,), jnp.int32))
    before = jax.eval_shape(lambda tree: tree, carry)
    described = [
        (jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)])
        for tree in (before, after)
    ]
    if described[0] != described[1]:
        raise ValueError(f"decode_step: expected a carry like its own, {before}, received {after}")
    if logits.ndim != 2 or logits.shape[0] != b or logits.shape[1] <= UNK:
        raise ValueError(
            f"decode_step: expected logits ({b},V) with V > {UNK}, received shape {logits.shape}"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"decode_step: expected logits of a float dtype, received {logits.dtype}")
    return b


def repeat_carry(carry: Carry, count: int) -> Carry:
    """Broadcasts leaves (B,...) to (B,count,...)."""
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf[:, None], (leaf.shape[0], count, *leaf.shape[1:])), carry
    )


def gather(tree: Carry, indices: Array) -> Carry:
    """Gathers leaves (B,K,...) at ``indices`` (B,J), all in [0,K): (B,J,...)."""

    # A gather by rows; indices in bounds by contract, so XLA adds neither clamps nor fills.
    def pick(leaf: Array) -> Array:
        return jax.vmap(lambda row, index: row.at[index].get(mode="promise_in_bounds"))(
            leaf, indices
        )

    return jax.tree.map(pick, tree)


def rank(hypotheses: Hypotheses) -> Hypotheses:
    """Sorts each row's hypotheses: ended ones first, then by falling score; ties keep their order.

    ``top_k`` is stable: of equal values the lower index comes first.
    """
    # Two stable sorts, by the minor key first; they compile in half the time of one by two keys.
    k = hypotheses.scores.shape[1]
    scores = jnp.where(jnp.isnan(hypotheses.scores), -jnp.inf, hypotheses.scores)  # NaN last.
    hypotheses = gather(hypotheses, jax.lax.top_k(scores, k)[1])
    return gather(hypotheses, jax.lax.top_k(hypotheses.ended.astype(jnp.float32), k)[1])
