"""Decoders that read the image as one vector: Show and Tell, and LRCN's factored LSTM.

Neither attends: the image is v, the mean over the regions (B,R,D), so a pooled feature vector
(B,D) and a feature map (B,h,w,D) are both accepted.
"""

import flax.linen as nn

from flaxnets.decoders.attention import average_regions
from flaxnets.decoders.cells import InnerCell, hidden_width
from flaxnets.decoders.decoder import CaptionDecoder, DecoderWeights, Matmul, Memory
from flaxnets.recurrent.cell import ProjectHidden
from flaxnets.recurrent.matmul import ScanWeights, affine, multiply
from flaxnets.typing import Array, Carry, PyTree


class ShowAndTell(CaptionDecoder):
    r"""Show and Tell (Vinyals et al., 1411.4555, section 3.1, equations 10 to 12).

    The image is the first input, before the begin token:

    .. math::
        x_{-1} = W_I v + b_I, \quad x_t = E s_t, \quad h_t = LSTM(x_t, h_{t-1}), \quad
        p_{t+1} = softmax(h_t W + b)

    Deviations from the paper: the image's projection has a bias, as im2txt's (the authors' code)
    has. im2txt drops out the LSTM's inputs and outputs; here ``embed_dropout_rate`` does not act on
    the image.

    >>> import jax, jax.numpy as jnp
    >>> from functools import partial
    >>> from flaxnets.recurrent.cells import LSTMCell
    >>> decoder = ShowAndTell(vocabulary_size=9, make_cell=partial(LSTMCell, 4), embed_features=3)
    >>> features = jnp.ones((2, 6))  # (B,D)
    >>> tokens, lengths = jnp.array([[[5, 4, 2]], [[7, 2, 0]]]), jnp.array([[3], [2]])
    >>> outputs, variables = decoder.init_with_output(
    ...     jax.random.key(0), features, tokens, lengths, train=False
    ... )
    >>> outputs.logits.shape, outputs.attention  # (B,C,L,V)
    ((2, 1, 3, 9), None)
    """

    def setup(self) -> None:
        """Creates the cell."""
        self.cell = self.make_cell()

    @nn.compact
    def weights(self, width: int) -> DecoderWeights:
        """See ``CaptionDecoder.weights``."""
        self.check_width(width, "image_kernel")
        embedding, unscanned = self.param_vocabulary(hidden_width(self.cell))
        unscanned |= self.param_affine("image", width, self.embed_features)
        of_cell = self.cell.weights((1, self.embed_features))
        scanned = ScanWeights(of_cell.hidden, of_cell.bias, of_cell.pointwise)
        cells = {"cell": InnerCell(self.cell, of_cell)}
        return DecoderWeights(embedding, unscanned, scanned, cells)

    def encode_memory(self, weights: DecoderWeights, regions: Array, mask: Array | None) -> Memory:
        """Returns v, the mean of the regions."""
        return {"image": average_regions(regions, mask)}

    def memory_width(self, memory: Memory) -> int:
        """See ``CaptionDecoder.memory_width``."""
        return memory["image"].shape[-1]

    def initial_carry(self, weights: DecoderWeights, memory: Memory) -> Carry:
        """Returns the carry after the step that reads the image."""
        image = memory["image"]
        embedded = multiply(image, weights.unscanned["image_kernel"])
        embedded += weights.unscanned["image_bias"].astype(self.dtype)
        inputs = self.project(weights, memory, embedded)
        projected = {name: x for name, x in inputs.items() if name in weights.scan.kernels}

        def project_hidden(name: str, hidden: Array) -> Array:
            return affine(weights.scan, projected, name, hidden)

        others = {name: x for name, x in inputs.items() if name not in projected}
        carry = self.cell.initialize_carry(None, embedded.shape)
        return self.cell.step(weights.scan.others, project_hidden, carry, others)[0]

    def project(
        self,
        weights: DecoderWeights,
        memory: Memory,
        embedded: Array,
        matmul: Matmul = multiply,
    ) -> dict[str, Array]:
        """Returns the cell's projected inputs."""
        return self.cell.project(weights.cells["cell"].weights.input, embedded)

    def step(
        self,
        cells: dict[str, InnerCell],
        project_hidden: ProjectHidden,
        others: PyTree,
        flags: dict[str, Array],
        carry: Carry,
        inputs: dict[str, Array],
    ) -> tuple[Carry, dict[str, Array]]:
        """See ``CaptionDecoder.step``."""
        carry, hidden = self.cell.step(others, project_hidden, carry, inputs)
        return carry, {"hidden": hidden}


