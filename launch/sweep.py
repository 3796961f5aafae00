r"""Searches for the best configuration of an experiment, with Optuna.

    python -m launch.sweep --config=experiments/moving_shapes.py --workdir=runs/sweep \
        --space=optimizer.learning_rate=log:1e-4:1e-1 --space=model.recurrent.features=64,128,256 \
        --sampler=tpe --trials=16 --workers=2

``--space=FIELD=VALUES`` lets a field of the configuration vary (``launch/sweeps/space.py`` has all
forms); ``suggest(trial)`` of ``--space_file=FILE.py`` draws values that depend on each other. Other
fields are set as for ``launch.train``. Each trial is a run in ``WORKDIR/trialNNNN``, which
``launch.runs`` lists; its value is the best of ``--objective`` on the split that chooses the best
checkpoint, never on the test split. ``--folds=K`` and ``--seeds=0,1`` make it the mean over runs on
folds 1 to K of a cross-validation and over seeds.

The study is in ``WORKDIR/study.db``, or in the PostgreSQL database that ``--storage`` names. The
same command again, at the same time or later, on this machine or on others that see the workdir
(a Slurm array), joins it: together they finish ``--trials`` trials. Each trial is trained by one
process. If its worker is killed, Optuna misses the worker's heartbeats for ``--stale_seconds``, and
another worker retries the trial from its checkpoints; a trial whose worker was killed three times
fails. A trial that fails is recorded with its error. SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C save a
checkpoint, and the trial waits for the next worker. If this program is killed, its workers get
SIGTERM, and 12 s later SIGKILL.

When all trials have ended, ``WORKDIR/sweep.html`` shows them; ``--page`` writes it before. The exit
codes are those of ``launch.train``.
"""

import contextlib
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from absl import flags
from ml_collections import config_flags

from launch import program
from launch.clusters.local_job import LocalJob
from launch.sweeps.page import summarize, write_page
from launch.sweeps.plan import Plan, make_plan
from launch.sweeps.study import (
    PRUNERS,
    SAMPLERS,
    Database,
    import_optuna,
    load_study,
    open_study,
)
from launch.sweeps.trial import Interrupted, Runner
from launch.sweeps.worker import is_done, raise_signals, work

if TYPE_CHECKING:
    import optuna

