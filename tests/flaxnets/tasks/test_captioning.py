"""Captioning task: sums, gradients and captions against loops over words in NumPy."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.decoders.search import SearchOptions
from flaxnets.decoders.show_attend_tell import HardAttention
from flaxnets.models.captioner import Captioner
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.tasks.captioning import Captioning, ScheduledSampling, model_inputs
from tests.flaxnets.tasks.table_captioner import (
    BOS,
    EOS,
    B,
    C,
    L,
    R,
    TableCaptioner,
    V,
    captions,
    given_words,
    log_softmax,
    variables_of,
)

KEY = jax.random.key(0)
Arrays = dict[str, np.ndarray]


def words(ids: Any) -> str:
    return " ".join(map(str, ids))


def losses_of(
    model: Any, task: Captioning, variables: Any, *batches: Arrays, step: int = 0
) -> list[Any]:
    """Returns for each batch ((total loss, (sums, collections)), gradient of the total)."""

    def total(params: Any, batch: Any) -> Any:
        sums, collections = task.loss(model, {**variables, "params": params}, batch, KEY, step)
        return sums["loss"][0], (sums, collections)

    compiled = jax.jit(jax.value_and_grad(total, has_aux=True))
    return jax.device_get([compiled(variables["params"], batch) for batch in batches])


def log_probabilities(variables: Any, batch: Arrays, b: int, t: int, previous: int) -> np.ndarray:
    """Returns the table's log-probabilities (V,) after ``previous``."""
    table = np.asarray(variables["params"]["table"], np.float64)
    return log_softmax(table[t, previous] + batch["features"][b, 0, 1:])


def attention_of(variables: Any, batch: Arrays, b: int, t: int) -> np.ndarray:
    energies = np.asarray(variables["params"]["energies"], np.float64)
    return np.exp(log_softmax(energies[t] * batch["features"][b, :, 0]))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_a_sum_over_the_words_of_all_captions(smoothing: float) -> None:
    batch, model = captions(), TableCaptioner()
    batch["mask"][2] = False
    variables = variables_of(model, batch)
    task = Captioning(words, label_smoothing=smoothing)
    [((_, (sums, _)), _)] = losses_of(model, task, variables, batch)
    plain, smoothed, right, count = 0.0, 0.0, 0, 0
    for b, _, t, previous, word in given_words(batch):
        logs = log_probabilities(variables, batch, b, t, previous)
        target = np.full(V, smoothing / V)
        target[word] += 1 - smoothing
        plain, smoothed, count = plain - logs[word], smoothed - target @ logs, count + 1
        right += logs.argmax() == word
    assert count == 9
    expected = {"loss": smoothed, "cross_entropy": plain, "word_accuracy": right}
    assert sums.keys() == expected.keys()
    for name, total in expected.items():
        np.testing.assert_allclose(sums[name], (total, count), rtol=1e-5)


def spoil(batch: Arrays, steps: int) -> Arrays:
    """Changes padding, its length (``steps``), masked rows, and adds an absent caption."""
    rng = np.random.default_rng(9)
    tokens = rng.integers(0, V, (B, C + 1, steps)).astype(np.int32)
    token_lengths = np.zeros((B, C + 1), np.int32)
    token_lengths[:, :C] = batch["token_lengths"]
    there = np.arange(L) < batch["token_lengths"][..., None]
    tokens[:, :C, :L] = np.where(there, batch["tokens"], tokens[:, :C, :L])
    features = batch["features"].copy()
    for b in np.flatnonzero(~batch["mask"]):
        features[b] *= 3
        token_lengths[b] = [L, 1, steps]
    return {**batch, "features": features, "tokens": tokens, "token_lengths": token_lengths}


def assert_same(actual: Any, expected: Any) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), actual, expected)


def test_padding_absent_captions_and_masked_rows_change_nothing() -> None:
    batch, model = captions(), TableCaptioner(2 * L, attends=True)
    batch["mask"][1] = False
    task = Captioning(words, label_smoothing=0.1, attention_penalty=0.7)
    variables = variables_of(model, batch)
    plain, spoilt = losses_of(model, task, variables, batch, spoil(batch, 2 * L))
    assert_same(spoilt, plain)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(plain[1]))


