"""The loader: from a random-access source to batches, by grain.

Batch number k depends on the source, the seed and the (global) batch size alone: not on the number
of processes, threads or workers, nor on where the iteration began. So a position is one number, and
a run goes on exactly on other machinery.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, Self

import grain
import numpy as np

from data.batches import UNKNOWN_LABEL

# The endless order of training examples, where it is not the loader's own shuffle.

_ENDLESS_EXAMPLES = 2**50  # grain's datasets need a length below 2**63


class Order(Protocol):
    """Decides which example stands where, from nothing but the place; picklable.

    ``data.captions.length_buckets.LengthBuckets`` is one.

    Attributes:
        num_examples: those of the source.
        batch_size: rows of a batch of all processes together.
    """

    num_examples: int
    batch_size: int

    def index(self, position: int) -> int:
        """The example at ``position``, from 0 on; batch k begins at k × ``batch_size``."""
        ...

    def finish(self, number: int, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Changes a process's rows of batch ``number``, into equal shapes on all processes."""
        ...

    def describe(self) -> dict[str, Any]:
        """What fixes the order besides ``num_examples`` and ``batch_size``, for JSON."""
        ...


class OrderedExamples:
    """The examples of a source in an order, as a source without end.

    Args:
        source: random access to examples.
        order: which of them follow each other.
    """

    def __init__(self, source: Any, order: Order):
        self._source = source
        self._order = order

    def __len__(self) -> int:
        return _ENDLESS_EXAMPLES

    def __getitem__(self, position: int, /) -> Any:
        return self._source[self._order.index(position)]


Batch = dict[str, np.ndarray]
Transform = Callable[[Any, np.random.Generator], Mapping[str, np.ndarray]]

_logger = logging.getLogger(__name__)

_ENDLESS_BATCHES = 2**40  # grain's datasets need a length below 2**63


class Records(Protocol):
    """Random access to records; ``explain(index) -> str``, why one is bad, is optional."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class TooManyBadExamples(OSError):
    """More examples could not be read than the loader was told to put up with."""


class Loader:
    """Batches of one split, for one of the processes.

    A program that uses workers needs its ``__main__`` guard, as they are spawned, and
    its absl flags must be parsed, as grain reads flags of its own.

    Args:
        source: the records, or, without ``transform``, the examples; picklable.
        batch_size: rows of a batch of all processes together.
        transform: makes an example of a record, with random numbers that depend on the seed and
            the example's place in the order alone; picklable.
        train: shuffle, anew in every epoch, and repeat forever. False: one pass in the source's
            order, whose last batch is filled up with rows of zeros (``mask`` False, ``label`` and
            ``index`` -1), so that every process sees ``batches_per_epoch`` batches.
        order: replaces the shuffle in training, and finishes each batch.
        seed: fixes the order and the transform's random numbers, 0..2**32 - 1.
        process_index: which process this is; it gets the rows
            [process_index, process_index + 1) × batch_size / process_count of each batch.
        process_count: number of processes.
        num_threads: threads that read and transform, in each worker if there are workers; 0 works
            in the caller's thread. None takes one more than the process has CPUs, at most 16.
        num_workers: worker processes; 0 takes threads alone, which is faster on few cores.
        max_bad_share: greatest share of the source's examples that may be unreadable.

    Attributes:
        bad: index of each example found unreadable so far by this process, with the reason.

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
        self.source = source
        self.order = order
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
        """The number of examples in the source."""
        return len(self.source)

    @property
    def batches_per_epoch(self) -> int:
        """The batches that hold every example once, the last one maybe partly."""
        return -(-self.num_examples // self.batch_size)

    def describe(self) -> dict[str, Any]:
        """What fixes the order, for JSON: a position is worth nothing where this differs."""
        return {
            "num_examples": self.num_examples,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "train": self.train,
            **(self.order.describe() if self.order else {}),
        }

    def batches(self, start: int = 0) -> "BatchIterator":
        """Begins a pass.

        Args:
            start: number of the first batch.

        Returns:
            The iterator; close it where it is left before its end.

        Raises:
            ValueError: there is no such batch.
        """
        return BatchIterator(self, start)

    def _open(self, start: int) -> grain.DatasetIterator:
        """Grain's iterator over this process's batches from ``start`` on."""
        if self.order is not None:
            ordered = OrderedExamples(self.source, self.order)
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
            ProcessRows(examples, first_row, self._rows, self.batch_size, num_batches)
        )
        if self._num_workers == 0:
            options = grain.ReadOptions(
                num_threads=self._num_threads,
                prefetch_buffer_size=max(2 * self._rows, self._num_threads)
                if self._num_threads
                else 0,
            )
            return iter(rows.to_iter_dataset(options).batch(self._rows))
        # Workers take turns batch by batch, so the order doesn't depend on their number.
        options = grain.ReadOptions(
            num_threads=self._num_threads,
            prefetch_buffer_size=min(self._num_threads, 2),
        )
        batches = rows.batch(self._rows).to_iter_dataset(options)
        workers = grain.MultiprocessingOptions(
            num_workers=self._num_workers, per_worker_buffer_size=1
        )
        return iter(batches.mp_prefetch(workers, worker_init_fn=end_with_parent))

    def _note_bad(self, batch: Batch) -> None:
        if "mask" not in batch or "index" not in batch:
            return
        found = batch["index"][~batch["mask"] & (batch["index"] >= 0)]
        for index in map(int, found):
            if index not in self.bad:
                explain = getattr(self.source, "explain", None)
                self.bad[index] = explain(index) if explain else f"example {index}"
                _logger.warning("skipped an unreadable example: %s", self.bad[index])
        if len(self.bad) > self._max_bad_share * self.num_examples:
            raise TooManyBadExamples(
                f"{len(self.bad)} of {self.num_examples} examples "
                f"({len(self.bad) / self.num_examples:.1%}) cannot be read, more than the "
                f"{self._max_bad_share:.1%} allowed; first: "
                + "; ".join(list(self.bad.values())[:3])
            )


