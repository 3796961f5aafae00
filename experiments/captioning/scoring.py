"""Scores of a split's generated captions, their export to COCO's format, and their images."""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.captions.scores import WITHOUT_JAVA, CaptionScorer
from data.captions.scores import write_results as write_caption_results
from data.moving_shapes.captions import tells_motion
from data.moving_shapes.source import MovingShapes
from experiments.captioning.data import CaptionDataConfig, read_split
from flaxnets.training.config import Scorer

logger = logging.getLogger(__name__)

Records = Sequence[Mapping[str, Any]]
"""Predictions of examples, each with ``index`` and ``caption``."""


def metric_names(config: CaptionDataConfig) -> tuple[str, ...]:
    """Returns the names of the metrics of ``make_scorer`` that need no Java."""
    embedded = config.kind == "moving_shapes"
    return (*WITHOUT_JAVA, *(("motion_accuracy", "object_accuracy") if embedded else ()))


def make_scorer(config: CaptionDataConfig, split: str, *, complete: bool) -> Scorer:
    """Returns the function from records of a split to BLEU, ROUGE-L and CIDEr.

    Images that cannot be decoded have no record and are not counted. Embedded videos have two more
    metrics: ``motion_accuracy``, the share of captions with the right motion of the coloured
    object, and ``object_accuracy``, the share whose size and shape are right, too.

    Args:
      config: the data.
      split: the split of the records.
      complete: also METEOR and SPICE, where Java is installed.
    """
    captions = read_split(config, split).captions
    metrics = None if complete else WITHOUT_JAVA

    @functools.lru_cache(maxsize=1)
    def scorer_of(indices: tuple[int, ...]) -> CaptionScorer[int]:
        return CaptionScorer({index: captions[index] for index in indices})

    def score(records: Records) -> dict[str, float]:
        found = _by_index(records)
        scored = scorer_of(tuple(sorted(found))).score(found, metrics=metrics)
        if scored.left_out:
            logger.info("%s", scored.left_out)
        scores = dict(scored.corpus)
        if config.kind == "moving_shapes":
            shapes = MovingShapes(split, len(captions))
            told = [(text, shapes.scene(index)) for index, text in found.items()]
            scores["motion_accuracy"] = np.mean([tells_motion(*pair) for pair in told]).item()
            in_full = [tells_motion(*pair, in_full=True) for pair in told]
            scores["object_accuracy"] = np.mean(in_full).item()
        return scores

    return score


def score_examples(config: CaptionDataConfig, split: str, records: Records) -> list[float]:
    """Returns the CIDEr of each record's caption; ``make_scorer`` returns their mean."""
    captions = read_split(config, split).captions
    found = _by_index(records)
    scorer = CaptionScorer({index: captions[index] for index in found})
    scores = scorer.score(found, metrics=("CIDEr",)).per_image["CIDEr"]
    return [scores[int(record["index"])] for record in records]


def write_results(config: CaptionDataConfig, path: Path, split: str, records: Records) -> None:
    """Writes captions as COCO's result file, ``SPLIT.coco.json``, beside ``path``.

    Image ids are the data set's if they are integers, else the indices in the split.
    """
    names = read_split(config, split).names
    captions = {}
    for record in records:
        name = names[record["index"]]
        captions[name if isinstance(name, int) else record["index"]] = record["caption"]
    write_caption_results(path.with_suffix(".coco.json"), captions)


def load_clip(config: CaptionDataConfig, split: str, index: int) -> np.ndarray:
    """Returns the frames of a video, or an image as a single frame, (T,H,W,3) uint8."""
    inputs = read_split(config, split).inputs
    if config.kind == "moving_shapes":
        video: np.ndarray = inputs[index]["video"]
        return video
    image: np.ndarray = inputs.decode(index)
    return image[None]


def _by_index(records: Records) -> dict[int, str]:
    return {int(record["index"]): str(record["caption"]) for record in records}
