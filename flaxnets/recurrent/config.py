"""Recurrent cells by name: the table, and the configuration that builds a layer of them."""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from flaxnets.configuration import (
    check_at_least,
    check_dtype_argument,
    check_rates,
    find_part,
    nearest,
    parameters_of,
    runtime,
)
from flaxnets.recurrent.cells import ElmanCell, GRUCell, LSTMCell
from flaxnets.recurrent.convolutional_cells import (
    ConvGRUCell,
    ConvLSTMCell,
    MinConvGRUCell,
    MinConvLSTMCell,
    STLSTMCell,
)
from flaxnets.recurrent.layers import FrameAverage, Recurrent
from flaxnets.recurrent.linear_cells import LRUCell, MinGRUCell, MinLSTMCell, QRNNCell
from flaxnets.recurrent.scan import ScanOptions, check_cell
from flaxnets.typing import Dtype

logger = logging.getLogger(__name__)

CELLS: Mapping[str, Callable[..., Any]] = {
    "elman": ElmanCell,
    "lstm": LSTMCell,
    "gru": GRUCell,
    "convlstm": ConvLSTMCell,
    "convgru": ConvGRUCell,
    "stlstm": STLSTMCell,
    "minconvgru": MinConvGRUCell,
    "minconvlstm": MinConvLSTMCell,
    "mingru": MinGRUCell,
    "minlstm": MinLSTMCell,
    "lru": LRUCell,
    "qrnn": QRNNCell,
}
"""Recurrent cells by name: convlstm, convgru, stlstm, minconvgru and minconvlstm read feature maps,
the others vectors."""

NONE, AVERAGE = "none", "average"
"""Values of ``RecurrentConfig.cell`` for networks without recurrence."""

NEWTON_SCAN = "flaxnets.recurrent.newton_scan:NewtonScan"

_OF_SOME_CELLS = ("window", "r_min", "max_phase")
"""Fields of ``RecurrentConfig`` that the cells get which have attributes of these names."""

_BETWEEN_LAYERS = ("layer_input_features", "dropout_rate", "residual", "normalize_layers")
"""Fields of ``RecurrentConfig`` that act between layers; dropout also above the Dense layer of
``input_features``."""

EXPECTED = "a flax.linen.RNNCellBase or a cell as in flaxnets.recurrent.cell"


