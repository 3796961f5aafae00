"""The training loop: batches in, checkpoints and records out; run again, it resumes."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental.compilation_cache import compilation_cache

from flaxnets.tasks.task import Task
from flaxnets.training.checkpoint import Checkpointer, Position, check_order
from flaxnets.training.config import Config
from flaxnets.training.distributed import from_first, is_first, synchronize
from flaxnets.training.evaluation import evaluate
from flaxnets.training.finetune import initialize_from
from flaxnets.training.metric_writer import MetricsWriter, Window, read_metrics, summary
from flaxnets.training.optimizer import make_optimizer, make_schedule
from flaxnets.training.parallel import Strategy, make_strategy
from flaxnets.training.preemption import Interruption
from flaxnets.training.profile import Profile
from flaxnets.training.state import (
    TrainState,
    count_parameters,
    initialize_variables,
    make_state,
)
from flaxnets.training.step import make_evaluation_step, make_train_step
from flaxnets.training.workdir import Workdir

logger = logging.getLogger(__name__)

OnEvaluation = Callable[[int, Mapping[str, float]], bool]
"""Finished steps and the metrics of ``eval_split`` to whether the training ends here."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of ``train`` ended.

    Attributes:
      step: finished steps, over all calls.
      metrics: of the last evaluation in this call; empty without any.
      signal: the signal that ended the call early, None when all steps are done.
      stopped: whether ``on_evaluation`` ended the call before its last step.
    """

    step: int
    metrics: Mapping[str, float]
    signal: int | None = None
    stopped: bool = False


def train(
    config: Config,
    workdir: Workdir,
    *,
    strategy: Strategy | None = None,
    show_progress: bool | None = None,
    profile_steps: tuple[int, int] | None = None,
    on_evaluation: OnEvaluation | None = None,
) -> Outcome:
    """Trains until ``config.num_steps``, from the newest checkpoint where there is one.

    Of several processes each calls it with the same arguments; the first alone writes records.

    Args:
      config: the experiment.
      workdir: locked and claimed for ``config``.
      strategy: the devices; by default all of them, as ``config`` says.
      show_progress: a progress bar on standard error; by default where that is a terminal.
      profile_steps: the first and the last step of which ``profile/`` in the workdir gets a trace.
      on_evaluation: asked after each evaluation, whose checkpoint is being written; of several
        processes the first alone asks it, for all.

    Raises:
      ValueError: a configuration that cannot run, or a checkpoint of another model or other data.
      NonFiniteLoss: the loss or the gradient of a step is infinite or not a number.
    """
    config.validate()
    use_compilation_cache(config.compilation_cache)
    strategy = strategy or make_strategy(config.strategy, fsdp=config.fsdp)
    strategy.check_batch_size(config.batch_size // config.accumulate_steps)
    profile = Profile(workdir.profile, profile_steps)
    run = _Run(config, workdir, strategy, profile, on_evaluation)
    return run.run(show_progress if is_first() else False)


class _Run:
    """One call of ``train``: the parts that its phases share."""

    def __init__(
        self,
        config: Config,
        workdir: Workdir,
        strategy: Strategy,
        profile: Profile,
        on_evaluation: OnEvaluation | None,
    ) -> None:
        self.config, self.workdir, self.strategy = config, workdir, strategy
        self.profile, self.on_evaluation = profile, on_evaluation
        self.stopped = False
        self.model, self.task = config.make_model(), config.make_task()
        self.data = config.make_data("train")
        self.evaluation_data = config.make_data(config.eval_split) if config.eval_split else None
        self.score = config.make_scorer(config.eval_split) if config.eval_split else None
        self.schedule = make_schedule(config.optimizer, config.num_steps)
        self.evaluation_step = strategy.compile_evaluation(
            make_evaluation_step(self.model, self.task)
        )
        self.metrics: dict[str, float] = {}
        # Last, since it starts threads that must be ended.
        self.checkpointer = Checkpointer(
            workdir.checkpoints,
            keep=config.keep_checkpoints,
            best_metric=config.best_metric,
            mode=config.best_mode,
        )

    def run(self, show_progress: bool | None) -> Outcome:
        try:
            state, step = self.start()
            with Interruption() as interruption:
                last = self.train(state, step, interruption, show_progress)
            early = last < self.config.num_steps
            signal = interruption.signal if early else None
            return Outcome(last, self.metrics, signal, self.stopped and early)
        finally:
            self.checkpointer.close()

    def start(self) -> tuple[TrainState, Any]:
        """The state to go on from, and the compiled step."""
        config = self.config
        batches = self.data.batches()
        first = next(batches)
        close_batches(batches)
        # Not before the data were read: a run that cannot begin leaves nothing behind.
        if is_first():
            config.save_assets(self.workdir.path)
        synchronize("assets")
        variables = make_variables(config, self.model, self.task, first)
        resumes = self.checkpointer.latest_step is not None
        if config.initialize_from and not resumes:
            folder, skipped = Path(config.initialize_from), config.initialize_except
            variables = initialize_from(folder, variables, skipped)
        optimizer = make_optimizer(config.optimizer, config.num_steps, variables["params"])
        state = make_state(variables, optimizer, config.seed, ema=config.ema_decay > 0)
        state = self.strategy.place(state)
        logger.info(
            "%s parameters on %d devices; %d training examples",
            f"{count_parameters(state.params):,}",
            len(self.strategy.devices),
            self.data.num_examples,
        )
        if resumes:
            saved, position = self.checkpointer.restore(self.strategy.checkpoint_view(state))
            check_order(position, self.data.describe())
            state = self.strategy.place(saved)
            logger.info("resuming from step %d", int(state.step))
        step = make_train_step(
            self.model,
            self.task,
            optimizer,
            frozen=tuple(config.optimizer.frozen),
            strategy=self.strategy,
            accumulate_steps=config.accumulate_steps,
            ema_decay=config.ema_decay,
        )
        if config.accumulate_steps > 1 and "batch_stats" in state.collections:
            logger.info(
                "statistics of BatchNorm are those of one micro-batch, of %d examples, at a time",
                config.batch_size // config.accumulate_steps,
            )
        return state, self.strategy.compile_train(step, state)

    def train(
        self,
        state: TrainState,
        compiled_step: Any,
        interruption: Interruption,
        show_progress: bool | None,
    ) -> int:
        config, step = self.config, int(state.step)
        window = Window(config.batch_size, max_nonfinite_steps=config.max_nonfinite_steps)
        goes_on = step < config.num_steps and not self.is_stale(step)
        batches = self.data.batches(step) if goes_on else iter(())
        writer = MetricsWriter(self.workdir.path, resume_step=step, writes=is_first())
        disable = None if show_progress is None else not show_progress
        progress = tqdm.tqdm(
            total=config.num_steps, initial=step, unit="step", disable=disable, smoothing=0.1
        )
        with progress:
            stops = not goes_on
            try:
                while step < config.num_steps and not stops:
                    with window.waiting():
                        batch = next(batches)
                    with self.profile.step(step + 1):
                        state, sums = compiled_step(state, self.strategy.shard(batch))
                    step += 1
                    self.profile.finish(step, sums)
                    # Checked one step late, so that the device never waits for the host.
                    window.add(step, sums)
                    progress.update()
                    # Looked at once: a signal that comes later in this turn ends the next one,
                    # which saves.
                    stops = interruption.stops_at(step)
                    evaluates = step % config.eval_every == 0 or step == config.num_steps
                    saves = evaluates or stops or step % config.checkpoint_every == 0
                    if saves or step % config.log_every == 0:
                        record = window.close()
                        rate = {"learning_rate": float(self.schedule(step - 1))}
                        writer.write(step, "train", {**record, **rate})
                        progress.set_postfix_str(summary(record), refresh=False)
                    if saves:
                        self.save(state, step, writer, evaluates=evaluates)
                        if evaluates:
                            self.stopped = self.is_stopped(step)
                            stops = stops or self.stopped or self.is_stale(step)
                        window.restart()
            finally:
                close_batches(batches)
                writer.close()
                self.profile.close()
        self.checkpointer.wait()
        return step

    def save(self, state: TrainState, step: int, writer: MetricsWriter, *, evaluates: bool) -> None:
        metrics: dict[str, float] | None = None
        if evaluates and self.evaluation_data is not None:
            metrics = evaluate(
                self.evaluation_step,
                self.strategy,
                state.variables,
                self.evaluation_data,
                score=self.score,
                describe=self.task.describe_outputs,
            )
            writer.write(step, self.config.eval_split, metrics)
            figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            with tqdm.tqdm.external_write_mode():  # Between the bar's lines, not into one.
                logger.info("step %d, %s: %s", step, self.config.eval_split, figures)
            self.metrics = metrics
        saved = self.strategy.checkpoint_view(state)
        self.checkpointer.save(saved, Position(step, self.data.describe()), metrics)

    def is_stopped(self, step: int) -> bool:
        """Whether the caller ends the training after an evaluation."""
        if self.on_evaluation is None or self.evaluation_data is None:
            return False
        return from_first(is_first() and self.on_evaluation(step, self.metrics))

    def is_stale(self, step: int) -> bool:
        """Whether ``patience`` is at its end after ``step`` steps, in this call or one before."""
        if not self.config.patience:
            return False
        # The others may read the file before the first has written.
        return from_first(is_first() and self.records_are_stale(step))

    def records_are_stale(self, step: int) -> bool:
        patience, name = self.config.patience, self.config.best_metric
        sign = 1 if self.config.best_mode == "max" else -1
        records = [
            record
            for record in read_metrics(self.workdir.path)
            if record["split"] == self.config.eval_split and record["step"] <= step
        ]
        scored = [record for record in records if record.get(name) is not None]
        # Not the checkpointer's best, which of equal steps is the last: equal is no better.
        best = max(scored, key=lambda record: sign * record[name], default=None)
        if best is None or sum(r["step"] > best["step"] for r in records) < patience:
            return False
        with tqdm.tqdm.external_write_mode():
            logger.info(
                "no better %s in %d evaluations since step %d: the training ends at step %d",
                name,
                patience,
                best["step"],
                step,
            )
        return True


def close_batches(batches: Iterator[Mapping[str, np.ndarray]]) -> None:
    """Ends the threads and processes of a pass over data, where it has any."""
    close = getattr(batches, "close", None)
    if close is not None:
        close()


def make_variables(
    config: Config, model: Any, task: Task, batch: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The variables before the first step: random, then what the experiment puts in."""
    variables = initialize_variables(model, task, batch, config.seed)
    return dict(config.initial_variables(variables))


# Compiled programs that outlive the process.


def use_compilation_cache(folder: str) -> None:
    """Keeps programs that took a second or more to compile in a folder, for later processes.

    A program is found again by its code, its options, the devices and the version of JAX. The
    setting is that of the whole process.

    Args:
      folder: made when missing; several processes may share it. Empty: nothing changes.
    """
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        # Or a process that has compiled anything stays with what it had before.
        compilation_cache.reset_cache()
