"""Caption decoders in training: dropout, scheduled sampling, hard attention; errors."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.decoders.cells import MaxoutLSTMCell, candidate_columns
from flaxnets.decoders.decoder import CaptionDecoder, CaptionOutputs
from flaxnets.recurrent.cells import ElmanCell
from tests.flaxnets.decoders.caption_cases import (
    BY_NAME,
    LENGTHS,
    MASK,
    TOKENS,
    VALID,
    B,
    D,
    L,
    R,
    V,
    draw,
)
from tests.flaxnets.models.networks import every_parameter_trains

FLOAT32 = {"dtype": jnp.float32, "param_dtype": jnp.float32}
NAMES = ("show-and-tell", "lrcn", "soft", "hard", "att2in", "up-down")
every_model = pytest.mark.parametrize("name", NAMES)


def apply_in_training(
    decoder: CaptionDecoder, variables: Any, regions: Any, seed: Any, probability: Any
) -> Any:
    words, drops = jax.random.split(jax.random.key(seed))
    return decoder.apply(
        variables,
        regions,
        TOKENS,
        LENGTHS,
        MASK,
        train=True,
        sampling_probability=probability,
        rngs={"sampling": words, "dropout": drops},
        mutable=["baseline"],
    )


_train = jax.jit(apply_in_training, static_argnums=0)


def train(
    name: str, seed: int = 0, probability: float | None = None, **options: Any
) -> tuple[CaptionOutputs, Any]:
    case = BY_NAME[name]
    variables, regions = jax.tree.map(np.float32, draw(case))
    decoder = case.make(**FLOAT32, **options)
    return jax.device_get(_train(decoder, variables, regions, seed, probability))


def evaluate(name: str, parameters_of: str) -> CaptionOutputs:
    variables, regions = jax.tree.map(np.float32, draw(BY_NAME[parameters_of]))
    apply = jax.jit(partial(BY_NAME[name].make(**FLOAT32).apply, train=False))
    return jax.device_get(apply(variables, regions, TOKENS, LENGTHS, MASK))


@every_model
def test_sampling_no_words_is_teacher_forcing(name: str) -> None:
    given, _ = train(name, dropout_rate=0.0)
    sampled, _ = train(name, dropout_rate=0.0, probability=0.0)
    if name == "hard":  # Draws other regions.
        assert sampled.entropies.shape == given.entropies.shape
        return
    np.testing.assert_allclose(sampled.logits[VALID], given.logits[VALID], rtol=1e-4, atol=1e-5)
    if given.attention is not None:
        np.testing.assert_allclose(sampled.attention, given.attention, rtol=1e-4, atol=1e-5)


def test_sampled_words_are_drawn_from_the_logits_of_the_step_before() -> None:
    case = BY_NAME["show-and-tell"]
    variables, regions = jax.tree.map(np.float32, draw(case))
    # Word 4 is all but certain after any word.
    params = dict(variables["params"])
    params["vocabulary_bias"] = np.where(np.arange(V) == 4, 50, 0).astype(np.float32)
    params["vocabulary_kernel"] = 0.1 * params["vocabulary_kernel"]
    decoder = case.make(**FLOAT32, dropout_rate=0.0)
    always, _ = _train(decoder, {"params": params}, regions, 0, 1.0)
    fours = np.full_like(TOKENS, 4)
    expected = decoder.apply({"params": params}, regions, fours, LENGTHS, MASK, train=False)
    np.testing.assert_allclose(always.logits[VALID], expected.logits[VALID], rtol=1e-4, atol=1e-5)


def test_the_share_of_sampled_words_is_the_probability() -> None:
    changed = []
    forced, _ = train("show-and-tell", dropout_rate=0.0)
    for seed in range(40):
        sampled, _ = train("show-and-tell", seed, 0.5, dropout_rate=0.0)
        # The second step shows whether its word was another one: with probability p·(1 − p_w).
        differs = np.abs(sampled.logits - forced.logits).max(-1)[..., 1] > 1e-5
        changed.append(differs[VALID[..., 1]])
        np.testing.assert_allclose(sampled.logits[..., 0, :], forced.logits[..., 0, :], rtol=1e-4)
    powers = np.exp(forced.logits[..., 0, :])
    given = np.take_along_axis(powers, TOKENS[..., :1], -1)[..., 0] / powers.sum(-1)
    expected = 0.5 * (1 - given)[VALID[..., 1]].mean()
    assert abs(np.mean(changed) - expected) < 0.12


@pytest.mark.slow_after(2)
@every_model
def test_dropout_acts_in_training_alone_and_leaves_all_parameters_a_gradient(name: str) -> None:
    options = {"dropout_rate": 0.5, "embed_dropout_rate": 0.2, "weight_dropout_rate": 0.2}
    one, _ = train(name, 0, **options)
    other, _ = train(name, 1, **options)
    assert np.abs(one.logits - other.logits)[VALID].max() > 1e-3
    case = BY_NAME[name]
    variables, regions = jax.tree.map(np.float32, draw(case))
    decoder = case.make(**FLOAT32, **options)

    def loss(params: Any, probability: Any) -> Any:
        new = {**variables, "params": params}
        outputs, _ = apply_in_training(decoder, new, regions, 0, probability)
        total = jnp.where(VALID[..., None], outputs.logits**2, 0).sum()
        if outputs.log_probabilities is not None:
            total += outputs.log_probabilities.sum() + outputs.entropies.sum()
        return total

    for probability in (None, 0.5):
        every_parameter_trains(jax.jit(jax.grad(loss))(variables["params"], probability))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "hard"])
def test_dropped_weights_are_the_same_for_all_captions_and_steps(name: str) -> None:
    case = BY_NAME[name]
    variables, regions = jax.tree.map(np.float32, draw(case))
    tokens = np.repeat(TOKENS[:1, :1], 2, axis=1)
    lengths = np.full((1, 2), L, np.int32)

    def logits(rate: float, seed: int) -> Any:
        outputs, _ = case.make(**FLOAT32, dropout_rate=0.0, weight_dropout_rate=rate).apply(
            variables,
            regions[:1],
            tokens,
            lengths,
            train=True,
            rngs={"dropout": jax.random.key(seed)},
            mutable=["baseline"],
        )
        return np.asarray(outputs.logits[0])

    one, other, whole = (logits(*given) for given in ((0.5, 0), (0.5, 1), (0.0, 0)))
    np.testing.assert_allclose(one[0], one[1], rtol=1e-5, atol=1e-6)
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - whole).max() > 1e-3


def test_regions_are_drawn_as_often_as_their_weights_say() -> None:
    drawn, entropies = [], []
    for seed in range(60):
        outputs, _ = train("hard", seed, dropout_rate=0.0, expectation_probability=0.0)
        weights = outputs.attention[:, :, 0]  # (B,C,R); the first step's do not depend on draws.
        logs = outputs.log_probabilities[:, :, 0]
        distance = np.abs(np.log(np.maximum(weights, 1e-30)) - logs[..., None])
        assert np.all(distance.min(-1)[VALID[..., 0]] < 1e-4)
        drawn.append(np.eye(R)[distance.argmin(-1)])
        entropies.append(outputs.entropies)
    shares = np.mean(drawn, axis=0)
    np.testing.assert_allclose(shares[VALID[..., 0]], weights[VALID[..., 0]], atol=0.2)
    expected = -(weights * np.log(np.maximum(weights, 1e-30))).sum(-1)
    np.testing.assert_allclose(entropies[0][..., 0], expected, rtol=1e-4, atol=1e-6)
    assert not np.any(outputs.entropies[~VALID])
    assert not np.any(outputs.log_probabilities[~VALID])


def test_expectation_probability_one_is_soft_attention() -> None:
    hard, _ = train("hard", dropout_rate=0.0, expectation_probability=1.0)
    soft = evaluate("soft", "hard")
    assert not np.any(hard.log_probabilities)
    np.testing.assert_allclose(hard.logits[VALID], soft.logits[VALID], rtol=1e-4, atol=1e-5)
    assert evaluate("hard", "hard").log_probabilities is None


def test_the_baseline_follows_the_words_log_likelihood() -> None:
    outputs, new = train("hard", dropout_rate=0.0)
    logs = outputs.logits - np.log(np.exp(outputs.logits).sum(-1, keepdims=True))
    words: Any = np.take_along_axis(logs, TOKENS[..., None], -1)[..., 0]
    mean = words[VALID].mean()
    before = draw(BY_NAME["hard"])[0]["baseline"]["log_likelihood"]
    assert outputs.baseline == np.float32(before)
    expected = 0.9 * before + 0.1 * mean
    np.testing.assert_allclose(new["baseline"]["log_likelihood"], expected, rtol=1e-5)


def call(name: str = "soft", **changed: Any) -> None:
    case = BY_NAME[name]
    variables, regions = jax.tree.map(np.float32, draw(case))
    given = {"features": regions, "tokens": TOKENS, "token_lengths": LENGTHS} | changed
    case.make(**FLOAT32).apply(variables, **given, train=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": np.zeros((B,))}, r"features: expected \(B,D\), \(B,R,D\) or \(B,h,w,D\)"),
        ({"features": np.zeros((B, R, D), np.int32)}, "features: expected a float dtype"),
        ({"tokens": TOKENS[:, 0]}, r"tokens: expected \(B,C,L\) with B = 3"),
        ({"tokens": TOKENS[:2]}, r"tokens: expected \(B,C,L\) with B = 3"),
        ({"tokens": TOKENS.astype(np.float32)}, "tokens: expected integers, received float32"),
        ({"tokens": TOKENS + V}, "tokens: expected 0 to 8, received 9 to"),
        ({"tokens": TOKENS - 1}, "tokens: expected 0 to 8, received -1 to"),
        ({"token_lengths": LENGTHS[:, 0]}, r"token_lengths: expected shape \(3, 2\)"),
        ({"token_lengths": LENGTHS + L}, r"token_lengths: expected values in \[0, 5\], received"),
        ({"mask": MASK[:, 1:]}, r"mask: expected \(3, 4\) bool"),
    ],
)
def test_bad_input_is_refused(changed: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changed)


@every_model
def test_regions_of_another_width_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"features: expected width {D}, received {D + 1}"):
        call(name, features=np.zeros((B, R, D + 1), np.float32))
    case = BY_NAME[name]
    variables, regions = jax.tree.map(np.float32, draw(case))
    decoder = case.make(**FLOAT32)
    memory, carry = decoder.apply(variables, regions, method="start_decoding")
    wider = {n: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)]) for n, x in memory.items()}
    with pytest.raises(ValueError, match=f"features: expected width {D}, received {D + 1}"):
        decoder.apply(variables, wider, carry, np.ones(B, np.int32), method="decode_step")
    for words in (np.ones((B, 1), np.int32), np.ones(B)):
        with pytest.raises(ValueError, match=r"previous: expected \(3,\) integers"):
            decoder.apply(variables, memory, carry, words, method="decode_step")


def test_unknown_options_are_refused() -> None:
    case = BY_NAME["soft"]
    variables, regions = draw(case)
    for options, message in (
        ({"gate": "tensor"}, "gate: "),
        ({"gradients": "none"}, "gradients: "),
    ):
        with pytest.raises(ValueError, match=message):
            case.make(**options).apply(variables, regions, TOKENS, LENGTHS, train=False)
    with pytest.raises(ValueError, match="make_cell: expected an LSTMCell"):
        candidate_columns(ElmanCell(3))
    assert candidate_columns(MaxoutLSTMCell(3)) == slice(9, 15)
