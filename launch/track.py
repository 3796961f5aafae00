"""Sends the records of a run to Weights & Biases, MLflow or Trackio.

    python -m launch.track --workdir=runs/crnn --tracker=wandb

Sends what ``metrics.jsonl`` holds and the service does not have yet: ``tracker_NAME.json`` in the
workdir names the service's run and the last step of each split that was sent, so that a resumed
training continues the same run. ``launch.train --tracker=NAME`` starts this program beside the
training, with ``--follow``: a service that is slow, away or broken then costs a process of its own
and never the training. What could not be sent is sent by the command above, at any later time.

``wandb``: ``WANDB_MODE=offline`` writes to ``wandb/`` in the workdir, and ``wandb sync`` sends it.
``mlflow``: ``MLFLOW_TRACKING_URI`` names the server; without it a database ``mlflow.db`` beside the
workdir is written. ``trackio``: local files (``TRACKIO_DIR``), or the Space in
``TRACKIO_SPACE_ID``. Other trackers are ``package.module:Name`` of a class like
``flaxnets.training.trackers.Tracker``.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from flaxnets.configuration import find_part
from flaxnets.training.trackers import TRACKERS, Sender, follow
from launch import program

WORKDIR = program.define_path("workdir", None, "Folder of the run.", required=True)
TRACKER = flags.DEFINE_string("tracker", None, "wandb, mlflow or trackio.", required=True)
PROJECT = flags.DEFINE_string("project", "flaxnets", "Project, or experiment of MLflow.")
FOLLOW = flags.DEFINE_bool(
    "follow", False, "Sends new records until standard input is closed; signals are ignored."
)

END_SECONDS = 60.0
"""Seconds after the end of the training in which the rest must be sent."""


def main(argv: Sequence[str]) -> int:
    """Sends the records; returns the exit code."""
    program.refuse_arguments(argv)
    workdir, name = Path(WORKDIR.value), TRACKER.value
    make = find_part("--tracker", name, TRACKERS, "a class like flaxnets.training.trackers.Tracker")
    sender = Sender(workdir, name, make(), PROJECT.value)
    if not FOLLOW.value:
        if not workdir.is_dir():
            raise FileNotFoundError(f"--workdir: no folder {workdir}; expected that of a run")
        sender.send()
        sender.close()
        print(f"{sender.sent} records sent to {name}")
        return 0
    # The training gets the signals and closes the pipe when it ends, however it ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    with _own_output(workdir / f"tracker_{name.replace(':', '.')}.log") as stderr:

        def say(text: str) -> None:
            with contextlib.suppress(OSError):
                os.write(stderr, f"tracker {name}: {text}\n".encode())

        def ends(seconds: float) -> bool:
            readable, _, _ = select.select([0], [], [], seconds)
            if not readable or os.read(0, 1):
                return False
            # A library may wait for its service for ever.
            rest = threading.Timer(END_SECONDS, lambda: os._exit(1))
            rest.daemon = True
            rest.start()
            return True

        sent = follow(sender, ends, say)
    # Not by way of the libraries' exit handlers, which may wait for their services again.
    os._exit(0 if sent else 1)


@contextlib.contextmanager
def _own_output(path: Path) -> Iterator[int]:
    """Sends what libraries print to a file; yields the descriptor of the standard error."""
    sys.stdout.flush()
    sys.stderr.flush()
    stderr = os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    yield stderr


if __name__ == "__main__":
    program.run(main)
