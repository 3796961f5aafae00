r"""Cross-validated comparison of streams, ensembles and checkpoints for one's own videos.

    python -m experiments.features.compare_recipes --root=my_videos --cache=runs/features \
        --group_pattern='(s\d+)_' --folds=6 --out=runs/recipes.md

Each fold of each seed trains the networks of ``experiments/video_classification.py`` once, several
for each stream. They are independent but for the clipping of their common gradient norm, so all
combinations of streams and members are read from one training, at its last step and at the step of
the lowest validation loss. Linear classifiers on the same features and folds stand beside them.
Features of all streams are encoded once and cached; nothing of a test fold is fitted or selected.
"""

import argparse
import copy
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.video.decoding import probe
from experiments.features.frozen_features import over_time, predict_linear
from experiments.video_classification import VideoClassificationConfig, get_config
from flaxnets.tasks.video_classification import average_steps, valid_steps
from flaxnets.training.loop import make_variables
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.state import make_state
from flaxnets.training.step import make_train_step

STREAMS = ("rgb_whole", "difference_whole", "difference_square")

Outcome = list[tuple[bool, float]]
"""For each test video: whether it was classified correctly, and −log p of its class, nats."""


def compare(config: VideoClassificationConfig, seeds: Sequence[int]) -> dict[str, list[Outcome]]:
    """Returns, by the method's name, the outcomes of all test videos, one list for each seed.

    Args:
      config: with the root, the streams, ``data.num_folds`` and the greatest number of members.
      seeds: of the folds, the parameters and the order of the videos.
    """
    compiled: dict[str, Any] = {}
    found: dict[str, list[Outcome]] = {}
    for seed in seeds:
        of_seed: dict[str, Outcome] = {}
        for fold in range(1, config.data.num_folds + 1):
            run = copy.deepcopy(config)
            run.seed = seed
            run.set_fold(fold)
            for name, outcome in (linear(run) | recurrent(run, compiled)).items():
                of_seed.setdefault(name, []).extend(outcome)
        for name, outcome in of_seed.items():
            found.setdefault(name, []).append(outcome)
    return found


def recurrent(config: VideoClassificationConfig, compiled: dict[str, Any]) -> dict[str, Outcome]:
    """Trains one fold; returns the outcomes of all streams, members and choices of the step.

    Args:
      config: of the fold.
      compiled: the step and the prediction, which all folds share; made by the first one.
    """
    model, task = config.make_model(), config.make_task()
    data = config.make_data("train")
    batches = data.batches()
    batch = next(batches)
    variables = make_variables(config, model, task, batch)
    settings = config.make_optimizer_config()
    optimizer = make_optimizer(settings, config.num_steps, variables["params"])
    if not compiled:
        frozen = tuple(settings.frozen)
        compiled["step"] = jax.jit(make_train_step(model, task, optimizer, frozen=frozen))

        def predict(variables: Any, batch: Mapping[str, Any]) -> Any:
            """Returns (B,S·members,K), averaged over the steps and the views."""
            views, lengths = batch["features"], batch["lengths"]  # (B,V,T,S,D)
            b, v, t = views.shape[:3]
            lengths = lengths.reshape(-1)
            logits: Any = model.apply(
                variables, views.reshape(b * v, *views.shape[2:]), lengths, train=False
            )
            gains = valid_steps(lengths, t).astype(jnp.float32)
            probabilities = jax.nn.softmax(average_steps(logits, gains))
            return probabilities.reshape(b, v, *probabilities.shape[1:]).mean(1)

        compiled["predict"] = jax.jit(predict)
    state = make_state(variables, optimizer, config.seed, ema=False)
    curves: dict[str, list[np.ndarray]] = {"validation": [], "test": []}
    labels: dict[str, np.ndarray] = {}
    for step in range(1, config.num_steps + 1):
        state, _ = compiled["step"](state, batch)
        batch = next(batches)
        if step % config.eval_every == 0 or step == config.num_steps:
            for split, curve in curves.items():
                probabilities, labels[split] = _predict(config, split, compiled, state.variables)
                curve.append(probabilities)
    batches.close()

    streams, members = config.data.streams, config.model.members
    found: dict[str, Outcome] = {}
    for size in range(1, len(streams) + 1):
        for chosen in itertools.combinations(range(len(streams)), size):
            for count in sorted({1, members}):
                networks = [s * members + m for s in chosen for m in range(count)]
                validation, test = (
                    [probabilities[:, networks].mean(1) for probabilities in curves[split]]
                    for split in ("validation", "test")
                )
                losses = [
                    np.mean([loss for _, loss in _outcome(probabilities, labels["validation"])])
                    for probabilities in validation
                ]
                name = f"{' + '.join(streams[s] for s in chosen)} | {count}"
                found[f"{name} | last"] = _outcome(test[-1], labels["test"])
                best = int(np.argmin(losses))
                found[f"{name} | lowest validation loss"] = _outcome(test[best], labels["test"])
    return found


