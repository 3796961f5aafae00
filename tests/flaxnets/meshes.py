"""Meshes of simulated devices, and programs that are told of them as the trainer tells."""

from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh


def mesh_of(num_devices: int, kind: AxisType = AxisType.Auto) -> Mesh:
    """A mesh of one axis, ``data``."""
    return Mesh(np.array(jax.devices()[:num_devices]), ("data",), axis_types=(kind,))


def told_of(mesh: Mesh) -> AbstractContextManager[Any]:
    """Where this is entered, what is traced knows over what it is divided."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
