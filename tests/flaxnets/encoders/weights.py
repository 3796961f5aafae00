"""Random variables drawn by NumPy, which is faster than compiling an initialisation."""

from typing import Any

from flax import traverse_util

from flaxnets.encoders.encoder import Encoder
from flaxnets.encoders.pretrained import fit_weights, weight_shapes
from tests.flaxnets.encoders.record_torchvision import draw_weight


def draw_state(encoder: Encoder) -> dict[str, Any]:
    """Returns a random ``state_dict`` for an encoder."""
    return {name: draw_weight(name, shape) for name, shape in weight_shapes(encoder).items()}


def draw_variables(encoder: Encoder) -> Any:
    """Returns random ``{"params", "batch_stats"}``, NumPy float32."""
    found, report = fit_weights(encoder, draw_state(encoder))
    assert not report
    return traverse_util.unflatten_dict(found)
