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
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.decoders.attention import flatten_regions
from flaxnets.decoders.cells import InnerCell
from flaxnets.recurrent.cell import Cell, ProjectHidden
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.matmul import ScanWeights, affine, multiply, multiply_valid, split_projected
from flaxnets.recurrent.scan import GRADIENTS
from flaxnets.recurrent.scan_vjp import deferred_scan, plain_scan
from flaxnets.typing import (
    Array,
    Carry,
    Dtype,
    PRNGKey,
    PyTree,
)

# The arrays that captioning decoders take, remember and give.

Memory = dict[str, Array]
"""(B,...) by name: what the steps read of an image. A mask of regions is bool."""

Product = Callable[[Array, Array], Array]
"""(...,F) and (F,G) to (...,G)."""


class CaptionOutputs(NamedTuple):
    """What a decoder says of C captions of L words for each of B images."""

    logits: Array
    """(B,C,L,V) float32; [..., t, :] scores the word t after reading the words before it."""
    attention: Array | None = None
    """(B,C,L,R) at least float32, of each step's regions; zero at padded steps."""
    log_probabilities: Array | None = None
    """(B,C,L) at least float32, hard attention in training: of the regions that were sampled."""
    entropies: Array | None = None
    """(B,C,L) at least float32, nats, hard attention in training: of the regions' weights."""
    baseline: Array | None = None
    """() float32, hard attention: the moving average of captions' log-likelihoods before this."""


class DecoderWeights(NamedTuple):
    """A decoder's parameters by the part that reads them."""

    embedding: Array
    """(V,E)."""
    fixed: dict[str, Array]
    """Read outside of the scan."""
    scan: ScanWeights
    """Read within it, without what belongs to an image."""
    cells: dict[str, InnerCell]
    """Whose kernels are among those of ``scan``."""


# The parameters of captioning decoders, made by name in their compact method ``weights``.


class DecoderParameters(nn.Module, kw_only=True):
    """What ``CaptionDecoder`` makes its parameters with; its attributes are described there."""

    vocabulary_size: int
    embed_features: int = 512
    tie_embeddings: bool = False
    param_dtype: Dtype = jnp.float32

    def param_affine(
        self, name: str, width: int, features: int, *, bias: bool = True
    ) -> dict[str, Array]:
        """``name_kernel`` (width, features), and ``name_bias``."""
        init = nn.initializers.lecun_normal()
        made = {
            f"{name}_kernel": self.param(
                f"{name}_kernel", init, (width, features), self.param_dtype
            )
        }
        if bias:
            zeros = nn.initializers.zeros
            made[f"{name}_bias"] = self.param(f"{name}_bias", zeros, (features,), self.param_dtype)
        return made

    def param_vector(self, name: str, features: int) -> Array:
        """(features,), of which inner products with tanh's values have a variance near 1."""
        init = nn.initializers.normal(features**-0.5)
        return self.param(name, init, (features,), self.param_dtype)

    def param_words(self, hidden_features: int) -> tuple[Array, dict[str, Array]]:
        """The embedding (V,E), and the affine map of hidden features to the vocabulary's scores.

        Raises:
          ValueError: tied embeddings of another width than the hidden features.
        """
        if self.tie_embeddings and hidden_features != self.embed_features:
            raise ValueError(
                f"tie_embeddings: expected embed_features of {hidden_features}, which the scores "
                f"are products with, received {self.embed_features}"
            )
        shape = self.vocabulary_size, self.embed_features
        init = nn.initializers.normal(self.embed_features**-0.5)
        embedding = self.param("embedding", init, shape, self.param_dtype)
        if not self.tie_embeddings:
            return embedding, self.param_affine("vocabulary", hidden_features, shape[0])
        bias = self.param("vocabulary_bias", nn.initializers.zeros, shape[:1], self.param_dtype)
        return embedding, {"vocabulary_kernel": embedding.T, "vocabulary_bias": bias}

    def check_width(self, width: int, *path: str, beside: int = 0) -> None:
        """Refuses regions of another width than that of the parameter at ``path``.

        Args:
          width: D of the regions.
          path: names of modules and of a kernel (D + ``beside``,...).
          beside: rows of the kernel that multiply something else.
        """
        found: Any = self.variables.get("params", {})
        for name in path:
            if name not in found:
                return
            found = found[name]
        if found.shape[0] != width + beside:
            raise ValueError(
                f"features: expected width {found.shape[0] - beside}, received {width}"
            )


# The parts of a captioning decoder, which each of them defines; ``caption.py`` runs them.


