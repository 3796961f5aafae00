"""Program that trains and evaluates by several strategies, as one of several processes.

python -m tests.flaxnets.training.figures_of_processes FOLDER STRATEGY/KIND/DTYPE … --coordinator=…
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app

from flaxnets.training.parallel import make_strategy
from launch import processes
from tests.flaxnets.training.strategies import figures


def main(argv: Sequence[str]) -> None:
    folder, *cases = argv[1:]
    with processes.joined():
        for name, kind, dtype in (case.split("/") for case in cases):
            with jax.enable_x64(dtype == "float64"):
                found = figures(make_strategy(name), kind, dtype)
            path = Path(folder) / f"{name}_{kind}_{dtype}_{jax.process_index()}.json"
            path.write_text(json.dumps(found))


if __name__ == "__main__":
    app.run(main)
