"""Writes the report of a workdir: gathers its records, evaluating first where that is missing.

Apart from the program, since that defines flags, which can be defined only once.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxnets.training.caption_inference import TrainedCaptioner
from flaxnets.training.config import Config
from flaxnets.training.inference import TrainedModel, read_predictions
from flaxnets.training.workdir import Workdir
from flaxnets.training.writers import read_metrics
from launch.experiment import config_of
from launch.report_gallery import Gallery, Looked, make_galleries
from launch.report_page import Run, build_page

logger = logging.getLogger(__name__)


def write_report(
    workdir: Workdir, split: str = "test", comparison: Sequence[Mapping[str, str]] = ()
) -> Path:
    """Writes ``report.html`` of a run; evaluates the split first where it has no predictions.

    Args:
      workdir: of the run.
      split: the split of the predictions; not ``train``, which has no end.
      comparison: rows of a table at the top of the page, column to text.

    Returns:
      The page's path.

    Raises:
      flaxnets.training.workdir.WorkdirError: no run in the folder.
      FileNotFoundError: the experiment's file is gone.
      ValueError: no such split, or predictions that are no records of this experiment.
    """
    record = workdir.read_config()
    config = config_of(workdir)
    predictions, notes = _predictions(workdir, config, split)
    scores, galleries = _captions(workdir, config, split, predictions, notes)
    defines_clips = type(config).load_clip is not Config.load_clip
    run = Run(
        experiment=record["experiment"],
        workdir=str(workdir.path),
        config=record["config"],
        metrics=read_metrics(workdir.path),
        split=split,
        class_names=config.class_names,
        predictions=predictions,
        load_clip=(lambda index: config.load_clip(split, index)) if defines_clips else None,
        scores=scores,
        galleries=galleries,
        notes=notes,
    )
    page = build_page(run, comparison)
    path = workdir.path / "report.html"
    # Written beside and renamed, so that a browser never sees half of it.
    temporary = path.with_suffix(".html.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def _predictions(
    workdir: Workdir, config: Config, split: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """The records of a split, and sentences on what is amiss with them."""
    path = workdir.predictions(split)
    if not path.exists():
        if split == "train":
            raise ValueError("--split=train: the training split has no end; name another one")
        try:
            logger.info("evaluating the split %s", split)
            TrainedModel(config, workdir).evaluate(split)
        except FileNotFoundError as error:
            return [], [f"No predictions for the split {split}: {error}."]
    try:
        records = read_predictions(path)
    except ValueError as error:
        raise ValueError(f"{path}: no JSON records ({error}); evaluate the split again") from error
    notes = []
    if not records:
        notes.append(f"No predictions for the split {split}: {path} holds no record.")
    metrics = workdir.path / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_mtime > path.stat().st_mtime:
        notes.append(
            f"The predictions are older than the last training record; python -m launch.evaluate "
            f"--workdir={workdir.path} --split={split} makes them anew."
        )
    return records, notes


def _captions(
    workdir: Workdir,
    config: Config,
    split: str,
    predictions: Sequence[Mapping[str, Any]],
    notes: list[str],
) -> tuple[Mapping[str, float], list[Gallery]]:
    """Scores and galleries of predicted captions; adds to ``notes`` what there is not."""
    if not predictions or not all("caption" in record for record in predictions):
        return {}, []
    try:
        scorer = config.make_scorer(split, complete=True)
        scores = scorer(predictions) if scorer is not None else {}
        galleries = make_galleries(
            predictions,
            config.references(split),
            config.score_examples(split, predictions),
            lambda index: config.load_clip(split, index),
            lambda indices: _look(workdir, config, split, indices, notes),
            metric=config.best_metric,
        )
    except (OSError, ImportError) as error:
        notes.append(f"No scores and no gallery of captions: {error}.")
        return {}, []
    return scores, galleries


def _look(
    workdir: Workdir, config: Config, split: str, indices: Sequence[int], notes: list[str]
) -> dict[int, Looked]:
    """Where the best checkpoint looks while it captions some examples."""
    looked = {}
    try:
        captioner = TrainedCaptioner([TrainedModel(config, workdir)])
        for found in captioner.caption_examples(split, indices, attention=True):
            if not found.captions:
                continue
            best = found.captions[0]
            if best.attention is None:
                continue
            image = None
            if best.attention.ndim == 3:
                image = config.crop_image(config.load_clip(split, found.index)[0])
            looked[found.index] = Looked(best.words, best.attention, image)
    except (FileNotFoundError, ValueError) as error:
        notes.append(f"No maps of attention: {error}.")
    return looked