@pytest.mark.parametrize("draws", [False, True])
def test_a_caption_counts_as_often_as_its_weight_says(draws: bool) -> None:
    batch, model = captions(), TableCaptioner(attends=True, draws=draws)
    task = Captioning(words, label_smoothing=0.1, attention_penalty=0.7, entropy_weight=0.3)
    variables = variables_of(model, batch)
    weights = np.array([[2, 0], [0.5, 1], [1, 3]], np.float32)
    weighed = batch | {"caption_weights": weights}
    alone = []
    for b, c in np.ndindex(B, C):
        lengths = np.zeros_like(batch["token_lengths"])
        lengths[b, c] = batch["token_lengths"][b, c]
        alone.append(batch | {"token_lengths": lengths})
    [((total, (sums, _)), gradient), *single] = losses_of(model, task, variables, weighed, *alone)
    expected = sum(w * loss for w, ((loss, _), _) in zip(weights.flat, single, strict=True))
    assert total == pytest.approx(expected, rel=1e-5)
    count = float((weights * batch["token_lengths"]).sum())
    np.testing.assert_allclose(sums["loss"], (total, count), rtol=1e-6)
    assert sums["cross_entropy"][1] == batch["token_lengths"].sum()
    summed = jax.tree.map(
        lambda *leaves: sum(w * x for w, x in zip(weights.flat, leaves, strict=True)),
        *(found for _, found in single),
    )
    assert_same(gradient, summed)


@pytest.mark.parametrize("video", [False, True])
def test_unequal_attention_to_regions_is_penalised(video: bool) -> None:
    batch, model = captions(), TableCaptioner(attends=True)
    batch["mask"][2] = False
    variables = variables_of(model, batch)
    if video:
        batch["lengths"] = np.array([R, 2, R], np.int32)
        batch["video"] = batch.pop("features")
    [((plain, _), _)] = losses_of(model, Captioning(words), variables, batch)
    task = Captioning(words, attention_penalty=0.3)
    [((penalised, (sums, _)), _)] = losses_of(model, task, variables, batch)
    batch["features"] = batch["video" if video else "features"]
    penalty = 0.0
    for b, c in {(b, c) for b, c, *_ in given_words(batch)}:
        total_attention = sum(
            attention_of(variables, batch, b, t) for t in range(batch["token_lengths"][b, c])
        )
        regions = batch["lengths"][b] if video else R
        penalty += 0.3 * ((1 - total_attention[:regions]) ** 2).sum()
    assert penalty > 0.5
    assert penalised - plain == pytest.approx(penalty, rel=1e-4)
    assert sums["loss"][0] - sums["cross_entropy"][0] == pytest.approx(penalty, rel=1e-4)


def test_hard_attention_adds_the_score_function_gradient() -> None:
    batch, model = captions(), TableCaptioner(attends=True, draws=True)
    batch["mask"][2] = False
    variables = variables_of(model, batch)
    task = Captioning(words, reinforce_weight=0.5, entropy_weight=0.1)
    [((_, (sums, _)), gradient)] = losses_of(model, task, variables, batch)
    [(_, plain)] = losses_of(TableCaptioner(attends=True), task, variables, batch)
    likelihoods = np.zeros((*batch["tokens"].shape[:2], L))
    for b, c, t, previous, word in given_words(batch):
        likelihoods[b, c, t] = log_probabilities(variables, batch, b, t, previous)[word] - -4.0
    expected, added = np.zeros(L), 0.0
    for b, c, t, *_ in given_words(batch):
        slopes = batch["features"][b, :, 0].astype(np.float64)  # d logits / d energies[t].
        alpha = attention_of(variables, batch, b, t)
        advantage = likelihoods[b, c, t:].sum()  # Of the words from this step on.
        entropy = -(alpha * np.log(alpha)).sum()
        drawn = 0.5 * advantage * (np.eye(R)[t] - alpha)
        spread = 0.1 * -alpha * (np.log(alpha) + entropy)
        expected[t] -= (drawn + spread) @ slopes
        added -= 0.5 * advantage * np.log(alpha[t]) + 0.1 * entropy
    assert np.abs(expected).min() > 0.01
    np.testing.assert_allclose(gradient["energies"], expected, rtol=1e-4)
    assert sums["loss"][0] - sums["cross_entropy"][0] == pytest.approx(added, rel=1e-4)
    # The likelihood is a constant in the reward: the table's gradient is that of its words alone.
    np.testing.assert_allclose(gradient["table"], plain["table"], rtol=1e-5, atol=1e-6)


