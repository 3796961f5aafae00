"""Training and evaluation of three small networks by any strategy, in one or more processes."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flaxnets.decoders.search import SearchOptions
from flaxnets.decoders.show_attend_tell import SoftAttention
from flaxnets.encoders.columns import ColumnEncoder
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import StepClassifier
from flaxnets.models.captioner import Captioner
from flaxnets.models.column_crnn import ColumnCRNN
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.tasks.captioning import Captioning
from flaxnets.tasks.ctc import CTC
from flaxnets.tasks.task import Task
from flaxnets.tasks.video_classification import VideoClassification
from flaxnets.training.config import OptimizerConfig
from flaxnets.training.evaluation import evaluate
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.parallel import Strategy
from flaxnets.training.state import TrainState, initialize_variables, make_state
from flaxnets.training.step import make_evaluation_step, make_train_step

BATCH_SIZE, NUM_STEPS, NUM_EVALUATED = 16, 20, 21
KINDS = ("crnn", "captioner", "lines")
ANSWERS = {"crnn": "prediction", "captioner": "caption", "lines": "text"}
"""Key of a record that holds the model's answer, by kind."""
T, CLASSES = 3, 4
R, C, L, V = 4, 2, 5, 9
H, W, STRIDE = 4, 12, 2


def make_model(kind: str, dtype: str, param_dtype: str | None = None) -> nn.Module:
    types: Any = {"dtype": dtype, "param_dtype": param_dtype or dtype}
    if kind == "crnn":
        return CRNN(
            classifier=StepClassifier(CLASSES, dtype=dtype),
            encoder=SmallCNN((4, 6), (2, 2), **types),
            recurrent=Recurrent(partial(LSTMCell, 8, **types)),
        )
    if kind == "lines":
        return ColumnCRNN(
            ColumnEncoder(SmallCNN((4,), (STRIDE,), **types), STRIDE),
            StepClassifier(CLASSES + 1, dtype=dtype),
            Recurrent(partial(LSTMCell, 8, **types), bidirectional=True),
        )
    decoder = SoftAttention(
        vocabulary_size=V,
        make_cell=partial(GRUCell, 8, **types),
        embed_features=4,
        attention_features=6,
        dropout_rate=0.0,
        **types,
    )
    return Captioner(decoder)


def make_task(kind: str) -> Task:
    if kind == "crnn":
        return VideoClassification(label_smoothing=0.1)
    if kind == "lines":
        return CTC(lambda ids: "".join(map(str, ids)))
    return Captioning(
        lambda ids: " ".join(map(str, ids)),
        SearchOptions(method="greedy", max_steps=L),
        attention_penalty=0.5,
    )


