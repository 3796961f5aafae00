"""Choice among candidates by the inner folds of a nested cross-validation."""

from collections.abc import Iterator, Mapping

import numpy as np

Figures = Mapping[str, float]
"""``loss`` and ``accuracy`` on a fold, and its number of ``examples``."""

Inner = dict[tuple[int, int], dict[int, list[Figures]]]
"""Pair of folds without which a candidate was trained → fold of the pair → figures by seed."""


def choose(inner: Mapping[str, Inner], fold: int | None = None) -> str:
    """Returns the candidate with the lowest mean loss, the first of equal ones.

    Args:
      inner: figures of each candidate.
      fold: that must not be seen: only networks that were trained without it count, and only on
        the other fold that they did not see. None: all networks on both folds.
    """
    losses = {name: mean_of(of, "loss", fold) for name, of in inner.items()}
    return min(losses, key=lambda name: losses[name])


def mean_of(inner: Inner, name: str, fold: int | None = None) -> float:
    """Returns the mean of a figure over the examples, see ``choose``."""
    rows = list(_rows(inner, fold))
    values = [row[name] for row in rows]
    return float(np.average(values, weights=[row["examples"] for row in rows]))


def _rows(inner: Inner, fold: int | None) -> Iterator[Figures]:
    for pair, of_folds in inner.items():
        for measured, figures in of_folds.items():
            if fold is None or (fold in pair and measured != fold):
                yield from figures


def format_candidates(inner: Mapping[str, Inner], chosen: Mapping[int, str]) -> str:
    """Returns a Markdown table of the candidates on folds that their networks did not see.

    Args:
      inner: figures of each candidate.
      chosen: the candidate of each tested fold.
    """
    lines = [
        "Each candidate on folds that its networks did not see, trained without one more fold:",
        "",
        "| candidate | loss, nats | accuracy, % | chosen for folds |",
        "|---|---|---|---|",
    ]
    for name, of in sorted(inner.items(), key=lambda item: mean_of(item[1], "loss")):
        folds = ", ".join(str(fold) for fold, winner in chosen.items() if winner == name) or "–"
        loss, accuracy = mean_of(of, "loss"), 100 * mean_of(of, "accuracy")
        lines.append(f"| {name} | {loss:.3f} | {accuracy:.1f} | {folds} |")
    return "\n".join(lines) + "\n"
