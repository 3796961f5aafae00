"""Choice by inner folds: it never sees the tested fold, and weighs examples."""

import itertools

import numpy as np
import pytest

from launch.nesting import Inner, choose, format_candidates, mean_of

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
