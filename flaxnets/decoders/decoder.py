r"""Base class of the caption decoders: embedded words and an image's regions to logits.

A decoder defines four methods, which run at different rates:

- ``encode_memory``, once per image: everything that all steps read and none changes, such as
  regions, attention keys and means;
- ``project``, once for all steps of all captions: the input matmuls, before the scan;
- ``step``, once per time step: everything that depends on the carry. Its matmuls go by name through
  ``project_hidden``, so that the gradients of their kernels are formed once, after the scan
  (``flaxnets/recurrent/scan_vjp.py``);
- ``output_features``, once for all steps, after the scan: the input of the vocabulary matmul.

Teacher forcing (``CaptionDecoder.__call__``) and decoding word by word (``start_decoding``,
``decode_step``) call the same four methods, so their logits agree by construction.

Shapes: B images, C captions of each, L steps, R regions, V words. Regions and keys are (B,...),
carries are (B,C,...): the captions of an image share its memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.configuration import check_dtype_argument
from flaxnets.decoders.attention import flatten_regions
from flaxnets.decoders.cells import InnerCell
from flaxnets.layers.batch_sharding import cast_like, in_auto_axes, settle_carry
from flaxnets.layers.padding import check_counts
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

Memory = dict[str, Array]
"""The encoded images, arrays (B,...) by name; ``mask`` (B,R) bool where regions are masked."""

Matmul = Callable[[Array, Array], Array]
"""(...,F) and (F,G) to (...,G)."""


class CaptionOutputs(NamedTuple):
    """Outputs of a decoder for C captions of L words of each of B images."""

    logits: Array
    """(B,C,L,V) float32; [..., t, :] predicts word t from the words before it."""
    attention: Array | None = None
    """(B,C,L,R) float32 or wider, attention weights of each step; zero at padded steps."""
    log_probabilities: Array | None = None
    """(B,C,L) float32 or wider, nats; hard attention in training: of the sampled regions."""
    entropies: Array | None = None
    """(B,C,L) float32 or wider, nats; hard attention in training: of the attention weights."""
    baseline: Array | None = None
    """() float32, nats; hard attention: moving average of log p(word) before this batch."""


class DecoderWeights(NamedTuple):
    """A decoder's parameters, grouped by the part that reads them."""

    embedding: Array
    """(V,E)."""
    unscanned: dict[str, Array]
    """Read before and after the scan."""
    scan: ScanWeights
    """Read within the scan, without the memory, which ``bind_memory`` adds."""
    cells: dict[str, InnerCell]
    """The recurrent cells; their kernels are among those of ``scan``."""


