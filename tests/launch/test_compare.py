"""Comparison of families over tasks: cells, resumption, probes, sentences, page, bad studies."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flaxnets.training.metric_writer import NonFiniteLoss
from launch.comparison import cell as cell_module
from launch.comparison.cell import RESULT, make_config, read_result, run_cell
from launch.comparison.order_probes import PROBES, probe_batch
from launch.comparison.page import build_page, write_page
from launch.comparison.study import Study, read_study
from launch.comparison.summary import (
    describe_families,
    format_markdown,
    format_value,
    places_of,
    rows_of,
)
from launch.program import ROOT

STUDY = ROOT / "experiments" / "studies" / "cnn_rnn_both.toml"
SMALL = """
title = "A & B?"
[families]
cnn = "CNN alone"
both = "CNN and RNN"
[budgets.small]
seeds = [0, 1]
[[tasks]]
name = "motion"
title = "Motion <x>"
experiment = "experiments/moving_shapes.py"
metric = "accuracy"
baseline = 0.125
baseline_name = "chance"
order_probes = true
variants = { cnn = "cnn", both = "crnn" }
small = { num_steps = 3 }
ladder = { field = "data.num_test", also = ["data.num_validation"], small = [16, 24] }
[[tasks]]
name = "music"
experiment = "experiments/char_rnn.py"
metric = "loss"
mode = "min"
root = "music.txt"
variants = { both = "small" }
small = {}
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "study.toml"
    path.write_text(SMALL)
    return read_study(path, "small")


def result(family: str, rung: int, seed: int, value: float, **changes: Any) -> dict[str, Any]:
    return {
        "task": "motion",
        "family": family,
        "rung": rung,
        "seed": seed,
        "value": value,
        "parameters": 1_000,
        "flops": 2e6,
        "step_seconds": 0.1 if family == "cnn" else 0.2,
        "memory": 2**20,
        "steps": 3,
        "probes": dict.fromkeys(PROBES, 0.2),
        **changes,
    }


def results(study: Study, values: dict[str, float]) -> list[dict[str, Any]]:
    return [
        result(cell.family, cell.rung, cell.seed, values[cell.family] + 0.01 * cell.seed)
        for cell in study.cells()
    ]


def test_cells_are_all_pairs_and_tasks_without_data_are_left_out(study: Study) -> None:
    assert [cell.folder.as_posix() for cell in study.cells()][:4] == [
        "motion/cnn_16_seed0",
        "motion/both_16_seed0",
        "motion/cnn_24_seed0",
        "motion/both_24_seed0",
    ]
    assert len(study.cells()) == 8
    assert study.left_out == {"music": "its data were not given (--data_root)"}
    config: Any = make_config(study.cells()[3])
    assert (config.data.num_test, config.data.num_validation) == (24, 24)
    assert (config.num_steps, config.seed) == (3, 0)


@pytest.mark.parametrize("budget", ["small", "full"])
def test_families_of_the_study_have_equal_numbers_of_parameters(budget: str) -> None:
    import jax

    from flaxnets.training.state import count_parameters

    study = read_study(STUDY, budget)
    counts: dict[tuple[str, Any], list[int]] = {}
    for cell in study.cells():
        if (
            cell.seed
            or cell.fold not in (None, 1)
            or (budget == "full" and cell.rung != cell.task.ladder[0])
        ):
            continue
        if budget == "small" and cell.rung != cell.task.ladder[-1]:
            continue
        config: Any = make_config(cell)
        config.validate()
        if budget == "full":
            continue  # The same networks.
        model, task = config.make_model(), config.make_task()
        batch = next(config.make_data("train").batches())
        variables = jax.eval_shape(
            lambda key, m=model, t=task, b=batch: t.initialize(m, key, b), jax.random.key(0)
        )
        count = count_parameters(variables["params"])
        counts.setdefault((cell.task.name, cell.rung), []).append(count)
    for (task, _), found in counts.items():
        assert max(found) <= 1.06 * min(found), (task, found)


