"""Options of Cloud TPU slices for the tests."""

from typing import Any

from launch.clusters.cloud_tpu import TpuJob
from tests.launch.programs import MOVING_SHAPES


def options(**changes: Any) -> TpuJob:
    """Returns the options of the smallest slice, with changes."""
    given: dict[str, Any] = {
        "name": "smoke",
        "zone": "us-east5-b",
        "type": "v6e-1",
        "arguments": [MOVING_SHAPES, "--workdir=runs/smoke"],
    }
    return TpuJob(**{**given, **changes})
