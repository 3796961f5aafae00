"""Hybrid spatio-temporal models in JAX and Flax: encoders see space, recurrent cells see time.

The names below are the public interface of the parts and models; training, tasks and the use of
trained models are in ``flaxnets.training``, ``flaxnets.tasks`` and ``flaxnets.inference``.
"""

import os
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from flaxnets.inference.runtime.media import Limits
    from flaxnets.inference.runtime.models import Captioner as CaptionerInUse
    from flaxnets.inference.runtime.models import Classifier as ClassifierInUse
    from flaxnets.inference.runtime.readers import Reader

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
    "load",
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


def load(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    allow_code: bool = False,
    limits: "Limits | None" = None,
) -> "ClassifierInUse | CaptionerInUse | Reader":
    """Loads a trained model, as a function of files and arrays; needs no training code.

    A classifier has ``predict`` and ``stream``, a captioner ``caption``
    (``flaxnets/inference/runtime/models.py``), a reader of lines or speech ``read`` and ``stream``
    (``readers.py`` beside it); all ``kind``, ``name``, ``labels`` and ``card``.

    Args:
      path: workdir of a run, folder that ``launch.export`` or ``flaxnets.inference.save_model``
        wrote, or name of a shipped model, as ``captioner``.
      step: of a workdir's checkpoint; None: the best one, or the newest if none was evaluated.
      allow_code: whether code outside of flaxnets that the model names is imported and run.
      limits: bounds of the files that the model reads; None: the defaults of ``Limits``.

    Raises:
      ValueError: no model, one of another format, a workdir without a checkpoint, an unknown name,
        or foreign code without ``allow_code``.
      ModuleNotFoundError: pretrained weights without the extra that ships them.

    A model of random weights, in a folder as ``launch.export`` writes it:

    >>> import tempfile, jax, numpy as np
    >>> from flaxnets import CRNN, SmallCNN, StepClassifier, load
    >>> from flaxnets.configuration import describe_part
    >>> from flaxnets.inference import save_model
    >>> network = CRNN(StepClassifier(2), SmallCNN((4,), (4,)))
    >>> video = np.zeros((20, 48, 64, 3), np.uint8)  # (T,H,W,3)
    >>> variables = network.init(jax.random.key(0), video[None], np.array([20]), train=False)
    >>> folder = tempfile.mkdtemp()
    >>> settings = {"kind": "clip", "num_frames": 4, "size": [32, 32], "rate": 5.0}
    >>> size = save_model(
    ...     folder,
    ...     {
    ...         "format": 1,
    ...         "kind": "video_classification",
    ...         "name": "toy",
    ...         "labels": ["wave", "walk"],
    ...         "network": describe_part(network),
    ...         "averaging": "clip",
    ...         "preprocessing": settings,
    ...     },
    ...     variables,
    ... )
    >>> model = load(folder)
    >>> prediction = model.predict(video, rate=30.0)  # or a path: model.predict("clip.mp4")
    >>> prediction.probabilities.shape, [f"{time:.1f} s" for time in prediction.times]
    ((2,), ['0.0 s', '0.2 s', '0.4 s', '0.6 s'])
    """
    # Imported where it is used: it needs the code of checkpoints.
    from flaxnets.inference import loading
    from flaxnets.inference.runtime.media import DEFAULT_LIMITS

    return loading.load(path, step=step, allow_code=allow_code, limits=limits or DEFAULT_LIMITS)
