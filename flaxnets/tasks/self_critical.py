"""Self-critical sequence training: policy gradient with CIDEr-D of sampled captions as reward."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.decoders.hypotheses import BOS, PAD, UNK
from flaxnets.decoders.sampling import check_temperature, greedy_search, sample
from flaxnets.layers.padding import zero_where_masked
from flaxnets.tasks.captioning import (
    Captioning,
    model_inputs,
    start_search,
    zero_masked_inputs,
)
from flaxnets.tasks.cider import DocumentFrequencies, cider_d
from flaxnets.typing import (
    Array,
    Batch,
    PRNGKey,
    PyTree,
    Sums,
)

BASELINES = ("greedy", "leave_one_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfCritical(Captioning):
    r"""Policy gradient with CIDEr-D as the reward (Rennie et al., 1612.00563, section 3.3).

    S captions w are sampled for each image; the loss is

    .. math::
        − Σ_w (r(w) − b) \log p(w) / Σ_w |w|

    with |w| tokens of a caption. The baseline b is the reward of the greedy caption (the paper's),
    or for each sample the mean reward of the image's other samples (Luo, "A Better Variant of
    Self-Critical Sequence Training", 2003.09971). The reward is CIDEr-D against the image's
    captions in the batch, weighted by ``caption_weights`` where given, computed on the device
    (``cider_d``).

    Deviations: sampling and the differentiated log p both run without the decoder's dropout, so
    that both are of the same distribution; the paper does not say. With ``image_dropout`` both see
    an image without the same channels and regions. The references are a row's captions, as in
    ``CaptionBatch``.

    Attributes:
      frequencies: document frequencies of the training split.
      num_samples: S; at least 2 for ``leave_one_out``.
      baseline: ``greedy`` or ``leave_one_out``.
      image_dropout: apply the ``Captioner``'s ``feature_dropout_rate`` and ``region_dropout_rate``.
      drawn_steps: maximum length of sampled and greedy captions in tokens, the end token included;
        0: ``options.max_steps``.
      temperature: above 0; p is the softmax of the logits divided by it, in sampling and in the
        gradient. Below 1 the samples are closer to what a search finds.
    """

    frequencies: DocumentFrequencies
    num_samples: int = 5
    baseline: str = "leave_one_out"
    image_dropout: bool = False
    drawn_steps: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline not in BASELINES:
            raise ValueError(f"baseline: expected one of {BASELINES}, received {self.baseline!r}")
        least = 2 if self.baseline == "leave_one_out" else 1
        if self.num_samples < least:
            raise ValueError(
                f"num_samples: expected at least {least} for {self.baseline}, "
                f"received {self.num_samples}"
            )
        check_temperature(self.temperature)

    def loss(
        self,
        model: nn.Module,
        variables: PyTree,
        batch: Batch,
        key: PRNGKey,
        step: Array | int = 0,
    ) -> tuple[Sums, PyTree]:
        """Returns sums of ``loss``, ``reward``, ``baseline`` and ``sampled_words``.

        ``reward`` and ``baseline`` are CIDEr-D in [0,10]; ``sampled_words`` counts tokens of a
        caption.
        """
        # Sampling is not differentiated. log p of the samples is recomputed by teacher forcing, in
        # one scan, and only that has a gradient.
        constants = jax.lax.stop_gradient(variables)
        batch = zero_masked_inputs(batch)
        options: dict[str, Any] = {}
        if self.image_dropout:
            # One key for sampling and for log p, so that both drop the same parts of the image.
            key, drop_key = jax.random.split(key)
            options = {"image_dropout": True, "rngs": {"dropout": drop_key}}
        decode_step, carry = start_search(model, constants, batch, **options)
        max_steps = self.drawn_steps or self.options.max_steps
        drawn = sample(
            decode_step,
            carry,
            key,
            num_samples=self.num_samples,
            max_steps=max_steps,
            temperature=self.temperature,
        )
        # An absent caption (length 0) becomes all padding, which ``cider_d`` ignores.
        words = jnp.arange(batch["tokens"].shape[-1]) < batch["token_lengths"][..., None]
        references = jnp.where(words, batch["tokens"], PAD)
        weights = batch.get("caption_weights")
        if weights is not None:  # Absent captions may have any.
            weights = jnp.where(words.any(-1), weights, 0)
        reward = partial(cider_d, self.frequencies, references=references, weights=weights)
        rewards = reward(drawn.tokens)  # (B,S)
        if self.baseline == "greedy":
            greedy = greedy_search(decode_step, carry, max_steps=max_steps)
            baselines = reward(greedy.tokens)  # (B,1)
            baselines = jnp.broadcast_to(baselines, rewards.shape)
        else:
            others = rewards.sum(-1, keepdims=True) - rewards
            baselines = others / (self.num_samples - 1)
        advantages = jnp.where(batch["mask"][:, None], rewards - baselines, 0)
        log_probs = self._log_probs(model, variables, batch, drawn.tokens, drawn.lengths, options)
        weighted = jnp.sum(advantages[..., None] * log_probs, dtype=jnp.float32)
        rows = batch["mask"][:, None]
        num_words = jnp.sum(jnp.where(rows, drawn.lengths, 0), dtype=jnp.float32)
        num_captions = jnp.sum(batch["mask"], dtype=jnp.float32) * self.num_samples

        def total(values: Array) -> Array:
            return jnp.sum(jnp.where(rows, values, 0), dtype=jnp.float32)

        sums = {
            "loss": (-weighted, num_words),
            "reward": (total(rewards), num_captions),
            "baseline": (total(baselines), num_captions),
            "sampled_words": (num_words, num_captions),
        }
        return sums, {name: variables[name] for name in variables if name != "params"}

    def _log_probs(
        self,
        model: nn.Module,
        variables: PyTree,
        batch: Batch,
        tokens: Array,
        lengths: Array,
        options: Mapping[str, Any],
    ) -> Array:
        """Returns log p of each word (B,S,L) float32 under the distribution ``sample`` drew from.

        The distribution is a softmax at ``temperature`` over the words that ``WordRules`` allows.
        log p is zero at padding and in rows that ``mask`` leaves out.
        """
        inputs, num_frames = model_inputs(batch)
        outputs: Any = model.apply(
            variables, inputs, tokens, lengths, num_frames, train=False, **options
        )
        ids = jnp.arange(outputs.logits.shape[-1])
        may_follow = (ids != PAD) & (ids != BOS) & (ids != UNK)
        steps = jnp.arange(tokens.shape[-1]) < lengths[..., None]  # (B,S,L)
        steps &= batch["mask"][:, None, None]
        logits = zero_where_masked(outputs.logits, steps)
        logits = jnp.where(may_follow, logits / self.temperature, -jnp.inf)
        # An allowed word stands in for padding, whose logit is -inf: -inf would make NaN gradients.
        words = jnp.where(steps, tokens, ids[-1])[..., None]
        logs = jnp.take_along_axis(jax.nn.log_softmax(logits), words, axis=-1)[..., 0]
        return jnp.where(steps, logs, 0)
