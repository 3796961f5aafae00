"""Recurrent cells and the layers that scan them over time.

``Recurrent`` stacks any cell: those of vectors (``cells.py``), of feature maps
(``convolutional_cells.py``), with linear recurrences (``linear_cells.py``), those of ``flax.linen``
(``flax_cells.py``), or one of one's own that follows ``Cell``.
"""

from flaxnets.recurrent.cell import Cell, CellModule, ProjectHidden, Weights
from flaxnets.recurrent.cells import DenseCell, ElmanCell, GRUCell, LSTMCell
from flaxnets.recurrent.config import CELLS, RecurrentConfig, make_recurrent
from flaxnets.recurrent.convolutional_cells import (
    ConvGRUCell,
    ConvLSTMCell,
    ConvolutionalAveragingCell,
    ConvolutionalCell,
    MinConvGRUCell,
    MinConvLSTMCell,
    STLSTMCell,
)
from flaxnets.recurrent.layers import FrameAverage, Recurrent
from flaxnets.recurrent.linear_cells import (
    AveragingCell,
    LinearCell,
    LRUCell,
    MinGRUCell,
    MinLSTMCell,
)
from flaxnets.recurrent.linear_recurrence import (
    gated_average,
    linear_recurrence,
    plain_recurrence,
)
from flaxnets.recurrent.scan import ScanOptions, check_cell, scan_cell
from flaxnets.recurrent.torch_weights import from_torch

__all__ = [
    "CELLS",
    "AveragingCell",
    "Cell",
    "CellModule",
    "ConvGRUCell",
    "ConvLSTMCell",
    "ConvolutionalAveragingCell",
    "ConvolutionalCell",
    "DenseCell",
    "ElmanCell",
    "FrameAverage",
    "GRUCell",
    "LRUCell",
    "LSTMCell",
    "LinearCell",
    "MinConvGRUCell",
    "MinConvLSTMCell",
    "MinGRUCell",
    "MinLSTMCell",
    "ProjectHidden",
    "Recurrent",
    "RecurrentConfig",
    "STLSTMCell",
    "ScanOptions",
    "Weights",
    "check_cell",
    "from_torch",
    "gated_average",
    "linear_recurrence",
    "make_recurrent",
    "plain_recurrence",
    "scan_cell",
]
