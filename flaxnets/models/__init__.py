"""Compositions of encoders, recurrent layers, heads and decoders, and nothing else."""

from flaxnets.models.captioner import Captioner
from flaxnets.models.crnn import CRNN
from flaxnets.models.late_fusion import LateFusion, StreamProjection
from flaxnets.models.multi_level import MultiLevelCRNN
from flaxnets.models.stream_fusion import StreamFusion

__all__ = [
    "CRNN",
    "Captioner",
    "LateFusion",
    "MultiLevelCRNN",
    "StreamFusion",
    "StreamProjection",
]
