"""Trackers: services that show the records of runs, and what sends them there.

A training imports none of this: the program ``launch.track`` does, in a process beside it, and
reads ``metrics.jsonl``.
"""

import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from flaxnets.training.metric_writer import read_metrics
from flaxnets.training.workdir import Workdir, write_text_atomically

POLL_SECONDS = 2.0
"""Seconds between two looks at the records."""
LONGEST_PAUSE = 300.0
"""Greatest number of seconds between two attempts to reach a service."""


class Tracker(Protocol):
    """A service that shows the records of runs. Any method may raise anything."""

    def open(self, workdir: Path, project: str, run: str, config: Mapping[str, Any]) -> str:
        """Opens a run, and returns the name under which it is opened again.

        Args:
          workdir: of the run.
          project: name of the project.
          run: the name that an earlier call returned; empty: a new run.
          config: values of the configuration by path, as ``{"optimizer.learning_rate": 0.1}``.
        """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step, named ``SPLIT/METRIC``; steps never decrease."""

    def close(self) -> None:
        """Sends what still waits, and closes the run."""


class WeightsAndBiases:
    """Weights & Biases; see ``wandb.init`` for its environment variables."""

    def open(self, workdir: Path, project: str, run: str, config: Mapping[str, Any]) -> str:
        """Opens the run of that id."""
        import wandb

        name = run or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", project),
            id=name,
            name=workdir.name,
            dir=str(workdir),
            config=dict(config),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        return name

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs to the run."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Waits until all is sent, or written in offline mode."""
        self._run.finish()


class MLflow:
    """MLflow: a server, or local files."""

    MOST = 100
    """Parameters in one request, the server's limit."""

    def open(self, workdir: Path, project: str, run: str, config: Mapping[str, Any]) -> str:
        """Opens the run of that id, in the experiment of the project's name."""
        # Its defaults wait for minutes; a later attempt here costs nothing.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        import mlflow
        from mlflow.entities import Metric, Param

        local = f"sqlite:///{workdir.resolve().parent / 'mlflow.db'}"
        self._client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local)
        self._metric: Callable[..., Any] = Metric
        if run:
            self._client.update_run(run, status="RUNNING")
        else:
            found = self._client.get_experiment_by_name(project)
            experiment = found.experiment_id if found else self._client.create_experiment(project)
            run = self._client.create_run(experiment, run_name=workdir.name).info.run_id
            # A value may have at most 6,000 characters.
            params = [Param(name, str(value)[:6000]) for name, value in config.items()]
            for start in range(0, len(params), self.MOST):
                self._client.log_batch(run, params=params[start : start + self.MOST])
        self._run = run
        return run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends one request."""
        now = int(1000 * time.time())
        values = [self._metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run, metrics=values)

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self._run)


class Trackio:
    """Trackio: local files, or a Space."""

    def open(self, workdir: Path, project: str, run: str, config: Mapping[str, Any]) -> str:
        """Opens the run of that name."""
        import trackio

        self._trackio: Any = trackio
        name = run or f"{workdir.name}-{secrets.token_hex(4)}"
        trackio.init(
            project=project,
            name=name,
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return name

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs to the run."""
        self._trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        """Waits until all is sent."""
        self._trackio.finish()


TRACKERS: Mapping[str, Callable[[], Tracker]] = {
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}
"""Trackers by name; a name is also the extra that installs it."""


class Sender:
    """Sends the records of a workdir that a tracker does not have yet.

    Args:
      workdir: of the run.
      name: of the tracker, as it was given.
      tracker: the tracker.
      project: name of the project.
    """

    def __init__(self, workdir: Path, name: str, tracker: Tracker, project: str) -> None:
        self._workdir, self._tracker, self._project = workdir, tracker, project
        self._state = workdir / f"tracker_{name.replace(':', '.')}.json"
        self._is_open = False
        self.sent = 0

    def send(self) -> None:
        """Sends what is new; the tracker's errors pass through, and what was sent is noted."""
        state = self._read_state()
        sent: dict[str, int] = state["sent"]
        waiting = [
            record
            for record in read_metrics(self._workdir)
            # What a resumed run computes again was sent before, and is equal.
            if record["step"] > sent.get(record["split"], 0)
        ]
        if not waiting:
            return
        if not self._is_open:
            recorded = Workdir(self._workdir).read_config()
            config = dict(_flatten({"experiment": recorded["experiment"], **recorded["config"]}))
            state["run"] = self._tracker.open(self._workdir, self._project, state["run"], config)
            self._is_open = True
            self._write_state(state)
        try:
            for record in waiting:
                step, split = record["step"], record["split"]
                metrics = {
                    f"{split}/{name}": float(value)
                    for name, value in record.items()
                    if name not in ("step", "split") and value is not None and math.isfinite(value)
                }
                self._tracker.log(step, metrics)
                sent[split] = step
                self.sent += 1
        finally:
            self._write_state(state)

    def close(self) -> None:
        """Closes the tracker's run if it was opened."""
        if self._is_open:
            self._tracker.close()
            self._is_open = False

    def _read_state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._state.read_text())
        except FileNotFoundError:
            return {"run": "", "sent": {}}
        except ValueError as error:
            raise ValueError(
                f"{self._state}: damaged ({error}); delete it, and all records are sent to a new "
                "run of the tracker"
            ) from error
        return state

    def _write_state(self, state: Mapping[str, Any]) -> None:
        write_text_atomically(self._state, json.dumps(state) + "\n")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def follow(sender: Sender, ends: Callable[[float], bool], say: Callable[[str], None]) -> bool:
    """Sends new records until the training ends; returns True if all were sent.

    Args:
      sender: of the run.
      ends: waits for at most that many seconds; True if the training has ended.
      say: receives one line at the first failure, and one when the tracker works again.
    """
    pause, failed = POLL_SECONDS, False
    while True:
        ended = ends(pause)
        try:
            sender.send()
        except Exception as error:  # Of libraries: their kinds are many.
            if not failed:
                say(f"cannot be reached ({_reason(error)}); the records wait in metrics.jsonl")
            failed, pause = True, min(2 * pause, LONGEST_PAUSE)
        else:
            if failed:
                say("works again; all records are sent")
            failed, pause = False, POLL_SECONDS
        if ended:
            break
    try:
        sender.close()
    except Exception as error:
        say(f"the run could not be closed ({_reason(error)})")
        return False
    return not failed


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
