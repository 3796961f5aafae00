"""Caption decoders: logits and gradients of the equations, step-by-step decoding, padding."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.decoders.decoder import CaptionDecoder, CaptionOutputs
from flaxnets.recurrent import matmul
from tests.flaxnets.decoders.caption_cases import (
    BY_NAME,
    CASES,
    LENGTHS,
    MASK,
    TOKENS,
    VALID,
    B,
    C,
    Case,
    F,
    L,
    R,
    V,
    draw,
)
from tests.flaxnets.models.networks import every_parameter_trains, random_variables
from tests.flaxnets.recurrent.cases import assert_close

EXACT = {"rtol": 1e-10, "atol": 1e-12}
every_case = pytest.mark.parametrize("case", CASES, ids=str)
attending = pytest.mark.parametrize("case", [c for c in CASES if c.attends], ids=str)
NAMES = ("show-and-tell", "lrcn-gru", "soft", "hard", "att2in", "up-down")
one_each = pytest.mark.parametrize("case", [BY_NAME[name] for name in NAMES], ids=str)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@partial(jax.jit, static_argnums=0, static_argnames="train")
def _run(decoder: CaptionDecoder, variables: Any, *arguments: Any, train: bool = False) -> Any:
    return decoder.apply(variables, *arguments, train=train)


def run(*arguments: Any, **options: Any) -> CaptionOutputs:
    return jax.device_get(_run(*arguments, **options))


@partial(jax.jit, static_argnums=0)
def _decode(decoder: CaptionDecoder, variables: Any, regions: Any, mask: Any, words: Any) -> Any:
    """Returns logits (B,L,V) and attention of words (B,L), decoded step by step."""
    encoded: Any = decoder.apply(variables, regions, mask, method="start_decoding")
    memory, carry = encoded

    def body(carry: Any, word: Any) -> Any:
        step: Any = decoder.apply(variables, memory, carry, word, method="decode_step")
        return step[0], step[1:]

    _, outputs = jax.lax.scan(body, carry, words.T)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs)


def weigh(logits: Any, attention: Any) -> Any:
    """Returns a scalar: valid logits and attention, times random numbers."""
    rng = np.random.default_rng(7)
    total = (rng.normal(size=(B, C, L, V)) * VALID[..., None] * logits).sum()
    if attention is None:
        return total
    return total + (rng.normal(size=(B, C, L, R)) * VALID[..., None] * attention).sum()


@partial(jax.jit, static_argnums=0)
def _gradient(decoder: CaptionDecoder, variables: Any, regions: Any) -> Any:
    def loss(params: Any, regions: Any) -> Any:
        new = {**variables, "params": params}
        outputs = decoder.apply(new, regions, TOKENS, LENGTHS, MASK, train=False)
        return weigh(outputs.logits, outputs.attention)

    return jax.grad(loss, (0, 1))(variables["params"], regions)


def gradient(*arguments: Any) -> Any:
    return jax.device_get(_gradient(*arguments))


@pytest.mark.slow_after(10)
@every_case
@pytest.mark.parametrize("mask", [None, MASK], ids=["all-regions", "masked"])
def test_logits_equal_the_reference(case: Case, mask: Any) -> None:
    variables, regions = draw(case)
    outputs = run(case.make(), variables, regions, TOKENS, LENGTHS, mask)
    logits, attention = case.refer(variables["params"], regions, TOKENS, LENGTHS, mask)
    np.testing.assert_allclose(outputs.logits[VALID], logits.real[VALID], **EXACT)
    if case.attends:
        np.testing.assert_allclose(outputs.attention, attention.real, **EXACT)
    else:
        assert outputs.attention is None


@one_each
def test_gradients_are_the_derivatives_of_the_reference(case: Case) -> None:
    variables, regions = draw(case)
    actual = gradient(case.make(), variables, regions)
    every_parameter_trains(actual)
    rng = np.random.default_rng(3)
    arguments = variables["params"], regions
    leaves, structure = jax.tree.flatten(arguments)
    for number, of_leaf in enumerate(jax.tree.leaves(actual)):
        direction = rng.normal(size=of_leaf.shape)
        moved = list(leaves)
        moved[number] = moved[number] + 1e-30j * direction
        params, moved_regions = jax.tree.unflatten(structure, moved)
        logits, attention = case.refer(params, moved_regions, TOKENS, LENGTHS, MASK)
        expected = weigh(logits, attention if case.attends else None).imag / 1e-30
        np.testing.assert_allclose((of_leaf * direction).sum(), expected, rtol=1e-8, atol=1e-11)


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("case", [c for c in CASES if c.name not in NAMES], ids=str)
def test_gradients_after_the_scan_are_those_of_autodiff(case: Case) -> None:
    variables, regions = draw(case)
    actual = gradient(case.make(), variables, regions)
    expected = gradient(case.make(gradients="autodiff"), variables, regions)
    assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("name", ["show-and-tell", "soft", "up-down-gru"])
def test_leaving_out_padded_rows_changes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = BY_NAME[name]
    variables, regions = draw(case)
    plain = run(case.make(), variables, regions, TOKENS, LENGTHS, MASK)
    gradients = gradient(case.make(), variables, regions)
    monkeypatch.setattr(matmul, "is_batch_known_unsharded", lambda: True)
    monkeypatch.setattr(matmul, "_FEWEST_ROWS", 0)
    packing = case.make(unroll=2)  # Another decoder, since the same one is compiled already.
    packed = run(packing, variables, regions, TOKENS, LENGTHS, MASK)
    np.testing.assert_allclose(packed.logits[VALID], plain.logits[VALID], **EXACT)
    assert_close(gradient(packing, variables, regions), gradients, **EXACT)


@every_case
def test_step_by_step_logits_equal_teacher_forcing(case: Case) -> None:
    variables, regions = draw(case)
    given = run(case.make(), variables, regions, TOKENS, LENGTHS, MASK)
    for number in range(C):
        words = np.concatenate([np.ones((B, 1), np.int32), TOKENS[:, number, :-1]], axis=1)
        logits, attention = _decode(case.make(), variables, regions, MASK, words)
        valid = VALID[:, number]
        np.testing.assert_allclose(logits[valid], given.logits[:, number][valid], **EXACT)
        if case.attends:
            np.testing.assert_allclose(attention[valid], given.attention[:, number][valid], **EXACT)


@one_each
def test_padding_changes_nothing_and_later_words_change_no_earlier_logits(case: Case) -> None:
    variables, regions = draw(case)
    given = run(case.make(), variables, regions, TOKENS, LENGTHS, MASK)
    other_words = np.where(VALID, TOKENS, 5).astype(np.int32)
    other_regions = np.where(MASK[..., None], regions, np.nan)
    other = run(case.make(), variables, other_regions, other_words, LENGTHS, MASK)
    np.testing.assert_array_equal(given.logits[VALID], other.logits[VALID])
    assert np.isfinite(other.logits).all()
    later = TOKENS.copy()
    later[0, 0, 2:] = 3 + TOKENS[0, 0, 2:] % 2
    changed = run(case.make(), variables, regions, later, LENGTHS, MASK)
    np.testing.assert_array_equal(given.logits[0, 0, :3], changed.logits[0, 0, :3])
    assert np.abs(given.logits[0, 0, 3] - changed.logits[0, 0, 3]).max() > 1e-4


@one_each
def test_captions_of_an_image_equal_separate_rows(case: Case) -> None:
    variables, regions = draw(case)
    together = run(case.make(), variables, regions, TOKENS, LENGTHS, MASK)
    apart = run(
        case.make(),
        variables,
        np.repeat(regions, C, axis=0),
        TOKENS.reshape(B * C, 1, L),
        LENGTHS.reshape(B * C, 1),
        np.repeat(MASK, C, axis=0),
    )
    for one, other in zip(together, apart, strict=True):
        if one is not None and one.ndim:
            np.testing.assert_allclose(one, other.reshape(one.shape), **EXACT)


@attending
def test_attention_sums_to_one_and_is_zero_where_no_region_exists(case: Case) -> None:
    variables, regions = draw(case)
    mask = MASK & np.array([[True], [False], [True]])
    outputs = run(case.make(), variables, regions, TOKENS, LENGTHS, mask)
    exists = VALID & mask.any(axis=1)[:, None, None]
    np.testing.assert_allclose(outputs.attention.sum(-1), exists, atol=1e-12)
    assert not np.any(outputs.attention * ~mask[:, None, None])
    assert np.isfinite(outputs.logits).all()


@pytest.mark.slow_after(2)
@one_each
def test_bfloat16_decoders_have_float32_logits_near_the_exact_ones(case: Case) -> None:
    variables, regions = draw(case)
    exact = run(case.make(), variables, regions, TOKENS, LENGTHS).logits[VALID]
    decoder = case.make(dtype=jnp.bfloat16, param_dtype=jnp.float32)
    rounded = jax.tree.map(np.float32, variables)
    actual = run(decoder, rounded, regions.astype(np.float16), TOKENS, LENGTHS)
    assert actual.logits.dtype == np.float32
    error = np.linalg.norm(actual.logits[VALID] - exact) / np.linalg.norm(exact)
    # The region that hard attention reads is not continuous in the logits.
    assert error < (0.5 if case.name == "hard" else 0.05)
    gradients = gradient(decoder, rounded, regions.astype(np.float16))
    every_parameter_trains(gradients[0])
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(gradients[0]))


def test_features_of_any_layout_are_regions() -> None:
    case = BY_NAME["soft"]
    variables, regions = draw(case)
    flat = run(case.make(), variables, regions, TOKENS, LENGTHS)
    maps = run(case.make(), variables, regions.reshape(B, 2, 2, -1), TOKENS, LENGTHS)
    np.testing.assert_array_equal(flat.logits, maps.logits)
    pooled = run(case.make(), variables, regions[:, 0], TOKENS, LENGTHS)
    single = run(case.make(), variables, regions[:, :1], TOKENS, LENGTHS)
    np.testing.assert_array_equal(pooled.logits, single.logits)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("name", ["soft", "show-and-tell", "lrcn", "up-down", "att2in"])
def test_tied_embeddings_are_the_product_with_the_vocabulary(name: str) -> None:
    case = BY_NAME[name]
    options: dict[str, Any] = {} if name == "soft" else {"embed_features": F}
    tied, plain = case.make(tie_embeddings=True, **options), case.make(**options)
    variables = random_variables(tied, draw(case)[1], TOKENS, LENGTHS)
    params = variables["params"]
    assert "vocabulary_kernel" not in params
    regions = draw(case)[1]
    untied = {"params": {**params, "vocabulary_kernel": params["embedding"].T}}
    actual = run(tied, variables, regions, TOKENS, LENGTHS)
    assert_close(actual.logits, run(plain, untied, regions, TOKENS, LENGTHS).logits, **EXACT)
    [found], [parts] = (
        gradient(d, v, regions)[:1] for d, v in ((tied, variables), (plain, untied))
    )
    assert_close(found["embedding"], parts["embedding"] + parts["vocabulary_kernel"].T, **EXACT)


def test_tied_embeddings_of_another_width_are_refused() -> None:
    decoder = BY_NAME["show-and-tell"].make(tie_embeddings=True)
    message = r"tie_embeddings: expected embed_features of 3, .* received 4"
    with pytest.raises(ValueError, match=message):
        run(decoder, {"params": {}}, draw(BY_NAME["soft"])[1], TOKENS, LENGTHS)


@pytest.mark.slow
def test_frozen_features_cost_no_gradient() -> None:
    case = BY_NAME["soft"]
    variables, regions = draw(case)

    def count_operations(arguments: Any) -> Any:
        def loss(params: Any, regions: Any) -> Any:
            outputs = case.make().apply({"params": params}, regions, TOKENS, LENGTHS, train=False)
            return weigh(outputs.logits, outputs.attention)

        compiled = jax.jit(jax.grad(loss, arguments)).lower(variables["params"], regions).compile()
        return compiled.cost_analysis()["flops"]

    # Of keys and context: the products that make the regions' gradient.
    saved = count_operations((0, 1)) - count_operations(0)
    least = 2 * B * R * variables["params"]["key_kernel"].size + 2 * L * B * C * regions[0].size
    assert saved >= least