@dataclasses.dataclass
class RecurrentConfig:
    """The recurrent layer over time; ``make_recurrent`` builds it."""

    cell: str = "lstm"
    """A name in ``CELLS``, or ``package.module:Name`` of a cell, as ``flax.linen:MGUCell``. Without
    recurrence: ``none``, or ``average``, a Dense + ReLU layer at each step whose mean over the
    steps every step gets; of the fields below ``average`` reads ``features`` and
    ``normalize_inputs``, ``none`` reads none."""
    features: int = 256
    """Width of the hidden state, or of the layer of ``average``."""
    num_layers: int = 1
    """Depth; each layer reads the outputs of the one below."""
    bidirectional: bool = False
    """Each layer also scans backwards; the outputs of both are concatenated."""
    residual: bool = False
    """Each layer but the first adds its inputs to its outputs."""
    kernel_size: int = 3
    """Cells on feature maps only: side of the kernels, pixels."""
    window: int = 2
    """``qrnn`` only: steps that its convolution over time reads."""
    chrono_steps: int = 0
    """Chrono initialization (1804.11188) of the gates' biases, for memories of up to this many
    steps, as long as the sequences: ``lstm``, ``gru``, ``qrnn`` and minimal cells only; 0: the
    cell's own biases."""
    r_min: float = 0.0
    """``lru`` only: smallest initial |λ|, in [0,1); near 1 for long sequences, as 0.99."""
    max_phase: float = 2 * math.pi
    """``lru`` only: largest initial phase of λ, radians in (0,2π]; small for long sequences, as
    π/10."""
    normalize_inputs: bool = False
    """LayerNorm of each step's inputs; of few features, as the two of the adding problem, little is
    left."""
    normalize_layers: bool = False
    """LayerNorm of the inputs of each layer above the first."""
    glu: bool = False
    """GELU and a gated linear unit on each layer's outputs; layers of ``lru`` have no other
    nonlinearity but the LayerNorm between them."""
    delta_features: bool = False
    """Each step also reads the difference of its inputs from those of the step before."""
    input_features: int = 0
    """Width of a linear layer below the first cell; 0: none."""
    layer_input_features: int = 0
    """Width of a linear layer below each cell above the first, as where both directions' outputs
    are brought to the width of one (1507.05717); 0: none."""
    dropout_rate: float = 0.0
    """On the inputs of each layer of cells from the layer below it, if only the Dense layer of
    ``input_features``; one layer of cells alone has none."""
    variational: bool = False
    """Dropout draws one mask a sequence, the same at every step."""
    recurrent_dropout_rate: float = 0.0
    """On the hidden state, one mask a sequence; for cells with hidden-to-hidden kernels."""
    truncate_steps: int = 0
    """Steps after which gradients are cut off (truncated back-propagation); 0: never."""
    unroll: int = runtime(1)
    """Steps in each iteration of the scan."""
    remat_steps: int = runtime(0)
    """Steps in a segment whose activations are recomputed for the gradient; 0: all are kept."""
    remat_outer_steps: int = runtime(0)
    """Steps in a segment of such segments, a multiple of ``remat_steps``; in it their states are
    recomputed, too, by a second forward pass. 0: all states between segments are kept."""
    parallel: str = runtime(NONE)
    """Steps computed all at once by Newton's method (``newton_scan.py``), for nonlinear cells on
    vectors: ``deer``, ``quasi_deer``, ``elk`` or ``quasi_elk``; it pays for long sequences on a
    GPU. ``none``: one after the other."""
    parallel_tolerance: float = runtime(0.0)
    """Relative change of the states at which it ends; 0: by the dtype, 6e-6 for float32."""
    parallel_iterations: int = runtime(100)
    """Iterations after which the sequential scan takes over."""
    parallel_damping: float = runtime(0.0)
    """In [0,1]: smaller Jacobians where it diverges, at the price of iterations."""
    parallel_regularization: float = runtime(1e-3)
    """Above 0: how near ``elk`` and ``quasi_elk`` stay to the guess of the iteration before."""
    backend: str = runtime("scan")
    """``scan``, or ``cudnn`` for plain LSTMs on GPUs."""


def make_cell_type(
    config: RecurrentConfig, *, dtype: Dtype = "float32", field: str = "model.recurrent"
) -> Callable[..., Any]:
    """Returns the constructor of the configured cell, to be called with ``name``.

    Raises:
      ValueError: an unknown name or dtype, or a ``package.module:Name`` that makes no cell.
    """
    check_dtype_argument(dtype)
    part = find_part(f"{field}.cell", config.cell, CELLS, EXPECTED)
    taken = parameters_of(part)
    options: dict[str, Any] = {"features": config.features}
    if "kernel_size" in taken:
        options["kernel_size"] = (config.kernel_size, config.kernel_size)
    options |= {name: getattr(config, name) for name in _OF_SOME_CELLS if name in taken}
    if config.chrono_steps:
        if "chrono_steps" not in taken:
            names = [name for name, cell in CELLS.items() if "chrono_steps" in parameters_of(cell)]
            raise ValueError(
                f"{field}.chrono_steps: expected 0 with {config.cell}, received "
                f"{config.chrono_steps}; the cells that take it are {', '.join(names)}"
            )
        options["chrono_steps"] = config.chrono_steps
    if "dtype" in taken:
        options["dtype"] = dtype
    make = partial(part, **options)
    try:
        cell = make()
    except Exception as error:  # A part of the user's may raise anything.
        raise ValueError(
            f"{field}.cell: expected {EXPECTED}; calling {config.cell!r} with features="
            f"{config.features} raised {type(error).__name__}: {error}"
        ) from error
    check_cell(f"{field}.cell", cell)
    try:
        axes = cell.num_feature_axes
    except NotImplementedError:
        axes = 0
    if axes not in (1, 3):
        raise ValueError(
            f"{field}.cell: expected a cell whose num_feature_axes is 1 (vectors) or 3 (feature "
            f"maps), received {config.cell!r} with {axes or 'none'}"
        )
    if type(cell).initialize_carry is nn.RNNCellBase.initialize_carry:
        raise ValueError(
            f"{field}.cell: expected a cell that defines initialize_carry(rng, input_shape), "
            f"received {config.cell!r}, which does not"
        )
    return make


