"""Decoders that see the image as one vector: Show and Tell, and LRCN's factored LSTM."""

import flax.linen as nn

from flaxnets.decoders.attention import average_regions
from flaxnets.decoders.cells import InnerCell
from flaxnets.decoders.decoder import CaptionDecoder, DecoderWeights, Memory, Product
from flaxnets.recurrent.cell import ProjectHidden
from flaxnets.recurrent.matmul import ScanWeights, affine, multiply
from flaxnets.typing import Array, Carry, PyTree


class ShowAndTell(CaptionDecoder):
    r"""Show and Tell (Vinyals et al., 1411.4555, section 3): the image is the first input.

    .. math::
        x_{-1} = W_I v + b_I, \quad x_t = E s_t, \quad h_t = LSTM(x_t, h_{t-1}), \quad
        p_{t+1} ∝ \exp(h_t W + b)

    v is the mean over the regions. Deviations: the projection has a bias (as im2txt's); im2txt
    drops out the LSTM's inputs and outputs, here ``embed_dropout_rate`` does not touch the image.
    """

    def setup(self) -> None:
        """Makes the cell."""
        self.cell = self.make_cell()

    @nn.compact
    def weights(self, width: int) -> DecoderWeights:
        """See ``CaptionDecoder.weights``."""
        self.check_width(width, "image_kernel")
        embedding, fixed = self.param_words(self.cell.features)
        fixed |= self.param_affine("image", width, self.embed_features)
        of_cell = self.cell.weights((1, self.embed_features))
        scanned = ScanWeights(of_cell.hidden, of_cell.bias, of_cell.pointwise)
        return DecoderWeights(embedding, fixed, scanned, {"cell": InnerCell(self.cell, of_cell)})

    def remember(self, weights: DecoderWeights, regions: Array, mask: Array | None) -> Memory:
        """The mean of the regions."""
        return {"image": average_regions(regions, mask)}

    def memory_width(self, memory: Memory) -> int:
        """See ``CaptionDecoder.memory_width``."""
        return memory["image"].shape[-1]

    def start(self, weights: DecoderWeights, memory: Memory) -> Carry:
        """The carry after the step that reads the image."""
        image = memory["image"]
        embedded = multiply(image, weights.fixed["image_kernel"])
        embedded += weights.fixed["image_bias"].astype(self.dtype)
        inputs = self.project(weights, memory, embedded)
        addends = {name: x for name, x in inputs.items() if name in weights.scan.kernels}

        def recur(name: str, hidden: Array) -> Array:
            return affine(weights.scan, addends, name, hidden)

        others = {name: x for name, x in inputs.items() if name not in addends}
        carry = self.cell.initialize_carry(None, embedded.shape)
        return self.cell.step(weights.scan.others, recur, carry, others)[0]

    def project(
        self,
        weights: DecoderWeights,
        memory: Memory,
        embedded: Array,
        product: Product = multiply,
    ) -> dict[str, Array]:
        """The cell's own."""
        return self.cell.project(weights.cells["cell"].weights.input, embedded)

    def step(
        self,
        cells: dict[str, InnerCell],
        recur: ProjectHidden,
        others: PyTree,
        flags: dict[str, Array],
        carry: Carry,
        inputs: dict[str, Array],
    ) -> tuple[Carry, dict[str, Array]]:
        """See ``CaptionDecoder.step``."""
        carry, hidden = self.cell.step(others, recur, carry, inputs)
        return carry, {"hidden": hidden}


class FactoredLRCN(CaptionDecoder):
    r"""LRCN's factored decoder of two layers (Donahue et al., 1411.4389, section 5, LRCN-2f).

    .. math::
        h^1_t = LSTM_1(E s_t, h^1_{t-1}), \quad h^2_t = LSTM_2([h^1_t, v], h^2_{t-1}), \quad
        p_{t+1} ∝ \exp(h^2_t W + b)

    The lower layer sees the words alone, the upper one the image at every step. v is the mean over
    the regions. Deviations: none known; the paper's v are the 4,096 features or 1,000 scores of
    CaffeNet's or VGG's upper layers, its layers 1,000 units wide.
    """

    def setup(self) -> None:
        """Makes the cells."""
        self.word_cell = self.make_cell()
        self.image_cell = self.make_cell()

    @nn.compact
    def weights(self, width: int) -> DecoderWeights:
        """See ``CaptionDecoder.weights``."""
        lower_width = self.word_cell.features
        self.check_width(width, "image_cell", "input_kernel", beside=lower_width)
        embedding, fixed = self.param_words(self.image_cell.features)
        lower = InnerCell(self.word_cell, self.word_cell.weights((1, self.embed_features)))
        upper = InnerCell(
            self.image_cell, self.image_cell.weights((1, lower_width + width)), "image_"
        )
        fixed["image_kernel"] = upper.input_kernel(slice(lower_width, None))
        kernels = lower.hidden_kernels() | upper.hidden_kernels()
        kernels[upper.input_name] = upper.input_kernel(slice(lower_width))
        pointwise = lower.weights.pointwise, upper.weights.pointwise
        scanned = ScanWeights(kernels, lower.biases() | upper.biases(), pointwise)
        return DecoderWeights(embedding, fixed, scanned, {"word": lower, "image": upper})

    def remember(self, weights: DecoderWeights, regions: Array, mask: Array | None) -> Memory:
        """The mean of the regions, and its product with the upper cell's kernel."""
        image = average_regions(regions, mask)
        return {"image": image, "gates": multiply(image, weights.fixed["image_kernel"])}

    def memory_width(self, memory: Memory) -> int:
        """See ``CaptionDecoder.memory_width``."""
        return memory["image"].shape[-1]

    def start(self, weights: DecoderWeights, memory: Memory) -> Carry:
        """Zeros."""
        rows = memory["image"].shape
        return tuple(c.initialize_carry(None, rows) for c in (self.word_cell, self.image_cell))

    def attach(self, weights: DecoderWeights, memory: Memory) -> ScanWeights:
        """With the image's share of the upper cell's gates."""
        return weights.scan._replace(others=(*weights.scan.others, memory["gates"]))

    def project(
        self,
        weights: DecoderWeights,
        memory: Memory,
        embedded: Array,
        product: Product = multiply,
    ) -> dict[str, Array]:
        """The lower cell's own."""
        return self.word_cell.project(weights.cells["word"].weights.input, embedded)

    def step(
        self,
        cells: dict[str, InnerCell],
        recur: ProjectHidden,
        others: PyTree,
        flags: dict[str, Array],
        carry: Carry,
        inputs: dict[str, Array],
    ) -> tuple[Carry, dict[str, Array]]:
        """See ``CaptionDecoder.step``."""
        lower_pointwise, upper_pointwise, gates = others
        lower, upper = carry
        lower, hidden = self.word_cell.step(lower_pointwise, recur, lower, inputs)
        upper_inputs = recur(cells["image"].input_name, hidden) + gates[:, None]
        upper, hidden = cells["image"].step(upper_pointwise, recur, upper, upper_inputs)
        return (lower, upper), {"hidden": hidden}
