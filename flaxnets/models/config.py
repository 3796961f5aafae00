"""The grid of encoders, recurrent cells and heads: one configuration for every CRNN."""

import dataclasses
from typing import Any

import flax.linen as nn

from flaxnets.configuration import check_at_least, check_dtype, check_rates, nearest
from flaxnets.encoders.config import EncoderConfig, make_encoder
from flaxnets.heads.config import HeadConfig, make_head
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.config import RecurrentConfig, make_recurrent, reads_maps

SPATIAL_POOLS = ("mean", "flatten")


@dataclasses.dataclass
class CRNNConfig:
    """An encoder of frames, a recurrent layer over time, a head; ``make_crnn`` builds it.

    Every encoder goes with every cell and head: cells on vectors read the feature maps pooled over
    space, cells on feature maps read them as they are, and their outputs are averaged over space
    before the head.
    """

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    recurrent: RecurrentConfig = dataclasses.field(default_factory=RecurrentConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    spatial_pool: str = "mean"
    """Feature maps to vectors, for cells on vectors and networks without recurrence: ``mean`` over
    the positions, or ``flatten``. Cells on feature maps do not read it."""
    dropout_rate: float = 0.0
    """On the inputs of the recurrent layer."""
    chunk_frames: int = 0
    """Frames encoded at once where BatchNorm keeps its statistics; 0: all. It bounds memory."""
    dtype: str = "float32"
    """Of the arithmetic; parameters and logits stay float32."""


def make_crnn(
    config: CRNNConfig,
    num_classes: int | None,
    *,
    cached_features: bool = False,
    fixed_length: bool = False,
    field: str = "model",
    **options: Any,
) -> CRNN:
    """Returns the network that a configuration describes.

    Args:
      config: the configuration.
      num_classes: K; None: no head, the network returns the features of each step.
      cached_features: whether the inputs are features of a frozen encoder, which then is no part of
        the network.
      fixed_length: whether all clips have the same number of frames.
      field: the configuration's path, for errors.
      **options: further attributes of ``CRNN``, which take the place of the configured ones.

    Raises:
      ValueError: an unknown name, or parts that do not go together; the message says what fits.

    >>> network = make_crnn(CRNNConfig(), num_classes=5)
    >>> network.pool
    'mean'
    """
    check_dtype(f"{field}.dtype", config.dtype)
    check_at_least(field, config, {"chunk_frames": 0})
    check_rates(field, config, "dropout_rate")
    if config.spatial_pool not in SPATIAL_POOLS:
        near = nearest(config.spatial_pool, SPATIAL_POOLS)
        raise ValueError(f"{field}.spatial_pool: unknown {config.spatial_pool!r}{near}")
    check_level(config, field=field)
    encoder: nn.Module | None = None
    if not cached_features:
        encoder = make_encoder(config.encoder, dtype=config.dtype, field=f"{field}.encoder")
    head: nn.Module | None = None
    if num_classes is not None:
        head = make_head(
            config.head,
            num_classes,
            fixed_length=fixed_length,
            dtype=config.dtype,
            field=f"{field}.head",
        )
    attributes: dict[str, Any] = {
        "classifier": head,
        "encoder": encoder,
        "recurrent": make_recurrent(
            config.recurrent, dtype=config.dtype, field=f"{field}.recurrent"
        ),
        "pool": pool_of(config, field=field),
        "dropout_rate": config.dropout_rate,
        "chunk_frames": config.chunk_frames,
        "freeze_encoder": config.encoder.frozen,
        "freeze_statistics": config.encoder.frozen_statistics,
    }
    return CRNN(**(attributes | options))


def pool_of(config: CRNNConfig, *, field: str = "model") -> str:
    """Returns ``CRNN.pool`` for the configured cell."""
    on_maps = reads_maps(config.recurrent, field=f"{field}.recurrent")
    return "none" if on_maps else config.spatial_pool


def check_level(config: CRNNConfig, *, field: str = "model") -> None:
    """Refuses a cell on feature maps behind an encoder whose level gives vectors.

    Raises:
      ValueError: the two do not go together; the message names the levels that would.
    """
    if reads_maps(config.recurrent, field=f"{field}.recurrent"):
        check_gives_maps(
            config.encoder,
            f"{field}.recurrent.cell: {config.recurrent.cell}",
            "a cell on vectors, as lstm",
            field=f"{field}.encoder",
        )


def check_gives_maps(
    encoder: EncoderConfig, reader: str, other: str, *, field: str = "model.encoder"
) -> None:
    """Refuses an encoder whose level gives vectors, for a part that reads feature maps.

    Args:
      encoder: the configuration.
      reader: the part, with its field, for the error.
      other: a part that reads vectors, for the error.
      field: path of the encoder's configuration.

    Raises:
      ValueError: naming the levels that give maps.
    """
    if not encoder.level:
        return
    network = make_encoder(encoder, field=field)
    names = list(getattr(network, "level_names", ()))
    last_maps = getattr(network, "maps_level", None)
    if last_maps is None or encoder.level not in names[names.index(last_maps) + 1 :]:
        return
    raise ValueError(
        f"{reader} reads feature maps, and {field}.level={encoder.level} of {encoder.name} gives "
        f"vectors; choose a level of {', '.join(names[: names.index(last_maps) + 1])}, or {other}"
    )
