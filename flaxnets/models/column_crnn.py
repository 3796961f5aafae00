"""Convolutional-recurrent network for lines of text, speech and sound.

Shapes on the way::

    lines (B,H,W,C) uint8, or spectrograms (B,T,M)
      → columns     features of the steps (B,S,D), S = ⌈W/stride⌉
      → recurrent   (B,S,F)
      → classifier  logits (B,S,K) of the steps, as for CTC, or (B,1,K) of the whole
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.configuration import check_dtype, check_rates, nearest
from flaxnets.encoders.columns import ROW_POOLS, ColumnEncoder, column_stride
from flaxnets.encoders.config import EncoderConfig, make_encoder
from flaxnets.heads.classifier import StreamLogits
from flaxnets.heads.config import HeadConfig, make_head
from flaxnets.recurrent.config import RecurrentConfig, make_recurrent, reads_maps
from flaxnets.typing import Array, Carry


class ColumnCRNN(nn.Module):
    """Encoder over columns, recurrent layer, classifier (CRNN, 1507.05717, section 2).

    Without ``recurrent`` the CNN-only ablation. With a classifier of each step its logits are those
    of CTC, one class being the blank.

    >>> import functools, jax
    >>> from flaxnets.encoders.vgg import CRNNVGG
    >>> from flaxnets.heads.classifier import StepClassifier
    >>> from flaxnets.recurrent import LSTMCell, Recurrent
    >>> model = ColumnCRNN(
    ...     ColumnEncoder(CRNNVGG((8, 8, 16, 16)), stride=4),
    ...     recurrent=Recurrent(functools.partial(LSTMCell, 32), bidirectional=True),
    ...     classifier=StepClassifier(num_classes=27),
    ... )
    >>> lines, lengths = jnp.zeros((2, 32, 80, 1), jnp.uint8), jnp.array([80, 31])
    >>> init = functools.partial(model.init_with_output, train=False)
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), lines, lengths)  # shapes only
    >>> logits.shape, model.steps(lengths).tolist()
    ((2, 20, 27), [20, 8])

    Attributes:
      columns: lines or spectrograms to (B,S,D) and numbers of steps.
      classifier: (B,S,F) to logits (B,S,K) or (B,1,K), called with ``lengths`` and ``train``.
      recurrent: (B,S,D) to (B,S,F), called with ``lengths`` and ``train``; None: the identity.
      dropout_rate: on the features of the steps.
    """

    columns: ColumnEncoder
    classifier: nn.Module
    recurrent: nn.Module | None = None
    dropout_rate: float = 0.0

    @property
    def stride(self) -> int:
        """Columns of the input for each step."""
        return self.columns.stride

    def steps(self, lengths: Array) -> Array:
        """Returns the number of steps, (B,) integers, of inputs of ``lengths`` (B,) columns."""
        return -(-lengths // self.columns.stride)

    @nn.compact
    def __call__(
        self, inputs: Array, lengths: Array, mask: Array | None = None, *, train: bool
    ) -> Array:
        """Returns logits of the steps, (B,S,K) float32, or of the whole, (B,1,K).

        Args:
          inputs: lines (B,H,W,C) uint8 in [0,255], or spectrograms (B,T,M) float.
          lengths: (B,) integers in [0,W], valid columns or frames.
          mask: (B,) bool, examples that count in batch statistics; None: all.
          train: whether to apply dropout and to normalise by the statistics of this batch.

        Raises:
          ValueError: as ``ColumnEncoder``.
        """
        x, steps = self.columns(inputs, lengths, mask, train=train)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        if self.recurrent is not None:
            # Examples that do not count have no steps, for layers with batch statistics.
            counted = jnp.where(mask, steps, 0) if train and mask is not None else steps
            x = self.recurrent(x, counted, train=train)
        logits: Array = self.classifier(x, steps, train=train)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @property
    def obstacle(self) -> str:
        """The reason why the network has no ``stream``; empty if it has."""
        for part in (self.recurrent, self.classifier):
            if part is not None and not hasattr(part, "stream"):
                return f"{type(part).__name__} has no stream"
            if reason := str(getattr(part, "obstacle", "")):
                return reason
        return ""

    def encode(self, inputs: Array, lengths: Array) -> Array:
        """Returns the features of the steps, (B,S,D) float, as at test; the first part of a stream.

        Arguments are those of ``__call__``.
        """
        return self.columns(inputs, lengths, train=False)[0]

    def stream(
        self, carry: Carry | None, inputs: Array, lengths: Array, first: Array, counts: Array
    ) -> tuple[Carry, StreamLogits]:
        """Returns the new carry and the logits of the next steps of recordings.

        Features of a step depend on some columns before and after it, which ``inputs`` hold beside
        those of the step, so that they are encoded again with the next steps; recurrent layer and
        head go on from their carry. The logits of all chunks are those of the whole recording where
        ``inputs`` begin a multiple of ``stride`` columns into it and hold all columns that the
        steps depend on. Dropout is not applied.

        Args:
          carry: that of the chunk before; None for the first chunk.
          inputs: (B,W,M) float spectrograms or (B,H,W,C) lines, of some columns.
          lengths: (B,) integers in [0,W], columns that are there.
          first: () integer, the first of the steps of ``inputs`` that has not been read yet.
          counts: (B,) integers, the number of steps that are read, from ``first`` on.

        Returns:
          The carry, and logits (B,S,K) of which the first ``counts`` are valid.

        Raises:
          ValueError: a network that needs the whole recording (see ``obstacle``), or as
            ``__call__``.
        """
        if self.obstacle:
            raise ValueError(f"stream: expected a causal network, but {self.obstacle}")
        x = jnp.roll(self.encode(inputs, lengths), -first, axis=1)
        before = {"recurrent": None, "classifier": None} if carry is None else carry
        after = dict(before)
        if self.recurrent is not None:
            recurrent: Any = self.recurrent
            after["recurrent"], x = recurrent.stream(before["recurrent"], x, counts)
        classifier: Any = self.classifier
        after["classifier"], logits = classifier.stream(before["classifier"], x, counts)
        return after, logits


@dataclasses.dataclass
class ColumnCRNNConfig:
    """An encoder over columns, a recurrent layer, a head; ``make_column_crnn`` builds it."""

    encoder: EncoderConfig = dataclasses.field(default_factory=lambda: EncoderConfig("crnn_vgg"))
    recurrent: RecurrentConfig = dataclasses.field(default_factory=RecurrentConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    row_pool: str = "flatten"
    """Of the rows of the last feature maps: ``flatten``, ``mean`` or ``max``."""
    dropout_rate: float = 0.0
    """On the features of the steps."""
    dtype: str = "float32"
    """Of the arithmetic; parameters and logits stay float32."""


def make_column_crnn(
    config: ColumnCRNNConfig, num_classes: int, height: int, *, field: str = "model"
) -> ColumnCRNN:
    """Returns the network that a configuration describes.

    Args:
      config: the configuration.
      num_classes: K, the blank of CTC included.
      height: rows of the inputs: pixels of a line, bands of a spectrogram.
      field: the configuration's path, for errors.

    Raises:
      ValueError: an unknown name, or parts that do not go together; the message says what fits.
    """
    check_dtype(f"{field}.dtype", config.dtype)
    check_rates(field, config, "dropout_rate")
    if config.row_pool not in ROW_POOLS:
        near = nearest(config.row_pool, ROW_POOLS)
        raise ValueError(f"{field}.row_pool: unknown {config.row_pool!r}{near}")
    if reads_maps(config.recurrent, field=f"{field}.recurrent"):
        raise ValueError(
            f"{field}.recurrent.cell: {config.recurrent.cell} reads feature maps, and a column is "
            "a vector; choose a cell on vectors, as lstm"
        )
    encoder = make_encoder(config.encoder, dtype=config.dtype, field=f"{field}.encoder")
    try:
        stride = column_stride(encoder, height)
    except ValueError as error:
        raise ValueError(f"{field}.encoder of {height} rows: {error}") from error
    options: dict[str, Any] = {"dtype": config.dtype}
    return ColumnCRNN(
        ColumnEncoder(encoder, stride, config.row_pool, config.encoder.frozen),
        make_head(config.head, num_classes, field=f"{field}.head", **options),
        make_recurrent(config.recurrent, field=f"{field}.recurrent", **options),
        config.dropout_rate,
    )
