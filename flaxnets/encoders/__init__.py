"""Convolutional encoders: images (N,H,W,C) to feature maps (N,h,w,D) or named endpoints."""

from flaxnets.encoders.alexnet import AlexNet, CaffeNet
from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.encoder import Encoder
from flaxnets.encoders.googlenet import GoogLeNet
from flaxnets.encoders.mobilenet_v2 import MobileNetV2
from flaxnets.encoders.pixels import DownsampledFrames, normalize_pixels
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
from flaxnets.encoders.vgg import VGG

__all__ = [
    "VGG",
    "AlexNet",
    "CaffeNet",
    "DownsampledFrames",
    "EfficientNetLite0",
    "Encoder",
    "GoogLeNet",
    "LoadReport",
    "MobileNetV2",
    "PthError",
    "ResNet",
    "SmallCNN",
    "UnsafePickleError",
    "fit_weights",
    "load_efficientnet_lite0",
    "load_efficientnet_lite0_classifier",
    "load_pretrained",
    "normalize_pixels",
    "read_pth",
    "read_weights",
]