class CaptionDecoder(nn.Module, kw_only=True):
    """Base class of the caption decoders.

    Attributes:
      vocabulary_size: V.
      make_cell: constructor of a recurrent cell, as ``partial(GRUCell, 512)``.
      embed_features: E, width of a word embedding.
      tie_embeddings: the output kernel is the transposed embedding (Press and Wolf, 1608.05859);
        E is then the width of ``output_features``.
      dropout_rate: of ``output_features``.
      embed_dropout_rate: of embedded words.
      weight_dropout_rate: of the entries of the kernels within the scan, one mask for all steps and
        captions (DropConnect on recurrent weights, Merity et al., 1708.02182).
      begin_token: the first input word.
      gradients: ``deferred`` or ``autodiff``, see ``ScanOptions``.
      unroll: steps per iteration of the scan's loop.
      dtype: of the matmuls; cell states, attention and logits are at least float32.
      param_dtype: of the parameters.
    """

    vocabulary_size: int
    make_cell: Callable[..., Cell] = partial(LSTMCell, 512)
    embed_features: int = 512
    tie_embeddings: bool = False
    dropout_rate: float = 0.5
    embed_dropout_rate: float = 0.0
    weight_dropout_rate: float = 0.0
    begin_token: int = 1
    gradients: str = "deferred"
    unroll: int = 1
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses the name of a dtype that does not exist."""
        check_dtype_argument(self.dtype)
        super().__post_init__()

    # --- Parameters: helpers for ``weights``, the one compact method of a decoder.

    def param_affine(
        self, name: str, width: int, features: int, *, bias: bool = True
    ) -> dict[str, Array]:
        """Creates ``name_kernel`` (width, features) and ``name_bias`` (features,)."""
        init = nn.initializers.lecun_normal()
        params = {
            f"{name}_kernel": self.param(
                f"{name}_kernel", init, (width, features), self.param_dtype
            )
        }
        if bias:
            zeros = nn.initializers.zeros
            params[f"{name}_bias"] = self.param(
                f"{name}_bias", zeros, (features,), self.param_dtype
            )
        return params

    def param_vector(self, name: str, features: int) -> Array:
        """Creates (features,) whose inner products with tanh activations have variance near 1."""
        init = nn.initializers.normal(features**-0.5)
        return self.param(name, init, (features,), self.param_dtype)

    def param_vocabulary(self, hidden_features: int) -> tuple[Array, dict[str, Array]]:
        """Creates the embedding (V,E), and kernel and bias of the output layer.

        Raises:
          ValueError: tied embeddings of another width than the hidden features.
        """
        if self.tie_embeddings and hidden_features != self.embed_features:
            raise ValueError(
                f"tie_embeddings: expected embed_features of {hidden_features}, the width of the "
                f"output layer's input, received {self.embed_features}"
            )
        shape = self.vocabulary_size, self.embed_features
        init = nn.initializers.normal(self.embed_features**-0.5)
        embedding = self.param("embedding", init, shape, self.param_dtype)
        if not self.tie_embeddings:
            return embedding, self.param_affine("vocabulary", hidden_features, shape[0])
        bias = self.param("vocabulary_bias", nn.initializers.zeros, shape[:1], self.param_dtype)
        return embedding, {"vocabulary_kernel": embedding.T, "vocabulary_bias": bias}

    def check_width(self, width: int, *path: str, other_rows: int = 0) -> None:
        """Refuses regions of another width than the existing parameter at ``path`` expects.

        Flax would report a shape mismatch of some kernel; this names the argument at fault.

        Args:
          width: D of the regions.
          path: names of modules and of a kernel (D + ``other_rows``,...).
          other_rows: rows of the kernel that multiply another input than the regions.
        """
        found: Any = self.variables.get("params", {})
        for name in path:
            if name not in found:
                return
            found = found[name]
        if found.shape[0] != width + other_rows:
            raise ValueError(
                f"features: expected width {found.shape[0] - other_rows}, received {width}"
            )

    # --- Methods that a decoder defines.

    def weights(self, width: int) -> DecoderWeights:
        """Returns the parameters, created at the first call for regions of ``width`` D."""
        raise NotImplementedError

    def encode_memory(self, weights: DecoderWeights, regions: Array, mask: Array | None) -> Memory:
        """Returns the memory of regions (B,R,D) in ``dtype``, with a mask (B,R) bool."""
        raise NotImplementedError

    def initial_carry(self, weights: DecoderWeights, memory: Memory) -> Carry:
        """Returns the carry (B,...) before the first word."""
        raise NotImplementedError

    def bind_memory(self, weights: DecoderWeights, memory: Memory) -> ScanWeights:
        """Returns ``weights.scan`` with those parts of the memory that the steps read."""
        return weights.scan

    def project(
        self,
        weights: DecoderWeights,
        memory: Memory,
        embedded: Array,
        matmul: Matmul = multiply,
    ) -> dict[str, Array]:
        """Returns the scan's inputs (...,B,C,G) of embedded words (...,B,C,E), by name.

        Those named like a kernel of the scan are added to its matmul by ``project_hidden``.

        Args:
          weights: the parameters; those outside of the scan are read.
          memory: the encoded images.
          embedded: the words.
          matmul: of words and a kernel; may skip padded rows.
        """
        raise NotImplementedError

    def step(
        self,
        cells: dict[str, InnerCell],
        project_hidden: ProjectHidden,
        others: PyTree,
        flags: dict[str, Array],
        carry: Carry,
        inputs: dict[str, Array],
    ) -> tuple[Carry, dict[str, Array]]:
        """Returns the new carry and outputs (B,C,...), with ``attention`` if the decoder attends.

        Args:
          cells: the cells; only names and shapes of their weights may be read, since the scan's
            custom gradient sees only what comes through ``project_hidden`` and ``others``.
          project_hidden: matmuls with the kernels of ``bind_memory``.
          others: ``others`` of ``bind_memory``.
          flags: this step's arrays without gradient: ``valid`` (B,C) and those of ``draw_noise``.
          carry: (B,C,...).
          inputs: those of ``project`` that ``project_hidden`` does not add.
        """
        raise NotImplementedError

    def output_features(
        self, weights: DecoderWeights, outputs: dict[str, Array], embedded: Array
    ) -> Array:
        """Returns the input (...,F) of the output layer, for any number of steps."""
        return outputs["hidden"]

    def draw_noise(self, shape: tuple[int, ...], memory: Memory) -> dict[str, Array]:
        """Returns random arrays (L,B,C,...) that training steps read, for ``shape`` (L,B,C)."""
        return {}

    def memory_width(self, memory: Memory) -> int:
        """Returns D of the regions that the memory was encoded from."""
        return memory["regions"].shape[-1]

    # --- Teacher forcing, and scheduled sampling.

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
        """Returns the logits of given captions, each word after the words before it.

        Args:
          features: (B,R,D), (B,h,w,D) or (B,D), float.
          tokens: (B,C,L) int32 in [0,V): words, the end token, padding; no begin token.
          token_lengths: (B,C) integers in [0,L], the end token included, an array or lists. Later
            steps leave the carry unchanged; their logits are undefined.
          mask: (B,R) bool, regions that exist; None: all.
          train: dropout (key ``dropout``) and other noise (key ``sampling``) are applied.
          sampling_probability: of scheduled sampling (Bengio et al., 1506.03099), in [0,1]: with
            this probability a step reads, instead of the given word, one drawn from the logits of
            the step before (key ``sampling``). None: teacher forcing, all steps in one fast scan.

        Raises:
          ValueError: features, tokens, lengths or mask of another shape or dtype, tokens or lengths
            out of range where they are known, features of another width than the parameters'.
        """
        if self.gradients not in GRADIENTS:
            raise ValueError(f"gradients: expected one of {GRADIENTS}, received {self.gradients!r}")
        regions, mask = flatten_regions(features, mask)
        token_lengths = check_captions(
            tokens, token_lengths, regions.shape[0], self.vocabulary_size
        )
        weights = self.weights(regions.shape[-1])
        if train and self.weight_dropout_rate > 0:
            weights = weights._replace(scan=self._drop_weights(weights.scan))
        memory = self.encode_memory(weights, self._cast(regions), mask)
        b, c, num_steps = tokens.shape
        carry = jax.tree.map(
            lambda x: jnp.broadcast_to(x[:, None], (b, c, *x.shape[1:])),
            cast_like(self.initial_carry(weights, memory), regions),
        )
        # Time is the leading axis of everything that is scanned.
        shift = (0, 0), (0, 0), (1, 0)
        previous = jnp.pad(tokens, shift, constant_values=self.begin_token)[..., :-1]
        previous = jnp.moveaxis(previous, -1, 0)  # (L,B,C)
        valid = jnp.arange(num_steps) < token_lengths[..., None]  # (B,C,L)
        flags = {"valid": jnp.moveaxis(valid, -1, 0)}
        # Random keys are taken in the order of the lines below: reordering them changes results.
        if train:
            flags |= self.draw_noise((num_steps, b, c), memory)
        if sampling_probability is not None:
            keys = [self._dropout_key(train) for _ in range(2)]
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
        embedded = self._embed(weights, previous, self._dropout_key(train))  # (L,B,C,E)
        outputs = self._scan_words(weights, memory, carry, embedded, flags)
        hidden = jnp.moveaxis(self.output_features(weights, outputs, embedded), 0, 2)  # (B,C,L,F)
        logits = self._logits(weights, hidden, self._dropout_key(train), valid)
        return self._collect(logits, {n: jnp.moveaxis(x, 0, 2) for n, x in outputs.items()})

    def _scan_words(
        self,
        weights: DecoderWeights,
        memory: Memory,
        carry: Carry,
        embedded: Array,
        flags: dict[str, Array],
    ) -> dict[str, Array]:
        """Runs all steps on given words (L,B,C,E); returns outputs (L,B,C,...)."""
        step = partial(self._step_where_valid, weights.cells)
        scanned = self.bind_memory(weights, memory)
        if not self._deferred:
            inputs = self.project(weights, memory, embedded)
            return plain_scan(step, scanned, carry, inputs, flags, unroll=self.unroll)[1]
        valid = flags["valid"]
        inputs = self.project(weights, memory, embedded, partial(multiply_valid, valid=valid))
        return deferred_scan(step, scanned, carry, inputs, flags, unroll=self.unroll, valid=valid)[
            1
        ]

    def _collect(self, logits: Array, outputs: dict[str, Array]) -> CaptionOutputs:
        """Packs logits (B,C,L,V) and outputs (B,C,L,...) of all steps."""
        return CaptionOutputs(logits, outputs.get("attention"))

    # --- One step: decoding word by word.

    def start_decoding(self, features: Array, mask: Array | None = None) -> tuple[Memory, Carry]:
        """Returns memory and carry before the first word, pytrees of (B,...).

        Args:
          features: as in ``__call__``.
          mask: as in ``__call__``.

        Raises:
          ValueError: as ``__call__``.
        """
        regions, mask = flatten_regions(features, mask)
        weights = self.weights(regions.shape[-1])
        memory = self.encode_memory(weights, self._cast(regions), mask)
        return memory, cast_like(self.initial_carry(weights, memory), regions)

    def decode_step(
        self, memory: Memory, carry: Carry, previous: Array
    ) -> tuple[Carry, Array, Array | None]:
        """Reads one word and predicts the next.

        Args:
          memory: of ``start_decoding``.
          carry: of ``start_decoding`` or the step before.
          previous: (B,) int32 in [0,V), the word before; at first ``begin_token``.

        Returns:
          The new carry, logits (B,V) float32, and attention weights (B,R) or None.

        Raises:
          ValueError: words of another shape or dtype, memory of another width than the parameters'.
        """
        b = next(iter(memory.values())).shape[0]
        if previous.shape != (b,) or not jnp.issubdtype(previous.dtype, jnp.integer):
            raise ValueError(
                f"previous: expected {(b,)} integers, received {previous.shape} {previous.dtype}"
            )
        weights = self.weights(self.memory_width(memory))
        # The shared step works on (B,C,...); here C = 1.
        carry = jax.tree.map(lambda x: x[:, None], carry)
        flags = {"valid": jnp.ones((b, 1), bool)}
        carry, logits, outputs = self._run_step(
            weights, memory, carry, previous[:, None], (flags, [None, None])
        )
        carry, logits, attention = jax.tree.map(
            lambda x: x[:, 0], (carry, logits, outputs.get("attention"))
        )
        return carry, logits, attention

    def _run_step(
        self,
        weights: DecoderWeights,
        memory: Memory,
        carry: Carry,
        words: Array,
        x: tuple[dict[str, Array], list[PRNGKey | None]],
    ) -> tuple[Carry, Array, dict[str, Array]]:
        """Reads words (B,C); returns the new carry, logits (B,C,V) and outputs (B,C,...)."""
        flags, dropout_keys = x
        embedded = self._embed(weights, words, dropout_keys[0])
        scanned = self.bind_memory(weights, memory)
        projected, inputs = split_projected(scanned, self.project(weights, memory, embedded))

        def project_hidden(name: str, hidden: Array) -> Array:
            return affine(scanned, projected, name, hidden)

        carry, outputs = self._step_where_valid(
            weights.cells, project_hidden, scanned.others, flags, carry, inputs
        )
        hidden = self.output_features(weights, outputs, embedded)
        return carry, self._logits(weights, hidden, dropout_keys[1]), outputs

    def _step_where_valid(
        self,
        cells: dict[str, InnerCell],
        project_hidden: ProjectHidden,
        others: PyTree,
        flags: dict[str, Array],
        carry: Carry,
        inputs: dict[str, Array],
    ) -> tuple[Carry, dict[str, Array]]:
        """Runs ``step``; padded captions keep their carry and have zero outputs."""
        valid = flags["valid"][..., None]  # (B,C,1)
        new_carry, outputs = self.step(cells, project_hidden, others, flags, carry, inputs)
        carry = jax.tree.map(lambda new, old: jnp.where(valid, new, old), new_carry, carry)
        return carry, {name: jnp.where(valid, x, 0) for name, x in outputs.items()}

    # --- Embedding, output layer, dropout.

    @property
    def _deferred(self) -> bool:
        return self.gradients == "deferred"

    @property
    def _logits_dtype(self) -> Dtype:
        return jnp.promote_types(self.dtype, jnp.float32)

    def _cast(self, regions: Array) -> Array:
        """Casts to ``dtype`` once: XLA would otherwise fuse the cast into every matmul's loop."""
        if regions.dtype == self.dtype:
            return regions
        return jax.lax.optimization_barrier(regions.astype(self.dtype))

    def _embed(self, weights: DecoderWeights, words: Array, key: PRNGKey | None) -> Array:
        look_up = in_auto_axes(lambda table, words: table[words], words, axis=words.ndim - 2)
        embedded = look_up(jnp.asarray(weights.embedding, self.dtype), words)
        return _dropout(embedded, self.embed_dropout_rate, key)

    def _logits(
        self,
        weights: DecoderWeights,
        hidden: Array,
        key: PRNGKey | None,
        valid: Array | None = None,
    ) -> Array:
        """Returns logits (...,V), at least float32; undefined where not ``valid`` (...)."""
        hidden = _dropout(hidden.astype(self.dtype), self.dropout_rate, key)
        kernel = weights.unscanned["vocabulary_kernel"].astype(self.dtype)
        # The largest matmul of a decoder: padded rows are left out where the kernels allow it.
        # multiply_valid returns the dtype of its input, hence not for bfloat16.
        if valid is not None and hidden.dtype == self._logits_dtype and self._deferred:
            logits = multiply_valid(hidden, kernel, valid)
        else:
            logits = jnp.matmul(hidden, kernel, preferred_element_type=self._logits_dtype)
        return logits + weights.unscanned["vocabulary_bias"].astype(logits.dtype)

    def _drop_weights(self, scanned: ScanWeights) -> ScanWeights:
        keys = jax.random.split(self.make_rng("dropout"), len(scanned.kernels))
        # Keys go by the order in which ``weights`` names its kernels.
        named = zip(scanned.kernels.items(), keys, strict=True)
        kernels = {name: _dropout(x, self.weight_dropout_rate, key) for (name, x), key in named}
        return scanned._replace(kernels=kernels)

    def _dropout_key(self, train: bool) -> PRNGKey | None:
        drops = train and (self.dropout_rate > 0 or self.embed_dropout_rate > 0)
        return self.make_rng("dropout") if drops else None


