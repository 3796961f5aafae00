"""Captioning decoders by name: the table, and the configuration that builds one."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flaxnets.configuration import (
    check_at_least,
    check_dtype_argument,
    check_rates,
    find_part,
    parameters_of,
)
from flaxnets.decoders.cells import MaxoutLSTMCell
from flaxnets.decoders.decoder import CaptionDecoder
from flaxnets.decoders.show_and_tell import FactoredLRCN, ShowAndTell
from flaxnets.decoders.show_attend_tell import Att2in, HardAttention, SoftAttention
from flaxnets.decoders.up_down import UpDown
from flaxnets.recurrent.cells import DenseCell, GRUCell, LSTMCell
from flaxnets.typing import Dtype

DECODERS: Mapping[str, Callable[..., CaptionDecoder]] = {
    "show_and_tell": ShowAndTell,
    "lrcn": FactoredLRCN,
    "soft_attention": SoftAttention,
    "hard_attention": HardAttention,
    "att2in": Att2in,
    "up_down": UpDown,
}
"""Captioning decoders by name."""

DECODER_CELLS: Mapping[str, Callable[..., Any]] = {
    "lstm": LSTMCell,
    "gru": GRUCell,
    "maxout_lstm": MaxoutLSTMCell,
}
"""Recurrent cells of captioning decoders by name."""

EXPECTED = "a captioning decoder, derived from flaxnets.CaptionDecoder"
EXPECTED_CELL = "a cell on vectors, derived from flaxnets.recurrent.cells.DenseCell"


@dataclasses.dataclass
class DecoderConfig:
    """The captioning decoder; ``make_decoder`` builds it."""

    name: str = "soft_attention"
    """A name in ``DECODERS``, or ``package.module:Name`` of a ``CaptionDecoder``."""
    cell: str = "lstm"
    """``lstm``, ``gru``, ``maxout_lstm`` (Att2in's own), or ``package.module:Name`` of a cell."""
    features: int = 512
    """Width of the hidden state."""
    embed_features: int = 512
    """Width of the word embeddings."""
    tie_embeddings: bool = False
    """True: a word's logit is the product of the output with its embedding."""
    attention_features: int = 512
    """Decoders with attention only: width of the layer that scores the regions."""
    dropout_rate: float = 0.5
    """On the outputs of the cells."""
    embed_dropout_rate: float = 0.5
    """On the word embeddings."""
    weight_dropout_rate: float = 0.0
    """On the entries of the hidden-to-hidden kernels (DropConnect)."""


def make_decoder(
    config: DecoderConfig,
    vocabulary_size: int,
    *,
    dtype: Dtype = "float32",
    field: str = "model.decoder",
) -> CaptionDecoder:
    """Returns the decoder that a configuration describes.

    Args:
      config: the configuration.
      vocabulary_size: V, ids of words and special tokens.
      dtype: of the matmuls; the logits are float32 at least.
      field: the configuration's path, for errors.

    Raises:
      ValueError: an unknown decoder, cell or dtype, or a name that makes neither.

    >>> make_decoder(DecoderConfig("up_down", features=8), vocabulary_size=10).vocabulary_size
    10
    """
    check_dtype_argument(dtype)
    check_at_least(field, config, {"features": 1, "embed_features": 1, "attention_features": 1})
    check_rates(field, config, "dropout_rate", "embed_dropout_rate", "weight_dropout_rate")
    part = find_part(f"{field}.name", config.name, DECODERS, EXPECTED)
    make_cell = partial(
        find_part(f"{field}.cell", config.cell, DECODER_CELLS, EXPECTED_CELL),
        config.features,
        dtype=dtype,
    )
    try:
        cell = make_cell()
    except Exception as error:  # A part of the user's may raise anything.
        raise ValueError(
            f"{field}.cell: expected {EXPECTED_CELL}; calling {config.cell!r} raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(cell, DenseCell):
        raise ValueError(
            f"{field}.cell: expected {EXPECTED_CELL}, received {config.cell!r}, which makes a "
            f"{type(cell).__name__}"
        )
    options: dict[str, Any] = {
        "vocabulary_size": vocabulary_size,
        "make_cell": make_cell,
        "embed_features": config.embed_features,
        "tie_embeddings": config.tie_embeddings,
        "dropout_rate": config.dropout_rate,
        "embed_dropout_rate": config.embed_dropout_rate,
        "weight_dropout_rate": config.weight_dropout_rate,
        "dtype": dtype,
    }
    if "attention_features" in parameters_of(part):
        options["attention_features"] = config.attention_features
    try:
        decoder = part(**options)
    except Exception as error:  # A part of the user's may raise anything.
        raise ValueError(
            f"{field}.name: expected {EXPECTED}; calling {config.name!r} raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(decoder, CaptionDecoder):
        raise ValueError(
            f"{field}.name: expected {EXPECTED}, received {config.name!r}, which makes a "
            f"{type(decoder).__name__}"
        )
    return decoder
