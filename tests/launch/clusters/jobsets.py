"""Options of JobSets for the tests."""

from typing import Any

from launch.clusters.jobset import Options, Volume
from tests.launch.programs import MOVING_SHAPES


def options(**changes: Any) -> Options:
    """Options of the smallest job there is, with changes."""
    given: dict[str, Any] = {
        "name": "smoke",
        "image": "flaxnets",
        "arguments": [MOVING_SHAPES, "--workdir=/runs/smoke"],
        "volumes": [Volume("runs", "/runs")],
    }
    return Options(**{**given, **changes})
