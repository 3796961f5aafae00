"""Strategies: placement of arrays on devices, and compilation for them; all give equal results.

``jit`` runs one program over a mesh of devices and sees whole batches; ``pmap`` runs a copy of the
program on each device, which sees its own rows, and sums over a named axis; ``single`` is ``jit``
on one device.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxnets.configuration import nearest
from flaxnets.training.state import TrainState
from flaxnets.typing import Batch, PyTree

STRATEGIES = ("jit", "pmap", "single")
SHARDED_SIZE = 2**14
"""Least number of elements of an array that FSDP shards; for smaller ones the messages cost more
than the memory that is saved."""


class Strategy(Protocol):
    """Placement of arrays on devices, and compilation of functions of them.

    Attributes:
      devices: all devices, of all processes.
      axis_name: mapped axis over which a step must sum explicitly; None if it sees whole batches.
    """

    devices: list[jax.Device]
    axis_name: str | None

    def check_batch_size(self, batch_size: int) -> None:
        """Raises ValueError if the devices cannot share a batch evenly."""

    def shard(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """Returns a batch sharded over the devices, from this process's rows (B/processes,...)."""

    def place(self, state: TrainState) -> TrainState:
        """Returns a state on the devices, as compiled functions take it.

        Args:
          state: equal in every process; arrays of the host, of one device, or as
            ``checkpoint_view`` returns them.
        """

    def place_variables(self, variables: PyTree) -> PyTree:
        """Returns Linen's variables on the devices, placed as those of a state."""

    def gather(self, params: PyTree) -> PyTree:
        """Returns parameters, or their gradients, unsharded; called while tracing."""

    def compile_train(
        self,
        step: Callable[[TrainState, Batch], tuple[TrainState, Any]],
        state: TrainState,
    ) -> Callable[[TrainState, Batch], tuple[TrainState, Any]]:
        """Compiles a training step.

        Args:
          step: pure function of ``make_train_step`` for this strategy.
          state: only its structure and shapes are read.

        Returns:
          The function of (placed state, sharded batch) to the next state, placed, and the sums,
          replicated. It donates the state: the arrays passed in cannot be read after the call.
        """

    def compile_evaluation(
        self, evaluation_step: Callable[[PyTree, Batch], tuple[Any, PyTree]]
    ) -> Callable[[PyTree, Batch], tuple[Any, PyTree]]:
        """Compiles the evaluation of a batch.

        Args:
          evaluation_step: pure function of (variables, rows) to sums over the rows and outputs
            (rows,...).

        Returns:
          The function of (placed variables, sharded batch) to the sums over all rows and the
          outputs (B,...) of all rows, both replicated.
        """

    def checkpoint_view(self, state: TrainState) -> TrainState:
        """Returns a placed state as global arrays without an axis of devices, for checkpoints."""


