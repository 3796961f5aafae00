"""Report of a run: one self-contained HTML page of its curves, predictions and configuration.

The page embeds its style, its curves as SVG and its frames as JPEG or PNG. It loads nothing from
the network and runs no script.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from flaxnets.inference.trained_captioner import TrainedCaptioner
from flaxnets.inference.trained_forecaster import TrainedForecaster
from flaxnets.inference.trained_model import TrainedModel, read_predictions
from flaxnets.training.config import Config, data_differences
from flaxnets.training.metric_writer import read_metrics
from flaxnets.training.workdir import Workdir, write_text_atomically
from launch.program import config_of, read_calls
from launch.reports.captions import (
    CaptionAttention,
    Gallery,
    ShowsCaptions,
    make_galleries,
)
from launch.reports.charts import is_share, make_charts
from launch.reports.clips import SPECTROGRAM_SIDE, TOP, Group, ShowsClips, make_strips
from launch.reports.forecasts import Forecasts, make_forecasts
from launch.reports.statistics import (
    Rate,
    confusion_matrix,
    most_confused,
    per_class,
    speed_of,
    top_k_rate,
)
from launch.reports.transcripts import (
    ShowsTranscripts,
    Transcripts,
    make_transcripts,
    name_character,
    show_changed,
    show_character,
)

HREF = "href"
"""Entry of a comparison's row that is the address of another report."""
VAGUE = ("data", "dataset", "root", "videos", "images", "train", "raw")
"""Names of folders that say nothing of the data in them."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """Contents of a report.

    Attributes:
      experiment: ``FILE[:variant]``.
      workdir: path of the workdir.
      config: all values of the configuration, nested.
      metrics: records of ``metrics.jsonl``.
      split: split of the predictions.
      class_names: names of the K classes, by label; empty: the classes have no names.
      predictions: records ``{"index", "label" (-1 unknown), "prediction", "probabilities": [K]}``;
        of a captioner ``{"index", "caption", "log_probability", "ended"}``, of a reader of lines or
        speech ``{"index", "text", "confidence"}``, of predicted frames ``{"index", "mse_frame":
        [N], "copy_mse_frame": [N], …}``.
      load_clip: maps an index of the split to frames (T,H,W,3) uint8; None: not available.
      has_data: False: a note says why the examples of the predictions are not at hand.
      scores: caption metrics of the predictions, by name.
      galleries: captioned examples.
      transcripts: errors of transcripts, and lines to look at.
      forecasts: errors of predicted frames, and sequences to look at.
      unit: word for an example; empty: by its frames.
      notes: sentences about missing or outdated parts.
      provenance: date, commit and command of the training, by name.
    """

    experiment: str
    workdir: str
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    split: str
    class_names: Sequence[str] = ()
    predictions: Sequence[Mapping[str, Any]] = ()
    load_clip: Callable[[int], np.ndarray] | None = None
    has_data: bool = True
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    galleries: Sequence[Gallery] = ()
    transcripts: Transcripts | None = None
    forecasts: Forecasts | None = None
    unit: str = ""
    notes: Sequence[str] = ()
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def captions(self) -> bool:
        """True if the predictions are captions."""
        return bool(self.predictions) and all("caption" in r for r in self.predictions)

    @property
    def transcribed(self) -> bool:
        """True if the predictions are transcripts of lines or of speech."""
        return bool(self.predictions) and all("text" in r for r in self.predictions)

    @property
    def forecast(self) -> bool:
        """True if the predictions are of frames."""
        return bool(self.predictions) and all("mse_frame" in r for r in self.predictions)


def write_report(
    workdir: Workdir,
    split: str = "test",
    comparison: Sequence[Mapping[str, str]] = (),
    *,
    config: Config | None = None,
) -> Path:
    """Writes ``report.html`` of a run; evaluates the split first if it has no predictions.

    Args:
      workdir: workdir of the run.
      split: split of the predictions; not ``train``, which repeats without end.
      comparison: rows of a table at the top of the page, column to text; ``href`` is the address
        to which the first column links.
      config: the run's configuration; by default as recorded.

    Returns:
      Path of the page.

    Raises:
      flaxnets.training.workdir.WorkdirError: the folder holds no run.
      FileNotFoundError: no such experiment file.
      ValueError: no such split, or predictions that are not records of this experiment.
    """
    record = workdir.read_config()
    config = config or config_of(workdir)
    predictions, notes = _predictions(workdir, config, split)
    has_data = bool(predictions) and _knows_data(workdir, config, split, notes)
    shown = predictions if has_data else []
    scores, galleries = _captions(workdir, config, split, shown, notes)
    run = Run(
        experiment=record["experiment"],
        workdir=str(workdir.path),
        config=record["config"],
        metrics=read_metrics(workdir.path),
        split=split,
        class_names=workdir.read_data()["class_names"] if predictions else (),
        predictions=predictions,
        load_clip=partial(config.load_clip, split)
        if has_data and isinstance(config, ShowsClips)
        else None,
        has_data=has_data or not predictions,
        scores=scores,
        galleries=galleries,
        transcripts=_transcripts(config, split, shown, notes),
        forecasts=_forecasts(workdir, config, split, predictions, has_data, notes),
        unit=getattr(config, "unit", ""),
        notes=notes,
        provenance=_provenance(workdir),
    )
    page = build_page(run, comparison)
    path = workdir.path / "report.html"
    write_text_atomically(path, page)  # A browser never sees a partial page.
    return path


def build_page(run: Run, comparison: Sequence[Mapping[str, str]] = ()) -> str:
    """Returns the page as HTML.

    Args:
      run: contents of the report.
      comparison: rows of a table at the top of the page, column to text; the first column names
        the row.

    Raises:
      ValueError: predictions that do not match ``class_names``.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        duration=duration,
        number=number,
        character=show_character,
        character_name=name_character,
        changed=show_changed,
    )
    environment.tests.update(share=is_share)
    template = environment.get_template("report.html.jinja")
    notes = list(run.notes)
    if not run.metrics:
        notes.append("No curves: metrics.jsonl holds no record yet.")
    others = run.captions or run.transcribed or run.forecast
    classified = bool(run.predictions) and not others
    outputs = _describe_outputs(run, notes) if classified else None
    best_metric = run.config.get("best_metric", "accuracy")
    unit = run.unit or ("sequence" if run.forecast else _unit(outputs))
    return template.render(
        run=run,
        name=name_of(run.experiment, run.config),
        unit=unit,
        units=f"{unit}s",
        notes=notes,
        comparison=comparison,
        columns=list(dict.fromkeys(c for row in comparison for c in row if c != HREF)),
        step=max((record["step"] for record in run.metrics), default=0),
        best=_best_evaluation(run),
        best_metric=best_metric.replace("_", " "),
        speed=speed_of(run.metrics),
        charts=make_charts(run.metrics, best_metric),
        outputs=outputs,
        groups=config_groups(run.config),
    )


