"""Evaluation of a split counts each example once, in one process and in two."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.training.evaluation import evaluate, gather_records, local_rows
from flaxnets.training.parallel import DataParallel
from tests.flaxnets.training.captions_of_two_processes import figures

ROOT = Path(__file__).parents[3]
PROGRAM = "tests.flaxnets.training.captions_of_two_processes"
VALUES = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0], np.float32)


class Numbers:
    """Seven examples in batches of three: one cannot be read, and the last batch is filled up."""

    num_examples = len(VALUES)
    batches_per_epoch = 3

    def describe(self) -> dict[str, Any]:
        return {}

    def batches(self, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        for number in range(start, 3):
            index = np.arange(3 * number, 3 * number + 3, dtype=np.int32)
            there = index < len(VALUES)
            yield {
                "value": np.where(there, VALUES[np.minimum(index, 6)], np.nan),
                "mask": there & (index != 4),
                "index": np.where(there, index, -1),
            }


@jax.jit
def evaluation_step(scale: jax.Array, batch: Mapping[str, jax.Array]) -> Any:
    values = jnp.where(batch["mask"], scale * batch["value"], 0)
    count = jnp.sum(batch["mask"], dtype=jnp.float32)
    return {"loss": (values.sum(), count)}, {"value": scale * batch["value"]}


def describe(outputs: dict[str, np.ndarray], row: int) -> dict[str, Any]:
    return {"value": float(outputs["value"][row])}


def run(**options: Any) -> dict[str, float]:
    strategy = DataParallel(jax.devices()[:1])
    return evaluate(evaluation_step, strategy, jnp.float32(2), Numbers(), **options)


def test_means_are_over_all_examples_that_count() -> None:
    kept = np.delete(VALUES, 4).astype(np.float64)
    assert run() == {"loss": 2 * kept.mean(), "examples": 6, "skipped": 1}


def test_a_score_sees_each_example_once_in_order() -> None:
    calls = []

    def score(records: Any) -> dict[str, float]:
        calls.append(records)
        return {"best": max(record["value"] for record in records)}

    handed: list[int] = []
    metrics = run(
        on_outputs=lambda batch, outputs: handed.extend(batch["index"].tolist()),
        score=score,
        describe=describe,
    )
    assert metrics == {**run(), "best": 18.0}
    expected = [{"index": i, "value": 2.0 * VALUES[i]} for i in (0, 1, 2, 3, 5, 6)]
    assert calls == [expected]
    assert handed == [0, 1, 2, 3, 4, 5, 6, -1, -1]


def test_a_score_without_records_is_refused() -> None:
    with pytest.raises(
        ValueError, match="describe: expected a function, whose records score reads"
    ):
        run(score=lambda records: {})


def test_records_come_once_and_by_number() -> None:
    records = [{"index": 4}, {"index": 2, "caption": "a"}, {"index": 4}, {"index": 0}]
    assert [record["index"] for record in gather_records(records)] == [0, 2, 4]
    assert gather_records([]) == []


@pytest.mark.parametrize("process", [0, 1, 2])
def test_a_process_has_its_rows_of_outputs(process: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    rows = local_rows({"a": jnp.arange(6), "b": jnp.arange(12).reshape(6, 2)})
    assert rows["a"].tolist() == [2 * process, 2 * process + 1]
    assert rows["b"].tolist() == [
        [4 * process, 4 * process + 1],
        [4 * process + 2, 4 * process + 3],
    ]


def results_of(num_processes: int, folder: Path) -> list[Any]:
    """Returns what each process writes."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outs = [folder / f"{num_processes}_{number}.json" for number in range(num_processes)]
    logs = [out.with_suffix(".log") for out in outs]
    processes = []
    for number, (out, log) in enumerate(zip(outs, logs, strict=True)):
        arguments = [str(out), str(port), str(num_processes), str(number)]
        command = [sys.executable, "-m", PROGRAM, *arguments]
        with log.open("w") as file:  # A full pipe would block all of them.
            processes.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
            )
    try:
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * num_processes, [log.read_text() for log in logs]
    return [json.loads(out.read_text()) for out in outs]


@pytest.mark.subprocess
@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    alone = figures(DataParallel(jax.devices()[:1]))
    first, second = results_of(2, tmp_path)
    assert alone["metrics"]["examples"] == 8
    assert alone["metrics"]["skipped"] == 3
    indices = [record["index"] for record in alone["scored"]]
    assert indices == [0, 1, 3, 4, 5, 6, 8, 10]
    assert len({len(record["caption"]) for record in alone["scored"]}) >= 3
    for one in (first, second):
        assert one["metrics"] == pytest.approx(alone["metrics"], rel=1e-6)
        assert [(r["index"], r["caption"]) for r in one["scored"]] == [
            (r["index"], r["caption"]) for r in alone["scored"]
        ]
        assert one["uneven"] == [{"index": 5}]
    # The first process has the first two of four rows of every batch.
    rows = [record["index"] for record in first["handed"]]
    assert rows == [0, 1, 4, 5, 8, 9]
    assert [record["index"] for record in second["handed"]] == [2, 3, 6, 7, 10, -1]
    captions = {record["index"]: record["caption"] for record in alone["handed"]}
    for record in first["handed"] + second["handed"]:
        assert record["index"] < 0 or record["caption"] == captions[record["index"]]
