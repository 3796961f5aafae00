"""Self-critical training: captions that the model draws are rewarded as they are scored."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.decoders.hypotheses import BOS, PAD, UNK
from flaxnets.decoders.sampling import greedy_search, sample
from flaxnets.tasks.captioning import Captioning, model_inputs, start_search
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

    Of each image S captions w are drawn from the model; the loss is

        − Σ_w (r(w) − b) log p(w) / Σ_w |w|,

    |w| a caption's tokens. The baseline b is the reward of the caption that greedy search finds
    (the paper's), or, of each sample, the mean reward of the image's other samples (Luo,
    "A Better Variant of Self-Critical Sequence Training", 2003.09971). The reward is the CIDEr-D
    against the image's captions in the batch, weighed by ``caption_weights`` where there are such,
    computed on the device (``flaxnets/tasks/cider.py``).

    Deviations: captions are drawn, and their probability is differentiated, without the decoder's
    dropout, so that both are of the same distribution; the paper does not say. With
    ``image_dropout`` both are of an image of which the same channels and places are dropped. The
    batch's captions are those of ``CaptionBatch``, all of an image in one row.

    Attributes:
      frequencies: document frequencies of the training split.
      num_samples: S; at least 2 for ``leave_one_out``.
      baseline: ``greedy`` or ``leave_one_out``.
      image_dropout: whether the rates of a ``Captioner`` that drop parts of the image act.
      drawn_steps: the most tokens of a caption that is drawn, or found for the baseline, the end
        token included; 0: ``options.max_steps``.
      temperature: above 0; p is that of scores divided by it, in drawing and in the gradient. Below
        1 captions are drawn that are more like those that a search finds.
    """

    frequencies: DocumentFrequencies
    num_samples: int = 5
    baseline: str = "leave_one_out"
    image_dropout: bool = False
    drawn_steps: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise ValueError(f"baseline: expected one of {BASELINES}, received {self.baseline!r}")
        least = 2 if self.baseline == "leave_one_out" else 1
        if self.num_samples < least:
            raise ValueError(
                f"num_samples: expected at least {least} for {self.baseline}, "
                f"received {self.num_samples}"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected above 0, received {self.temperature}")

    def loss(
        self,
        model: nn.Module,
        variables: PyTree,
        batch: Batch,
        key: PRNGKey,
        step: Array | int = 0,
    ) -> tuple[Sums, PyTree]:
        """Sums of ``loss``, ``reward`` and ``baseline`` (CIDEr-D, 0 to 10), ``sampled_words``."""
        fixed = jax.lax.stop_gradient(variables)
        options: dict[str, Any] = {}
        if self.image_dropout:
            key, drop_key = jax.random.split(key)
            options = {"image_dropout": True, "rngs": {"dropout": drop_key}}
        decode_step, carry = start_search(model, fixed, batch, **options)
        max_steps = self.drawn_steps or self.options.max_steps
        drawn = sample(
            decode_step,
            carry,
            key,
            num_samples=self.num_samples,
            max_steps=max_steps,
            temperature=self.temperature,
        )
        words = (
            jnp.arange(batch["tokens"].shape[-1]) < batch["token_lengths"][..., None]
        )  # A caption that does not exist is one of padding.
        references = jnp.where(words, batch["tokens"], PAD)
        reward = partial(
            cider_d, self.frequencies, references=references, weights=batch.get("caption_weights")
        )
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
        """(B,S,L) float32: log-probability of each word under what ``sample`` drew it from."""
        inputs, num_frames = model_inputs(batch)
        outputs: Any = model.apply(
            variables, inputs, tokens, lengths, num_frames, train=False, **options
        )
        ids = jnp.arange(outputs.logits.shape[-1])
        may_follow = (ids != PAD) & (ids != BOS) & (ids != UNK)
        logits = jnp.where(may_follow, outputs.logits / self.temperature, -jnp.inf)
        steps = jnp.arange(tokens.shape[-1]) < lengths[..., None]
        # Where a caption has ended a token that may follow stands in for the padding.
        words = jnp.where(steps, tokens, ids[-1])[..., None]
        logs = jnp.take_along_axis(jax.nn.log_softmax(logits), words, axis=-1)[..., 0]
        return jnp.where(steps, logs, 0)
