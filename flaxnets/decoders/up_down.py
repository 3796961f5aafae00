"""The Up-Down decoder: an LSTM that looks, and one that speaks."""

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.decoders.attention import attend, average_regions
from flaxnets.decoders.cells import InnerCell, read_hidden
from flaxnets.decoders.decoder import (
    CaptionDecoder,
    DecoderWeights,
    Memory,
    Product,
    attach_regions,
)
from flaxnets.recurrent.cell import ProjectHidden
from flaxnets.recurrent.matmul import ScanWeights, multiply
from flaxnets.typing import Array, Carry, PyTree


class UpDown(CaptionDecoder):
    r"""Up-Down on any regions, as those of a grid (Anderson et al., 1707.07998, section 3.2).

    .. math::
        h^1_t &= LSTM_1([h^2_{t-1}, \bar v, E s_t], h^1_{t-1}) \\
        α_t &= softmax_r(w · \tanh(W_k v_r + W_q h^1_t + b)), \quad ẑ_t = Σ_r α_{tr} v_r \\
        h^2_t &= LSTM_2([ẑ_t, h^1_t], h^2_{t-1}) \\
        p_{t+1} &∝ \exp(h^2_t W + b_p)

    From carries of zeros; :math:`\bar v` is the mean over the regions. Deviations: the regions are
    whatever is given, where the paper's are boxes of a detector; the keys have a bias.

    Attributes:
      attention_features: A, width of keys and queries.
    """

    attention_features: int = 512

    def setup(self) -> None:
        """Makes the cells."""
        self.attention_cell = self.make_cell()
        self.language_cell = self.make_cell()

    @nn.compact
    def weights(self, width: int) -> DecoderWeights:
        """See ``CaptionDecoder.weights``."""
        self.check_width(width, "key_kernel")
        embed, attention = self.embed_features, self.attention_features
        looks, speaks = self._hidden_widths()
        embedding, fixed = self.param_words(speaks)
        fixed |= self.param_affine("key", width, attention)
        looking = InnerCell(
            self.attention_cell, self.attention_cell.weights((1, speaks + width + embed)), "look_"
        )
        speaking = InnerCell(
            self.language_cell, self.language_cell.weights((1, width + looks)), "speak_"
        )
        fixed["mean"] = looking.input_kernel(slice(speaks, speaks + width))
        fixed["words"] = looking.input_kernel(slice(speaks + width, None))
        query = self.param_affine("query", looks, attention, bias=False)["query_kernel"]
        kernels = looking.hidden_kernels() | speaking.hidden_kernels()
        kernels[looking.input_name] = looking.input_kernel(slice(speaks))
        kernels["looked"] = jnp.concatenate(
            [query, speaking.input_kernel(slice(width, None))], axis=-1
        )
        kernels[speaking.input_name] = speaking.input_kernel(slice(width))
        vector = self.param_vector("score_vector", attention)
        pointwise = looking.weights.pointwise, speaking.weights.pointwise
        scanned = ScanWeights(kernels, looking.biases() | speaking.biases(), (*pointwise, vector))
        return DecoderWeights(embedding, fixed, scanned, {"look": looking, "speak": speaking})

    def remember(self, weights: DecoderWeights, regions: Array, mask: Array | None) -> Memory:
        """Regions, keys, and the mean's share of the first cell's gates."""
        keys = multiply(regions, weights.fixed["key_kernel"])
        keys += weights.fixed["key_bias"].astype(self.dtype)
        gates = multiply(average_regions(regions, mask), weights.fixed["mean"])
        memory = {"regions": regions, "keys": keys, "gates": gates}
        return memory if mask is None else memory | {"mask": mask}

    def start(self, weights: DecoderWeights, memory: Memory) -> Carry:
        """Zeros."""
        rows = memory["gates"].shape
        cells = self.attention_cell, self.language_cell
        return tuple(cell.initialize_carry(None, rows) for cell in cells)

    def attach(self, weights: DecoderWeights, memory: Memory) -> ScanWeights:
        """With the regions as a kernel for each row of the batch."""
        return attach_regions(weights.scan, memory)

    def project(
        self,
        weights: DecoderWeights,
        memory: Memory,
        embedded: Array,
        product: Product = multiply,
    ) -> dict[str, Array]:
        """The words' and the mean's share of the first cell's gates."""
        gates = product(embedded, weights.fixed["words"]) + memory["gates"][:, None]
        return {weights.cells["look"].input_name: gates}

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
        look_pointwise, speak_pointwise, vector, keys, exists = others
        looking, speaking = cells["look"], cells["speak"]
        look, speak = carry
        gates = recur(looking.input_name, read_hidden(speaking.cell, speak))
        look, hidden = looking.step(look_pointwise, recur, look, gates)
        query, gates = jnp.split(recur("looked", hidden), [self.attention_features], axis=-1)
        attention = attend(keys, query, vector, exists)
        context = recur("context", attention.astype(self.dtype))
        gates = gates + recur(speaking.input_name, context)
        speak, hidden = speaking.step(speak_pointwise, recur, speak, gates)
        return (look, speak), {"hidden": hidden, "attention": attention}

    def _hidden_widths(self) -> tuple[int, int]:
        widths = []
        for cell in (self.attention_cell, self.language_cell):
            carry = cell.initialize_carry(None, (1, self.embed_features))
            widths.append(read_hidden(cell, carry).shape[-1])
        return widths[0], widths[1]