class DecoderParts(DecoderParameters, kw_only=True):
    """What ``CaptionDecoder`` calls; at which rate, its module's docstring says."""

    def weights(self, width: int) -> DecoderWeights:
        """The parameters, made at the first call for regions of ``width`` D."""
        raise NotImplementedError

    def remember(self, weights: DecoderWeights, regions: Array, mask: Array | None) -> Memory:
        """What the steps read of regions (B,R,D) in ``dtype``, with a mask (B,R) bool."""
        raise NotImplementedError

    def start(self, weights: DecoderWeights, memory: Memory) -> Carry:
        """The carry (B,...) before the first word."""
        raise NotImplementedError

    def attach(self, weights: DecoderWeights, memory: Memory) -> ScanWeights:
        """``weights.scan`` with those parts of the memory that the steps read."""
        return weights.scan

    def project(
        self,
        weights: DecoderWeights,
        memory: Memory,
        embedded: Array,
        product: Product = multiply,
    ) -> dict[str, Array]:
        """Embedded words (...,B,C,E) to the inputs of the scan (...,B,C,G).

        Args:
          weights: of which those outside of the scan are read.
          memory: of the images.
          embedded: words.
          product: of words with a matrix, which may leave out padding.
        """
        raise NotImplementedError

    def step(
        self,
        cells: dict[str, InnerCell],
        recur: ProjectHidden,
        others: PyTree,
        flags: dict[str, Array],
        carry: Carry,
        inputs: dict[str, Array],
    ) -> tuple[Carry, dict[str, Array]]:
        """One step of time: the new carry, and outputs (B,C,...) with ``attention`` if there is.

        Args:
          cells: of whose weights names and shapes alone may be read.
          recur: products with the kernels of ``attach``.
          others: of the weights of ``attach``.
          flags: what has no gradient: ``draw_flags``' arrays of this step.
          carry: (B,C,...).
          inputs: what ``project`` gave and ``recur`` does not add.
        """
        raise NotImplementedError

    def read(self, weights: DecoderWeights, outputs: dict[str, Array], embedded: Array) -> Array:
        """What the product with the vocabulary reads, of any number of steps."""
        return outputs["hidden"]

    def draw_flags(self, shape: tuple[int, ...], memory: Memory) -> dict[str, Array]:
        """Random numbers that training steps read, (L,B,C,...), for ``shape`` (L,B,C)."""
        return {}


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
        addends, inputs = split_projected(scanned, self.project(weights, memory, embedded))

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
        recur: ProjectHidden,
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


def attach_regions(scanned: ScanWeights, memory: Memory) -> ScanWeights:
    """With ``regions`` as the kernel ``context``, and ``keys`` and ``mask`` as others."""
    kernels, biases, others = scanned
    mask = memory.get("mask")
    # As a float, since differentiation knows no gradient of a bool.
    exists = None if mask is None else mask.astype(jnp.float32)
    kernels = kernels | {"context": memory["regions"]}
    return ScanWeights(kernels, biases, (*others, memory["keys"], exists))


def check_captions(
    tokens: Array, token_lengths: Array, batch_size: int, vocabulary_size: int
) -> None:
    """Refuses captions and lengths that do not go together.

    Raises:
      ValueError: tokens that are not (B,C,L) integers or, where they are known, not in [0,V);
        lengths that are not (B,C) integers or, where they are known, not in [0,L].
    """
    if tokens.ndim != 3 or len(tokens) != batch_size or 0 in tokens.shape[1:]:
        raise ValueError(
            f"tokens: expected (B,C,L) with B = {batch_size}, received shape {tokens.shape}"
        )
    if token_lengths.shape != tokens.shape[:2]:
        raise ValueError(
            f"token_lengths: expected shape {tokens.shape[:2]}, received {token_lengths.shape}"
        )
    ranges = (
        ("tokens", tokens, vocabulary_size - 1),
        ("token_lengths", token_lengths, tokens.shape[2]),
    )
    for name, values, largest in ranges:
        if not jnp.issubdtype(values.dtype, jnp.integer):
            raise ValueError(f"{name}: expected integers, received {values.dtype}")
        if isinstance(values, jax.core.Tracer) or not values.size:
            continue
        known = np.asarray(values)
        low, high = known.min(), known.max()
        if low < 0 or high > largest:
            raise ValueError(f"{name}: expected 0 to {largest}, received {low} to {high}")


def _drop(x: Array, rate: float, key: PRNGKey | None) -> Array:
    """Dropout where there is a key."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


# Scheduled sampling (Bengio et al., 1506.03099): a decoder in training reads words of its own.

RunStep = Callable[[Carry, Array, PyTree], tuple[Carry, Array, PyTree]]
"""(carry, words, x) to the new carry, scores (...,V) of the next words, and more outputs."""


def scan_sampled_words(
    run_step: RunStep,
    carry: Carry,
    words: Array,
    xs: PyTree,
    *,
    probability: Array | float,
    key: PRNGKey,
) -> tuple[Array, PyTree]:
    """Runs a decoder step after step, since each may read a word from the scores before it.

    No gradient passes through a drawn word. The first word is read as it is given.

    Args:
      run_step: one step; ``x`` is that step's share of ``xs``.
      carry: before the first step.
      words: (L,...) integers, those that are given.
      xs: a pytree of arrays (L,...).
      probability: of a word to be drawn, in [0,1].
      key: of the draws.

    Returns:
      Scores (L,...,V) and outputs (L,...) of all steps.
    """

    def body(state: Any, inputs: Any) -> Any:
        carry, scores = state
        given, x, key, may_draw = inputs
        choose_key, draw_key = jax.random.split(key)
        chosen = may_draw & jax.random.bernoulli(choose_key, probability, given.shape)
        drawn = jax.random.categorical(draw_key, jax.lax.stop_gradient(scores))
        read = jnp.where(chosen, drawn.astype(given.dtype), given)
        carry, scores, outputs = run_step(carry, read, x)
        return (carry, scores), (scores, outputs)

    num_steps = len(words)
    first = jax.tree.map(lambda leaf: leaf[0], (words, xs))
    like = jax.eval_shape(lambda: run_step(carry, *first)[1])
    inputs = words, xs, jax.random.split(key, num_steps), jnp.arange(num_steps) > 0
    state = carry, jnp.zeros(like.shape, like.dtype)
    return jax.lax.scan(body, state, inputs)[1]
