"""Configurations: updates from JSON, differences, refused values."""

import dataclasses
import json

import pytest

from flaxnets.configuration import nearest, runtime
from flaxnets.training.config import Config, OptimizerConfig, differences, flatten, to_dict, update


@dataclasses.dataclass
class Part:
    size: int = 3
    fold: int = 0


@dataclasses.dataclass
class Example(Config):
    widths: tuple[int, ...] = (1, 2)
    num_workers: int = runtime(0)
    part: Part = dataclasses.field(default_factory=Part)


def test_values_survive_json() -> None:
    config = Example(widths=(3,), optimizer=OptimizerConfig(multipliers={"head": 10.0}))
    restored = Example()
    update(restored, json.loads(json.dumps(to_dict(config))))
    assert restored == config
    assert differences(json.loads(json.dumps(to_dict(config))), config) == []


def test_differences_name_each_value_and_leave_out_how_a_run_is_carried_out() -> None:
    recorded = to_dict(Example())
    config = Example(num_workers=4, widths=(1,), optimizer=OptimizerConfig(learning_rate=0.5))
    assert differences(recorded, config) == [
        "optimizer.learning_rate: 0.001 there, 0.5 now",
        "widths: [1, 2] there, [1] now",
    ]
    assert "num_workers: 0 there, 4 now" in differences(recorded, config, include_runtime=True)
    del recorded["seed"]
    assert "seed: 'absent' there, 0 now" in differences(recorded, config)


def test_unknown_fields_name_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"optimizer\.learning_rat: .*did you mean 'learning_rate'"
    ):
        update(Example(), {"optimizer": {"learning_rat": 1.0}})
    assert nearest("zzz", ["b", "a"]) == "; there are a, b"


def test_flatten_gives_dotted_names() -> None:
    names = [name for name, _ in flatten(Example())]
    assert "optimizer.clip_norm" in names
    assert "widths" in names


@pytest.mark.parametrize("field", ["batch_size", "num_steps", "eval_every", "log_every"])
def test_what_cannot_run_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected at least 1, received 0"):
        Example(**{field: 0}).validate()
    with pytest.raises(ValueError, match="max_nonfinite_steps: expected at least 0, received -1"):
        Example(max_nonfinite_steps=-1).validate()
    with pytest.raises(ValueError, match="a divisor of batch_size = 32, received 3"):
        Example(accumulate_steps=3).validate()
    with pytest.raises(ValueError, match="ema_decay: expected 0 to below 1, received 1"):
        Example(ema_decay=1.0).validate()
    with pytest.raises(ValueError, match="best_mode: expected 'max' or 'min', received 'big'"):
        Example(best_mode="big").validate()


def test_an_experiment_without_a_part_says_which() -> None:
    with pytest.raises(TypeError, match=r"Example does not define make_model\(\)"):
        Example().make_model()