def linear(config: VideoClassificationConfig) -> dict[str, Outcome]:
    """Returns the outcomes of logistic regression on a fold; its loss is not evaluated (NaN)."""
    files = config.files
    labels = np.array(files.labels)
    train, test = (np.array(files.indices(split)) for split in ("train", "test"))
    infos = [probe(path) for path in files.paths]
    inputs = {"length and size": np.array([[i.num_frames, i.height, i.width] for i in infos])}
    features = np.zeros(0)
    for split in ("train", "validation", "test"):
        examples = config._examples(split)
        rows = np.stack(
            [np.asarray(examples[i]["features"], np.float32) for i in range(len(examples))]
        )
        if not features.size:
            features = np.zeros((len(files), *rows.shape[1:]), np.float32)  # (N,S,T,D)
        features[files.indices(split)] = rows
    for number, stream in enumerate(config.data.streams):
        summaries = over_time(features[:, number], stream)
        inputs |= {name: value for name, value in summaries.items() if "maximum" not in name}
    every = over_time(features.swapaxes(1, 2).reshape(*features.shape[::2], -1), "all streams")
    inputs |= {name: value for name, value in every.items() if "maximum" not in name}
    return {
        f"logistic regression: {name} | |": [
            (label == prediction, float("nan"))
            for label, prediction in predict_linear(values, labels, train, test)
        ]
        for name, values in inputs.items()
    }


def format_table(found: Mapping[str, Sequence[Outcome]]) -> str:
    """Returns a Markdown table: accuracy in % with its standard deviation over seeds, and loss."""
    first = next(iter(found.values()))
    lines = [
        f"Accuracy in % on {len(first[0])} videos, each tested once by each of {len(first)} seeds; "
        f"± is the standard deviation over seeds, one video is {100 / len(first[0]):.1f} points.",
        "",
        "| streams | networks a stream | step | accuracy | negative log-likelihood, nats |",
        "|---|---|---|---|---|",
    ]
    for name, seeds in found.items():
        accuracies = [100 * np.mean([hit for hit, _ in outcome]) for outcome in seeds]
        loss = np.mean([loss for outcome in seeds for _, loss in outcome])
        spread = f" ± {np.std(accuracies, ddof=1):.1f}" if len(seeds) > 1 else ""
        shown = "" if np.isnan(loss) else f"{loss:.2f}"
        lines.append(f"| {name} | {np.mean(accuracies):.1f}{spread} | {shown} |")
    return "\n".join(lines) + "\n"


def _predict(
    config: VideoClassificationConfig, split: str, compiled: Mapping[str, Any], variables: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N,S·members,K) probabilities and the labels (N,) of a split."""
    probabilities, labels = [], []
    for batch in config.make_data(split).batches():
        rows = batch["mask"]
        probabilities.append(np.asarray(compiled["predict"](variables, batch))[rows])
        labels.append(batch["label"][rows])
    return np.concatenate(probabilities), np.concatenate(labels)


def _outcome(probabilities: np.ndarray, labels: np.ndarray) -> Outcome:
    of_class = np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30)
    hits = probabilities.argmax(-1) == labels
    return [(bool(hit), float(-np.log(p))) for hit, p in zip(hits, of_class, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares on the videos that the flags name, and prints and writes the table."""
    config = get_config()
    assert isinstance(config, VideoClassificationConfig)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with a folder for each class")
    parser.add_argument("--group_pattern", default="", help="as data.group_pattern")
    parser.add_argument("--cache", default=config.data.cache, help="folder of cached features")
    parser.add_argument("--folds", type=int, default=6)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--streams", default=",".join(STREAMS))
    parser.add_argument("--members", type=int, default=config.model.members)
    parser.add_argument("--num_steps", type=int, default=config.num_steps)
    parser.add_argument("--eval_every", type=int, default=config.eval_every)
    parser.add_argument("--out", type=Path, help="file of the table")
    flags = parser.parse_args(arguments)
    data = config.data
    data.root, data.cache, data.group_pattern = flags.root, flags.cache, flags.group_pattern
    data.num_folds, data.streams = flags.folds, tuple(flags.streams.split(","))
    config.num_steps, config.eval_every = flags.num_steps, flags.eval_every
    config.model.members = flags.members
    config.validate()
    table = format_table(compare(config, [int(seed) for seed in flags.seeds.split(",")]))
    print(table)
    if flags.out:
        os.makedirs(flags.out.parent, exist_ok=True)
        flags.out.write_text(table)


if __name__ == "__main__":
    main()
