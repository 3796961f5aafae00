"""Sampling of token sequences from a trained language model."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.typing import Array, Carry, PyTree


@runtime_checkable
class SamplesText(Protocol):
    """Configuration of an experiment whose model continues texts."""

    def encode_text(self, text: str) -> np.ndarray:
        """Returns the tokens of a text, (N,) int32; raises ValueError for unknown ones."""

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens."""


def encode_prompt(config: SamplesText, text: str | None) -> np.ndarray:
    """Returns the tokens of a prompt, (N,) int32.

    Args:
      config: of the language model.
      text: the prompt; None: a new line or, where the model does not know it, a blank.

    Raises:
      ValueError: unknown tokens.
    """
    if text is not None:
        return config.encode_text(text)
    try:
        return config.encode_text("\n")
    except ValueError:
        return config.encode_text(" ")


def sample_tokens(
    model: nn.Module,
    variables: PyTree,
    prompt: np.ndarray,
    length: int,
    *,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns continuations of a prompt, each token drawn given all before it.

    The state of the network is carried from token to token, so that a token costs one step of the
    recurrent layer, however long the text is.

    Args:
      model: with ``stream``, as ``flaxnets.models.sequence_model.SequenceModel`` on tokens.
      variables: its variables.
      prompt: (P,) int32 tokens, P >= 1.
      length: tokens that are drawn, at least 1.
      num_samples: S continuations.
      temperature: logits are divided by it; 0: the most probable token.
      top_k: tokens that may be drawn, the most probable ones; 0: all.
      seed: of the draws.

    Returns:
      Tokens (S,length) int32, and the log-probability in nats that the network gives each of them,
      (S,length) float32.

    Raises:
      ValueError: an empty prompt, numbers out of range, or a network without ``stream``.
    """
    prompt = np.asarray(prompt, np.int32)
    if prompt.ndim != 1 or not len(prompt):
        raise ValueError(f"prompt: expected at least one token, received shape {prompt.shape}")
    for name, value, least in (("length", length, 1), ("num_samples", num_samples, 1)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, received {value}")
    if temperature < 0 or top_k < 0:
        raise ValueError(
            f"temperature, top_k: expected at least 0, received {temperature} and {top_k}"
        )
    if reason := getattr(model, "obstacle", "it has no stream"):
        raise ValueError(f"model: expected one that goes from token to token, but {reason}")
    tokens = jnp.asarray(np.broadcast_to(prompt, (num_samples, len(prompt))))
    draw = jax.jit(partial(_sample, model, length=length, temperature=temperature, top_k=top_k))
    drawn, scores = jax.device_get(draw(variables, tokens, jax.random.key(seed)))
    return np.asarray(drawn), np.asarray(scores)


def _sample(
    model: nn.Module,
    variables: PyTree,
    prompt: Array,
    key: Array,
    *,
    length: int,
    temperature: float,
    top_k: int,
) -> tuple[Array, Array]:
    def read(carry: Carry | None, tokens: Array) -> tuple[Carry, Array]:
        """Returns the carry and the logits (S,V) behind the last of ``tokens`` (S,N)."""
        streamed: Any = model.apply(variables, carry, tokens, method="stream")
        return streamed[0], streamed[1].steps[:, -1]

    def step(state: tuple[Carry, Array], key: Array) -> tuple[tuple[Carry, Array], Any]:
        carry, logits = state
        token = _draw(key, logits, temperature, top_k)
        scores = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
        return read(carry, token[:, None]), (token, scores)

    _, (tokens, scores) = jax.lax.scan(step, read(None, prompt), jax.random.split(key, length))
    return tokens.T, scores.T


def _draw(key: Array, logits: Array, temperature: float, top_k: int) -> Array:
    """Returns a token for each row of logits (S,V), (S,) int32."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits / temperature).astype(jnp.int32)
