"""Type aliases of the whole package."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.typing

Array = jax.Array
Dtype = jax.typing.DTypeLike
PRNGKey = jax.Array
Carry = Any
"""Pytree of arrays: the state that a recurrent cell passes from one step to the next."""
PyTree = Any
Batch = Mapping[str, Array]
"""Arrays of one batch by name; ``data/batches.py`` gives keys, shapes and dtypes."""
Sums = dict[str, tuple[Array, Array]]
"""Metrics by name as (sum, count), float32 scalars; the division comes after the global sum."""

SCAN_REPORTS = "scan_reports"
"""Linen's collection that layers sow the reports of parallel scans into."""
