"""Beam search in PyTorch as two public code bases write it: peers for speed. Needs PyTorch.

Both take a decoder with ``start_decoding`` and ``decode_step`` of ``torch_captioning.py``.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.timing import Step
from experiments.benchmarks.torch_captioning import BOS, SoftAttention, load_soft_attention

EOS = 2

Search = Callable[[Any, torch.Tensor, int, int], list[list[int]]]
"""Decoder, regions (B,R,D), beam size and the most steps, to a caption for each image."""


def search_one_by_one(
    decoder: Any, regions: torch.Tensor, beam_size: int, max_steps: int
) -> list[list[int]]:
    """Image after image, a row of the batch for each hypothesis that goes on.

    The structure of ``sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning``'s ``eval.py``: the beam
    shrinks by those that end. Where none has ended after the last step the best is taken as it is.
    """
    return [_search_image(decoder, image, beam_size, max_steps) for image in regions.split(1)]


def _search_image(decoder: Any, regions: torch.Tensor, beam_size: int, max_steps: int) -> list[int]:
    k = beam_size
    memory, state = decoder.start_decoding(regions.expand(k, -1, -1))
    words = torch.full((k,), BOS)
    sequences = words.unsqueeze(1)
    totals = torch.zeros(k, 1)
    ended: list[list[int]] = []
    scores: list[torch.Tensor] = []
    for step in range(max_steps):
        logits, state = decoder.decode_step(memory, state, words)
        sums = totals + logits.log_softmax(1)
        # At first all rows are the same.
        best, index = (sums if step else sums[:1]).reshape(-1).topk(k)
        parents, chosen = index // sums.shape[1], index % sums.shape[1]
        sequences = torch.cat([sequences[parents], chosen.unsqueeze(1)], 1)
        going = [row for row, word in enumerate(chosen) if word != EOS]
        done = list(set(range(k)) - set(going))
        if done:
            ended.extend(sequences[done].tolist())
            scores.extend(best[done])
        k -= len(done)
        if k == 0:
            break
        sequences = sequences[going]
        parents = parents[going]
        state = (state[0][parents], state[1][parents])
        memory = tuple(x[parents] for x in memory)
        totals = best[going].unsqueeze(1)
        words = chosen[going]
    if not ended:
        return [int(word) for word in sequences[0, 1:]]
    return ended[scores.index(max(scores))][1:]


def search_in_batch(
    decoder: Any, regions: torch.Tensor, beam_size: int, max_steps: int
) -> list[list[int]]:
    """A batch of images at once, a row of the batch for each hypothesis.

    The structure of ``ruotianluo/ImageCaptioning.pytorch``'s ``CaptionModel.beam_search``: what has
    ended falls by 1,000 nats and goes on, all steps are taken, every image's memory is repeated,
    all candidates are sorted, and the log-probabilities of all words at all steps are kept. Left
    out, in its favour: its assertions, a second softmax, diversity and the step after the last.
    """
    b, k = len(regions), beam_size
    memory, state = decoder.start_decoding(regions)
    logits, state = decoder.decode_step(memory, state, torch.full((b,), BOS))
    memory = tuple(_repeat(x, k) for x in memory)
    v = logits.shape[-1]
    sequences = torch.zeros(b, k, 0, dtype=torch.long)
    history = logits.new_zeros(b, k, 0, v)
    totals = logits.new_zeros(b, 1)
    ended: list[list[dict[str, Any]]] = [[] for _ in range(b)]
    for step in range(max_steps):
        if step:
            logits, state = decoder.decode_step(memory, state, sequences[..., -1].reshape(-1))
        log_probs = logits.log_softmax(-1).reshape(b, -1, v)
        candidates = (totals.unsqueeze(-1) + log_probs).reshape(b, -1)
        best, index = candidates.sort(-1, descending=True)
        totals, index = best[:, :k], index[:, :k]
        parents, words = index // v, index % v  # (B,K)
        rows = (parents + torch.arange(b).unsqueeze(-1) * log_probs.shape[1]).reshape(-1)
        if step:
            sequences = sequences.gather(1, parents.unsqueeze(-1).expand_as(sequences))
            history = history.gather(1, parents[..., None, None].expand_as(history))
        sequences = torch.cat([sequences, words.unsqueeze(-1)], -1)
        chosen = log_probs.gather(1, parents.unsqueeze(-1).expand(-1, -1, v))
        history = torch.cat([history, chosen.unsqueeze(2)], 2)
        state = (state[0][rows], state[1][rows])
        for image in range(b):
            ends = words[image] == EOS
            if step == max_steps - 1:
                ends = torch.ones_like(ends)
            for row in range(k):
                if ends[row]:
                    ended[image].append(
                        {
                            "words": sequences[image, row].clone(),
                            "history": history[image, row].clone(),
                            "score": totals[image, row].item(),
                        }
                    )
            totals[image, ends] -= 1000
    best_ones = [max(found, key=lambda one: one["score"]) for found in ended]
    return [_until_end(one["words"].tolist()) for one in best_ones]


def _until_end(words: list[int]) -> list[int]:
    return words[: words.index(EOS) + 1] if EOS in words else words


def _repeat(x: torch.Tensor, k: int) -> torch.Tensor:
    """(B,...) to (B·K,...)."""
    return x.unsqueeze(1).expand(-1, k, *x.shape[1:]).reshape(len(x) * k, *x.shape[1:])


def make_search_step(
    decoder: Any, search: Search, regions: np.ndarray, batch_size: int, beam_size: int, steps: int
) -> Step:
    """Captions of all images.

    Args:
      decoder: of ``torch_captioning.py``.
      search: one of the two.
      regions: (N,R,D) float.
      batch_size: images at once.
      beam_size: hypotheses.
      steps: the most words, the end token included.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    decoder.eval()
    batches = torch.tensor(regions.astype(np.float32)).split(batch_size)

    def step() -> list[list[int]]:
        with torch.inference_mode():
            return [words for x in batches for words in search(decoder, x, beam_size, steps)]

    return step


def make_soft_attention(params: Mapping[str, Any]) -> SoftAttention:
    """The decoder with flaxnets' parameters."""
    vocabulary_size, features = params["embedding"].shape
    decoder = SoftAttention(vocabulary_size, len(params["key_kernel"]), features)
    load_soft_attention(decoder, params)
    return decoder