def percent(share: float, digits: int = 1) -> str:
    """Returns a share in [0,1] as ``93.8 %``; NaN as a dash."""
    return "–" if math.isnan(share) else f"{100 * share:.{digits}f}\u00a0%"


def duration(seconds: float) -> str:
    """Returns seconds as ``1 h 02 min``, ``2 min 05 s`` or ``7.5 s``."""
    if seconds < 60:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest:02d}\u00a0s"
    return f"{minutes // 60}\u00a0h {minutes % 60:02d}\u00a0min"


def number(value: float) -> str:
    """Returns a number with four significant digits."""
    return f"{value:,.4g}"


def config_groups(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns (group, [(field, value as JSON)]) by outermost field; top-level fields first."""
    own = [(name, _text(value)) for name, value in config.items() if not _is_group(value)]
    nested = [
        (name, list(_leaves(value, ""))) for name, value in config.items() if _is_group(value)
    ]
    return [("run", own), *nested] if own else nested


def _is_group(value: Any) -> bool:
    # An empty mapping is shown as a value, not as an empty group.
    return isinstance(value, Mapping) and bool(value)


def _leaves(values: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    leaves: list[tuple[str, str]] = []
    for name, value in values.items():
        if _is_group(value):
            leaves += _leaves(value, f"{prefix}{name}.")
        else:
            leaves.append((prefix + name, _text(value)))
    return leaves


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def name_of(experiment: str, config: Mapping[str, Any]) -> str:
    """Returns the name of a run: its experiment, and the data that its configuration names.

    >>> name_of("experiments/lrcn_ucf101.py:smoke", {})
    'lrcn_ucf101:smoke'
    >>> name_of("experiments/lrcn_ucf101.py", {"data": {"root": "/my/waves/videos"}})
    'lrcn_ucf101 on waves/videos'
    """
    path, colon, variant = experiment.partition(":")
    short, data = Path(path).stem + colon + variant, data_name(config)
    return f"{short} on {data}" if data and data not in short else short


def data_name(config: Mapping[str, Any]) -> str:
    """Returns the name of the data of a configuration: a list's file, a folder, or a data set."""
    data = config.get("data")
    if not isinstance(data, Mapping):
        return ""
    for field in ("list", "root"):
        if isinstance(data.get(field), str) and (parts := Path(data[field]).parts):
            vague = parts[-1].lower() in VAGUE or len(parts[-1]) < 5
            return "/".join(parts[-2 if vague else -1 :]).lstrip("/")
    names = (data.get(field) for field in ("dataset", "kind"))
    return next((name for name in names if isinstance(name, str) and name), "")


def _unit(outputs: Mapping[str, Any] | None) -> str:
    """Returns the word for an example: ``clip``, ``image``, or ``example`` where none is shown."""
    shown = [strip for group in (outputs or {}).get("strips", ()) for strip in group.strips]
    lengths = {len(strip.frames) for strip in shown if strip.frames}
    if not lengths:
        return "example"
    return "image" if lengths == {1} else "clip"


def _provenance(workdir: Workdir) -> dict[str, str]:
    """Returns date, commit and command of the last call that trained; empty if not recorded."""
    calls = read_calls(workdir.path)
    if not calls:
        return {}
    first, last = calls[0], calls[-1]
    resumed = f", resumed {len(calls) - 1} times, last on {last['time']}" if len(calls) > 1 else ""
    return {
        "trained": f"from {first['time']}{resumed}",
        "commit": str(last["commit"]),
        "command": str(last["command"]),
    }


def _best_evaluation(run: Run) -> Mapping[str, Any] | None:
    """Returns the evaluation that chose the best checkpoint; None without an evaluation."""
    metric, split = run.config.get("best_metric", ""), run.config.get("eval_split", "")
    scored = [r for r in run.metrics if r["split"] == split and r.get(metric) is not None]
    if not scored:
        return None
    sign = -1 if run.config.get("best_mode") == "min" else 1
    best = max(scored, key=lambda record: sign * record[metric])
    return {**best, "metric": metric, "value": best[metric]}


def _describe_outputs(run: Run, notes: list[str]) -> dict[str, Any] | None:
    """Returns the template's values for classified clips; appends missing parts to ``notes``."""
    if any("probabilities" not in record for record in run.predictions):
        notes.append(
            "No confusion matrix, per-class accuracy and film strips: the records of "
            f"predictions/{run.split}.jsonl hold no class probabilities."
        )
        return None
    names = _class_names(run)
    if run.load_clip is None and run.has_data:
        notes.append("No film strips: the experiment does not define load_clip().")
    known = [record for record in run.predictions if record["label"] >= 0]
    matrix = confusion_matrix(run.predictions, len(names))
    unknown = len(run.predictions) - len(known)
    if unknown:
        notes.append(
            f"{unknown:,} of {len(run.predictions):,} examples have no label and count nowhere."
        )
    rates = list(zip(names, per_class(matrix), strict=True))
    shares = [rate.share for _, rate in rates if rate.count]
    # Classes without examples come last; of equal accuracies the larger class comes first.
    rates.sort(key=lambda item: (-item[1].share if item[1].count else 1.0, -item[1].count))
    return {
        "rate": Rate(int(matrix.trace()), len(known)),
        "top5": top_k_rate(run.predictions, TOP) if len(names) >= 2 * TOP else None,
        "class_mean": sum(shares) / len(shares) if shares else math.nan,
        "names": names,
        "matrix": matrix.tolist(),
        "rates": rates,
        "confused": most_confused(matrix),
        "strips": _strips(run, names),
    }


def _strips(run: Run, names: Sequence[str]) -> list[Group]:
    if run.load_clip is None:
        return []
    if run.unit == "recording":
        return make_strips(
            run.predictions, names, run.load_clip, max_side=SPECTROGRAM_SIDE, random_sample=True
        )
    return make_strips(run.predictions, names, run.load_clip)


def _class_names(run: Run) -> list[str]:
    """Returns the name of each class.

    Raises:
      ValueError: records with different numbers of classes, another number than ``class_names``,
        or labels or predictions outside the range.
    """
    sizes = {len(record["probabilities"]) for record in run.predictions}
    size = sizes.pop()
    file = f"predictions/{run.split}.jsonl"
    if sizes or (run.class_names and size != len(run.class_names)):
        expected = len(run.class_names) or "one number of"
        raise ValueError(
            f"{file}: expected the probabilities of {expected} classes in every record, received "
            f"{', '.join(map(str, sorted({size, *sizes})))}; evaluate the split again"
        )
    for record in run.predictions:
        if not (-1 <= record["label"] < size and 0 <= record["prediction"] < size):
            raise ValueError(
                f"{file}: expected labels from -1 and predictions from 0 to {size - 1}, received "
                f"{record['label']} and {record['prediction']} for clip {record['index']}"
            )
    return list(run.class_names) or [f"class {label}" for label in range(size)]


def _predictions(
    workdir: Workdir, config: Config, split: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the predictions of a split, and notes on missing or outdated ones."""
    path = workdir.predictions(split)
    if not path.exists():
        if split == "train":
            raise ValueError("--split=train: the training split has no end; choose another split")
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
            f"--workdir={workdir.path} --split={split} updates them."
        )
    return records, notes


def _knows_data(workdir: Workdir, config: Config, split: str, notes: list[str]) -> bool:
    """Returns True if the data are those of the predictions; appends what is missing to ``notes``.

    Predictions name examples by their number, so another list would show them beside others.
    """
    recorded = workdir.read_data()
    known = recorded.get("evaluated", {}).get(split, recorded["splits"].get(split))
    try:
        config.load_assets(workdir.path)  # The split of a run may be among them.
        lines = data_differences(known or {}, config.describe_data(split))
    except (OSError, ValueError) as error:
        reason = f"{error}. --config.data.root=FOLDER tells where the data are now"
    else:
        if not lines:
            return True
        reason = (
            f"the data are not those of the predictions: {'; '.join(lines)}. python -m "
            f"launch.evaluate --workdir={workdir.path} --split={split} predicts anew"
        )
    notes.append(f"No examples of the split {split} are shown: {reason}.")
    return False


def _captions(
    workdir: Workdir,
    config: Config,
    split: str,
    predictions: Sequence[Mapping[str, Any]],
    notes: list[str],
) -> tuple[Mapping[str, float], list[Gallery]]:
    """Returns metrics and galleries of captions; appends missing parts to ``notes``."""
    if not predictions or not all("caption" in record for record in predictions):
        return {}, []
    try:
        scorer = config.make_scorer(split, complete=True)
        scores = scorer(predictions) if scorer is not None else {}
        if not isinstance(config, ShowsCaptions):
            notes.append("No gallery of captions: the experiment does not define references().")
            return scores, []
        galleries = make_galleries(
            predictions,
            config.references(split),
            config.score_examples(split, predictions),
            partial(config.load_clip, split),
            lambda indices: _find_attention(workdir, config, split, indices, notes),
            metric=config.best_metric,
        )
    except (OSError, ImportError) as error:
        notes.append(f"No metrics and no gallery of captions: {error}.")
        return {}, []
    return scores, galleries


def _transcripts(
    config: Config, split: str, predictions: Sequence[Mapping[str, Any]], notes: list[str]
) -> Transcripts | None:
    """Returns the errors of transcripts; appends missing parts to ``notes``."""
    if not predictions or not all("text" in record for record in predictions):
        return None
    if not isinstance(config, ShowsTranscripts):
        notes.append(
            "No errors and no lines: the experiment does not define texts(), names(), groups(), "
            "confusions(), error_interval() and load_clip()."
        )
        return None
    count = len(config.texts(split))
    if missing := count - len(predictions):
        notes.append(
            f"{missing:,} of {count:,} {config.unit}s could not be loaded and count nowhere."
        )
    return make_transcripts(config, split, predictions, metric=config.best_metric)


def _forecasts(
    workdir: Workdir,
    config: Config,
    split: str,
    predictions: Sequence[Mapping[str, Any]],
    has_data: bool,
    notes: list[str],
) -> Forecasts | None:
    """Returns the errors of predicted frames; appends missing parts to ``notes``."""
    if not predictions or not all("mse_frame" in record for record in predictions):
        return None
    forecaster = None
    if has_data:
        try:
            forecaster = TrainedForecaster(TrainedModel(config, workdir))
        except (FileNotFoundError, ValueError) as error:
            notes.append(f"No sequences: {error}.")
    return make_forecasts(predictions, split, forecaster)


def _find_attention(
    workdir: Workdir, config: Config, split: str, indices: Sequence[int], notes: list[str]
) -> dict[int, CaptionAttention]:
    """Returns the attention weights of the best checkpoint for some examples, by index."""
    attention = {}
    try:
        captioner = TrainedCaptioner([TrainedModel(config, workdir)])
        for found in captioner.caption_examples(split, indices, attention=True):
            if not found.captions:
                continue
            best = found.captions[0]
            if best.attention is None:
                continue
            image = None
            if best.attention.ndim == 3 and isinstance(config, ShowsCaptions):
                image = config.crop_image(config.load_clip(split, found.index)[0])
            attention[found.index] = CaptionAttention(best.words, best.attention, image)
    except (FileNotFoundError, ValueError) as error:
        notes.append(f"No attention weights: {error}.")
    return attention
