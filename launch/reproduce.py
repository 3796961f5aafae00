r"""Lists the ledger of papers, and reproduces one of its rows.

    python -m launch.reproduce
    python -m launch.reproduce jsb_lstm --seeds=3 --root=/data

Without a name, all rows of ``experiments/results/ledger.csv`` are listed: the paper's figure, ours,
the verdict; ``--json`` has all columns, and ``--page=FILE`` writes an HTML page.

With a name, the commands of that row run for each seed, below ``--workdir``; ``--root`` is the
folder of the data, which may be moved. Seeds that are done are skipped and one that was stopped
goes on, so the same command resumes. After the last seed the row gets mean, standard deviation,
commit, device, hours and verdict of all seeds that are done in the workdir, and
``experiments/results/reproduced/NAME.json`` the figures of the seeds; so do the other rows with the
same commands. A figure of more seeds is replaced with ``--replace`` alone. ``--dry_run`` prints the
commands.

    python -m launch.reproduce jsb_lstm --seeds=3 --root=/data --slurm="--time=12:00:00 --gpus=1"

runs each seed as a task of a job array of ``launch.slurm``, whose options these are; the last task
to end writes the row. ``--share=I/N`` takes the seeds I, I + N, … alone, as a task does.

``--check`` fails, and says why, if a figure of the ledger is not that of the file that it names, if
a verdict does not follow, or if the page of the documentation is not that of the ledger;
``--update`` writes all of these.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flaxnets.training.workdir import write_text_atomically
from launch import program
from launch.ledger.page import build_page, fill_page, format_list
from launch.ledger.reproduction import (
    LEDGER_FILE,
    LEDGER_PAGE,
    check_data,
    check_seeds,
    commands_of,
    folder_of,
    read_results,
    run_seed,
    write_record,
)
from launch.ledger.rows import Row, filled, find_problems, find_row, read_ledger, write_ledger

SEEDS = flags.DEFINE_integer("seeds", 1, "Number of seeds, 0 and on.", lower_bound=1)
ROOT = program.define_path("root", "", "Folder of the data, as the commands of the rows name them.")
WORKDIR = program.define_path("workdir", "runs/reproduced", "Folder of all runs.")
SHARE = flags.DEFINE_string("share", "0/1", "I/N: the seeds I, I + N, … of a Slurm array's task I.")
SLURM = flags.DEFINE_string(
    "slurm", None, "Options of launch.slurm, as '--time=12:00:00 --gpus=1': submits the seeds."
)
REPLACE = flags.DEFINE_bool("replace", False, "Replace a row's figure of more seeds.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands, or Slurm's script, and end.")
LEDGER = program.define_path("ledger", "", "CSV file of the rows; empty: the repository's.")
JSON = flags.DEFINE_bool("json", False, "List the rows as JSON.")
PAGE = program.define_path("page", None, "HTML file for the page of the ledger.")
CHECK = flags.DEFINE_bool("check", False, "Check figures, verdicts and the documentation's page.")
UPDATE = flags.DEFINE_bool("update", False, "Write figures, verdicts and that page from the files.")

REPOSITORY = program.ROOT / LEDGER_FILE
DOCUMENTATION = program.ROOT / LEDGER_PAGE


def main(argv: Sequence[str]) -> int:
    """Lists, checks, writes or reproduces; returns the exit code."""
    if len(argv) > 1:
        raise ValueError(f"expected the name of one row, received {' '.join(argv)}")
    path = Path(LEDGER.value) if LEDGER.value else REPOSITORY
    rows = read_ledger(path)
    if argv:
        return _reproduce(find_row(rows, argv[0]), rows, path)
    if UPDATE.value:
        rows = [filled(row, path.parent) for row in rows]
        _write(path, rows)
        print(path)
    if CHECK.value:
        return _check(path, rows)
    if PAGE.value:
        write_text_atomically(Path(PAGE.value), build_page(rows))
        print(PAGE.value)
    elif JSON.value:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1, ensure_ascii=False))
    elif not UPDATE.value:
        print(format_list(rows))
    return 0


def _write(path: Path, rows: Sequence[Row]) -> None:
    """Writes the ledger and, if it is the repository's, the page of the documentation."""
    write_ledger(path, rows)
    if _has_page(path):
        page = DOCUMENTATION.read_text(encoding="utf-8")
        write_text_atomically(DOCUMENTATION, fill_page(page, rows))


