"""Search spaces of a sweep: values that each form draws, cells of a grid, and refusals."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from ml_collections import config_flags

from flaxnets.training.config import Config
from launch.program import load_experiment
from launch.sweeps.plan import make_plan
from launch.sweeps.space import (
    Dimension,
    apply,
    flag,
    load_suggest,
    make_cells,
    parse_spaces,
)
from tests.launch.programs import MOVING_SHAPES

optuna = pytest.importorskip("optuna")


@dataclasses.dataclass
class Part:
    widths: tuple[int, ...] = (8, 8)
    pair: tuple[int, str] = (1, "a")
    deep: bool = False
    limit: int | None = None


@dataclasses.dataclass
class Example(Config):
    part: Part = dataclasses.field(default_factory=Part)


def parse(*texts: str) -> list[Dimension]:
    return parse_spaces(texts, Example())


def draws(text: str, count: int = 60) -> list[Any]:
    """Returns the values that a dimension draws in some trials."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    [dimension] = parse(text)
    return [dimension.suggest(study.ask()) for _ in range(count)]


def refused(*texts: str) -> str:
    with pytest.raises(ValueError, match="space: ") as error:
        parse(*texts)
    return str(error.value)


def test_lists_draw_values_of_the_fields_type() -> None:
    assert set(draws("optimizer.name=sgd,adam")) == {"sgd", "adam"}
    widths = draws("num_steps=10,20")
    assert set(widths) == {10, 20}
    assert {type(value) for value in widths} == {int}
    rates = draws("optimizer.learning_rate=1,1e-3")
    assert set(rates) == {1.0, 1e-3}
    assert {type(value) for value in rates} == {float}
    assert set(draws("part.deep=true,False")) == {True, False}
    assert set(draws("part.limit=none,3")) == {None, 3}
    assert set(draws("part.widths=(8,8),(16,)")) == {(8, 8), (16,)}


def test_ranges_draw_numbers_between_their_ends() -> None:
    momenta = draws("optimizer.momentum=0.5:0.99")
    assert all(0.5 <= value <= 0.99 for value in momenta)
    assert len(set(momenta)) == 60
    sizes = draws("batch_size=1:3")
    assert set(sizes) == {1, 2, 3}
    assert {type(value) for value in sizes} == {int}
    assert set(draws("batch_size=8:30:8")) == {8, 16, 24}
    assert set(draws("ema_decay=0.1:0.35:0.1")) == {0.1, 0.2, 0.3}
    rates = draws("optimizer.learning_rate=log:1e-6:1")
    assert all(1e-6 <= value <= 1 for value in rates)
    # Half of them below the geometric mean, of which a linear scale has a thousandth.
    assert 15 < sum(value < 1e-3 for value in rates) < 45
    assert {type(value) for value in draws("num_steps=log:1:1000")} == {int}


def test_a_grid_has_every_combination_once() -> None:
    cells = make_cells(parse("ema_decay=0.1:0.3:0.1", "part.widths=(8,),(8,8)", "batch_size=1:2"))
    assert len(cells) == len({str(cell) for cell in cells}) == 12
    assert cells[0] == {"ema_decay": 0.1, "part.widths": "(8,)", "batch_size": 1}
    assert cells[1] == {"ema_decay": 0.1, "part.widths": "(8,)", "batch_size": 2}
    assert cells[-1] == {"ema_decay": 0.3, "part.widths": "(8, 8)", "batch_size": 2}
    with pytest.raises(ValueError, match="expected --space of at least one field for a grid"):
        make_cells([])
    for text in ("optimizer.learning_rate=log:1e-4:1", "ema_decay=0:0.5", "num_steps=log:1:9"):
        with pytest.raises(ValueError, match=r"LOW:HIGH:STEP for a grid over .*, received"):
            make_cells(parse(text))
    with pytest.raises(ValueError, match="at most 100000 cells of a grid, received 250000"):
        make_cells(parse("batch_size=1:500", "num_steps=1:500"))


def test_equal_spaces_are_written_equally() -> None:
    texts = ("ema_decay=1e-1:0.35:0.10", "optimizer.learning_rate=log:1e-4:.1", "part.widths=(8,8)")
    assert [str(dimension) for dimension in parse(*texts)] == [
        "ema_decay=0.1:0.3:0.1",
        "optimizer.learning_rate=log:0.0001:0.1",
        "part.widths=(8, 8)",
    ]


