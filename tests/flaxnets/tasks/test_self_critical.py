"""Self-critical training against the exact gradient of the expected reward, by enumeration."""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxnets.decoders.sampling import sample
from flaxnets.decoders.search import SearchOptions
from flaxnets.decoders.show_attend_tell import SoftAttention
from flaxnets.models.captioner import Captioner
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.tasks.captioning import start_search
from flaxnets.tasks.cider import DocumentFrequencies, cider_d
from flaxnets.tasks.self_critical import SelfCritical
from flaxnets.training.state import make_state
from flaxnets.training.step import make_train_step
from tests.flaxnets.tasks.table_captioner import (
    BOS,
    EOS,
    TableCaptioner,
    enumerate_captions,
    image_logits,
    variables_of,
)

STEPS, V = 3, 6
WORDS = (4, 5)
CAPTIONS = enumerate_captions(WORDS, STEPS)
FREQUENCIES = DocumentFrequencies.count(
    [np.array([[4, 5, EOS]]), np.array([[5, 4, EOS]]), np.array([[4, 4, EOS]])]
)
MODEL = TableCaptioner(STEPS, V)
KEY = jax.random.key(0)
BASELINES = ["greedy", "leave_one_out"]


def batch_of(mask: tuple[bool, bool] = (True, True)) -> dict[str, Any]:
    """Returns two images: one with two references, one with one and an absent one."""
    tokens = np.array([[[4, 5, EOS], [5, EOS, 0]], [[4, 4, EOS], [5, 5, 5]]], np.int32)
    features = np.random.default_rng(1).normal(size=(2, 1, 1 + V)).astype(np.float32)
    return {
        "features": jnp.asarray(features),
        "tokens": jnp.asarray(tokens),
        "token_lengths": jnp.array([[3, 2], [3, 0]], jnp.int32),
        "mask": jnp.array(mask),
        "index": jnp.arange(2),
    }


@cache
def loss_of(baseline: str) -> Any:
    """Returns (params, batch, key) to ((total loss, sums), gradient), compiled once."""

    def total(params: Any, batch: Any, key: Any) -> Any:
        variables = {"params": params, "state": {"baseline": jnp.float32(0)}}
        sums, collections = task_of(baseline).loss(MODEL, variables, batch, key)
        assert collections.keys() == {"state"}
        return sums["loss"][0], sums

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def task_of(baseline: str, num_samples: int = 3) -> SelfCritical:
    return SelfCritical(
        words=str,
        options=SearchOptions(max_steps=STEPS),
        frequencies=FREQUENCIES,
        num_samples=num_samples,
        baseline=baseline,
    )


@jax.jit
def probabilities(params: Any, batch: dict[str, Any], temperature: float = 1.0) -> jax.Array:
    """Returns p (B,N) of each caption; only the end token and two words are allowed."""
    total = jnp.zeros((2, len(CAPTIONS)))
    previous = np.full(len(CAPTIONS), BOS)
    for t in range(STEPS):
        logits = params["table"][t, previous] + image_logits(batch["features"])[:, None]
        logs = jax.nn.log_softmax(logits[..., [EOS, *WORDS]] / temperature)  # (B,N,3)
        place = np.searchsorted([EOS, *WORDS], CAPTIONS[:, t])
        chosen = jnp.take_along_axis(logs, jnp.asarray(place)[None, :, None], -1)[..., 0]
        total += jnp.where(CAPTIONS[:, t] > 0, chosen, 0)
        previous = CAPTIONS[:, t]
    return jnp.exp(total)


def expected_reward(params: Any, batch: dict[str, Any], temperature: float = 1.0) -> jax.Array:
    """Returns the exact expectation (B,) by enumeration."""
    candidates = np.broadcast_to(CAPTIONS, (2, *CAPTIONS.shape))
    shares = probabilities(params, batch, temperature)
    return jnp.sum(shares * rewards(batch, candidates), axis=-1)


def rewards(batch: dict[str, Any], candidates: np.ndarray) -> np.ndarray:
    """Returns CIDEr-D (B,S) of captions (B,S,L)."""
    exists = np.arange(3) < np.asarray(batch["token_lengths"])[..., None]
    references = np.where(exists, batch["tokens"], 0)
    return np.asarray(cider_d(FREQUENCIES, jnp.asarray(candidates), jnp.asarray(references)))


def test_the_enumeration_is_whole_and_its_rewards_differ() -> None:
    batch = batch_of()
    params = variables_of(MODEL, batch)["params"]
    np.testing.assert_allclose(probabilities(params, batch).sum(-1), 1, rtol=1e-5)
    assert len(CAPTIONS) == 1 + 2 + 4 + 8
    assert np.std(rewards(batch, np.broadcast_to(CAPTIONS, (2, *CAPTIONS.shape))), -1).min() > 1


