r"""Table of metrics from the files of evaluations, with means and deviations over seeds.

    python -m launch.evaluate --workdir=runs/life_0 --split=test --out=runs/life_0.json
    python -m experiments.results.metric_table --out=runs/life.md --metrics=rmse,rmse_linear \
        --digits=2 "CNN + LSTM=runs/life_0.json,runs/life_1.json,runs/life_2.json"

Each argument is ``NAME=FILE,…``: a name of the row, and files of ``launch.evaluate --out``. Of
several files a cell has the mean and the sample standard deviation.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import app, flags

from experiments.results.write_results import format_rows
from flaxnets.configuration import local_path, nearest
from flaxnets.training.workdir import write_text_atomically


def read_row(argument: str) -> tuple[str, list[Mapping[str, float]]]:
    """Returns the name and the evaluations of an argument ``NAME=FILE,…``.

    Raises:
      ValueError: another form, or a file that does not exist.
    """
    name, _, paths = argument.rpartition("=")
    files = [Path(path) for path in paths.split(",")]
    if not name or not all(file.is_file() for file in files):
        raise ValueError(f"{argument}: expected NAME=FILE,… of evaluations that exist")
    return name, [json.loads(file.read_text()) for file in files]


def format_cell(metric: str, results: Sequence[Mapping[str, float]], digits: int) -> str:
    """Returns the metric, or its mean ± sample standard deviation over several evaluations.

    >>> format_cell("rmse", [{"rmse": 14.0}, {"rmse": 15.0}], 2)
    '14.50 ± 0.71'

    Raises:
      ValueError: an evaluation lacks the metric; names the nearest.
    """
    for result in results:
        if metric not in result:
            raise ValueError(f"--metrics: unknown {metric!r}{nearest(metric, result)}")
    values = [float(result[metric]) for result in results]
    mean = f"{statistics.fmean(values):,.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def make_table(arguments: Sequence[str], metrics: Sequence[str], digits: int) -> str:
    """Returns the table in Markdown; raises as ``read_row`` and ``format_cell``."""
    rows = []
    for argument in arguments:
        name, results = read_row(argument)
        cells = [format_cell(metric, results, digits) for metric in metrics]
        rows.append([name, *cells, f"{results[0]['examples']:,.0f}", str(len(results))])
    return format_rows(["", *metrics, "examples", "runs"], rows)


def define_flags() -> None:
    """Defines the flags of the program, not of a module that imports its functions."""
    flags.DEFINE_string("out", None, "File for the table, Markdown.", required=True)
    flags.DEFINE_list("metrics", None, "Metrics of the columns.", required=True)
    flags.DEFINE_integer("digits", 4, "Digits behind the point.", lower_bound=0)


def main(argv: Sequence[str]) -> None:
    """Writes the table."""
    values = flags.FLAGS
    try:
        table = make_table(argv[1:], values.metrics, values.digits)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    write_text_atomically(local_path("out", values.out), table)


if __name__ == "__main__":
    define_flags()
    app.run(main)
