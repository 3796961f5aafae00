"""A run with averaged parameters and micro-batches under pmap, evaluated by jit."""

from pathlib import Path

import pytest

from flaxnets.inference.trained_model import TrainedModel
from flaxnets.training.loop import train
from flaxnets.training.metric_writer import read_metrics
from flaxnets.training.workdir import Workdir
from tests.flaxnets.training.tiny import TinyConfig


def test_the_checkpoint_is_used_as_it_was_evaluated(tmp_path: Path) -> None:
    config = TinyConfig(
        batch_size=16,
        num_steps=4,
        dropout_rate=0.0,
        strategy="pmap",
        accumulate_steps=2,
        ema_decay=0.5,
    )
    config.optimizer.learning_rate = 0.1
    with Workdir(tmp_path) as workdir:
        workdir.claim("tiny.py", config)
        train(config, workdir, show_progress=False)
    (recorded,) = [r for r in read_metrics(tmp_path) if r["split"] == "validation"]
    model = TrainedModel(config, workdir)
    # At this learning rate the loss of the parameters themselves differs.
    assert model.evaluate("validation")["loss"] == pytest.approx(recorded["loss"], rel=1e-5)