class BatchIterator(Iterator[Batch]):
    """One pass over a loader's batches, with a position that can be saved and set.

    Closes itself at its end, at an error, and at the end of a ``with`` statement.
    """

    def __init__(self, loader: Loader, start: int):
        self._loader = loader
        self._iterator: grain.DatasetIterator | None = None
        self._next = 0
        self._seek(start)

    def __next__(self) -> Batch:
        """Gives this process's rows of the next batch.

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
            if self._iterator is None:
                self._iterator = loader._open(self._next)
            # A worker's arrays lie in shared memory that ends with them; jax may keep hold of it.
            own = np.array if loader._num_workers else np.asarray
            batch = {key: own(value) for key, value in next(self._iterator).items()}
            loader._note_bad(batch)
            if loader.order is not None:
                batch = loader.order.finish(self._next, batch)
        except BaseException:
            self.close()
            raise
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position, for JSON: the number of the next batch and the loader's description."""
        return {"next_batch": self._next, **self._loader.describe()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that ``get_state`` gave, of this or another iterator.

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
        """Stops threads and workers; no batch can be had any more."""
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


# Which rows of every batch are those of one process.


class ProcessRows:
    """The rows of one process, one after the other: a random-access source for grain.

    Row r of batch k is element ``first_row`` + k × ``batch_size`` + r of the examples. Beyond the
    examples there are blank rows: zeros, with ``mask`` False, ``lengths`` 1, and -1 for ``label``
    and ``index``.

    Args:
        examples: the examples of all processes, one after the other.
        first_row: the element that this process's first row is.
        rows: rows of a batch that this process gets.
        batch_size: rows of a batch of all processes.
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
            blank = {key: np.zeros_like(value) for key, value in self._examples[0].items()}
            for key, value in (("label", UNKNOWN_LABEL), ("index", -1), ("lengths", 1)):
                if key in blank:
                    blank[key] = np.full_like(blank[key], value)
            self._blank = blank
        return self._blank


# The processes that read data: how many there may be, and when they end.


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
