"""Hybrid spatio-temporal models in JAX and Flax: encoders see space, recurrent cells see time.

The names below are the public interface of the parts and models; training, tasks and the use of
trained models are in ``flaxnets.training``, ``flaxnets.tasks`` and ``flaxnets.inference``.
"""

from flaxnets.versions import check_versions  # isort: skip

check_versions()  # Before the imports that a wrong version would break.

from flaxnets.decoders import (
    Att2in,
    CaptionDecoder,
    FactoredLRCN,
    HardAttention,
    MaxoutLSTMCell,
    SearchOptions,
    ShowAndTell,
    SoftAttention,
    UpDown,
    search_captions,
)
from flaxnets.decoders.config import DECODERS, DecoderConfig, make_decoder
from flaxnets.encoders import (
    VGG,
    AlexNet,
    CaffeNet,
    DownsampledFrames,
    EfficientNetLite0,
    Encoder,
    GoogLeNet,
    MobileNetV2,
    ResNet,
    SmallCNN,
    load_pretrained,
)
from flaxnets.encoders.config import ENCODERS, EncoderConfig, load_encoder, make_encoder
from flaxnets.heads import (
    AttentionPooling,
    ClipClassifier,
    StepClassifier,
    pool_last,
    pool_max,
    pool_mean,
)
from flaxnets.heads.config import HEADS, HeadConfig, make_head
from flaxnets.models import CRNN, Captioner, LateFusion, MultiLevelCRNN, StreamFusion
from flaxnets.models.config import CRNNConfig, make_crnn
from flaxnets.recurrent import (
    ConvGRUCell,
    ConvLSTMCell,
    ElmanCell,
    FrameAverage,
    GRUCell,
    LRUCell,
    LSTMCell,
    MinGRUCell,
    MinLSTMCell,
    Recurrent,
    ScanOptions,
)
from flaxnets.recurrent.config import CELLS, RecurrentConfig, make_recurrent

__all__ = [
    "CELLS",
    "CRNN",
    "DECODERS",
    "ENCODERS",
    "HEADS",
    "VGG",
    "AlexNet",
    "Att2in",
    "AttentionPooling",
    "CRNNConfig",
    "CaffeNet",
    "CaptionDecoder",
    "Captioner",
    "ClipClassifier",
    "ConvGRUCell",
    "ConvLSTMCell",
    "DecoderConfig",
    "DownsampledFrames",
    "EfficientNetLite0",
    "ElmanCell",
    "Encoder",
    "EncoderConfig",
    "FactoredLRCN",
    "FrameAverage",
    "GRUCell",
    "GoogLeNet",
    "HardAttention",
    "HeadConfig",
    "LRUCell",
    "LSTMCell",
    "LateFusion",
    "MaxoutLSTMCell",
    "MinGRUCell",
    "MinLSTMCell",
    "MobileNetV2",
    "MultiLevelCRNN",
    "Recurrent",
    "RecurrentConfig",
    "ResNet",
    "ScanOptions",
    "SearchOptions",
    "ShowAndTell",
    "SmallCNN",
    "SoftAttention",
    "StepClassifier",
    "StreamFusion",
    "UpDown",
    "load_encoder",
    "load_pretrained",
    "make_crnn",
    "make_decoder",
    "make_encoder",
    "make_head",
    "make_recurrent",
    "pool_last",
    "pool_max",
    "pool_mean",
    "search_captions",
]
