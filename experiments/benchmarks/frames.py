"""Training steps of frame prediction against PyTorch: OpenSTL's ConvLSTM and PredRNN.

The steps are complete: rollout with scheduled sampling, the mean squared error of all frames,
backward pass, Adam. Both sides have the same network (``torch_frames.py``). Ours is also measured
with rematerialised steps, and tells its peak memory. Gradients by automatic differentiation take
100 times as long on a CPU; the group ``convlstm`` compares them on a layer.
"""

import importlib.util
import math
from collections.abc import Callable
from functools import partial

import numpy as np

from experiments.benchmarks.timing import Case, Step
from experiments.benchmarks.training_step import TrainingStep
from flaxnets.models.forecaster import NextFrameForecaster, StackedCells
from flaxnets.recurrent.convolutional_cells import ConvLSTMCell
from flaxnets.recurrent.scan import ScanOptions
from flaxnets.recurrent.st_lstm import PredRNNStack
from flaxnets.tasks.frame_prediction import FramePrediction
from flaxnets.tasks.frame_sampling import ScheduledSampling
from flaxnets.training.config import OptimizerConfig

OURS, PYTORCH = "flaxnets", "PyTorch"
PATCH, CHANNELS, KERNEL = 4, 1, 5
OPTIMIZER = OptimizerConfig(name="adam", learning_rate=5e-4)


def draw_frames(batch_size: int, num_frames: int, size: int) -> dict[str, np.ndarray]:
    """Returns random frames (B,T,size,size,1) uint8 as a batch of frame prediction."""
    shape = batch_size, num_frames, size, size, CHANNELS
    return {
        "frames": np.random.default_rng(0).integers(0, 256, shape, np.uint8),
        "mask": np.ones(batch_size, bool),
        "index": np.arange(batch_size, dtype=np.int32),
    }


def make_model(
    cell: str, features: tuple[int, ...], options: ScanOptions | None = None
) -> NextFrameForecaster:
    """Returns OpenSTL's ConvLSTM or PredRNN.

    Args:
      cell: ``convlstm`` or ``stlstm``.
      features: widths of the layers, from below.
      options: of the scan over time; None: the defaults.
    """
    size = KERNEL, KERNEL
    stack: PredRNNStack | StackedCells
    if cell == "stlstm":
        stack = PredRNNStack(features, kernel_size=size)
    else:
        stack = StackedCells(partial(ConvLSTMCell, kernel_size=size, use_bias=False), features)
    return NextFrameForecaster(stack, PATCH, CHANNELS, options=options or ScanOptions())


def cases(
    features: tuple[int, ...] = (64, 64, 64),
    batch_size: int = 8,
    num_inputs: int = 10,
    num_outputs: int = 10,
    size: int = 64,
) -> list[Case]:
    """Returns the training steps of ConvLSTM and of PredRNN.

    Args:
      features: widths of the layers of both.
      batch_size: sequences of a step.
      num_inputs: frames that are given.
      num_outputs: frames that are predicted.
      size: height and width of a frame, pixels.
    """
    found = []
    num_frames = num_inputs + num_outputs
    chunk, outer = round((num_frames - 1) ** 0.5), math.ceil((num_frames - 1) ** 0.5)
    for title, cell in (("ConvLSTM", "convlstm"), ("PredRNN", "stlstm")):
        draw = partial(draw_frames, batch_size, num_frames, size)

        def ours(
            options: ScanOptions,
            cell: str = cell,
            draw: Callable[..., dict[str, np.ndarray]] = draw,
        ) -> Step:
            model = make_model(cell, features, options)
            task = FramePrediction(num_inputs, sampling=ScheduledSampling())
            return TrainingStep(model, task, OPTIMIZER, draw())

        ways: dict[str, Callable[[], Step]] = {
            OURS: partial(ours, ScanOptions()),
            f"flaxnets, remat_steps={chunk}": partial(ours, ScanOptions(remat_steps=chunk)),
            f"flaxnets, remat_steps=1, remat_outer_steps={outer}": partial(
                ours, ScanOptions(remat_steps=1, remat_outer_steps=outer)
            ),
        }
        if importlib.util.find_spec("torch") is not None:
            ways[PYTORCH] = partial(_torch_step, cell, features, draw, num_inputs)
        layers = f"{len(features)}×{features[0]}"
        name = f"{title} {layers}, patches of {PATCH}, {batch_size} sequences of {size}×{size}"
        found.append(Case(f"{name}, {num_inputs}→{num_outputs} frames, training step", ways))
    return found


def _torch_step(
    cell: str,
    features: tuple[int, ...],
    draw: Callable[[], dict[str, np.ndarray]],
    num_inputs: int,
) -> Step:
    import torch

    from experiments.benchmarks.torch_frames import FrameNetwork, TrainingStep

    frames = torch.tensor(draw()["frames"]).float() / 255
    # At the start of scheduled sampling nearly every frame is the true one.
    use_truth = torch.ones(frames.shape[0], frames.shape[1] - 1, dtype=torch.bool)
    network = FrameNetwork(cell, features, KERNEL, PATCH, CHANNELS)
    return partial(TrainingStep(network, OPTIMIZER, 1_000), frames, use_truth)
