"""Meshes of simulated devices, and the context in which the trainer traces a program."""

from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh


def make_mesh(num_devices: int, kind: AxisType = AxisType.Auto) -> Mesh:
    """Returns a mesh with one axis, ``data``."""
    return Mesh(np.array(jax.devices()[:num_devices]), ("data",), axis_types=(kind,))


def tracing_on(mesh: Mesh) -> AbstractContextManager[Any]:
    """Returns a context in which traced programs know the mesh that shards their batch."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
