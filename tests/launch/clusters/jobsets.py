"""Options of JobSets for the tests."""

from typing import Any

from launch.clusters.jobset import KubernetesJob, Volume
from tests.launch.programs import MOVING_SHAPES


def options(**changes: Any) -> KubernetesJob:
    """Returns the options of the smallest job, with changes."""
    given: dict[str, Any] = {
        "name": "smoke",
        "image": "flaxnets",
        "arguments": [MOVING_SHAPES, "--workdir=/runs/smoke"],
        "volumes": [Volume("runs", "/runs")],
    }
    return KubernetesJob(**{**given, **changes})
