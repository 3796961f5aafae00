"""A study as a TOML file: tasks, families of networks, budgets; and its cells.

    title = "CNN, RNN or both?"

    [families]                       # In the order of the tables.
    cnn = "CNN alone"
    rnn = "RNN alone"

    [budgets.small]
    seeds = [0, 1]

    [[tasks]]
    name = "adding"
    title = "Adding problem"
    question = "the sum of the two marked numbers of a sequence"
    experiment = "experiments/tcn_sequences.py"
    metric = "squared_error"
    mode = "min"
    baseline = 0.1667                # What needs no network; by rung: { "50" = 0.2, "100" = 0.1 }
    baseline_name = "always 1"
    order_probes = true
    variants = { cnn = "adding,tcn", rnn = "adding,gru" }
    small = { num_steps = 400, eval_every = 50, patience = 4 }
    ladder = { field = "data.length", also = ["model.recurrent.chrono_steps"], small = [50, 100] }
    folds = { field = "data.fold", full = [1, 2, 3] }  # Of a cross-validation, averaged.
    search = { "optimizer.learning_rate" = "1e-3,4e-3" }
    chosen = { cnn = { "optimizer.learning_rate" = 4e-3 } }
    root = "music/jsb_chorales.npz"  # Below --data_root; without it the task is left out.

All families of a task have the same fields of the budget: steps, batch, early stopping. A task
without such fields is no part of the budget.
"""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxnets.configuration import nearest

