"""Prefix beam search in plain Python, with dictionaries: the peer of ``flaxnets.decoders.ctc``.

Hannun et al., 1408.2873, algorithm 1, in log space and float64, without a language model.
"""

import math
from collections import defaultdict

import numpy as np

Text = tuple[int, ...]


def prefix_search(
    log_probs: np.ndarray, width: int, *, characters: int | None = None, blank: int = 0
) -> list[tuple[Text, float]]:
    """Returns the ``width`` best texts with log p(text), best first.

    Args:
      log_probs: (S,K) float, normalised.
      width: prefixes that are kept at each step.
      characters: most probable characters at each step, by which prefixes are extended, besides
        those that are the last of a prefix of the beam; None: all.
      blank: class of the blank.
    """
    beam: dict[Text, tuple[float, float]] = {(): (0.0, -math.inf)}
    for step in log_probs.astype(np.float64):
        order = np.argsort(-step, kind="stable")
        best = order[order != blank][:characters].tolist()
        emitted = step.tolist()
        children: defaultdict[Text, list[int]] = defaultdict(list)
        for prefix in beam:
            if prefix and prefix[-1] not in best:
                children[prefix[:-1]].append(prefix[-1])
        blanks: defaultdict[Text, float] = defaultdict(lambda: -math.inf)
        labels: defaultdict[Text, float] = defaultdict(lambda: -math.inf)
        for prefix, (in_blank, in_label) in beam.items():
            total = _log_add(in_blank, in_label)
            last = prefix[-1] if prefix else -1
            blanks[prefix] = _log_add(blanks[prefix], total + emitted[blank])
            if prefix:
                labels[prefix] = _log_add(labels[prefix], in_label + emitted[last])
            for character in (*best, *children[prefix]):
                before = in_blank if character == last else total
                longer = (*prefix, character)
                labels[longer] = _log_add(labels[longer], before + emitted[character])
        scores = {
            prefix: _log_add(blanks.get(prefix, -math.inf), labels.get(prefix, -math.inf))
            for prefix in (*blanks, *(prefix for prefix in labels if prefix not in blanks))
        }
        kept = sorted(scores, key=lambda prefix: -scores[prefix])[:width]
        beam = {
            prefix: (blanks.get(prefix, -math.inf), labels.get(prefix, -math.inf))
            for prefix in kept
            if scores[prefix] > -math.inf
        }
    return [(prefix, _log_add(*sums)) for prefix, sums in beam.items()]


def _log_add(x: float, y: float) -> float:
    if x == -math.inf:
        return y
    if y == -math.inf:
        return x
    return max(x, y) + math.log1p(math.exp(-abs(x - y)))
