"""Where arrays and compiled functions live: strategies that all give the same results."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxnets.training.batch_size import check_divisible
from flaxnets.training.config import nearest
from flaxnets.training.pmap import Pmap
from flaxnets.training.state import TrainState
from flaxnets.typing import Batch, PyTree

STRATEGIES = ("jit", "pmap", "single")
SHARDED_SIZE = 2**14
"""Numbers from which on an array is worth dividing: below, messages cost more than memory."""


class Strategy(Protocol):
    """How the devices share the work of a step.

    Attributes:
      devices: all of them, of all processes.
      axis_name: the mapped axis over which a step must sum by itself; None where a step sees whole
        batches.
    """

    devices: list[jax.Device]
    axis_name: str | None

    def check_batch_size(self, batch_size: int) -> None:
        """Raises ValueError where the devices cannot divide a batch evenly."""

    def shard(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """This process's rows of a batch, (B/processes,...), as compiled functions take them."""

    def place(self, state: TrainState) -> TrainState:
        """A state, the same in every process, on the devices as compiled functions take it.

        Args:
          state: arrays of the host, of one device, or as ``checkpoint_view`` gives them.
        """

    def place_variables(self, variables: PyTree) -> PyTree:
        """Linen's variables on the devices, as ``place`` puts those of a state."""

    def gather(self, params: PyTree) -> PyTree:
        """Within a compiled function: parameters, or their gradients, whole on each device."""

    def compile_train(
        self,
        step: Callable[[TrainState, Batch], tuple[TrainState, Any]],
        state: TrainState,
    ) -> Callable[[TrainState, Batch], tuple[TrainState, Any]]:
        """A step compiled for placed states, whose memory it reuses, and sharded batches.

        Args:
          step: pure, as ``make_train_step`` gives it for this strategy.
          state: of which only structure and shapes are read.

        Returns:
          The function of (state, batch) to the next state, placed, and sums on every device.
        """

    def compile_evaluation(
        self, evaluation_step: Callable[[PyTree, Batch], tuple[Any, PyTree]]
    ) -> Callable[[PyTree, Batch], tuple[Any, PyTree]]:
        """The evaluation of a batch, compiled for placed variables and sharded batches.

        Args:
          evaluation_step: pure, (variables, rows) to sums over the rows and outputs (rows,...).

        Returns:
          The function of (variables, batch) to sums over all rows and outputs of all rows, (B,...),
          both whole on every device.
        """

    def checkpoint_view(self, state: TrainState) -> TrainState:
        """A placed state as global arrays without an axis of devices, as checkpoints hold it."""


