r"""Compares families of networks over tasks, as the CNN, the RNN and both.

    python -m launch.compare --workdir=runs/compare
    python -m launch.compare --workdir=runs/compare --budget=full --data_root=DATA --processes=4

A study is a TOML file (``launch/comparison/study.py``): each family of networks on each task, with
equal numbers of parameters, the same steps, batches and early stopping, over several seeds; by
default ``experiments/studies/cnn_rnn_both.toml``. Each cell is a run of its own below the workdir,
as of ``launch.train``, with its result in ``result.json``; cells that are done are not repeated, so
the same command goes on after a kill. ``--processes`` trains several at once; the same command on
other machines that see the workdir takes the cells that no other one has, and ``--share=I/N`` those
with the numbers I, I + N, … alone, as of a Slurm array.

``comparison.html`` shows the figures and says when to take which; ``comparison.md`` has the table.
``--page`` writes both from what has ended so far. ``--search`` first looks for each family's
hyper-parameters with ``launch.sweep`` on the first seed, which ``WORKDIR/chosen.json`` keeps; else
those of the study's file hold.
"""

import dataclasses
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from flaxnets.training.workdir import write_text_atomically
from launch import program
from launch.clusters.local_job import LocalJob
from launch.comparison.cell import make_config, read_result, run_cell
from launch.comparison.page import write_page
from launch.comparison.study import BUDGETS, Cell, Study, read_study

STUDY = program.define_path(
    "study", str(program.ROOT / "experiments" / "studies" / "cnn_rnn_both.toml"), "TOML file."
)
WORKDIR = program.define_path("workdir", None, "Folder of all runs.", required=True)
BUDGET = flags.DEFINE_enum("budget", "small", BUDGETS, "Steps and seeds of the study's file.")
TASKS = flags.DEFINE_list("tasks", [], "Names of tasks; default: all.")
DATA_ROOT = program.define_path("data_root", "", "Folder of the data of tasks that need some.")
PROCESSES = flags.DEFINE_integer("processes", 1, "Trainings at a time.", lower_bound=1)
SHARE = flags.DEFINE_string("share", "0/1", "I/N: the cells I, I + N, … of a Slurm array's task I.")
SEARCH = flags.DEFINE_bool("search", False, "Search for each family's hyper-parameters first.")
PAGE_ONLY = flags.DEFINE_bool("page", False, "Write the page of what has ended, and end.")
LIST = flags.DEFINE_bool("list", False, "Print the cells and whether they are done, and end.")

CHOSEN = "chosen.json"

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs the cells that are left, and writes the page; returns the exit code."""
    program.refuse_arguments(argv)
    folder = Path(WORKDIR.value)
    study = read_study(
        Path(STUDY.value), BUDGET.value, data_root=DATA_ROOT.value, tasks=TASKS.value
    )
    index, count = program.parse_share(SHARE.value)
    study = _with_chosen(
        study, folder, searches=SEARCH.value and not (LIST.value or PAGE_ONLY.value)
    )
    if LIST.value:
        for number, cell in enumerate(study.cells()):
            state = "done" if read_result(folder, cell) else "open"
            print(f"{number:4}  {state}  {cell.folder}  {cell.spec}")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    if not PAGE_ONLY.value:
        for cell in study.cells():  # Before the first of them trains.
            make_config(cell).validate()
        code = _start(folder) if PROCESSES.value > 1 else _run(study, folder, index, count)
        if code:
            return code
    results = [result for cell in study.cells() if (result := read_result(folder, cell))]
    print(f"{len(results)} of {len(study.cells())} trainings ended")
    print(write_page(study, results, folder))
    return 0


def _run(study: Study, folder: Path, index: int, count: int) -> int:
    """Runs the cells of a share in this process; returns the exit code."""
    program.log_to(folder / "compare.log")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # Seeds compile the same programs.
        jax.config.update("jax_compilation_cache_dir", str((folder / "compiled").absolute()))
    cells = study.cells()[index::count]
    for number, cell in enumerate(cells, 1):
        logger.info("cell %d of %d", number, len(cells))
        code = run_cell(folder, cell)
        if code is not None:
            print("stopped by a signal; the same command goes on from there", file=sys.stderr)
            return code
    return 0


def _start(folder: Path) -> int:
    """Runs the cells in several processes, which take what no other one has."""
    words = [word for word in sys.argv[1:] if not word.lstrip("-").startswith("search")]
    command = [sys.executable, "-u", "-m", "launch.compare", *words, "--processes=1"]
    return LocalJob(
        [command] * PROCESSES.value, [{}] * PROCESSES.value, grace_seconds=math.inf
    ).run()


def _with_chosen(study: Study, folder: Path, *, searches: bool) -> Study:
    """Returns the study with the hyper-parameters that a search in this workdir chose."""
    path = folder / CHOSEN
    if searches and not path.exists():
        found: dict[str, dict[str, Any]] = {task.name: {} for task in study.tasks}
        for task in study.tasks:
            for family in task.variants:
                if task.search:
                    cell = Cell(task, family, study.seeds[0], task.ladder[0])
                    found[task.name][family] = _search(cell, folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, json.dumps(found, indent=1) + "\n")
    if not path.exists():
        return study
    chosen = json.loads(path.read_text())
    tasks = tuple(
        dataclasses.replace(task, chosen=chosen.get(task.name) or task.chosen)
        for task in study.tasks
    )
    return dataclasses.replace(study, tasks=tasks)


def _search(cell: Cell, folder: Path) -> dict[str, Any]:
    """Returns the fields that a grid of ``launch.sweep`` chose on the validation split."""
    from launch.sweeps.page import best_trials
    from launch.sweeps.study import Database, load_study

    workdir = folder / "search" / cell.task.name / cell.family
    command = [
        sys.executable,
        "-m",
        "launch.sweep",
        f"--config={cell.spec}",
        f"--workdir={workdir}",
        "--sampler=grid",
        *[f"--space={field}={values}" for field, values in cell.task.search.items()],
        *[f"--config.{field}={value}" for field, value in cell.overrides().items()],
    ]
    subprocess.run(command, check=True, cwd=program.ROOT)
    database = Database(f"sqlite:///{(workdir / 'study.db').absolute()}")
    try:
        best = best_trials(load_study(database, None))
    finally:
        database.close()
    if not best:
        raise ValueError(f"{workdir}: expected a trial that ended, received none")
    return dict(best[0].params)


if __name__ == "__main__":
    program.run(main)
