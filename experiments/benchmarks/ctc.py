"""CTC against its peers: the loss and its gradient, and prefix beam search.

Sizes are those of lines of text: 232 steps of 928 columns, 102 characters. The log-probabilities of
the searches have peaks as a trained model's, a character at every fourth step, but more noise.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.ctc_peer import prefix_search
from experiments.benchmarks.timing import Case, Jitted, Step
from flaxnets.decoders.ctc.loss import ctc_losses
from flaxnets.decoders.ctc.search import beam_search
from flaxnets.typing import Array

OURS = "flaxnets"
OPTAX = "optax"
PYTORCH = "PyTorch"
PLAIN = "plain Python"
PYCTCDECODE = "pyctcdecode"


def cases(
    batch_size: int = 32, steps: int = 232, classes: int = 103, length: int = 64, width: int = 10
) -> list[Case]:
    """Returns the loss, its gradient, and the search, whose times are for one line."""
    sizes = f"S={steps}, K={classes}"
    draw = partial(_draw_loss, batch_size, steps, classes, length)
    ways: dict[str, Callable[[], Step]] = {
        OURS: lambda: _jitted(_our_losses, draw(), gradient=False),
        OPTAX: lambda: _jitted(_optax_losses, draw(), gradient=False),
    }
    trained: dict[str, Callable[[], Step]] = {
        OURS: lambda: _jitted(_our_losses, draw(), gradient=True),
        OPTAX: lambda: _jitted(_optax_losses, draw(), gradient=True),
    }
    if importlib.util.find_spec("torch") is not None:
        ways[PYTORCH] = lambda: _torch_step(draw(), gradient=False)
        trained[PYTORCH] = lambda: _torch_step(draw(), gradient=True)
    title = f"CTC loss, {sizes}, B={batch_size}, L={length}"
    return [
        Case(f"{title}, forward", ways, fresh=False),
        Case(f"{title}, with gradient", trained, fresh=False),
        _search_case(
            f"prefix beam search, {sizes}, width {width}", batch_size, steps, classes, width
        ),
    ]


def _search_case(name: str, batch_size: int, steps: int, classes: int, width: int) -> Case:
    numbers = {OURS: batch_size, PLAIN: 1}
    log_probs = draw_log_probs(batch_size, steps, classes)

    def ours() -> Step:
        search = partial(beam_search, width=width, max_length=steps // 2)
        return Jitted(search, jnp.asarray(log_probs), jnp.full(batch_size, steps))

    def plain() -> Step:
        # As many characters at each step as ours by default.
        return lambda: prefix_search(log_probs[0], width, characters=16)

    ways: dict[str, Callable[[], Step]] = {OURS: ours, PLAIN: plain}
    if importlib.util.find_spec("pyctcdecode") is not None:
        numbers[PYCTCDECODE] = min(batch_size, 4)

        def peer() -> Step:
            from pyctcdecode import build_ctcdecoder

            letters = [chr(0x4E00 + number) for number in range(classes - 2)]
            decoder = build_ctcdecoder(["", " ", *letters])
            lines = log_probs[: numbers[PYCTCDECODE]]
            return lambda: [decoder.decode_beams(line, beam_width=width) for line in lines]

        ways[PYCTCDECODE] = peer
    limits = {way: 3 for way in ways if way != OURS}
    return Case(f"{name}, a line", ways, limits, False, numbers)


def draw_log_probs(batch_size: int, steps: int, classes: int) -> np.ndarray:
    """Returns log-probabilities (B,S,K) float32, whose most probable class is 0.7 in the mean."""
    generator = np.random.default_rng(0)
    logits = 1.5 * generator.standard_normal((batch_size, steps, classes), np.float32)
    peaks = generator.integers(1, classes, (batch_size, steps))
    peaks[:, np.arange(steps) % 4 > 0] = 0
    logits += 7 * (peaks[..., None] == np.arange(classes))
    return np.asarray(jax.nn.log_softmax(logits))


def _draw_loss(batch_size: int, steps: int, classes: int, length: int) -> tuple[np.ndarray, ...]:
    """Returns logits (B,S,K), steps (B,), labels (B,L) and their lengths (B,)."""
    generator = np.random.default_rng(0)
    return (
        generator.standard_normal((batch_size, steps, classes), np.float32),
        generator.integers(steps * 3 // 4, steps + 1, batch_size),
        generator.integers(1, classes, (batch_size, length)),
        generator.integers(length // 2, length + 1, batch_size),
    )


def _our_losses(logits: Array, *rest: Array) -> Array:
    return jnp.sum(ctc_losses(logits, *rest))


def _optax_losses(logits: Array, steps: Array, labels: Array, lengths: Array) -> Array:
    padding = (jnp.arange(logits.shape[1]) >= steps[:, None]).astype(jnp.float32)
    label_padding = (jnp.arange(labels.shape[1]) >= lengths[:, None]).astype(jnp.float32)
    return jnp.sum(optax.ctc_loss(logits, padding, labels, label_padding))


def _jitted(losses: Callable[..., Array], arguments: Any, gradient: bool) -> Jitted:
    return Jitted(jax.value_and_grad(losses) if gradient else losses, *map(jnp.asarray, arguments))


def _torch_step(arguments: tuple[np.ndarray, ...], gradient: bool) -> Step:
    import torch

    logits, steps, labels, lengths = (torch.tensor(array) for array in arguments)
    loss = torch.nn.CTCLoss(reduction="sum", zero_infinity=True)

    def step() -> object:
        with torch.set_grad_enabled(gradient):
            leaf = logits.detach().requires_grad_(gradient)
            total = loss(leaf.log_softmax(-1).transpose(0, 1), labels, steps, lengths)
            if gradient:
                total.backward()
            return total, leaf.grad

    return step
