"""From a decoder's step to captions: one entry to every way of searching, and its options."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flaxnets.decoders.beam_search import beam_search
from flaxnets.decoders.hypotheses import (
    BOS,
    EOS,
    PAD,
    UNK,
    Advance,
    Hypotheses,
)
from flaxnets.decoders.sampling import greedy_search, sample
from flaxnets.typing import Array, Carry, PRNGKey

__all__ = [
    "BOS",
    "EOS",
    "METHODS",
    "PAD",
    "UNK",
    "Advance",
    "Hypotheses",
    "SearchOptions",
    "beam_search",
    "ensemble",
    "greedy_search",
    "sample",
    "search",
]

METHODS = ("greedy", "sample", "beam")


@dataclasses.dataclass
class SearchOptions:
    """How captions are searched for; not frozen, so that flags may override its fields."""

    method: str = "beam"
    """``greedy``, ``sample`` or ``beam``."""
    max_steps: int = 20
    """The most tokens of a caption, ``<eos>`` included."""
    length_normalization: str = "none"
    """``none``; ``mean``: log p / n; ``wu``: log p / ((5+n)/6)^α, n tokens with ``<eos>``."""
    length_alpha: float = 0.7
    """The exponent α of ``wu``."""
    no_repeat_ngram_size: int = 0
    """3 never lets a hypothesis repeat a trigram; 0 lets it repeat anything."""
    forbid_unknown: bool = True
    """Whether ``<unk>`` is never chosen."""
    beam_size: int = 3
    """``beam`` only: hypotheses over all groups."""
    num_groups: int = 1
    """``beam`` only: groups that are pushed apart; a divisor of ``beam_size``."""
    diversity_penalty: float = 0.0
    """``beam`` only: nats off a word for each hypothesis of an earlier group that chose it."""
    num_samples: int = 1
    """``sample`` only: draws for each row."""
    temperature: float = 1.0
    """``sample`` only: what logits are divided by."""
    top_k: int = 0
    """``sample`` only: draws from the k most probable words; 0: from all."""
    top_p: float = 1.0
    """``sample`` only: draws from the most probable words that together reach p; 1: from all."""


def search(
    advance: Advance,
    carry: Carry,
    options: SearchOptions,
    key: PRNGKey | None = None,
    *,
    batch_size: int | None = None,
) -> Hypotheses:
    """Searches as ``options`` say; options are static where this is jitted.

    Args:
      advance: one step of the decoder, see ``hypotheses``.
      carry: pytree of (B,...), before ``<bos>`` was read.
      options: the method, and what it needs.
      key: of ``sample`` alone.
      batch_size: B, needed only where the carry holds no array.

    Returns:
      Hypotheses, best first, with K = 1, ``num_samples`` or ``beam_size``.

    Raises:
      ValueError: another method, ``sample`` without a key, or as the method's own function.
    """
    normalization, alpha = options.length_normalization, options.length_alpha
    ngram_size, forbid_unknown = options.no_repeat_ngram_size, options.forbid_unknown
    if options.method == "greedy":
        return greedy_search(
            advance,
            carry,
            max_steps=options.max_steps,
            batch_size=batch_size,
            length_normalization=normalization,
            length_alpha=alpha,
            no_repeat_ngram_size=ngram_size,
            forbid_unknown=forbid_unknown,
        )
    if options.method == "sample":
        if key is None:
            raise ValueError("key: expected a key for the method sample, received None")
        return sample(
            advance,
            carry,
            key,
            max_steps=options.max_steps,
            num_samples=options.num_samples,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            batch_size=batch_size,
            length_normalization=normalization,
            length_alpha=alpha,
            no_repeat_ngram_size=ngram_size,
            forbid_unknown=forbid_unknown,
        )
    if options.method == "beam":
        return beam_search(
            advance,
            carry,
            beam_size=options.beam_size,
            max_steps=options.max_steps,
            batch_size=batch_size,
            length_normalization=normalization,
            length_alpha=alpha,
            no_repeat_ngram_size=ngram_size,
            num_groups=options.num_groups,
            diversity_penalty=options.diversity_penalty,
            forbid_unknown=forbid_unknown,
        )
    raise ValueError(f"method: expected one of {METHODS}, received {options.method}")


def ensemble(advances: Sequence[Advance]) -> Advance:
    """One step of several decoders: the mean of their probabilities.

    Its carry is the tuple of theirs; its logits, (B,V) float32, are the logarithm of the mean of
    the members' softmax, so each member's word counts by its probability.

    Args:
      advances: the members' steps, of one vocabulary; at least one.

    Raises:
      ValueError: no members; at the first step, another number of carries, or logits of different
        shapes.
    """
    members = tuple(advances)
    if not members:
        raise ValueError("advances: expected at least one, received none")

    def advance(carry: Carry, tokens: Array) -> tuple[Carry, Array]:
        if len(carry) != len(members):
            raise ValueError(
                f"carry: expected a tuple of {len(members)} carries, received {len(carry)}"
            )
        steps = [member(own, tokens) for member, own in zip(members, carry, strict=True)]
        shapes = {logits.shape for _, logits in steps}
        if len(shapes) > 1:
            raise ValueError(f"advances: expected logits of one shape, received {sorted(shapes)}")
        log_probs = jnp.stack(
            [jax.nn.log_softmax(logits.astype(jnp.float32)) for _, logits in steps]
        )
        mean = jax.nn.logsumexp(log_probs, axis=0) - jnp.log(float(len(members)))
        return tuple(own for own, _ in steps), mean

    return advance
