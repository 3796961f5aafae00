"""Harness of the benchmarks: every case is measured, and the tables hold its numbers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import rnn

from experiments.benchmarks import layers, memory
from experiments.benchmarks.run import run_cases, write
from experiments.benchmarks.tables import format_table
from experiments.benchmarks.timing import Case, compare, measure
from tests.flaxnets.recurrent.cases import cudnn_reference


def test_ways_take_turns_and_limits_hold() -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = measure(steps, 2, {"c": 1}, pause=0)
    assert "".join(calls) == "abc" + "aabbc" + "aabb"
    assert [len(rounds) for rounds in seconds.values()] == [2, 2, 1]


def test_a_ratio_is_the_peers_median_over_ours() -> None:
    rows = compare({"ours": [1.0, 2.0, 9.0], "peer": [4.0, 5.0, 3.0]})
    assert rows["ours"]["ours_is_times_as_fast"] == 1
    assert rows["peer"]["ours_is_times_as_fast"] == 2
    assert rows["peer"]["milliseconds_max"] == 5000


def test_files_hold_every_case_and_way(tmp_path: Path) -> None:
    cases = [_without_optional_peers(case) for case in layers.vector_cases("gru", ((3, 2, 4, 5),))]
    results = run_cases(cases, rounds=2, pause=0)
    write("layers", results, tmp_path)
    report = json.loads((tmp_path / "layers.json").read_text())
    assert report["results"].keys() == {
        "GRU, T=3, B=2, 4→5, forward",
        "GRU, T=3, B=2, 4→5, training step",
    }
    for row in report["results"].values():
        assert row.keys() == {layers.OURS, layers.LINEN}
        assert all(numbers["rounds"] == 2 for numbers in row.values())
        assert all(numbers["temporary_mebibytes"] >= 0 for numbers in row.values())
    assert report["versions"].keys() >= {"jax", "flax"}
    lines = (tmp_path / "layers.md").read_text().splitlines()
    assert lines[4] == ""
    for table in (lines[:4], lines[5:]):
        assert len(table) == 4
        assert len({line.count("|") for line in table}) == 1
    assert lines[0].startswith("| our way | times as fast as flax.linen |")
    assert lines[5] == "| our way | XLA's temporary memory, times as small as flax.linen |"


def _without_optional_peers(case: Case) -> Case:
    ways = {way: case.ways[way] for way in (layers.OURS, layers.LINEN)}
    return dataclasses.replace(case, ways=ways)


def test_on_a_gpu_the_lstm_runs_on_cudnn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rnn, "lstm", cudnn_reference)
    sizes = ((3, 2, 4, 5),)
    assert layers.CUDNN not in layers.vector_cases("lstm", sizes)[0].ways
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert layers.CUDNN not in layers.vector_cases("gru", sizes)[0].ways
    forward, training = layers.vector_cases("lstm", sizes)
    outputs: Any = forward.ways[layers.CUDNN]()()
    assert outputs.shape == (2, 3, 5)
    found: Any = training.ways[layers.CUDNN]()()
    gradients, inputs = found
    assert inputs.shape == (2, 3, 4)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_a_peer_that_is_missing_is_a_dash() -> None:
    numbers = {"ours_is_times_as_fast": 1.0}
    table = format_table({"x": {"ours": numbers, "flax.linen": {"ours_is_times_as_fast": 2.5}}})
    assert table.splitlines()[-1] == "| x | 2.50 | — | — |"


def test_memory_is_compared_with_both_plain_scans() -> None:
    (case,) = memory.cases(num_frames=128, size=4, channels=2, features=3, kernel_size=3)
    assert list(case.ways) == ["remat_steps=12", memory.PLAIN, memory.AUTODIFF]
