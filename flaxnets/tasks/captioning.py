"""Captioning task: cross-entropy of reference captions in training, search in evaluation."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.decoders.hypotheses import DecodeStep, Hypotheses, check_penalty
from flaxnets.decoders.search import SearchOptions, search_captions
from flaxnets.layers.padding import zero_where_masked
from flaxnets.metrics import cross_entropies
from flaxnets.typing import (
    Array,
    Batch,
    Carry,
    PRNGKey,
    PyTree,
    Sums,
)

INPUTS = ("image", "features", "video")
"""Keys of a batch that hold the model's inputs."""


@dataclasses.dataclass(frozen=True)
class ScheduledSampling:
    """Schedule of the probability of scheduled sampling (Bengio et al., 1506.03099).

    A staircase from 0, as in the cross-entropy stage of self-critical training (Rennie et al.,
    1612.00563).

    Attributes:
      increase: added after every ``every`` training steps.
      every: training steps.
      maximum: upper bound, in [0,1].
    """

    increase: float = 0.05
    every: int = 1_000
    maximum: float = 0.25

    def probability(self, step: Array | int) -> Array:
        """Returns the probability, () float32, at a training step."""
        rises = jnp.asarray(step) // self.every
        return jnp.minimum(self.increase * rises.astype(jnp.float32), self.maximum)


@dataclasses.dataclass(frozen=True)
class Captioning:
    r"""Next-word cross-entropy of captions; batches as ``data/batches.py``'s ``CaptionBatch``.

    The loss is the mean cross-entropy in nats per word, end tokens included, over all words of the
    batch. ``caption_weights`` (B,C), where given, weight all terms of a caption and its word count.
    Evaluation also searches for a caption of each image.

    With an attending model the loss of a caption of L words over R regions may have the doubly
    stochastic penalty (Xu et al., 1502.03044, equation 14), which favours equal total attention to
    all regions,

    .. math::
        λ Σ_r (τ − Σ_t α_{tr})^2, \quad τ = 1,

    added to − log p of the caption. Hard attention adds the terms in ``HardAttention``'s docstring.

    Attributes:
      words: ids of a caption's tokens, up to the end token, to text.
      options: search of evaluation.
      label_smoothing: share of the target spread over the vocabulary, in [0,1); training only.
      attention_penalty: λ above; 0: none.
      scheduled_sampling: schedule; None: teacher forcing.
      reinforce_weight: λ_r of hard attention, at least 0.
      entropy_weight: λ_e of hard attention, at least 0.
    """

    words: Callable[[Sequence[int]], str]
    options: SearchOptions = dataclasses.field(default_factory=SearchOptions)
    label_smoothing: float = 0.0
    attention_penalty: float = 0.0
    scheduled_sampling: ScheduledSampling | None = None
    reinforce_weight: float = 1.0
    entropy_weight: float = 0.002

    def __post_init__(self) -> None:
        for name in ("attention_penalty", "reinforce_weight", "entropy_weight"):
            check_penalty(name, getattr(self, name))

    def initialize(self, model: nn.Module, key: PRNGKey, batch: Batch) -> PyTree:
        """Returns random variables; the shapes of one example suffice."""
        batch = jax.tree.map(lambda x: x[:1], dict(batch))
        inputs, lengths = model_inputs(batch)
        captions = batch["tokens"], batch["token_lengths"]
        return model.init(key, inputs, *captions, lengths, train=False)

    def loss(
        self,
        model: nn.Module,
        variables: PyTree,
        batch: Batch,
        key: PRNGKey,
        step: Array | int = 0,
    ) -> tuple[Sums, PyTree]:
        """Returns sums of ``loss``, ``cross_entropy`` (nats per word) and ``word_accuracy``."""
        dropout_key, sampling_key = jax.random.split(key)
        probability = None
        if self.scheduled_sampling is not None:
            probability = self.scheduled_sampling.probability(step)
        inputs, lengths = model_inputs(zero_masked_inputs(batch))
        outputs, collections = model.apply(
            variables,
            inputs,
            batch["tokens"],
            # Without captions of masked rows: hard attention's baseline averages all it is given.
            jnp.where(batch["mask"][:, None], batch["token_lengths"], 0),
            lengths,
            batch["mask"],
            train=True,
            sampling_probability=probability,
            rngs={"dropout": dropout_key, "sampling": sampling_key},
            mutable=[name for name in variables if name != "params"],
        )
        counts = word_mask(batch)  # (B,C,L)
        weights = batch.get("caption_weights", jnp.ones(()))  # (B,C), or of all
        weights = jnp.where(counts.any(-1), weights, 0)  # Absent captions may have any.
        sums = self._word_sums(outputs.logits, batch["tokens"], counts, weights)
        total, count = sums["loss"]
        if self.attention_penalty and outputs.attention is not None:
            total_attention = jnp.where(counts[..., None], outputs.attention, 0).sum(2)  # (B,C,R)
            exists = counts[..., :1]  # A caption of no words has no penalty.
            if lengths is not None:  # A video: its valid steps are the regions.
                exists &= jnp.arange(total_attention.shape[-1]) < lengths[:, None, None]
            unequal = jnp.where(exists, jnp.square(1 - total_attention), 0).sum(-1)  # (B,C)
            total = total + self.attention_penalty * jnp.sum(weights * unequal)
        if outputs.log_probabilities is not None:
            reward = self._attention_reward(outputs, batch["tokens"], counts)
            total = total - jnp.sum(weights * reward)
        return {**sums, "loss": (total, count)}, dict(collections)

    def evaluate(
        self, model: nn.Module, variables: PyTree, batch: Batch
    ) -> tuple[Sums, dict[str, Array]]:
        """Returns sums of ``loss`` (nats per word) and ``word_accuracy``, and the captions found.

        ``loss`` is the plain cross-entropy of the reference captions. The outputs, of the best
        hypothesis of each row: ``tokens`` (B,L) int32, ``length`` (B,) int32, ``log_probability``
        (B,) float32, nats, and ``ended`` (B,) bool.
        """
        inputs, lengths = model_inputs(batch)
        captions = batch["tokens"], batch["token_lengths"]
        outputs: Any = model.apply(variables, inputs, *captions, lengths, train=False)
        sums = self._word_sums(outputs.logits, batch["tokens"], word_mask(batch))
        sums["loss"] = sums.pop("cross_entropy")  # Without label smoothing.
        images = jnp.sum(batch["mask"], dtype=jnp.float32)
        sums["examples"] = (images, images)  # The counts above are of words.
        best = self.search(model, variables, batch)
        chosen = {
            "tokens": best.tokens[:, 0],
            "length": best.lengths[:, 0],
            "log_probability": best.log_probs[:, 0],
            "ended": best.ended[:, 0],
        }
        return sums, chosen

    def search(self, model: nn.Module, variables: PyTree, batch: Batch) -> Hypotheses:
        """Returns captions of each row's image, found by ``options``."""
        decode_step, carry = start_search(model, variables, batch)
        return search_captions(decode_step, carry, self.options)

    def describe_outputs(self, outputs: dict[str, Any], row: int) -> dict[str, Any]:
        """Returns ``{"caption", "log_probability", "ended"}`` of one image."""
        return {
            "caption": self.words([int(token) for token in outputs["tokens"][row]]),
            "log_probability": round(float(np.float64(outputs["log_probability"][row])), 6),
            "ended": bool(outputs["ended"][row]),
        }

    def _word_sums(
        self, logits: Array, tokens: Array, counts: Array, weights: Array | float = 1.0
    ) -> Sums:
        words = jnp.where(counts, tokens, 0)
        losses = cross_entropies(logits, words, counts, label_smoothing=self.label_smoothing)
        plain = cross_entropies(logits, words, counts) if self.label_smoothing else losses
        count = jnp.sum(counts, dtype=jnp.float32)
        weighed = jnp.sum(weights * jnp.sum(counts, -1, jnp.float32))
        right = (jnp.argmax(logits, axis=-1) == words) & counts

        return {
            "loss": (jnp.sum(losses * jnp.asarray(weights)[..., None]), weighed),
            "cross_entropy": (jnp.sum(plain), count),
            "word_accuracy": (jnp.sum(right, dtype=jnp.float32), count),
        }

    def _attention_reward(self, outputs: Any, tokens: Array, counts: Array) -> Array:
        """Returns hard attention's terms of a caption's objective, (B,C), at least float32.

        The score function estimator of ``HardAttention``'s docstring: the advantages are constants,
        so that log p(y|s) itself gets its gradient from the cross-entropy only.
        """
        likelihoods = -cross_entropies(outputs.logits, tokens, counts)  # (B,C,L)
        excess = jnp.where(counts, likelihoods - outputs.baseline, 0)
        advantages = jax.lax.stop_gradient(jax.lax.cumsum(excess, excess.ndim - 1, reverse=True))
        drawn = jnp.where(counts, advantages * outputs.log_probabilities, 0).sum(-1)
        entropy = jnp.where(counts, outputs.entropies, 0).sum(-1)
        return self.reinforce_weight * drawn + self.entropy_weight * entropy


