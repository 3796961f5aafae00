r"""Nested cross-validation: settings are chosen without the fold that is tested.

    python -m launch.nested_search --config=experiments/ut_interaction.py \
        --candidates=experiments/studies/ut_interaction.toml --workdir=runs/nested \
        --config.data.root=…/ut_interaction/set1

The file of candidates has a table of fields for each, empty for the experiment's own settings:

    [own]
    [with_rgb]
    "data.streams" = ["rgb_whole", "difference_whole"]

For each pair of folds a candidate is trained once without both, and measured on each of the two. A
fold's candidate is the one with the lowest mean loss on the other folds, each measured by networks
that saw neither; it is then trained on all folds but that one, and tested, with several seeds. So
the accuracy is that of the whole procedure, the search included, on a fold that it never saw: what
to expect of new scenes as far as the folds are like them. The candidate for use has the lowest mean
loss of all pairs.

The same command resumes. ``nested.md`` has the tables, ``nested.json`` all figures of the choice,
and ``crossvalidation.json``, as of ``launch.crossvalidate``, which clips were right.
"""

import copy
import itertools
import json
import logging
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from flaxnets.inference.trained_model import TrainedModel
from flaxnets.training.config import Config, override
from flaxnets.training.loop import train
from flaxnets.training.workdir import write_text_atomically
from launch import program
from launch.folds import Correct, format_table, integers, record, run_fold
from launch.nesting import Inner, choose, format_candidates

config_flags.DEFINE_config_file(
    "config", None, "Experiment, FILE[:variant]; --config.FIELD=VALUE overrides a field."
)
WORKDIR = program.define_path(
    "workdir", None, "Folder of all runs; created if missing.", required=True
)
CANDIDATES = program.define_path(
    "candidates", None, "TOML file with a table of fields for each candidate.", required=True
)
FOLDS = flags.DEFINE_list(
    "folds", [str(fold) for fold in range(1, 11)], "Numbers of the folds, separated by commas."
)
SEEDS = flags.DEFINE_list(
    "seeds", ["0", "1", "2"], "Random seeds of the tested networks, separated by commas."
)
INNER_SEEDS = flags.DEFINE_list(
    "inner_seeds", ["0"], "Random seeds of the networks that choose, separated by commas."
)
RESULT, CROSS_VALIDATION = "result.json", "crossvalidation.json"

flags.adopt_module_key_flags(program)

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs what is missing and prints the tables; returns the exit code."""
    spec, base_config = program.experiment_of_flag(argv)
    folds, seeds = integers("folds", FOLDS.value), integers("seeds", SEEDS.value)
    inner_seeds = integers("inner_seeds", INNER_SEEDS.value)
    if len(folds) < 3:
        raise ValueError(f"--folds: expected at least 3, received {','.join(FOLDS.value)}")
    candidates = read_candidates(Path(CANDIDATES.value), base_config)
    base = Path(WORKDIR.value)
    base.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str((base / "compiled").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    inner: dict[str, Inner] = {name: {} for name in candidates}
    for seed, (name, config) in itertools.product(inner_seeds, candidates.items()):
        for pair in itertools.combinations(folds, 2):
            found = _measure_pair(spec, config, pair, seed, base / "inner" / name)
            if isinstance(found, int):
                return _stopped(found)
            for fold in pair:
                inner[name].setdefault(pair, {}).setdefault(fold, []).append(found[str(fold)])
    chosen = {fold: choose(inner, fold) for fold in folds}
    correct: dict[str, Correct] = {}
    for fold, seed in itertools.product(folds, seeds):
        config = copy.deepcopy(candidates[chosen[fold]])
        config.set_fold(fold)
        config.seed = seed
        outcome = run_fold(spec, config, base / "outer" / f"fold{fold:02d}_seed{seed}")
        if isinstance(outcome, int):
            return _stopped(outcome)
        record(correct, "chosen without the fold", fold, seed, outcome)
    table = (
        format_table(correct, num_classes=len(base_config.class_names))
        + "\n"
        + format_candidates(inner, chosen)
    )
    write_text_atomically(base / "nested.md", table)
    figures = {
        "candidates": {name: {str(k): v for k, v in of.items()} for name, of in inner.items()},
        "chosen": chosen,
        "for_use": choose(inner),
    }
    write_text_atomically(base / "nested.json", json.dumps(figures, indent=1) + "\n")
    write_text_atomically(base / CROSS_VALIDATION, json.dumps(correct, indent=1) + "\n")
    print(table)
    return 0


def read_candidates(path: Path, base: Config) -> dict[str, Config]:
    """Returns the configuration of each candidate, by name.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no TOML, no candidates, or a field that the experiment does not have.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: expected TOML, received {error}") from error
    if not tables or not all(isinstance(fields, dict) for fields in tables.values()):
        raise ValueError(f"{path}: expected a table of fields for each candidate, as [own]")
    found = {}
    for name, fields in tables.items():
        config = copy.deepcopy(base)
        try:
            override(config, fields)
            found[name] = program.conform_tuples(config)
            found[name].validate()
        except ValueError as error:
            raise ValueError(f"{path}, candidate {name!r}: {error}") from error
    return found


def _measure_pair(
    spec: str, candidate: Config, pair: tuple[int, int], seed: int, folder: Path
) -> int | Mapping[str, Mapping[str, float]]:
    """Trains a candidate without two folds and measures it on both, unless it is done already.

    Returns:
      ``loss`` and ``accuracy`` by the number of the fold; or the exit code if a signal ended the
      training.
    """
    tested, held_out = pair
    path = folder / f"without{tested:02d}_{held_out:02d}_seed{seed}"
    config = copy.deepcopy(candidate)
    config.set_fold(tested)
    config.hold_out_fold(held_out)
    config.seed = seed
    with program.open_workdir(path) as workdir:
        workdir.claim(spec, config)  # Also of a result: it may be that of other settings.
        if not (path / RESULT).exists():
            outcome = train(config, workdir, show_progress=False)
            if outcome.signal is not None:
                return 128 + outcome.signal
            model = TrainedModel(config, workdir)
            found = {
                str(fold): _figures(model.evaluate(split))
                for fold, split in ((tested, "test"), (held_out, "validation"))
            }
            write_text_atomically(path / RESULT, json.dumps(found) + "\n")
            shutil.rmtree(path / "checkpoints")  # Hundreds of networks that nobody uses again.
            logger.info("%s: %s", path.relative_to(folder.parent), found)
    result: dict[str, dict[str, float]] = json.loads((path / RESULT).read_text())
    return result


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(metrics[name]) for name in ("loss", "accuracy", "examples")}


def _stopped(code: int) -> int:
    print("stopped by a signal; the same command goes on from there", file=sys.stderr)
    return code


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    program.run(main)
