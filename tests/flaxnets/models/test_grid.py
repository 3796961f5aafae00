"""Every head on every recurrent layer on every kind of encoder output, by shapes."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import ClipClassifier, StepClassifier
from flaxnets.heads.pooling import (
    AttentionPooling,
    pool_last,
    pool_max,
    pool_mean,
)
from flaxnets.models.crnn import CRNN
from flaxnets.models.multi_level import MultiLevelCRNN
from flaxnets.models.stream_fusion import StreamFusion
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.convolutional_cells import ConvGRUCell, ConvLSTMCell
from flaxnets.recurrent.layers import FrameAverage, Recurrent
from tests.flaxnets.models.networks import ThreeLevels

B, T, S, K = 2, 3, 16, 4
# Constructors, since one instance used twice in a model would share its parameters.
POOLS: dict[str, Any] = {
    "last": lambda: pool_last,
    "mean": lambda: pool_mean,
    "max": lambda: pool_max,
    "attention": lambda: AttentionPooling(3),
}
HEADS = ["steps", *POOLS]
DENSE: dict[str, Any] = {
    "LSTM": lambda: Recurrent(partial(LSTMCell, 5)),
    "average": lambda: FrameAverage(5),
    "none": lambda: None,
}
CONVOLUTIONAL: dict[str, Any] = {
    "ConvGRU": lambda: Recurrent(partial(ConvGRUCell, 5)),
    "ConvLSTM": lambda: Recurrent(partial(ConvLSTMCell, 5), bidirectional=True),
}
ENCODERS: dict[str, Any] = {
    "maps": SmallCNN((4, 6), (2, 2)),
    "vectors": ThreeLevels(("top",)),
}
VIDEO = jax.ShapeDtypeStruct((B, T, S, S, 3), np.uint8)
LENGTHS = jax.ShapeDtypeStruct((B,), np.int32)


def make_head(head: str, name: str | None = None) -> Any:
    if head == "steps":
        return StepClassifier(K, hidden_features=5, name=name)
    return ClipClassifier(K, POOLS[head](), (6,), (5,), name=name)


def shape_of_logits(model: Any, frames: Any = VIDEO) -> tuple[int, ...]:
    """Returns the shape of the logits in training, with batch statistics and dropout."""

    def run(key: Any, frames: Any, lengths: Any) -> Any:
        variables = model.init(key, frames, lengths, train=False)
        return model.apply(
            variables,
            frames,
            lengths,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )[0]

    return jax.eval_shape(run, jax.random.key(0), frames, LENGTHS).shape


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("recurrent", [*DENSE, *CONVOLUTIONAL])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_encoder_any_cell_any_head(encoder: str, recurrent: str, head: str) -> None:
    expected = (B, T if head == "steps" else 1, K)
    pools = ["none"] if recurrent in CONVOLUTIONAL else ["mean"]
    if encoder == "maps" and recurrent in DENSE:
        pools.append("flatten")
    for pool in pools:
        model = CRNN(
            classifier=make_head(head),
            encoder=ENCODERS[encoder],
            recurrent=(DENSE | CONVOLUTIONAL)[recurrent](),
            pool=pool,
            dropout_rate=0.5,
        )
        if encoder == "vectors" and recurrent in CONVOLUTIONAL:
            with pytest.raises(ValueError, match="inputs: expected"):
                shape_of_logits(model)
        else:
            assert shape_of_logits(model) == expected


def test_a_dense_cell_refuses_feature_maps() -> None:
    model = CRNN(make_head("steps"), ENCODERS["maps"], DENSE["LSTM"](), pool="none")
    with pytest.raises(ValueError, match="inputs: expected"):
        shape_of_logits(model)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("stacked", [False, True])
def test_endpoints_accept_convolutional_and_dense_cells(head: str, stacked: bool) -> None:
    model = MultiLevelCRNN(
        recurrent={
            "low": CONVOLUTIONAL["ConvLSTM"](),
            "high": CONVOLUTIONAL["ConvGRU"](),
            "top": DENSE["LSTM"](),
        },
        make_classifier=partial(make_head, head),
        encoder=ThreeLevels(),
        stacked=stacked,
    )
    assert shape_of_logits(model) == (B, T if head == "steps" else 1, 3, K)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("recurrent", ["LSTM", "none"])
def test_streams_accept_every_head(recurrent: str, head: str) -> None:
    audio = jax.ShapeDtypeStruct((B, T, 8, 6, 1), np.float32)
    model = StreamFusion(
        streams={
            "video": CRNN(None, ENCODERS["vectors"]),
            "audio": CRNN(None, ENCODERS["maps"], DENSE["LSTM"](), pool="flatten"),
        },
        recurrent=DENSE[recurrent](),
        classifier=make_head(head),
        stream_dropout=0.2,
    )
    logits = shape_of_logits(model, {"video": VIDEO, "audio": audio})
    assert logits == (B, T if head == "steps" else 1, K)
