"""The names of types that the whole package shares."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.typing

Array = jax.Array
Dtype = jax.typing.DTypeLike
PRNGKey = jax.Array
Carry = Any
"""A pytree of arrays: what a recurrent cell hands from one step to the next."""
PyTree = Any
Batch = Mapping[str, Array]
"""The arrays of one batch, by the names of the contracts in ``data/batches.py``."""
Sums = dict[str, tuple[Array, Array]]
"""Metrics as (sum, count), scalars float32; the division comes after the global sum."""
