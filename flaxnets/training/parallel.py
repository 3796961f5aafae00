"""Where arrays and compiled functions live: one jitted program over a mesh of all devices."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxnets.typing import Batch, PyTree


class DataParallel:
    """``jax.jit`` over a mesh (data × fsdp) of all devices of all processes.

    Batches are divided along their first axis, state is replicated. The program sees whole
    batches, so losses, gradients and BatchNorm statistics are global without further ado.
    """

    def __init__(self, devices: list[jax.Device] | None = None) -> None:
        self.devices = list(jax.devices() if devices is None else devices)
        # Auto axes: under the default, Explicit ones, scans reject carries made of constants.
        self.mesh = Mesh(
            np.array(self.devices).reshape(-1, 1),
            ("data", "fsdp"),
            axis_types=(AxisType.Auto,) * 2,
        )
        self._rows = NamedSharding(self.mesh, PartitionSpec(("data", "fsdp")))
        self._everywhere = NamedSharding(self.mesh, PartitionSpec())

    def check_batch_size(self, batch_size: int) -> None:
        """Raises ValueError where the devices cannot divide a batch evenly."""
        count = len(self.devices)
        if batch_size % count:
            below, above = batch_size // count * count, -(-batch_size // count) * count
            choice = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"batch_size: expected a multiple of the {count} devices, received {batch_size}; "
                f"{choice} would do"
            )

    def shard(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """This process's rows of a batch as global arrays, divided along the first axis."""
        return {
            name: jax.make_array_from_process_local_data(self._rows, np.asarray(value))
            for name, value in batch.items()
        }

    def replicate(self, tree: PyTree) -> PyTree:
        """The same values on every device."""
        return jax.device_put(tree, self._everywhere)

    def compile(self, function: Callable[..., Any], *, donate_first: bool = False) -> Any:
        """``function`` of (state, batch), jitted; what it returns is replicated.

        Args:
          function: pure; its first argument is replicated, its second divided.
          donate_first: whether the first argument's memory may be used for the result.
        """
        return jax.jit(
            function,
            in_shardings=(self._everywhere, self._rows),
            out_shardings=self._everywhere,
            donate_argnums=(0,) if donate_first else (),
        )
