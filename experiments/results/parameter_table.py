r"""Table of the numbers of parameters of networks whose papers print them, without data.

    python -m experiments.results.parameter_table --page=moving_mnist --out=runs/parameters.md

``moving_mnist``: a row for each variant of ``experiments/conv_lstm.py`` and ``predrnn.py`` that a
paper or a reference implementation has, for frames of 64×64 pixels and one channel.
``text_lines``: ``experiments/crnn_text_lines.py:paper`` for the characters of the paper's lexicons.
Only the shapes of the parameters are made.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments import conv_lstm, crnn_text_lines, predrnn
from experiments.frames.config import FRAMES_FILE, FramePredictionConfig
from experiments.results.write_results import format_rows
from flaxnets.configuration import local_path
from flaxnets.models.column_crnn import make_column_crnn
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
"""Experiment and variant of each row of Moving MNIST."""
CHARACTERS = 36
"""Letters, of one case, and digits, which the recogniser of 1507.05717 tells apart."""
PAGES = ("moving_mnist", "text_lines")


def count_recogniser(config: crnn_text_lines.CRNNTextLinesConfig) -> int:
    """Returns the number of parameters of a recogniser of lines of text."""
    network = make_column_crnn(config.model, CHARACTERS + 1, config.data.height)
    lines = np.zeros((1, config.data.height, 100, 1), np.uint8)
    widths = np.full(1, lines.shape[2])
    variables = jax.eval_shape(
        lambda key: network.init(key, lines, lengths=widths, train=False), jax.random.key(0)
    )
    return count_parameters(variables["params"])


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


def make_table(page: str) -> str:
    """Returns the table of a page in Markdown."""
    if page == "text_lines":
        counts = {"CRNN": count_recogniser(crnn_text_lines.get_config("paper"))}
    else:
        counts = {
            name: count(experiment.get_config(variant))
            for name, (experiment, variant) in NETWORKS.items()
        }
    rows = [[name, f"{number:,}"] for name, number in counts.items()]
    return format_rows(["network", "parameters"], rows)


def define_flags() -> None:
    """Defines the flags of the program, not of a module that imports its functions."""
    flags.DEFINE_string("out", None, "File for the table, Markdown.", required=True)
    flags.DEFINE_enum("page", PAGES[0], PAGES, "Page of the table.")


def main(argv: Sequence[str]) -> None:
    """Writes the table."""
    write_text_atomically(local_path("out", flags.FLAGS.out), make_table(flags.FLAGS.page))


if __name__ == "__main__":
    define_flags()
    app.run(main)
