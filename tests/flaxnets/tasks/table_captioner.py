"""Captioner whose logits are a table, small enough for NumPy and for enumeration."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.decoders.decoder import CaptionOutputs

B, C, L, R, V = 3, 2, 4, 5, 7
BOS, EOS = 1, 2


class TableCaptioner(nn.Module):
    """Logits of each step: the table's row of the word before, plus those of the image.

    Attributes:
      max_steps: rows of the table.
      vocabulary_size: V.
      attends: returns attention weights.
      draws: as if regions were sampled in training; region t at step t.
    """

    max_steps: int = L
    vocabulary_size: int = V
    attends: bool = False
    draws: bool = False

    def setup(self) -> None:
        normal, v = nn.initializers.normal(1.0), self.vocabulary_size
        self.table = self.param("table", normal, (self.max_steps, v, v))
        self.energies = self.param("energies", normal, (self.max_steps,))
        self.baseline = self.variable("state", "baseline", lambda: jnp.float32(-4.0))

    def __call__(
        self,
        inputs: jax.Array,
        tokens: jax.Array,
        token_lengths: jax.Array,
        lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        *,
        train: bool,
        sampling_probability: jax.Array | float | None = None,
    ) -> CaptionOutputs:
        num_steps = tokens.shape[-1]
        first = jnp.full_like(tokens[..., :1], BOS)
        previous = jnp.concatenate([first, tokens[..., :-1]], -1)
        logits = self.table[jnp.arange(num_steps), previous] + image_logits(inputs)[:, None, None]
        if sampling_probability is not None:
            logits = logits * (1 + sampling_probability)
        outputs = CaptionOutputs(logits)
        if not self.attends:
            return outputs
        energies = self.energies[:num_steps, None] * inputs[:, None, None, :, 0]  # (B,1,L,R)
        attention = jax.nn.softmax(
            jnp.broadcast_to(energies, (*logits.shape[:3], energies.shape[-1]))
        )
        outputs = outputs._replace(attention=attention)
        if not (self.draws and train):
            return outputs
        steps = jnp.arange(num_steps)
        return outputs._replace(
            log_probabilities=jnp.log(attention[..., steps, steps]),
            entropies=-(attention * jnp.log(attention)).sum(-1),
            baseline=self.baseline.value,
        )

    def start_decoding(
        self, inputs: jax.Array, lengths: jax.Array | None = None
    ) -> tuple[Any, jax.Array]:
        return image_logits(inputs), jnp.zeros(len(inputs), jnp.int32)

    def decode_step(
        self, memory: jax.Array, carry: jax.Array, previous: jax.Array
    ) -> tuple[jax.Array, jax.Array, None]:
        return carry + 1, self.table[carry, previous] + memory, None


def image_logits(inputs: Any) -> Any:
    """Returns the logits (B,V) that an image (B,R,1+V) adds at every step."""
    return jnp.asarray(inputs)[:, 0, 1:]


def captions(seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a batch of three images with two captions, one absent, of lengths 1 to L."""
    rng = np.random.default_rng(seed)
    token_lengths = np.array([[4, 2], [3, 0], [1, 3]], np.int32)
    tokens = np.zeros((B, C, L), np.int32)
    for row, column in np.argwhere(token_lengths > 0):
        length = token_lengths[row, column]
        tokens[row, column, :length] = [*rng.integers(3, V, length - 1), EOS]
    return {
        "features": rng.normal(size=(B, R, 1 + V)).astype(np.float32),
        "tokens": tokens,
        "token_lengths": token_lengths,
        "mask": np.ones(B, bool),
        "index": np.arange(B, dtype=np.int32),
    }


def variables_of(model: nn.Module, batch: dict[str, np.ndarray], seed: int = 0) -> Any:
    inputs = batch["features"], batch["tokens"], batch["token_lengths"]
    return jax.jit(lambda key: model.init(key, *inputs, train=False))(jax.random.key(seed))


def given_words(batch: dict[str, np.ndarray]) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields (row, caption, step, word before, word) of each valid word."""
    for b, c in np.argwhere(batch["token_lengths"] > 0):
        previous = BOS
        for t in range(batch["token_lengths"][b, c] if batch["mask"][b] else 0):
            word = int(batch["tokens"][b, c, t])
            yield int(b), int(c), t, previous, word
            previous = word


def enumerate_captions(words: Sequence[int], num_steps: int) -> np.ndarray:
    """Returns all captions (N,L) of at most L tokens: those that end, and those cut at L."""
    lists = [itertools.product(words, repeat=n) for n in range(num_steps + 1)]
    *shorter, cut = ([list(caption) for caption in group] for group in lists)
    found = [[*caption, EOS] for group in shorter for caption in group] + cut
    return np.array([caption + [0] * (num_steps - len(caption)) for caption in found], np.int32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
