"""Options of slices of Cloud TPU."""

from typing import Any

from launch.clusters.cloud_tpu import Options
from tests.launch.programs import MOVING_SHAPES


def options(**changes: Any) -> Options:
    """Options of the smallest slice there is, with changes."""
    given: dict[str, Any] = {
        "name": "smoke",
        "zone": "us-east5-b",
        "type": "v6e-1",
        "arguments": [MOVING_SHAPES, "--workdir=runs/smoke"],
    }
    return Options(**{**given, **changes})
