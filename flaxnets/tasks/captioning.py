"""The task of putting images into words, learnt from captions that people wrote."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.decoders.hypotheses import DecodeStep, Hypotheses
from flaxnets.decoders.search import SearchOptions, search_captions
from flaxnets.losses import cross_entropies
from flaxnets.typing import (
    Array,
    Batch,
    Carry,
    PRNGKey,
    PyTree,
    Sums,
)

INPUTS = ("image", "features", "video")


@dataclasses.dataclass(frozen=True)
class ScheduledSampling:
    """How often a step of training reads a word of the model's own (Bengio et al., 1506.03099).

    The probability rises by ``increase`` after every ``every`` steps of training until it is
    ``maximum``, as in the settings of self-critical training (1612.00563).
    """

    increase: float = 0.05
    every: int = 1_000
    maximum: float = 0.25

    def probability(self, step: Array | int) -> Array:
        """() float32 at a step of training."""
        rises = jnp.asarray(step) // self.every
        return jnp.minimum(self.increase * rises.astype(jnp.float32), self.maximum)


@dataclasses.dataclass(frozen=True)
class Captioning:
    """Each word of a caption after the words before it, as in ``data/batches.py``'s CaptionBatch.

    The loss is the cross-entropy of the words, the end token included; its quotient is over all
    words of the batch, each as often as its caption's ``caption_weights`` say, which weigh all of
    a caption's terms. Evaluation also searches for a caption of each image.

    With a model that attends there is the penalty of Xu et al., 1502.03044, equation 14, by which
    each of R regions is looked at about equally often in a caption of L words,

        λ Σ_r (τ − Σ_t α_tr)²,   τ = 1,

    added to a caption's − log p. Hard attention adds the terms of its docstring.

    Attributes:
      words: ids of a caption's tokens, up to the end token, to text.
      options: the search of evaluation.
      label_smoothing: share of the target spread over the vocabulary.
      attention_penalty: λ above; 0: none.
      scheduled_sampling: None: teacher forcing.
      reinforce_weight: λ_r of hard attention.
      entropy_weight: λ_e of hard attention.
    """

    words: Callable[[Sequence[int]], str]
    options: SearchOptions = dataclasses.field(default_factory=SearchOptions)
    label_smoothing: float = 0.0
    attention_penalty: float = 0.0
    scheduled_sampling: ScheduledSampling | None = None
    reinforce_weight: float = 1.0
    entropy_weight: float = 0.002

    def initialize(self, model: nn.Module, key: PRNGKey, batch: Batch) -> PyTree:
        """Random variables, from one example's shapes."""
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
        """Sums of ``loss``, ``cross_entropy`` (nats a word) and ``word_accuracy``."""
        dropout_key, sampling_key = jax.random.split(key)
        probability = None
        if self.scheduled_sampling is not None:
            probability = self.scheduled_sampling.probability(step)
        inputs, lengths = model_inputs(batch)
        outputs, collections = model.apply(
            variables,
            inputs,
            batch["tokens"],
            # Captions of rows that do not count must not reach hard attention's baseline either.
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
        sums = self._word_sums(outputs.logits, batch["tokens"], counts, weights)
        total, count = sums["loss"]
        if self.attention_penalty and outputs.attention is not None:
            looked = jnp.where(counts[..., None], outputs.attention, 0).sum(2)  # (B,C,R)
            exists = counts[..., :1]
            if lengths is not None:  # Of a video, whose steps are the regions.
                exists &= jnp.arange(looked.shape[-1]) < lengths[:, None, None]
            unequal = jnp.where(exists, jnp.square(1 - looked), 0).sum(-1)  # (B,C)
            total = total + self.attention_penalty * jnp.sum(weights * unequal)
        if outputs.log_probabilities is not None:
            reward = self._attention_reward(outputs, batch["tokens"], counts)
            total = total - jnp.sum(weights * reward)
        return {**sums, "loss": (total, count)}, dict(collections)

    def evaluate(
        self, model: nn.Module, variables: PyTree, batch: Batch
    ) -> tuple[Sums, dict[str, Array]]:
        """Sums of ``loss`` (nats a word of all captions) and ``word_accuracy``, and captions.

        The outputs are ``tokens`` (B,L) int32, ``length`` (B,) int32, ``log_probability`` (B,)
        float32 and ``ended`` (B,) bool of the best hypothesis.
        """
        inputs, lengths = model_inputs(batch)
        captions = batch["tokens"], batch["token_lengths"]
        outputs: Any = model.apply(variables, inputs, *captions, lengths, train=False)
        sums = self._word_sums(outputs.logits, batch["tokens"], word_mask(batch))
        sums["loss"] = sums.pop("cross_entropy")  # Whatever the smoothing in training.
        images = jnp.sum(batch["mask"], dtype=jnp.float32)
        sums["examples"] = (images, images)  # The loss counts words.
        best = self.search(model, variables, batch)
        chosen = {
            "tokens": best.tokens[:, 0],
            "length": best.lengths[:, 0],
            "log_probability": best.log_probs[:, 0],
            "ended": best.ended[:, 0],
        }
        return sums, chosen

    def search(self, model: nn.Module, variables: PyTree, batch: Batch) -> Hypotheses:
        """Captions of each row's image, by ``options``."""
        decode_step, carry = start_search(model, variables, batch)
        return search_captions(decode_step, carry, self.options)

    def describe_outputs(self, outputs: dict[str, Any], row: int) -> dict[str, Any]:
        """``{"caption", "log_probability", "ended"}`` of one image."""
        return {
            "caption": self.words([int(token) for token in outputs["tokens"][row]]),
            "log_probability": round(float(np.float64(outputs["log_probability"][row])), 6),
            "ended": bool(outputs["ended"][row]),
        }

    def _word_sums(
        self, logits: Array, tokens: Array, counts: Array, weights: Array | float = 1.0
    ) -> Sums:
        words = jnp.where(counts, tokens, 0)
        losses = cross_entropies(logits, words, label_smoothing=self.label_smoothing)
        plain = cross_entropies(logits, words) if self.label_smoothing else losses
        count = jnp.sum(counts, dtype=jnp.float32)
        weighed = jnp.sum(weights * jnp.sum(counts, -1, jnp.float32))
        right = (jnp.argmax(logits, axis=-1) == words) & counts

        def total(values: Array) -> Array:
            return jnp.sum(jnp.where(counts, values, 0.0))

        return {
            "loss": (total(losses * jnp.asarray(weights)[..., None]), weighed),
            "cross_entropy": (total(plain), count),
            "word_accuracy": (jnp.sum(right, dtype=jnp.float32), count),
        }

    def _attention_reward(self, outputs: Any, tokens: Array, counts: Array) -> Array:
        """What hard attention's sampled regions add to a log-likelihood, (B,C) float32 at least."""
        words = jnp.where(counts, tokens, 0)
        likelihood = jnp.where(counts, -cross_entropies(outputs.logits, words), 0).sum(-1)  # (B,C)
        advantage = jax.lax.stop_gradient(likelihood - outputs.baseline)
        drawn = jnp.where(counts, outputs.log_probabilities, 0).sum(-1)
        entropy = jnp.where(counts, outputs.entropies, 0).sum(-1)
        return self.reinforce_weight * advantage * drawn + self.entropy_weight * entropy


def model_inputs(batch: Batch) -> tuple[Array, Array | None]:
    """What the model sees of a batch: images or features, or videos and their lengths.

    Raises:
      ValueError: a batch with none of them, or several.
    """
    found = [name for name in INPUTS if name in batch]
    if len(found) != 1:
        raise ValueError(f"batch: expected one of {INPUTS}, received {sorted(batch)}")
    return batch[found[0]], batch.get("lengths")


def word_mask(batch: Batch) -> Array:
    """(B,C,L) bool: words of captions that exist, of examples that count."""
    steps = jnp.arange(batch["tokens"].shape[-1])
    return (steps < batch["token_lengths"][..., None]) & batch["mask"][:, None, None]


def start_search(
    model: nn.Module, variables: PyTree, batch: Batch, **options: Any
) -> tuple[DecodeStep, Carry]:
    """One step of the decoder on a batch's images, and the carry before the first.

    Args:
      model: a ``Captioner``.
      variables: of the model.
      batch: of images.
      options: further arguments of ``Module.apply``, for the model's ``start_decoding``.
    """
    started: Any = model.apply(variables, *model_inputs(batch), **options, method="start_decoding")
    memory, carry = started

    def decode_step(carry: Carry, tokens: Array) -> tuple[Carry, Array]:
        advanced: Any = model.apply(variables, memory, carry, tokens, method="decode_step")
        return advanced[0], advanced[1]

    return decode_step, carry
