"""Encoders by name: the table, and the configuration that builds one."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from flaxnets.configuration import (
    check_at_least,
    check_dtype_argument,
    check_rates,
    find_part,
    parameters_of,
    path_field,
    runtime,
)
from flaxnets.encoders.alexnet import AlexNet, CaffeNet
from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.encoder import DownsampledFrames, Encoder, RawColumns, unknown_name
from flaxnets.encoders.googlenet import GoogLeNet
from flaxnets.encoders.mobilenet_v2 import MobileNetV2
from flaxnets.encoders.pretrained import find_efficientnet_lite0, load_pretrained
from flaxnets.encoders.resnet import BLOCKS, ResNet
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.encoders.vgg import CRNNVGG, VGG
from flaxnets.typing import Dtype

ENCODERS: Mapping[str, Callable[..., nn.Module]] = {
    "alexnet": AlexNet,
    "caffenet": CaffeNet,
    "vgg11": partial(VGG, depth=11),
    "vgg13": partial(VGG, depth=13),
    "vgg16": partial(VGG, depth=16),
    "vgg19": partial(VGG, depth=19),
    "vgg11_bn": partial(VGG, depth=11, batch_norm=True),
    "vgg13_bn": partial(VGG, depth=13, batch_norm=True),
    "vgg16_bn": partial(VGG, depth=16, batch_norm=True),
    "vgg19_bn": partial(VGG, depth=19, batch_norm=True),
    "crnn_vgg": CRNNVGG,
    "crnn_vgg_bn": partial(CRNNVGG, batch_norm=True),
    **{f"resnet{depth}": partial(ResNet, depth=depth) for depth in BLOCKS},
    "googlenet": GoogLeNet,
    "mobilenet_v2": MobileNetV2,
    "efficientnet_lite0": EfficientNetLite0,
    "small_cnn": SmallCNN,
    "sound_cnn": partial(
        SmallCNN,
        features=(64, 64, 64),
        strides=(4, 4, 2),
        column_strides=(1, 1, 1),
        downsampling="max",
    ),
    "downsampled_frames": DownsampledFrames,
    "raw_columns": RawColumns,
}
"""Encoders of images (N,H,W,C), by name."""

EXPECTED = "a flax.linen.Module that encodes images"

IMAGENET = "imagenet"
"""The value of ``EncoderConfig.weights`` for weights that a Python package ships."""


@dataclasses.dataclass
class EncoderConfig:
    """The encoder of frames or images.

    ``make_encoder`` builds it and ``load_encoder`` reads its weights.
    """

    name: str = "efficientnet_lite0"
    """A name in ``ENCODERS``, or ``package.module:Name`` of a Linen module that maps images
    (N,H,W,C), called with ``mask`` (N,) and ``train``, to feature maps (N,h,w,D) or vectors
    (N,D)."""
    weights: str = path_field(names=(IMAGENET,))
    """Empty: random. ``imagenet``: those of efficientnet_lite0 in the extra ``pretrained``. Else a
    file of ``torch.save`` (``.pth``, ``.ckpt``, …) or ``.safetensors`` with torchvision's names."""
    level: str = ""
    """The endpoint whose output is used, as ``stage_3`` or ``pooled``; empty: the last feature
    maps."""
    frozen: bool = False
    """The encoder gets no gradient, no weight decay, and its BatchNorm keeps its statistics. Where
    the data are files its features are then encoded once and cached."""
    frozen_statistics: bool = False
    """BatchNorm keeps its statistics while the parameters are fine-tuned."""
    features: tuple[int, ...] = ()
    """small_cnn, sound_cnn, crnn_vgg and crnn_vgg_bn only: channels of each stage; empty: the
    encoder's own."""
    strides: tuple[int, ...] = ()
    """small_cnn and sound_cnn only: strides of each stage; empty: the encoder's own."""
    column_strides: tuple[int, ...] = ()
    """small_cnn and sound_cnn only: strides of each stage along the columns; empty: the
    encoder's own, which of small_cnn are ``strides``."""
    kernel_size: int = 0
    """small_cnn and sound_cnn only: height and width of the kernels, pixels; 0: the encoder's
    own."""
    dropout: float = 0.0
    """small_cnn and sound_cnn only: rate of spatial dropout after each stage."""
    input_size: int = 0
    """small_cnn and downsampled_frames only: side in pixels to which blocks of the frames are
    averaged first; 0: as they are."""
    remat: str = runtime("none")
    """Activations that are recomputed for the gradient to save memory: ``none``, ``elementwise`` or
    ``full``."""


