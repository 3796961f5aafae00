"""The processes that read data: how many there may be, and when they end."""

import multiprocessing
import os
import signal
import threading


def end_with_parent(worker_index: int, worker_count: int) -> None:
    """Lets a worker end when its parent was killed, instead of waiting for ever, and only then.

    A terminal or a scheduler sends its signal to the whole group; the parent still needs batches
    for the step after which it stops, and kills its workers itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def available_cpus() -> int:
    """Processors that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
