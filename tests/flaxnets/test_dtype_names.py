"""Names of dtypes that do not exist get the nearest, wherever one is taken."""

from typing import Any

import jax.numpy as jnp
import pytest

from flaxnets.configuration import check_dtype
from flaxnets.decoders.config import DecoderConfig, make_decoder
from flaxnets.encoders.config import EncoderConfig, make_encoder
from flaxnets.heads.config import HeadConfig, make_head
from flaxnets.recurrent.config import RecurrentConfig, make_cell_type, make_recurrent

BUILDERS: list[Any] = [
    lambda dtype: make_encoder(EncoderConfig("resnet18"), dtype=dtype),
    lambda dtype: make_recurrent(RecurrentConfig(), dtype=dtype),
    lambda dtype: make_cell_type(RecurrentConfig("convgru"), dtype=dtype),
    lambda dtype: make_decoder(DecoderConfig(), 9, dtype=dtype),
    lambda dtype: make_head(HeadConfig(), 3, dtype=dtype),
]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("fp16", "float16"),
        ("FP16", "float16"),
        ("f16", "float16"),
        ("half", "float16"),
        ("torch.float16", "float16"),
        ("bf16", "bfloat16"),
        ("bfloat", "bfloat16"),
        ("fp32", "float32"),
        ("f32", "float32"),
        ("tf32", "float32"),
        ("float", "float32"),
        ("float64", "float32"),
        ("double", "float32"),
        ("half precision", "float16"),
        ("single", "float32"),
        ("flaot32", "float32"),
        ("", None),
    ],
)
def test_the_nearest_is_named(name: str, near: str | None) -> None:
    with pytest.raises(ValueError, match=r"^model.dtype: unknown '.*'; (did|there)") as error:
        check_dtype("model.dtype", name)
    if near:
        assert str(error.value).endswith(f"did you mean {near!r}?")


@pytest.mark.parametrize("build", BUILDERS)
def test_builders_of_parts_check_names(build: Any) -> None:
    for dtype in ("bfloat16", jnp.bfloat16):
        build(dtype)
    with pytest.raises(ValueError, match=r"^dtype: unknown 'fp16'; did you mean 'float16'\?$"):
        build("fp16")