config_flags.DEFINE_config_file(
    "config", None, "The experiment: FILE[:variant]; --config.FIELD=VALUE overrides a field."
)
WORKDIR = program.define_path("workdir", None, "Folder of all trials.", required=True)
program.define_allow_code()
SPACE = flags.DEFINE_multi_string("space", [], "Field that varies: FIELD=VALUES.")
SPACE_FILE = program.define_path("space_file", None, "Python file with suggest(trial).")
OBJECTIVE = flags.DEFINE_multi_string(
    "objective", [], "METRIC:max or METRIC:min; by default the experiment's best_metric."
)
SAMPLER = flags.DEFINE_enum("sampler", "tpe", SAMPLERS, "Sampler of the values.")
SAMPLER_SEED = flags.DEFINE_integer("sampler_seed", 0, "Seed of the sampler.", lower_bound=0)
PRUNER = flags.DEFINE_enum("pruner", "none", PRUNERS, "Pruner, which stops bad trials early.")
TRIALS = flags.DEFINE_integer(
    "trials",
    None,
    "Trials of all workers; by default 16, or a grid's cells.",
    lower_bound=1,
)
WORKERS = flags.DEFINE_integer("workers", 1, "Processes that this command starts.", lower_bound=1)
GPUS_PER_WORKER = flags.DEFINE_integer(
    "gpus_per_worker", 0, "GPUs of each worker: worker i sees those from i × this on; 0: all."
)
STORAGE = flags.DEFINE_string(
    "storage", None, "Database: sqlite:///FILE or postgresql://…; by default WORKDIR/study.db."
)
STUDY = flags.DEFINE_string("study", None, "Name of the study; by default the workdir's.")
FOLDS = flags.DEFINE_integer("folds", 0, "Folds of a cross-validation; 0: none.", lower_bound=0)
SEEDS = flags.DEFINE_list("seeds", [], "Seeds of each trial; by default the experiment's.")
MAX_FAILURES = flags.DEFINE_integer(
    "max_failures", 5, "Number of failed trials in a row that ends the sweep.", lower_bound=1
)
STALE_SECONDS = flags.DEFINE_integer(
    "stale_seconds", 60, "Seconds without a heartbeat, after which a trial is retried.", 2
)
flags.adopt_module_key_flags(program)
PAGE = flags.DEFINE_bool("page", False, "Writes the page of the trials so far, and ends.")

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs the sweep, or writes its page; returns the exit code."""
    workdir = Path(WORKDIR.value)
    optuna = import_optuna()
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    if PAGE.value:
        with contextlib.closing(Database(_address(workdir, exists=True))) as database:
            study = load_study(database, STUDY.value)
            print(write_page(study, workdir, flags.FLAGS.allow_code))
        return 0
    if not flags.FLAGS["config"].value:
        raise ValueError("config: expected --config=FILE[:variant], received none")
    spec, config = program.experiment_of_flag(argv)
    plan = make_plan(
        spec,
        config,
        space=SPACE.value,
        space_file=Path(SPACE_FILE.value) if SPACE_FILE.value else None,
        objectives=OBJECTIVE.value,
        trials=TRIALS.value,
        sampler=SAMPLER.value,
        sampler_seed=SAMPLER_SEED.value,
        pruner=PRUNER.value,
        folds=FOLDS.value,
        seeds=_seeds(),
    )
    workdir.mkdir(parents=True, exist_ok=True)
    address = _address(workdir)
    with contextlib.closing(Database(address, stale_seconds=STALE_SECONDS.value)) as database:
        return _sweep(plan, database, workdir)


def _sweep(plan: Plan, database: Database, workdir: Path) -> int:
    """Creates or joins the study, and runs its trials; returns the exit code."""
    name = STUDY.value or workdir.resolve().name
    study = open_study(database, name, plan.settings, trials=plan.trials, cells=plan.cells)
    code = _start_workers() if WORKERS.value > 1 else _work(database, study, Runner(plan, workdir))
    if not is_done(study):
        return code
    # The file of the command line, which the study has just been compared with.
    allowed = [
        *flags.FLAGS.allow_code,
        str(program.ROOT / plan.settings.experiment.partition(":")[0]),
    ]
    print(summarize(study, workdir, allowed))
    print(write_page(study, workdir, allowed))
    return 0


def _address(workdir: Path, *, exists: bool = False) -> str:
    """Returns the database's address; raises FileNotFoundError if its file has to exist."""
    path = workdir / "study.db"
    if exists and not STORAGE.value and not path.is_file():
        raise FileNotFoundError(f"{path}: no study; expected the workdir of a sweep, or --storage")
    return STORAGE.value or f"sqlite:///{path.absolute()}"


def _seeds() -> list[int]:
    """Returns the seeds of the flag."""
    try:
        return [int(seed) for seed in SEEDS.value]
    except ValueError:
        raise ValueError(
            f"seeds: expected numbers with commas between, received {','.join(SEEDS.value)}"
        ) from None


def _work(database: Database, study: "optuna.Study", runner: Runner) -> int:
    """Runs trials in this process; returns the exit code."""
    program.log_to(runner.folder / "sweep.log")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # Folds, seeds and retries compile the same programs.
        jax.config.update("jax_compilation_cache_dir", str((runner.folder / "compiled").absolute()))
    raise_signals()
    try:
        done = work(database, study, runner.plan.settings, runner, max_failures=MAX_FAILURES.value)
    except Interrupted as error:
        number = int(error.signal)
        print(f"stopped by signal {number}; the same command goes on from there", file=sys.stderr)
        return 128 + number
    logger.info("%d trials ended in this process", done)
    return 0


def _start_workers() -> int:
    """Runs trials in several processes; a killed one does not end the others."""
    command = [sys.executable, "-u", "-m", "launch.sweep", *sys.argv[1:], "--workers=1"]
    environments = []
    for worker in range(WORKERS.value):
        first = worker * GPUS_PER_WORKER.value
        seen = range(first, first + GPUS_PER_WORKER.value)
        environments.append({"CUDA_VISIBLE_DEVICES": ",".join(map(str, seen))} if seen else {})
    job = LocalJob([command] * WORKERS.value, environments, grace_seconds=math.inf)
    return job.run()


if __name__ == "__main__":
    program.run(main)