def bind_regions(scanned: ScanWeights, memory: Memory) -> ScanWeights:
    """Adds what attention reads: ``regions`` as the kernel ``context``, ``keys`` and ``mask``.

    The attended context α·regions is a matmul with a kernel (R,D) of each row, so the gradient of
    the regions, too, is formed once, after the scan.
    """
    kernels, biases, others = scanned
    mask = memory.get("mask")
    # As float: the scan's custom gradient needs a cotangent of every array of ``others``, and a
    # bool has none.
    exists = None if mask is None else mask.astype(jnp.float32)
    kernels = kernels | {"context": memory["regions"]}
    return ScanWeights(kernels, biases, (*others, memory["keys"], exists))


def check_captions(
    tokens: Array, token_lengths: Array, batch_size: int, vocabulary_size: int
) -> Array:
    """Returns the lengths as (B,C) int32, after a check of shapes, dtypes and ranges of captions.

    Values are checked only outside of ``jit``, where they are known.

    Raises:
      ValueError: tokens that are not (B,C,L) integers or, where they are known, not in [0,V);
        lengths that are not (B,C) integers or, where they are known, not in [0,L].
    """
    if tokens.ndim != 3 or tokens.shape[0] != batch_size or 0 in tokens.shape[1:]:
        raise ValueError(
            f"tokens: expected (B,C,L) with B = {batch_size}, received shape {tokens.shape}"
        )
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens: expected integers, received {tokens.dtype}")
    if not isinstance(tokens, jax.core.Tracer) and tokens.size:
        known = np.asarray(tokens)
        low, high, largest = known.min(), known.max(), vocabulary_size - 1
        if low < 0 or high > largest:
            raise ValueError(f"tokens: expected 0 to {largest}, received {low} to {high}")
    return check_counts("token_lengths", token_lengths, tokens.shape[:2], tokens.shape[2])