def test_hard_attention_moves_its_baseline_by_the_captions_that_count() -> None:
    batch = captions()
    batch["tokens"] = np.pad(batch["tokens"], [(0, 0), (0, 1), (0, 0)])
    batch["token_lengths"] = np.pad(batch["token_lengths"], [(0, 0), (0, 1)])
    batch["mask"][0] = False
    decoder = HardAttention(
        vocabulary_size=V,
        make_cell=partial(LSTMCell, 4),
        embed_features=3,
        attention_features=3,
        dropout_rate=0.0,
    )
    model = Captioner(decoder)
    variables = variables_of(model, batch)
    task = Captioning(words, attention_penalty=1.0)
    shown = {name: array[:, :C] if "token" in name else array for name, array in batch.items()}
    # Of one shape, so that the same regions are drawn.
    plain, spoilt = losses_of(model, task, variables, batch, spoil(shown, L))
    assert_same(spoilt, plain)
    (_, (sums, collections)), gradient = plain
    expected = 0.1 * -float(sums["cross_entropy"][0] / sums["cross_entropy"][1])
    moved = collections["baseline"]["decoder"]["log_likelihood"]
    assert moved == pytest.approx(expected, rel=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_probability_of_scheduled_sampling_rises_with_the_step() -> None:
    sampling = ScheduledSampling(increase=0.1, every=10, maximum=0.25)
    steps = (0, 9, 10, 19, 20, 29, 30, 1_000_000)
    chosen = [float(sampling.probability(step)) for step in steps]
    np.testing.assert_allclose(chosen, [0, 0, 0.1, 0.1, 0.2, 0.2, 0.25, 0.25])
    batch, model = captions(), TableCaptioner()
    variables = variables_of(model, batch)
    forced, sampled = (
        Captioning(words, scheduled_sampling=schedule) for schedule in (None, sampling)
    )
    # The table multiplies its logits by one plus the probability.
    for step, factor in ((5, 1.0), (15, 1.1)):
        scaled = jax.tree.map(lambda x, factor=factor: factor * x, variables)
        scaled_batch = {**batch, "features": np.float32(factor) * batch["features"]}
        [((expected, _), _)] = losses_of(model, forced, scaled, scaled_batch)
        [((actual, _), _)] = losses_of(model, sampled, variables, batch, step=step)
        assert actual == pytest.approx(expected, rel=1e-5)


def test_evaluation_has_the_references_loss_and_searches_for_captions() -> None:
    batch, model = captions(), TableCaptioner()
    batch["mask"][0] = False
    variables = variables_of(model, batch)
    task = Captioning(words, SearchOptions(method="greedy", max_steps=L), label_smoothing=0.3)
    sums, outputs = jax.jit(partial(task.evaluate, model))(variables, batch)
    total = -sum(
        log_probabilities(variables, batch, b, t, previous)[word]
        for b, _, t, previous, word in given_words(batch)
    )
    # Plain nats a word, whatever the smoothing in training.
    np.testing.assert_allclose(sums["loss"], (total, 7), rtol=1e-5)
    assert sums["examples"] == (2, 2)
    assert sums.keys() == {"loss", "word_accuracy", "examples"}
    for b in range(B):
        found: list[int] = []
        total = 0.0
        while len(found) < L and EOS not in found:
            previous = found[-1] if found else BOS
            logs = log_probabilities(variables, batch, b, len(found), previous)
            logs[[0, BOS, 3]] = -np.inf
            found.append(int(logs.argmax()))
            total += logs.max()
        described = task.describe_outputs(jax.device_get(outputs), b)
        assert described["caption"].split()[: len(found)] == [str(word) for word in found]
        assert described["log_probability"] == pytest.approx(total, rel=1e-4)
        assert described["ended"] == (EOS in found)
        assert outputs["length"][b] == len(found)


def test_variables_are_made_from_one_example() -> None:
    batch, model = captions(), TableCaptioner()
    variables = Captioning(words).initialize(model, KEY, batch)
    assert variables["params"]["table"].shape == (L, V, V)


def test_a_batch_without_inputs_or_with_two_kinds_is_refused() -> None:
    batch = captions()
    message = r"batch: expected one of \('image', 'features', 'video'\), received \['features', "
    with pytest.raises(ValueError, match=message):
        model_inputs(jax.tree.map(jnp.asarray, {**batch, "video": np.zeros(1)}))
    del batch["features"]
    with pytest.raises(ValueError, match=r"received \['index', 'mask', "):
        model_inputs(jax.tree.map(jnp.asarray, batch))


@pytest.mark.parametrize("weight", ["attention_penalty", "reinforce_weight", "entropy_weight"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_wrong_weights_are_refused(weight: str, value: float) -> None:
    options: dict[str, float] = {weight: value}
    with pytest.raises(ValueError, match=f"{weight}: expected"):
        Captioning(words, **options)
