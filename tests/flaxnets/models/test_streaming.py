"""Streaming: the logits and probabilities of chained steps equal those of the whole clip."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import ClipClassifier, StepClassifier
from flaxnets.heads.pooling import (
    AttentionPooling,
    pool_concatenate,
    pool_last,
    pool_max,
    pool_mean,
)
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import ElmanCell, GRUCell, LSTMCell
from flaxnets.recurrent.convolutional_cells import ConvGRUCell, ConvLSTMCell
from flaxnets.recurrent.layers import FrameAverage, Recurrent
from flaxnets.recurrent.linear_cells import LRUCell, MinGRUCell, MinLSTMCell
from flaxnets.tasks.video_classification import VideoClassification

B, T, D, K = 2, 6, 5, 3
MAP = (4, 3, 2)
CELLS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "elman": (partial(ElmanCell, 4), (D,)),
    "lstm": (partial(LSTMCell, 4, peepholes=True, projection_features=3), (D,)),
    "gru": (partial(GRUCell, 4), (D,)),
    "mingru": (partial(MinGRUCell, 4), (D,)),
    "minlstm": (partial(MinLSTMCell, 4), (D,)),
    "lru": (partial(LRUCell, 4), (D,)),
    "linen": (partial(nn.MGUCell, 4), (D,)),
    "convlstm": (partial(ConvLSTMCell, 4), MAP),
    "convgru": (partial(ConvGRUCell, 4), MAP),
}
HEADS: dict[str, Any] = {
    "steps": StepClassifier(K, hidden_features=5),
    "last": ClipClassifier(K, pool_last, (6,), (5,)),
    "mean": ClipClassifier(K, pool_mean, (6,), (5,)),
    "max": ClipClassifier(K, pool_max, (6,), (5,)),
}
READING: dict[str, Any] = {
    "num_layers": 2,
    "normalize_inputs": True,
    "delta_features": True,
    "input_features": 4,
}


def random_variables(model: Any, clips: np.ndarray) -> Any:
    rng, lengths = np.random.default_rng(1), np.full(len(clips), clips.shape[1], np.int32)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), clips, lengths)
    drawn = jax.tree.map(lambda v: rng.normal(0, 0.5, v.shape).astype(v.dtype), shapes)
    statistics = {k: jax.tree.map(np.abs, v) for k, v in drawn.items() if k != "params"}
    return {**drawn, **statistics}  # Variances are not negative.


def draw(axes: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(B, T, *axes)).astype(np.float32)


def run_all(models: Any, variables: Any, clips: np.ndarray) -> Any:
    """Logits by head of each clip that ends after 1, 2, …, T frames, (B,T,T or 1,K)."""
    prefixes = np.repeat(clips, T, axis=0)  # (B·T,T,...)
    lengths = np.tile(np.arange(1, T + 1, dtype=np.int32), B)

    @jax.jit
    def whole(variables: Any) -> Any:
        return {
            head: model.apply(variables[head], prefixes, lengths, train=False)
            for head, model in models.items()
        }

    return {head: np.reshape(x, (B, T, -1, K)) for head, x in whole(variables).items()}


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("cell", CELLS)
def test_chained_steps_equal_the_whole_clip(cell: str) -> None:
    make_cell, axes = CELLS[cell]
    options = {} if cell in ("convlstm", "convgru") else READING
    models = {
        head: CRNN(module, recurrent=Recurrent(make_cell, **options), pool="none")
        for head, module in HEADS.items()
    }
    clips = draw(axes)
    variables = {head: random_variables(model, clips) for head, model in models.items()}
    whole = run_all(models, variables, clips)

    @jax.jit
    def stream(carry: Any, chunk: Any) -> Any:
        both = {
            head: model.apply(variables[head], carry and carry[head], chunk, method="stream")
            for head, model in models.items()
        }
        return {head: x[0] for head, x in both.items()}, {head: x[1] for head, x in both.items()}

    carry, _ = stream(None, clips[:, :0])
    for t in range(T):
        carry, logits = stream(carry, clips[:, t : t + 1])
        for head in HEADS:
            own = logits[head].steps if head == "steps" else logits[head].clips
            expected = whole[head][:, -1, t] if head == "steps" else whole[head][:, t, 0]
            np.testing.assert_allclose(own[:, 0], expected, atol=5e-6)
            assert (logits[head].clips is None) == (head == "steps")


@pytest.mark.parametrize("head", HEADS)
def test_chunks_of_any_size_equal_the_whole_clip(head: str) -> None:
    models = {head: CRNN(HEADS[head], recurrent=Recurrent(partial(GRUCell, 4), **READING))}
    clips = draw((D,))
    variables = random_variables(models[head], clips)
    whole = run_all(models, {head: variables}, clips)[head]
    stream = jax.jit(partial(models[head].apply, method="stream"))
    carry, parts, begin = None, [], 0
    for size in (1, 3, 2):
        carry, logits = stream(variables, carry, clips[:, begin : begin + size])
        parts.append(logits.steps if head == "steps" else logits.clips)
        begin += size
    streamed = np.concatenate(parts, axis=1)
    expected = whole[:, -1] if head == "steps" else whole[:, :, 0]
    np.testing.assert_allclose(streamed, expected, atol=5e-6)


@pytest.mark.parametrize(
    ("loss_kind", "head"),
    [("per_step", "steps"), ("clip", "steps"), ("linear_gain", "steps"), ("per_step", "max")],
)
def test_probabilities_of_each_step_and_of_the_clip_so_far(loss_kind: str, head: str) -> None:
    model = CRNN(
        HEADS[head], encoder=SmallCNN((4, 6), (2, 2)), recurrent=Recurrent(partial(LSTMCell, 4))
    )
    clips = np.random.default_rng(0).integers(0, 256, (B, T, 8, 8, 3)).astype(np.uint8)
    variables = random_variables(model, clips)
    task = VideoClassification(loss_kind)
    lengths = np.tile(np.arange(1, T + 1, dtype=np.int32), B)
    prefixes = {"video": np.repeat(clips, T, axis=0), "lengths": lengths}
    whole = jax.jit(partial(task.predict, model))(variables, prefixes).reshape(B, T, K)
    logits = jax.jit(partial(model.apply, train=False))(variables, **_frames(prefixes))
    step = jax.jit(partial(task.predict_step, model))
    carry = jax.jit(partial(task.start_stream, model))(variables, clips[:, 0])
    for t in range(T):
        carry, steps, so_far = step(variables, carry, clips[:, t])
        np.testing.assert_allclose(so_far, whole[:, t], atol=1e-6)
        np.testing.assert_allclose(np.sum(steps, axis=1), 1, atol=1e-6)
        if head == "steps":
            own = jax.nn.softmax(logits).reshape(B, T, T, K)[:, -1, t]
            np.testing.assert_allclose(steps, own, atol=1e-6)


def _frames(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"frames": batch["video"], "lengths": batch["lengths"]}


@pytest.mark.parametrize("head", HEADS)
def test_padded_steps_of_a_chunk_change_nothing(head: str) -> None:
    model = CRNN(HEADS[head], recurrent=Recurrent(partial(GRUCell, 4), delta_features=True))
    clips, lengths = draw((D,)), np.array([3, 0], np.int32)
    variables = random_variables(model, clips)
    stream = partial(model.apply, variables, method="stream")
    before, _ = stream(None, clips[:, :2])
    after, _ = stream(before, clips[:, 2:], lengths)
    clips[0, 5:], clips[1, 2:] = np.nan, np.nan
    same, logits = stream(before, clips[:, 2:], lengths)
    jax.tree.map(np.testing.assert_array_equal, after, same)
    assert np.isfinite(logits.steps[0, :3]).all()
    kept = jax.tree.map(lambda x: x[1], after), jax.tree.map(lambda x: x[1], before)
    jax.tree.map(np.testing.assert_array_equal, *kept)


def test_a_mean_of_many_steps_keeps_its_digits() -> None:
    """A sum in float32 would stop growing at 2^24."""
    head = ClipClassifier(K, pool_mean)
    x = np.full((1, 1, 2), 0.1, np.float32)
    variables = head.init(jax.random.key(0), x, train=False)
    late = (jnp.full((1, 2), 0.1), jnp.array([2**26]))
    (mean, count), _ = head.apply(variables, late, x, method="stream")
    assert int(count[0]) == 2**26 + 1
    np.testing.assert_allclose(mean, 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"recurrent": Recurrent(partial(LSTMCell, 4), bidirectional=True)}, "bidirectional"),
        ({"recurrent": FrameAverage(4)}, "FrameAverage"),
        ({"classifier": ClipClassifier(K, AttentionPooling(3))}, "AttentionPooling"),
        ({"classifier": ClipClassifier(K, pool_concatenate)}, "pool_concatenate"),
        ({"classifier": None}, "classifier"),
    ],
)
def test_what_needs_the_whole_clip_is_refused(parts: dict[str, Any], reason: str) -> None:
    model = CRNN(**({"classifier": StepClassifier(K)} | parts))
    assert reason in model.obstacle
    clips = draw((D,))
    lengths = np.full(B, T, np.int32)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), clips, lengths)
    with pytest.raises(ValueError, match=f"expected a causal network.*{reason}"):
        model.apply(variables, None, clips, method="stream")


def test_a_network_without_recurrence_can_be_streamed() -> None:
    assert not CRNN(StepClassifier(K)).obstacle
