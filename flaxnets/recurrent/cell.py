"""What a recurrent cell is to the layers that scan it.

A cell's work at one step of time falls into three parts, and a layer treats each in its own way:

- ``project`` is all that does not depend on the carry. It runs over all steps at once, as one large
  product before the scan.
- The products of hidden states with kernels are what the scan spends its time on. A cell asks for
  them by name through ``recur``, so that the layer can put off their weight gradients until after
  the scan (``backward.py``).
- The rest of ``step`` is arithmetic entry by entry.
"""

from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.recurrent.matmul import ScanWeights, affine, split_addends
from flaxnets.typing import (
    Array,
    Carry,
    Dtype,
    PRNGKey,
)

PROJECTION = "projection"
"""The name of a kernel that does not read the carry, but makes the output from the step's state."""


class Weights(NamedTuple):
    """A cell's parameters by the part of a step that reads them; each a dictionary by name."""

    input: dict[str, Array]
    """Read by ``project``."""
    hidden: dict[str, Array]
    """Kernels that ``recur`` multiplies with: (F,G), or (h,w,F,G) for convolutional cells."""
    bias: dict[str, Array]
    """(G,), added by ``recur`` to the product of that name."""
    pointwise: dict[str, Array]
    """Read by ``step``, entry by entry: peepholes, scales."""


class Recur(Protocol):
    """The products of hidden states with the kernels of ``Weights.hidden``."""

    def __call__(self, name: str, hidden: Array) -> Array:
        """``hidden`` times kernel ``name``, with bias, and with the projected inputs of that name.

        Each name is asked for once a step.
        """


class Cell(Protocol):
    """What ``scan_cell`` needs of a cell.

    Only ``weights`` touches Linen's variables; the other methods are pure functions of their
    arguments and may be called under any transformation of JAX.
    """

    features: int
    dtype: Dtype

    @property
    def num_feature_axes(self) -> int:
        """Axes of an input after those of batch and time: 1, or 3 for maps."""

    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """The parameters, made at the first call for inputs of shape (..., D) or (...,H,W,C)."""

    def initialize_carry(self, rng: PRNGKey | None, input_shape: tuple[int, ...]) -> Carry:
        """The carry before the first step, zeros, for inputs (B,D) or (B,H,W,C).

        The signature is that of Flax's cells; ``rng`` is not read.
        """

    def project(self, weights: dict[str, Array], inputs: Array) -> dict[str, Array]:
        """Inputs (..., D) of any number of steps, times ``Weights.input``: arrays (..., G) by name.

        Those named like a kernel of ``Weights.hidden`` are added to its product by ``recur``, the
        others are handed to ``step``.
        """

    def step(
        self, weights: dict[str, Array], recur: Recur, carry: Carry, projected: dict[str, Array]
    ) -> tuple[Carry, Array]:
        """One step of time.

        Args:
          weights: ``Weights.pointwise``.
          recur: the products with ``Weights.hidden``.
          carry: as ``initialize_carry`` makes it.
          projected: what ``project`` gave for this step and ``recur`` does not add.

        Returns:
          The new carry and the output (B,...,F).
        """


class CellModule(nn.Module):
    """The attributes of a cell, and one step of it as Flax's cells have it.

    Attributes:
      features: F, width of the hidden state.
      dtype: of the products and of the outputs. What adds up over time is at least float32.
      param_dtype: of the parameters.
    """

    features: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def num_feature_axes(self) -> int:
        """1: vectors."""
        return 1

    @property
    def state_dtype(self) -> Dtype:
        """Of states that add up over many steps."""
        return jnp.promote_types(self.dtype, jnp.float32)

    def __call__(self: Any, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """One step: the carry and inputs (B,D) or (B,H,W,C) to the new carry and the output.

        Raises:
          ValueError: inputs of another rank or of integers.
        """
        check_inputs(inputs, "B", self.num_feature_axes)
        weights = self.weights(inputs.shape)
        scanned = ScanWeights(weights.hidden, weights.bias, weights.pointwise)
        addends, others = split_addends(scanned, self.project(weights.input, inputs))

        def recur(name: str, hidden: Array) -> Array:
            return affine(scanned, addends, name, hidden)

        return self.step(weights.pointwise, recur, carry, others)


_MEMBERS = ("features", "dtype", "num_feature_axes", "weights", "initialize_carry")


def check_cell(name: str, cell: Any) -> None:
    """Refuses a class that no layer can scan.

    Args:
      name: the argument that the error names.
      cell: a cell, or the class of one.

    Raises:
      ValueError: neither a ``flax.linen.RNNCellBase``, nor with all members of ``Cell``, or of
        ``LinearCell``.
    """
    kind = cell if isinstance(cell, type) else type(cell)
    if issubclass(kind, nn.RNNCellBase):
        return
    members = set(dir(kind)) | set(getattr(kind, "__dataclass_fields__", ()))
    methods = (
        ("coefficients", "recur", "read") if "coefficients" in members else ("project", "step")
    )
    missing = [member for member in (*_MEMBERS, *methods) if member not in members]
    if missing:
        raise ValueError(
            f"{name}: expected a recurrent cell: a subclass of flax.linen.RNNCellBase, or a class "
            f"with the members of flaxnets.recurrent.cell.Cell, received {kind.__name__}, which "
            f"has no {', '.join(missing)}"
        )


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
    """

    def describe(carry: Carry) -> Carry:
        return jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", carry)

    if describe(carry) != describe(zeros):
        raise ValueError(f"initial_carry: expected {describe(zeros)}, received {describe(carry)}")
