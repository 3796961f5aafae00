"""Beam search with soft attention against PyTorch: milliseconds for each image, cached features.

The weights are random except for one unit of the LSTM, which counts steps, so that captions end
after about eleven words, as those of trained models do. The peer that searches image by image has
the same weights. The peer that searches in batches is another model, att2in2, which takes all steps
whatever its weights are.
"""

import importlib.util
import math
from collections.abc import Callable

import jax
import numpy as np

from experiments.benchmarks.caption_peer import OURS, draw_batch, make_decoder
from experiments.benchmarks.timing import Case, Step
from flaxnets.decoders.decoder import CaptionDecoder
from flaxnets.decoders.hypotheses import (
    BOS,
    EOS,
    PAD,
    UNK,
)
from flaxnets.decoders.search import SearchOptions
from flaxnets.models.captioner import Captioner
from flaxnets.tasks.captioning import Captioning
from flaxnets.training.state import initialize_variables
from flaxnets.typing import Array, Batch, PyTree

ONE_BY_ONE = "PyTorch, one image at a time"
IN_BATCHES = "PyTorch att2in2, batches of 10"

_BATCH_OF_PEER = 10
_TICK = 0.1
"""Increase of the counting unit's cell state at each step."""
_SPREAD, _SLOPE, _LEVEL = 10.0, 30.0, 3.3
"""Constants of ``make_counting_params``, for the stated lengths with a beam of 5."""


def draw_params(decoder: CaptionDecoder, num_regions: int, width: int) -> PyTree:
    """Returns a decoder's initial parameters as writable NumPy arrays."""
    batch = draw_batch(2, num_regions, width, decoder.vocabulary_size)
    variables = initialize_variables(Captioner(decoder=decoder), Captioning(words=str), batch, 0)
    return jax.tree.map(np.array, variables["params"]["decoder"])


def make_counting_params(
    decoder: CaptionDecoder, num_regions: int, width: int, num_words: int = 11
) -> PyTree:
    """Returns random parameters with which captions end after about ``num_words`` words.

    The cell state of unit 0 of the LSTM increases by a constant at every step. Its initial value
    depends on the image, so lengths differ. Only the logit of ``<eos>`` reads this unit; ``<pad>``,
    ``<bos>`` and ``<unk>`` have very low logits.
    """
    params = draw_params(decoder, num_regions, width)
    cell, features = params["cell"], params["cell"]["hidden_kernel"].shape[0]
    gates = [gate * features for gate in range(4)]  # i, f, g, o
    for kernel in (cell["input_kernel"], cell["hidden_kernel"], params["context_kernel"]):
        kernel[:, gates] = 0
    cell["bias"][gates] = [10, 10, math.atanh(_TICK), 10]
    params["query_kernel"][0] = params["gate_kernel"][0] = 0
    cell["hidden_kernel"][0] = 0
    # Logits of words spread as after training; initial weights would make them nearly equal.
    params["vocabulary_kernel"] *= _SPREAD
    params["vocabulary_kernel"][0] = 0
    params["vocabulary_kernel"][:, EOS] = 0
    params["vocabulary_kernel"][0, EOS] = _SLOPE
    params["vocabulary_bias"][[PAD, BOS, UNK]] = -100
    params["vocabulary_bias"][EOS] = _LEVEL - _SLOPE * math.tanh(_TICK * num_words)
    return params


class SearchStep:
    """Search for the captions of all images, jitted from features to hypotheses."""

    def __init__(
        self,
        decoder: CaptionDecoder,
        params: PyTree,
        features: np.ndarray,
        batch_size: int,
        options: SearchOptions,
    ):
        model, task = Captioner(decoder=decoder), Captioning(words=str, options=options)

        def search(variables: PyTree, batch: Batch) -> tuple[Array, Array]:
            best = task.search(model, variables, batch)
            return best.tokens[:, 0], best.lengths[:, 0]

        self._search = jax.jit(search)
        self._variables = jax.device_put({"params": {"decoder": params}})
        self._batches = np.split(features, range(batch_size, len(features), batch_size))

    def __call__(self) -> list[list[int]]:
        """Returns the tokens of each image's caption, the end token included."""
        captions = []
        for features in self._batches:
            found = self._search(self._variables, {"features": features})
            tokens, lengths = (np.asarray(x) for x in found)
            captions += [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]
        return captions


def search_cases(
    num_images: int = 1000,
    num_regions: int = 49,
    width: int = 1280,
    features: int = 512,
    vocabulary_size: int = 2541,
    batch_size: int = 50,
    beam_size: int = 5,
    max_steps: int = 20,
) -> list[Case]:
    """Returns beam search; slower peers search fewer images."""
    decoder = make_decoder(vocabulary_size, features)
    numbers = {OURS: num_images, ONE_BY_ONE: max(num_images // 25, 1)}
    numbers[IN_BATCHES] = max(num_images // 10, 1)

    def draw(way: str) -> np.ndarray:
        shape = (numbers[way], num_regions, width)
        return np.random.default_rng(0).standard_normal(shape, np.float32).astype(np.float16)

    def ours() -> Step:
        params = make_counting_params(decoder, num_regions, width)
        options = SearchOptions(beam_size=beam_size, max_steps=max_steps)
        return SearchStep(decoder, params, draw(OURS), batch_size, options)

    def one_by_one() -> Step:
        from experiments.benchmarks import torch_caption_search as peers

        model = peers.make_soft_attention(make_counting_params(decoder, num_regions, width))
        images = draw(ONE_BY_ONE)
        return peers.make_search_step(
            model, peers.search_one_by_one, images, 1, beam_size, max_steps
        )

    def in_batches() -> Step:
        from experiments.benchmarks import torch_caption_search as peers
        from experiments.benchmarks.torch_captioning import Att2in

        model = Att2in(vocabulary_size, width, features)
        return peers.make_search_step(
            model, peers.search_in_batch, draw(IN_BATCHES), _BATCH_OF_PEER, beam_size, max_steps
        )

    ways: dict[str, Callable[[], Step]] = {OURS: ours}
    if importlib.util.find_spec("torch") is not None:
        ways |= {ONE_BY_ONE: one_by_one, IN_BATCHES: in_batches}
    name = f"soft attention, {num_regions}×{width}, beam {beam_size} in batches of {batch_size}"
    return [Case(f"{name}, an image", ways, dict.fromkeys(ways, 3), False, numbers)]