def test_fields_that_are_not_there_or_cannot_vary_are_refused() -> None:
    message = "space: no field optimizer.learning_rat in the configuration; did you mean 'optim"
    assert refused("optimizer.learning_rat=1,2").startswith(message)
    assert "; there are accumulate_steps, " in refused("zzzzz=1")
    assert "space: optimizer is" not in refused("optimizer=1")
    assert refused("best_metric=loss,accuracy").startswith("space: best_metric judges the trials")
    assert refused("optimizer.multipliers=1").endswith("is a dict, which no flag can set")
    assert refused("seed=1,2", "seed=3").endswith("expected each field once, received seed twice")
    assert refused("seed") == "space: expected FIELD=VALUES, received 'seed'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed=", "expected values of seed, received none"),
        ("seed=1,two", "expected int for seed, received 'two'"),
        ("seed=1,2.5", "expected int for seed, received '2.5'"),
        ("seed=1,,2", "expected int for seed, received ''"),
        ("seed=1,2,1", "expected each value of seed once, received 1 twice"),
        ("ema_decay=0.1,nan", "expected float for ema_decay, received nan"),
        ("part.deep=yes,no", "expected bool for part.deep, received 'yes'"),
        ("part.limit=1,x", "expected int | None for part.limit, received 'x'"),
        ("part.widths=8,16", "expected tuples for part.widths, as (8,8),(16,16), received '8,16'"),
        ("part.widths=(8,'a')", "expected int for part.widths, received 'a'"),
        ("part.pair=(1,'a','b')", "expected tuple[int, str] for part.pair"),
        ("seed=1:2.5", "expected integers for seed, received '1:2.5'"),
        ("seed=5:5", "expected LOW below HIGH for seed, received '5:5'"),
        ("seed=a:b", "of numbers for seed, received 'a:b'"),
        ("seed=1:2:3:4", "expected LOW:HIGH, LOW:HIGH:STEP or log:LOW:HIGH for seed"),
        ("seed=log:1:9:2", "expected LOW:HIGH, LOW:HIGH:STEP or log:LOW:HIGH for seed"),
        ("seed=0:9:0", "expected STEP from 0 to HIGH - LOW for seed, received '0:9:0'"),
        ("ema_decay=log:0:1", "expected LOW above 0 for ema_decay with log"),
        ("ema_decay=0:inf", "expected finite numbers for ema_decay, received '0:inf'"),
    ],
)
def test_values_that_are_not_of_the_fields_type_are_refused(text: str, message: str) -> None:
    assert message in refused(text)


def test_values_are_set_with_a_check() -> None:
    config = Example()
    applied = apply(config, {"optimizer.learning_rate": 1, "part.widths": [4, 2], "part.limit": 7})
    assert applied == {"optimizer.learning_rate": 1.0, "part.widths": (4, 2), "part.limit": 7}
    assert (config.optimizer.learning_rate, config.part.widths) == (1.0, (4, 2))
    with pytest.raises(ValueError, match="expected int for seed, received True"):
        apply(config, {"seed": True})
    with pytest.raises(ValueError, match="no field sed in the configuration; did you mean 'seed'"):
        apply(config, {"sed": 1})


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_flags_give_the_program_the_same_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "optimizer.learning_rate": 0.000123,
        "optimizer.schedule": "linear",
        "model.encoder.features": (4, 16),
        "data.single_frame": True,
        "num_steps": 7,
    }
    expected = load_experiment(MOVING_SHAPES.removeprefix("--config="))
    apply(expected, values)
    arguments = ["train", MOVING_SHAPES, *(flag(name, value) for name, value in values.items())]
    monkeypatch.setattr(sys, "argv", arguments)  # The flag looks for its overrides there.
    own = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=own)
    own(arguments)
    assert dataclasses.asdict(own.config) == dataclasses.asdict(expected)


SUGGEST = """
def suggest(trial):
    name = trial.suggest_categorical("name", ["sgd", "adam"])
    high = 1.0 if name == "sgd" else 1e-2
    rate = high * trial.suggest_float("u", 0, 1)
    return {"optimizer.name": name, "optimizer.learning_rate": rate}
"""


def plan_of(tmp_path: Path, text: str, **options: Any) -> Any:
    path = tmp_path / "space.py"
    path.write_text(text)
    settings = {"sampler": "tpe", "pruner": "none", "space": [], **options}
    return make_plan("example.py", Example(), space_file=path, **settings)


def test_a_file_draws_what_belongs_together(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, SUGGEST, space=["batch_size=8,16"])
    assert (plan.trials, plan.cells) == (16, None)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    assert plan.suggest is not None
    for _ in range(20):
        values = plan.suggest(study.ask())
        highest = 1.0 if values["optimizer.name"] == "sgd" else 1e-2
        assert 0 <= values["optimizer.learning_rate"] <= highest
    other = plan_of(tmp_path, SUGGEST + "\n", space=["batch_size=8,16"])
    assert other.settings.differences(plan.settings.to_json()) == [
        f"space_file: {plan.settings.space_file} there, {other.settings.space_file} now"
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "space.py defines no suggest(trial)"),
        ("def suggest(trial): return 3", {}, "to return values by field, received int"),
        ("def suggest(trial): return {'sed': 3}", {}, "no field sed in the configuration; did you"),
        ("def suggest(trial): return {'seed': 'x'}", {}, "expected int for seed, received 'x'"),
        (
            "def suggest(trial): return {'seed': 1}",
            {"space": ["seed=1,2"]},
            "seed is given by --sp",
        ),
        ("def suggest(trial): return {'seed': 1}", {"seeds": [0]}, "where the field seed varies"),
        (SUGGEST, {"sampler": "grid"}, "expected none with the sampler grid, received one"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    text: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        plan_of(tmp_path, text, **options)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"space_file: no file .*none\.py"):
        load_suggest(tmp_path / "none.py")
