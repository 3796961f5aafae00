"""The sizes of captioners' decoders, and the encoder of videos."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.training.config import runtime

CELLS: Mapping[str, Any] = {"lstm": LSTMCell, "gru": GRUCell}


@dataclasses.dataclass
class DecoderConfig:
    """The sizes of a decoder, and of the encoder of videos."""

    cell: str = "lstm"
    """``lstm`` or ``gru``."""
    features: int = 512
    embed_features: int = 512
    tie_embeddings: bool = False
    """Whether a word's scores are products with its embedding."""
    attention_features: int = 512
    dropout_rate: float = 0.5
    embed_dropout_rate: float = 0.5
    weight_dropout_rate: float = 0.0
    """On the recurrent kernels' entries."""
    region_dropout_rate: float = 0.3
    """On the channels of the image's maps."""
    place_dropout_rate: float = 0.3
    """Of places of the image's maps, which training then does not see."""
    region_features: int = 512
    """Images only: what a layer of rectifiers makes of the maps' channels; 0: nothing."""
    remat: str = runtime("none")
    """Which of the encoder's maps are computed again for the gradient, to save memory: ``none``,
    ``elementwise`` or ``full``."""
    dtype: str = "float32"
    encoder_features: tuple[int, ...] = (32, 32, 32)
    """Videos only: maps of the encoder's layers, each at half the size of the one before."""
    recurrent_features: int = 128
    """Videos only: of the recurrent layer over the encoder's features."""


def make_video_encoder(config: DecoderConfig) -> nn.Module:
    """A small CNN for each frame, and an LSTM over the frames; (B,T,H,W,3) to (B,T,F)."""
    encoder = SmallCNN(
        tuple(config.encoder_features),
        (2,) * len(config.encoder_features),
        input_size=32,
        remat=config.remat,
        dtype=config.dtype,
    )
    make_cell = partial(LSTMCell, config.recurrent_features, dtype=config.dtype)
    recurrent = Recurrent(make_cell, normalize_inputs=True, delta_features=True)
    return CRNN(classifier=None, encoder=encoder, recurrent=recurrent, pool="flatten")
