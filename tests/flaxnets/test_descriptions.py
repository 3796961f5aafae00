"""Parts as JSON: every network of the grid comes back the same, and descriptions name no code."""

import contextlib
import json
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxnets import (
    CRNN,
    AttentionPooling,
    ClipClassifier,
    ConvGRUCell,
    DecoderConfig,
    EncoderConfig,
    GRUCell,
    LateFusion,
    LSTMCell,
    MultiLevelCRNN,
    Recurrent,
    SmallCNN,
    StepClassifier,
    StreamFusion,
    make_crnn,
    make_decoder,
    pool_last,
)
from flaxnets.configuration import build_part, describe_part
from flaxnets.decoders.config import DECODER_CELLS, DECODERS
from flaxnets.heads.config import HeadConfig
from flaxnets.models.captioner import Captioner
from flaxnets.models.config import CRNNConfig
from flaxnets.recurrent.config import RecurrentConfig
from tests.experiments import grid


def come_back(part: Any) -> Any:
    """Returns the part that its description, written and read as JSON, makes."""
    described = describe_part(part)
    again = build_part(json.loads(json.dumps(described)))
    assert describe_part(again) == described
    return again


def crnn(encoder: str, cell: str, head: str, **options: Any) -> CRNN:
    of_encoder = dict(text.split("=") for text in grid.ENCODER_FLAGS[encoder])
    given: dict[str, Any] = {"level": of_encoder.get("level", "")}
    if encoder == "small_cnn":
        given |= {"features": (4,), "strides": (4,)}
    if encoder == "downsampled_frames":
        given["input_size"] = 4
    config = CRNNConfig(
        EncoderConfig(encoder, **given),
        RecurrentConfig(cell, features=4, normalize_inputs=True, num_layers=2),
        HeadConfig(head, attention_features=3, dropout_rate=0.5),
        **options,
    )
    return make_crnn(config, 3, fixed_length=True)


ROWS = grid.covering_rows(
    (
        tuple(grid.ENCODER_FLAGS),
        tuple(cell for cell in (*grid.CELLS, "none", "average") if "own" not in cell),
        grid.HEADS,
    )
)


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_networks_of_the_grid_come_back(row: tuple[str, str, str]) -> None:
    come_back(crnn(*row))


@pytest.mark.parametrize("cell", ["lstm", "convgru"])
def test_a_network_that_came_back_computes_the_same(cell: str) -> None:
    network = crnn("small_cnn", cell, "attention")
    video, lengths = np.zeros((1, 2, 16, 16, 3), np.uint8), np.array([2])
    init = jax.jit(partial(network.init, train=False))
    variables = init(jax.random.key(0), video, lengths)
    expected = network.apply(variables, video, lengths, train=False)
    np.testing.assert_array_equal(
        come_back(network).apply(variables, video, lengths, train=False), expected
    )


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("cell", DECODER_CELLS)
def test_captioners_come_back(name: str, cell: str) -> None:
    decoder = make_decoder(DecoderConfig(name, cell=cell, features=8), 20, dtype="bfloat16")
    again = come_back(Captioner(decoder, region_features=4, freeze_encoder=True))
    assert again.decoder.vocabulary_size == 20
    assert jnp.dtype(again.decoder.dtype) == jnp.bfloat16


@pytest.mark.parametrize(
    "network",
    [
        LateFusion(CRNN(StepClassifier(5)), members=3, projection_features=4),
        StreamFusion(
            streams={"a": CRNN(None, SmallCNN((4,), (4,))), "b": CRNN(None)},
            classifier=ClipClassifier(3, AttentionPooling(4)),
            recurrent=Recurrent(partial(nn.GRUCell, 4), bidirectional=True),
        ),
        MultiLevelCRNN(
            encoder=SmallCNN((8, 16), (2, 2), levels=("stage_1", "pooled")),
            recurrent={
                "stage_1": Recurrent(partial(ConvGRUCell, 4)),
                "pooled": Recurrent(partial(GRUCell, 32)),
            },
            make_classifier=partial(ClipClassifier, 5, pool_last, dropout_rate=0.7),
        ),
    ],
    ids=lambda network: type(network).__name__,
)
def test_fusions_come_back(network: nn.Module) -> None:
    come_back(network)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(values)
def test_values_come_back(value: Any) -> None:
    assert build_part(json.loads(json.dumps(describe_part(value)))) == value


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.sampled_from(["os:system", "builtins:eval"]),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    ["part", "fields", "name", "partial", "arguments", "keywords", "tuple", "dtype"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    )
)
def test_any_json_builds_a_part_or_raises_a_value_error(described: Any) -> None:
    with contextlib.suppress(ValueError):
        build_part(described)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "flaxnets.encoders.pretrained:Path",
        "flaxnets.inference.store:save_model",
        "flaxnets.training.workdir:write_text_atomically",
        "flaxnets.configuration:importlib.import_module",
        "flax.linen.module:os.system",
        "flax:linen",
        "jax.numpy:save",
        "pickle:loads",
        "flaxnets.heads.pooling",
        "",
    ],
)
def test_names_outside_of_the_parts_are_refused(name: str) -> None:
    for described in ({"name": name}, {"part": name, "fields": {}}):
        with pytest.raises(ValueError, match="description"):
            build_part(described)


def test_code_of_others_runs_where_it_is_allowed() -> None:
    described = {"name": "collections:OrderedDict"}
    with pytest.raises(ValueError, match="allow_code=True"):
        build_part(described)
    assert build_part(described, allow_code=True)([("a", 1)]) == {"a": 1}


def test_a_lambda_has_no_description() -> None:
    with pytest.raises(ValueError, match="cannot be found by its name"):
        describe_part(Recurrent(lambda name: LSTMCell(4, name=name)))