def model_inputs(batch: Batch) -> tuple[Array, Array | None]:
    """Returns the model's inputs: images, features or videos, and the videos' lengths or None.

    Raises:
      ValueError: a batch with none of ``INPUTS``, or several.
    """
    found = [name for name in INPUTS if name in batch]
    if len(found) != 1:
        raise ValueError(f"batch: expected one of {INPUTS}, received {sorted(batch)}")
    return batch[found[0]], batch.get("lengths")


def zero_masked_inputs(batch: Batch) -> Batch:
    """Returns a batch whose float inputs are zero in rows that its mask leaves out.

    A NaN there would make the gradient NaN, although the row's loss is multiplied by zero.
    """
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    return {**batch, **{name: zero_where_masked(x, batch["mask"]) for name, x in inputs.items()}}


def word_mask(batch: Batch) -> Array:
    """Returns (B,C,L) bool: words of existing captions, in rows that are not masked out."""
    steps = jnp.arange(batch["tokens"].shape[-1])
    return (steps < batch["token_lengths"][..., None]) & batch["mask"][:, None, None]


def start_search(
    model: nn.Module, variables: PyTree, batch: Batch, **options: Any
) -> tuple[DecodeStep, Carry]:
    """Encodes a batch; returns the decoder's step and the carry before the first word.

    Args:
      model: a ``Captioner``.
      variables: of the model.
      batch: its inputs are encoded once; the step closes over the memory.
      options: further arguments of ``Module.apply`` for the model's ``start_decoding``.
    """
    started: Any = model.apply(variables, *model_inputs(batch), **options, method="start_decoding")
    memory, carry = started

    def decode_step(carry: Carry, tokens: Array) -> tuple[Carry, Array]:
        stepped: Any = model.apply(variables, memory, carry, tokens, method="decode_step")
        return stepped[0], stepped[1]

    return decode_step, carry