@pytest.mark.parametrize(
    ("baseline", "temperature"), [*((name, 1.0) for name in BASELINES), ("leave_one_out", 0.5)]
)
def test_the_mean_gradient_is_that_of_the_expected_reward(
    baseline: str, temperature: float
) -> None:
    batch = batch_of()
    variables = variables_of(MODEL, batch)
    task = dataclasses.replace(task_of(baseline), temperature=temperature)
    num_keys = 4_000

    def total(params: Any, key: Any) -> jax.Array:
        sums, _ = task.loss(MODEL, {**variables, "params": params}, batch, key)
        return sums["loss"][0]

    @jax.jit
    def draw(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = jax.vmap(jax.grad(total), (None, 0))(variables["params"], keys)["table"]
        return drawn.mean(0), drawn.std(0) / np.sqrt(num_keys)

    mean, error = map(np.asarray, draw(jax.random.split(KEY, num_keys)))
    exact = jax.grad(lambda params: expected_reward(params, batch, temperature).sum())(
        variables["params"]
    )
    # The three samples of an image each add a gradient of its own; the loss is to be lowered.
    expected = -3 * np.asarray(exact["table"])
    # Precise enough to tell the samples' number, the sign, and one baseline from another's bias.
    large = np.abs(expected) > 0.1
    assert large.sum() >= 8
    assert np.max(error[large] / np.abs(expected[large])) < 0.3
    assert np.median(error[large] / np.abs(expected[large])) < 0.1
    np.testing.assert_array_less(np.abs(mean - expected), 4.5 * error + 1e-5)


def test_words_are_drawn_from_the_probabilities_that_are_differentiated() -> None:
    batch = batch_of()
    variables = variables_of(MODEL, batch)
    tokens = jnp.broadcast_to(CAPTIONS, (2, *CAPTIONS.shape))
    lengths = jnp.sum(tokens > 0, axis=-1)
    log_probs = jax.jit(partial(task_of("greedy")._log_probs, MODEL))(
        variables, batch, tokens, lengths, {}
    )
    exact = np.asarray(probabilities(variables["params"], batch))
    np.testing.assert_allclose(np.exp(log_probs.sum(-1)), exact, rtol=1e-5)
    assert (np.asarray(log_probs)[tokens == 0] == 0).all()
    num_samples = 20_000
    decode_step, carry = start_search(MODEL, variables, batch)
    draw = partial(sample, decode_step, num_samples=num_samples, max_steps=STEPS)
    drawn = np.asarray(jax.jit(draw)(carry, KEY).tokens)
    for b in range(2):
        shares = np.array([(drawn[b] == caption).all(-1).mean() for caption in CAPTIONS])
        assert shares.sum() == pytest.approx(1)
        error = np.sqrt(exact[b] * (1 - exact[b]) / num_samples)
        np.testing.assert_array_less(np.abs(shares - exact[b]), 4.5 * error + 1e-6)


@pytest.mark.parametrize("baseline", BASELINES)
def test_masked_rows_count_nowhere(baseline: str) -> None:
    batch = batch_of((True, False))
    params = variables_of(MODEL, batch)["params"]
    plain = loss_of(baseline)(params, batch, KEY)
    # What is drawn for a row depends on the key and the row alone.
    other = {
        **batch,
        "features": batch["features"].at[1].multiply(-2),
        "tokens": batch["tokens"].at[1].set(5),
        "token_lengths": batch["token_lengths"].at[1].set(3),
    }
    jax.tree.map(np.testing.assert_array_equal, loss_of(baseline)(params, other, KEY), plain)
    both = loss_of(baseline)(params, {**batch, "mask": jnp.array([True, True])}, KEY)
    (_, sums), gradient = plain
    assert sums["reward"][1] == 3
    assert both[0][1]["reward"][1] == 6
    assert sums["reward"][0] < both[0][1]["reward"][0]
    assert sums["loss"][1] == sums["sampled_words"][0] > 0
    assert np.abs(gradient["table"]).max() > 0.01


def test_of_each_image_the_advantages_over_its_other_samples_sum_to_zero() -> None:
    batch = batch_of()
    params = variables_of(MODEL, batch)["params"]
    for seed in range(4):
        (_, sums), _ = loss_of("leave_one_out")(params, batch, jax.random.key(seed))
        np.testing.assert_allclose(sums["reward"], sums["baseline"], rtol=1e-5)


def test_the_greedy_baseline_is_the_reward_of_the_likeliest_words() -> None:
    batch = batch_of()
    params = variables_of(MODEL, batch)["params"]
    (_, sums), _ = loss_of("greedy")(params, batch, KEY)
    of_image = np.asarray(image_logits(batch["features"]))  # (B,V)
    found = np.zeros((2, 1, STEPS), np.int32)
    for b in range(2):
        caption: list[int] = []
        while len(caption) < STEPS and EOS not in caption:
            previous = caption[-1] if caption else BOS
            after = np.asarray(params["table"])[len(caption), previous] + of_image[b]
            after[[0, BOS, 3]] = -np.inf
            caption.append(int(after.argmax()))
        found[b, 0, : len(caption)] = caption
    expected = rewards(batch, found).sum()
    assert expected > 0
    assert float(sums["baseline"][0]) == pytest.approx(3 * expected, rel=1e-5)
    assert sums["baseline"][1] == 6


@pytest.mark.parametrize("baseline", BASELINES)
def test_training_raises_the_reward(baseline: str) -> None:
    batch = batch_of()
    variables = variables_of(MODEL, batch)
    optimizer = optax.adam(0.1)
    step = make_train_step(MODEL, task_of(baseline), optimizer)

    @jax.jit
    def train(state: Any) -> Any:
        return jax.lax.scan(lambda state, _: (step(state, batch)[0], None), state, None, 100)[0]

    state = train(make_state(variables, optimizer, 0))
    before = float(expected_reward(variables["params"], batch).mean())
    after = float(expected_reward(state.params, batch).mean())
    best = np.asarray(cider_d(FREQUENCIES, batch["tokens"][:, :1], batch["tokens"][:, :1])).mean()
    assert after > before + 0.3 * best


@pytest.mark.slow
def test_the_same_parts_of_an_image_are_dropped_in_drawing_and_in_differentiating() -> None:
    cell = partial(LSTMCell, 4)
    decoder = SoftAttention(vocabulary_size=V, make_cell=cell, embed_features=4)
    model = Captioner(decoder, feature_dropout_rate=0.5, region_dropout_rate=0.5)
    batch = batch_of()
    batch["features"] = jax.random.normal(KEY, (2, 6, 5))
    variables = variables_of(model, batch)
    # Large enough that the image matters for the caption, small enough that samples differ.
    variables = jax.tree.map(lambda x: 0.5 * jax.random.normal(KEY, x.shape), variables)
    task = dataclasses.replace(task_of("leave_one_out", 8), image_dropout=True)

    tokens, lengths = batch["tokens"][:, :1], batch["token_lengths"][:, :1]

    @jax.jit
    def log_probs(drop_key: Any) -> tuple[jax.Array, jax.Array]:
        """Returns log p (B,) as sampled, step by step, and as differentiated."""
        options = {"image_dropout": True, "rngs": {"dropout": drop_key}}
        decode_step, carry = start_search(model, variables, batch, **options)
        previous, total = jnp.full(2, BOS), jnp.zeros(2)
        for word in jnp.moveaxis(tokens[:, 0], 1, 0):
            carry, logits = decode_step(carry, previous)
            place = jnp.searchsorted(jnp.array([EOS, *WORDS]), word)[:, None]
            logs = jax.nn.log_softmax(logits[:, jnp.array([EOS, *WORDS])])
            total += jnp.take_along_axis(logs, place, axis=1)[:, 0]
            previous = word
        scored = task._log_probs(model, variables, batch, tokens, lengths, options)
        return total, scored.sum((1, 2))

    found = [log_probs(jax.random.key(seed)) for seed in range(3)]
    for drawn, differentiated in found:
        np.testing.assert_allclose(differentiated, drawn, rtol=1e-4, atol=1e-5)
    assert np.ptp([drawn for drawn, _ in found], axis=0).min() > 0.1
    whole, dropped = (
        jax.jit(partial(task.loss, seen))(variables, batch, KEY)[0]["loss"][0]
        for seen in (Captioner(decoder), model)
    )
    assert abs(whole - dropped) > 0.01


@pytest.mark.parametrize("baseline", BASELINES)
def test_drawn_steps_bounds_the_length_of_samples(baseline: str) -> None:
    batch = batch_of()
    variables = variables_of(MODEL, batch)
    words = {}
    for steps in (0, 1, STEPS):
        task = dataclasses.replace(task_of(baseline), drawn_steps=steps)
        sums, _ = jax.jit(partial(task.loss, MODEL))(variables, batch, KEY)
        words[steps] = float(sums["sampled_words"][0])
    assert words[1] == sums["sampled_words"][1] == 6
    assert words[0] == words[STEPS] > 6


@pytest.mark.parametrize("baseline", BASELINES)
def test_references_count_by_their_weights(baseline: str) -> None:
    batch = batch_of()
    variables = variables_of(MODEL, batch)

    @jax.jit
    def sums_of(weights: Any, tokens: Any) -> Any:
        given = {**batch, "tokens": tokens}
        if weights is not None:
            given["caption_weights"] = weights
        return task_of(baseline).loss(MODEL, variables, given, KEY)[0]

    tokens = batch["tokens"]
    alike = sums_of(None, tokens)
    assert_same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-5))
    assert_same(sums_of(jnp.full((2, 2), 0.7), tokens), alike)
    # A reference that weighs nothing is as none; the others are as they were.
    weights = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    first = sums_of(weights, tokens)
    assert_same(first, sums_of(weights, tokens.at[:, 1].set(5)))
    assert_same(first, sums_of(None, tokens.at[:, 1].set(0)))
    for name in ("reward", "baseline"):
        assert abs(first[name][0] - alike[name][0]) > 0.005


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"baseline: expected one of .*, received 'mean'"):
        task_of("mean")
    with pytest.raises(ValueError, match="num_samples: expected at least 2 for leave_one_out, rec"):
        task_of("leave_one_out", 1)
    with pytest.raises(ValueError, match="num_samples: expected at least 1 for greedy, received 0"):
        task_of("greedy", 0)
    with pytest.raises(ValueError, match="temperature: expected above 0, received 0"):
        dataclasses.replace(task_of("greedy"), temperature=0.0)
