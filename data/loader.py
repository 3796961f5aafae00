"""Batches of a random-access source, loaded by grain.

Batch number k depends only on the source, the seed and the global batch size: not on the number of
processes, threads or workers, and not on the batch at which the iteration started. A position is
therefore one number, and a run resumes exactly on other machines.
"""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any, Protocol, Self

import grain
import numpy as np

from data.batches import UNKNOWN_LABEL

Batch = dict[str, np.ndarray]
"""Arrays with a leading axis B (``data.batches``)."""
Transform = Callable[[Any, np.random.Generator], Mapping[str, np.ndarray]]
"""(record, random numbers) to an example. An optional method ``explain(record) -> str`` returns the
reason why a record is unreadable, ahead of ``Records.explain``."""

_logger = logging.getLogger(__name__)

# Training has no end, but grain's datasets need a length below 2**63.
_ENDLESS_BATCHES = 2**40
_ENDLESS_EXAMPLES = 2**50


class Records(Protocol):
    """Random access to records.

    An optional method ``explain(index) -> str`` returns the reason why a record is unreadable.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Order(Protocol):
    """Endless order of training examples, a function of the position alone; picklable.

    It replaces the loader's own shuffle. ``data.captions.length_buckets.LengthBuckets`` is one.

    Attributes:
        num_examples: number of examples in the source.
        batch_size: rows of a global batch.
    """

    num_examples: int
    batch_size: int

    def index(self, position: int) -> int:
        """Returns the example at ``position`` >= 0; batch k starts at k × ``batch_size``."""
        ...

    def finish(self, number: int, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns one process's rows of batch ``number``, cut to shapes equal on all processes."""
        ...

    def describe(self) -> dict[str, Any]:
        """Returns the settings besides ``num_examples`` and ``batch_size``, for JSON."""
        ...


class Plan(Protocol):
    """Contents and shapes of all batches, a function of the batch number alone; picklable.

    It replaces the loader's own order and stacking, so that batches may have different numbers of
    rows. ``data.width_buckets.WidthBuckets`` is one.

    Attributes:
        num_examples: number of examples in the source.
        train: whether the batches have no end.
        rows: all numbers of rows of a global batch.
    """

    num_examples: int
    train: bool
    rows: tuple[int, ...]

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that hold every example once."""
        ...

    def indices(self, number: int) -> np.ndarray:
        """Returns the examples of the global batch ``number`` >= 0, (rows,); -1 for blank rows."""
        ...

    def stack(self, number: int, examples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """Returns one process's rows of batch ``number``, in shapes equal on all processes."""
        ...

    def describe(self) -> dict[str, Any]:
        """Returns the settings besides ``num_examples``, for JSON."""
        ...


class TooManyBadExamples(OSError):
    """The share of unreadable examples exceeds the loader's ``max_bad_share``."""