def _has_page(path: Path) -> bool:
    return path.resolve() == REPOSITORY and DOCUMENTATION.is_file()


def _check(path: Path, rows: Sequence[Row]) -> int:
    """Prints what is wrong with the ledger; returns the exit code."""
    problems = find_problems(rows, path.parent)
    if _has_page(path):
        page = DOCUMENTATION.read_text(encoding="utf-8")
        if fill_page(page, rows) != page:
            problems.append(
                f"{DOCUMENTATION.relative_to(program.ROOT)}: expected the tables of the ledger, "
                "received others; python -m launch.reproduce --update writes them"
            )
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{len(rows)} rows agree with their files")
    return 1 if problems else 0


def _reproduce(row: Row, rows: Sequence[Row], path: Path) -> int:
    """Runs the seeds of a row that are left, and writes the row; returns the exit code."""
    index, count = program.parse_share(SHARE.value)
    folder = Path(WORKDIR.value) / folder_of(row, rows)
    same = [each for each in rows if each.command == row.command]
    known = {result["seed"] for result in read_results(folder, row)} | set(range(SEEDS.value))
    if not (REPLACE.value or DRY_RUN.value):
        check_seeds(same, len(known))
    if SLURM.value is not None:
        check_data(row, ROOT.value)
        return _submit(row)
    if DRY_RUN.value:
        for seed in range(index, SEEDS.value, count):
            place, root = str(folder / f"seed{seed}"), ROOT.value or "ROOT"
            for words in commands_of(row, workdir=place, root=root, seed=seed):
                print(shlex.join(words))
        return 0
    check_data(row, ROOT.value)
    for seed in range(index, SEEDS.value, count):
        code = run_seed(folder, row, seed, ROOT.value)
        if code:
            print(
                f"{row.name}, seed {seed}: ended with exit code {code}; the same command goes on",
                file=sys.stderr,
            )
            return code
    results = read_results(folder, row)
    done_seeds = {result["seed"] for result in results} & set(range(SEEDS.value))
    if len(done_seeds) < SEEDS.value:
        print(f"{len(done_seeds)} of {SEEDS.value} seeds are done; the last one writes the row")
        return 0
    done = {each.name: write_record(each, results, path.parent) for each in same}
    # Read anew: a row of another run may have been written in the meantime.
    _write(path, [done.get(each.name, each) for each in read_ledger(path)])
    print(format_list(list(done.values())))
    return 0


def _submit(row: Row) -> int:
    """Submits a job array with a task for each seed; returns the exit code of ``launch.slurm``."""
    paths = {"root": ROOT.value, "workdir": WORKDIR.value, "ledger": LEDGER.value}
    given = [f"--{name}={Path(path).absolute()}" for name, path in paths.items() if path]
    command = [
        *(sys.executable, "-m", "launch.slurm", *shlex.split(SLURM.value)),
        *(f"--array=0-{SEEDS.value - 1}", "--program=launch.reproduce", f"--job_name={row.name}"),
        *(["--dry_run"] if DRY_RUN.value else []),
        *("--", row.name, f"--seeds={SEEDS.value}", f"--share={{index}}/{SEEDS.value}"),
        *(["--replace"] if REPLACE.value else []),
        *given,
    ]
    return subprocess.run(command, cwd=program.ROOT, check=False).returncode


if __name__ == "__main__":
    program.run(main)