def test_a_seed_has_the_mean_of_its_folds(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(
        SMALL.replace("ladder = {", 'folds = { field = "data.fold", small = [1, 2] }\nladder = {')
    )
    study = read_study(path, "small")
    cells = study.cells()
    assert len(cells) == 16
    assert cells[2].folder.as_posix() == "motion/cnn_16_fold2_seed0"
    assert cells[2].overrides()["data.fold"] == 2
    found = [
        result(cell.family, cell.rung, cell.seed, 0.1 * (cell.fold or 0) + 0.4 * cell.seed)
        for cell in cells
    ]
    row = rows_of(study.tasks[0], study, found)[0]
    assert row.values == pytest.approx((0.15, 0.55))
    # A seed counts once all its folds are there.
    assert rows_of(study.tasks[0], study, found[:-1])[-1].values == pytest.approx((0.15,))


def test_sentences_recommend_the_best_and_those_within_the_spread(study: Study) -> None:
    both = results(study, {"cnn": 0.5, "both": 0.9})
    texts = {name: " ".join(s) for name, s in describe_families(study, both).items()}
    assert texts["both"].startswith("Take it where")
    assert texts["cnn"].startswith("Take another where")
    assert "CNN and RNN 90.5 ± 0.7 %" in texts["cnn"]
    assert "2.0 times as long" in texts["both"]
    close = places_of(study, results(study, {"cnn": 0.895, "both": 0.9}))
    assert all(place.ahead for places in close.values() for place in places)
    # One that learns nothing is recommended nowhere.
    none = describe_families(study, results(study, {"cnn": 0.125, "both": 0.125}))
    assert all("than what needs no network on: Motion" in " ".join(s) for s in none.values())
    assert not any("Take it" in " ".join(s) for s in none.values())
    # Before all families have ended.
    assert describe_families(study, both[:1])["cnn"] == [
        "No task has been ended by all families yet."
    ]


def test_pages_show_all_figures_and_escape_names(study: Study, tmp_path: Path) -> None:
    found = results(study, {"cnn": 0.5, "both": 0.9})
    page = build_page(study, found)
    assert "Motion &lt;x&gt;" in page
    assert "A &amp; B?" in page
    assert "8 of 8 trainings ended" in " ".join(page.split())
    assert "90.5 ± 0.7 %" in page
    assert "num_test" in page
    assert "more is better; chance: 12.5 %." in " ".join(page.split())
    table = format_markdown(study, found)
    assert "| Motion <x>, num_test 24 | accuracy | CNN alone | 50.5 ± 0.7 % | 1,000 |" in table
    assert "steps in reverse order 20.0 %" in table
    write_page(study, [], tmp_path)  # Nothing has ended.
    assert "No training has ended yet" in (tmp_path / "comparison.html").read_text()


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("views", [False, True])
def test_probes_change_the_order_or_cut_and_keep_padding_behind(probe: str, views: bool) -> None:
    lengths = np.array([[5, 3], [1, 4]]) if views else np.array([5, 1])
    x = np.zeros((*lengths.shape, 6, 2), np.float32)
    for place in np.ndindex(lengths.shape):
        x[place][: lengths[place]] = np.arange(1, lengths[place] + 1)[:, None]
    batch = {"inputs": x, "lengths": lengths, "label": np.array([0, 1])}
    changed = probe_batch(batch, probe, np.random.default_rng(0))
    for place in np.ndindex(lengths.shape):
        steps = changed["inputs"][place][:, 0].tolist()
        length, count = int(lengths[place]), int(changed["lengths"][place])
        whole = list(range(1, length + 1))
        expected = {
            "shuffled": whole,
            "reversed": whole[::-1],
            "first_half": whole[: -(-length // 2)],
            "last_half": whole[length // 2 :],
        }[probe]
        kept = sorted(steps[:count]) if probe == "shuffled" else steps[:count]
        assert kept == expected
        assert not any(steps[count:])
    assert changed["label"] is batch["label"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('metric = "accuracy"', "", "task 'motion': expected metric, received none"),
        ("order_probes", "order_prbes", "unknown field 'order_prbes'.*order_probes"),
        ("also = [", "aslo = [", "ladder: unknown 'aslo'.*also"),
        ('["data.num_validation"]', '"data.seed"', "also: expected a list of fields, received"),
        ('cnn = "cnn", both', 'cmn = "cnn", both', "unknown family 'cmn'.*cnn"),
        ("[families]", "[familie]", "expected families"),
        ("seeds = [", "seeds = ", "expected TOML"),
    ],
)
def test_studies_that_cannot_be_read_are_refused(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "study.toml"
    path.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_study(path, "small")


def test_a_task_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(SMALL)
    with pytest.raises(ValueError, match=r"tasks: .* has no 'moton'.*motion"):
        read_study(path, "small", tasks=["moton"])
    with pytest.raises(ValueError, match=r"received none .*music.txt is not in --data_root"):
        read_study(path, "small", tasks=["music"], data_root=str(tmp_path))


def test_a_result_of_other_settings_is_refused(study: Study, tmp_path: Path) -> None:
    cell = study.cells()[0]
    settings = {"experiment": cell.spec, **cell.overrides()}
    path = tmp_path / cell.folder / RESULT
    assert read_result(tmp_path, cell) is None
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"settings": settings}))
    assert read_result(tmp_path, cell) == {"settings": settings}
    path.write_text(json.dumps({"settings": {**settings, "num_steps": 9}}))
    with pytest.raises(ValueError, match="result of num_steps = 3, received that of 9; take anoth"):
        read_result(tmp_path, cell)


def test_a_family_of_which_a_seed_diverged_is_not_recommended(study: Study) -> None:
    found = results(study, {"cnn": 0.9, "both": 0.5})
    for each in found:
        if each["family"] == "cnn" and each["seed"] == 0:
            each.update(value=None, metrics={}, probes={})
    task = study.tasks[0]
    rows = [row for row in rows_of(task, study, found) if row.rung == 24]
    assert [format_value(task, row) for row in rows] == [
        "91.0 %, 1 of 2 seeds diverged",
        "50.5 ± 0.7 %",
    ]
    assert set(rows[0].probes) == set(PROBES)
    places = places_of(study, found)
    assert [place.ahead for place in (places["cnn"][0], places["both"][0])] == [False, True]
    assert "1 of 2 seeds diverged" in format_markdown(study, found)
    assert "1 of 2 seeds diverged" in build_page(study, found)
    for each in found:
        if each["family"] == "cnn":
            each.update(value=float("nan"), metrics={}, probes={})
    rows = [row for row in rows_of(task, study, found) if row.rung == 24]
    assert [format_value(task, row) for row in rows] == ["diverged", "50.5 ± 0.7 %"]
    assert "diverged" in build_page(study, found)
    for each in found:
        each.update(value=None)
    assert places_of(study, found) == {"cnn": [], "both": []}
    assert "diverged" in build_page(study, found)


def test_a_training_that_diverges_is_a_result(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*arguments: Any, **options: Any) -> None:
        raise NonFiniteLoss("step 3: the loss is nan")

    monkeypatch.setattr(cell_module, "train", diverge)
    monkeypatch.setattr(cell_module, "_cost", lambda config: {"parameters": 9, "flops": 1.0})
    cell = study.cells()[0]
    assert run_cell(tmp_path, cell) is None
    found = read_result(tmp_path, cell)
    assert found is not None
    assert found["value"] is None
    assert found["diverged"] == "step 3: the loss is nan"
    assert found["step_seconds"] is None
    monkeypatch.setattr(cell_module, "train", None)  # It is not trained again.
    assert run_cell(tmp_path, cell) is None


@pytest.mark.stress
def test_a_study_runs_and_goes_on(tmp_path: Path) -> None:
    text = SMALL.replace(
        "num_steps = 3",
        (
            'num_steps = 2, eval_every = 2, batch_size = 8, "data.num_train" = 16, '
            '"data.num_validation" = 8, "optimizer.warmup_steps" = 0'
        ),
    )
    (tmp_path / "study.toml").write_text(text)
    command = [
        sys.executable, "-m", "launch.compare", f"--workdir={tmp_path / 'out'}",
        f"--study={tmp_path / 'study.toml'}",
    ]  # fmt: skip
    for share in ("0/2", "1/2"):
        subprocess.run([*command, f"--share={share}"], check=True, cwd=ROOT, timeout=600)
    found = sorted((tmp_path / "out").glob(f"motion/*/{RESULT}"))
    assert len(found) == 8
    times = [path.stat().st_mtime_ns for path in found]
    again = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert "8 of 8 trainings ended" in again.stdout
    assert [path.stat().st_mtime_ns for path in found] == times
    content = json.loads(found[0].read_text())
    assert set(content["probes"]) == set(PROBES)
    assert content["step_seconds"] > 0


def test_a_baseline_may_depend_on_the_rung(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(SMALL.replace("baseline = 0.125", 'baseline = { "24" = 0.5 }'))
    study = read_study(path, "small")
    assert [study.tasks[0].baseline(rung) for rung in (16, 24)] == [None, 0.5]
    found = results(study, {"cnn": 0.4, "both": 0.9})
    assert "| Motion <x>, num_test 24 | accuracy | chance | 50.0 % |" in format_markdown(
        study, found
    )
    texts = describe_families(study, found)
    assert "than what needs no network on: Motion" in " ".join(texts["cnn"])


def test_baselines_of_copy_memory_are_those_of_the_data() -> None:
    from data.series import CopyMemory

    for budget in ("small", "full"):
        task = next(t for t in read_study(STUDY, budget).tasks if t.name == "copy")
        for rung in task.ladder:
            assert task.baseline(rung) == pytest.approx(CopyMemory(rung, 1).baseline, abs=6e-5)
