"""Decoders that attend with one recurrent cell: Show, Attend and Tell, and Att2in."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.decoders.attention import attend, average_regions
from flaxnets.decoders.cells import (
    InnerCell,
    MaxoutLSTMCell,
    candidate_columns,
    read_hidden,
)
from flaxnets.decoders.decoder import (
    CaptionDecoder,
    CaptionOutputs,
    DecoderWeights,
    Memory,
    Product,
    attach_regions,
)
from flaxnets.recurrent.cell import Cell, ProjectHidden
from flaxnets.recurrent.matmul import ScanWeights, multiply
from flaxnets.typing import Array, Carry, PyTree

GATES = ("none", "scalar", "vector")


class SoftAttention(CaptionDecoder):
    r"""Show, Attend and Tell with deterministic attention (Xu et al., 1502.03044, sections 3, 4.2).

    .. math::
        c_0, h_0 &= \tanh(W_{c} \bar v + b_c), \tanh(W_{h} \bar v + b_h) \\
        α_t &= softmax_r(w · \tanh(W_k v_r + W_q h_{t-1} + b)) \\
        ẑ_t &= β_t Σ_r α_{tr} v_r, \quad β_t = σ(w_β · h_{t-1} + b_β) \\
        h_t &= LSTM([E s_t, ẑ_t], h_{t-1}) \\
        p_{t+1} &∝ \exp(L_o (E s_t + L_h h_t + L_z ẑ_t))

    :math:`\bar v` is the mean over the regions; one layer for the initial states, as in the
    published code. ``attention`` is what the doubly stochastic penalty reads (equation 14).

    Deviations: the published code puts tanh around the sum in the last line, and normalises nothing
    else; the paper's equation 7, without tanh, is followed. L_h and L_z have a bias between them.
    w · tanh(…) has no bias, which softmax would not see.

    Attributes:
      attention_features: A, width of keys and queries.
      gate: β: ``scalar`` (the paper), ``vector``, one for each of the D features, or ``none``.
      deep_output: the last line; else the scores read h_t alone.
    """

    attention_features: int = 512
    gate: str = "scalar"
    deep_output: bool = True

    def setup(self) -> None:
        """Makes the cell."""
        if self.gate not in GATES:
            raise ValueError(f"gate: expected one of {GATES}, received {self.gate!r}")
        self.cell = self.make_cell()

    @nn.compact
    def weights(self, width: int) -> DecoderWeights:
        """See ``CaptionDecoder.weights``."""
        self.check_width(width, "key_kernel")
        embed, attention = self.embed_features, self.attention_features
        # Words and context have kernels of their own: slices of one would be copies.
        cell = InnerCell(self.cell, self.cell.weights((1, embed)))
        words = cell.input_kernel()
        columns = words[:, self._context_columns()].shape[-1]
        context = self.param_affine("context", width, columns, bias=False)
        hidden = read_hidden(self.cell, self._zero_carry(1)).shape[-1]
        embedding, fixed = self.param_words(embed if self.deep_output else hidden)
        fixed |= self.param_affine("key", width, attention)
        fixed |= self._param_start(width)
        fixed["words"] = words
        if self.deep_output:
            fixed |= self.param_affine("deep_hidden", hidden, embed)
            fixed |= self.param_affine("deep_context", width, embed, bias=False)
        # All products of h_{t-1} are one: query, β, gates.
        parts = [self.param_affine("query", hidden, attention, bias=False)["query_kernel"]]
        biases = [jnp.zeros(attention, self.param_dtype)]
        if self.gate != "none":
            gate = self.param_affine("gate", hidden, width if self.gate == "vector" else 1)
            parts.append(gate["gate_kernel"])
            biases.append(gate["gate_bias"])
        kernels, of_cell = cell.hidden_kernels(), cell.biases()
        name = self._merged_name(cell)
        merged = kernels.pop(name)
        nothing = jnp.zeros(merged.shape[-1], self.param_dtype)
        kernels["state"] = jnp.concatenate([*parts, merged], axis=-1)
        kernels[cell.input_name] = context["context_kernel"]
        of_cell["state"] = jnp.concatenate([*biases, of_cell.pop(name, nothing)])
        vector = self.param_vector("score_vector", attention)
        scanned = ScanWeights(kernels, of_cell, (cell.weights.pointwise, vector))
        return DecoderWeights(embedding, fixed, scanned, {"cell": cell})

    def remember(self, weights: DecoderWeights, regions: Array, mask: Array | None) -> Memory:
        """Regions and keys."""
        keys = multiply(regions, weights.fixed["key_kernel"])
        keys += weights.fixed["key_bias"].astype(self.dtype)
        memory = {"regions": regions, "keys": keys}
        return memory if mask is None else memory | {"mask": mask}

    def start(self, weights: DecoderWeights, memory: Memory) -> Carry:
        """Of the mean over the regions."""
        mean = average_regions(memory["regions"], memory.get("mask"))
        leaves, structure = jax.tree.flatten(self._zero_carry(len(mean)))
        started = []
        for number, leaf in enumerate(leaves):
            product = multiply(mean, weights.fixed[f"start_{number}_kernel"])
            product += weights.fixed[f"start_{number}_bias"].astype(self.dtype)
            started.append(jnp.tanh(product).astype(leaf.dtype))
        return jax.tree.unflatten(structure, started)

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
        """The words' share of the gates, which is added to that of the context."""
        return {weights.cells["cell"].input_name: product(embedded, weights.fixed["words"])}

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
        pointwise, vector, keys, exists = others
        cell = cells["cell"]
        state = recur("state", read_hidden(self.cell, carry))
        widths = [self.attention_features, state.shape[-1] - self._merged_width(cell)]
        query, gate, gates = jnp.split(state, widths, axis=-1)
        attention = attend(keys, query, vector, exists)
        chosen, outputs = self.choose(attention, flags)
        context = recur("context", chosen.astype(self.dtype))
        if self.gate != "none":
            # σ(x) = ½ tanh(½ x) + ½ vectorises.
            context = context * (0.5 * jnp.tanh(0.5 * gate) + 0.5)
        cell_inputs = self.read_context(cell, recur(cell.input_name, context), inputs)
        products = {self._merged_name(cell): gates}
        carry, hidden = cell.step(pointwise, recur, carry, cell_inputs, products)
        outputs |= {"hidden": hidden, "attention": attention}
        return carry, outputs | ({"context": context} if self.deep_output else {})

    def choose(self, attention: Array, flags: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        """The weights (B,C,R) of the regions that are read, and more outputs (B,C,1)."""
        return attention, {}

    def read_context(self, cell: InnerCell, product: Array, inputs: dict[str, Array]) -> Array:
        """The cell's inputs (B,C,G) of the context's product, the words' included."""
        return product

    def read(self, weights: DecoderWeights, outputs: dict[str, Array], embedded: Array) -> Array:
        """E s + L_h h + L_z ẑ, or h."""
        hidden = outputs["hidden"]
        if not self.deep_output:
            return hidden
        fixed = weights.fixed
        summed = embedded + multiply(hidden, fixed["deep_hidden_kernel"])
        summed += multiply(outputs["context"], fixed["deep_context_kernel"])
        return summed + fixed["deep_hidden_bias"].astype(self.dtype)

    def _zero_carry(self, rows: int) -> Carry:
        return self.cell.initialize_carry(None, (rows, self.embed_features))

    def _param_start(self, width: int) -> dict[str, Array]:
        """Of the initial carry, leaf by leaf: c and h, or h."""
        params: dict[str, Array] = {}
        for number, leaf in enumerate(jax.tree.leaves(self._zero_carry(1))):
            params |= self.param_affine(f"start_{number}", width, leaf.shape[-1])
        return params

    def _context_columns(self) -> slice:
        """Of the cell's gates those that read the context."""
        return slice(None)

    def _merged_name(self, cell: InnerCell) -> str:
        """The cell's first kernel, which reads h_{t-1} as it is."""
        return next(iter(cell.weights.hidden))

    def _merged_width(self, cell: InnerCell) -> int:
        return cell.weights.hidden[self._merged_name(cell)].shape[-1]


class Att2in(SoftAttention):
    r"""Att2in (Rennie et al., 1612.00563, section 2): attention enters the candidate alone.

    .. math::
        α_t &= softmax_r(w · \tanh(W_k v_r + W_q h_{t-1} + b)), \quad I_t = Σ_r α_{tr} v_r \\
        i, f, o &= σ(W x_t + U h_{t-1} + b) \\
        c_t &= f c_{t-1} + i φ(W_z x_t + W_{zI} I_t + U_z h_{t-1} + b_z), \quad
        φ(a, b) = \max(a, b) \\
        h_t &= o \tanh c_t, \quad p_{t+1} ∝ \exp(h_t W_s + b_s)

    From a carry of zeros. Deviations: with another cell than ``MaxoutLSTMCell`` the context enters
    the LSTM's g or the GRU's n, through tanh. The paper projects its regions to the width of the
    embedding first; a linear map of regions followed by W_zI is one linear map.
    """

    make_cell: Callable[..., Cell] = partial(MaxoutLSTMCell, 512)
    gate: str = "none"
    deep_output: bool = False

    def start(self, weights: DecoderWeights, memory: Memory) -> Carry:
        """Zeros."""
        return self._zero_carry(len(memory["regions"]))

    def project(
        self,
        weights: DecoderWeights,
        memory: Memory,
        embedded: Array,
        product: Product = multiply,
    ) -> dict[str, Array]:
        """The words' share of the gates."""
        return {"words": product(embedded, weights.fixed["words"])}

    def read_context(self, cell: InnerCell, product: Array, inputs: dict[str, Array]) -> Array:
        """The context's product is narrower than the words'."""
        columns = candidate_columns(cell.cell)
        ends = [columns.start, columns.stop]
        before, candidate, after = jnp.split(inputs["words"], ends, axis=-1)
        return jnp.concatenate([before, candidate + product, after], axis=-1)

    def _param_start(self, width: int) -> dict[str, Array]:
        return {}

    def _context_columns(self) -> slice:
        return candidate_columns(self.cell)


# Show, Attend and Tell with attention to one sampled region at a time.


class HardAttention(SoftAttention):
    r"""Show, Attend and Tell with stochastic attention (Xu et al., 1502.03044, section 4.1).

    In training a region s_t is drawn from α_t at each step (key ``sampling``) and read alone; in
    evaluation it is the one of the largest α_t. Which region is drawn has no derivative; a task
    adds to the log-likelihood of a caption

    .. math::
        λ_r (\log p(y|s) - b) Σ_t \log α_{t,s_t} + λ_e Σ_t H(α_t)

    with ``stop_gradient`` around the bracket, of which the outputs hold :math:`\log α_{t,s_t}`
    (``log_probabilities``), H (``entropies``) and b (``baseline``). The paper's reductions of
    variance are here: b, the moving average :math:`b' = 0.9 b + 0.1 \log p(y|s)`, averaged over
    the batch's captions, is kept in the collection ``baseline`` and renewed by training calls that
    may change it; and with probability ``expectation_probability`` a caption is read with soft
    attention, s_t = α_t, throughout. It then has log-probabilities of zero.

    Deviations: in a caption that is read softly the likelihood's gradient reaches α through the
    regions, as the expectation's does; in the published code no gradient but that of the sampled
    form reaches α. Draws are one a caption, not one an image.

    Attributes:
      expectation_probability: of a caption to be read softly in training.
      baseline_decay: 0.9 above.
      axis_name: the axis of devices under ``pmap`` or ``shard_map`` over which captions'
        likelihoods are averaged; under ``jit`` they are those of the global batch without it.
    """

    expectation_probability: float = 0.5
    baseline_decay: float = 0.9
    axis_name: str | None = None

    def setup(self) -> None:
        """Makes the cell and the baseline."""
        super().setup()
        self.baseline = self.variable("baseline", "log_likelihood", jnp.zeros, (), jnp.float32)

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
        """See ``CaptionDecoder.__call__``; in training with the outputs named above."""
        outputs = super().__call__(
            features,
            tokens,
            token_lengths,
            mask,
            train=train,
            sampling_probability=sampling_probability,
        )
        baseline = self.baseline.value
        if train and not self.is_initializing() and self.is_mutable_collection("baseline"):
            mean = self._mean_log_likelihood(outputs.logits, tokens, token_lengths)
            decay = self.baseline_decay
            self.baseline.value = decay * baseline + (1 - decay) * mean
        return outputs._replace(baseline=baseline)

    def draw_flags(self, shape: tuple[int, ...], memory: Memory) -> dict[str, Array]:
        """Gumbel noise for each region, and which captions are read softly."""
        noise_key, soft_key = jax.random.split(self.make_rng("sampling"))
        soft = jax.random.bernoulli(soft_key, self.expectation_probability, shape[1:])
        return {
            "noise": jax.random.gumbel(noise_key, (*shape, memory["regions"].shape[1])),
            "soft": jnp.broadcast_to(soft, shape),
        }

    def choose(self, attention: Array, flags: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        """One region, or, where a caption is read softly, its weights as they are."""
        exists = attention > 0
        logs = jnp.log(jnp.where(exists, attention, 1))
        # The largest of log α + Gumbel noise is a draw from α.
        scores = logs + flags["noise"] if "noise" in flags else logs
        scores = jax.lax.stop_gradient(jnp.where(exists, scores, -jnp.inf))
        chosen = jax.nn.one_hot(scores.argmax(-1), scores.shape[-1], dtype=attention.dtype)
        chosen = chosen * exists
        if "noise" not in flags:
            return chosen, {}
        soft = flags["soft"][..., None]
        log_probability = jnp.where(soft, 0, (chosen * logs).sum(-1, keepdims=True))
        entropy = -(attention * logs).sum(-1, keepdims=True)
        outputs = {"log_probability": log_probability, "entropy": entropy}
        return jnp.where(soft, attention, chosen), outputs

    def _collect(self, logits: Array, outputs: dict[str, Array]) -> CaptionOutputs:
        collected = super()._collect(logits, outputs)
        if "entropy" not in outputs:
            return collected
        return collected._replace(
            log_probabilities=outputs["log_probability"][..., 0],
            entropies=outputs["entropy"][..., 0],
        )

    def _mean_log_likelihood(self, logits: Array, tokens: Array, token_lengths: Array) -> Array:
        """Log p(y) of a caption, averaged over those of at least one word; 0 of none."""
        logits = jax.lax.stop_gradient(logits)
        logs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
        valid = jnp.arange(tokens.shape[-1]) < token_lengths[..., None]
        total = jnp.sum(jnp.where(valid, logs, 0), dtype=jnp.float32)
        count = jnp.sum(token_lengths > 0, dtype=jnp.float32)
        if self.axis_name is not None:
            total, count = jax.lax.psum((total, count), self.axis_name)
        return total / jnp.maximum(count, 1)
