"""Captioning decoders in PyTorch, as peers. Needs PyTorch.

This module is imported only where PyTorch is installed. ``SoftAttention`` and its training step
have the structure of ``sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning``; in
``HoistedSoftAttention`` the matmuls that do not depend on the state are moved out of the loop;
``Att2in`` has the structure of att2in2 in ``ruotianluo/ImageCaptioning.pytorch``. The searches for
captions are in ``torch_caption_search.py``.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from experiments.benchmarks.timing import Step

BOS = 1
RATE, CLIP = 4e-4, 5.0

State = tuple[torch.Tensor, torch.Tensor]
"""(h, c), each (B,F)."""
Memory = tuple[torch.Tensor, ...]
"""Arrays (B,...) of the images that each step reads."""
Activation = Callable[[torch.Tensor], torch.Tensor]


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


class SoftAttention(nn.Module):
    """Soft attention and an ``nn.LSTMCell``; each step computes everything, keys included.

    Args:
      vocabulary_size: V.
      width: D of the regions.
      features: width of the embedding, the attention and the LSTM.
      dropout_rate: dropout of the inputs of the vocabulary layer.
      activation: activation of the attention; the paper and flaxnets have ``torch.tanh``.
      start_activation: activation of the initial state; the paper and flaxnets have ``torch.tanh``.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int,
        features: int,
        dropout_rate: float = 0.5,
        activation: Activation = torch.relu,
        start_activation: Activation = _identity,
    ):
        super().__init__()
        self.keys = nn.Linear(width, features)
        self.query = nn.Linear(features, features)
        self.score = nn.Linear(features, 1)
        self.embedding = nn.Embedding(vocabulary_size, features)
        self.cell = nn.LSTMCell(features + width, features)
        self.start_hidden = nn.Linear(width, features)
        self.start_cell = nn.Linear(width, features)
        self.gate = nn.Linear(features, width)
        self.vocabulary = nn.Linear(features, vocabulary_size)
        self.dropout = nn.Dropout(dropout_rate)
        self.activation, self.start_activation = activation, start_activation
        for parameter in (self.embedding.weight, self.vocabulary.weight):
            nn.init.uniform_(parameter, -0.1, 0.1)
        nn.init.zeros_(self.vocabulary.bias)

    def start(self, regions: torch.Tensor) -> State:
        """Returns the initial state, from the mean over regions (B,R,D)."""
        mean = regions.mean(1)
        hidden, cell = self.start_hidden(mean), self.start_cell(mean)
        return self.start_activation(hidden), self.start_activation(cell)

    def attend(
        self, regions: torch.Tensor, keys: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the gated context (B,D) and the attention weights (B,R)."""
        scores = self.score(self.activation(keys + self.query(hidden).unsqueeze(1)))
        weights = scores.squeeze(2).softmax(1)
        context = (regions * weights.unsqueeze(2)).sum(1)
        return torch.sigmoid(self.gate(hidden)) * context, weights

    def start_decoding(self, regions: torch.Tensor) -> tuple[Memory, State]:
        """Returns the memory that each step reads, and the initial state."""
        return (regions,), self.start(regions)

    def decode_step(
        self, memory: Memory, state: State, words: torch.Tensor
    ) -> tuple[torch.Tensor, State]:
        """Returns the logits (B,V) after words (B,), and the new state."""
        (regions,) = memory
        context, _ = self.attend(regions, self.keys(regions), state[0])
        state = self.cell(torch.cat([self.embedding(words), context], 1), state)
        return self.vocabulary(state[0]), state

    def forward(
        self, regions: torch.Tensor, captions: torch.Tensor, lengths: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns logits and attention weights; step t computes only captions that are longer.

        Args:
          regions: (B,R,D).
          captions: (B,1+L), the begin token first, the longest caption first.
          lengths: length of each without the begin token, descending.

        Returns:
          Logits (N,V) of all N words, packed, and attention weights (B,L,R), zero after the end.
        """
        b, r, _ = regions.shape
        embedded = self.embedding(captions)
        hidden, cell = self.start(regions)
        logits = regions.new_zeros(b, lengths[0], self.vocabulary.out_features)
        attention = regions.new_zeros(b, lengths[0], r)
        for t in range(lengths[0]):
            n = sum(length > t for length in lengths)
            context, weights = self.attend(regions[:n], self.keys(regions[:n]), hidden[:n])
            inputs = torch.cat([embedded[:n, t], context], 1)
            hidden, cell = self.cell(inputs, (hidden[:n], cell[:n]))
            logits[:n, t] = self.vocabulary(self.dropout(hidden))
            attention[:n, t] = weights
        return pack_padded_sequence(logits, lengths, batch_first=True).data, attention


class HoistedSoftAttention(SoftAttention):
    """Soft attention with one matmul for all steps for keys, words' part of the gates, logits."""

    def forward(
        self, regions: torch.Tensor, captions: torch.Tensor, lengths: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the base class's results; words are packed, so no matmul computes padding."""
        b, r, _ = regions.shape
        width = self.embedding.embedding_dim
        of_words, of_context = self.cell.weight_ih[:, :width], self.cell.weight_ih[:, width:]
        packed = pack_padded_sequence(captions[:, :-1], lengths, batch_first=True)
        embedded = self.embedding(packed.data)  # (N,E), step by step
        projected = functional.linear(embedded, of_words, self.cell.bias_ih + self.cell.bias_hh)
        keys = self.keys(regions)
        hidden, cell = self.start(regions)
        attention = regions.new_zeros(b, lengths[0], r)
        outputs = []
        sizes = packed.batch_sizes.tolist()
        for t, (n, words) in enumerate(zip(sizes, projected.split(sizes), strict=True)):
            context, weights = self.attend(regions[:n], keys[:n], hidden[:n])
            gates = words + functional.linear(context, of_context)
            gates = gates + functional.linear(hidden[:n], self.cell.weight_hh)
            i, f, g, o = gates.chunk(4, 1)
            cell = torch.sigmoid(f) * cell[:n] + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            outputs.append(hidden)
            attention[:n, t] = weights
        return self.vocabulary(self.dropout(torch.cat(outputs))), attention


class Att2in(nn.Module):
    """Att2in with projected regions: attention enters an LSTM's maxout candidate; for searches.

    Args:
      vocabulary_size: V.
      width: D of the regions.
      features: width of the embedding, the projected regions, the attention and the LSTM.
    """

    def __init__(self, vocabulary_size: int, width: int, features: int):
        super().__init__()
        self.features = features
        self.narrow = nn.Linear(width, features)
        self.keys = nn.Linear(features, features)
        self.query = nn.Linear(features, features)
        self.score = nn.Linear(features, 1)
        self.embedding = nn.Embedding(vocabulary_size, features)
        self.words = nn.Linear(features, 5 * features)
        self.hidden = nn.Linear(features, 5 * features)
        self.context = nn.Linear(features, 2 * features)
        self.vocabulary = nn.Linear(features, vocabulary_size)

    def start_decoding(self, regions: torch.Tensor) -> tuple[Memory, State]:
        """Returns the projected regions of (B,R,D) with their keys, and a state of zeros."""
        narrow = torch.relu(self.narrow(regions))
        zeros = narrow.new_zeros(len(narrow), self.features)
        return (narrow, self.keys(narrow)), (zeros, zeros)

    def decode_step(
        self, memory: Memory, state: State, words: torch.Tensor
    ) -> tuple[torch.Tensor, State]:
        """Returns the logits (B,V) after words (B,), and the new state."""
        regions, keys = memory
        hidden, cell = state
        scores = self.score(torch.tanh(keys + self.query(hidden).unsqueeze(1))).squeeze(2)
        context = torch.bmm(scores.softmax(1).unsqueeze(1), regions).squeeze(1)
        sums = self.words(torch.relu(self.embedding(words))) + self.hidden(hidden)
        i, f, o = torch.sigmoid(sums[:, : 3 * self.features]).chunk(3, 1)
        candidates = sums[:, 3 * self.features :] + self.context(context)
        cell = f * cell + i * torch.maximum(*candidates.chunk(2, 1))
        hidden = o * torch.tanh(cell)
        return self.vocabulary(hidden), (hidden, cell)


def load_soft_attention(decoder: SoftAttention, params: Mapping[str, Any]) -> None:
    """Copies the parameters of ``flaxnets.decoders.show_attend_tell.SoftAttention``.

    Args:
      decoder: a decoder of the same sizes.
      params: parameters of a decoder with a vector gate and without a deep output.
    """

    def tensor(*path: str) -> torch.Tensor:
        leaf: Any = params
        for name in path:
            leaf = leaf[name]
        return torch.tensor(np.asarray(leaf))

    state = {name: torch.zeros_like(value) for name, value in decoder.state_dict().items()}
    affine = {
        "keys": "key", "gate": "gate", "start_cell": "start_0", "start_hidden": "start_1",
        "vocabulary": "vocabulary",
    }  # fmt: skip
    for ours, theirs in affine.items():
        state[f"{ours}.weight"] = tensor(f"{theirs}_kernel").T
        state[f"{ours}.bias"] = tensor(f"{theirs}_bias")
    state["query.weight"] = tensor("query_kernel").T
    state["score.weight"] = tensor("score_vector")[None]
    state["embedding.weight"] = tensor("embedding")
    inputs = torch.cat([tensor("cell", "input_kernel"), tensor("context_kernel")])
    state["cell.weight_ih"], state["cell.weight_hh"] = inputs.T, tensor("cell", "hidden_kernel").T
    state["cell.bias_ih"] = tensor("cell", "bias")
    decoder.load_state_dict(state)


def caption_loss(
    decoder: SoftAttention,
    regions: torch.Tensor,
    captions: torch.Tensor,
    lengths: torch.Tensor,
    penalty: float = 1.0,
) -> torch.Tensor:
    """Returns the mean cross-entropy of the words plus the penalty of doubly stochastic attention.

    Args:
      decoder: the decoder.
      regions: (B,R,D) float32.
      captions: (B,1+L), the begin token first.
      lengths: (B,), including the end token but not the begin token.
      penalty: weight of the mean over regions and captions of (1 - Σ_t α)².
    """
    lengths, order = lengths.sort(descending=True)
    captions, steps = captions[order], lengths.tolist()
    logits, attention = decoder(regions[order], captions, steps)
    targets = pack_padded_sequence(captions[:, 1:], steps, batch_first=True).data
    loss = functional.cross_entropy(logits, targets)
    return loss + penalty * (1 - attention.sum(1)).square().mean()


def make_training_step(
    batches: Sequence[Mapping[str, Any]], vocabulary_size: int, features: int, *, hoisted: bool
) -> Step:
    """Returns training steps, one for each batch: elementwise clipping of gradients, then Adam.

    The peer's top-5 accuracy is left out, in its favour.

    Args:
      batches: CaptionBatches with features (B,R,D) and one caption each.
      vocabulary_size: V.
      features: width of all layers.
      hoisted: ``HoistedSoftAttention`` instead of ``SoftAttention``.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    tensors = [to_tensors(batch) for batch in batches]
    kind = HoistedSoftAttention if hoisted else SoftAttention
    decoder = kind(vocabulary_size, tensors[0][0].shape[-1], features).train()
    optimizer = torch.optim.Adam(decoder.parameters(), RATE)

    def step() -> float:
        for regions, captions, lengths in tensors:
            loss = caption_loss(decoder, regions, captions, lengths)
            optimizer.zero_grad()
            loss.backward()
            for parameter in decoder.parameters():
                if parameter.grad is not None:
                    parameter.grad.clamp_(-CLIP, CLIP)
            optimizer.step()
        return float(loss.detach())

    return step


def to_tensors(
    batch: Mapping[str, np.ndarray],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns regions (B,R,D) float32, captions (B,1+L) after the begin token, lengths (B,)."""
    regions = torch.tensor(batch["features"].astype(np.float32))
    captions = torch.tensor(batch["tokens"][:, 0].astype(np.int64))
    begin = torch.full((len(captions), 1), BOS)
    lengths = torch.tensor(batch["token_lengths"][:, 0].astype(np.int64))
    return regions, torch.cat([begin, captions], 1), lengths
