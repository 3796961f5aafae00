"""Program that evaluates a captioner, as one of several processes or alone, and writes metrics.

python -m tests.flaxnets.training.captions_of_two_processes OUT PORT NUM_PROCESSES PROCESS
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.loader import Loader
from flaxnets.decoders.search import SearchOptions
from flaxnets.tasks.captioning import Captioning
from flaxnets.training.evaluation import evaluate, gather_records
from flaxnets.training.parallel import DataParallel
from flaxnets.training.step import make_evaluation_step
from tests.flaxnets.tasks.table_captioner import (
    L,
    R,
    TableCaptioner,
    V,
    captions,
    variables_of,
)

NUM_EXAMPLES, BATCH_SIZE = 11, 4
UNREADABLE = (2, 7, 9)


class Source:
    """Examples of random features with two captions each; some cannot be read."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.features = rng.normal(size=(NUM_EXAMPLES, R, 1 + V)).astype(np.float32)
        self.lengths = rng.integers(1, L + 1, (NUM_EXAMPLES, 2)).astype(np.int32)
        self.tokens = rng.integers(2, V, (NUM_EXAMPLES, 2, L)).astype(np.int32)

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        return {
            "features": self.features[index],
            "tokens": self.tokens[index],
            "token_lengths": self.lengths[index],
            "mask": np.asarray(index not in UNREADABLE),
            "index": np.asarray(index, np.int32),
        }


def figures(strategy: DataParallel) -> dict[str, Any]:
    """Returns the metrics of ``evaluate``, and the records it passes on in this process."""
    model = TableCaptioner()
    # Words of different lengths, so that the processes' records differ in size.
    task = Captioning(
        lambda ids: " ".join("x" * 2**number for number in ids),
        SearchOptions(method="greedy", max_steps=L),
    )
    data = Loader(
        Source(),
        batch_size=BATCH_SIZE,
        train=False,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        max_bad_share=1.0,
        num_threads=0,
    )
    scored: list[Mapping[str, Any]] = []
    handed: list[dict[str, Any]] = []

    def score(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        scored.extend(records)
        return {"mean_length": float(np.mean([len(record["caption"]) for record in records]))}

    def on_outputs(batch: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        handed.extend(
            {
                "index": int(batch["index"][row]),
                "caption": task.describe_outputs(dict(outputs), row)["caption"],
            }
            for row in range(len(batch["index"]))
        )

    metrics = evaluate(
        strategy.compile(make_evaluation_step(model, task)),
        strategy,
        strategy.replicate(jax.device_get(variables_of(model, captions()))),
        data,
        on_outputs,
        score=score,
        describe=task.describe_outputs,
    )
    # One process without records, the other with one.
    first = jax.process_index() == 0
    uneven = gather_records([] if first and jax.process_count() > 1 else [{"index": 5}])
    return {"metrics": metrics, "scored": scored, "handed": handed, "uneven": uneven}


def main(out: str, port: str, num_processes: int, process: int) -> None:
    if num_processes > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{port}",
            num_processes,
            process,
            coordinator_bind_address=f"127.0.0.1:{port}",
            heartbeat_timeout_seconds=10,
            initialization_timeout=120,
        )
    Path(out).write_text(json.dumps(figures(DataParallel())))
    if num_processes > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
