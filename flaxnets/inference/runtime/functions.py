"""Interface between a model's compiled functions and what reads files and makes results.

``flaxnets.inference`` implements it by Linen modules and their variables (a workdir, a shipped
model), ``exported.py`` beside this file by the StableHLO of an export.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

Carry = Any
"""Pytree of arrays (B,...): what a causal model keeps of the frames before."""


class Clips(NamedTuple):
    """Outputs for clips of T steps."""

    probabilities: np.ndarray
    """(B,K) float32, averaged over steps and networks as the task does."""
    steps: np.ndarray | None
    """(B,T,K) float32, of each step alone, averaged over networks; None where the model's head has
    no outputs at each step. Those of padded steps are meaningless."""


class Captions(NamedTuple):
    """Outputs of a captioner: K captions an image, best first."""

    tokens: np.ndarray
    """(B,K,L) int32 ids, zeros after the end token."""
    lengths: np.ndarray
    """(B,K) int32, tokens, the end token included."""
    log_probabilities: np.ndarray
    """(B,K) float32, nats."""
    attention: np.ndarray | None
    """(B,K,L,h,w) float32; None unless asked for and the decoder attends to regions of a map."""


class Texts(NamedTuple):
    """Outputs of a reader: the best text of each row."""

    tokens: np.ndarray
    """(B,L) int32 in 1..K, padded with 0."""
    lengths: np.ndarray
    """(B,) int32, characters."""
    confidences: np.ndarray
    """(B,) float32 in [0,1]."""
    character_confidences: np.ndarray
    """(B,L) float32 in [0,1]."""
    starts: np.ndarray
    """(B,L) int32, first step of each character."""
    ends: np.ndarray
    """(B,L) int32, the step after its last one."""


class ClassifierFunctions(Protocol):
    """Functions of a classifier of clips or images, jitted once for each bucket of shapes."""

    @property
    def causal(self) -> bool:
        """True if ``step`` is available: each output depends on frames that came before alone."""

    @property
    def obstacle(self) -> str:
        """The reason why the model is not causal; empty if it is."""

    def classify(self, frames: np.ndarray, lengths: np.ndarray) -> Clips:
        """Classifies clips.

        Args:
          frames: as the preprocessing makes them: (B,T,H,W,3) uint8, or (B,T,S,H,W,3) of S streams
            of images; images have T = 1.
          lengths: (B,) int32 in [1,T].
        """

    def start(self, batch_size: int) -> Carry:
        """Returns the carry before the first frame of B streams."""

    def step(self, carry: Carry, frames: np.ndarray) -> tuple[Carry, np.ndarray, np.ndarray]:
        """Reads the next frame of each of B streams.

        Args:
          carry: of the frame before.
          frames: (B,H,W,3) uint8, as the preprocessing makes them.

        Returns:
          The new carry; (B,K) float32 probabilities of this step alone; (B,K) float32 probabilities
          of the clip of all steps so far, as ``classify`` has them.
        """


class CaptionerFunctions(Protocol):
    """Functions of a captioner of images, jitted once for each bucket of batch sizes."""

    def caption(
        self, images: np.ndarray, num_captions: int = 1, *, attention: bool = False
    ) -> Captions:
        """Searches captions of images.

        Args:
          images: (B,h,w,3) uint8, as the preprocessing makes them.
          num_captions: K, at least 1.
          attention: return the attention weights, too.

        Raises:
          ValueError: more captions than the search finds, or attention of a decoder without.
        """


class ColumnFunctions(Protocol):
    """Functions of a network whose columns become steps, read chunk by chunk."""

    @property
    def stride(self) -> int:
        """Columns or frames for each step."""

    @property
    def obstacle(self) -> str:
        """The reason why the model is not causal; empty if it is."""

    @property
    def context(self) -> tuple[int, int]:
        """Columns before and after those of a step on which its features depend.

        Multiples of ``stride``; only where there is no ``obstacle``.
        """

    def start(self) -> Carry:
        """Returns the carry before the first chunk; only where there is no ``obstacle``."""

    def step(
        self, carry: Carry, inputs: np.ndarray, length: int, first: int, count: int
    ) -> tuple[Carry, np.ndarray, np.ndarray | None]:
        """Reads the next steps of a recording; only where there is no ``obstacle``.

        Args:
          carry: of the chunk before.
          inputs: (W,M) float32, with W a multiple of ``stride``: columns of the steps and, as far
            as the recording has them, the ``context`` on both sides.
          length: columns that are there, at most W.
          first: the first step of ``inputs`` that is read.
          count: steps that are read.

        Returns:
          The new carry; (count,K) float32 probabilities of each step; (count,K) float32 those of a
          classifier for the recording up to each step, None of a reader.
        """


class ReaderFunctions(ColumnFunctions, Protocol):
    """Functions of a reader of lines or speech, jitted once for each bucket of widths."""

    @property
    def beam_width(self) -> int:
        """Prefixes of the model's own beam search; 0: greedy."""

    def read(self, inputs: np.ndarray, lengths: np.ndarray, beam_width: int) -> Texts:
        """Searches the texts of lines or recordings.

        Args:
          inputs: (B,H,W,1) uint8 or (B,W,M) float32, with W a multiple of ``stride``.
          lengths: (B,) int32 in [1,W].
          beam_width: prefixes of the beam search; 0: greedy.

        Raises:
          ValueError: a width of the beam that the functions do not have.
        """
