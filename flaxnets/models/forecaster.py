r"""Networks that predict the next frames of a video, or of a field: two ways to roll out.

Both read frames as patches: p×p pixels of C channels become one position with p²C channels (Shi et
al., 1506.04214, section 4.1). ``EncoderForecaster`` is the network of that paper: the states of an
encoding stack start a forecasting one, which reads no frame and writes all frames that follow.
``NextFrameForecaster`` predicts frame t + 1 from frame t and reads its own predictions where the
true frames end, as OpenSTL's ConvLSTM and PredRNN do:

.. math::
    s_{t+1}, h_t &= \mathrm{stack}(s_t, m_t x_t + (1 - m_t) \hat x_t) \\
    \hat x_{t+1} &= h_t * W_{1×1}

with :math:`m_t` 1 for true frames. Its stack is any ``FrameStack``; ``StackedCells`` makes one of
recurrent cells.

Predictions that are read again keep the input convolutions inside the scan over time, where
automatic differentiation would form and add their weight gradients step by step. A stack that
names its convolutions (``FrameStack.deferrable``) runs in ``deferred_scan`` instead, which forms
them once, after the scan, over the frames of all steps; ``StackedCells`` also convolves inputs and
hidden states at once, with their kernels one above the other.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.configuration import check_at_least, nearest, parameters_of, runtime
from flaxnets.layers.batch_sharding import cast_like
from flaxnets.recurrent.cell import CellModule, ProjectHidden
from flaxnets.recurrent.cells import DenseCell
from flaxnets.recurrent.config import RecurrentConfig, make_cell_type
from flaxnets.recurrent.convolutional_cells import ConvolutionalCell
from flaxnets.recurrent.flax_cells import remat_module, scan_module
from flaxnets.recurrent.linear_cells import LinearCell
from flaxnets.recurrent.matmul import ScanWeights
from flaxnets.recurrent.scan import ScanOptions, scan_cell, scan_chunks
from flaxnets.recurrent.scan_vjp import deferred_scan, plain_scan
from flaxnets.typing import Array, Carry, PyTree

_LECUN = nn.initializers.lecun_normal()
FORECASTERS = ("next_frame", "encoder_forecaster")
PEEPHOLES = ("none", "channel", "pixel")


class FrameStack(Protocol):
    """Stacked recurrent cells on feature maps, one step of time at a time; an ``nn.Module``.

    A stack whose ``deferrable`` is True also has ``weights`` and ``step``, which compute the same
    as ``__call__``; one without the attribute needs neither.
    """

    @property
    def output_features(self) -> int:
        """F, channels of the outputs."""

    @property
    def deferrable(self) -> bool:
        """True if the stack has ``weights`` and ``step``."""

    def initialize_carry(self, input_shape: tuple[int, ...]) -> Carry:
        """Returns the carry before the first step, for inputs (B,h,w,c)."""

    def __call__(
        self, carry: Carry, inputs: Array, *, train: bool
    ) -> tuple[Carry, Array, dict[str, Array]]:
        """Returns the new carry, outputs (B,h,w,F), and auxiliary losses of this step.

        Args:
          carry: before the step.
          inputs: (B,h,w,c) float.
          train: as in training.

        Returns:
          The carry, the outputs, and losses (B,) float32 by name.
        """

    def weights(self, input_shape: tuple[int, ...]) -> ScanWeights:
        """Returns the parameters for inputs (B,h,w,c), created at the first call.

        Kernels are those of convolutions with stride 1 and padding SAME (h,w,F,G), or matrices
        (F,G) over the channels; a bias stands under the name of its kernel.
        """

    def step(
        self, project: ProjectHidden, others: PyTree, carry: Carry, inputs: Array, /
    ) -> tuple[Carry, Array, dict[str, Array]]:
        """Returns what ``__call__`` does, a pure function of its arguments.

        Args:
          project: (name, maps) to the convolution with that kernel of ``weights``, plus its bias;
            each name is called once a step.
          others: ``ScanWeights.others``.
          carry: before the step.
          inputs: (B,h,w,c) float32.
        """


class StackedCells(nn.Module):
    """``FrameStack`` of recurrent cells, each reading the outputs of the one below.

    >>> from functools import partial
    >>> from flaxnets.recurrent import ConvLSTMCell
    >>> stack, x = StackedCells(partial(ConvLSTMCell, kernel_size=(5, 5)), (4, 6)), jnp.ones(
    ...     (2, 8, 8, 3)
    ... )
    >>> init = partial(stack.init_with_output, train=False)
    >>> carry = stack.initialize_carry(x.shape)
    >>> (_, outputs, _), variables = jax.eval_shape(init, jax.random.key(0), carry, x)
    >>> outputs.shape, sorted(variables["params"])
    ((2, 8, 8, 6), ['cells_0', 'cells_1'])

    Attributes:
      make_cell: constructor of a cell on feature maps, called with ``features`` for each layer.
      features: widths of the layers' hidden states, from below.
    """

    make_cell: Callable[..., Any]
    features: tuple[int, ...]

    def setup(self) -> None:
        """Creates the cells."""
        self.cells = [self.make_cell(features=features) for features in self.features]

    @property
    def output_features(self) -> int:
        """Width of the last layer."""
        return self.features[-1]

    @property
    def deferrable(self) -> bool:
        """True of cells whose input projections are convolutions or matmuls of ``Weights.input``.

        Cells of one's own may project as they like, linear cells and those of Flax do not tell.
        """
        plain = (ConvolutionalCell.project, DenseCell.project)
        cell = self._prototype()
        return isinstance(cell, CellModule) and getattr(type(cell), "project", None) in plain

    def initialize_carry(self, input_shape: tuple[int, ...]) -> Carry:
        """Returns the carries of all layers, for inputs (B,h,w,c)."""
        shapes = [input_shape, *((*input_shape[:-1], width) for width in self.features[:-1])]
        return tuple(
            self.make_cell(features=width, parent=None).initialize_carry(jax.random.key(0), shape)
            for width, shape in zip(self.features, shapes, strict=True)
        )

    def __call__(
        self, carry: Carry, inputs: Array, *, train: bool
    ) -> tuple[Carry, Array, dict[str, Array]]:
        """See ``FrameStack.__call__``; there are no auxiliary losses."""
        carries, x = [], inputs
        for cell, state in zip(self.cells, carry, strict=True):
            state, x = cell(state, x)
            carries.append(state)
        return tuple(carries), x, {}

    def weights(self, input_shape: tuple[int, ...]) -> ScanWeights:
        """See ``FrameStack.weights``: names are the layer's number and the cell's own name.

        Where a cell adds an input projection to a hidden one, both kernels are one, that of inputs
        above that of hidden states.
        """
        kernels: dict[str, Array] = {}
        biases: dict[str, Array] = {}
        pointwise = []
        for layer, cell in enumerate(self.cells):
            weights = cell.weights(input_shape)
            for name, kernel in weights.hidden.items():
                if name in weights.input:
                    above = weights.input[name].astype(kernel.dtype)
                    kernel = jnp.concatenate([above, kernel], axis=-2)
                kernels[f"{layer}/{name}"] = kernel
            for name, kernel in weights.input.items():
                if name not in weights.hidden:
                    kernels[f"{layer}/{name}"] = kernel
            biases |= {f"{layer}/{name}": bias for name, bias in weights.bias.items()}
            pointwise.append(weights.pointwise)
            input_shape = (*input_shape[:-1], self.features[layer])
        return ScanWeights(kernels, biases, tuple(pointwise))

    def step(
        self, project: ProjectHidden, others: PyTree, carry: Carry, inputs: Array
    ) -> tuple[Carry, Array, dict[str, Array]]:
        """See ``FrameStack.step``."""
        added, apart = self._projections()
        carries, x = [], inputs
        for layer, cell in enumerate(self.cells):
            below = x.astype(cell.dtype)

            def convolve(name: str, maps: Array, layer: int = layer) -> Array:
                return project(f"{layer}/{name}", maps)

            def project_both(
                name: str, hidden: Array, below: Array = below, convolve: Any = convolve
            ) -> Array:
                if name in added:
                    hidden = jnp.concatenate([below, hidden], axis=-1)
                return convolve(name, hidden)

            projected = {name: convolve(name, below) for name in apart}
            state, x = cell.step(others[layer], project_both, carry[layer], projected)
            carries.append(state)
        return tuple(carries), x, {}

    def _prototype(self) -> Any:
        """Returns a cell of the first layer that is bound to nothing."""
        return self.make_cell(features=self.features[0], parent=None)

    def _projections(self) -> tuple[frozenset[str], frozenset[str]]:
        """Returns names of the input projections that a hidden one adds, and of the others."""
        cell = self._prototype()
        shape = (1,) * cell.num_feature_axes
        weights, _ = jax.eval_shape(
            lambda key: cell.init_with_output(key, shape, method="weights"), jax.random.key(0)
        )
        added = frozenset(weights.input) & frozenset(weights.hidden)
        return added, frozenset(weights.input) - added


class NextFrameForecaster(nn.Module):
    """Predicts each frame from the frame before, and goes on from its own predictions.

    >>> from functools import partial
    >>> from flaxnets.recurrent import ConvLSTMCell
    >>> stack = StackedCells(partial(ConvLSTMCell, kernel_size=(5, 5)), (4, 4))
    >>> model = NextFrameForecaster(stack, patch_size=4, channels=1)
    >>> init = partial(model.init_with_output, num_inputs=3, train=False)
    >>> frames = jnp.zeros((2, 5, 16, 16, 1))
    >>> (predictions, auxiliary), _ = jax.eval_shape(init, jax.random.key(0), frames)
    >>> predictions.shape  # Of frames 1 to 4.
    (2, 4, 16, 16, 1)

    Parameters: ``stack``, and ``output_kernel`` (F,p²C), the 1×1 convolution; it has no bias, as in
    OpenSTL.

    Attributes:
      stack: recurrent cells on the patches.
      patch_size: p, side of a patch, pixels.
      channels: C, of a frame.
      logits: predictions are logits, whose sigmoid the next step reads.
      options: of the scan over time: ``remat_steps``, ``truncate_steps``, ``unroll``,
        ``gradients``.
    """

    stack: Any
    patch_size: int
    channels: int
    logits: bool = False
    options: ScanOptions = ScanOptions()

    @nn.compact
    def __call__(
        self,
        frames: Array,
        *,
        num_inputs: int,
        use_truth: Array | None = None,
        train: bool,
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the predictions of frames 1 to T - 1, and auxiliary losses.

        Args:
          frames: (B,T,H,W,C) float, T > num_inputs. Of a clip that ends with frame num_inputs - 1
            the later ones may be anything, but for NaN, as zeros.
          num_inputs: frames that are given, >= 1.
          use_truth: (B,T-1) bool: the input of step t is frame t where True, else the prediction
            of it; step 0 always reads frame 0. None: True for t < num_inputs.
          train: as in training.

        Returns:
          (B,T-1,H,W,C) float32, the prediction of frame t + 1 at index t; and the mean over the
          steps of each auxiliary loss of the stack, (B,) by name.

        Raises:
          ValueError: frames of another rank or number of channels, of a size that is no multiple
            of ``patch_size``, or too few; ``use_truth`` of another shape; a parallel scan.
        """
        check_frames(frames, num_inputs, self.patch_size, self.channels)
        batch_size, num_frames = frames.shape[:2]
        num_steps = num_frames - 1
        if use_truth is None:
            use_truth = jnp.broadcast_to(
                jnp.arange(num_steps) < num_inputs, (batch_size, num_steps)
            )
        if use_truth.shape != (batch_size, num_steps):
            raise ValueError(
                f"use_truth: expected (B,T-1) = {(batch_size, num_steps)}, received shape "
                f"{use_truth.shape}"
            )
        if self.options.parallel is not None:
            raise ValueError(
                "options.parallel: expected None, since a prediction is read by the next step, "
                f"received {self.options.parallel}"
            )
        use_truth = use_truth | (jnp.arange(num_steps) == 0)
        patches = to_patches(frames.astype(jnp.float32), self.patch_size)
        maps = patches[:, 0]
        carry = cast_like((self.stack.initialize_carry(maps.shape), jnp.zeros_like(maps)), patches)
        xs = patches[:, :-1].swapaxes(0, 1), use_truth.T
        if getattr(self.stack, "deferrable", False):
            outputs = self._scan_deferred(carry, xs)
        else:
            outputs = self._scan_modules(carry, xs, train)
        predictions, auxiliary = outputs
        predictions = from_patches(predictions.swapaxes(0, 1), self.patch_size)
        return predictions, {name: x.mean(axis=0) for name, x in auxiliary.items()}

    def _scan_deferred(self, carry: Carry, xs: PyTree) -> Any:
        """Scans a stack that names its convolutions; returns predictions and losses (T-1,...)."""
        stack, logits, options = self.stack, self.logits, self.options
        weights = stack.weights(xs[0].shape[1:])
        kernels = {**weights.kernels, "output": self._output_kernel(xs[0].shape[-1])}
        weights = weights._replace(kernels=kernels)
        scan = deferred_scan if options.deferred else plain_scan

        def step(
            project: ProjectHidden, others: PyTree, flags: Array, carry: Carry, x: dict[str, Array]
        ) -> Any:
            state, prediction = carry
            inputs = _choose(flags, x["frames"], prediction)
            state, outputs, auxiliary = stack.step(project, others, state, inputs)
            values = project("output", outputs).astype(jnp.float32)
            return (state, _read(values, logits)), (values, auxiliary)

        def scan_steps(weights: ScanWeights, carry: Carry, xs: PyTree) -> Any:
            frames, use_truth = xs
            return scan(step, weights, carry, {"frames": frames}, use_truth, unroll=options.unroll)

        _, outputs = scan_chunks(scan_steps, weights, carry, xs, reverse=False, options=options)
        return outputs

    def _scan_modules(self, carry: Carry, xs: PyTree, train: bool) -> Any:
        """Scans any stack by ``flax.linen.scan``, with gradients by automatic differentiation."""

        def body(module: Any, carry: Carry, xs: PyTree) -> Any:
            frame, use_truth = xs
            state, prediction = carry
            inputs = _choose(use_truth, frame, prediction)
            state, outputs, auxiliary = module.stack(state, inputs, train=train)
            kernel = module._output_kernel(frame.shape[-1])
            values = (outputs @ kernel.astype(outputs.dtype)).astype(jnp.float32)
            return (state, _read(values, module.logits)), (values, auxiliary)

        def scan_steps(module: Any, carry: Carry, xs: PyTree) -> Any:
            return scan_module(body, module, carry, xs, reverse=False, unroll=module.options.unroll)

        _, outputs = scan_chunks(
            scan_steps,
            self,
            carry,
            xs,
            reverse=False,
            options=self.options,
            scan=scan_module,
            checkpoint=remat_module,
        )
        return outputs

    def _output_kernel(self, outputs: int) -> Array:
        shape = (self.stack.output_features, outputs)
        kernel: Array = self.param("output_kernel", _LECUN, shape, jnp.float32)
        return kernel


