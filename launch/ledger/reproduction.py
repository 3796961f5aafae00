"""Reproduction of a row of the ledger: its commands for each seed, their results, the new row.

The commands are those of the row's template, each a program of this repository in a process of its
own. What a seed has finished stays in ``seedN/result.json`` below the row's folder; a command that
was stopped goes on when it is started again, as a training does. Rows with equal commands share
their runs: one training gives all its metrics.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flaxnets.configuration import nearest
from flaxnets.training.metric_writer import RecordFile
from flaxnets.training.workdir import write_text_atomically
from launch import program
from launch.clusters.local_job import LocalJob
from launch.ledger.rows import RECORDS, Row, filled

RESULT, TIMES, METRICS = "result.json", "times.jsonl", "metrics.json"
CROSS_VALIDATION = "crossvalidation.json"
"""File of ``launch.crossvalidate``: of each method, fold and seed, which clips were right."""
SEPARATOR = "; "
"""Stands between the commands of a template."""
LEDGER_FILE, LEDGER_PAGE = "experiments/results/ledger.csv", "docs/reference/ledger.md"
"""The ledger of the repository, beside its pages of results, and its page of the documentation."""
WRITTEN = (LEDGER_FILE, f"experiments/results/{RECORDS}", LEDGER_PAGE)
"""Files and folders that a reproduced row changes, which is no change to the runs of the next."""


def commands_of(row: Row, *, workdir: str, root: str, seed: int | str) -> list[list[str]]:
    """Returns the words of each command of a row, ``python`` as it stands.

    Args:
      row: of the ledger.
      workdir: folder of the run, for ``{workdir}``; ``{out}`` is ``metrics.json`` in it.
      root: folder of the data, for ``{root}``.
      seed: for ``{seed}``.

    Raises:
      ValueError: a command that is not ``python -m MODULE …``.
    """
    values = {"workdir": workdir, "root": root, "seed": seed, "out": f"{workdir}/{METRICS}"}
    commands = []
    for text in row.command.split(SEPARATOR):
        words = [word.format(**values) for word in shlex.split(text)]
        if words[:2] != ["python", "-m"] or len(words) < 3:
            raise ValueError(f"{row.name}: command: expected python -m MODULE …, received {text!r}")
        commands.append(words)
    return commands


def check_data(row: Row, root: str) -> None:
    """Checks that the data of a row's commands are there.

    Raises:
      ValueError: no root, or nothing below it under the names of the template.
    """
    words = [word for text in row.command.split(SEPARATOR) for word in shlex.split(text)]
    wanted = sorted({word.partition("{root}/")[2] for word in words} - {""})
    if not wanted:
        return
    if not root:
        raise ValueError(
            f"{row.name}: needs {row.data} as {', '.join(wanted)} below --root, received no --root"
        )
    for name in wanted:
        if not (Path(root) / name).exists():
            raise ValueError(
                f"{row.name}: needs {row.data} as {Path(root) / name}, which is not there; --root "
                "names the folder that has it"
            )


def folder_of(row: Row, rows: Sequence[Row]) -> str:
    """Returns the name of a row's folder: the first row's with the same commands."""
    return next(other.name for other in rows if other.command == row.command)


def read_result(folder: Path, row: Row, seed: int) -> dict[str, Any] | None:
    """Returns the result of a seed; None if it is not done.

    Raises:
      ValueError: the result is that of other commands.
    """
    path = folder / f"seed{seed}" / RESULT
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if result["command"] != row.command:
        raise ValueError(
            f"{path}: expected the result of {row.command!r}, received that of "
            f"{result['command']!r}; take another --workdir"
        )
    return result


def read_results(folder: Path, row: Row) -> list[dict[str, Any]]:
    """Returns the results of all seeds that are done, in their order; raises as ``read_result``."""
    found = [re.fullmatch(r"seed(\d+)", path.parent.name) for path in folder.glob(f"*/{RESULT}")]
    results = [read_result(folder, row, seed) for seed in sorted(int(m[1]) for m in found if m)]
    return [result for result in results if result is not None]


def check_seeds(rows: Sequence[Row], count: int) -> None:
    """Refuses to replace figures of more seeds by those of fewer.

    Args:
      rows: of the ledger, whose figures would be replaced.
      count: seeds that will be done.

    Raises:
      ValueError: a row has the figure of more.
    """
    for row in rows:
        if row.ours and int(row.seeds or 1) > count:
            raise ValueError(
                f"{row.name}: the ledger has the figure of {row.seeds} seeds, and {count} would "
                f"replace it: give --seeds={row.seeds}, or --replace"
            )


def run_seed(folder: Path, row: Row, seed: int, root: str) -> int:
    """Runs the commands of a seed that is not done; returns the exit code of the last one.

    Args:
      folder: of the row.
      row: of the ledger.
      seed: of the run.
      root: folder of the data.

    Raises:
      ValueError: results of other commands, or none where the commands have ended well.
    """
    if read_result(folder, row, seed) is not None:
        return 0
    place = (folder / f"seed{seed}").absolute()
    place.mkdir(parents=True, exist_ok=True)
    # Seeds compile the same programs.
    cache = {"JAX_COMPILATION_CACHE_DIR": str((folder / "compiled").absolute())}
    environment = {} if "JAX_COMPILATION_CACHE_DIR" in os.environ else cache
    commit = program.describe_commit(WRITTEN)
    times = RecordFile(place / TIMES)
    for words in commands_of(row, workdir=str(place), root=os.path.abspath(root), seed=seed):
        command = [sys.executable, "-u", *words[1:]]
        start = time.monotonic()
        # The processes are independent of others: nothing is to be ended with this one.
        code = LocalJob([command], [environment], grace_seconds=math.inf).run()
        seconds = time.monotonic() - start
        times.append((json.dumps({"seconds": seconds, "code": code}) + "\n").encode())
        if code:
            times.close()
            return code
    times.close()
    result = {
        "command": row.command,
        "seed": seed,
        "metrics": read_metrics(place, row),
        "seconds": _total_seconds(place / TIMES),
        "commit": commit,
        "device": describe_device(),
    }
    write_text_atomically(place / RESULT, json.dumps(result, indent=1) + "\n")
    return 0


def _total_seconds(path: Path) -> float:
    """Returns the seconds of all calls, those that were stopped included."""
    total = 0.0
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # A line that a full disk has cut off.
            total += json.loads(line)["seconds"]
    return total


def read_metrics(place: Path, row: Row) -> dict[str, float]:
    """Returns the metrics that a row's commands have written: fractions, not percentages.

    Raises:
      ValueError: they have written none.
    """
    if (path := place / METRICS).is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        numbers = {name: math.nan if x is None else x for name, x in content.items()}
        return {name: x for name, x in numbers.items() if isinstance(x, (int, float))}
    if (path := place / CROSS_VALIDATION).is_file():
        # The first is the network; linear baselines follow.
        folds = next(iter(json.loads(path.read_text(encoding="utf-8")).values()))
        hits = [hit for seeds in folds.values() for each in seeds.values() for hit in each]
        return {"accuracy": statistics.fmean(hits)}
    raise ValueError(
        f"{row.name}: command: expected {METRICS} or {CROSS_VALIDATION} in {place}, received "
        "neither; the last command of a row writes {out}"
    )


def describe_device() -> str:
    """Returns the devices that programs see here, as ``1 × NVIDIA H100`` or ``2-core CPU``.

    A process of its own asks, since JAX would take a GPU's memory for this one.
    """
    code = "import jax; d = jax.devices(); print(len(d), d[0].platform, d[0].device_kind, sep='|')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, platform, kind = done.stdout.strip().splitlines()[-1].split("|")
    if platform == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"{cores}-core CPU"
    return f"{count} × {kind}"


def make_record(row: Row, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the record of a row from the results of its seeds.

    Raises:
      ValueError: results without the row's metric, of which the nearest is named, or with one
        that is not finite.
    """
    scale = 100 if row.unit == "%" else 1
    values = {}
    for result in results:
        if row.metric not in result["metrics"]:
            raise ValueError(
                f"{row.name}: metric: the runs have no {row.metric!r}"
                f"{nearest(row.metric, result['metrics'])}"
            )
        value = result["metrics"][row.metric]
        if not math.isfinite(value):
            raise ValueError(
                f"{row.name}: metric: expected a finite {row.metric}, received {value} of seed "
                f"{result['seed']}; the row is left as it is"
            )
        values[str(result["seed"])] = scale * value
    return {
        "name": row.name,
        "command": row.command,
        "split": row.split,
        "metric": row.metric,
        "unit": row.unit,
        "values": values,
        "spread": statistics.stdev(values.values()) if len(values) > 1 else None,
        "hours": statistics.fmean(result["seconds"] for result in results) / 3600,
        "commit": ", ".join(dict.fromkeys(result["commit"] for result in results)),
        "device": ", ".join(dict.fromkeys(result["device"] for result in results)),
    }


def write_record(row: Row, results: Sequence[dict[str, Any]], folder: Path) -> Row:
    """Writes the record of a row, and returns the row with its figures and verdict.

    Args:
      row: of the ledger.
      results: of its seeds.
      folder: of the ledger; the record goes to ``reproduced/NAME.json`` in it.
    """
    record = make_record(row, results)
    path = folder / RECORDS / f"{row.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    row = dataclasses.replace(
        row,
        files=f"{RECORDS}/{row.name}.json",
        commit=record["commit"],
        device=record["device"],
    )
    return filled(row, folder)
