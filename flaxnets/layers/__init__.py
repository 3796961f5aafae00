"""Convolution, normalisation and pooling layers that are fast on CPUs, beside XLA's reference."""

from flaxnets.layers.batch_sharding import (
    is_batch_known_sharded,
    is_batch_known_unsharded,
    map_in_chunks,
)
from flaxnets.layers.convolution import (
    Conv,
    Padding,
    conv2d,
    tapped_conv,
    winograd_conv,
)
from flaxnets.layers.depthwise import DepthwiseConv, depthwise_conv
from flaxnets.layers.normalization import BatchNorm
from flaxnets.layers.padding import (
    check_counts,
    check_lengths,
    mask_steps,
    zero_padding,
    zero_where_masked,
)
from flaxnets.layers.pooling import adaptive_average_pool, average_pool, max_pool

__all__ = [
    "BatchNorm",
    "Conv",
    "DepthwiseConv",
    "Padding",
    "adaptive_average_pool",
    "average_pool",
    "check_counts",
    "check_lengths",
    "conv2d",
    "depthwise_conv",
    "is_batch_known_sharded",
    "is_batch_known_unsharded",
    "map_in_chunks",
    "mask_steps",
    "max_pool",
    "tapped_conv",
    "winograd_conv",
    "zero_padding",
    "zero_where_masked",
]
