r"""Training of a frame-by-frame network in PyTorch on the batches that ours trains on.

    python -m experiments.benchmarks.train_torch_frames \
        --config=experiments/conv_lstm.py:openstl_small --config.data.root=/data/mnist \
        --out=runs/torch.json

Network, data, seed, optimizer, schedule of inputs and number of steps are those of the experiment:
``conv_lstm.py:openstl``, ``openstl_small``, ``predrnn.py`` and its variants; ``--config.FIELD``
changes them, as in ``launch.train``. Both sides see the same sequences in the same order;
parameters start as PyTorch draws them, as they do in OpenSTL. The program prints the training loss
now and then, and at the end the errors a frame on the test split, computed as ours are: predictions
are read after the given frames, squared and absolute errors are summed over a frame's pixels. They
are written to ``--out`` as JSON, beside the time. Needs PyTorch (``pip install -e '.[bench]'``).
"""

import dataclasses
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.frames.config import FramePredictionConfig
from flaxnets.configuration import local_path
from flaxnets.tasks.frame_sampling import make_frame_sampling
from flaxnets.training.workdir import write_text_atomically

_CELLS = ("convlstm", "stlstm")


def check_config(config: Any) -> None:
    """Refuses an experiment that ``torch_frames`` has no network for.

    Raises:
      ValueError: another kind of experiment, network, cell or loss.
    """
    if not isinstance(config, FramePredictionConfig):
        raise ValueError(
            "config: expected an experiment on frame prediction, as experiments/conv_lstm.py:"
            f"openstl, received {type(config).__name__}"
        )
    model = config.model
    if model.name != "next_frame" or model.cell not in _CELLS or model.peepholes != "none":
        raise ValueError(
            f"model: expected next_frame with one of {_CELLS} without peepholes, received "
            f"{model.name} with {model.cell}, peepholes {model.peepholes}"
        )
    if model.cell == "convlstm" and model.use_bias:
        raise ValueError("model.use_bias: expected False, as in OpenSTL's ConvLSTM, received True")
    if config.loss_kind != "mse" or not config.all_frames:
        raise ValueError(
            "loss_kind: expected 'mse' of all frames, received "
            f"{config.loss_kind!r} with all_frames={config.all_frames}"
        )


def train(config: FramePredictionConfig, print_every: int = 100) -> dict[str, Any]:
    """Trains in PyTorch for ``config.num_steps`` steps and measures on the test split.

    Args:
      config: the experiment, as ``check_config`` takes it.
      print_every: steps between two lines of output.

    Returns:
      ``mse_frame`` and ``mae_frame`` of the test split, ``copy_mse_frame`` of its last given frame
      repeated, ``examples``, ``parameters``, ``steps``, ``seconds_per_step``.
    """
    import torch

    from experiments.benchmarks.torch_frames import FrameNetwork, TrainingStep

    check_config(config)
    torch.manual_seed(config.seed)
    model, channels = config.model, config.frame_shape[2]
    weight = config.auxiliary_weights.get("decoupling", 0.0)
    network = FrameNetwork(
        model.cell, model.features, model.kernel_size, model.patch_size, channels, weight > 0
    )
    step = TrainingStep(network, config.make_optimizer_config(), config.num_steps, weight)
    sampling, key = make_frame_sampling(config.sampling), jax.random.key(config.seed)
    num_inputs, seconds, losses = config.data.num_inputs, 0.0, []
    batches = config.make_data("train").batches()
    for number in range(config.num_steps):
        batch = next(batches)
        frames = _as_float(batch["frames"])
        rows, num_frames = frames.shape[:2]
        use_truth = np.broadcast_to(np.arange(num_frames - 1) < num_inputs, (rows, num_frames - 1))
        if sampling is not None:
            key, own = jax.random.split(key)
            use_truth = np.asarray(sampling(number, own, rows, num_inputs, num_frames))
        begin = time.perf_counter()
        losses.append(step(torch.tensor(frames), torch.tensor(np.array(use_truth))))
        seconds += time.perf_counter() - begin
        if (number + 1) % print_every == 0 or number + 1 == config.num_steps:
            mean = float(np.mean(losses[-print_every:]))
            print(f"step {number + 1}: loss {mean:.5f}", flush=True)
    return {
        **evaluate(network, config),
        "parameters": sum(each.numel() for each in network.parameters()),
        "steps": config.num_steps,
        "seconds_per_step": seconds / config.num_steps,
    }


def evaluate(network: Any, config: FramePredictionConfig, split: str = "test") -> dict[str, float]:
    """Returns the errors a frame of a split, as ``FramePrediction.evaluate`` computes them.

    Args:
      network: a ``torch_frames.FrameNetwork``.
      config: the experiment.
      split: of its data.
    """
    import torch

    network.eval()
    num_inputs = config.data.num_inputs
    totals, examples = dict.fromkeys(("mse_frame", "mae_frame", "copy_mse_frame"), 0.0), 0
    for batch in config.make_data(split).batches():
        frames = torch.tensor(_as_float(batch["frames"])[batch["mask"]])
        rows, num_frames = frames.shape[:2]
        use_truth = (torch.arange(num_frames - 1) < num_inputs).expand(rows, -1)
        with torch.inference_mode():
            predictions, _ = network(frames, use_truth)
        targets = frames[:, num_inputs:].double()
        errors = predictions[:, num_inputs - 1 :].double() - targets
        totals["mse_frame"] += float(errors.square().sum())
        totals["mae_frame"] += float(errors.abs().sum())
        last = frames[:, num_inputs - 1, None].double()
        totals["copy_mse_frame"] += float((last - targets).square().sum())
        examples += rows
    network.train()
    count = examples * config.data.num_outputs
    return {**{name: total / count for name, total in totals.items()}, "examples": examples}


def _as_float(frames: np.ndarray) -> np.ndarray:
    """Returns uint8 frames in [0,1], others as they are, float32."""
    scale = 255 if frames.dtype == np.uint8 else 1
    return np.asarray(frames, np.float32) / np.float32(scale)


if __name__ == "__main__":
    from absl import app, flags
    from ml_collections import config_flags

    CONFIG = config_flags.DEFINE_config_file("config", help_string="Experiment, FILE[:variant].")
    OUT = flags.DEFINE_string("out", "", "File for the figures, JSON; empty: printed only.")

    def main(argv: list[str]) -> None:
        """Trains, prints and writes the figures."""
        if len(argv) > 1:
            raise app.UsageError(f"expected flags only, received {' '.join(argv[1:])}")
        config = CONFIG.value
        check_config(config)
        config.validate()
        if importlib.util.find_spec("torch") is None:
            sys.exit("error: PyTorch is not installed; run: pip install -e '.[bench]'")
        results = {**train(config), "config": dataclasses.asdict(config)}
        text = json.dumps(results, indent=1)
        print(text)
        if OUT.value:
            write_text_atomically(Path(local_path("out", OUT.value)), text + "\n")

    app.run(main)
