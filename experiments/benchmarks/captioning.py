"""Training step of captioning with soft attention against PyTorch, and all captioning cases.

The step is complete: forward pass, penalty on attention, backward pass, clipping, Adam. Captions
have the lengths of Flickr8k's. It is measured on one batch that all ways share, and on the batches
with which each side trains: ours have captions of similar length (``length_buckets``), the peer's
are random batches of the same captions, and its steps leave out captions that have ended. Our
decoder has the form of its peer, a gate for each of the D features and no deep output, but the
paper's tanh where the peer has ReLU or no activation.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from data.captions.length_buckets import LengthBuckets, choose_boundaries
from experiments.benchmarks.caption_peer import OURS, draw_batch, make_decoder
from experiments.benchmarks.caption_search import search_cases
from experiments.benchmarks.timing import Case, Step
from flaxnets.decoders.decoder import CaptionDecoder
from flaxnets.models.captioner import Captioner
from flaxnets.tasks.captioning import Captioning
from flaxnets.training.config import OptimizerConfig
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.state import initialize_variables, make_state
from flaxnets.training.step import make_train_step
from flaxnets.typing import PyTree

AS_WRITTEN = "PyTorch, as its authors wrote it"
HOISTED = "PyTorch, hoisted"

NUM_BUCKETS = 8
"""Number of lengths of our batches, as in the captioning experiments."""


def draw_batches(
    num_batches: int,
    batch_size: int,
    num_regions: int,
    width: int,
    vocabulary_size: int,
    *,
    similar: bool,
) -> list[dict[str, np.ndarray]]:
    """Returns batches of the same captions: of similar lengths, as ours train on, or random."""
    drawn = draw_batch(num_batches * batch_size, num_regions, width, vocabulary_size)
    lengths = drawn["token_lengths"][:, 0]
    buckets = LengthBuckets(lengths, choose_boundaries(lengths, NUM_BUCKETS), batch_size=batch_size)
    batches = []
    for number in range(num_batches):
        rows = buckets.batch(number)
        if not similar:
            rows = np.arange(number * batch_size, (number + 1) * batch_size)
        batch = {name: array[rows] for name, array in drawn.items()}
        if similar:
            batch = buckets.finish(number, batch)
        else:
            batch["tokens"] = batch["tokens"][..., : lengths[rows].max()]
        batches.append(batch)
    return batches


class TrainingStep:
    """Training steps as in ``launch.train``, one for each batch; calls continue from the last.

    Args:
      decoder: the decoder.
      batches: the batches, with cached features.
    """

    def __init__(self, decoder: CaptionDecoder, batches: Sequence[dict[str, np.ndarray]]):
        batch = batches[0]
        # The peer averages its penalty over captions and regions; ours is divided by the words.
        regions = math.prod(batch["features"].shape[:-1])
        penalty = float(batch["token_lengths"].sum() / regions)
        task = Captioning(words=str, attention_penalty=penalty)
        model = Captioner(decoder=decoder)
        variables = initialize_variables(model, task, batch, seed=0)
        config = OptimizerConfig(learning_rate=4e-4, clip_norm=5.0)
        optimizer = make_optimizer(config, 1_000, variables["params"])
        self._batches = tuple(batches)
        self._state = make_state(variables, optimizer, seed=0)
        self._update = jax.jit(make_train_step(model, task, optimizer), donate_argnums=0)

    @property
    def params(self) -> PyTree:
        """Current parameters of the decoder."""
        return self._state.params["decoder"]

    def __call__(self) -> float:
        """Takes a step on each batch and returns the loss of the last."""
        for batch in self._batches:
            self._state, sums = self._update(self._state, batch)
        jax.block_until_ready(self._state)
        total, count = sums["loss"]
        return float(total) / float(count)

    def temporary_bytes(self) -> int:
        """Returns the bytes that XLA allocates for temporaries."""
        longest = max(self._batches, key=lambda batch: batch["tokens"].shape[-1])
        analysis: Any = self._update.lower(self._state, longest).compile().memory_analysis()
        return int(analysis.temp_size_in_bytes)


def training_cases(
    batch_size: int = 64,
    num_regions: int = 49,
    width: int = 1280,
    features: int = 512,
    vocabulary_size: int = 2541,
    num_batches: int = 16,
) -> list[Case]:
    """Returns the training step on one batch, and on ``num_batches`` as each side samples them."""
    sizes = batch_size, num_regions, width, vocabulary_size
    shape = f"soft attention, {features} units, B={batch_size}, {num_regions}×{width}, training"

    def ways(
        ours: Callable[[], list[dict[str, np.ndarray]]],
        theirs: Callable[[], list[dict[str, np.ndarray]]],
    ) -> dict[str, Callable[[], Step]]:
        def flaxnets() -> Step:
            return TrainingStep(make_decoder(vocabulary_size, features), ours())

        def peer(hoisted: bool) -> Step:
            from experiments.benchmarks.torch_captioning import make_training_step

            return make_training_step(theirs(), vocabulary_size, features, hoisted=hoisted)

        if importlib.util.find_spec("torch") is None:
            return {OURS: flaxnets}
        return {OURS: flaxnets, AS_WRITTEN: partial(peer, False), HOISTED: partial(peer, True)}

    def one() -> list[dict[str, np.ndarray]]:
        return [draw_batch(*sizes)]

    similar = partial(draw_batches, num_batches, *sizes, similar=True)
    mixed = partial(draw_batches, num_batches, *sizes, similar=False)
    of_all = ways(similar, mixed)
    return [
        Case(f"{shape} step, one batch", ways(one, one)),
        Case(
            f"{shape} step, each with its batches",
            of_all,
            dict.fromkeys(of_all, 5),
            False,
            dict.fromkeys(of_all, num_batches),
        ),
    ]


def cases() -> list[Case]:
    """Returns the training step and beam search."""
    return [*training_cases(), *search_cases()]
