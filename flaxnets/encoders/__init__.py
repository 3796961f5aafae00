"""Convolutional encoders: images (N,H,W,C) to feature maps (N,h,w,D) or named endpoints."""

from flaxnets.encoders.alexnet import AlexNet, CaffeNet
from flaxnets.encoders.columns import ColumnEncoder, column_stride
from flaxnets.encoders.config import (
    ENCODERS,
    EncoderConfig,
    load_encoder,
    make_encoder,
    with_encoder_weights,
)
from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.encoder import DownsampledFrames, Encoder, RawColumns, normalize_pixels
from flaxnets.encoders.googlenet import GoogLeNet
from flaxnets.encoders.mobilenet_v2 import MobileNetV2
from flaxnets.encoders.pretrained import (
    LoadReport,
    fit_weights,
    load_efficientnet_lite0,
    load_efficientnet_lite0_classifier,
    load_pretrained,
    read_weights,
)
from flaxnets.encoders.resnet import ResNet
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.encoders.torch_checkpoint import PthError, UnsafePickleError, read_pth
from flaxnets.encoders.vgg import CRNNVGG, VGG

__all__ = [
    "CRNNVGG",
    "ENCODERS",
    "VGG",
    "AlexNet",
    "CaffeNet",
    "ColumnEncoder",
    "DownsampledFrames",
    "EfficientNetLite0",
    "Encoder",
    "EncoderConfig",
    "GoogLeNet",
    "LoadReport",
    "MobileNetV2",
    "PthError",
    "RawColumns",
    "ResNet",
    "SmallCNN",
    "UnsafePickleError",
    "column_stride",
    "fit_weights",
    "load_efficientnet_lite0",
    "load_efficientnet_lite0_classifier",
    "load_encoder",
    "load_pretrained",
    "make_encoder",
    "normalize_pixels",
    "read_pth",
    "read_weights",
    "with_encoder_weights",
]
