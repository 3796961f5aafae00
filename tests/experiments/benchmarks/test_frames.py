"""Frame prediction against PyTorch: equal predictions, losses, and parameters after steps."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import predrnn
from experiments.benchmarks import frames, train_torch_frames
from experiments.benchmarks.run import run_cases
from experiments.benchmarks.training_step import TrainingStep
from flaxnets.models.forecaster import NextFrameForecaster
from flaxnets.recurrent.st_lstm import PredRNNStack
from flaxnets.tasks.frame_prediction import FramePrediction
from flaxnets.training.config import OptimizerConfig

ROOT = Path(__file__).parents[3]
INPUTS, FRAMES, SIZE = 3, 6, 16
WIDTHS = (5, 5)
RATE = 1e-2


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Reads true frames 0 to 2 and 4."""

    def __call__(
        self, step: Any, key: Any, batch_size: int, num_inputs: int, num_frames: int
    ) -> Any:
        """Returns (B,T-1) bool."""
        row = [t < num_inputs or t == 4 for t in range(num_frames - 1)]
        return jax.numpy.asarray([row] * batch_size)


@pytest.mark.parametrize("cell", ["convlstm", "stlstm", "decoupled"])
def test_training_steps_equal_those_of_pytorch(cell: str) -> None:
    torch = pytest.importorskip("torch")
    from experiments.benchmarks import torch_frames

    decoupled = cell == "decoupled"
    weight = 0.5 if decoupled else 0.0
    model: NextFrameForecaster = frames.make_model(
        "convlstm" if cell[0] == "c" else "stlstm", WIDTHS
    )
    if decoupled:
        model = model.clone(stack=PredRNNStack(WIDTHS, decoupling=True))
    task = FramePrediction(
        INPUTS,
        auxiliary_weights=(("decoupling", weight),) * decoupled,
        sampling=Fixed(),
    )
    optimizer = OptimizerConfig(
        learning_rate=RATE, schedule="onecycle", cycle_momentum=True, rise_share=0.5
    )
    batch = frames.draw_frames(2, FRAMES, SIZE)
    ours = TrainingStep(model, task, optimizer, batch, num_steps=10)
    network = torch_frames.FrameNetwork(
        "convlstm" if cell[0] == "c" else "stlstm", WIDTHS, 5, 4, 1, decoupled
    )
    torch_frames.load_flax(network, ours.variables["params"])
    peer = torch_frames.TrainingStep(network, optimizer, 10, weight)
    images = torch.tensor(batch["frames"]).float() / 255
    use_truth = torch.tensor(np.asarray(Fixed()(0, None, 2, INPUTS, FRAMES)))
    predictions, _ = model.apply(
        ours.variables,
        np.asarray(images),
        num_inputs=INPUTS,
        use_truth=use_truth.numpy(),
        train=True,
    )
    np.testing.assert_allclose(
        predictions, network(images, use_truth)[0].detach(), rtol=1e-4, atol=1e-5
    )
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    losses = [(ours(), peer(images, use_truth)) for _ in range(3)]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-5)
    assert losses[2][0] < losses[0][0]
    # After three steps with Adam the parameters are the same, too.
    expected = torch_frames.FrameNetwork(network.cell, WIDTHS, 5, 4, 1, decoupled)
    torch_frames.load_flax(expected, ours.variables["params"])
    for name, own in expected.named_parameters():
        theirs = dict(network.named_parameters())[name].detach()
        assert float((theirs - start[name]).abs().max()) > 1e-4
        np.testing.assert_allclose(own.detach(), theirs, atol=2e-5, err_msg=name)


@pytest.mark.stress
def test_steps_are_measured() -> None:
    results = run_cases(frames.cases((4, 4), 1, 2, 3, 16), rounds=1, pause=0)
    assert len(results) == 2
    for row in results.values():
        assert next(iter(row)) == frames.OURS
        assert all(numbers["milliseconds"] > 0 for numbers in row.values())


@pytest.mark.subprocess
def test_pytorch_trains_on_our_batches(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "torch.json"
    command = [
        *(sys.executable, "-m", "experiments.benchmarks.train_torch_frames"),
        f"--config={ROOT / 'experiments' / 'predrnn.py'}:smoke",
        f"--out={out}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    results = json.loads(out.read_text())
    assert results["steps"] == 4
    assert results["examples"] == 6
    assert results["mse_frame"] > 0
    config = predrnn.get_config("smoke")
    (batch,) = config.make_data("test").batches()
    true = np.float64(batch["frames"][batch["mask"]]) / 255
    given = config.data.num_inputs
    copied = (true[:, given - 1 : given] - true[:, given:]) ** 2
    np.testing.assert_allclose(results["copy_mse_frame"], copied.sum((2, 3, 4)).mean(), rtol=1e-6)


def test_what_pytorch_has_no_network_for_is_refused() -> None:
    config = predrnn.get_config("smoke")
    train_torch_frames.check_config(config)
    config.model.cell = "convgru"
    with pytest.raises(ValueError, match=r"model: expected next_frame with one of"):
        train_torch_frames.check_config(config)
    with pytest.raises(ValueError, match="config: expected an experiment on frame prediction"):
        train_torch_frames.check_config(OptimizerConfig())
