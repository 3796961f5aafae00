"""Network of Deep Speech 2: convolutions, recurrent layers with BatchNorm, lookahead, classifier.

Shapes on the way::

    log-mel spectrograms (B,T,M)
      → convolutions  (B,S,D), S = ⌈T/stride⌉, D the flattened bands and channels
      → recurrent     (B,S,F)
      → classifier    logits (B,S,K) of the steps
"""

import dataclasses
import math

from flaxnets.configuration import check_at_least, check_dtype, check_rates, nearest, runtime
from flaxnets.encoders.columns import ColumnEncoder
from flaxnets.encoders.deep_speech_cnn import DeepSpeechCNN
from flaxnets.heads.classifier import StepClassifier
from flaxnets.models.column_crnn import ColumnCRNN
from flaxnets.recurrent.scan import ScanOptions
from flaxnets.recurrent.sequence_norm import CELLS, SequenceNormRecurrent


@dataclasses.dataclass
class ConvolutionsConfig:
    """The convolutions over time and frequency, one value for each."""

    features: tuple[int, ...] = (32, 32, 96)
    """Channels."""
    kernel_rows: tuple[int, ...] = (41, 21, 21)
    """Heights of the kernels, bands."""
    kernel_columns: tuple[int, ...] = (11, 11, 11)
    """Widths of the kernels, frames or steps."""
    strides: tuple[int, ...] = (2, 2, 2)
    """Strides along the bands."""
    column_strides: tuple[int, ...] = (2, 1, 1)
    """Strides along time; their product is the number of frames in a step."""


@dataclasses.dataclass
class DeepSpeech2Config:
    """The network; ``make_deep_speech2`` builds it."""

    convolutions: ConvolutionsConfig = dataclasses.field(default_factory=ConvolutionsConfig)
    cell: str = "elman"
    """``elman``, with the clipped ReLU, or ``gru``."""
    features: int = 1_760
    """Width of the hidden states."""
    num_layers: int = 7
    """Recurrent layers."""
    bidirectional: bool = True
    """Each layer also scans backwards; the outputs of both directions are summed."""
    lookahead: int = 0
    """Steps of the lookahead convolution behind the recurrent layers; 0: none. Of use where they
    scan forwards alone."""
    hidden_features: int = 0
    """Width of a fully connected layer before the logits; 0: none."""
    dropout_rate: float = 0.0
    """On the inputs of each recurrent layer and of the layers behind them."""
    dtype: str = "float32"
    """Of the arithmetic; parameters and logits stay float32."""
    unroll: int = runtime(1)
    """Steps in each iteration of the scans."""
    remat_steps: int = runtime(0)
    """Steps in a segment whose activations are recomputed for the gradient; 0: all are kept."""


def make_deep_speech2(
    config: DeepSpeech2Config, num_classes: int, *, field: str = "model"
) -> ColumnCRNN:
    """Returns the network that a configuration describes.

    >>> make_deep_speech2(DeepSpeech2Config(features=8), num_classes=12).stride
    2

    Args:
      config: the configuration.
      num_classes: K, the blank of CTC included.
      field: the configuration's path, for errors.

    Raises:
      ValueError: an unknown name, or a value out of its range.
    """
    check_dtype(f"{field}.dtype", config.dtype)
    check_rates(field, config, "dropout_rate")
    least = {"features": 1, "num_layers": 1, "lookahead": 0, "hidden_features": 0}
    check_at_least(field, config, least)
    if config.cell not in CELLS:
        raise ValueError(f"{field}.cell: unknown {config.cell!r}{nearest(config.cell, CELLS)}")
    dtype, convolutions = config.dtype, config.convolutions
    try:
        encoder = DeepSpeechCNN(
            tuple(convolutions.features),
            tuple(convolutions.kernel_rows),
            tuple(convolutions.kernel_columns),
            tuple(convolutions.strides),
            tuple(convolutions.column_strides),
            dtype=dtype,
        )
    except ValueError as error:
        raise ValueError(f"{field}.convolutions.{error}") from error
    return ColumnCRNN(
        ColumnEncoder(encoder, math.prod(convolutions.column_strides)),
        StepClassifier(num_classes, config.hidden_features, config.dropout_rate, dtype),
        SequenceNormRecurrent(
            config.features,
            config.num_layers,
            config.cell,
            config.bidirectional,
            config.lookahead,
            config.dropout_rate,
            ScanOptions(unroll=config.unroll, remat_steps=config.remat_steps),
            dtype,
        ),
        config.dropout_rate,
    )
