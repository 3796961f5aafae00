"""Decoders that attend with one recurrent cell: Show, Attend and Tell, and Att2in.

Three decoders share the step; each class lists its paper's equations and its deviations:

- ``SoftAttention``: Show, Attend and Tell (Xu et al., 1502.03044) with deterministic attention;
- ``HardAttention``: the same paper's stochastic attention to one sampled region at a time;
- ``Att2in``: the attention model of self-critical training (Rennie et al., 1612.00563).

The query, the gate β and the cell's gates are all functions of h_{t-1}, so they are one matmul with
the kernel ``state``; the attended context is a matmul of the attention weights with the regions.
"""

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
    hidden_state,
    hidden_width,
)
from flaxnets.decoders.decoder import (
    CaptionDecoder,
    CaptionOutputs,
    DecoderWeights,
    Matmul,
    Memory,
    bind_regions,
)
from flaxnets.recurrent.cell import Cell, ProjectHidden
from flaxnets.recurrent.matmul import ScanWeights, multiply
from flaxnets.typing import Array, Carry, PyTree

GATES = ("none", "scalar", "vector")


class SoftAttention(CaptionDecoder):
    r"""Show, Attend and Tell with deterministic attention (Xu et al., 1502.03044).

    Sections 3.1.2 and 4.2; equations 4 to 7 and 13:

    .. math::
        c_0, h_0 &= \tanh(W_{c} \bar v + b_c), \tanh(W_{h} \bar v + b_h) \\
        α_t &= softmax_r(w · \tanh(W_k v_r + W_q h_{t-1} + b)) \\
        ẑ_t &= β_t Σ_r α_{tr} v_r, \quad β_t = σ(w_β · h_{t-1} + b_β) \\
        h_t &= LSTM([E s_t, ẑ_t], h_{t-1}) \\
        p_{t+1} &= softmax(L_o (E s_t + L_h h_t + L_z ẑ_t))

    :math:`\bar v` is the mean over the regions; one layer makes the initial states, as in the
    authors' code. The penalty of equation 14 (doubly stochastic attention) is the task's
    (``flaxnets/tasks/captioning.py``) and reads ``attention``.

    Deviations: the authors' code applies tanh to the sum in the last line; equation 7, without
    tanh, is followed. L_h h + L_z ẑ and L_o have a bias. w · tanh(…) has none, since softmax does
    not depend on it.

    Attributes:
      attention_features: A, width of keys and queries.
      gate: β_t: ``scalar`` (the paper), ``vector`` (one for each of the D features), or ``none``.
      deep_output: the last line; else p_{t+1} is a softmax of an affine map of h_t alone.

    >>> import jax, jax.numpy as jnp
    >>> from functools import partial
    >>> from flaxnets.recurrent.cells import LSTMCell
    >>> decoder = SoftAttention(
    ...     vocabulary_size=9,
    ...     make_cell=partial(LSTMCell, 4),
    ...     embed_features=3,
    ...     attention_features=5,
    ... )
    >>> features = jax.random.normal(jax.random.key(1), (2, 7, 7, 6))  # (B,h,w,D)
    >>> tokens, lengths = jnp.array([[[5, 4, 2]], [[7, 2, 0]]]), jnp.array([[3], [2]])
    >>> outputs, variables = decoder.init_with_output(
    ...     jax.random.key(0), features, tokens, lengths, train=False
    ... )
    >>> outputs.logits.shape, outputs.attention.shape  # (B,C,L,V), (B,C,L,R)
    ((2, 1, 3, 9), (2, 1, 3, 49))

    >>> memory, carry = decoder.apply(variables, features, method="start_decoding")
    >>> begin = jnp.array([1, 1])
    >>> carry, logits, attention = decoder.apply(
    ...     variables, memory, carry, begin, method="decode_step"
    ... )
    >>> logits.shape, attention.shape, bool(jnp.allclose(logits, outputs.logits[:, 0, 0]))
    ((2, 9), (2, 49), True)
    """

    attention_features: int = 512
    gate: str = "scalar"
    deep_output: bool = True

    def setup(self) -> None:
        """Creates the cell."""
        if self.gate not in GATES:
            raise ValueError(f"gate: expected one of {GATES}, received {self.gate!r}")
        self.cell = self.make_cell()

    @nn.compact
    def weights(self, width: int) -> DecoderWeights:
        """See ``CaptionDecoder.weights``."""
        self.check_width(width, "key_kernel")
        embed, attention = self.embed_features, self.attention_features
        # Words and context have separate kernels, since slices of one kernel would be copies.
        cell = InnerCell(self.cell, self.cell.weights((1, embed)))
        words = cell.input_kernel()
        columns = words[:, self._context_columns()].shape[-1]
        context = self.param_affine("context", width, columns, bias=False)
        hidden = hidden_width(self.cell)
        embedding, unscanned = self.param_vocabulary(embed if self.deep_output else hidden)
        unscanned |= self.param_affine("key", width, attention)
        unscanned |= self._param_start(width)
        unscanned["words"] = words
        if self.deep_output:
            unscanned |= self.param_affine("deep_hidden", hidden, embed)
            unscanned |= self.param_affine("deep_context", width, embed, bias=False)
        # Everything that multiplies h_{t-1} is one matmul: query, β, gates.
        parts = [self.param_affine("query", hidden, attention, bias=False)["query_kernel"]]
        biases = [jnp.zeros(attention, self.param_dtype)]
        if self.gate != "none":
            gate = self.param_affine("gate", hidden, width if self.gate == "vector" else 1)
            parts.append(gate["gate_kernel"])
            biases.append(gate["gate_bias"])
        kernels, of_cell = cell.hidden_kernels(), cell.biases()
        name = self._merged_name(cell)
        merged = kernels.pop(name)
        no_bias = jnp.zeros(merged.shape[-1], self.param_dtype)
        kernels["state"] = jnp.concatenate([*parts, merged], axis=-1)
        kernels[cell.input_name] = context["context_kernel"]
        of_cell["state"] = jnp.concatenate([*biases, of_cell.pop(name, no_bias)])
        vector = self.param_vector("score_vector", attention)
        scanned = ScanWeights(kernels, of_cell, (cell.weights.pointwise, vector))
        return DecoderWeights(embedding, unscanned, scanned, {"cell": cell})

    def encode_memory(self, weights: DecoderWeights, regions: Array, mask: Array | None) -> Memory:
        """Returns regions, keys and the mask."""
        keys = multiply(regions, weights.unscanned["key_kernel"])
        keys += weights.unscanned["key_bias"].astype(self.dtype)
        memory = {"regions": regions, "keys": keys}
        return memory if mask is None else memory | {"mask": mask}

    def initial_carry(self, weights: DecoderWeights, memory: Memory) -> Carry:
        """Returns tanh of affine maps of the mean region, one for each leaf of the carry."""
        mean = average_regions(memory["regions"], memory.get("mask"))
        leaves, structure = jax.tree.flatten(self._zero_carry(mean.shape[0]))
        states = []
        for number, leaf in enumerate(leaves):
            product = multiply(mean, weights.unscanned[f"start_{number}_kernel"])
            product += weights.unscanned[f"start_{number}_bias"].astype(self.dtype)
            states.append(jnp.tanh(product).astype(leaf.dtype))
        return jax.tree.unflatten(structure, states)

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
        """Returns the words' part of the gates, to which ``project_hidden`` adds the context's."""
        return {weights.cells["cell"].input_name: matmul(embedded, weights.unscanned["words"])}

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
        pointwise, vector, keys, exists = others
        cell = cells["cell"]
        state = project_hidden("state", hidden_state(self.cell, carry))
        widths = [self.attention_features, state.shape[-1] - self._merged_width(cell)]
        query, gate, gates = jnp.split(state, widths, axis=-1)
        attention = attend(keys, query, vector, exists)
        read, outputs = self.select_regions(attention, flags)
        context = project_hidden("context", read.astype(self.dtype))
        if self.gate != "none":
            # σ(x) = ½ tanh(½ x) + ½, which XLA vectorises on CPUs.
            context = context * (0.5 * jnp.tanh(0.5 * gate) + 0.5)
        cell_inputs = self.join_inputs(cell, project_hidden(cell.input_name, context), inputs)
        products = {self._merged_name(cell): gates}
        carry, hidden = cell.step(pointwise, project_hidden, carry, cell_inputs, products)
        outputs |= {"hidden": hidden, "attention": attention}
        return carry, outputs | ({"context": context} if self.deep_output else {})

    def select_regions(
        self, attention: Array, flags: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the weights (B,C,R) to read regions with, and further outputs (B,C,1)."""
        return attention, {}

    def join_inputs(self, cell: InnerCell, product: Array, inputs: dict[str, Array]) -> Array:
        """Returns the cell's projected inputs (B,C,G).

        Args:
          cell: the cell.
          product: the context times its kernel, with what ``project_hidden`` adds to it.
          inputs: those of ``project`` that ``project_hidden`` does not add.
        """
        return product

    def output_features(
        self, weights: DecoderWeights, outputs: dict[str, Array], embedded: Array
    ) -> Array:
        """Returns E s + L_h h + L_z ẑ, or h."""
        hidden = outputs["hidden"]
        if not self.deep_output:
            return hidden
        unscanned = weights.unscanned
        summed = embedded + multiply(hidden, unscanned["deep_hidden_kernel"])
        summed += multiply(outputs["context"], unscanned["deep_context_kernel"])
        return summed + unscanned["deep_hidden_bias"].astype(self.dtype)

    def _zero_carry(self, rows: int) -> Carry:
        return self.cell.initialize_carry(None, (rows, self.embed_features))

    def _param_start(self, width: int) -> dict[str, Array]:
        """Creates the affine maps of the initial carry, leaf by leaf: c and h, or h."""
        params: dict[str, Array] = {}
        for number, leaf in enumerate(jax.tree.leaves(self._zero_carry(1))):
            params |= self.param_affine(f"start_{number}", width, leaf.shape[-1])
        return params

    def _context_columns(self) -> slice:
        """Returns the columns of the cell's gates that read the context."""
        return slice(None)

    def _merged_name(self, cell: InnerCell) -> str:
        """Returns the name of the cell's first hidden kernel, which multiplies h_{t-1} itself.

        Later ones may multiply something else, as a GRU's r · h; they stay separate matmuls.
        """
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
        h_t &= o \tanh c_t, \quad p_{t+1} = softmax(h_t W_s + b_s)

    From a carry of zeros. Deviations: with another cell than ``MaxoutLSTMCell`` the context enters
    the LSTM's g or the GRU's n, through tanh. The paper first projects the regions to the width of
    the embedding; that linear map followed by W_zI is one linear map, here W_zI.

    >>> import jax, jax.numpy as jnp
    >>> from functools import partial
    >>> decoder = Att2in(
    ...     vocabulary_size=9,
    ...     make_cell=partial(MaxoutLSTMCell, 4),
    ...     embed_features=3,
    ...     attention_features=5,
    ... )
    >>> features = jax.random.normal(jax.random.key(1), (2, 7, 7, 6))  # (B,h,w,D)
    >>> tokens, lengths = jnp.array([[[5, 4, 2]], [[7, 2, 0]]]), jnp.array([[3], [2]])
    >>> outputs, variables = decoder.init_with_output(
    ...     jax.random.key(0), features, tokens, lengths, train=False
    ... )
    >>> outputs.logits.shape, outputs.attention.shape  # (B,C,L,V), (B,C,L,R)
    ((2, 1, 3, 9), (2, 1, 3, 49))
    """

    make_cell: Callable[..., Cell] = partial(MaxoutLSTMCell, 512)
    gate: str = "none"
    deep_output: bool = False

    def initial_carry(self, weights: DecoderWeights, memory: Memory) -> Carry:
        """Returns zeros."""
        return self._zero_carry(memory["regions"].shape[0])

    def project(
        self,
        weights: DecoderWeights,
        memory: Memory,
        embedded: Array,
        matmul: Matmul = multiply,
    ) -> dict[str, Array]:
        """Returns the words' part of the gates; the context's is narrower, so it is added later."""
        return {"words": matmul(embedded, weights.unscanned["words"])}

    def join_inputs(self, cell: InnerCell, product: Array, inputs: dict[str, Array]) -> Array:
        """Adds the context to the candidate's columns of the words' part."""
        columns = candidate_columns(cell.cell)
        ends = [columns.start, columns.stop]
        before, candidate, after = jnp.split(inputs["words"], ends, axis=-1)
        return jnp.concatenate([before, candidate + product, after], axis=-1)

    def _param_start(self, width: int) -> dict[str, Array]:
        return {}

    def _context_columns(self) -> slice:
        return candidate_columns(self.cell)


class HardAttention(SoftAttention):
    r"""Show, Attend and Tell with stochastic attention (Xu et al., 1502.03044, section 4.1).

    In training one region s_t is drawn from α_t at each step (key ``sampling``) and read alone; in
    evaluation the region of the largest α_t is read. The draw has no derivative. A task adds to the
    log-likelihood of a caption a REINFORCE term

    .. math::
        λ_r Σ_t \log α_{t,s_t} \left(Σ_{t' ≥ t} (\log p(y_{t'}) - b)\right) + λ_e Σ_t H(α_t)

    with ``stop_gradient`` around the bracket. The outputs hold :math:`\log α_{t,s_t}`
    (``log_probabilities``), H (``entropies``) and b (``baseline``). Both variance reductions of the
    paper are here: the baseline b is a moving average, :math:`b' = 0.9 b + 0.1 \log p(y_t)` with
    log p averaged over the words of the batch; it is kept in the collection ``baseline`` and
    updated by training calls in which that is mutable. And with probability
    ``expectation_probability`` a caption is read with soft attention, s_t = α_t, at all of its
    steps; its log-probabilities are then zero.

    Deviations: the bracket holds the words from the region's step on, where the paper has those of
    the whole caption, and b is that of a word, where the paper has that of a caption. Earlier words
    do not depend on the region, so the expectation is the same; its variance is smaller, mostly
    where batches hold captions of one length, whose log-likelihood a caption's b is not near. In a
    caption read with soft attention the gradient of the likelihood reaches α through the regions,
    which is the gradient of the expectation; in the authors' code α only gets the gradient of the
    sampled form. Soft or hard is drawn per caption, not per image.

    Attributes:
      expectation_probability: probability of soft attention, per caption in training.
      baseline_decay: 0.9 above.
      axis_name: device axis under ``pmap`` or ``shard_map`` over which log p is averaged; under
        ``jit`` the average is over the global batch without it.

    >>> import jax, jax.numpy as jnp
    >>> from functools import partial
    >>> from flaxnets.recurrent.cells import LSTMCell
    >>> decoder = HardAttention(
    ...     vocabulary_size=9,
    ...     make_cell=partial(LSTMCell, 4),
    ...     embed_features=3,
    ...     attention_features=5,
    ... )
    >>> features = jax.random.normal(jax.random.key(1), (2, 7, 7, 6))  # (B,h,w,D)
    >>> tokens, lengths = jnp.array([[[5, 4, 2]], [[7, 2, 0]]]), jnp.array([[3], [2]])
    >>> outputs, variables = decoder.init_with_output(
    ...     jax.random.key(0), features, tokens, lengths, train=False
    ... )
    >>> outputs.logits.shape, outputs.attention.shape  # (B,C,L,V), (B,C,L,R)
    ((2, 1, 3, 9), (2, 1, 3, 49))
    >>> sorted(variables), float(outputs.baseline)
    (['baseline', 'params'], 0.0)
    """

    expectation_probability: float = 0.5
    baseline_decay: float = 0.9
    axis_name: str | None = None

    def setup(self) -> None:
        """Creates the cell and the baseline."""
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
        """See ``CaptionDecoder.__call__``; in training, fills all fields of the outputs."""
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
            counts = jnp.asarray(token_lengths)
            mean = self._mean_log_likelihood(outputs.logits, tokens, counts)
            decay = self.baseline_decay
            self.baseline.value = decay * baseline + (1 - decay) * mean
        return outputs._replace(baseline=baseline)

    def draw_noise(self, shape: tuple[int, ...], memory: Memory) -> dict[str, Array]:
        """Returns Gumbel noise (L,B,C,R) and a mask of captions read with soft attention."""
        noise_key, soft_key = jax.random.split(self.make_rng("sampling"))
        soft = jax.random.bernoulli(soft_key, self.expectation_probability, shape[1:])
        return {
            "noise": jax.random.gumbel(noise_key, (*shape, memory["regions"].shape[1])),
            "soft": jnp.broadcast_to(soft, shape),
        }

    def select_regions(
        self, attention: Array, flags: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """Returns a one-hot region, or α itself where a caption is read with soft attention."""
        # Masked regions have weight zero: log 0 would give NaN gradients even where not selected.
        exists = attention > 0
        logs = jnp.log(jnp.where(exists, attention, 1))
        # Gumbel-max: the argmax of log α + Gumbel noise is a draw from α.
        perturbed = logs + flags["noise"] if "noise" in flags else logs
        perturbed = jax.lax.stop_gradient(jnp.where(exists, perturbed, -jnp.inf))
        chosen = jax.nn.one_hot(perturbed.argmax(-1), perturbed.shape[-1], dtype=attention.dtype)
        chosen = chosen * exists  # Where no region exists argmax is 0; nothing is read.
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
        """Returns log p of the reference words in nats, averaged over them; 0 of none."""
        logits = jax.lax.stop_gradient(logits)
        logs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
        valid = jnp.arange(tokens.shape[-1]) < token_lengths[..., None]
        total = jnp.sum(jnp.where(valid, logs, 0), dtype=jnp.float32)
        count = jnp.sum(valid, dtype=jnp.float32)
        if self.axis_name is not None:
            total, count = jax.lax.psum((total, count), self.axis_name)
        return total / jnp.maximum(count, 1)