class Loader:
    """Batches of one split, for one process.

    Worker processes are spawned, so a program that uses them needs a ``__main__`` guard. Its absl
    flags must be parsed, because grain reads its own.

    Args:
        source: the records, or the examples where ``transform`` is None; picklable.
        batch_size: rows of a global batch, a multiple of ``process_count``.
        transform: makes an example of a record; its random numbers depend only on the seed and the
            example's position in the order; picklable.
        train: reshuffle in every epoch and repeat forever. False: one pass in the source's order,
            whose last batch is padded with rows of zeros (``mask`` False, ``lengths`` 1, ``label``
            and ``index`` -1), so that every process sees ``batches_per_epoch`` batches.
        order: replaces the shuffle in training and finishes each batch.
        plan: replaces order and stacking, in training and evaluation; ``batch_size`` is then the
            nominal one, for progress alone.
        identity: what tells these examples from others, for JSON, as of ``describe_examples``;
            ``describe`` includes it.
        seed: of the order and of the transform's random numbers, 0..2**32 - 1.
        process_index: index p of this process; it gets the rows [p, p + 1) × batch_size /
            process_count of each batch.
        process_count: number of processes.
        num_threads: threads that read and transform, per worker if there are workers; 0 uses the
            caller's thread. None takes one more than the available CPUs, at most 16.
        num_workers: worker processes; 0 uses threads only, which is faster on few cores.
        max_bad_share: greatest share of unreadable examples in the source, in [0,1].

    Attributes:
        bad: unreadable examples that this process has met so far, index -> reason.

    Raises:
        ValueError: an argument is out of its range, or the source is empty.
    """

    def __init__(
        self,
        source: Records,
        *,
        batch_size: int,
        transform: Transform | None = None,
        train: bool,
        order: Order | None = None,
        plan: Plan | None = None,
        identity: Mapping[str, Any] | None = None,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        num_threads: int | None = None,
        num_workers: int = 0,
        max_bad_share: float = 0.05,
    ):
        if len(source) == 0:
            raise ValueError("source: expected at least one example, received none")
        if process_count < 1 or not 0 <= process_index < process_count:
            raise ValueError(
                f"process_index: expected 0 <= process_index < process_count, "
                f"received {process_index} of {process_count}"
            )
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(
                f"batch_size: expected a multiple of the {process_count} processes, "
                f"received {batch_size}"
            )
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed: expected 0 <= seed < 2**32, received {seed}")
        if num_workers < 0 or (num_threads is not None and num_threads < 0):
            raise ValueError(
                f"num_threads, num_workers: expected 0 or more, received {num_threads}, "
                f"{num_workers}"
            )
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share: expected 0..1, received {max_bad_share}")
        if order is not None:
            fits = (order.num_examples, order.batch_size) == (len(source), batch_size)
            if not train or not fits:
                raise ValueError(
                    f"order: expected one of {len(source)} examples in batches of {batch_size}, "
                    f"in training, received {order} with train={train}"
                )
        if plan is not None:
            if order is not None or (plan.num_examples, plan.train) != (len(source), train):
                raise ValueError(
                    f"plan: expected one of {len(source)} examples with train={train} and no "
                    f"order, received {plan} with train={plan.train}"
                )
            if any(rows % process_count for rows in plan.rows):
                raise ValueError(
                    f"plan: expected rows that are multiples of the {process_count} processes, "
                    f"received {plan.rows}"
                )
        self.source = source
        self.order = order
        self.plan = plan
        # Through JSON and back, so that it equals what a checkpoint returns.
        self.identity: dict[str, Any] = json.loads(json.dumps(dict(identity or {})))
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.bad: dict[int, str] = {}
        self._transform = transform
        self._process_index = process_index
        self._rows = batch_size // process_count
        self._num_threads = min(available_cpus() + 1, 16) if num_threads is None else num_threads
        self._num_workers = num_workers
        self._max_bad_share = max_bad_share

    @property
    def num_examples(self) -> int:
        """Number of examples in the source."""
        return len(self.source)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that hold every example once; the last may be padded."""
        if self.plan is not None:
            return self.plan.batches_per_epoch
        return -(-self.num_examples // self.batch_size)

    def describe(self) -> dict[str, Any]:
        """Returns what fixes the batches, for JSON; a position is valid for these only.

        The settings of the order, and ``identity``.
        """
        return {
            **self.identity,
            "num_examples": self.num_examples,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "train": self.train,
            **(self.order.describe() if self.order else {}),
            **(self.plan.describe() if self.plan else {}),
        }

    def batches(self, start: int = 0) -> "BatchIterator":
        """Returns an iterator over this process's rows of the batches.

        Args:
            start: number of the first batch, from 0 on.

        Returns:
            The iterator; it must be closed if it is abandoned before its end.

        Raises:
            ValueError: there is no such batch.
        """
        return BatchIterator(self, start)

    def _open(self, start: int) -> grain.DatasetIterator:
        """Returns grain's iterator over this process's batches from ``start`` on."""
        workers = grain.MultiprocessingOptions(
            num_workers=self._num_workers, per_worker_buffer_size=1
        )
        if self.plan is not None:
            planned = _PlannedBatches(self, self.plan, start)
            few = grain.ReadOptions(
                num_threads=self._num_threads, prefetch_buffer_size=min(self._num_threads, 4)
            )
            whole = grain.MapDataset.source(planned).to_iter_dataset(few)
            if self._num_workers:
                whole = whole.mp_prefetch(workers, worker_init_fn=_outlast_signals)
            return iter(whole)
        if self.order is not None:
            ordered = _OrderedExamples(self.source, self.order)
            examples = grain.MapDataset.source(ordered).seed(self.seed)
        else:
            examples = grain.MapDataset.source(self.source).seed(self.seed)
            if self.train:
                examples = examples.shuffle().repeat()
        if self._transform is not None:
            examples = examples.random_map(self._transform)
        first_row = start * self.batch_size + self._process_index * self._rows
        num_batches = _ENDLESS_BATCHES if self.train else self.batches_per_epoch - start
        rows = grain.MapDataset.source(
            _ProcessRows(examples, first_row, self._rows, self.batch_size, num_batches)
        )
        if self._num_workers == 0:
            options = grain.ReadOptions(
                num_threads=self._num_threads,
                prefetch_buffer_size=max(2 * self._rows, self._num_threads)
                if self._num_threads
                else 0,
            )
            return iter(rows.to_iter_dataset(options).batch(self._rows))
        # Workers take turns batch by batch, so the order does not depend on their number.
        options = grain.ReadOptions(
            num_threads=self._num_threads,
            prefetch_buffer_size=min(self._num_threads, 2),
        )
        batches = rows.batch(self._rows).to_iter_dataset(options)
        return iter(batches.mp_prefetch(workers, worker_init_fn=_outlast_signals))

    def _explain(self, index: int) -> str:
        """Returns why an example has ``mask`` False."""
        if explain := getattr(self._transform, "explain", None):
            return str(explain(self.source[index]))
        if explain := getattr(self.source, "explain", None):
            return str(explain(index))
        return f"example {index}"

    def _note_bad(self, batch: Batch) -> None:
        if "mask" not in batch or "index" not in batch:
            return
        found = batch["index"][~batch["mask"] & (batch["index"] >= 0)]
        for index in map(int, found):
            if index not in self.bad:
                self.bad[index] = self._explain(index)
                _logger.warning("skipped an unreadable example: %s", self.bad[index])
        if len(self.bad) > self._max_bad_share * self.num_examples:
            raise TooManyBadExamples(
                f"{len(self.bad)} of {self.num_examples} examples "
                f"({len(self.bad) / self.num_examples:.1%}) cannot be read, more than the "
                f"{self._max_bad_share:.1%} allowed; first: "
                + "; ".join(list(self.bad.values())[:3])
            )


class BatchIterator(Iterator[Batch]):
    """Iterator over a loader's batches, with a position that can be saved and restored.

    It releases its threads and workers at its end, at an error, and at the end of a ``with`` block.
    """

    def __init__(self, loader: Loader, start: int):
        self._loader = loader
        self._iterator: grain.DatasetIterator | None = None
        self._next = 0
        self._seek(start)

    def __next__(self) -> Batch:
        """Returns this process's rows of the next batch.

        Raises:
            TooManyBadExamples: the source has too many unreadable examples.
            ValueError: the iterator was closed.
        """
        if self._closed:
            raise ValueError("the iterator is closed: expected a new one from Loader.batches()")
        loader = self._loader
        if not loader.train and self._next == loader.batches_per_epoch:
            self._stop()
            raise StopIteration
        try:
            with contextlib.ExitStack() as stack:
                if self._iterator is None:
                    if loader._num_workers:  # Started by the first call of next.
                        stack.enter_context(_blocked_signals())
                    self._iterator = loader._open(self._next)
                elements = next(self._iterator)
            # A worker's arrays lie in shared memory that is freed with them, and jax may alias it.
            own = np.array if loader._num_workers else np.asarray
            batch = {key: own(value) for key, value in elements.items()}
            loader._note_bad(batch)
            if loader.order is not None:
                batch = loader.order.finish(self._next, batch)
        except BaseException:
            self.close()
            raise
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position, for JSON: the next batch's number and ``Loader.describe()``."""
        return {"next_batch": self._next, **self._loader.describe()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a position that ``get_state`` of this or another iterator returned.

        Raises:
            ValueError: the position belongs to another order of batches.
        """
        here = self._loader.describe()
        there = {key: value for key, value in state.items() if key != "next_batch"}
        if "next_batch" not in state or here != there:
            changes = [
                f"{key}: {there.get(key)} saved, {here.get(key)} now"
                for key in sorted(here.keys() | there.keys())
                if there.get(key) != here.get(key)
            ]
            raise ValueError(
                f"state: expected a position in the same data, "
                f"received {'; '.join(changes) or 'none'}"
            )
        self._seek(int(state["next_batch"]))

    def close(self) -> None:
        """Stops threads and workers; the iterator yields no further batches."""
        self._stop()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _seek(self, start: int) -> None:
        last = self._loader.batches_per_epoch
        if start < 0 or (not self._loader.train and start > last):
            raise ValueError(f"start: expected the number of a batch, 0..{last}, received {start}")
        self._stop()
        self._next = start
        self._closed = False

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def describe_examples(names: Sequence[str | int], targets: Sequence[Any]) -> dict[str, Any]:
    """Returns digests that tell examples of other files, other targets or another order apart.

    They depend neither on the folder of the files nor on their contents: moved data are the same.

    >>> a = describe_examples(["Wave/1.mp4", "Clap/2.mp4"], ["Wave", "Clap"])
    >>> b = describe_examples(["Clap/2.mp4", "Wave/1.mp4"], ["Clap", "Wave"])
    >>> [key for key in a if a[key] != b[key]]
    ['order']

    Args:
        names: name of each example, relative to the folder of the data.
        targets: label or captions of each, values for JSON; labels as names of classes, so that a
            permutation of the classes is no other target.

    Returns:
        ``num_examples``; ``files``, the digest of the sorted names; ``targets``, that of the sorted
        pairs of name and target; ``order``, that of the pairs in order.
    """
    # File systems of macOS decompose letters with accents.
    texts = [unicodedata.normalize("NFC", str(name)) for name in names]
    pairs = [json.dumps(pair) for pair in zip(texts, targets, strict=True)]

    def digest(lines: Sequence[str]) -> str:
        content = json.dumps(lines).encode()
        return hashlib.sha256(content).hexdigest()[:32]

    return {
        "num_examples": len(texts),
        "files": digest(sorted(texts)),
        "targets": digest(sorted(pairs)),
        "order": digest(pairs),
    }


class _OrderedExamples:
    """The examples of a source in a given order, as an endless source for grain."""

    def __init__(self, source: Any, order: Order):
        self._source = source
        self._order = order

    def __len__(self) -> int:
        return _ENDLESS_EXAMPLES

    def __getitem__(self, position: int, /) -> Any:
        return self._source[self._order.index(position)]


class _ProcessRows:
    """One process's rows of all batches in sequence, as a random-access source for grain.

    Row r of batch k is element ``first_row`` + k × ``batch_size`` + r of the examples. Beyond the
    last example rows are blank: zeros, with ``mask`` False, ``lengths`` 1, and -1 for ``label``
    and ``index``.

    Args:
        examples: the examples in the global order.
        first_row: index of this process's first row.
        rows: rows of each batch that this process gets.
        batch_size: rows of a global batch.
        num_batches: batches from ``first_row`` on.
    """

    def __init__(
        self,
        examples: grain.MapDataset,
        first_row: int,
        rows: int,
        batch_size: int,
        num_batches: int,
    ):
        self._examples = examples
        self._first_row = first_row
        self._rows = rows
        self._batch_size = batch_size
        self._num_batches = num_batches
        self._blank: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._num_batches * self._rows

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        batch, row = divmod(index, self._rows)
        element = self._first_row + batch * self._batch_size + row
        if element < len(self._examples):
            return dict(self._examples[element])
        if self._blank is None:
            self._blank = _blank(self._examples[0])
        return self._blank


_GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that terminals and schedulers send to the whole process group."""


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Context in which processes start that a signal to the group must not end on their way.

    They inherit the mask of signals: the workers until they ignore these signals, and Python's
    tracker of shared memory for good. This process gets what has come at the end of the context.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        # It unblocks two of them once it has started the tracker, so not between.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
    """Makes a process of ``multiprocessing`` exit when its parent has died, as by SIGKILL.

    A pool's worker else waits for its next task forever. In a process without such a parent it does
    nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)  # The worker may be busy, and nobody waits for what it does.

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()


def _outlast_signals(worker_index: int, worker_count: int) -> None:
    """Makes a worker process exit when its parent has died, and not before.

    A terminal or scheduler signals the whole process group. The worker ignores these signals: the
    parent still needs batches for the step at which it stops, and then ends its workers itself.
    """
    for number in _GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _GROUP_SIGNALS)
    exit_with_parent()


class _PlannedBatches:
    """One process's rows of the planned batches in sequence, as a random-access source for grain.

    Args:
      loader: with the source, transform, seed and process.
      plan: of its batches.
      start: number of the first batch.
    """

    def __init__(self, loader: Loader, plan: Plan, start: int):
        self._source = loader.source
        self._transform = loader._transform
        self._seed = loader.seed
        self._process = loader._process_index, loader.batch_size // loader._rows
        self._plan = plan
        self._start = start
        self._count = _ENDLESS_BATCHES if plan.train else plan.batches_per_epoch - start

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int, /) -> Batch:
        number = self._start + position
        indices = self._plan.indices(number)
        index, count = self._process
        size = len(indices) // count
        mine = range(index * size, (index + 1) * size)
        examples = [self._example(number, row, int(indices[row])) for row in mine]
        blank = next((_blank(example) for example in examples if example is not None), None)
        if blank is None:  # All rows of this process are; row 0 of a batch never is.
            blank = _blank(self._example(number, 0, int(indices[0])) or {})
        return self._plan.stack(number, [blank if e is None else e for e in examples])

    def _example(self, number: int, row: int, index: int) -> dict[str, np.ndarray] | None:
        if index < 0:
            return None
        record = self._source[index]
        if self._transform is None:
            return dict(record)
        generator = np.random.default_rng(
            np.random.SeedSequence(self._seed, spawn_key=(number, row))
        )
        return dict(self._transform(record, generator))


def _blank(example: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a row that pads a batch, shaped as an example."""
    blank = {key: np.zeros_like(value) for key, value in example.items()}
    for key, value in (("label", UNKNOWN_LABEL), ("index", -1), ("lengths", 1)):
        if key in blank:
            blank[key] = np.full_like(blank[key], value)
    return blank


def available_cpus() -> int:
    """Returns the number of CPUs that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