def _choose(use_truth: Array, frame: Array, prediction: Array) -> Array:
    """Returns of each row (B,h,w,c) the frame or the prediction."""
    return jnp.where(use_truth[:, None, None, None], frame, prediction)


def _read(values: Array, logits: bool) -> Array:
    """Returns a prediction as the next step reads it."""
    return nn.sigmoid(values) if logits else values


class EncoderForecaster(nn.Module):
    """Encoding and forecasting stacks (Shi et al., 1506.04214, figure 3).

    The state of each encoding layer after the last input is that of the forecasting layer opposite
    it before the first output. The forecasting stack runs from the top layer down; its first layer
    has no inputs, so its cells have hidden-to-hidden kernels alone. A 1×1 convolution on the hidden
    states of all its layers makes the frames.

    Cells on vectors read each frame as one vector, as the paper's FC-LSTM does, of whose layers the
    last one alone makes the frames (``concatenate`` False).

    >>> from functools import partial
    >>> from flaxnets.recurrent import ConvLSTMCell
    >>> model = EncoderForecaster(partial(ConvLSTMCell, kernel_size=(5, 5)), (4, 4), 4, channels=1)
    >>> init = partial(model.init_with_output, num_inputs=3, train=False)
    >>> frames = jnp.zeros((2, 5, 16, 16, 1))
    >>> (predictions, _), variables = jax.eval_shape(init, jax.random.key(0), frames)
    >>> predictions.shape  # Of frames 3 and 4.
    (2, 2, 16, 16, 1)
    >>> sorted(variables["params"]["forecasting_1"])  # It has no inputs.
    ['bias', 'hidden_kernel']

    Parameters: ``encoding_i`` and ``forecasting_i`` of each layer i, and the Dense layer
    ``output``. With cells that have one peephole a channel
    (``ConvLSTMCell.shared_peepholes``) their number is that of the paper's table 1.

    Attributes:
      make_cell: constructor of a cell, called with ``features`` and ``name``.
      features: widths of the encoding layers, from below.
      patch_size: p, side of a patch, pixels; 1 for cells on vectors.
      channels: C, of a frame.
      concatenate: the frames read the hidden states of all forecasting layers, not the last alone.
      options: of the scans over time.
    """

    make_cell: Callable[..., Any]
    features: tuple[int, ...]
    patch_size: int
    channels: int
    concatenate: bool = True
    options: ScanOptions = ScanOptions()

    @nn.compact
    def __call__(
        self,
        frames: Array,
        *,
        num_inputs: int,
        use_truth: Array | None = None,
        train: bool,
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the predictions of frames num_inputs to T - 1, and no auxiliary losses.

        Args:
          frames: (B,T,H,W,C) float, T > num_inputs; those from num_inputs on are not read.
          num_inputs: frames that are given, >= 1.
          use_truth: has no effect, since no frame is read after the inputs.
          train: has no effect.

        Returns:
          (B,T-num_inputs,H,W,C) float32, values or logits as the loss has it; and {}.

        Raises:
          ValueError: frames as for ``NextFrameForecaster``.
        """
        check_frames(frames, num_inputs, self.patch_size, self.channels)
        num_outputs = frames.shape[1] - num_inputs
        patches = to_patches(frames[:, :num_inputs].astype(jnp.float32), self.patch_size)
        x, carries = patches, []
        if self.make_cell(features=1, parent=None).num_feature_axes == 1:
            x = patches.reshape(*patches.shape[:2], -1)
        num_values = x.shape[-1]
        for layer, features in enumerate(self.features):
            cell = self.make_cell(features=features, name=f"encoding_{layer}")
            carry, x = scan_cell(cell, x, options=self.options)
            carries.append(carry)
        hidden = []
        x = jnp.zeros((len(x), num_outputs, *x.shape[2:-1], 0), x.dtype)
        for layer in reversed(range(len(self.features))):
            cell = self.make_cell(features=self.features[layer], name=f"forecasting_{layer}")
            _, x = scan_cell(cell, x, initial_carry=carries[layer], options=self.options)
            hidden.append(x)
        maps = jnp.concatenate(hidden, axis=-1) if self.concatenate else hidden[-1]
        values = nn.Dense(num_values, dtype=maps.dtype, name="output")(maps)
        values = values.astype(jnp.float32).reshape(len(x), num_outputs, *patches.shape[2:])
        return from_patches(values, self.patch_size), {}


def to_patches(frames: Array, size: int) -> Array:
    """Returns frames (B,T,H,W,C) as patches (B,T,H/p,W/p,p²C).

    >>> to_patches(jnp.arange(4.0).reshape(1, 1, 2, 2, 1), 2).tolist()
    [[[[[0.0, 1.0, 2.0, 3.0]]]]]
    """
    b, t, h, w, c = frames.shape
    blocks = frames.reshape(b, t, h // size, size, w // size, size, c)
    return blocks.swapaxes(3, 4).reshape(b, t, h // size, w // size, size * size * c)


def from_patches(patches: Array, size: int) -> Array:
    """Returns patches (B,T,h,w,p²C) as frames (B,T,ph,pw,C)."""
    b, t, h, w, c = patches.shape
    blocks = patches.reshape(b, t, h, w, size, size, c // size**2)
    return blocks.swapaxes(3, 4).reshape(b, t, h * size, w * size, c // size**2)


def check_frames(frames: Array, num_inputs: int, patch_size: int, channels: int) -> None:
    """Refuses frames that a forecaster cannot read; see ``NextFrameForecaster``."""
    if frames.ndim != 5 or not jnp.issubdtype(frames.dtype, jnp.floating):
        raise ValueError(
            f"frames: expected (B,T,H,W,C) float, received {frames.shape} {frames.dtype}"
        )
    _, num_frames, height, width, given = frames.shape
    if given != channels:
        raise ValueError(f"frames: expected {channels} channels, received {given}")
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"frames: expected height and width to be multiples of patch_size = {patch_size}, "
            f"received {height}×{width}; choose another patch size or resize the frames"
        )
    if not 1 <= num_inputs < num_frames:
        raise ValueError(
            f"num_inputs: expected 1 to {num_frames - 1}, so that one of {num_frames} frames is "
            f"left to predict, received {num_inputs}"
        )


@dataclasses.dataclass
class ForecasterConfig:
    """A network that predicts frames; ``make_forecaster`` builds it."""

    name: str = "next_frame"
    """``next_frame`` (``NextFrameForecaster``) or ``encoder_forecaster``."""
    cell: str = "convlstm"
    """As ``RecurrentConfig.cell``: a name in ``CELLS``, or ``package.module:Name`` of a cell; on
    feature maps, for ``encoder_forecaster`` also on vectors, but no linear one."""
    features: tuple[int, ...] = (64, 64, 64)
    """Widths of the layers, from below."""
    kernel_size: int = 5
    """Cells on feature maps only: side of the kernels, in patches."""
    patch_size: int = 4
    """Side of a patch, pixels; it divides height and width of a frame."""
    peepholes: str = "none"
    """Cells that have them only: ``none``, one a ``channel``, or one a ``pixel`` of the maps, which
    ties the network to one size of frames."""
    use_bias: bool = True
    """``convlstm`` only: adds a bias to the gates."""
    forget_bias: float = 1.0
    """LSTMs only: initial bias of the forget gate."""
    concatenate: bool = True
    """``encoder_forecaster`` only: the frames read all forecasting layers, not the last alone."""
    dtype: str = "float32"
    """Of the convolutions: ``float32`` or ``bfloat16``."""
    remat_steps: int = runtime(0)
    """Steps in a segment whose activations are recomputed for the gradient; 0: all are kept. Steps
    that are left over need memory of their own: best a divisor of T - 1, or one with a small
    rest."""
    remat_outer_steps: int = runtime(0)
    """Steps in a segment of such segments, a multiple of ``remat_steps``; in it their states are
    recomputed, too, by a second forward pass. 0: all states between segments are kept."""
    unroll: int = runtime(1)
    """Steps in each iteration of the scan."""


def make_forecaster(
    config: ForecasterConfig,
    channels: int,
    *,
    logits: bool = False,
    stack: nn.Module | None = None,
    field: str = "model",
) -> NextFrameForecaster | EncoderForecaster:
    """Returns the network that a configuration describes.

    Args:
      config: the configuration.
      channels: C, of a frame.
      logits: predictions are logits, see ``NextFrameForecaster``.
      stack: a ``FrameStack`` of one's own for ``next_frame``, in place of the configured cells.
      field: the configuration's path, for errors.

    Raises:
      ValueError: an unknown name, a value out of range, a cell on vectors for ``next_frame``, or
        a linear one for ``encoder_forecaster``.

    >>> make_forecaster(ForecasterConfig(cell="convgru", features=(8,)), channels=1).patch_size
    4
    """
    if config.name not in FORECASTERS:
        near = nearest(config.name, FORECASTERS)
        raise ValueError(f"{field}.name: unknown {config.name!r}{near}")
    if config.peepholes not in PEEPHOLES:
        near = nearest(config.peepholes, PEEPHOLES)
        raise ValueError(f"{field}.peepholes: unknown {config.peepholes!r}{near}")
    if not config.features or min(config.features) < 1:
        raise ValueError(
            f"{field}.features: expected the widths of one or more layers, at least 1 each, "
            f"received {config.features}"
        )
    check_at_least(field, config, {"kernel_size": 1, "patch_size": 1})
    options = ScanOptions(
        unroll=config.unroll,
        remat_steps=config.remat_steps,
        remat_outer_steps=config.remat_outer_steps,
    )
    if config.name == "next_frame" and stack is not None:
        return NextFrameForecaster(stack, config.patch_size, channels, logits, options)
    make_cell = _make_cell(config, field)
    cell = make_cell(features=1)
    if config.name == "encoder_forecaster" and isinstance(cell, LinearCell):
        raise ValueError(
            f"{field}.cell: expected a cell with hidden-to-hidden kernels, as 'convlstm', for "
            f"'encoder_forecaster', whose first forecasting layer has no inputs, received "
            f"{config.cell!r}; 'next_frame' takes it"
        )
    if config.name == "encoder_forecaster":
        return EncoderForecaster(
            make_cell, config.features, config.patch_size, channels, config.concatenate, options
        )
    if cell.num_feature_axes != 3:
        raise ValueError(
            f"{field}.cell: expected a cell on feature maps, as 'convlstm', for 'next_frame', "
            f"received {config.cell!r}; 'encoder_forecaster' takes cells on vectors, too"
        )
    stack = StackedCells(make_cell, config.features)
    return NextFrameForecaster(stack, config.patch_size, channels, logits, options)


def _make_cell(config: ForecasterConfig, field: str) -> Callable[..., Any]:
    """Returns the constructor of the configured cell, called with ``features``."""
    recurrent = RecurrentConfig(
        config.cell, features=config.features[0], kernel_size=config.kernel_size
    )
    make = make_cell_type(recurrent, dtype=config.dtype, field=field)
    wanted = {
        "peepholes": config.peepholes != "none",
        "shared_peepholes": config.peepholes == "channel",
        "use_bias": config.use_bias,
        "forget_bias": config.forget_bias,
    }
    taken = parameters_of(make)
    return partial(make, **{name: value for name, value in wanted.items() if name in taken})