BUDGETS = ("small", "full")
_TASK_FIELDS = {
    "name", "title", "question", "experiment", "metric", "mode", "baseline", "baseline_name",
    "order_probes", "variants", "ladder", "folds", "search", "chosen", "root", "split", *BUDGETS,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StudyTask:
    """One task of a study.

    Attributes:
      name: of its folder.
      title: for the page.
      question: what is asked of a network, in words.
      experiment: ``FILE``.
      variants: of the experiment, by family.
      metric: of the test split.
      mode: ``max`` or ``min``, the better end of ``metric``.
      split: that is tested.
      baselines: value of ``metric`` without a network, by rung as text, "" for all others.
      baseline_name: what has that value.
      order_probes: whether trained networks are also tested on sequences in another order.
      overrides: fields of the budget, the same for all families.
      ladder_field: field that grows from rung to rung; empty: no ladder.
      ladder_also: fields that have its values, too, where ``chosen`` has no other.
      ladder: its values; (None,) without one.
      fold_field: field of the number of the fold; empty: no cross-validation.
      folds: its values, over which a seed's metric is averaged; (None,) without one.
      search: ``FIELD`` to ``VALUES`` of ``launch.sweep``, searched for each family.
      chosen: fields that were found so, by family.
      root: value of ``data.root``; empty: the experiment's own.
    """

    name: str
    title: str
    question: str
    experiment: str
    variants: Mapping[str, str]
    metric: str
    mode: str
    split: str
    baselines: Mapping[str, float]
    baseline_name: str
    order_probes: bool
    overrides: Mapping[str, Any]
    ladder_field: str
    ladder_also: tuple[str, ...]
    ladder: tuple[Any, ...]
    fold_field: str
    folds: tuple[int | None, ...]
    search: Mapping[str, str]
    chosen: Mapping[str, Mapping[str, Any]]
    root: str

    def baseline(self, rung: Any) -> float | None:
        """Returns the value of ``metric`` without a network on a rung; None: none is known."""
        return self.baselines.get(str(rung), self.baselines.get(""))

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.mode == "max" else -1


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training of a study.

    Attributes:
      task: the task.
      family: of the network.
      seed: of the run.
      rung: value of the task's ladder; None without one.
      fold: of the task's cross-validation; None without one.
    """

    task: StudyTask
    family: str
    seed: int
    rung: Any = None
    fold: int | None = None

    @property
    def folder(self) -> Path:
        """Its workdir below that of the study."""
        rung = "" if self.rung is None else f"_{self.rung}"
        fold = "" if self.fold is None else f"_fold{self.fold}"
        return Path(self.task.name) / f"{self.family}{rung}{fold}_seed{self.seed}"

    @property
    def spec(self) -> str:
        """The experiment with its variant, as ``--config`` takes it."""
        variant = self.task.variants[self.family]
        return f"{self.task.experiment}:{variant}" if variant else self.task.experiment

    def overrides(self) -> dict[str, Any]:
        """Returns the fields that differ from the variant's, by path."""
        values = dict(self.task.overrides)
        if self.rung is not None:
            values |= dict.fromkeys(self.task.ladder_also, self.rung)
        values |= self.task.chosen.get(self.family, {})
        if self.rung is not None:
            values[self.task.ladder_field] = self.rung
        if self.fold is not None:
            values[self.task.fold_field] = self.fold
        if self.task.root:
            values["data.root"] = self.task.root
        return {**values, "seed": self.seed}


@dataclasses.dataclass(frozen=True)
class Study:
    """Tasks × families × rungs × folds × seeds of one budget.

    Attributes:
      title: for the page.
      budget: one of ``BUDGETS``.
      families: names by key, in the order of the tables.
      seeds: of each cell.
      tasks: that can run.
      left_out: tasks whose data were not given, and why.
    """

    title: str
    budget: str
    families: Mapping[str, str]
    seeds: tuple[int, ...]
    tasks: tuple[StudyTask, ...]
    left_out: Mapping[str, str]

    def cells(self) -> list[Cell]:
        """Returns all cells: those of one seed after those of the seed before."""
        return [
            Cell(task, family, seed, rung, fold)
            for seed in self.seeds
            for task in self.tasks
            for rung in task.ladder
            for fold in task.folds
            for family in self.families
            if family in task.variants
        ]


def read_study(path: Path, budget: str, *, data_root: str = "", tasks: Sequence[str] = ()) -> Study:
    """Reads a study.

    Args:
      path: the TOML file.
      budget: one of ``BUDGETS``.
      data_root: folder of the tasks' data; empty: tasks with data of their own are left out.
      tasks: names of the tasks that are wanted; empty: all.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a text that is no TOML, or a study without what a study needs; names the task and
        the field.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: expected TOML, received {error}") from error
    for name in ("title", "families", "budgets", "tasks"):
        if name not in content:
            raise ValueError(f"{path}: expected {name}, received none")
    if budget not in content["budgets"]:
        known = content["budgets"]
        raise ValueError(f"budget: {path} has no {budget!r}{nearest(budget, known)}")
    names = [str(task.get("name", "")) for task in content["tasks"]]
    for name in tasks:
        if name not in names:
            raise ValueError(f"tasks: {path} has no {name!r}{nearest(name, names)}")
    found, left_out = [], {}
    for values in content["tasks"]:
        task = _read_task(values, content["families"], budget, path)
        if tasks and task.name not in tasks:
            continue
        if budget not in values:
            left_out[task.title] = f"it is no part of the budget {budget}"
            continue
        if task.root:
            root = Path(data_root) / task.root
            if not data_root:
                left_out[task.title] = "its data were not given (--data_root)"
                continue
            if not root.exists():
                left_out[task.title] = f"{task.root} is not in --data_root"
                continue
            task = dataclasses.replace(task, root=str(root))
        found.append(task)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"tasks: expected at least one that can run, received none ({reasons})")
    seeds = tuple(content["budgets"][budget].get("seeds", [0]))
    return Study(content["title"], budget, content["families"], seeds, tuple(found), left_out)


def _read_task(
    values: Mapping[str, Any], families: Mapping[str, str], budget: str, path: Path
) -> StudyTask:
    where = f"{path}, task {values.get('name', '')!r}"
    for field in values:
        if field not in _TASK_FIELDS:
            raise ValueError(f"{where}: unknown field {field!r}{nearest(field, _TASK_FIELDS)}")
    for field in ("name", "experiment", "metric", "variants"):
        if field not in values:
            raise ValueError(f"{where}: expected {field}, received none")
    for family in [*values["variants"], *values.get("chosen", {})]:
        if family not in families:
            raise ValueError(f"{where}: unknown family {family!r}{nearest(family, families)}")
    mode = values.get("mode", "max")
    if mode not in ("max", "min"):
        raise ValueError(f"{where}: mode: expected 'max' or 'min', received {mode!r}")
    ladder, baseline = values.get("ladder", {}), values.get("baseline", {})
    folds = values.get("folds", {})
    for name, known in (("ladder", ("field", "also", *BUDGETS)), ("folds", ("field", *BUDGETS))):
        for field in values.get(name, {}):
            if field not in known:
                raise ValueError(f"{where}: {name}: unknown {field!r}{nearest(field, known)}")
    also = ladder.get("also", [])
    if not isinstance(also, list) or not all(isinstance(field, str) for field in also):
        raise ValueError(f"{where}: ladder: also: expected a list of fields, received {also!r}")
    return StudyTask(
        name=values["name"],
        title=values.get("title", values["name"]),
        question=values.get("question", ""),
        experiment=values["experiment"],
        variants=values["variants"],
        metric=values["metric"],
        mode=mode,
        split=values.get("split", "test"),
        baselines=baseline if isinstance(baseline, dict) else {"": baseline},
        baseline_name=values.get("baseline_name", ""),
        order_probes=bool(values.get("order_probes", False)),
        overrides=values.get(budget, {}),
        ladder_field=ladder.get("field", ""),
        ladder_also=tuple(also),
        ladder=tuple(ladder.get(budget, ())) or (None,),
        fold_field=folds.get("field", ""),
        folds=tuple(folds.get(budget, ())) or (None,),
        search=values.get("search", {}),
        chosen=values.get("chosen", {}),
        root=values.get("root", ""),
    )
