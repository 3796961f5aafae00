"""Training loop: batches in, checkpoints and metrics out; the same call resumes a run.

``train`` is one function, to be read from top to bottom: devices and compilation, data, model and
state with the precedence of checkpoints, the compiled functions, the loop, and its end.

A resumed run equals an uninterrupted one bit-for-bit on CPUs, where this is tested, with as many
devices and the same versions. A GPU sums in an order that changes from run to run, unless the
environment has ``XLA_FLAGS=--xla_gpu_deterministic_ops=true``, which makes some operations slower;
autotuning may still choose other kernels in another process (``--xla_gpu_autotune_level=0``).
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental.compilation_cache import compilation_cache

from flaxnets.configuration import nearest
from flaxnets.tasks.task import Task
from flaxnets.training.checkpoint import (
    Checkpointer,
    Position,
    check_order,
    initialize_from,
    steps_on_disk,
)
from flaxnets.training.config import Config, describe_fields, describe_run, rehearsal
from flaxnets.training.distributed import broadcast_from_first, is_first, synchronize
from flaxnets.training.evaluation import (
    EvaluationStopped,
    carry_maker,
    close_batches,
    evaluate,
)
from flaxnets.training.metric_writer import (
    MetricsWriter,
    Window,
    progress_line,
    read_metrics,
    summary,
)
from flaxnets.training.optimizer import make_optimizer, make_schedule
from flaxnets.training.parallel import Strategy, make_strategy
from flaxnets.training.preemption import Preemption
from flaxnets.training.profile import Profile
from flaxnets.training.state import count_parameters, initialize_variables, make_state
from flaxnets.training.step import make_evaluation_step, make_train_step
from flaxnets.training.workdir import Workdir

logger = logging.getLogger(__name__)

LEAST_EARLY, MOST_EARLY = 100, 1_000
"""Bounds of the step of the first evaluation of a long run."""

OnEvaluation = Callable[[int, Mapping[str, float]], bool]
"""Function of the finished steps and the metrics of ``eval_split``; True ends the training."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a call of ``train``.

    Attributes:
      step: finished steps, over all calls.
      metrics: metrics of the last evaluation in this call; empty without any.
      signal: the signal that ended the call early; None otherwise.
      stopped: True if ``on_evaluation`` ended the call before its last step.
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
    on_start: Callable[[], None] | None = None,
    on_evaluation: OnEvaluation | None = None,
    skip_damaged: bool = False,
) -> Outcome:
    """Trains until ``config.num_steps``, from the newest checkpoint if there is one.

    Of several processes each makes the same call; the first one alone writes metrics and logs.

    Args:
      config: the experiment.
      workdir: locked, and claimed for ``config``.
      strategy: devices and compilation; by default ``config.strategy`` on all devices.
      show_progress: shows a progress bar on standard error; by default if that is a terminal, and
        where it is none a line is logged every ``log_every`` steps. False: neither.
      profile_steps: first and last step of the trace in the workdir's ``profile/``.
      on_start: called in the first process once all parts are built, before the first step.
      on_evaluation: called after each evaluation, whose checkpoint is then on disk; of several
        processes in the first one, which decides for all.
      skip_damaged: sets damaged checkpoints aside and resumes from the newest undamaged one.

    Raises:
      ValueError: a configuration that cannot run, or a checkpoint of another model or other data.
      DamagedCheckpoint: the newest checkpoint is damaged, without ``skip_damaged``.
      CheckpointNotWritten: the disk is full, say; earlier checkpoints are kept.
      NonFiniteLoss: the loss or the gradient of a step is infinite or not a number.
    """
    # ---- Devices and compilation ----------------------------------------------------------------
    config.validate()
    config.resume_assets(workdir.path)
    # Before the first compilation: programs that were compiled earlier are not in the cache.
    use_compilation_cache(config.compilation_cache)
    strategy = strategy or make_strategy(config.strategy, fsdp=config.fsdp)
    strategy.check_batch_size(config.batch_size // config.accumulate_steps)
    if config.initialize_from and not steps_on_disk(workdir.checkpoints):
        Workdir(config.initialize_from).check_trained()
    profile = Profile(workdir.profile, profile_steps)

    with contextlib.ExitStack() as cleanup:  # Entered in this order, left in the reverse one.
        # ---- Data, and the parts that the experiment builds -------------------------------------
        # For the records alone.
        schedule = make_schedule(config.optimizer, config.num_steps)
        model, task = config.make_model(), config.make_task()
        # Before the data, which may take hours to encode.
        rehearse(config, model, task)
        data = config.make_data("train")
        eval_data = config.make_data(config.eval_split) if config.eval_split else None
        score = config.make_scorer(config.eval_split) if config.eval_split else None
        # After all parts are built without an error, since it starts threads.
        checkpointer = Checkpointer(
            workdir.checkpoints,
            keep=config.keep_checkpoints,
            best_metric=config.best_metric,
            mode=config.best_mode,
            skip_damaged=skip_damaged,
        )
        cleanup.callback(checkpointer.close)
        # One batch gives the shapes. Its iterator is closed, since the loop's starts at the step
        # of the checkpoint, which is not known yet.
        batches = data.batches()
        first_batch = next(batches)
        close_batches(batches)
        resumes = checkpointer.latest_step is not None
        described = describe_run(config) if is_first() else {}
        # After the data were read: a run that cannot start leaves no assets behind.
        if is_first():
            if resumes:  # Before the model, whose shape other classes change.
                workdir.check_run(described)
            config.save_assets(workdir.path)
        synchronize("assets")  # The other processes may read them from here on.

        # ---- Model and state, by precedence of the checkpoints ----------------------------------
        # 1. The newest checkpoint of this workdir: parameters, statistics, optimizer, average, step
        #    and key. Nothing below counts any more.
        # 2. `initialize_from`: parameters and statistics of another run's best checkpoint, but for
        #    the parts in `initialize_except`, which come from 3 or 4.
        # 3. `Config.initial_variables`: the experiment's own, as pretrained weights.
        # 4. Random values from `seed`.
        # They are applied from the last to the first. A run that resumes makes 4 and 3 too: they
        # give the structure, the shapes and the shardings that the checkpoint is restored into.
        variables = make_variables(config, model, task, first_batch)  # 4, then 3
        if config.initialize_from and not resumes:
            folder, skipped = Path(config.initialize_from), config.initialize_except
            variables = initialize_from(folder, variables, skipped, config.adapt_variables)  # 2
        optimizer_config = config.make_optimizer_config()
        optimizer = make_optimizer(optimizer_config, config.num_steps, variables["params"])
        if not resumes:  # Before the first step is compiled, and hours before it is evaluated.
            check_metrics(config, model, task, variables, first_batch)
        state = make_state(variables, optimizer, config.seed, ema=config.ema_decay > 0)
        state = strategy.place(state)
        # Else the first device would keep a second copy of the parameters for the whole run.
        del variables, first_batch
        logger.info(
            "%s parameters on %s; %s training examples",
            f"{count_parameters(state.params):,}",
            "1 device" if len(strategy.devices) == 1 else f"{len(strategy.devices)} devices",
            f"{data.num_examples:,}",
        )
        if resumes:
            restored, position = checkpointer.restore(strategy.checkpoint_view(state))  # 1
            check_order(position, data.describe())
            state = strategy.place(restored)
            del restored
            logger.info("resuming from step %d", int(state.step))
        # After the checkpoint's own check: data that it refuses are not recorded.
        if is_first():
            workdir.record_run(described, config.describe_inference())
            if on_start is not None:
                on_start()

        # ---- Compiled functions -----------------------------------------------------------------
        # Both compile at their first call. A training step donates the state: XLA writes the new
        # one into the buffers of the old one, which must not be read after the call.
        train_step = strategy.compile_train(
            make_train_step(
                model,
                task,
                optimizer,
                frozen=tuple(optimizer_config.frozen),
                strategy=strategy,
                accumulate_steps=config.accumulate_steps,
                ema_decay=config.ema_decay,
            ),
            state,
        )
        evaluation_step = strategy.compile_evaluation(make_evaluation_step(model, task))
        if config.accumulate_steps > 1 and "batch_stats" in state.collections:
            logger.info(
                "statistics of BatchNorm are those of one micro-batch of %d examples at a time",
                config.batch_size // config.accumulate_steps,
            )

        # ---- Loop -------------------------------------------------------------------------------
        # Until here a signal ends the process, as nothing has been computed that a checkpoint
        # would keep.
        preemption = cleanup.enter_context(Preemption())
        # The step is also the position of the data: step n reads batch n - 1, a function of the
        # seed and its number alone, so that a resumed run reads what an uninterrupted one would.
        step = int(state.step)
        # A step is saved before it is evaluated. The evaluation of the checkpoint is still due if
        # it failed, or a signal or a kill ended it.
        evaluates = (
            resumes
            and eval_data is not None
            and is_evaluated(config, step)
            and broadcast_from_first(is_first() and checkpointer.metrics(step) is None)
        )
        # Drops records of steps after the checkpoint: they are computed again.
        writer = MetricsWriter(
            workdir.path,
            resume_step=step,
            writes=is_first(),
            evaluates=config.eval_split if evaluates else "",
            description=describe_fields(config),
        )
        cleanup.callback(writer.close)
        ends = not evaluates and (
            step >= config.num_steps or patience_is_over(config, workdir, step)
        )
        # tqdm's disable=None: shown on a terminal alone.
        hidden = (None if show_progress is None else not show_progress) if is_first() else True
        progress = cleanup.enter_context(
            tqdm.tqdm(
                total=config.num_steps, initial=step, unit="step", disable=hidden, smoothing=0.1
            )
        )
        tells = is_first() and show_progress is not False
        compiled = False
        cleanup.callback(profile.close)
        batches = iter(()) if ends or step >= config.num_steps else data.batches(step)
        cleanup.callback(close_batches, batches)
        window = Window(config.batch_size, max_nonfinite_steps=config.max_nonfinite_steps)
        last_metrics: Mapping[str, float] = {}
        stopped = preempted = False

        while not ends:
            # -- Evaluate the state that was saved last, by this call or by an earlier one, with the
            # averaged parameters if there are any.
            if evaluates and eval_data is not None:

                def stops() -> bool:
                    checkpointer.check()  # Else a full disk is told after the evaluation.
                    return preemption.stops()

                try:
                    metrics = evaluate(
                        evaluation_step,
                        strategy,
                        state.variables,
                        eval_data,
                        score=score,
                        describe=task.describe_outputs,
                        stops=stops,
                        first_carry=carry_maker(task, model, state.variables),
                    )
                except EvaluationStopped:  # The next call evaluates the checkpoint.
                    preempted = True
                    break
                writer.write(step, config.eval_split, metrics)
                check_best_metric(config, metrics)  # Now, not when two are to be ranked.
                figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
                with tqdm.tqdm.external_write_mode():  # Above the progress bar, not into it.
                    logger.info("step %d, %s: %s", step, config.eval_split, figures)
                last_metrics = metrics
                # Last, so that a kill before it leaves the evaluation due, which is then repeated.
                checkpointer.rank(step, metrics)
                evaluates = False
                window.restart()  # Evaluation and saving are no part of the speed of training.

                # -- Early stopping.
                if on_evaluation is not None:
                    stopped = broadcast_from_first(is_first() and on_evaluation(step, metrics))
                if stopped or step == config.num_steps or patience_is_over(config, workdir, step):
                    break

            # -- Step. The call of train_step returns before the device has begun (asynchronous
            # dispatch), so the host reads the next batch while the device computes.
            with window.waiting():
                batch = next(batches)
            if not compiled:
                if tells:
                    with tqdm.tqdm.external_write_mode():
                        logger.info("compiling the training step …")
                start = time.perf_counter()
            with profile.step(step + 1):
                state, sums = train_step(state, strategy.shard(batch))
            if not compiled:
                compiled, seconds = True, time.perf_counter() - start
                window.exclude(seconds)
                if tells:
                    with tqdm.tqdm.external_write_mode():
                        logger.info("compiled the training step in %.1f s", seconds)
            step += 1  # Counted on the host: int(state.step) would wait for the device.
            profile.finish(step, sums)
            # Blocks until the step before this one is finished, and raises if that one was not
            # finite. Reading this step's sums here would leave the device idle until the next call.
            window.add(step, sums)
            progress.update()

            # -- Decisions, the same in every process, since saving and evaluating are collective.
            # The signal is read once: one that comes later in this iteration ends the next one,
            # which then saves, or the evaluation.
            preempted = preemption.stops()
            evaluates = eval_data is not None and is_evaluated(config, step)
            saves = preempted or is_evaluated(config, step) or step % config.checkpoint_every == 0
            # Without the evaluation, which may take longer than the machine remains: it is due.
            ends = preempted or (step == config.num_steps and not evaluates)

            # -- Log. Waits for this step, so that a state that is not finite is never saved.
            if saves or step % config.log_every == 0:
                record = window.close()
                # optax counts from 0: the rate of step n is that of the count n - 1.
                rate = {"learning_rate": float(schedule(step - 1))}
                writer.write(step, "train", {**record, **rate})
                progress.set_postfix_str(summary(record), refresh=False)
                if tells and progress.disable:
                    logger.info("%s", progress_line(step, config.num_steps, record))

            # -- Save, before the evaluation, which may fail or be ended by a signal. Returns once
            # the arrays are copied, before the next step overwrites them; writes in the background.
            if saves:
                position = Position(next_batch=step, order=data.describe())
                checkpointer.save(strategy.checkpoint_view(state), position)
                window.restart()
            else:
                checkpointer.check()  # Else a full disk is told as late as at the next checkpoint.

        # ---- End --------------------------------------------------------------------------------
        checkpointer.wait()  # Raises if the last checkpoint could not be written.
        # A signal during the last evaluation ends the call early, too, as that one is still due.
        early = step < config.num_steps or evaluates
        signal = preemption.signal if early and preempted else None
        return Outcome(step, last_metrics, signal, stopped and early)


def is_evaluated(config: Config, step: int) -> bool:
    """Returns True for the steps after which ``eval_split`` is evaluated, and a checkpoint saved.

    They are the multiples of ``eval_every``, the last step, and ``first_evaluation``. All of them
    are functions of fields that a resumed run must not change, so that it evaluates at the same.
    """
    regular = step % config.eval_every == 0 or step == config.num_steps
    return regular or step == first_evaluation(config)


def first_evaluation(config: Config) -> int:
    """Returns the step of the first evaluation.

    It shows early that a run can be evaluated, and what it reaches: after ``eval_every`` steps, but
    at most a tenth of the run, or ``LEAST_EARLY`` if that is more, and at most ``MOST_EARLY``. The
    early evaluation counts like any other one: its checkpoint may be the best.

    >>> first_evaluation(Config(num_steps=4_690, eval_every=938))
    469
    >>> first_evaluation(Config(num_steps=30_000, eval_every=5_000))
    1000
    >>> first_evaluation(Config(num_steps=500, eval_every=250))
    100
    >>> first_evaluation(Config(num_steps=60, eval_every=60))
    60
    """
    early = min(max(config.num_steps // 10, LEAST_EARLY), MOST_EARLY)
    return min(config.eval_every, early, config.num_steps)


def rehearse(config: Config, model: Any, task: Task) -> None:
    """Checks a run on a batch of stand-ins, where its data are expensive to make.

    Inside ``rehearsal`` data that would have to be encoded first have the shapes of the encoded
    ones, and no values. The splits are read, batches are made, and the step and the evaluation are
    traced with abstract arrays, so that what does not fit is found at once. Where nothing is
    expensive, the run itself comes to the same checks within seconds.

    Raises:
      ValueError: a configuration that cannot run.
    """
    with rehearsal() as expensive:
        data = config.make_data("train")
        if not expensive:
            return
        if config.eval_split:
            config.make_data(config.eval_split)
        batches = data.batches()
        batch = next(batches)
        close_batches(batches)
    check_shapes(config, model, task, batch)


def check_shapes(config: Config, model: Any, task: Task, batch: Mapping[str, np.ndarray]) -> None:
    """Traces a step and an evaluation with abstract arrays; nothing is compiled or computed.

    Raises:
      ValueError: parts that do not go together, or an unknown ``best_metric``.
    """
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    key = jax.random.key(config.seed)
    variables: Any = jax.eval_shape(lambda arrays: task.initialize(model, key, arrays), shapes)
    optimizer_config = config.make_optimizer_config()
    make_optimizer(optimizer_config, config.num_steps, variables["params"])
    jax.eval_shape(lambda v, arrays: task.loss(model, v, arrays, key), variables, shapes)
    check_metrics(config, model, task, variables, batch)


def check_metrics(
    config: Config, model: Any, task: Task, variables: Any, batch: Mapping[str, np.ndarray]
) -> None:
    """Traces an evaluation with abstract arrays, unless a scorer computes ``best_metric``.

    Raises:
      ValueError: parts that do not go together, or an unknown ``best_metric``.
    """
    if not config.eval_split:
        return
    scored = config.scored_metrics(config.eval_split)
    if config.best_metric in scored:
        return  # The trace of a search for captions takes seconds.
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    evaluated = jax.eval_shape(lambda v, b: task.evaluate(model, v, b)[0], variables, shapes)
    if scored or config.make_scorer(config.eval_split) is None:
        check_best_metric(config, {*evaluated, *scored, "examples", "skipped"})


def check_best_metric(config: Config, names: Iterable[str]) -> None:
    """Raises ValueError if ``best_metric`` is none of the metrics of ``eval_split``."""
    names = list(names)
    if config.best_metric not in names:
        raise ValueError(
            f"best_metric: {config.eval_split} has no {config.best_metric!r}"
            f"{nearest(config.best_metric, names)}"
        )


def make_variables(
    config: Config, model: Any, task: Task, batch: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Returns the variables before the first step: random, then ``Config.initial_variables``."""
    variables = initialize_variables(model, task, batch, config.seed)
    return dict(config.initial_variables(variables))


def patience_is_over(config: Config, workdir: Workdir, step: int) -> bool:
    """Returns True if the last ``config.patience`` evaluations found no better metric.

    The evaluations are read from the workdir's records, so those of earlier calls count too. All
    processes get the answer of the first.

    Args:
      config: ``patience``, ``best_metric``, ``best_mode`` and ``eval_split`` are read.
      workdir: of the run.
      step: finished steps; later records do not count.
    """
    if not config.patience:
        return False
    # The other processes might read the file before the first has written to it.
    return broadcast_from_first(is_first() and _has_no_better_metric(config, workdir, step))


def _has_no_better_metric(config: Config, workdir: Workdir, step: int) -> bool:
    name, sign = config.best_metric, 1 if config.best_mode == "max" else -1
    records = [
        record
        for record in read_metrics(workdir.path)
        if record["split"] == config.eval_split and record["step"] <= step
    ]
    scored = [record for record in records if record.get(name) is not None]  # null: not finite
    # The first of equal metrics, as an equal one is no better; the checkpointer's best step is the
    # last of them.
    best = max(scored, key=lambda record: sign * record[name], default=None)
    if best is None or sum(r["step"] > best["step"] for r in records) < config.patience:
        return False
    with tqdm.tqdm.external_write_mode():
        logger.info(
            "no better %s in %d evaluations since step %d: the training ends at step %d",
            name,
            config.patience,
            best["step"],
            step,
        )
    return True


def use_compilation_cache(folder: str) -> None:
    """Caches compiled programs on disk for later processes, if they took a second to compile.

    The key of a program is its code, the compiler's options, the devices and the version of JAX.
    The setting holds for the whole process.

    Args:
      folder: made if missing; several processes may share it. Empty: no change.
    """
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        # A process that has already compiled keeps its old cache until this reset.
        compilation_cache.reset_cache()
