"""Functions of readers and sound classifiers, whose columns become steps, by Linen modules."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.decoders.ctc.automaton import Automaton
from flaxnets.decoders.ctc.character_ngram import CharacterNgram
from flaxnets.decoders.ctc.search import Transcripts
from flaxnets.inference.functions import LinenClassifier
from flaxnets.inference.runtime.functions import Carry, Texts
from flaxnets.tasks.ctc import CTC, CTCSearch
from flaxnets.typing import Array, PyTree

_PROBED_COLUMNS = (512, 2048, 8192)
"""Widths at which the receptive field of an encoder is looked for."""


class ColumnStream:
    """Network whose columns become steps, read chunk by chunk with a carry."""

    def __init__(self, module: nn.Module, variables: Mapping[str, PyTree], num_rows: int) -> None:
        """Compiles nothing yet.

        Args:
          module: as ``ColumnCRNN``.
          variables: of the module.
          num_rows: M, bands of a spectrogram.
        """
        self.module: Any = module
        self.variables = variables
        self.num_rows = num_rows
        self._start, self._step = jax.jit(self.start_stream), jax.jit(self.step_stream)

    @property
    def stride(self) -> int:
        """Columns or frames for each step."""
        return int(self.module.stride)

    @functools.cached_property
    def obstacle(self) -> str:
        """The reason why the model is not causal; empty if it is."""
        if not hasattr(self.module, "stream"):
            return f"{type(self.module).__name__} reads the whole recording"
        if reason := str(self.module.obstacle):
            return reason
        if self.receptive_field is None:
            return "each column of its encoder depends on the whole recording"
        return ""

    @property
    def context(self) -> tuple[int, int]:
        """Columns before and after those of a step on which its features depend."""
        assert self.receptive_field is not None  # See ``obstacle``.
        return self.receptive_field

    @functools.cached_property
    def receptive_field(self) -> tuple[int, int] | None:
        """Columns before and after those of a step that its features read; None: all there are.

        Multiples of the stride. NaN in one column makes all that depends on it NaN, whatever the
        parameters are; where an algorithm computes several columns from a tile of others, what it
        makes NaN is more than what depends on it, never less.
        """
        stride = self.module.stride
        encode = jax.jit(functools.partial(self.module.apply, method="encode"))
        for width in _PROBED_COLUMNS:
            # The columns of one step in the middle, each in a row of its own.
            middle = width // 2 // stride
            inputs = np.zeros((stride, width, self.num_rows), np.float32)
            rows = np.arange(stride)
            inputs[rows, middle * stride + rows] = np.nan
            lengths = np.full(stride, width, np.int32)
            features = np.asarray(encode(self.variables, inputs, lengths), np.float32)
            reached = np.flatnonzero(np.isnan(features).any(axis=(0, 2)))
            first, last = int(reached[0]), int(reached[-1])
            if first > 0 and last < features.shape[1] - 1:
                return (last - middle) * stride, (middle - first) * stride
        return None

    def start_stream(self, variables: PyTree) -> Carry:
        """Returns the carry before the first chunk of one recording; traceable."""
        stride = self.module.stride
        nothing = jnp.zeros((1, stride, self.num_rows), jnp.float32)
        none = jnp.zeros((1,), jnp.int32)
        streamed: Any = self.module.apply(
            variables, None, nothing, none, jnp.int32(0), none, method="stream"
        )
        return streamed[0]

    def step_stream(
        self,
        variables: PyTree,
        carry: Carry,
        inputs: Array,
        lengths: Array,
        first: Array,
        counts: Array,
    ) -> tuple[Carry, Array, Array | None]:
        """Returns the carry after a chunk and the probabilities of its steps; traceable.

        Args:
          variables: of the module.
          carry: of the chunk before.
          inputs: (1,W,M) float32.
          lengths: (1,) int32.
          first: () int32.
          counts: (1,) int32.
        """
        streamed: Any = self.module.apply(
            variables, carry, inputs, lengths, first, counts, method="stream"
        )
        carry, logits = streamed
        clips = None if logits.clips is None else jax.nn.softmax(logits.clips)
        return carry, jax.nn.softmax(logits.steps), clips

    def start(self) -> Carry:
        """Returns the carry before the first chunk, see ``runtime.functions.ColumnFunctions``."""
        return self._start(self.variables)

    def step(
        self, carry: Carry, inputs: np.ndarray, length: int, first: int, count: int
    ) -> tuple[Carry, np.ndarray, np.ndarray | None]:
        """Reads the next steps, see ``runtime.functions.ColumnFunctions``."""
        lengths, counts = np.array([[length], [count]], np.int32)
        carry, steps, clips = self._step(
            self.variables, carry, inputs[None], lengths, np.int32(first), counts
        )
        all_clips = None if clips is None else np.asarray(clips)[0, :count]
        return carry, np.asarray(steps)[0, :count], all_clips


class LinenReader(ColumnStream):
    """Functions of a reader of lines or speech: a Linen module, its variables and its search."""

    def __init__(
        self,
        module: nn.Module,
        variables: Mapping[str, PyTree],
        search: CTCSearch,
        num_rows: int,
        language_model: CharacterNgram | None = None,
        *,
        lexicon: Automaton | None = None,
        reads_sound: bool = False,
    ) -> None:
        """Compiles nothing yet.

        Args:
          module: called with inputs (B,…), lengths (B,) and ``train``; returns logits (B,S,K+1),
            class 0 being the blank.
          variables: of the module.
          search: of the texts.
          num_rows: rows of the inputs: pixels of a line, bands of a spectrogram.
          language_model: of characters, for the beam search; None: none.
          lexicon: of words, to which the beam search keeps; None: any text.
          reads_sound: whether inputs are spectrograms (B,W,M), and not lines (B,H,W,1).
        """
        super().__init__(module, jax.device_put(dict(variables)), num_rows)
        self.search, self.language_model = search, language_model
        self.lexicon, self.reads_sound = lexicon, reads_sound
        self._automaton: Automaton | None = None
        if language_model is not None and search.language_model_weight:
            self._automaton = language_model.automaton()
        self._read = jax.jit(self.transcribe, static_argnames="beam_width")

    @property
    def beam_width(self) -> int:
        """Prefixes of the model's own beam search; 0: greedy."""
        return self.search.width

    @property
    def automaton(self) -> Automaton | None:
        """Tables of the language model; None where the search reads none."""
        return self._automaton

    def transcribe(
        self,
        variables: PyTree,
        inputs: Array,
        lengths: Array,
        automaton: Automaton | None = None,
        lexicon: Automaton | None = None,
        *,
        beam_width: int,
    ) -> tuple[Array, ...]:
        """Returns the fields of ``Texts``, as arrays; traceable: an export lowers it.

        Args:
          variables: of the module.
          inputs: (B,H,W,1) uint8 or (B,W,M) float32.
          lengths: (B,) int32.
          automaton: of the language model; None: none.
          lexicon: of words; None: none.
          beam_width: prefixes of the beam search; 0: greedy.
        """
        search = dataclasses.replace(self.search, width=beam_width)
        task = CTC(_no_text, search, automaton, lexicon)
        logits: Any = self.module.apply(variables, inputs, lengths, train=False)
        found: Transcripts = task.transcribe(self.module, logits, lengths)
        fields = (
            found.tokens,
            found.lengths,
            found.confidences,
            found.character_confidences,
            found.starts,
            found.ends,
        )
        return tuple(field[:, 0] for field in fields)

    def num_classes(self, input_shape: tuple[int, ...]) -> int:
        """Returns K + 1; traces the network for one input and so checks the variables."""
        dtype = jnp.uint8 if len(input_shape) == 3 else jnp.float32
        inputs = jax.ShapeDtypeStruct((1, *input_shape), dtype)
        lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
        call = functools.partial(self.module.apply, train=False)
        return int(jax.eval_shape(call, self.variables, inputs, lengths).shape[-1])

    def read(self, inputs: np.ndarray, lengths: np.ndarray, beam_width: int) -> Texts:
        """Searches the texts, see ``runtime.functions.ReaderFunctions``."""
        models = (self._automaton, self.lexicon) if beam_width else ()
        found = self._read(self.variables, inputs, lengths, *models, beam_width=beam_width)
        return Texts(*jax.device_get(found))

    def __reduce__(self) -> tuple[Any, ...]:
        # Compiled functions cannot be pickled, but made anew.
        variables = jax.device_get(self.variables)
        make = functools.partial(type(self), lexicon=self.lexicon, reads_sound=self.reads_sound)
        return make, (self.module, variables, self.search, self.num_rows, self.language_model)


class LinenSoundClassifier(LinenClassifier):
    """Functions of a classifier of sounds: a Linen module and its variables.

    Attributes:
      columns: the same module, read chunk by chunk.
    """

    def __init__(
        self, module: nn.Module, variables: Mapping[str, PyTree], averaging: str, num_mels: int
    ) -> None:
        """Compiles nothing yet.

        Args:
          module: as ``ColumnCRNN``, called with spectrograms (B,T,M), lengths and ``train``.
          variables: of the module.
          averaging: as for ``LinenClassifier``.
          num_mels: M.
        """
        super().__init__(module, variables, averaging)
        self.columns = ColumnStream(module, self.variables, num_mels)

    @property
    def obstacle(self) -> str:
        """The reason why the model is not causal; empty if it is."""
        return self.columns.obstacle

    @property
    def causal(self) -> bool:
        """False: sounds are read chunk by chunk, by ``columns``."""
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        # Compiled functions cannot be pickled, but made anew.
        variables = jax.device_get(self.variables)
        return (
            type(self),
            (self.module, variables, self.task.loss_kind, self.columns.num_rows),
        )


def _no_text(tokens: Any) -> str:
    return ""  # The runtime makes texts of the tokens.
