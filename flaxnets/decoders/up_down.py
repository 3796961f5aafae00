"""Up-Down decoder (Anderson et al., 1707.07998): an attention LSTM and a language LSTM."""

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.decoders.attention import attend, average_regions
from flaxnets.decoders.cells import InnerCell, hidden_state, hidden_width
from flaxnets.decoders.decoder import (
    CaptionDecoder,
    DecoderWeights,
    Matmul,
    Memory,
    bind_regions,
)
from flaxnets.recurrent.cell import ProjectHidden
from flaxnets.recurrent.matmul import ScanWeights, multiply
from flaxnets.typing import Array, Carry, PyTree


class UpDown(CaptionDecoder):
    r"""Bottom-up and top-down attention over given regions (1707.07998, section 3.2).

    Equations 2 to 7 of the paper:

    .. math::
        h^1_t &= LSTM_1([h^2_{t-1}, \bar v, E s_t], h^1_{t-1}) \\
        α_t &= softmax_r(w · \tanh(W_k v_r + W_q h^1_t + b)), \quad ẑ_t = Σ_r α_{tr} v_r \\
        h^2_t &= LSTM_2([ẑ_t, h^1_t], h^2_{t-1}) \\
        p_{t+1} &= softmax(h^2_t W + b_p)

    From carries of zeros; :math:`\bar v` is the mean over the regions. Deviations: the regions are
    those given, as the cells of a feature map, where the paper's are a detector's boxes; the keys
    have a bias b.

    Attributes:
      attention_features: A, width of keys and queries.

    >>> import jax, jax.numpy as jnp
    >>> from functools import partial
    >>> from flaxnets.recurrent.cells import LSTMCell
    >>> decoder = UpDown(
    ...     vocabulary_size=9,
    ...     make_cell=partial(LSTMCell, 4),
    ...     embed_features=3,
    ...     attention_features=5,
    ... )
    >>> features, mask = jnp.ones((2, 8, 6)), jnp.arange(8) < jnp.array([[8], [3]])  # (B,R,D)
    >>> tokens, lengths = jnp.array([[[5, 4, 2]], [[7, 2, 0]]]), jnp.array([[3], [2]])
    >>> outputs, variables = decoder.init_with_output(
    ...     jax.random.key(0), features, tokens, lengths, mask, train=False
    ... )
    >>> outputs.logits.shape, outputs.attention.shape  # (B,C,L,V), (B,C,L,R)
    ((2, 1, 3, 9), (2, 1, 3, 8))
    >>> int((outputs.attention[1, 0, 0] > 0).sum())  # Regions that exist.
    3
    """

    attention_features: int = 512

    def setup(self) -> None:
        """Creates the cells."""
        self.attention_cell = self.make_cell()
        self.language_cell = self.make_cell()

    @nn.compact
    def weights(self, width: int) -> DecoderWeights:
        """See ``CaptionDecoder.weights``."""
        self.check_width(width, "key_kernel")
        embed, attention = self.embed_features, self.attention_features
        width_1, width_2 = hidden_width(self.attention_cell), hidden_width(self.language_cell)
        embedding, unscanned = self.param_vocabulary(width_2)
        unscanned |= self.param_affine("key", width, attention)
        of_first = self.attention_cell.weights((1, width_2 + width + embed))
        first = InnerCell(self.attention_cell, of_first, "attention_")
        of_second = self.language_cell.weights((1, width + width_1))
        second = InnerCell(self.language_cell, of_second, "language_")
        # Both input kernels are split by rows. Of LSTM_1's inputs only h^2 depends on the carry.
        # h^1 is multiplied once, with the query's kernel and its rows of LSTM_2's kernel together.
        unscanned["mean"] = first.input_kernel(slice(width_2, width_2 + width))
        unscanned["words"] = first.input_kernel(slice(width_2 + width, None))
        query = self.param_affine("query", width_1, attention, bias=False)["query_kernel"]
        kernels = first.hidden_kernels() | second.hidden_kernels()
        kernels[first.input_name] = first.input_kernel(slice(width_2))
        kernels["query_and_gates"] = jnp.concatenate(
            [query, second.input_kernel(slice(width, None))], axis=-1
        )
        kernels[second.input_name] = second.input_kernel(slice(width))
        vector = self.param_vector("score_vector", attention)
        others = first.weights.pointwise, second.weights.pointwise, vector
        scanned = ScanWeights(kernels, first.biases() | second.biases(), others)
        cells = {"attention": first, "language": second}
        return DecoderWeights(embedding, unscanned, scanned, cells)

    def encode_memory(self, weights: DecoderWeights, regions: Array, mask: Array | None) -> Memory:
        """Returns regions, keys, the mean region's part of LSTM_1's gates, and the mask."""
        keys = multiply(regions, weights.unscanned["key_kernel"])
        keys += weights.unscanned["key_bias"].astype(self.dtype)
        gates = multiply(average_regions(regions, mask), weights.unscanned["mean"])
        memory = {"regions": regions, "keys": keys, "gates": gates}
        return memory if mask is None else memory | {"mask": mask}

    def initial_carry(self, weights: DecoderWeights, memory: Memory) -> Carry:
        """Returns zeros."""
        rows = memory["gates"].shape
        cells = self.attention_cell, self.language_cell
        return tuple(cell.initialize_carry(None, rows) for cell in cells)

    def bind_memory(self, weights: DecoderWeights, memory: Memory) -> ScanWeights:
        """Adds the regions as a kernel (R,D) of each image, and the keys."""
        return bind_regions(weights.scan, memory)

    def project(
        self,
        weights: DecoderWeights,
        memory: Memory,
        embedded: Array,
        matmul: Matmul = multiply,
    ) -> dict[str, Array]:
        """Returns the words' and the mean region's part of LSTM_1's gates."""
        gates = matmul(embedded, weights.unscanned["words"]) + memory["gates"][:, None]
        return {weights.cells["attention"].input_name: gates}

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
        pointwise_1, pointwise_2, vector, keys, exists = others
        first, second = cells["attention"], cells["language"]
        carry_1, carry_2 = carry
        gates = project_hidden(first.input_name, hidden_state(second.cell, carry_2))
        carry_1, hidden = first.step(pointwise_1, project_hidden, carry_1, gates)
        query, gates = jnp.split(
            project_hidden("query_and_gates", hidden), [self.attention_features], axis=-1
        )
        attention = attend(keys, query, vector, exists)
        context = project_hidden("context", attention.astype(self.dtype))
        gates = gates + project_hidden(second.input_name, context)
        carry_2, hidden = second.step(pointwise_2, project_hidden, carry_2, gates)
        return (carry_1, carry_2), {"hidden": hidden, "attention": attention}
