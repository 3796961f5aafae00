"""Show, Attend and Tell with attention to one sampled region at a time."""

import jax
import jax.numpy as jnp

from flaxnets.decoders.caption_arrays import CaptionOutputs, Memory
from flaxnets.decoders.soft_attention import SoftAttention
from flaxnets.typing import Array


class HardAttention(SoftAttention):
    r"""Show, Attend and Tell with stochastic attention (Xu et al., 1502.03044, section 4.1).

    In training a region s_t is drawn from α_t at each step (key ``sampling``) and read alone; in
    evaluation it is the one of the largest α_t. Which region is drawn has no derivative; a task
    adds to the log-likelihood of a caption

    .. math::
        λ_r (\log p(y|s) - b) Σ_t \log α_{t,s_t} + λ_e Σ_t H(α_t)

    with ``stop_gradient`` around the bracket, of which the outputs hold :math:`\log α_{t,s_t}`
    (``log_probabilities``), H (``entropies``) and b (``baseline``). The paper's reductions of
    variance are here: b, the moving average :math:`b' = 0.9 b + 0.1 \log p(y|s)`, averaged over
    the batch's captions, is kept in the collection ``baseline`` and renewed by training calls that
    may change it; and with probability ``expectation_probability`` a caption is read with soft
    attention, s_t = α_t, throughout. It then has log-probabilities of zero.

    Deviations: in a caption that is read softly the likelihood's gradient reaches α through the
    regions, as the expectation's does; in the published code no gradient but that of the sampled
    form reaches α. Draws are one a caption, not one an image.

    Attributes:
      expectation_probability: of a caption to be read softly in training.
      baseline_decay: 0.9 above.
      axis_name: the axis of devices under ``pmap`` or ``shard_map`` over which captions'
        likelihoods are averaged; under ``jit`` they are those of the global batch without it.
    """

    expectation_probability: float = 0.5
    baseline_decay: float = 0.9
    axis_name: str | None = None

    def setup(self) -> None:
        """Makes the cell and the baseline."""
        super().setup()
        self.baseline = self.variable("baseline", "log_likelihood", jnp.zeros, (), jnp.float32)

    def __call__(
        self,
        features: Array,
        tokens: Array,
        token_lengths: Array,
        mask: Array | None = None,
        *,
        train: bool,
        sampling_probability: Array | float | None = None,
    ) -> CaptionOutputs:
        """See ``CaptionDecoder.__call__``; in training with the outputs named above."""
        outputs = super().__call__(
            features,
            tokens,
            token_lengths,
            mask,
            train=train,
            sampling_probability=sampling_probability,
        )
        baseline = self.baseline.value
        if train and not self.is_initializing() and self.is_mutable_collection("baseline"):
            mean = self._mean_log_likelihood(outputs.logits, tokens, token_lengths)
            decay = self.baseline_decay
            self.baseline.value = decay * baseline + (1 - decay) * mean
        return outputs._replace(baseline=baseline)

    def draw_flags(self, shape: tuple[int, ...], memory: Memory) -> dict[str, Array]:
        """Gumbel noise for each region, and which captions are read softly."""
        noise_key, soft_key = jax.random.split(self.make_rng("sampling"))
        soft = jax.random.bernoulli(soft_key, self.expectation_probability, shape[1:])
        return {
            "noise": jax.random.gumbel(noise_key, (*shape, memory["regions"].shape[1])),
            "soft": jnp.broadcast_to(soft, shape),
        }

    def choose(self, attention: Array, flags: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        """One region, or, where a caption is read softly, its weights as they are."""
        exists = attention > 0
        logs = jnp.log(jnp.where(exists, attention, 1))
        # The largest of log α + Gumbel noise is a draw from α.
        scores = logs + flags["noise"] if "noise" in flags else logs
        scores = jax.lax.stop_gradient(jnp.where(exists, scores, -jnp.inf))
        chosen = jax.nn.one_hot(scores.argmax(-1), scores.shape[-1], dtype=attention.dtype)
        chosen = chosen * exists
        if "noise" not in flags:
            return chosen, {}
        soft = flags["soft"][..., None]
        log_probability = jnp.where(soft, 0, (chosen * logs).sum(-1, keepdims=True))
        entropy = -(attention * logs).sum(-1, keepdims=True)
        outputs = {"log_probability": log_probability, "entropy": entropy}
        return jnp.where(soft, attention, chosen), outputs

    def _collect(self, logits: Array, outputs: dict[str, Array]) -> CaptionOutputs:
        collected = super()._collect(logits, outputs)
        if "entropy" not in outputs:
            return collected
        return collected._replace(
            log_probabilities=outputs["log_probability"][..., 0],
            entropies=outputs["entropy"][..., 0],
        )

    def _mean_log_likelihood(self, logits: Array, tokens: Array, token_lengths: Array) -> Array:
        """Log p(y) of a caption, averaged over those of at least one word; 0 of none."""
        logits = jax.lax.stop_gradient(logits)
        logs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
        valid = jnp.arange(tokens.shape[-1]) < token_lengths[..., None]
        total = jnp.sum(jnp.where(valid, logs, 0), dtype=jnp.float32)
        count = jnp.sum(token_lengths > 0, dtype=jnp.float32)
        if self.axis_name is not None:
            total, count = jax.lax.psum((total, count), self.axis_name)
        return total / jnp.maximum(count, 1)
