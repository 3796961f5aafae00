"""Greedy search, and sampling with temperature, top-k and nucleus truncation."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.decoders.hypotheses import (
    BOS,
    EOS,
    PAD,
    DecodeStep,
    Hypotheses,
    WordRules,
    check_at_least,
    check_finite,
    infer_batch_size,
    length_normalizer,
    rank,
    repeat_carry,
)
from flaxnets.layers.batch_sharding import settle_carry
from flaxnets.typing import Array, Carry, PRNGKey

Choose = Callable[[Array, Array], Array]
"""Log-probabilities (B,K,V), minus infinity where not allowed, and the step () to words (B,K)."""


def greedy_search(
    decode_step: DecodeStep,
    carry: Carry,
    *,
    max_steps: int,
    batch_size: int | None = None,
    length_normalization: str = "none",
    length_alpha: float = 0.0,
    no_repeat_ngram_size: int = 0,
    forbid_unknown: bool = True,
) -> Hypotheses:
    """Returns the captions of the most probable word at each step, the lower id of equals.

    Args:
      decode_step: one step of the decoder, see ``DecodeStep``.
      carry: pytree of (B,...), before ``<bos>`` is read.
      max_steps: L, maximum length in tokens, ``<eos>`` included.
      batch_size: B, needed only where the carry holds no array.
      length_normalization: of ``scores`` only, see ``length_normalizer``.
      length_alpha: exponent of ``wu``.
      no_repeat_ngram_size: see ``WordRules``; 0 blocks nothing.
      forbid_unknown: ``<unk>`` is never chosen.

    Returns:
      Hypotheses with K = 1; unfinished where L tokens contain no ``<eos>``.

    Raises:
      ValueError: an option out of its range, a carry or step of another form than stated, or,
        outside of ``jit``, logits that are not finite.
    """
    return _decode(
        decode_step,
        carry,
        lambda log_probs, step: jnp.argmax(log_probs, axis=-1),
        count=1,
        max_steps=max_steps,
        batch_size=batch_size,
        normalizer=length_normalizer(length_normalization, length_alpha),
        rules=WordRules(no_repeat_ngram_size, forbid_unknown),
    )


def sample(
    decode_step: DecodeStep,
    carry: Carry,
    key: PRNGKey,
    *,
    max_steps: int,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    batch_size: int | None = None,
    length_normalization: str = "none",
    length_alpha: float = 0.0,
    no_repeat_ngram_size: int = 0,
    forbid_unknown: bool = True,
) -> Hypotheses:
    """Returns captions drawn word by word from the model's probabilities.

    In this order: words that are not allowed are removed, logits are divided by the temperature,
    ``top_k`` removes words, then ``top_p``, each from the renormalised probabilities of the stage
    before.

    Args:
      decode_step: one step of the decoder, see ``DecodeStep``.
      carry: pytree of (B,...), before ``<bos>`` is read.
      key: draws of row b depend on the key and b only, not on B or other rows.
      max_steps: L, maximum length in tokens, ``<eos>`` included.
      num_samples: K, independent draws per row.
      temperature: above 0; below 1 sharpens.
      top_k: keeps the k most probable words and ties with the last of them (Fan et al., 1805.04833,
        section 5.3); 0: all.
      top_p: in (0,1]: keeps the smallest set of most probable words that together reach ``top_p``,
        and ties with the last of them (Holtzman et al., 1904.09751, section 3.1); 1: all.
      batch_size: B, needed only where the carry holds no array.
      length_normalization: of ``scores`` only, see ``length_normalizer``.
      length_alpha: exponent of ``wu``.
      no_repeat_ngram_size: see ``WordRules``; 0 blocks nothing.
      forbid_unknown: ``<unk>`` is never chosen.

    Returns:
      Hypotheses with K = num_samples, the ended before the unfinished, best first.

    Raises:
      ValueError: an option out of its range, a carry or step of another form than stated, or,
        outside of ``jit``, logits that are not finite.
    """
    check_at_least(1, num_samples=num_samples)
    check_at_least(0, top_k=top_k)
    check_temperature(temperature)
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected in (0, 1], received {top_p}")

    def choose(log_probs: Array, step: Array) -> Array:
        b = log_probs.shape[0]
        # The maximum becomes 0 before the division, so that a low temperature cannot overflow.
        # Words that are not allowed stay -inf.
        shifted = log_probs - jnp.max(log_probs, axis=-1, keepdims=True)
        probabilities = truncate(jax.nn.softmax(shifted / temperature), top_k, top_p)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), jnp.arange(b))
        uniforms = jax.vmap(lambda row: jax.random.uniform(row, (2, num_samples)))(keys)
        return _draw(probabilities, uniforms[:, 0], uniforms[:, 1])

    return _decode(
        decode_step,
        carry,
        choose,
        count=num_samples,
        max_steps=max_steps,
        batch_size=batch_size,
        normalizer=length_normalizer(length_normalization, length_alpha),
        rules=WordRules(no_repeat_ngram_size, forbid_unknown),
    )


def check_temperature(temperature: float) -> None:
    """Checks that logits can be divided by a temperature in float32.

    Raises:
      ValueError: a temperature that is not above 0 or not finite, as a float32.
    """
    if not temperature > 0:  # Also refuses NaN.
        raise ValueError(f"temperature: expected above 0, received {temperature}")
    limits = jnp.finfo(jnp.float32)
    least, most = float(limits.tiny), float(limits.max)
    if not least <= temperature <= most:
        raise ValueError(
            f"temperature: expected {least:.1e} to {most:.1e}, the range of float32, "
            f"received {temperature}"
        )


def truncate(probabilities: Array, top_k: int, top_p: float) -> Array:
    """Sets to zero the words that ``top_k``, then ``top_p`` remove; see ``sample``.

    Args:
      probabilities: (...,V) float32, non-negative, with a sum of one.
      top_k: at least 0; 0 or V and more: all.
      top_p: in (0,1]; 1: all.

    Returns:
      (...,V) float32, the kept ones unchanged, not renormalised.

    >>> truncate(jnp.array([0.5, 0.25, 0.25, 0.0]), top_k=2, top_p=1.0).tolist()  # A tie.
    [0.5, 0.25, 0.25, 0.0]
    >>> truncate(jnp.array([0.5, 0.25, 0.25, 0.0]), top_k=0, top_p=0.5).tolist()
    [0.5, 0.0, 0.0, 0.0]
    """
    if 0 < top_k < probabilities.shape[-1]:
        bound = _threshold(probabilities, jnp.ones_like(probabilities), jnp.float32(top_k))
        probabilities = jnp.where(probabilities >= bound, probabilities, 0.0)
    if top_p < 1:
        # After top_k the sum is below one; the target is a share of what is left.
        total = jnp.sum(probabilities, axis=-1, keepdims=True)
        bound = _threshold(probabilities, probabilities, top_p * total)
        probabilities = jnp.where(probabilities >= bound, probabilities, 0.0)
    return probabilities


def _threshold(probabilities: Array, weights: Array, target: Array) -> Array:
    """Returns the largest p (...,1) such that the weights of probabilities >= p sum to ``target``.

    Non-negative floats order as their bits do as integers, so bisection over 30 bits finds it
    exactly, in 30 passes that fuse: 2.6 ms for 250 rows of 2,541 words on 2 CPU cores, where
    sorting took 86 ms.
    """

    def halve(_: int, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval  # The target is reached at low, not at high.
        middle = low + (high - low) // 2
        kept = probabilities >= jax.lax.bitcast_convert_type(middle, jnp.float32)
        reached = jnp.sum(jnp.where(kept, weights, 0.0), axis=-1, keepdims=True) >= target
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    low = jnp.zeros((*probabilities.shape[:-1], 1), jnp.int32)
    high = jax.lax.bitcast_convert_type(
        jnp.nextafter(jnp.float32(1.0), jnp.float32(2.0)), jnp.int32
    )
    interval = settle_carry(partial(halve, 0), (low, jnp.full_like(low, high)))
    low, _ = jax.lax.fori_loop(0, 30, halve, interval)
    return jax.lax.bitcast_convert_type(low, jnp.float32)


_BLOCK = 64


def _draw(probabilities: Array, first: Array, second: Array) -> Array:
    """Draws words by inverting the CDF: first a block of words, then a word of the block.

    Two uniform numbers per draw: 0.5 ms for 250 draws of 2,541 words on 2 CPU cores, where
    ``jax.random.categorical``, with Gumbel noise for each word, took 7 to 11 ms.

    Args:
      probabilities: (...,V) float32, non-negative, not all zero, of any sum.
      first: (...) float32 in [0,1).
      second: (...) float32 in [0,1).

    Returns:
      (...) int32, never a word of probability zero.
    """
    padding = -probabilities.shape[-1] % _BLOCK
    widths = [(0, 0)] * (probabilities.ndim - 1) + [(0, padding)]
    blocks = jnp.pad(probabilities, widths)
    blocks = blocks.reshape(*probabilities.shape[:-1], blocks.shape[-1] // _BLOCK, _BLOCK)
    block = _invert_cdf(jnp.sum(blocks, axis=-1), first)
    chosen = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    return block * _BLOCK + _invert_cdf(chosen, second)


def _invert_cdf(weights: Array, uniform: Array) -> Array:
    """Returns the first index (...) whose cumulative weight (...,N) exceeds ``uniform`` · total.

    Rounding may make a parallel cumulative sum fall, or exceed at an index of weight zero. Hence
    only indices of positive weight count, and where none exceeds, the last of them is taken.
    """
    sums = jnp.cumsum(weights, axis=-1)
    positive = weights > 0
    exceeds = (sums > uniform[..., None] * sums[..., -1:]) & positive
    last = weights.shape[-1] - 1 - jnp.argmax(positive[..., ::-1], axis=-1)
    return jnp.where(jnp.any(exceeds, axis=-1), jnp.argmax(exceeds, axis=-1), last)


class _State(NamedTuple):
    step: Array
    carry: Carry
    previous: Array
    """(B,K) int32: the last tokens."""
    hypotheses: Hypotheses


def _decode(
    decode_step: DecodeStep,
    carry: Carry,
    choose: Choose,
    *,
    count: int,
    max_steps: int,
    batch_size: int | None,
    normalizer: Callable[[Array | int], Array],
    rules: WordRules,
) -> Hypotheses:
    """Extends ``count`` hypotheses per row, word by word, until all have ended or have L tokens."""
    check_at_least(1, max_steps=max_steps)
    b = infer_batch_size(decode_step, carry, batch_size)
    decode_step_all = jax.vmap(decode_step, in_axes=1, out_axes=1)

    def take_step(state: _State) -> _State:
        carry, logits = decode_step_all(state.carry, state.previous)
        tokens, lengths, sums, _, ended = state.hypotheses
        log_probs = rules.log_probs(logits, tokens, state.step)  # (B,K,V)
        words = choose(log_probs, state.step).astype(jnp.int32)
        gains = jnp.take_along_axis(log_probs, words[..., None], axis=-1)[..., 0]
        # Rows that stopped run on with the others; their gains may be -inf and are not added.
        stopped = ended | jnp.isnan(sums)
        # Of logits that are NaN, or -inf for each allowed word, ``choose`` makes no sense of: its
        # word may lie outside of the vocabulary, where the gain is NaN.
        chosen = jnp.isfinite(gains)
        words = jnp.where(stopped | ~chosen, PAD, words)
        sums = jnp.where(stopped, sums, jnp.where(chosen, sums + gains, jnp.nan))
        lengths = jnp.where(stopped, lengths, state.step + 1)
        after = Hypotheses(
            jax.lax.dynamic_update_index_in_dim(tokens, words, state.step, axis=2),
            lengths,
            sums,
            sums / normalizer(lengths),
            ended | (words == EOS),
        )
        return _State(state.step + 1, carry, words, after)

    empty = Hypotheses(
        jnp.full((b, count, max_steps), PAD, jnp.int32),
        jnp.zeros((b, count), jnp.int32),
        jnp.zeros((b, count), jnp.float32),
        jnp.zeros((b, count), jnp.float32),
        jnp.zeros((b, count), bool),
    )
    start = _State(
        jnp.int32(0), repeat_carry(carry, count), jnp.full((b, count), BOS, jnp.int32), empty
    )

    def goes_on(state: _State) -> Array:
        _, _, sums, _, ended = state.hypotheses
        return (state.step < max_steps) & ~jnp.all(ended | jnp.isnan(sums))

    end = jax.lax.while_loop(goes_on, take_step, settle_carry(take_step, start))
    return check_finite(rank(end.hypotheses))
