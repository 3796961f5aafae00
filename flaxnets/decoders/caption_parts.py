"""The parts of a captioning decoder, which each of them defines; ``caption.py`` runs them."""

from flaxnets.decoders.caption_arrays import DecoderWeights, Memory, Product
from flaxnets.decoders.caption_cells import InnerCell
from flaxnets.decoders.caption_parameters import DecoderParameters
from flaxnets.recurrent.cell import Recur
from flaxnets.recurrent.products import ScanWeights, multiply
from flaxnets.typing import Array, Carry, PyTree


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
        recur: Recur,
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
