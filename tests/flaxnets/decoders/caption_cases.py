"""Caption decoders under test, each with its NumPy reference, and captions of three images."""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.decoders.cells import MaxoutLSTMCell
from flaxnets.decoders.decoder import CaptionDecoder
from flaxnets.decoders.show_and_tell import FactoredLRCN, ShowAndTell
from flaxnets.decoders.show_attend_tell import Att2in, HardAttention, SoftAttention
from flaxnets.decoders.up_down import UpDown
from flaxnets.recurrent.cells import GRUCell, LSTMCell
from tests.flaxnets.decoders import caption_reference as reference
from tests.flaxnets.models.networks import random_variables

B, C, L, R, D, V = 3, 2, 5, 4, 6, 9
F, E, A = 3, 4, 5
LENGTHS = np.array([[5, 3], [1, 0], [4, 5]], np.int32)
VALID = np.arange(L) < LENGTHS[..., None]
TOKENS = np.where(VALID, np.random.default_rng(1).integers(2, V, (B, C, L)), 0).astype(np.int32)
MASK = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 1, 1]], bool)
FLOAT64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


@dataclasses.dataclass(frozen=True)
class Case:
    """A decoder and its reference."""

    name: str
    decoder: Callable[..., CaptionDecoder]
    make_reference: Callable[..., reference.DecodeWord]
    cell: Callable[..., Any] = LSTMCell
    attends: bool = True
    options: tuple[tuple[str, Any], ...] = ()
    reference_options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.name

    @functools.cache  # noqa: B019
    def make(self, **options: Any) -> CaptionDecoder:
        """Returns the decoder, by default in float64; the same object for the same options."""
        dtypes = {n: options.pop(n, jnp.float64) for n in FLOAT64}
        sizes = {"embed_features": E} | ({"attention_features": A} if self.attends else {})
        return self.decoder(
            vocabulary_size=V,
            make_cell=partial(self.cell, F, **dtypes),
            **(sizes | dict(self.options) | dtypes | options),
        )

    def refer(self, *arguments: Any) -> tuple[Any, Any]:
        """Returns the reference's logits and attention; arguments as of ``reference.caption``."""
        make = partial(self.make_reference, **dict(self.reference_options))
        return reference.caption(make, *arguments)


CASES = (
    Case("show-and-tell", ShowAndTell, reference.show_and_tell, attends=False),
    Case("show-and-tell-gru", ShowAndTell, reference.show_and_tell, GRUCell, attends=False),
    Case("lrcn", FactoredLRCN, reference.lrcn, attends=False),
    Case("lrcn-gru", FactoredLRCN, reference.lrcn, GRUCell, attends=False),
    Case("soft", SoftAttention, reference.soft_attention),
    Case("soft-vector", SoftAttention, reference.soft_attention, options=(("gate", "vector"),)),
    Case(
        "soft-gru-plain",
        SoftAttention,
        reference.soft_attention,
        partial(GRUCell, reset_after=False),
        options=(("gate", "none"), ("deep_output", False)),
    ),
    Case("soft-gru", SoftAttention, reference.soft_attention, GRUCell),
    Case("hard", HardAttention, reference.soft_attention, reference_options=(("hard", True),)),
    Case("att2in", Att2in, reference.att2in, MaxoutLSTMCell),
    Case("att2in-lstm", Att2in, reference.att2in),
    Case("att2in-gru", Att2in, reference.att2in, GRUCell),
    Case("up-down", UpDown, reference.up_down),
    Case("up-down-gru", UpDown, reference.up_down, GRUCell),
)
BY_NAME = {case.name: case for case in CASES}


@functools.cache
def draw(case: Case) -> tuple[Any, np.ndarray]:
    """Returns variables and regions, float64; shared by all tests, so not to be written to."""
    regions = np.random.default_rng(2).normal(size=(B, R, D))
    with jax.enable_x64(True):
        shapes = random_variables(case.make(), regions, TOKENS, LENGTHS)
    return jax.tree.map(lambda x: 2 * x, shapes), regions
