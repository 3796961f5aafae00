"""Rehearsal: what cannot run is found before expensive data are made; the first evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flaxnets.training import loop
from flaxnets.training.config import Config, rehearsal, stands_in
from tests.flaxnets.training.test_loop import losses, run
from tests.flaxnets.training.tiny import TinyConfig, TinyData


class CostlyConfig(TinyConfig):
    """A tiny experiment whose data are expensive; ``made`` counts how often they were made."""

    made = 0

    def make_data(self, split: str) -> TinyData:
        data = super().make_data(split)
        if stands_in("features"):
            data.features = np.zeros_like(data.features)
        else:
            type(self).made += 1
        return data


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("best_metric", "acuracy", "best_metric: validation has no 'acuracy'; did you mean 'accur"),
        ("optimizer.name", "adan", "optimizer.name: unknown 'adan'"),
        ("optimizer.frozen", ("encodr",), "optimizer.frozen: no part 'encodr'"),
        ("optimizer.warmup_steps", 12, "optimizer.warmup_steps: expected 0 to"),
        ("eval_every", 0, "eval_every: expected at least 1"),
        ("dropout_rate", "high", None),
    ],
)
def test_mistakes_are_found_before_data_are_made(
    field: str, value: Any, message: str | None, tmp_path: Path
) -> None:
    CostlyConfig.made = 0
    config = CostlyConfig()
    *parts, name = field.split(".")
    owner: Any = config
    for part in parts:
        owner = getattr(owner, part)
    setattr(owner, name, value)
    with pytest.raises((ValueError, TypeError), match=message):
        run(config, tmp_path)
    assert CostlyConfig.made == 0


@pytest.mark.parametrize("scored", [(), ("CIDEr",)])
def test_the_metric_is_checked_before_the_first_step(
    scored: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyConfig, "scored_metrics", lambda self, split: scored)
    with pytest.raises(ValueError, match="has no 'Loss'; did you mean 'loss'"):
        run(TinyConfig(best_metric="Loss"), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_rehearsed_training_uses_the_real_data(tmp_path: Path) -> None:
    CostlyConfig.made = 0
    outcome = run(CostlyConfig(), tmp_path / "costly")
    assert CostlyConfig.made == 2  # Training and validation, each once.
    assert outcome.metrics == run(TinyConfig(), tmp_path / "plain").metrics


def test_stand_ins_are_asked_for_inside_a_rehearsal_alone() -> None:
    assert not stands_in("features")
    with rehearsal() as expensive:
        assert stands_in("features")
    assert expensive == ["features"]
    assert not stands_in("features")


def test_the_first_evaluation_of_a_long_run_comes_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LEAST_EARLY", 3)
    config = TinyConfig(num_steps=12, eval_every=6)
    steps = [step for step in range(1, 13) if loop.is_evaluated(config, step)]
    assert steps == [3, 6, 12]
    assert loop.first_evaluation(config) == 3
    run(config, tmp_path)
    evaluated = [r["step"] for r in loop.read_metrics(tmp_path) if r["split"] == "validation"]
    assert evaluated == steps


@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [3, 4])
def test_a_run_without_the_early_evaluation_resumes_with_equal_parameters(
    stopped_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LEAST_EARLY", 3)
    config = TinyConfig(num_steps=12, eval_every=6, checkpoint_every=1)
    run(config, tmp_path / "whole")

    def stop(step: int, _: object) -> None:
        if step == stopped_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as earlier:
        earlier.setattr(loop, "first_evaluation", lambda config: config.eval_every)
        earlier.setattr(loop.Profile, "finish", lambda self, step, sums: stop(step - 1, sums))
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "resumed")
    run(config, tmp_path / "resumed")
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    whole, resumed = (losses(tmp_path / name, "validation") for name in ("whole", "resumed"))
    # The checkpoint of the early step is still evaluated if the run resumes from it.
    assert set(resumed) == {6, 12} | ({3} if stopped_at == 3 else set())
    assert all(whole[step] == value for step, value in resumed.items())


@pytest.mark.parametrize("num_steps", [1, 50, 999, 10_000, 10**6])
@pytest.mark.parametrize("eval_every", [1, 99, 101, 5_000, 10**7])
def test_no_evaluation_comes_later_than_asked_for(num_steps: int, eval_every: int) -> None:
    config = Config(num_steps=num_steps, eval_every=eval_every)
    first = loop.first_evaluation(config)
    assert 1 <= first <= min(eval_every, num_steps, loop.MOST_EARLY)
    assert loop.is_evaluated(config, first)
