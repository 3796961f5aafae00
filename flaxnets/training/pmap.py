"""The strategy of ``jax.pmap``: each device runs the step on its own rows, and they sum."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxnets.training.batch_size import check_divisible
from flaxnets.training.state import TrainState
from flaxnets.typing import Batch, PyTree


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
