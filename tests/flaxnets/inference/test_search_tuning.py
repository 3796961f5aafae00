"""Choice of a search: the language model's weight that mends errors, on one half of the lines."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.decoders.ctc.character_ngram import train_ngram
from flaxnets.inference.search_tuning import BEAM, CHOSEN, GREEDY, tune_search
from flaxnets.tasks.ctc import CTC, CTCSearch
from flaxnets.training.config import Config, Scorer

TEXT, WRONG, BATCH_SIZE = "abab", "acac", 4
LINES = 7
K = 4


class Table(nn.Module):
    """Network whose inputs are its logits."""

    @nn.compact
    def __call__(self, inputs: Any, lengths: Any, mask: Any = None, *, train: bool) -> Any:
        return inputs

    def steps(self, lengths: Any) -> Any:
        return lengths


class Spectrograms:
    """Lines of which each b looks a little more like a c; the last row of all is masked."""

    def batches(self, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        shares = np.full((2 * len(TEXT), K), 0.02)
        for step, character in enumerate(TEXT):
            shares[2 * step, 0] = shares[2 * step + 1, "_abc".index(character)] = 0.94
        shares[3::4] = 0.02, 0.02, 0.45, 0.51
        table = np.log(shares).astype(np.float32)
        for number in range(2):
            rows = np.arange(number * BATCH_SIZE, (number + 1) * BATCH_SIZE, dtype=np.int32)
            yield {
                "spectrogram": np.repeat(table[None], BATCH_SIZE, 0),
                "lengths": np.full(BATCH_SIZE, len(table), np.int32),
                "mask": rows < LINES,
                "index": np.where(rows < LINES, rows, -1),
            }


@dataclasses.dataclass
class ReaderConfig(Config):
    """Reader of the table; its scorer counts the lines that it is given."""

    best_metric: str = "errors"
    best_mode: str = "min"
    search: CTCSearch = dataclasses.field(default_factory=CTCSearch)

    def make_model(self) -> nn.Module:
        return Table()

    def make_task(self) -> Any:
        model = train_ngram([[1, 2, 1, 2], [1, 2]], K - 1, order=3).automaton()
        return CTC(lambda ids: "".join("_abc"[i] for i in ids), self.search, model)

    def make_data(self, split: str) -> Any:
        return Spectrograms()

    def make_scorer(self, split: str, *, complete: bool = False) -> Scorer | None:
        if split not in ("validation", "test"):
            raise ValueError(f"split: expected validation or test, received {split!r}")

        def score(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
            wrong = sum(record["text"] != TEXT for record in records)
            assert {record["text"] for record in records} <= {TEXT, WRONG}
            return {"errors": wrong / len(records), "lines": len(records)}

        return score


def model(config: Any) -> Any:
    return SimpleNamespace(config=config, variables={})


def test_the_smallest_weight_that_mends_the_errors_is_chosen() -> None:
    config = ReaderConfig()
    tuning = tune_search(
        model(config), report="half", width=4, weights=(0.4, 0.0, 0.2), bonuses=(0.0, 0.1)
    )
    assert dataclasses.asdict(tuning.search) == dataclasses.asdict(
        CTCSearch(width=4, language_model_weight=0.2)
    )
    for found, lines in ((tuning.chosen_on, 4), (tuning.reported_on, 3)):
        errors = {name: metrics["errors"] for name, metrics in found.items()}
        assert errors == {GREEDY: 1.0, BEAM: 1.0, CHOSEN: 0.0}
        assert {metrics["lines"] for metrics in found.values()} == {lines}
    assert [trial[:2] for trial in tuning.trials] == [
        *((0.0, 0.0), (0.0, 0.1), (0.2, 0.0), (0.2, 0.1), (0.4, 0.0), (0.4, 0.1)),
    ]
    assert tuning.trials[0][2] == 1
    assert all(seconds > 0 for seconds in tuning.seconds_per_line.values())

    whole = tune_search(model(config), report="test", width=4, weights=(0.2,), bonuses=(0.0,))
    assert whole.chosen_on[CHOSEN]["lines"] == whole.reported_on[CHOSEN]["lines"] == LINES


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (Config(), {}, "model: expected a run that reads texts by CTC"),
        (ReaderConfig(), {"width": 0}, "width, weights, bonuses: expected at least 1"),
        (ReaderConfig(), {"weights": (-1.0,)}, "with weights of at least 0"),
        (ReaderConfig(), {"bonuses": ()}, "values to try"),
        (ReaderConfig(), {"report": "nope"}, "expected validation or test, received 'nope'"),
        (ReaderConfig(), {"report": "train"}, "expected splits that end"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_read(
    config: Any, options: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Spectrograms, "batches")
    with pytest.raises(ValueError, match=message):
        tune_search(model(config), **options)


def test_log_probs_of_a_task_are_what_its_evaluation_searches() -> None:
    config = ReaderConfig()
    task, batch = config.make_task(), next(Spectrograms().batches())
    log_probs, steps = task.log_probs(Table(), {}, batch)
    found = task.find_texts(log_probs, steps)
    tokens = jnp.where(jnp.arange(8) < found.lengths[0, 0], found.tokens[0, 0], 0)
    assert task.text(tokens[:4].tolist()) == WRONG
    np.testing.assert_allclose(jax.nn.logsumexp(log_probs, axis=-1), 0, atol=1e-6)
