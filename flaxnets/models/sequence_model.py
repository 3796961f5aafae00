"""Convolutional-recurrent network on sequences, series and tokens.

Shapes on the way::

    tokens (B,T) int, or values (B,T,D) float
      → embedding   (B,T,E), of tokens alone
      → encoder     (B,S,F) convolutions over time, S = ⌈T/stride⌉
      → recurrent   (B,S,F)
      → head        (B,S,K) of each step, or (B,1,K) of the whole

Each part but the head may be left out, which gives the CNN alone and the RNN alone.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.configuration import check_at_least, check_dtype, check_rates
from flaxnets.encoders.sequence_config import SequenceEncoderConfig, make_sequence_encoder
from flaxnets.heads.classifier import StreamLogits
from flaxnets.heads.config import HeadConfig, make_head
from flaxnets.heads.pooling import pool_last
from flaxnets.layers.padding import mask_steps, zero_padding
from flaxnets.recurrent.config import RecurrentConfig, make_recurrent, reads_maps
from flaxnets.typing import Array, Carry


class SequenceModel(nn.Module):
    """Embedding, encoder over time, recurrent layer and head.

    >>> import functools, jax
    >>> from flaxnets.encoders.tcn import TCN
    >>> from flaxnets.heads.classifier import StepClassifier
    >>> from flaxnets.recurrent import LSTMCell, Recurrent
    >>> model = SequenceModel(
    ...     StepClassifier(num_classes=50),
    ...     encoder=TCN((16, 16)),
    ...     recurrent=Recurrent(functools.partial(LSTMCell, 32)),
    ...     num_tokens=50,
    ...     embedding_features=8,
    ... )
    >>> init = functools.partial(model.init_with_output, train=False)
    >>> logits, _ = jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, 35), int))
    >>> logits.shape
    (2, 35, 50)

    Attributes:
      head: (B,S,F) to (B,S,K) or (B,1,K), called with ``lengths`` and ``train``.
      encoder: (B,T,D) to (B,S,F), called as ``Recurrent`` is, perhaps with a ``stride``; None: the
        identity.
      recurrent: (B,S,F) to (B,S,G), as ``Recurrent``; None: the identity.
      num_tokens: V, of inputs that are tokens; 0: they are values.
      embedding_features: E, of tokens.
      dropout_rate: on the embedded tokens or the values.
      autoregressive_steps: q; adds a linear autoregression of each channel on its last q steps,
        with one set of weights for all channels (LSTNet, 1703.07015, section 3.6); 0: none. The
        head then pools, and K is a multiple of the ``autoregressive_channels``.
      autoregressive_channels: numbers of the channels that are forecast; empty: all D.
      relative: forecasts are relative to the last value of each channel: it is subtracted from the
        channels that are forecast and added to their forecasts, so that a series whose level drifts
        looks the same everywhere (NLinear, Zeng et al., 2205.13504).
      with_observed: the last half of the channels is the mask of the first half, 0 where a value
        is missing. With ``relative`` or the autoregression, a missing value of a channel that is
        forecast is replaced by the last observed one before it in the row, or else by the first
        one after it; a channel without any observed value is zero.
    """

    head: nn.Module
    encoder: nn.Module | None = None
    recurrent: nn.Module | None = None
    num_tokens: int = 0
    embedding_features: int = 0
    dropout_rate: float = 0.0
    autoregressive_steps: int = 0
    autoregressive_channels: tuple[int, ...] = ()
    relative: bool = False
    with_observed: bool = False

    @property
    def stride(self) -> int:
        """Steps of the input for each step of the recurrent layer."""
        return int(getattr(self.encoder, "stride", 1))

    @property
    def obstacle(self) -> str:
        """The reason why the network has no ``stream``; empty if it has."""
        if self.autoregressive_steps:
            return "the autoregression reads the last steps of a window"
        if self.relative:
            return "the forecasts are relative to the last value of a window"
        for part in (self.encoder, self.recurrent, self.head):
            if part is not None and not hasattr(part, "stream"):
                return f"{type(part).__name__} has no stream"
            if reason := str(getattr(part, "obstacle", "")):
                return reason
        return ""

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        lengths: Array | None = None,
        mask: Array | None = None,
        *,
        train: bool,
        starts: Array | None = None,
        initial_carry: Carry | None = None,
        return_carry: bool = False,
    ) -> Any:
        """Returns logits or forecasts of the steps, (B,S,K) float32, or of the whole, (B,1,K).

        Args:
          inputs: (B,T) int32 tokens in [0,V), or (B,T,D) float.
          lengths: (B,) integers in [0,T], valid steps; None: all.
          mask: (B,) bool, not read: no part has statistics of the batch.
          train: applies dropout.
          starts: (B,T) bool, the first steps of packed sequences; None: one sequence a row.
          initial_carry: the carry that ``return_carry`` gave for the steps before these; None:
            zeros.
          return_carry: returns (carry, logits), so that another call can continue. The head reads
            the steps of this call alone.

        Raises:
          ValueError: tokens where values are expected and the other way round, or as the parts.
        """
        del mask
        level: Array | None = None
        if self.with_observed and (self.relative or self.autoregressive_steps):
            inputs = self._without_gaps(inputs, lengths)
        if self.relative:
            level, inputs = self._without_level(inputs, lengths)
        x = self._embed(inputs)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        options = {"train": train, "starts": starts, "return_carry": return_carry}
        before = {"encoder": None, "recurrent": None} if initial_carry is None else initial_carry
        after = dict(before)
        steps = lengths
        for name, part in (("encoder", self.encoder), ("recurrent", self.recurrent)):
            if part is None:
                continue
            result = part(x, steps, initial_carry=before[name], **options)
            if return_carry:
                after[name], x = result
            else:
                x = result
            if name == "encoder" and lengths is not None:
                steps = -(-jnp.asarray(lengths) // self.stride)
        logits: Array = self.head(x, steps, train=train)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if self.autoregressive_steps:
            logits = logits + self._autoregression(inputs, lengths, logits.shape)
        if level is not None:
            self._check_forecasts("relative", logits.shape, level.shape[-1])
            logits = logits + jnp.tile(level, logits.shape[2] // level.shape[-1])
        return (after, logits) if return_carry else logits

    def stream(
        self, carry: Carry | None, inputs: Array, lengths: Array | None = None
    ) -> tuple[Carry, StreamLogits]:
        """Returns the new carry and the logits of the next steps; dropout is not applied.

        Args:
          carry: that of the chunk before; None for the first chunk.
          inputs: (B,T) int32 or (B,T,D) float, the next steps.
          lengths: (B,) integers in [0,T], valid steps of this chunk; None: all.

        Raises:
          ValueError: a network that needs the whole sequence (see ``obstacle``).
        """
        if self.obstacle:
            raise ValueError(f"stream: expected a causal network, but {self.obstacle}")
        before = {"encoder": None, "recurrent": None, "head": None} if carry is None else carry
        after, x = dict(before), self._embed(inputs)
        for name in ("encoder", "recurrent"):
            part: Any = getattr(self, name)
            if part is not None:
                after[name], x = part.stream(before[name], x, lengths)
        head: Any = self.head
        after["head"], logits = head.stream(before["head"], x, lengths)
        return after, logits

    @nn.compact
    def _embed(self, inputs: Array) -> Array:
        """Returns (B,T,E) of tokens, or the values themselves."""
        if self.num_tokens:
            if inputs.ndim != 2 or not jnp.issubdtype(inputs.dtype, jnp.integer):
                raise ValueError(
                    f"inputs: expected (B,T) integer tokens, received {inputs.shape} {inputs.dtype}"
                )
            embedding = nn.Embed(self.num_tokens, self.embedding_features, name="embedding")
            return embedding(inputs)
        if inputs.ndim != 3 or not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise ValueError(
                f"inputs: expected (B,T,D) float values, received {inputs.shape} {inputs.dtype}"
            )
        return inputs

    def _autoregression(
        self, inputs: Array, lengths: Array | None, shape: tuple[int, ...]
    ) -> Array:
        """Returns (B,1,K) forecasts, each channel's own last steps times shared weights."""
        channels = self._forecast_channels(inputs)
        self._check_forecasts("autoregressive_steps", shape, len(channels))
        q = self.autoregressive_steps
        x = zero_padding(inputs, lengths)[..., jnp.array(channels)]
        # The last q steps before the end of each row.
        ends = jnp.full(len(x), x.shape[1]) if lengths is None else jnp.asarray(lengths)
        steps = ends[:, None] - q + jnp.arange(q)
        last = jnp.take_along_axis(x, jnp.maximum(steps, 0)[..., None], axis=1)  # (B,q,C)
        last = jnp.where((steps >= 0)[..., None], last, 0)
        forecasts = nn.Dense(shape[2] // len(channels), name="autoregression")(
            jnp.moveaxis(last, 1, 2)
        )  # (B,C,H)
        return jnp.moveaxis(forecasts, 1, 2).reshape(len(x), 1, -1)

    def _without_level(self, inputs: Array, lengths: Array | None) -> tuple[Array, Array]:
        """Returns the last value of the channels that are forecast, (B,1,C), and inputs less it."""
        channels = jnp.array(self._forecast_channels(inputs))
        level = pool_last(inputs[..., channels], lengths)[:, None]
        return level, jnp.asarray(inputs).at[..., channels].add(-level)

    def _without_gaps(self, inputs: Array, lengths: Array | None) -> Array:
        """Returns inputs whose missing values are filled in the channels that are forecast."""
        if not inputs.shape[1]:
            return inputs
        channels = jnp.array(self._forecast_channels(inputs))
        values = inputs[..., channels]  # (B,T,C)
        seen = inputs[..., inputs.shape[-1] // 2 + channels] != 0
        seen &= mask_steps(inputs, lengths)[..., None]
        steps = jnp.arange(inputs.shape[1])[:, None]
        # The loaders write zeros for missing values, which are the mean of the training part: read
        # as values, they would pull the level and the autoregression there.
        before = jax.lax.cummax(jnp.where(seen, steps, -1), axis=1)
        after = jnp.argmax(seen, axis=1, keepdims=True)
        filled = jnp.take_along_axis(values, jnp.where(before >= 0, before, after), axis=1)
        filled = jnp.where(seen.any(1, keepdims=True), filled, 0)
        return jnp.asarray(inputs).at[..., channels].set(filled)

    def _forecast_channels(self, inputs: Array) -> tuple[int, ...]:
        values = inputs.shape[-1] // 2 if self.with_observed else inputs.shape[-1]
        return self.autoregressive_channels or tuple(range(values))

    def _check_forecasts(self, argument: str, shape: tuple[int, ...], channels: int) -> None:
        if shape[1] != 1 or shape[2] % channels:
            raise ValueError(
                f"{argument}: expected a head that pools, with a multiple of {channels} outputs, "
                f"received outputs of shape {shape}"
            )


@dataclasses.dataclass
class SequenceModelConfig:
    """Convolutions over time, a recurrent layer, a head; ``make_sequence_model`` builds it."""

    encoder: SequenceEncoderConfig = dataclasses.field(default_factory=SequenceEncoderConfig)
    recurrent: RecurrentConfig = dataclasses.field(default_factory=RecurrentConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    embedding_features: int = 128
    """Tokens only: width of their embedding."""
    dropout_rate: float = 0.0
    """On the embedded tokens or the values."""
    autoregressive_steps: int = 0
    """Forecasts only: last steps of each channel that a linear autoregression beside the network
    reads (LSTNet, 1703.07015, section 3.6); 0: none."""
    relative: bool = False
    """Forecasts only: relative to the last observed value of each channel in the window, which is
    subtracted from the channels that are forecast and added to the forecasts (NLinear,
    2205.13504)."""
    dtype: str = "float32"
    """Of the arithmetic; parameters and logits stay float32."""


def make_sequence_model(
    config: SequenceModelConfig,
    num_outputs: int,
    *,
    num_tokens: int = 0,
    forecast_channels: tuple[int, ...] = (),
    with_observed: bool = False,
    field: str = "model",
) -> SequenceModel:
    """Returns the network that a configuration describes.

    Args:
      config: the configuration.
      num_outputs: K: classes, tokens, keys, or horizons times channels.
      num_tokens: V, of inputs that are tokens; 0: they are values.
      forecast_channels: numbers of the input channels that are forecast, for the autoregression.
      with_observed: the last half of the channels is the mask of the values that are not missing.
      field: the configuration's path, for errors.

    Raises:
      ValueError: an unknown name, or parts that do not go together; the message says what fits.

    >>> make_sequence_model(SequenceModelConfig(), 4).recurrent.num_layers
    1
    """
    check_dtype(f"{field}.dtype", config.dtype)
    check_rates(field, config, "dropout_rate")
    check_at_least(field, config, {"embedding_features": 1, "autoregressive_steps": 0})
    if reads_maps(config.recurrent, field=f"{field}.recurrent"):
        raise ValueError(
            f"{field}.recurrent.cell: {config.recurrent.cell} reads feature maps, and a step is a "
            "vector; choose a cell on vectors, as lstm"
        )
    options: dict[str, Any] = {"dtype": config.dtype}
    return SequenceModel(
        make_head(config.head, num_outputs, field=f"{field}.head", **options),
        make_sequence_encoder(config.encoder, field=f"{field}.encoder", **options),
        make_recurrent(config.recurrent, field=f"{field}.recurrent", **options),
        num_tokens,
        config.embedding_features if num_tokens else 0,
        config.dropout_rate,
        config.autoregressive_steps,
        forecast_channels,
        config.relative,
        with_observed,
    )