def make_strategy(name: str, *, fsdp: int = 1, devices: list[jax.Device] | None = None) -> Strategy:
    """Returns the strategy of a name.

    Args:
      name: ``jit``, ``pmap``, or ``single``, which is ``jit`` on the first device.
      fsdp: devices over which each copy of the state is sharded; needs ``jit``.
      devices: by default all.

    Raises:
      ValueError: an unknown name, an ``fsdp`` that does not divide the number of devices or that
        the strategy does not support, or ``single`` with several processes.
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

    Batches are sharded along their first axis over both axes of the mesh. The program is written
    for whole batches, so losses, gradients, BatchNorm statistics and random numbers are those of
    one device.

    The state is replicated over the axis ``data`` and sharded over the axis ``fsdp``, each array
    by ``partition``: parameters, optimizer moments and averages. A step gathers the parameters
    before it reads them (ZeRO, Rajbhandari et al., arXiv:1910.02054, section 5.3).

    Deviation: all parameters are gathered at once, not layer by layer, since a gather inside a scan
    over time would run at every time step.
    """

    axis_name: str | None = None

    def __init__(
        self,
        devices: list[jax.Device] | None = None,
        *,
        fsdp: int = 1,
        sharded_size: int = SHARDED_SIZE,
    ) -> None:
        """Makes the mesh; neighbouring devices share a copy of the state.

        Args:
          devices: by default all, of all processes.
          fsdp: devices over which each copy of the state is sharded.
          sharded_size: least number of elements of an array that is sharded.

        Raises:
          ValueError: ``fsdp`` does not divide the number of devices.
        """
        self.devices = list(jax.devices() if devices is None else devices)
        if fsdp < 1 or len(self.devices) % fsdp:
            raise ValueError(
                f"fsdp: expected a divisor of the {len(self.devices)} devices, received {fsdp}"
            )
        # Auto axes: with the default, Explicit ones, a scan rejects a carry made of constants,
        # whose sharding differs from that of the data.
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
        """Returns global arrays (B,...), sharded along the first axis."""
        return {
            name: jax.make_array_from_process_local_data(self._rows, np.asarray(value))
            for name, value in batch.items()
        }

    def shardings(self, tree: PyTree) -> PyTree:
        """Returns a ``NamedSharding`` for each array of a state, a tree shaped as ``tree``."""

        def sharding_of(leaf: Any) -> NamedSharding:
            spec = partition(leaf.shape, self._fsdp, self._sharded_size)
            return NamedSharding(self.mesh, spec)

        return jax.tree.map(sharding_of, tree)

    def place(self, state: TrainState) -> TrainState:
        """See ``Strategy``."""
        return jax.device_put(state, self.shardings(state))

    def place_variables(self, variables: PyTree) -> PyTree:
        """See ``Strategy``."""
        if jax.process_count() > 1:  # Only NumPy arrays can be put on other processes' devices.
            variables = jax.tree.map(_to_host, variables)
        return jax.device_put(variables, self.shardings(variables))

    def replicate(self, tree: PyTree) -> PyTree:
        """Returns the tree with each array whole on every device."""
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

        def with_mesh(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
            with self._tracing():
                return step(state, batch)

        return jax.jit(
            with_mesh,
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
        """Compiles a function of (variables, batch).

        Args:
          function: pure; its first argument is placed or replicated, its second one sharded.

        Returns:
          The compiled function; its results are replicated.
        """

        def gathered(variables: PyTree, batch: Any) -> Any:
            with self._tracing():
                return function(self.gather(variables), batch)

        return jax.jit(gathered, in_shardings=(None, self._rows), out_shardings=self._everywhere)

    def checkpoint_view(self, state: TrainState) -> TrainState:
        """Returns the state itself."""
        return state

    def _tracing(self) -> AbstractContextManager[Any]:
        """Shows the mesh to layers while tracing; one that loops over a batch reads it."""
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)


class Pmap:
    """``jax.pmap`` over all devices of all processes.

    Each device holds the whole state and sees its own rows, B / devices of them. The step sums over
    ``axis_name``: sums and counts of losses and metrics, gradients, and BatchNorm statistics.
    Results equal those of ``jit`` except for random numbers: each device draws from a key of its
    own for its own rows, so dropout masks, sampled captions and mixup pairs (within a device)
    differ.
    """

    axis_name: str | None = "devices"

    def __init__(self, devices: list[jax.Device] | None = None) -> None:
        self.devices = list(jax.devices() if devices is None else devices)
        self._mesh = Mesh(np.array(self.devices), (self.axis_name,))
        # pmap takes and returns arrays of this process alone.
        local = self._mesh.local_mesh
        self._num_local = local.size
        self._rows = NamedSharding(local, PartitionSpec(self.axis_name))
        self._everywhere = NamedSharding(local, PartitionSpec())

    def check_batch_size(self, batch_size: int) -> None:
        """See ``Strategy``."""
        check_divisible(batch_size, len(self.devices))

    def shard(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """Returns arrays (local devices, B / devices, ...) of this process."""

        def split(value: np.ndarray) -> jax.Array:
            value = np.asarray(value)
            return jax.device_put(value.reshape(self._num_local, -1, *value.shape[1:]), self._rows)

        return {name: split(value) for name, value in batch.items()}

    def place(self, state: TrainState) -> TrainState:
        """See ``Strategy``."""
        return self.place_variables(state)

    def place_variables(self, variables: PyTree) -> PyTree:
        """See ``Strategy``."""

        def put(leaf: Any) -> jax.Array:
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                leaf = leaf.addressable_data(0)  # Restored, replicated over processes.
            return jax.device_put(leaf, self._everywhere)

        return jax.tree.map(put, variables)

    def gather(self, params: PyTree) -> PyTree:
        """Returns the parameters themselves, which are not sharded."""
        return params

    def compile_train(
        self, step: Callable[[TrainState, Batch], tuple[TrainState, Any]], state: TrainState
    ) -> Callable[[TrainState, Batch], tuple[TrainState, Any]]:
        """See ``Strategy``."""
        del state
        return self._map(step, donate_argnums=0)

    def compile_evaluation(
        self, evaluation_step: Callable[[PyTree, Batch], tuple[Any, PyTree]]
    ) -> Callable[[PyTree, Batch], tuple[Any, PyTree]]:
        """See ``Strategy``."""

        def of_all_rows(variables: PyTree, batch: Batch) -> tuple[Any, PyTree]:
            sums, outputs = evaluation_step(variables, batch)
            outputs = jax.lax.all_gather(outputs, self.axis_name, tiled=True)  # (B,...)
            return jax.lax.psum(sums, self.axis_name), outputs

        return self._map(of_all_rows)

    def _map(self, function: Callable[..., Any], **options: Any) -> Any:
        # None: states and sums are replicated, without a leading axis of devices.
        return jax.pmap(
            function,
            self.axis_name,
            in_axes=(None, 0),
            out_axes=None,
            devices=self.devices,
            **options,
        )

    def checkpoint_view(self, state: TrainState) -> TrainState:
        """See ``Strategy``."""
        if jax.process_count() == 1:
            return state
        return multihost_utils.host_local_array_to_global_array(state, self._mesh, PartitionSpec())


def with_axis_name(model: nn.Module, axis_name: str | None) -> nn.Module:
    """Returns the network with ``axis_name`` set in every submodule that has this attribute.

    Such submodules sum over the batch (BatchNorm, and encoders and decoders that contain it). They
    are found in the attributes of modules, and in tuples, lists, mappings and partial functions
    there. A submodule that several attributes share stays shared.

    Args:
      model: not bound to variables.
      axis_name: axis of ``jax.pmap`` or ``jax.shard_map``; None: the network is returned unchanged.
    """
    if axis_name is None:
        return model
    made: dict[int, Any] = {}

    def renamed(value: Any) -> Any:
        if isinstance(value, nn.Module):
            if id(value) not in made:
                made[id(value)] = renamed_module(value)
            return made[id(value)]
        if isinstance(value, Mapping):
            return {name: renamed(part) for name, part in value.items()}
        if type(value) in (tuple, list):
            return type(value)(renamed(part) for part in value)
        if isinstance(value, functools.partial):
            keywords = {name: renamed(part) for name, part in value.keywords.items()}
            if "axis_name" in getattr(value.func, "__dataclass_fields__", {}):
                keywords["axis_name"] = axis_name
            return functools.partial(value.func, *map(renamed, value.args), **keywords)
        return value

    def renamed_module(module: nn.Module) -> nn.Module:
        names = [field.name for field in dataclasses.fields(module) if field.init]
        parts = {name: getattr(module, name) for name in names if name not in ("parent", "name")}
        changed = {name: renamed(part) for name, part in parts.items()}
        if "axis_name" in changed:
            changed["axis_name"] = axis_name
        return module.clone(**changed)

    return renamed(model)


def partition(shape: tuple[int, ...], fsdp: int, sharded_size: int = SHARDED_SIZE) -> PartitionSpec:
    """Returns the sharding of an array over ``fsdp`` devices: its largest axis that they divide.

    Of equal axes the first one is sharded. Arrays of fewer than ``sharded_size`` elements, and
    arrays without such an axis, are replicated.
    """
    divisible = [axis for axis, size in enumerate(shape) if size and size % fsdp == 0]
    if fsdp == 1 or not divisible or np.prod(shape) < sharded_size:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * largest, "fsdp")


def check_divisible(batch_size: int, num_devices: int) -> None:
    """Raises ValueError if a batch cannot be split evenly over the devices."""
    if batch_size % num_devices:
        below = batch_size // num_devices * num_devices
        above = below + num_devices
        choice = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"batch_size: expected a multiple of the {num_devices} devices, received {batch_size}; "
            f"{choice} would do"
        )


def _to_host(leaf: Any) -> Any:
    """Returns an array of this process as a NumPy array, a global one unchanged."""
    is_own = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    return np.asarray(leaf) if is_own else leaf
