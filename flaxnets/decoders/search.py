"""Search for captions: greedy search, sampling, or beam search, chosen by options."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flaxnets.decoders.beam_search import beam_search
from flaxnets.decoders.hypotheses import DecodeStep, Hypotheses
from flaxnets.decoders.sampling import greedy_search, sample
from flaxnets.typing import Array, Carry, PRNGKey

METHODS = ("greedy", "sample", "beam")


@dataclasses.dataclass
class SearchOptions:
    """Options of ``search_captions``.

    Not frozen, since flags override the fields.
    """

    method: str = "beam"
    """``greedy``, ``sample`` or ``beam``."""
    max_steps: int = 20
    """L, maximum length of a caption in tokens, ``<eos>`` included."""
    length_normalization: str = "none"
    """``none``; ``mean``: log p / n; ``wu``: log p / ((5+n)/6)^α; n tokens with ``<eos>``."""
    length_alpha: float = 0.7
    """The exponent α of ``wu``."""
    no_repeat_ngram_size: int = 0
    """n: no n-gram occurs twice in a caption; 0: no restriction."""
    forbid_unknown: bool = True
    """Never choose ``<unk>``."""
    beam_size: int = 3
    """``beam`` only: hypotheses, of all groups together."""
    num_groups: int = 1
    """``beam`` only: groups of diverse beam search; a divisor of ``beam_size``."""
    diversity_penalty: float = 0.0
    """``beam`` only: nats subtracted from a word per hypothesis of earlier groups that chose it."""
    num_samples: int = 1
    """``sample`` only: captions drawn per row."""
    temperature: float = 1.0
    """``sample`` only: divisor of the logits, above 0."""
    top_k: int = 0
    """``sample`` only: draw from the k most probable words; 0: from all."""
    top_p: float = 1.0
    """``sample`` only: draw from the most probable words that together reach p; 1: from all."""


def search_captions(
    decode_step: DecodeStep,
    carry: Carry,
    options: SearchOptions,
    key: PRNGKey | None = None,
    *,
    batch_size: int | None = None,
) -> Hypotheses:
    """Returns captions found by the method of ``options``, which are static under ``jit``.

    Args:
      decode_step: one step of the decoder, see ``DecodeStep``.
      carry: pytree of (B,...), before ``<bos>`` is read.
      options: the method and its options.
      key: for ``sample`` only.
      batch_size: B, needed only where the carry holds no array.

    Returns:
      Hypotheses, best first, with K = 1, ``num_samples`` or ``beam_size``.

    Raises:
      ValueError: an unknown method, ``sample`` without a key, or as the method's own function.

    A decoder that always gives ``<eos>`` probability 0.3 and word 4 probability 0.4:

    >>> logits = jnp.log(jnp.array([[0.1, 0.1, 0.3, 0.1, 0.4]]))  # (B,V)
    >>> found = search_captions(
    ...     lambda carry, tokens: (carry, logits),
    ...     carry=(),
    ...     options=SearchOptions(beam_size=2, max_steps=3),
    ...     batch_size=1,
    ... )
    >>> found.tokens.tolist()  # (B,K,L)
    [[[2, 0, 0], [4, 2, 0]]]
    >>> [f"{x:.2f}" for x in jnp.exp(found.log_probs[0])]
    ['0.30', '0.12']
    """
    normalization, alpha = options.length_normalization, options.length_alpha
    ngram_size, forbid_unknown = options.no_repeat_ngram_size, options.forbid_unknown
    if options.method == "greedy":
        return greedy_search(
            decode_step,
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
            decode_step,
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
            decode_step,
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


def ensemble(decode_steps: Sequence[DecodeStep]) -> DecodeStep:
    """Returns the step of an ensemble: the mean of its members' probabilities.

    Its carry is the tuple of their carries; its logits (B,V) float32 are the logarithm of the mean
    of the members' softmax. (The mean of logits would be their geometric mean.)

    Args:
      decode_steps: the members' steps, of one vocabulary; at least one.

    Raises:
      ValueError: no members; at the first step, another number of carries, or logits of different
        shapes.
    """
    members = tuple(decode_steps)
    if not members:
        raise ValueError("decode_steps: expected at least one, received none")

    def decode_step(carry: Carry, tokens: Array) -> tuple[Carry, Array]:
        if len(carry) != len(members):
            raise ValueError(
                f"carry: expected a tuple of {len(members)} carries, received {len(carry)}"
            )
        steps = [member(own, tokens) for member, own in zip(members, carry, strict=True)]
        shapes = {logits.shape for _, logits in steps}
        if len(shapes) > 1:
            raise ValueError(
                f"decode_steps: expected logits of one shape, received {sorted(shapes)}"
            )
        log_probs = jnp.stack(
            [jax.nn.log_softmax(logits.astype(jnp.float32)) for _, logits in steps]
        )
        mean = jax.nn.logsumexp(log_probs, axis=0) - jnp.log(float(len(members)))
        return tuple(own for own, _ in steps), mean

    return decode_step