def _dropout(x: Array, rate: float, key: PRNGKey | None) -> Array:
    """Applies dropout where there is a key."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


RunStep = Callable[[Carry, Array, PyTree], tuple[Carry, Array, PyTree]]
"""(carry, words, x) to the new carry, logits (...,V) of the next words, and more outputs."""


def scan_sampled_words(
    run_step: RunStep,
    carry: Carry,
    words: Array,
    xs: PyTree,
    *,
    probability: Array | float,
    key: PRNGKey,
) -> tuple[Array, PyTree]:
    """Runs a decoder with scheduled sampling (Bengio et al., 1506.03099, section 2.4).

    The whole step, vocabulary matmul included, is in the loop, since the next input word may depend
    on the logits; hence it is slower than teacher forcing. No gradient passes through a drawn word.
    The first word is always the given one.

    Args:
      run_step: one step; ``x`` is its slice of ``xs``.
      carry: before the first step.
      words: (L,...) integers, the given input words.
      xs: a pytree of arrays (L,...).
      probability: of replacing a given word by a drawn one, in [0,1].
      key: of the draws.

    Returns:
      Logits (L,...,V) and outputs (L,...) of all steps.
    """

    def body(state: Any, inputs: Any) -> Any:
        carry, logits = state
        given, x, key, may_draw = inputs
        choose_key, draw_key = jax.random.split(key)
        chosen = may_draw & jax.random.bernoulli(choose_key, probability, given.shape)
        drawn = jax.random.categorical(draw_key, jax.lax.stop_gradient(logits))
        word = jnp.where(cast_like(chosen, given), drawn.astype(given.dtype), given)
        carry, logits, outputs = run_step(carry, word, x)
        return (carry, logits), (logits, outputs)

    num_steps = len(words)
    first = jax.tree.map(lambda leaf: leaf[0], (words, xs))
    like = jax.eval_shape(lambda: run_step(carry, *first)[1])
    inputs = words, xs, jax.random.split(key, num_steps), jnp.arange(num_steps) > 0
    state = carry, cast_like(jnp.zeros(like.shape, like.dtype), like)
    first_inputs = jax.tree.map(lambda leaf: leaf[0], inputs)
    state = settle_carry(lambda state: body(state, first_inputs)[0], state)
    return jax.lax.scan(body, state, inputs)[1]
