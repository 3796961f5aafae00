"""Compositions of encoders, recurrent layers, heads and decoders, and nothing else."""

from flaxnets.models.captioner import Captioner
from flaxnets.models.column_crnn import ColumnCRNN, ColumnCRNNConfig, make_column_crnn
from flaxnets.models.config import CRNNConfig, make_crnn
from flaxnets.models.crnn import CRNN
from flaxnets.models.late_fusion import LateFusion, StreamProjection
from flaxnets.models.multi_level import MultiLevelCRNN
from flaxnets.models.stream_fusion import StreamFusion

__all__ = [
    "CRNN",
    "CRNNConfig",
    "Captioner",
    "ColumnCRNN",
    "ColumnCRNNConfig",
    "LateFusion",
    "MultiLevelCRNN",
    "StreamFusion",
    "StreamProjection",
    "make_column_crnn",
    "make_crnn",
]
