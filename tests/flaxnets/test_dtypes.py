"""Dtypes by name: one that does not exist is refused where a module is made."""

from collections.abc import Callable
from typing import Any

import pytest

from flaxnets import (
    ConvGRUCell,
    DownsampledFrames,
    LRUCell,
    LSTMCell,
    ResNet,
    ShowAndTell,
    SmallCNN,
    StepClassifier,
)
from flaxnets.heads.pooling import AttentionPooling
from flaxnets.layers.convolution import Conv
from flaxnets.layers.depthwise import DepthwiseConv
from flaxnets.layers.normalization import BatchNorm

MODULES: dict[str, Callable[..., Any]] = {
    "LSTMCell": lambda dtype: LSTMCell(4, dtype=dtype),
    "ConvGRUCell": lambda dtype: ConvGRUCell(4, dtype=dtype),
    "LRUCell": lambda dtype: LRUCell(4, dtype=dtype),
    "ResNet": lambda dtype: ResNet(depth=18, dtype=dtype),
    "SmallCNN": lambda dtype: SmallCNN(dtype=dtype),
    "DownsampledFrames": lambda dtype: DownsampledFrames(4, dtype=dtype),
    "StepClassifier": lambda dtype: StepClassifier(3, dtype=dtype),
    "AttentionPooling": lambda dtype: AttentionPooling(3, dtype=dtype),
    "ShowAndTell": lambda dtype: ShowAndTell(vocabulary_size=9, dtype=dtype),
    "Conv": lambda dtype: Conv(3, (3, 3), dtype=dtype),
    "DepthwiseConv": lambda dtype: DepthwiseConv(3, dtype=dtype),
    "BatchNorm": lambda dtype: BatchNorm(dtype=dtype),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_dtype_that_does_not_exist_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(ValueError, match=r"^dtype: unknown 'fp16'; did you mean 'float16'\?$"):
        MODULES[name]("fp16")


@pytest.mark.parametrize("name", MODULES)
def test_a_dtype_by_name_is_taken(name: str) -> None:
    assert MODULES[name]("bfloat16").clone().dtype == "bfloat16"
