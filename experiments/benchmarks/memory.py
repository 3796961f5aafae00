"""Memory and time of a ConvLSTM's training step on a long clip, with rematerialisation.

The scan with ``ScanOptions.remat_steps`` of about √T is compared with both plain scans.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from experiments.benchmarks.layer_steps import Scanned, make_module_step
from experiments.benchmarks.timing import Case, Step
from flaxnets.recurrent.convolutional_cells import ConvLSTMCell
from flaxnets.recurrent.scan import ScanOptions

PLAIN = "plain scan"
AUTODIFF = "plain scan, gradients by autodiff"


def cases(
    num_frames: int = 128,
    batch_size: int = 1,
    size: int = 16,
    channels: int = 16,
    features: int = 64,
    kernel_size: int = 5,
) -> list[Case]:
    """Returns the training step on one clip; ours is the scan with rematerialisation."""
    shape = (batch_size, num_frames, size, size, channels)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    chunk = math.ceil(math.sqrt(num_frames))

    def make(options: ScanOptions) -> Step:
        cell = partial(ConvLSTMCell, features, kernel_size=(kernel_size, kernel_size))
        return make_module_step(lambda: Scanned(cell(), options), x, True)

    ways: dict[str, Callable[[], Step]] = {
        f"remat_steps={chunk}": partial(make, ScanOptions(remat_steps=chunk)),
        PLAIN: partial(make, ScanOptions()),
        AUTODIFF: partial(make, ScanOptions(gradients="autodiff")),
    }
    name = f"ConvLSTM, T={num_frames}, B={batch_size}, {size}×{size}, {channels}→{features}"
    return [Case(f"{name}, {kernel_size}×{kernel_size}, training step", ways, {AUTODIFF: 3}, False)]
