"""Help of experiments: every field is explained, and flags of other programs are understood."""

from typing import Any

import pytest

from flaxnets.encoders.config import ENCODERS
from flaxnets.recurrent.config import CELLS
from flaxnets.training.config import Config, flatten
from launch.explain import (
    FLAG_SYNONYMS,
    SENTENCES,
    SYNONYMS,
    describe_fields,
    describe_values,
    explain_flag,
    fields_of,
)
from launch.program import ROOT, load_experiment

EXPERIMENTS = sorted(
    f"experiments/{file.name}"
    for file in (ROOT / "experiments").glob("*.py")
    if "\ndef get_config(" in file.read_text()
)
LRCN = "experiments/lrcn_ucf101.py"


@pytest.fixture(scope="module")
def lrcn() -> Any:
    return load_experiment(LRCN)


@pytest.mark.parametrize("spec", EXPERIMENTS)
def test_every_field_has_a_type_and_a_docstring(spec: str) -> None:
    config = load_experiment(spec)
    found = list(fields_of(config))
    assert [field.name for field in found if not field.doc] == []
    assert sorted(field.name for field in found) == sorted(name for name, _ in flatten(config))
    text = describe_fields(spec, config)
    assert all(f"--config.{field.name}=" in text for field in found)
    assert max(map(len, text.splitlines())) < 200


def test_fields_name_their_choices(lrcn: Any) -> None:
    fields = {field.name: field for field in fields_of(lrcn)}
    assert fields["model.encoder.name"].choices == tuple(ENCODERS)
    assert fields["model.recurrent.cell"].choices == tuple(CELLS)
    assert fields["batch_size"].choices == ()
    assert fields["data.validation_groups"].kind == "tuple[str, ...]"
    assert fields["log_every"].runtime
    assert not fields["seed"].runtime


def test_a_subclass_may_leave_the_docstring_to_its_base(lrcn: Any) -> None:
    fields = {field.name: field.doc for field in fields_of(lrcn)}
    assert fields["num_steps"] == "Training steps (updates of the parameters)."


def test_values_that_differ_from_the_experiments_are_marked(lrcn: Any) -> None:
    changed = load_experiment(LRCN)
    changed.optimizer.learning_rate = 0.5
    marked = [line for line in describe_values(changed, lrcn).splitlines() if "#" in line]
    expected = "--config.optimizer.learning_rate=0.5  # in the experiment: 0.001"
    assert marked == [expected]


def test_every_synonym_leads_to_a_field_of_some_experiment() -> None:
    names = {name for spec in EXPERIMENTS for name, _ in flatten(load_experiment(spec))}
    for end in SYNONYMS:
        assert any(name == end or name.endswith(f".{end}") for name in names), end
    words = [
        word for table in (SYNONYMS, FLAG_SYNONYMS, SENTENCES) for w in table.values() for word in w
    ]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("lr", "did you mean --config.optimizer.learning_rate?"),
        ("learning-rate", "did you mean --config.optimizer.learning_rate?"),
        ("epochs", "the length of a training is given in steps, --config.num_steps=N"),
        ("batch_size", "did you mean --config.batch_size?"),
        ("steps", "did you mean --config.num_steps?"),
        ("seed", "did you mean --config.seed?"),
        ("gpus", "CUDA_VISIBLE_DEVICES=0,1"),
        ("output_dir", "did you mean --workdir?"),
        ("cell", "did you mean --config.model.recurrent.cell?"),
    ],
)
def test_flags_of_other_programs_lead_to_the_right_one(flag: str, meant: str, lrcn: Any) -> None:
    message = explain_flag(flag, lrcn, ["workdir", "config"])
    assert message.startswith(f"--{flag}: no such flag; ")
    assert meant in message


def test_nothing_is_said_of_an_unknown_name() -> None:
    assert explain_flag("confg", Config(), ["config"]) == ""
    assert explain_flag("output_dir", Config(), ["config"]) == ""  # A program without --workdir.