def make_encoder(
    config: EncoderConfig, *, dtype: Dtype = "float32", field: str = "model.encoder"
) -> nn.Module:
    """Returns the encoder that a configuration describes.

    Args:
      config: the configuration.
      dtype: of the arithmetic and of the outputs.
      field: the configuration's path, for errors.

    Raises:
      ValueError: an unknown name or dtype, a level that the encoder does not have, a value out of
        range, or a ``package.module:Name`` that makes no encoder.

    >>> make_encoder(EncoderConfig("resnet18", level="stage_3")).levels
    ('stage_3',)
    """
    check_dtype_argument(dtype)
    check_at_least(field, config, {"input_size": 0, "kernel_size": 0})
    check_rates(field, config, "dropout")
    part = find_part(f"{field}.name", config.name, ENCODERS, EXPECTED)
    taken = parameters_of(part)
    options: dict[str, Any] = {"dtype": dtype} if "dtype" in taken else {}
    if config.name == "downsampled_frames":
        check_at_least(field, config, {"input_size": 1})
        options["size"] = config.input_size
    # An encoder of one's own may have attributes of these names that mean something else.
    named = taken if config.name in ENCODERS else frozenset()
    for name in ("features", "strides", "column_strides"):
        values = tuple(getattr(config, name))
        if any(value < 1 for value in values):
            raise ValueError(f"{field}.{name}: expected values of at least 1, received {values}")
        if values and name in taken & named:
            options[name] = values
    if config.name == "small_cnn":
        options["input_size"] = config.input_size
    if config.kernel_size and "kernel_size" in taken & named:
        options["kernel_size"] = config.kernel_size
    if config.dropout and "dropout" in taken & named:
        options["dropout"] = config.dropout
    for name, value, default in (
        ("levels", (config.level,) if config.level else (), ()),
        ("remat", config.remat, "none"),
    ):
        if name in taken:
            options[name] = value
        elif value != default:
            given = "level" if name == "levels" else name
            raise ValueError(
                f"{field}.{given}: {config.name} has no such option; expected "
                f"{getattr(EncoderConfig, given)!r}, received {getattr(config, given)!r}"
            )
    try:
        encoder = part(**options)
    except Exception as error:  # A part of the user's may raise anything.
        raise ValueError(
            f"{field}.name: expected {EXPECTED}, made without further arguments; calling "
            f"{config.name!r} raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(encoder, nn.Module):
        raise ValueError(
            f"{field}.name: expected {EXPECTED}, received {config.name!r}, which makes an object "
            f"of type {type(encoder).__name__}"
        )
    if not {"mask", "train"} <= parameters_of(type(encoder).__call__):
        raise ValueError(
            f"{field}.name: expected {EXPECTED}, called as encoder(images, mask, train=False), "
            f"received {config.name!r}, which takes "
            f"{', '.join(inspect.signature(type(encoder).__call__).parameters)}"
        )
    if isinstance(encoder, Encoder) and config.level and config.level not in encoder.level_names:
        raise unknown_name(f"{field}.level", config.level, encoder.level_names)
    return encoder


def weights_file(config: EncoderConfig, *, field: str = "model.encoder") -> str:
    """Returns the path of the configured file of weights; empty for random ones.

    Raises:
      ModuleNotFoundError: ``imagenet`` without the package that ships them.
      ValueError: ``imagenet`` for an encoder whose weights no package ships, or no such file.
    """
    if not config.weights:
        return ""
    if config.weights == IMAGENET:
        if config.name != "efficientnet_lite0":
            raise ValueError(
                f"{field}.weights: only efficientnet_lite0's come with a package; for "
                f"{config.name} expected a .pth or .safetensors file, or '' for random weights, "
                f"received {IMAGENET!r}"
            )
        return str(find_efficientnet_lite0())
    if not os.path.isfile(config.weights):
        raise ValueError(
            f"{field}.weights: expected a .pth or .safetensors file, {IMAGENET!r}, or '' for "
            f"random weights, received {config.weights!r}, which is no file"
        )
    return config.weights


def load_encoder(config: EncoderConfig, *, field: str = "model.encoder") -> dict[str, Any] | None:
    """Returns the variables of the configured weights; None for random ones.

    Raises:
      ModuleNotFoundError: as ``weights_file``.
      ValueError: as ``weights_file``; no such file, or one whose weights do not fit.
    """
    path = weights_file(config, field=field)
    if not path:
        return None
    encoder = make_encoder(config, field=field)
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"{field}.weights: expected '' for {config.name}, which names no layers of a file of "
            f"weights (derive it from flaxnets.Encoder), received {config.weights!r}"
        )
    try:
        return load_pretrained(encoder, path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{field}.weights of {config.name}: {error}") from error


def describe_features(config: EncoderConfig) -> str:
    """Describes the features of a frozen encoder in words: its name, level and weights.

    >>> describe_features(EncoderConfig("vgg16", level="fc7", weights="vgg.pth"))
    'features of a frozen vgg16 (level fc7, weights vgg.pth)'
    """
    level = f"level {config.level}" if config.level else "its last feature maps"
    weights = f"weights {config.weights}" if config.weights else "random weights"
    return f"features of a frozen {config.name} ({level}, {weights})"


def with_encoder_weights(
    config: EncoderConfig, variables: Mapping[str, Any], *, field: str = "model.encoder"
) -> Mapping[str, Any]:
    """Returns a model's variables with the configured weights at ``encoder``.

    Args:
      config: of the encoder.
      variables: Linen's collections of a model whose encoder is called ``encoder``.
      field: the configuration's path, for errors.
    """
    loaded = load_encoder(config, field=field)
    if loaded is None:
        return variables
    return {
        name: {**tree, "encoder": loaded[name]} if name in loaded else tree
        for name, tree in variables.items()
    }
