"""Convolution, normalisation and pooling layers that are fast on CPUs, beside XLA's reference."""

from flaxnets.layers.batch_sharding import (
    is_batch_known_sharded,
    is_batch_known_unsharded,
    map_in_chunks,
)
from flaxnets.layers.convolution import Conv, Padding, conv2d
from flaxnets.layers.depthwise import DepthwiseConv, depthwise_conv
from flaxnets.layers.normalization import BatchNorm
from flaxnets.layers.padding import check_lengths, mask_steps
from flaxnets.layers.pooling import adaptive_average_pool, average_pool, max_pool
from flaxnets.layers.tapped_convolution import tapped_conv
from flaxnets.layers.winograd import winograd_conv

__all__ = [
    "BatchNorm",
    "Conv",
    "DepthwiseConv",
    "Padding",
    "adaptive_average_pool",
    "average_pool",
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
]