def reads_maps(config: RecurrentConfig, *, field: str = "model.recurrent") -> bool:
    """Returns whether the configured cell reads feature maps (B,T,H,W,C), not vectors (B,T,D)."""
    if config.cell in (NONE, AVERAGE):
        return False
    return bool(make_cell_type(config, field=field)().num_feature_axes == 3)


def make_recurrent(
    config: RecurrentConfig, *, dtype: Dtype = "float32", field: str = "model.recurrent"
) -> Recurrent | FrameAverage | None:
    """Returns the recurrent layer that a configuration describes; None for ``none``.

    Args:
      config: the configuration.
      dtype: of the matmuls and of the outputs.
      field: the configuration's path, for errors.

    Raises:
      ValueError: as ``make_cell_type``, or a value out of range.

    >>> make_recurrent(RecurrentConfig("gru", features=8, num_layers=2)).num_layers
    2
    """
    least = {"features": 1, "num_layers": 1, "kernel_size": 1, "window": 1, "input_features": 0}
    least |= {"layer_input_features": 0, "chrono_steps": 0}
    check_at_least(field, config, least)
    check_rates(field, config, "dropout_rate", "recurrent_dropout_rate", "r_min")
    if not 0 < config.max_phase <= 2 * math.pi:
        raise ValueError(f"{field}.max_phase: expected in (0,2π], received {config.max_phase}")
    if config.cell == NONE:
        return None
    if config.cell == AVERAGE:
        return FrameAverage(config.features, normalize_inputs=config.normalize_inputs)
    if config.num_layers == 1:
        _warn_of_no_effect(config, field)
    return Recurrent(
        make_cell_type(config, dtype=dtype, field=field),
        num_layers=config.num_layers,
        bidirectional=config.bidirectional,
        residual=config.residual,
        normalize_inputs=config.normalize_inputs,
        normalize_layers=config.normalize_layers,
        glu=config.glu,
        delta_features=config.delta_features,
        input_features=config.input_features,
        layer_input_features=config.layer_input_features,
        dropout_rate=config.dropout_rate,
        variational=config.variational,
        recurrent_dropout_rate=config.recurrent_dropout_rate,
        options=ScanOptions(
            unroll=config.unroll,
            remat_steps=config.remat_steps,
            remat_outer_steps=config.remat_outer_steps,
            truncate_steps=config.truncate_steps,
            parallel=_make_parallel(config, field),
        ),
        backend=config.backend,
    )


def _warn_of_no_effect(config: RecurrentConfig, field: str) -> None:
    """Logs which fields one layer does not read; a search over ``num_layers`` may set them."""
    for name in _BETWEEN_LAYERS:
        value = getattr(config, name)
        if value and not (name == "dropout_rate" and config.input_features):
            logger.warning(
                "%s.%s: %s has no effect with num_layers=1, since it acts between layers",
                field,
                name,
                value,
            )


def _make_parallel(config: RecurrentConfig, field: str) -> Any:
    """Returns the parallel scan that a configuration describes; None for ``none``."""
    if config.parallel == NONE:
        return None
    names = (NONE, "deer", "quasi_deer", "elk", "quasi_elk")
    if config.parallel not in names:
        raise ValueError(
            f"{field}.parallel: unknown {config.parallel!r}{nearest(config.parallel, names)}"
        )
    # By its name: trainings that scan step by step do not import it.
    make = find_part(f"{field}.parallel", NEWTON_SCAN, {}, "a parallel scan")
    return make(
        method=config.parallel,
        tolerance=config.parallel_tolerance,
        max_iterations=config.parallel_iterations,
        damping=config.parallel_damping,
        regularization=config.parallel_regularization,
    )
