"""Options of several processes are checked; a single process works without any."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from flaxnets.training.distributed import (
    broadcast_from_first,
    describe_process,
    is_first,
    joined,
    leave,
    synchronize,
)
from flaxnets.training.metric_writer import MetricsWriter
from flaxnets.training.preemption import Preemption
from flaxnets.training.workdir import Workdir


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": "a:1"}, "received no num_processes and no process_id"),
        ({"num_processes": 2, "process_id": 0}, "all three or none, received no coordinator"),
        (
            {"coordinator": "node7", "num_processes": 2, "process_id": 0},
            "coordinator: expected HOST:PORT, received 'node7'",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "process_id: expected 0 <= process_id < num_processes = 2, received 2",
        ),
        ({"cluster": "slrum"}, "cluster: expected one of auto, none, slurm, .*received 'slrum'"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message), joined(**options):
        pass


def test_a_single_process_is_the_first_and_waits_for_nobody() -> None:
    with joined(cluster="none"):
        assert is_first()
        assert broadcast_from_first(True)
        assert not broadcast_from_first(False)
        synchronize("here")
        assert describe_process() == ""
        leave(1)  # Exits only if there are other processes.


def test_other_processes_leave_the_workdir_alone(tmp_path: Path) -> None:
    with Workdir(tmp_path), Workdir(tmp_path, writes=False):
        before = sorted(tmp_path.iterdir())
        writer = MetricsWriter(tmp_path, resume_step=0, writes=False)
        writer.write(1, "train", {"loss": 1.0})
        writer.close()
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_notice_stops_after_the_step_and_handlers_come_back(number: int) -> None:
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert not preemption.stops()
        os.kill(os.getpid(), number)
        assert preemption.stops()
        assert preemption.signal == number
    assert signal.getsignal(number) is before
