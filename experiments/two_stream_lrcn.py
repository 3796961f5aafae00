r"""Two-stream LRCN: RGB and optical flow, each with an LSTM, fused late.

Donahue et al., arXiv:1411.4389 (v4), section 4.1. Flow as images: x, y and magnitude
(``data/video/flow.py``). The streams are trained apart, each by the paper's schedule:

    python -m data.flow /data/ucf101 --out=/data/ucf101_flow
    python -m launch.train --config=experiments/two_stream_lrcn.py --workdir=runs/rgb \
        --config.data.root=/data/ucf101
    python -m launch.train --config=experiments/two_stream_lrcn.py:flow --workdir=runs/flow \
        --config.data.root=/data/ucf101 --config.data.flow=/data/ucf101_flow
    python -m launch.evaluate --workdir=runs/rgb --split=test         and of runs/flow
    python -m experiments.two_stream_lrcn --rgb=runs/rgb --flow=runs/flow

Expected (paper, v4, mean of three splits): LRCN-fc6 68.20 % RGB, 77.28 % flow; fused 78.94 % with
weights ½, ½ and 82.34 % with ⅓, ⅔. Not reproduced: UCF101 was not available.

Settings: those of ``experiments/lrcn_ucf101.py``; flow trains for 70,000 steps, its rate is divided
by 10 every 20,000, its gradients are clipped at norm 15.

Deviations: those of ``experiments/lrcn_ucf101.py``; DIS instead of Brox's flow.

Variants: ``flow``; ``smoke``: both streams at once on the embedded data, with differences of frames
instead of flow, a few seconds; ``ut_interaction``: likewise on UT-Interaction, 64 units, weights ⅓
and ⅔ (``adapt_to_ut_interaction``), or ½ and ½ with ``halves,ut_interaction``; each network is
trained on its own loss.
"""

import dataclasses

import flax.linen as nn

from experiments.classification.flow_clips import FlowClassification, fuse_runs
from experiments.classification.video_clips import (
    adapt_to_ut_interaction,
    make_small,
    parse_variant,
)
from experiments.lrcn_ucf101 import LRCNConfig
from flaxnets.models.late_fusion import StreamNetworks
from flaxnets.tasks.video_classification import VideoClassification

THIRDS = (1 / 3, 2 / 3)


@dataclasses.dataclass
class TwoStreamLRCNConfig(FlowClassification, LRCNConfig):
    """Hyper-parameters of one stream of LRCN, or of both on cached features of ``data.streams``."""

    name: str = "LRCN"
    weights: tuple[float, ...] = THIRDS
    """Of the networks of ``data.streams`` in predictions, in their order."""

    def make_model(self) -> nn.Module:
        """Returns the network of a stream, or a network for each of ``data.streams``."""
        network = super().make_model()
        if len(self.data.streams) < 2:
            return network
        return StreamNetworks({name: network.clone() for name in self.inputs})

    def make_task(self) -> VideoClassification:
        """Returns classification at each step; the networks of streams are averaged."""
        weights = tuple(self.weights) if len(self.data.streams) > 1 else ()
        return dataclasses.replace(super().make_task(), network_weights=weights)


def get_config(variant: str | None = None) -> TwoStreamLRCNConfig:
    """Returns the configuration of a variant; None: the paper's RGB stream.

    Raises:
      ValueError: an unknown variant.
    """
    names = parse_variant("two_stream_lrcn", variant, ("flow", "halves"))
    config = TwoStreamLRCNConfig()
    if "flow" in names:
        config.data.images, config.num_steps = "flow", 70_000
        config.optimizer.decay_every, config.optimizer.clip_norm = 20_000, 15.0
    if "smoke" in names:
        make_small(config, "rgb_whole", "difference_whole")
    if "ut_interaction" in names:
        adapt_to_ut_interaction(config, "rgb_whole", "difference_whole")
        config.model.recurrent.features = 64
        config.name = "Two-stream LRCN, 1/3 and 2/3"
        if "halves" in names:
            config.name, config.weights = "Two-stream LRCN, 1/2 and 1/2", (0.5, 0.5)
    return config


def print_fusions(rgb: str, flow: str) -> None:
    """Prints the accuracy of both fusions of two runs, given by their workdirs."""
    try:
        for weights in ((0.5, 0.5), THIRDS):
            accuracy = fuse_runs((rgb, flow), weights)
            print(f"{weights[0]:.2f} RGB, {weights[1]:.2f} flow: {100 * accuracy:.2f} %")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    from absl import app, flags

    RGB = flags.DEFINE_string("rgb", None, "Workdir of the RGB stream.", required=True)
    FLOW = flags.DEFINE_string("flow", None, "Workdir of the flow stream.", required=True)
    app.run(lambda argv: print_fusions(RGB.value, FLOW.value))
