"""Choice of the search for texts: weight of the language model and bonus, on a validation split.

The network is evaluated once; the searches read its log-probabilities again and again. What was
chosen is optimistic on the lines it was chosen on, so it is reported on others: another split, or
the other half of the same one.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.inference.trained_model import TrainedModel
from flaxnets.tasks.ctc import CTC, CTCSearch
from flaxnets.training.config import Scorer

logger = logging.getLogger(__name__)

WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Weights of the language model that are tried."""
BONUSES = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Bonuses for a character that are tried, nats."""
GREEDY, BEAM, CHOSEN = "greedy", "beam", "chosen"
HALF = "half"
"""Value of ``report`` for every second line of the split."""


@runtime_checkable
class HasSearch(Protocol):
    """Configuration of an experiment whose model reads texts by CTC."""

    search: CTCSearch


class LogProbs(NamedTuple):
    """Log-probabilities of a batch, on the host."""

    lines: np.ndarray
    """(B,) int32 numbers of the lines in their split."""
    mask: np.ndarray
    """(B,) bool, rows that hold a readable line."""
    log_probs: np.ndarray
    """(B,S,K+1) float32."""
    steps: np.ndarray
    """(B,) int32 valid steps."""


@dataclasses.dataclass(frozen=True)
class SearchTuning:
    """Searches on a split, and the best of them.

    Attributes:
      search: the best one.
      chosen_on: metrics by search (``greedy``, ``beam`` without language model, ``chosen``) on the
        lines on which it was chosen.
      reported_on: the same on the other lines; empty if there are none.
      seconds_per_line: of the same searches, compilation not included, and of ``network``.
      trials: weight, bonus and metric of each beam search.
    """

    search: CTCSearch
    chosen_on: Mapping[str, Mapping[str, float]]
    reported_on: Mapping[str, Mapping[str, float]]
    seconds_per_line: Mapping[str, float]
    trials: Sequence[tuple[float, float, float]]


def tune_search(
    model: TrainedModel,
    split: str = "validation",
    *,
    report: str = "",
    width: int = 10,
    weights: Sequence[float] = WEIGHTS,
    bonuses: Sequence[float] = BONUSES,
) -> SearchTuning:
    """Returns the search with the best ``Config.best_metric`` on a split.

    Of equal ones it is that with the smallest weight, then the smallest bonus, since the searches
    are tried in this order.

    Args:
      model: of a run whose configuration ``HasSearch``.
      split: on which the search is chosen.
      report: another split that is reported; ``half``: the search is chosen on every second line
        of ``split`` and reported on the others; empty: nothing is reported.
      width: prefixes of the beam.
      weights: of the language model, at least 0.
      bonuses: for each character, nats.

    Raises:
      ValueError: another experiment, nothing to try, a width below 1, several processes, or a split
        that has no lines or no metric.
    """
    config: Any = model.config
    if not isinstance(model.config, HasSearch):
        raise ValueError(
            "model: expected a run that reads texts by CTC, as experiments/crnn_text_lines.py, "
            f"received one of {type(config).__name__}"
        )
    if width < 1 or not weights or not bonuses or min(weights) < 0:
        raise ValueError(
            "width, weights, bonuses: expected at least 1, and values to try with weights of at "
            f"least 0, received {width}, {tuple(weights)} and {tuple(bonuses)}"
        )
    if jax.process_count() > 1:
        raise ValueError(
            f"search tuning: expected one process, received {jax.process_count()}; the searches of "
            "one device suffice"
        )
    # Before anything takes time.
    if "train" in (split, report):
        raise ValueError(
            "split, report: expected splits that end, as validation, received 'train': the "
            "training data have no end"
        )
    score, score_report = _scorer(config, split), None
    if report and report != HALF:
        score_report = _scorer(config, report)
    # A task that has the language model whatever the run's own search is.
    config.search = dataclasses.replace(config.search, width=width, language_model_weight=1.0)
    task: Any = config.make_prediction_task()
    batches, seconds = _apply_network(model, task, split)
    lines = sorted(int(i) for batch in batches for i in batch.lines[batch.mask])
    chosen_lines, other_lines = (lines[::2], lines[1::2]) if report == HALF else (lines, lines[:0])
    if not chosen_lines:
        raise ValueError(f"split: expected lines in {split!r} to choose on, received none")

    def run(search: CTCSearch) -> list[dict[str, Any]]:
        return _read_texts(dataclasses.replace(task, search=search), batches)

    def search_of(weight: float, bonus: float) -> CTCSearch:
        return dataclasses.replace(
            config.search, width=width, language_model_weight=weight, character_bonus=bonus
        )

    sign = -1.0 if config.best_mode == "min" else 1.0
    trials, best = [], (-np.inf, search_of(0.0, 0.0))
    for weight in sorted(set(weights)):
        for bonus in sorted(set(bonuses)):
            search = search_of(weight, bonus)
            value = score(_select(run(search), chosen_lines))[config.best_metric]
            trials.append((weight, bonus, value))
            logger.info("weight %g, bonus %g: %s %.5f", weight, bonus, config.best_metric, value)
            if sign * value > best[0]:
                best = (sign * value, search)
    searches = {GREEDY: CTCSearch(), BEAM: search_of(0.0, 0.0), CHOSEN: best[1]}
    chosen_on, reported_on, times = {}, {}, {"network": seconds / len(lines)}
    for name, search in searches.items():
        run(search)  # Compiles.
        begin = time.perf_counter()
        records = run(search)
        times[name] = (time.perf_counter() - begin) / len(lines)
        chosen_on[name] = dict(score(_select(records, chosen_lines)))
        if other_lines:
            reported_on[name] = dict(score(_select(records, other_lines)))
    if score_report is not None:
        batches = _apply_network(model, task, report)[0]
        reported_on = {name: dict(score_report(run(search))) for name, search in searches.items()}
    return SearchTuning(best[1], chosen_on, reported_on, times, trials)


def _apply_network(model: TrainedModel, task: CTC, split: str) -> tuple[list[LogProbs], float]:
    """Returns the log-probabilities of a split, and the seconds of the network without compilation.

    A batch of a width that was not met before is computed twice, to time it compiled.
    """
    network = model.config.make_model()
    apply = jax.jit(functools.partial(task.log_probs, network))
    found, seconds, known = [], 0.0, set()
    for batch in model.config.make_data(split).batches():
        inputs = {name: batch[name] for name in batch if name not in ("index", "mask")}
        shapes = tuple(np.shape(value) for value in inputs.values())
        if shapes not in known:
            known.add(shapes)
            jax.block_until_ready(apply(model.variables, inputs))
        begin = time.perf_counter()
        log_probs, steps = jax.device_get(apply(model.variables, inputs))
        seconds += time.perf_counter() - begin
        found.append(LogProbs(np.array(batch["index"]), np.array(batch["mask"]), log_probs, steps))
    return found, seconds


def _read_texts(task: CTC, batches: Sequence[LogProbs]) -> list[dict[str, Any]]:
    """Returns ``{"index", "text"}`` of each line."""
    records = []
    for batch in batches:
        found = jax.device_get(task.find_texts(*map(jnp.asarray, (batch.log_probs, batch.steps))))
        for row in np.flatnonzero(batch.mask):
            tokens = found.tokens[row, 0, : found.lengths[row, 0]].tolist()
            records.append({"index": int(batch.lines[row]), "text": task.text(tokens)})
    return records


def _select(records: Sequence[Mapping[str, Any]], lines: Sequence[int]) -> list[Mapping[str, Any]]:
    wanted = set(lines)
    return [record for record in records if record["index"] in wanted]


def _scorer(config: Any, split: str) -> Scorer:
    score: Scorer | None = config.make_scorer(split, complete=True)
    if score is None:
        raise ValueError(f"split: expected one that is scored, received {split!r}")
    return score