class Examples:
    """Random examples, some of them masked; this process's rows of each batch."""

    num_examples = NUM_EVALUATED
    batches_per_epoch = -(-NUM_EVALUATED // BATCH_SIZE)

    def __init__(self, kind: str, dtype: str, *, train: bool) -> None:
        self._kind, self._dtype, self._train = kind, dtype, train

    def describe(self) -> dict[str, Any]:
        return {}

    def batches(self, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        rows = BATCH_SIZE // jax.process_count()
        own = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
        for number in range(start, NUM_STEPS if self._train else self.batches_per_epoch):
            yield {name: value[own] for name, value in self._whole(number).items()}

    def _whole(self, number: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((number, self._train))
        index = np.arange(number * BATCH_SIZE, (number + 1) * BATCH_SIZE, dtype=np.int32)
        there = np.ones(BATCH_SIZE, bool) if self._train else index < NUM_EVALUATED
        mask = there & (rng.random(BATCH_SIZE) < 0.8)
        if self._train and number % 5 == 1:
            mask[:2] = False  # All that the first of eight devices has.
        if self._train and number % 5 == 3:
            mask[9:] = False  # A partial batch.
        draw = {"crnn": self._clips, "captioner": self._captions, "lines": self._lines}
        return {**draw[self._kind](rng), "mask": mask, "index": np.where(there, index, -1)}

    def _clips(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        label = rng.integers(0, CLASSES, BATCH_SIZE).astype(np.int32)
        video = rng.normal(size=(BATCH_SIZE, T, 8, 8, 3)) + label[:, None, None, None, None]
        lengths = rng.integers(1, T + 1, BATCH_SIZE).astype(np.int32)
        return {"video": video.astype(self._dtype), "label": label, "lengths": lengths}

    def _lines(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        lengths = rng.integers(0, 4, BATCH_SIZE).astype(np.int32)
        tokens = rng.integers(1, CLASSES + 1, (BATCH_SIZE, 3)).astype(np.int32)
        return {
            # Some have fewer steps than their text has characters.
            "image": rng.normal(size=(BATCH_SIZE, H, W, 1)).astype(self._dtype),
            "lengths": rng.integers(1, W + 1, BATCH_SIZE).astype(np.int32),
            "tokens": np.where(np.arange(3) < lengths[:, None], tokens, 0),
            "token_lengths": lengths,
        }

    def _captions(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        lengths = rng.integers(0, L + 1, (BATCH_SIZE, C)).astype(np.int32)
        return {
            "features": rng.normal(size=(BATCH_SIZE, R, 6)).astype(self._dtype),
            "tokens": rng.integers(2, V, (BATCH_SIZE, C, L)).astype(np.int32),
            "token_lengths": lengths,
        }


def begin(
    strategy: Strategy, kind: str, dtype: str, **options: Any
) -> tuple[TrainState, Callable[..., Any]]:
    """Returns the initial state, and the compiled step for ``make_train_step``'s options."""
    model, task, variables = make_model(kind, dtype), make_task(kind), variables_of(kind, dtype)
    config = OptimizerConfig(learning_rate=1e-2, clip_norm=1.0)
    optimizer = make_optimizer(config, NUM_STEPS, variables["params"])
    state = make_state(variables, optimizer, 0, ema=options.get("ema_decay", 0) > 0)
    state = strategy.place(state)
    step = make_train_step(model, task, optimizer, strategy=strategy, **options)
    return state, strategy.compile_train(step, state)


@functools.cache
def variables_of(kind: str, dtype: str) -> Any:
    """Returns variables as NumPy arrays, which no step can donate."""
    batch = next(Examples(kind, dtype, train=True).batches())
    variables = initialize_variables(make_model(kind, dtype), make_task(kind), batch, 0)
    # The classifier's parameters have a dtype of their own.
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), variables)


def train(
    strategy: Strategy, kind: str, dtype: str = "float32", **options: Any
) -> tuple[TrainState, list[float]]:
    """Returns the state after ``NUM_STEPS`` steps, and the loss of each."""
    state, step = begin(strategy, kind, dtype, **options)
    losses = []
    for batch in Examples(kind, dtype, train=True).batches():
        state, sums = step(state, strategy.shard(batch))
        total, count = sums["loss"]
        losses.append(float(total) / float(count))
    return state, losses


def evaluation_of(
    strategy: Strategy, kind: str, dtype: str, variables: Any
) -> tuple[dict[str, float], list[Mapping[str, Any]]]:
    """Returns means over a split whose last batch is partial, and its examples' records."""
    task = make_task(kind)
    scored: list[Mapping[str, Any]] = []

    def score(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        scored.extend(records)
        return {}

    metrics = evaluate(
        strategy.compile_evaluation(make_evaluation_step(make_model(kind, dtype), task)),
        strategy,
        variables,
        Examples(kind, dtype, train=False),
        score=score,
        describe=task.describe_outputs,
    )
    return metrics, scored


def figures(strategy: Strategy, kind: str, dtype: str = "float32") -> dict[str, Any]:
    """Returns the losses of ``NUM_STEPS`` steps and an evaluation after them, for JSON."""
    state, losses = train(strategy, kind, dtype)
    metrics, records = evaluation_of(strategy, kind, dtype, state.variables)
    return {"losses": losses, "metrics": metrics, "records": records}
