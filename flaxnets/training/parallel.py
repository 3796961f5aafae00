"""Where arrays and compiled functions live: strategies that all give the same results."""

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


# Which batches the devices can share.


def check_divisible(batch_size: int, num_devices: int) -> None:
    """Raises ValueError where the devices cannot divide a batch evenly."""
    if batch_size % num_devices:
        below = batch_size // num_devices * num_devices
        above = below + num_devices
        choice = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"batch_size: expected a multiple of the {num_devices} devices, received {batch_size}; "
            f"{choice} would do"
        )


# The strategy of ``jax.pmap``: each device runs the step on its own rows, and they sum.


class Pmap:
    """``jax.pmap`` over all devices of all processes.

    A device holds the whole state and sees its own rows, B / devices of them. What concerns the
    batch as a whole is summed over ``axis_name`` by the step: totals and counts of losses and
    metrics, gradients, and BatchNorm statistics. The figures are those of ``jit``, but for what is
    drawn at random: each device draws for its own rows, from a key of its own, so that masks of
    dropout, drawn captions and the pairs of mixup, which are then of one device, are others.
    """

    axis_name: str | None = "devices"

    def __init__(self, devices: list[jax.Device] | None = None) -> None:
        self.devices = list(jax.devices() if devices is None else devices)
        self._mesh = Mesh(np.array(self.devices), (self.axis_name,))
        # Arguments and results of pmap are arrays of this process.
        local = self._mesh.local_mesh
        self._num_local = local.size
        self._rows = NamedSharding(local, PartitionSpec(self.axis_name))
        self._everywhere = NamedSharding(local, PartitionSpec())

    def check_batch_size(self, batch_size: int) -> None:
        """See ``Strategy``."""
        check_divisible(batch_size, len(self.devices))

    def shard(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """Arrays (local devices, B / devices, ...) of this process."""

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
                leaf = leaf.addressable_data(0)  # A checkpoint's, replicated over all processes.
            return jax.device_put(leaf, self._everywhere)

        return jax.tree.map(put, variables)

    def gather(self, params: PyTree) -> PyTree:
        """The parameters themselves, which are whole."""
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
        # States and sums are the same on every device, which None says: they have no axis for it.
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


# Tells the parts of a network over which mapped axis of devices they sum.


def with_axis_name(model: nn.Module, axis_name: str | None) -> nn.Module:
    """The network whose every part with an attribute ``axis_name`` has this one.

    Such parts (BatchNorm, and encoders and decoders that hold what sums over a batch) are found in
    the attributes of modules, in their tuples, lists, mappings and partial functions. A part that
    several attributes share stays shared.

    Args:
      model: not bound to variables.
      axis_name: of ``jax.pmap`` or ``jax.shard_map``; None: the network as it is.
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
