"""Functions of readers and sound classifiers that an export holds, lowered for any width."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxnets.decoders.ctc.automaton import Automaton
from flaxnets.inference.column_functions import ColumnStream, LinenReader, LinenSoundClassifier
from flaxnets.inference.lowering import ExportedFunction, lower, portable
from flaxnets.inference.runtime.columns import SoundPreprocessing
from flaxnets.typing import Array, PyTree

BEAM_WIDTH = 10
"""Prefixes of the exported beam search of a model whose own search is greedy."""
Lowered = tuple[list[ExportedFunction], Mapping[str, PyTree], dict[str, Any]]
"""Functions, their variables, and what their runtime must know."""


def lower_reader(functions: LinenReader) -> Lowered:
    """Returns the greedy and the beam search of a reader and, if it is causal, those of a stream.

    The tables of its language model and lexicon become variables.
    """
    module, variables = portable(functions.module), dict(functions.variables)
    width = functions.beam_width or BEAM_WIDTH
    if functions.automaton is not None:
        variables["language_model"] = functions.automaton._asdict()
    if functions.lexicon is not None:
        variables["lexicon"] = functions.lexicon._asdict()
    own = LinenReader(module, functions.variables, functions.search, functions.num_rows)

    def greedy(variables: PyTree, inputs: Array, lengths: Array) -> Any:
        return own.transcribe(variables, inputs, lengths, beam_width=0)

    def beam(variables: PyTree, inputs: Array, lengths: Array) -> Any:
        tables = (variables.get(name) for name in ("language_model", "lexicon"))
        models = (None if given is None else Automaton(**given) for given in tables)
        return own.transcribe(variables, inputs, lengths, *models, beam_width=width)

    b, w = jax.export.symbolic_shape(f"b,{functions.stride}*s")
    inputs = jax.ShapeDtypeStruct((b, w, functions.num_rows), jnp.float32)
    if not functions.reads_sound:
        inputs = jax.ShapeDtypeStruct((b, functions.num_rows, w, 1), jnp.uint8)
    lengths = jax.ShapeDtypeStruct((b,), jnp.int32)
    lowered = [
        lower("greedy", greedy, variables, inputs, lengths),
        lower("beam", beam, variables, inputs, lengths),
    ]
    more, details = _lower_stream(functions, own, variables, functions.reads_sound)
    details |= {"beam_width": width, "own_beam_width": functions.beam_width}
    return lowered + more, variables, details


def logits_of_columns(functions: LinenReader, columns: int) -> ExportedFunction:
    """Returns the function of a reader that ONNX holds, for any batch size and one width.

    Its results are the logits (B,S,K+1), class 0 being the blank, and the valid steps (B,).

    Args:
      functions: of the reader.
      columns: width of its inputs, a multiple of its stride.
    """
    module = portable(functions.module)

    def logits(variables: PyTree, inputs: Array, lengths: Array) -> Any:
        return module.apply(variables, inputs, lengths, train=False), module.steps(lengths)

    (b,) = jax.export.symbolic_shape("b")
    inputs = jax.ShapeDtypeStruct((b, columns, functions.num_rows), jnp.float32)
    if not functions.reads_sound:
        inputs = jax.ShapeDtypeStruct((b, functions.num_rows, columns, 1), jnp.uint8)
    lengths = jax.ShapeDtypeStruct((b,), jnp.int32)
    return ExportedFunction("logits", b"", logits, (inputs, lengths))


def lower_sound_classifier(
    functions: LinenSoundClassifier, preprocessing: SoundPreprocessing
) -> Lowered:
    """Returns the function of windows of a sound classifier and, if it is causal, of a stream."""
    module, variables = portable(functions.module), functions.variables
    num_mels = functions.columns.num_rows
    own = LinenSoundClassifier(module, variables, functions.task.loss_kind, num_mels)

    def clip(variables: PyTree, frames: Array, lengths: Array) -> Any:
        return own.classify_clips(variables, frames, lengths)

    (b,) = jax.export.symbolic_shape("b")
    frames = jax.ShapeDtypeStruct((b, *preprocessing.clip_shape), jnp.float32)
    lengths = jax.ShapeDtypeStruct((b,), jnp.int32)
    lowered = [lower("clip", clip, variables, frames, lengths)]
    more, details = _lower_stream(functions.columns, own.columns, variables, True)
    return lowered + more, variables, details


def _lower_stream(
    functions: ColumnStream, own: ColumnStream, variables: Mapping[str, PyTree], sound: bool
) -> tuple[list[ExportedFunction], dict[str, Any]]:
    """Returns ``start`` and ``step`` of a causal model of sound, and what their runtime must know.

    Args:
      functions: of the model.
      own: those of its portable module.
      variables: of both.
      sound: False for a reader of lines, which has no streams.
    """
    obstacle = functions.obstacle if sound else "it reads lines of text"
    details: dict[str, Any] = {"stride": functions.stride, "obstacle": obstacle, "context": None}
    if obstacle:
        return [], details
    details["context"] = list(functions.context)
    carry = jax.eval_shape(own.start_stream, variables)
    structure = jax.tree.structure(carry)

    # Carries pass as lists of arrays: a structure may hold types that only flaxnets knows.
    def start(variables: PyTree) -> list[Array]:
        return jax.tree.leaves(own.start_stream(variables))

    def step(variables: PyTree, leaves: list[Array], *arguments: Array) -> Any:
        carry = jax.tree.unflatten(structure, leaves)
        carry, steps, clips = own.step_stream(variables, carry, *arguments)
        return jax.tree.leaves(carry), steps, clips

    (w,) = jax.export.symbolic_shape(f"{functions.stride}*s")
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    shapes = (
        jax.ShapeDtypeStruct((1, w, functions.num_rows), jnp.float32),
        one,
        jax.ShapeDtypeStruct((), jnp.int32),
        one,
    )
    lowered = [
        lower("start", start, variables),
        lower("step", step, variables, jax.tree.leaves(carry), *shapes),
    ]
    return lowered, details
