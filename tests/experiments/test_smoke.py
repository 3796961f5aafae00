"""Training and evaluation of every experiment's ``smoke`` variant."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from data.captions import java_scorers
from experiments.benchmarks.training_step import TrainingStep
from experiments.captioning.config import CaptionConfig
from experiments.frames.config import FramePredictionConfig
from experiments.sequences.config import SequenceExperiment
from experiments.transcription.config import METRICS, TranscriptionConfig
from flaxnets.inference import trained_model
from flaxnets.inference.trained_model import TrainedModel, read_predictions
from flaxnets.training.config import Config
from flaxnets.training.evaluation import close_batches
from flaxnets.training.loop import train
from flaxnets.training.metric_writer import read_metrics
from flaxnets.training.parallel import DataParallel
from flaxnets.training.workdir import Workdir
from launch.program import load_experiment

FOLDER = Path(__file__).parents[2] / "experiments"


def smoke_variants() -> dict[str, Config]:
    """Returns the configuration of ``FILE:smoke`` by file, for the experiments that have it."""
    variants = {}
    for path in sorted(FOLDER.glob("*.py")):
        if "def get_config(" not in path.read_text():
            continue
        try:
            variants[path.name] = load_experiment(f"{path}:smoke")
        except ValueError as error:
            # A variant that fails for another reason must not go missing.
            if "no such variant" not in str(error):
                raise
    return variants


VARIANTS = smoke_variants()
# Trained and evaluated to their end by `make stress` alone.
LONG = (
    *("image_captioning.py", "lrcn_caption.py", "lstnet.py", "show_and_tell.py", "up_down.py"),
    # Video papers share the loaders of lrcn_ucf101.py.
    *("audio_visual.py", "beyond_short_snippets.py", "crnn_3d.py", "gru_rcn.py", "ts_lstm.py"),
    "unsupervised_lstm_classifier.py",
    "predrnn.py",
)


def test_the_known_experiments_have_a_smoke_variant() -> None:
    classifiers = {
        *("audio_visual.py", "beyond_short_snippets.py", "crnn_3d.py", "gru_rcn.py", "ts_lstm.py"),
        *("two_stream_lrcn.py", "unsupervised_lstm_classifier.py"),
        "image_classification.py",
        "lrcn_ucf101.py",
        "moving_shapes.py",
        "sound_events.py",
        "video_classification.py",
    }
    captioners = {
        "lrcn_caption.py",
        "scst.py",
        "show_and_tell.py",
        "show_attend_tell.py",
        "up_down.py",
    }
    readers = {"crnn_text_lines.py", "deep_speech2.py"}
    sequences = {"char_rnn.py", "penn_treebank.py", "series.py", "lstnet.py", "remaining_life.py"}
    frames = {"conv_lstm.py"}
    assert classifiers | captioners | readers | sequences | frames <= VARIANTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_two_steps(name: str, tmp_path: Path) -> None:
    config = VARIANTS[name]
    if isinstance(config, CaptionConfig):
        config.data.cache = str(tmp_path / "cache")
    config.validate()
    batches = config.make_data("train").batches()
    batch = next(batches)
    close_batches(batches)
    step = TrainingStep(config.make_model(), config.make_task(), config.optimizer, batch)
    before = jax.tree.map(np.asarray, step.variables["params"])
    assert math.isfinite(step())
    assert math.isfinite(step())
    after = step.variables["params"]
    moved = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)]
    assert any(moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    # Captioners share all but the decoder: two of them here, the others by `make stress`; LSTNet
    # shares all but its skip-recurrent layer with series.py.
    [pytest.param(name, marks=[pytest.mark.stress] * (name in LONG)) for name in VARIANTS],
)
def test_smoke(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # METEOR takes seconds to start, and has tests of its own.
    monkeypatch.setattr(java_scorers, "find_java", lambda: None)
    config = VARIANTS[name]
    captions = isinstance(config, CaptionConfig)
    lines = isinstance(config, TranscriptionConfig)
    sequences = isinstance(config, SequenceExperiment)
    if isinstance(config, CaptionConfig):
        config.data.cache = str(tmp_path / "cache")
    # The test session's devices are simulated; the run gets one, and what is evaluated from its
    # checkpoint all of them, for one experiment of a kind: each compiles the search once more.
    strategy = DataParallel(jax.devices()[:1])
    if name not in ("moving_shapes.py", "show_attend_tell.py"):
        monkeypatch.setattr(trained_model, "DataParallel", lambda: strategy)
    with Workdir(tmp_path) as workdir:
        workdir.claim(f"{FOLDER / name}:smoke", config)
        outcome = train(config, workdir, strategy=strategy, show_progress=False)
    assert outcome.step == config.num_steps
    records = read_metrics(tmp_path)
    trained = [record for record in records if record["split"] == "train"]
    assert trained[-1]["step"] == config.num_steps
    assert all(math.isfinite(record["loss"]) for record in records)
    assert all(math.isfinite(record["gradient_norm"]) for record in trained)
    rates = {"learning_rate", "clips_per_second", "data_wait_share"}
    # Sampled captions have rewards instead of the accuracy of words.
    right = "accuracy" if not captions else "reward" if name == "scst.py" else "word_accuracy"
    if lines:
        right = "too_long"
    if sequences:
        right = "loss"  # Forecasts have no accuracy.
    if isinstance(config, FramePredictionConfig):
        right = "mse_frame"
    assert rates | {right} <= trained[-1].keys()
    evaluated = [record for record in records if record["split"] == config.eval_split]
    assert evaluated[-1]["step"] == config.num_steps
    assert evaluated[-1][config.best_metric] == outcome.metrics[config.best_metric]
    if captions:
        assert {"BLEU-4", "ROUGE-L", "CIDEr", "motion_accuracy"} <= outcome.metrics.keys()

    metrics = TrainedModel(config, Workdir(tmp_path)).evaluate("test")
    assert math.isfinite(metrics["loss"])
    if isinstance(config, SequenceExperiment):
        # A stream has no row of its own for each example, and counts the predicted steps.
        assert metrics["examples"] > 0
        assert set(config.scored_metrics("test")) <= set(metrics)
        return
    if isinstance(config, FramePredictionConfig):
        # The error of each step ahead comes with the complete scores.
        steps = [metrics[f"mse_frame_{step + 1}"] for step in range(config.data.num_outputs)]
        assert sum(steps) / len(steps) == pytest.approx(metrics["mse_frame"])
        assert -1 <= metrics["ssim"] <= 1
        return
    names = ("word_accuracy", "BLEU-1") if captions else ("accuracy", "top5_accuracy")
    if lines:
        names = (METRICS[-1], "too_long")
    assert all(0 <= metrics[each] <= 1 for each in names)
    test = config.make_data("test")
    assert metrics["examples"] + metrics["skipped"] == test.num_examples
    if lines:
        records = read_predictions(Workdir(tmp_path).predictions("test"))
        assert {"text", "confidence", "characters"} <= records[0].keys()
        return
    if not captions:
        assert metrics["accuracy"] <= metrics["top5_accuracy"]
        return
    records = read_predictions(Workdir(tmp_path).predictions("test"))
    assert [record["index"] for record in records] == list(range(test.num_examples))
    assert {"caption", "log_probability", "ended"} <= records[0].keys()
