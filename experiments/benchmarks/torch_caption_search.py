"""Beam search in PyTorch with the structure of two public code bases, as peers. Needs PyTorch.

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
"""(decoder, regions (B,R,D), beam size, greatest number of steps) to captions (B lists)."""


def search_one_by_one(
    decoder: Any, regions: torch.Tensor, beam_size: int, max_steps: int
) -> list[list[int]]:
    """Returns the captions, searched image by image, with a row for each unfinished hypothesis.

    The structure is that of ``sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning``'s ``eval.py``: the
    beam shrinks by the hypotheses that end. If none has ended after the last step, the best
    unfinished one is returned.
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
        # All rows are equal at the first step.
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
    """Returns the captions of a batch of images, with a row for each hypothesis.

    The structure is that of ``ruotianluo/ImageCaptioning.pytorch``'s ``CaptionModel.beam_search``:
    finished hypotheses lose 1,000 nats and continue, all steps are taken, the memory of each image
    is repeated, all candidates are sorted, and the log-probabilities of all words at all steps are
    kept. Its assertions, second softmax, diversity and step after the last are left out, in its
    favour.
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
    """Returns (B·K,...): each row of (B,...) K times."""
    return x.unsqueeze(1).expand(-1, k, *x.shape[1:]).reshape(len(x) * k, *x.shape[1:])


def make_search_step(
    decoder: Any, search: Search, regions: np.ndarray, batch_size: int, beam_size: int, steps: int
) -> Step:
    """Returns the search for the captions of all images.

    Args:
      decoder: a decoder of ``torch_captioning.py``.
      search: ``search_one_by_one`` or ``search_in_batch``.
      regions: (N,R,D) float.
      batch_size: images searched at once.
      beam_size: number of hypotheses.
      steps: greatest number of tokens, the end token included.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    decoder.eval()
    batches = torch.tensor(regions.astype(np.float32)).split(batch_size)

    def step() -> list[list[int]]:
        with torch.inference_mode():
            return [words for x in batches for words in search(decoder, x, beam_size, steps)]

    return step


def make_soft_attention(params: Mapping[str, Any]) -> SoftAttention:
    """Returns the decoder with the parameters of flaxnets'."""
    vocabulary_size, features = params["embedding"].shape
    decoder = SoftAttention(vocabulary_size, len(params["key_kernel"]), features)
    load_soft_attention(decoder, params)
    return decoder
