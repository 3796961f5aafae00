r"""Table of the numbers of parameters of the networks that predict frames, without data.

    python -m experiments.results.parameter_table --out=runs/parameters.md

A row for each variant of ``experiments/conv_lstm.py`` and ``predrnn.py`` that a paper or a
reference implementation has, for Moving MNIST: frames of 64×64 pixels and one channel. Only the
shapes of the parameters are made.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments import conv_lstm, predrnn
from experiments.frames.config import FRAMES_FILE, FramePredictionConfig
from flaxnets.configuration import local_path
from flaxnets.training.state import count_parameters
from flaxnets.training.workdir import write_text_atomically

FRAME_SHAPE = (64, 64, 1)
NETWORKS = {
    "FC-LSTM, 2048-2048": (conv_lstm, "fc_lstm"),
    "1 layer, 256": (conv_lstm, "layers1"),
    "2 layers, 128-128": (conv_lstm, "layers2"),
    "3 layers, 128-64-64": (conv_lstm, None),
    "OpenSTL's ConvLSTM-S": (conv_lstm, "openstl"),
    "PredRNN": (predrnn, None),
    "PredRNNv2": (predrnn, "v2"),
}
"""Experiment and variant of each row."""


def count(config: FramePredictionConfig) -> int:
    """Returns the number of parameters of an experiment's network on Moving MNIST."""
    with tempfile.TemporaryDirectory() as folder:
        saved = {"frame_shape": FRAME_SHAPE, "scaling": None}
        (Path(folder) / FRAMES_FILE).write_text(json.dumps(saved))
        config.load_assets(Path(folder))
    frames = config.data.num_inputs + config.data.num_outputs
    batch: Any = {"frames": np.zeros((1, frames, *FRAME_SHAPE), np.uint8)}
    model, task = config.make_model(), config.make_task()
    variables = jax.eval_shape(lambda key: task.initialize(model, key, batch), jax.random.key(0))
    return count_parameters(variables["params"])


def make_table() -> str:
    """Returns the table in Markdown."""
    counts = {
        name: count(experiment.get_config(variant))
        for name, (experiment, variant) in NETWORKS.items()
    }
    lines = [f"| {name} | {number:,} |" for name, number in counts.items()]
    return "\n".join(["| network | parameters |", "| --- | --- |", *lines]) + "\n"


def define_flags() -> None:
    """Defines the flags of the program, not of a module that imports its functions."""
    flags.DEFINE_string("out", None, "File for the table, Markdown.", required=True)


def main(argv: Sequence[str]) -> None:
    """Writes the table."""
    write_text_atomically(local_path("out", flags.FLAGS.out), make_table())


if __name__ == "__main__":
    define_flags()
    app.run(main)