def make_strategy(name: str, *, fsdp: int = 1, devices: list[jax.Device] | None = None) -> Strategy:
    """The strategy of a name.

    Args:
      name: ``jit``, ``pmap``, or ``single``, which is ``jit`` on the first device alone.
      fsdp: devices that share one copy of the state; for ``jit``.
      devices: by default all.

    Raises:
      ValueError: an unknown name, an ``fsdp`` that does not divide the devices or that is not for
        the strategy, or a single device for several processes.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy: unknown {name!r}{nearest(name, STRATEGIES)}")
    if name == "jit":
        return DataParallel(devices, fsdp=fsdp)
    if fsdp != 1:
        raise ValueError(f"fsdp: expected 1 with the strategy {name!r}, received {fsdp}")
    if name == "pmap":
        return Pmap(devices)
    if jax.process_count() > 1:
        raise ValueError(
            f"strategy: expected 'jit' or 'pmap' with {jax.process_count()} processes, "
            "received 'single'"
        )
    return DataParallel((devices or jax.devices())[:1])


class DataParallel:
    """``jax.jit`` over a mesh (data × fsdp) of devices.

    Batches are divided along their first axis over both axes of the mesh. The program sees whole
    batches, so losses, gradients, BatchNorm statistics and random numbers are those of one device
    without further ado.

    The state is replicated over the axis ``data``. Over the axis ``fsdp`` each array is divided as
    ``partition`` says: parameters, moments of the optimizer and averages alike. A step gathers the
    parameters before it reads them (Rajbhandari et al., ZeRO, 1910.02054, section 5.3; there layer
    by layer, here all of them at once, so that no scan over time gathers in every turn).
    """

    axis_name: str | None = None

    def __init__(
        self,
        devices: list[jax.Device] | None = None,
        *,
        fsdp: int = 1,
        sharded_size: int = SHARDED_SIZE,
    ) -> None:
        """Lays the devices out, neighbours sharing a copy of the state.

        Args:
          devices: by default all, of all processes.
          fsdp: devices that share one copy.
          sharded_size: numbers from which on an array is divided.

        Raises:
          ValueError: ``fsdp`` does not divide the number of devices.
        """
        self.devices = list(jax.devices() if devices is None else devices)
        if fsdp < 1 or len(self.devices) % fsdp:
            raise ValueError(
                f"fsdp: expected a divisor of the {len(self.devices)} devices, received {fsdp}"
            )
        # Auto axes: under the default, Explicit ones, scans reject carries made of constants.
        self.mesh = Mesh(
            np.array(self.devices).reshape(-1, fsdp),
            ("data", "fsdp"),
            axis_types=(AxisType.Auto,) * 2,
        )
        self._fsdp, self._sharded_size = fsdp, sharded_size
        self._rows = NamedSharding(self.mesh, PartitionSpec(("data", "fsdp")))
        self._everywhere = NamedSharding(self.mesh, PartitionSpec())

    def check_batch_size(self, batch_size: int) -> None:
        """See ``Strategy``."""
        check_divisible(batch_size, len(self.devices))

    def shard(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """Global arrays (B,...), divided along the first axis."""
        return {
            name: jax.make_array_from_process_local_data(self._rows, np.asarray(value))
            for name, value in batch.items()
        }

    def shardings(self, tree: PyTree) -> PyTree:
        """Where the arrays of a state lie, a tree of ``NamedSharding`` shaped as ``tree``."""

        def sharding_of(leaf: Any) -> NamedSharding:
            spec = partition(leaf.shape, self._fsdp, self._sharded_size)
            return NamedSharding(self.mesh, spec)

        return jax.tree.map(sharding_of, tree)

    def place(self, state: TrainState) -> TrainState:
        """See ``Strategy``."""
        return jax.device_put(state, self.shardings(state))

    def place_variables(self, variables: PyTree) -> PyTree:
        """See ``Strategy``."""
        if jax.process_count() > 1:  # Arrays of one process's device cannot be sent to others'.
            variables = jax.tree.map(_to_host, variables)
        return jax.device_put(variables, self.shardings(variables))

    def replicate(self, tree: PyTree) -> PyTree:
        """The same values on every device."""
        return jax.device_put(tree, self._everywhere)

    def gather(self, params: PyTree) -> PyTree:
        """See ``Strategy``."""
        if self._fsdp == 1:
            return params
        return jax.lax.with_sharding_constraint(params, self._everywhere)

    def compile_train(
        self, step: Callable[[TrainState, Batch], tuple[TrainState, Any]], state: TrainState
    ) -> Callable[[TrainState, Batch], tuple[TrainState, Any]]:
        """See ``Strategy``."""
        placed = self.shardings(state)

        def known_to_be_divided(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
            with self._tracing():
                return step(state, batch)

        return jax.jit(
            known_to_be_divided,
            in_shardings=(placed, self._rows),
            out_shardings=(placed, self._everywhere),
            donate_argnums=0,
        )

    def compile_evaluation(
        self, evaluation_step: Callable[[PyTree, Batch], tuple[Any, PyTree]]
    ) -> Callable[[PyTree, Batch], tuple[Any, PyTree]]:
        """See ``Strategy``."""
        return self.compile(evaluation_step)

    def compile(self, function: Callable[[PyTree, Any], Any]) -> Callable[[PyTree, Any], Any]:
        """``function`` of (variables, batch), jitted.

        Args:
          function: pure; its first argument is placed or replicated, its second divided.

        Returns:
          The function whose results are whole on every device.
        """

        def gathered(variables: PyTree, batch: Any) -> Any:
            with self._tracing():
                return function(self.gather(variables), batch)

        return jax.jit(gathered, in_shardings=(None, self._rows), out_shardings=self._everywhere)

    def checkpoint_view(self, state: TrainState) -> TrainState:
        """The state itself."""
        return state

    def _tracing(self) -> AbstractContextManager[Any]:
        """Tells layers the mesh: those that loop over a batch let it whole where it is divided."""
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)


def _to_host(leaf: Any) -> Any:
    """An array of this process as NumPy's; one of all processes as it is."""
    is_own = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    return np.asarray(leaf) if is_own else leaf


def partition(shape: tuple[int, ...], fsdp: int, sharded_size: int = SHARDED_SIZE) -> PartitionSpec:
    """How ``fsdp`` devices share an array: along its largest axis that they divide evenly.

    Of equal axes the first one counts. Arrays of fewer than ``sharded_size`` numbers, and arrays
    without such an axis, are on every device.
    """
    divisible = [axis for axis, size in enumerate(shape) if size and size % fsdp == 0]
    if fsdp == 1 or not divisible or np.prod(shape) < sharded_size:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * largest, "fsdp")
