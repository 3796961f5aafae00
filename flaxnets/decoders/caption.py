"""What all captioning decoders share: words in, scores of the next word out.

A decoder's work falls into parts that run at different rates:

- ``remember``: once an image. What every step reads and none changes: regions, keys, means.
- ``project``: once for all steps of all captions, as large products before the scan.
- ``step``: what depends on the carry. Its products go through ``recur`` by name, so that the
  gradients of kernels are formed once, after the scan (``recurrent/backward.py``).
- ``read``: once for all steps after the scan, up to the product with the vocabulary.

``advance`` calls the same four for a single step, so decoding step by step agrees with teacher
forcing by construction. Regions and keys are (B,...), while states are (B,C,...): C captions of an
image share what is remembered of it.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from flaxnets.decoders.attention import flatten_regions
from flaxnets.decoders.caption_arrays import (
    CaptionOutputs,
    DecoderWeights,
    Memory,
    check_captions,
)
from flaxnets.decoders.caption_cells import InnerCell
from flaxnets.decoders.caption_parts import DecoderParts
from flaxnets.decoders.scheduled_sampling import scan_sampled_words
from flaxnets.recurrent.backward import deferred_scan, plain_scan
from flaxnets.recurrent.cell import Cell, Recur
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.packed_rows import multiply_valid
from flaxnets.recurrent.products import ScanWeights, affine, split_addends
from flaxnets.recurrent.scan import GRADIENTS
from flaxnets.typing import Array, Carry, Dtype, PRNGKey, PyTree


class CaptionDecoder(DecoderParts, kw_only=True):
    """Regions of an image and the words so far to scores of the next word.

    Attributes:
      vocabulary_size: V.
      make_cell: the constructor of a recurrent cell, as ``partial(GRUCell, 512)``.
      embed_features: E, width of a word's embedding.
      tie_embeddings: whether a word's scores are products with its embedding (Press and Wolf,
        1608.05859); E is then the width of what the product with the vocabulary reads.
      dropout_rate: on what the product with the vocabulary reads.
      embed_dropout_rate: on embedded words.
      weight_dropout_rate: on the entries of the kernels that the scan's steps multiply with, the
        same for all steps and captions (DropConnect on recurrent weights, Merity et al.,
        1708.02182).
      begin_token: the word that is read first.
      gradients: ``deferred`` or ``autodiff``, see ``ScanOptions``.
      unroll: steps in one turn of the scan's loop.
      dtype: of the products; cell states, attention and logits are at least float32.
      param_dtype: of the parameters.
    """

    make_cell: Callable[..., Cell] = partial(LSTMCell, 512)
    dropout_rate: float = 0.5
    embed_dropout_rate: float = 0.0
    weight_dropout_rate: float = 0.0
    begin_token: int = 1
    gradients: str = "deferred"
    unroll: int = 1
    dtype: Dtype = jnp.float32

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
        """Scores of given captions' words, each after the words before it.

        Args:
          features: (B,R,D), (B,h,w,D) or (B,D), float.
          tokens: (B,C,L) int32 in [0,V): words, the end token, padding; no begin token.
          token_lengths: (B,C) int32 in [0,L], the end token included. Steps from there on leave the
            carry as it is; their logits mean nothing.
          mask: (B,R) bool, regions that exist; None: all.
          train: whether dropout (key ``dropout``) and what else is random act.
          sampling_probability: scheduled sampling (Bengio et al., 1506.03099): with this
            probability a step reads, in place of the given word, one drawn from the scores of the
            step before (key ``sampling``). None: teacher forcing, all steps in one fast scan.

        Raises:
          ValueError: features, tokens, lengths or mask of another shape or dtype, tokens or lengths
            out of range where they are known, features of another width than the parameters'.
        """
        if self.gradients not in GRADIENTS:
            raise ValueError(f"gradients: expected one of {GRADIENTS}, received {self.gradients!r}")
        regions, mask = flatten_regions(features, mask)
        check_captions(tokens, token_lengths, len(regions), self.vocabulary_size)
        weights = self.weights(regions.shape[-1])
        if train and self.weight_dropout_rate > 0:
            weights = weights._replace(scan=self._drop_weights(weights.scan))
        memory = self.remember(weights, self._cast(regions), mask)
        b, c, num_steps = tokens.shape
        carry = jax.tree.map(
            lambda x: jnp.broadcast_to(x[:, None], (b, c, *x.shape[1:])),
            self.start(weights, memory),
        )
        first = jnp.full((b, c, 1), self.begin_token, tokens.dtype)
        previous = jnp.moveaxis(jnp.concatenate([first, tokens[..., :-1]], -1), -1, 0)  # (L,B,C)
        valid = jnp.arange(num_steps) < jnp.asarray(token_lengths)[..., None]  # (B,C,L)
        flags = {"valid": jnp.moveaxis(valid, -1, 0)}
        if train:
            flags |= self.draw_flags((num_steps, b, c), memory)
        if sampling_probability is not None:
            keys = [self._drop_key(train) for _ in range(2)]
            logits, outputs = scan_sampled_words(
                partial(self._run_step, weights, memory),
                carry,
                previous,
                (flags, [key if key is None else jax.random.split(key, num_steps) for key in keys]),
                probability=sampling_probability,
                key=self.make_rng("sampling"),
            )
            logits, outputs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), (logits, outputs))
            return self._collect(logits, outputs)
        embedded = self._embed(weights, previous, self._drop_key(train))  # (L,B,C,E)
        outputs = self._scan_words(weights, memory, carry, embedded, flags)
        hidden = jnp.moveaxis(self.read(weights, outputs, embedded), 0, 2)  # (B,C,L,F)
        logits = self._score(weights, hidden, self._drop_key(train), valid)
        return self._collect(logits, {n: jnp.moveaxis(x, 0, 2) for n, x in outputs.items()})

    def begin(self, features: Array, mask: Array | None = None) -> tuple[Memory, Carry]:
        """Looks at images before any word: memory and carry, pytrees of (B,...).

        Args:
          features: as ``__call__``'s.
          mask: as ``__call__``'s.

        Raises:
          ValueError: as ``__call__``.
        """
        regions, mask = flatten_regions(features, mask)
        weights = self.weights(regions.shape[-1])
        memory = self.remember(weights, self._cast(regions), mask)
        return memory, self.start(weights, memory)

    def advance(
        self, memory: Memory, carry: Carry, previous: Array
    ) -> tuple[Carry, Array, Array | None]:
        """Reads one word and scores the next.

        Args:
          memory: what ``begin`` gave.
          carry: what ``begin`` or the step before gave.
          previous: (B,) int32 in [0,V), first the begin token.

        Returns:
          The new carry, logits (B,V) float32, and attention (B,R) or None.

        Raises:
          ValueError: words of another shape or dtype, memory of another width than the parameters'.
        """
        b = len(next(iter(memory.values())))
        if previous.shape != (b,) or not jnp.issubdtype(previous.dtype, jnp.integer):
            raise ValueError(
                f"previous: expected {(b,)} integers, received {previous.shape} {previous.dtype}"
            )
        weights = self.weights(self.memory_width(memory))
        carry = jax.tree.map(lambda x: x[:, None], carry)
        flags = {"valid": jnp.ones((b, 1), bool)}
        carry, logits, outputs = self._run_step(
            weights, memory, carry, previous[:, None], (flags, [None, None])
        )
        carry, logits, attention = jax.tree.map(
            lambda x: x[:, 0], (carry, logits, outputs.get("attention"))
        )
        return carry, logits, attention

    def memory_width(self, memory: Memory) -> int:
        """D of the regions that a memory was made of."""
        return memory["regions"].shape[-1]

    def _scan_words(
        self,
        weights: DecoderWeights,
        memory: Memory,
        carry: Carry,
        embedded: Array,
        flags: dict[str, Array],
    ) -> dict[str, Array]:
        """All steps on given words (L,B,C,E): outputs (L,B,C,...)."""
        step = partial(self._step_where_valid, weights.cells)
        scanned = self.attach(weights, memory)
        if not self._deferred:
            inputs = self.project(weights, memory, embedded)
            return plain_scan(step, scanned, carry, inputs, flags, unroll=self.unroll)[1]
        valid = flags["valid"]
        inputs = self.project(weights, memory, embedded, partial(multiply_valid, valid=valid))
        return deferred_scan(step, scanned, carry, inputs, flags, unroll=self.unroll, valid=valid)[
            1
        ]

    def _run_step(
        self,
        weights: DecoderWeights,
        memory: Memory,
        carry: Carry,
        words: Array,
        x: tuple[dict[str, Array], list[PRNGKey | None]],
    ) -> tuple[Carry, Array, dict[str, Array]]:
        """One step on words (B,C): the new carry, logits (B,C,V) and outputs (B,C,...)."""
        flags, drop_keys = x
        embedded = self._embed(weights, words, drop_keys[0])
        scanned = self.attach(weights, memory)
        addends, inputs = split_addends(scanned, self.project(weights, memory, embedded))

        def recur(name: str, hidden: Array) -> Array:
            return affine(scanned, addends, name, hidden)

        carry, outputs = self._step_where_valid(
            weights.cells, recur, scanned.others, flags, carry, inputs
        )
        hidden = self.read(weights, outputs, embedded)
        return carry, self._score(weights, hidden, drop_keys[1]), outputs

    def _step_where_valid(
        self,
        cells: dict[str, InnerCell],
        recur: Recur,
        others: PyTree,
        flags: dict[str, Array],
        carry: Carry,
        inputs: dict[str, Array],
    ) -> tuple[Carry, dict[str, Array]]:
        valid = flags["valid"][..., None]  # (B,C,1)
        new_carry, outputs = self.step(cells, recur, others, flags, carry, inputs)
        carry = jax.tree.map(lambda new, old: jnp.where(valid, new, old), new_carry, carry)
        return carry, {name: jnp.where(valid, x, 0) for name, x in outputs.items()}

    def _collect(self, logits: Array, outputs: dict[str, Array]) -> CaptionOutputs:
        """Logits (B,C,L,V) and outputs (B,C,L,...) of all steps."""
        return CaptionOutputs(logits, outputs.get("attention"))

    def _cast(self, regions: Array) -> Array:
        """To the dtype of the products, once: XLA would fuse the cast into each that reads them."""
        if regions.dtype == self.dtype:
            return regions
        return jax.lax.optimization_barrier(regions.astype(self.dtype))

    @property
    def _deferred(self) -> bool:
        return self.gradients == "deferred"

    @property
    def _score_dtype(self) -> Dtype:
        return jnp.promote_types(self.dtype, jnp.float32)

    def _score(
        self,
        weights: DecoderWeights,
        hidden: Array,
        drop_key: PRNGKey | None,
        valid: Array | None = None,
    ) -> Array:
        """Logits (...,V), at least float32; where not ``valid`` (...) they mean nothing."""
        hidden = _drop(hidden.astype(self.dtype), self.dropout_rate, drop_key)
        kernel = weights.fixed["vocabulary_kernel"].astype(self.dtype)
        if valid is not None and hidden.dtype == self._score_dtype and self._deferred:
            logits = multiply_valid(hidden, kernel, valid)
        else:
            logits = jnp.matmul(hidden, kernel, preferred_element_type=self._score_dtype)
        return logits + weights.fixed["vocabulary_bias"]

    def _embed(self, weights: DecoderWeights, words: Array, drop_key: PRNGKey | None) -> Array:
        embedded = jnp.asarray(weights.embedding, self.dtype)[words]
        return _drop(embedded, self.embed_dropout_rate, drop_key)

    def _drop_weights(self, scanned: ScanWeights) -> ScanWeights:
        keys = jax.random.split(self.make_rng("dropout"), len(scanned.kernels))
        named = zip(scanned.kernels.items(), keys, strict=True)
        dropped = {n: _drop(kernel, self.weight_dropout_rate, key) for (n, kernel), key in named}
        return scanned._replace(kernels=dropped)

    def _drop_key(self, train: bool) -> PRNGKey | None:
        drops = train and (self.dropout_rate > 0 or self.embed_dropout_rate > 0)
        return self.make_rng("dropout") if drops else None


def _drop(x: Array, rate: float, key: PRNGKey | None) -> Array:
    """Dropout where there is a key."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)
