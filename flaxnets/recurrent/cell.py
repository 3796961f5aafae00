"""Recurrent-cell interface.

A cell of ours splits a step of time into three parts, since a layer computes each in its own way:

- ``project``: the input projection x_t W. It does not depend on the carry, so that one large matmul
  covers all steps before the scan.
- The hidden projections h_{t-1} U, on which the scan spends its time. A cell calls them by name
  through ``project_hidden``, so that the layer can form their weight gradients once, after the scan
  (``scan_vjp.py``).
- The rest of ``step``: elementwise gates and state updates.

A cell of one's own follows ``Cell`` (``CellModule`` and ``DenseCell`` are base classes), subclasses
``LinearCell``, or is any ``flax.linen.RNNCellBase`` (``flax_cells.py``).
"""

from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.configuration import check_dtype_argument
from flaxnets.recurrent.matmul import ScanWeights, affine, split_projected
from flaxnets.typing import (
    Array,
    Carry,
    Dtype,
    PRNGKey,
)

PROJECTION = "projection"
"""Name of the kernel that projects the new hidden state to the output, as the LSTM's R does.

It does not read the carry, so that dropout of hidden states leaves its input alone.
"""
OUTPUT_GATE = "output_gate"
"""Name of the kernel by which the output gate reads the new states, as the ST-LSTM's does.

Dropout of hidden states leaves its input alone too.
"""


class Weights(NamedTuple):
    """A cell's parameters, grouped by the part of a step that uses them; dictionaries by name."""

    input: dict[str, Array]
    """Kernels of ``project``."""
    hidden: dict[str, Array]
    """Kernels of ``project_hidden``: (F,G), or (h,w,F,G) for convolutional cells."""
    bias: dict[str, Array]
    """(G,), added by ``project_hidden`` to the projection of that name."""
    pointwise: dict[str, Array]
    """Parameters of ``step``, used elementwise: peepholes, scales. A step casts them to the dtype
    of its states: wider parameters would widen the carry, which a scan refuses."""


class ProjectHidden(Protocol):
    """The hidden projections of one step, by name of the kernel in ``Weights.hidden``."""

    def __call__(self, name: str, hidden: Array) -> Array:
        """Returns h U + b plus the projected inputs of that name, (B,...,G).

        Args:
          name: of the kernel U; each name is called once a step.
          hidden: h, (B,...,F).
        """


class Cell(Protocol):
    """A recurrent cell as ``scan_cell`` uses it.

    Only ``weights`` creates or reads Linen's variables; the other methods are pure functions of
    their arguments and may be called under any transformation of JAX.
    """

    features: int
    dtype: Dtype

    @property
    def num_feature_axes(self) -> int:
        """Axes of an input after those of batch and time: 1 for vectors, 3 for feature maps."""

    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """Returns the parameters, created at the first call.

        Args:
          input_shape: (...,D), or (...,H,W,C) for cells on feature maps.
        """

    def initialize_carry(self, rng: PRNGKey | None, input_shape: tuple[int, ...]) -> Carry:
        """Returns the carry before the first step: zeros.

        Args:
          rng: not used; the signature is that of Flax's cells.
          input_shape: of one step: (B,D) or (B,H,W,C).
        """

    def project(self, weights: dict[str, Array], inputs: Array) -> dict[str, Array]:
        """Returns the projected inputs (...,G) of any number of steps, by name.

        ``project_hidden`` adds those named like a kernel of ``Weights.hidden`` to its projection;
        ``step`` receives the others.

        Args:
          weights: ``Weights.input``.
          inputs: (...,D) or (...,H,W,C).
        """

    def step(
        self,
        weights: dict[str, Array],
        project_hidden: ProjectHidden,
        carry: Carry,
        projected: dict[str, Array],
        /,
    ) -> tuple[Carry, Array]:
        """Returns the new carry and the output (B,...,F) of one step of time.

        Args:
          weights: ``Weights.pointwise``.
          project_hidden: the projections with ``Weights.hidden``.
          carry: as ``initialize_carry`` makes it.
          projected: the projected inputs of this step that ``project_hidden`` does not add.
        """


class CellModule(nn.Module):
    """Base class of cells: the attributes, and one step with the signature of Flax's cells.

    Attributes:
      features: F, width of the hidden state.
      dtype: of the matmuls and of the outputs. States that accumulate over time are at least
        float32.
      param_dtype: of the parameters.
    """

    features: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses the name of a dtype that does not exist."""
        check_dtype_argument(self.dtype)
        super().__post_init__()

    @property
    def num_feature_axes(self) -> int:
        """1: vectors."""
        return 1

    @property
    def elementwise(self) -> bool:
        """True if ``step``, but for its hidden projections, is elementwise over features.

        Then a parallel scan has the diagonals of its Jacobians from a few products (see
        ``newton_scan.py``); a wrong value costs time alone.
        """
        return False

    @property
    def state_dtype(self) -> Dtype:
        """Dtype of states that accumulate over many steps."""
        return jnp.promote_types(self.dtype, jnp.float32)

    def project_with_autodiff(self: Any, weights: dict[str, Array], inputs: Array) -> Any:
        """Returns ``project``, with derivatives that JAX takes in any mode.

        Cells whose ``project`` has a derivative in reverse mode only override this.
        """
        return self.project(weights, inputs)

    def __call__(self: Any, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Returns the new carry and the output of one step, for inputs (B,D) or (B,H,W,C).

        Raises:
          ValueError: inputs of another rank or of integers.
        """
        pointwise, project_hidden, projected = self.prepare_step(inputs)
        return self.step(pointwise, project_hidden, carry, projected)

    def prepare_step(
        self: Any, inputs: Array
    ) -> tuple[dict[str, Array], ProjectHidden, dict[str, Array]]:
        """Returns the arguments of ``step`` but for the carry, for inputs (B,D) or (B,H,W,C).

        Raises:
          ValueError: inputs of another rank or of integers.
        """
        check_inputs(inputs, "B", self.num_feature_axes)
        weights = self.weights(inputs.shape)
        scanned = ScanWeights(weights.hidden, weights.bias, weights.pointwise)
        added, rest = split_projected(scanned, self.project(weights.input, inputs))

        def project_hidden(name: str, hidden: Array) -> Array:
            return affine(scanned, added, name, hidden)

        return weights.pointwise, project_hidden, rest


def check_inputs(inputs: Array, leading: str, num_feature_axes: int) -> None:
    """Refuses inputs of another rank, or of integers.

    Args:
      inputs: to be checked.
      leading: the axes before those of features: ``B``, or ``B,T``.
      num_feature_axes: of the cell: 1 for vectors, 3 for feature maps.

    Raises:
      ValueError: naming the axes that the cell expects.
    """
    features = {1: "D", 2: "L,C", 3: "H,W,C"}.get(num_feature_axes, f"{num_feature_axes} axes")
    if inputs.ndim != len(leading.split(",")) + num_feature_axes:
        raise ValueError(
            f"inputs: expected ({leading},{features}), received shape {tuple(inputs.shape)}"
        )
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(f"inputs: expected float, received {inputs.dtype}")


def check_carry(carry: Carry, zeros: Carry) -> None:
    """Refuses an initial carry of another structure, shape or dtype than the cell's.

    Args:
      carry: to be checked.
      zeros: as the cell makes it.

    Raises:
      ValueError: naming both structures with their dtypes and shapes.
    """

    def describe(carry: Carry) -> Carry:
        return jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", carry)

    if describe(carry) != describe(zeros):
        raise ValueError(f"initial_carry: expected {describe(zeros)}, received {describe(carry)}")