class FactoredLRCN(CaptionDecoder):
    r"""LRCN's factored decoder of two layers (Donahue et al., 1411.4389, section 5, LRCN-2f).

    The lower layer reads words alone, the upper one the image too, at every step:

    .. math::
        h^1_t = LSTM_1(E s_t, h^1_{t-1}), \quad h^2_t = LSTM_2([h^1_t, v], h^2_{t-1}), \quad
        p_{t+1} = softmax(h^2_t W + b)

    From carries of zeros. No known deviation; in the paper v are the 4,096 activations or 1,000
    logits of the last layers of CaffeNet or VGG, and both LSTMs have 1,000 units.

    >>> import jax, jax.numpy as jnp
    >>> from functools import partial
    >>> from flaxnets.recurrent.cells import LSTMCell
    >>> decoder = FactoredLRCN(vocabulary_size=9, make_cell=partial(LSTMCell, 4), embed_features=3)
    >>> features = jnp.ones((2, 6))  # (B,D)
    >>> tokens, lengths = jnp.array([[[5, 4, 2]], [[7, 2, 0]]]), jnp.array([[3], [2]])
    >>> outputs, variables = decoder.init_with_output(
    ...     jax.random.key(0), features, tokens, lengths, train=False
    ... )
    >>> outputs.logits.shape  # (B,C,L,V)
    (2, 1, 3, 9)
    """

    def setup(self) -> None:
        """Creates the cells."""
        self.word_cell = self.make_cell()
        self.image_cell = self.make_cell()

    @nn.compact
    def weights(self, width: int) -> DecoderWeights:
        """See ``CaptionDecoder.weights``."""
        lower_width = hidden_width(self.word_cell)
        self.check_width(width, "image_cell", "input_kernel", other_rows=lower_width)
        embedding, unscanned = self.param_vocabulary(hidden_width(self.image_cell))
        lower = InnerCell(self.word_cell, self.word_cell.weights((1, self.embed_features)))
        upper = InnerCell(
            self.image_cell, self.image_cell.weights((1, lower_width + width)), "image_"
        )
        # The upper input kernel is split by rows: those of h^1 stay in the scan, those of v are
        # used once per image.
        unscanned["image_kernel"] = upper.input_kernel(slice(lower_width, None))
        kernels = lower.hidden_kernels() | upper.hidden_kernels()
        kernels[upper.input_name] = upper.input_kernel(slice(lower_width))
        pointwise = lower.weights.pointwise, upper.weights.pointwise
        scanned = ScanWeights(kernels, lower.biases() | upper.biases(), pointwise)
        return DecoderWeights(embedding, unscanned, scanned, {"word": lower, "image": upper})

    def encode_memory(self, weights: DecoderWeights, regions: Array, mask: Array | None) -> Memory:
        """Returns v, the mean of the regions, and its part of the upper cell's gates."""
        image = average_regions(regions, mask)
        return {"image": image, "gates": multiply(image, weights.unscanned["image_kernel"])}

    def memory_width(self, memory: Memory) -> int:
        """See ``CaptionDecoder.memory_width``."""
        return memory["image"].shape[-1]

    def initial_carry(self, weights: DecoderWeights, memory: Memory) -> Carry:
        """Returns zeros."""
        rows = memory["image"].shape
        return tuple(c.initialize_carry(None, rows) for c in (self.word_cell, self.image_cell))

    def bind_memory(self, weights: DecoderWeights, memory: Memory) -> ScanWeights:
        """Adds the image's part of the upper cell's gates."""
        return weights.scan._replace(others=(*weights.scan.others, memory["gates"]))

    def project(
        self,
        weights: DecoderWeights,
        memory: Memory,
        embedded: Array,
        matmul: Matmul = multiply,
    ) -> dict[str, Array]:
        """Returns the lower cell's projected inputs."""
        return self.word_cell.project(weights.cells["word"].weights.input, embedded)

    def step(
        self,
        cells: dict[str, InnerCell],
        project_hidden: ProjectHidden,
        others: PyTree,
        flags: dict[str, Array],
        carry: Carry,
        inputs: dict[str, Array],
    ) -> tuple[Carry, dict[str, Array]]:
        """See ``CaptionDecoder.step``."""
        lower_pointwise, upper_pointwise, gates = others
        lower, upper = carry
        lower, hidden = self.word_cell.step(lower_pointwise, project_hidden, lower, inputs)
        upper_inputs = project_hidden(cells["image"].input_name, hidden) + gates[:, None]
        upper, hidden = cells["image"].step(upper_pointwise, project_hidden, upper, upper_inputs)
        return (lower, upper), {"hidden": hidden}
