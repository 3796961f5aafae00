"""Choice by inner folds: it never sees the tested fold, and weighs examples."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flaxnets.training.workdir import Workdir
from launch.nesting import Inner, choose, format_candidates, mean_of
from launch.program import ROOT, load_experiment

FOLDS = (1, 2, 3, 4)


def draw(seed: int) -> Inner:
    """Returns figures of a candidate with one or two seeds and folds of different sizes."""
    rng = np.random.default_rng(seed)
    return {
        pair: {
            fold: [
                {"loss": rng.uniform(), "accuracy": rng.uniform(), "examples": 2 + fold}
                for _ in range(2)
            ]
            for fold in pair
        }
        for pair in itertools.combinations(FOLDS, 2)
    }


def test_the_mean_is_over_examples_that_the_networks_did_not_see() -> None:
    inner = draw(0)
    losses, weights = [], []
    for other in (1, 3, 4):
        pair = (min(2, other), max(2, other))
        for figures in inner[pair][other]:
            losses.append(figures["loss"])
            weights.append(figures["examples"])
    assert mean_of(inner, "loss", 2) == pytest.approx(np.dot(losses, weights) / sum(weights))


@pytest.mark.parametrize("fold", FOLDS)
def test_the_choice_depends_on_nothing_of_the_tested_fold(fold: int) -> None:
    inner = {name: draw(seed) for seed, name in enumerate("abcd")}
    before = choose(inner, fold)
    for of in inner.values():
        for pair, of_folds in of.items():
            for measured, figures in of_folds.items():
                # Measured on the tested fold, or by a network that was trained on it.
                if measured == fold or fold not in pair:
                    figures[:] = [{**row, "loss": float("nan")} for row in figures]
    assert choose(inner, fold) == before
    losses = {name: mean_of(of, "loss", fold) for name, of in inner.items()}
    assert losses[before] == min(losses.values())


def test_the_table_has_the_best_first_and_the_folds_of_each_choice() -> None:
    inner = {"worse": draw(1), "better": draw(1)}
    for of_folds in inner["better"].values():
        for figures in of_folds.values():
            figures[:] = [{**row, "loss": row["loss"] / 2} for row in figures]
    assert choose(inner) == "better"
    chosen = {fold: choose(inner, fold) for fold in FOLDS}
    rows = format_candidates(inner, chosen).splitlines()[4:]
    assert rows[0].startswith("| better |")
    assert rows[0].endswith("| 1, 2, 3, 4 |")
    assert rows[1].endswith("| – |")


@pytest.mark.subprocess
def test_a_result_of_other_settings_is_refused(tmp_path: Path) -> None:
    config: Any = load_experiment("experiments/ut_interaction.py")
    config.set_fold(1)
    config.hold_out_fold(2)
    folder = tmp_path / "inner" / "own" / "without01_02_seed0"
    with Workdir(folder) as workdir:
        workdir.claim("experiments/ut_interaction.py", config)
    figures = {"loss": 0.1, "accuracy": 1.0, "examples": 6}
    (folder / "result.json").write_text(json.dumps({"1": figures, "2": figures}))
    (tmp_path / "candidates.toml").write_text("[own]\n")
    command = [
        *(sys.executable, "-m", "launch.nested_search", f"--workdir={tmp_path}"),
        *("--config=experiments/ut_interaction.py", "--config.num_steps=7", "--folds=1,2,3"),
        f"--candidates={tmp_path / 'candidates.toml'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode != 0
    assert "holds a run of another configuration" in done.stderr
    assert "num_steps" in done.stderr
