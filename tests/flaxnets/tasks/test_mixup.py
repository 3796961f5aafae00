"""Mixup of clips and targets against NumPy."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.tasks import video_classification
from flaxnets.tasks.video_classification import VideoClassification
from tests.flaxnets.training.echo import (
    KEY,
    KINDS,
    LABELS,
    LENGTHS,
    B,
    Echo,
    K,
    M,
    T,
    batch_of,
    clip_loss,
    loss_of,
    scores,
)


def fix_draw(monkeypatch: pytest.MonkeyPatch, pairs: Any, share: Any) -> None:
    drawn = jnp.asarray(pairs, jnp.int32), jnp.asarray(share, jnp.float32)
    monkeypatch.setattr(video_classification, "_draw_mixup", lambda key, alpha, size: drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_mixup_mixes_clips_and_targets(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, share = [2, 1, 3, 0], [0.9, 0.3, 0.5, 0.75]
    fix_draw(monkeypatch, pairs, share)
    features, mask = scores(B, T, M, K), np.array([True, True, True, False])
    task = VideoClassification(kind, label_smoothing=0.1, mixup=0.4)
    sums = loss_of(task, batch_of(features, mask=mask))
    total = 0.0
    counted = 0
    for b in range(B):
        partner, weight = pairs[b], share[b]
        if not (mask[b] and mask[partner]):
            continue
        counted += 1
        mixed = weight * features[b] + (1 - weight) * features[partner]
        length = min(LENGTHS[b], LENGTHS[partner])
        for m in range(M):
            own, other = (
                clip_loss(kind, mixed[:, m], LABELS[clip], length, smoothing=0.1)
                for clip in (b, partner)
            )
            total += (weight * own + (1 - weight) * other) / M
    # The last row, partner of the third, is masked.
    assert counted == 2
    assert sums["loss"][0] == pytest.approx(total, rel=1e-5)
    assert sums["loss"][1] == counted
    assert sums["accuracy"][1] == counted


def test_mixup_with_the_whole_share_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.full(B, T, np.int32)
    batch = batch_of(scores(B, T, K), lengths=lengths)
    plain = loss_of(VideoClassification(), batch)
    fix_draw(monkeypatch, [3, 2, 1, 0], np.ones(B))
    mixed = loss_of(VideoClassification(mixup=0.4), batch)
    assert mixed["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert mixed["accuracy"] == plain["accuracy"]


def test_mixup_without_a_share_trains_on_the_partners(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.full(B, T, np.int32)
    batch = batch_of(scores(B, T, K), lengths=lengths)
    fix_draw(monkeypatch, [3, 2, 1, 0], np.zeros(B))
    mixed = loss_of(VideoClassification(mixup=0.4), batch)
    assert mixed["loss"] == pytest.approx(loss_of(VideoClassification(), batch)["loss"], rel=1e-6)


def test_mixup_draws_a_permutation_and_shares_of_the_beta_distribution() -> None:
    draw = jax.jit(partial(video_classification._draw_mixup, alpha=0.4, size=4000))
    pairs, share = draw(KEY)
    assert sorted(pairs.tolist()) == list(range(4000))
    assert share.min() >= 0
    assert share.max() <= 1
    # Beta(α, α): mean 1/2, variance 1 / (4 (2 α + 1)).
    assert abs(float(share.mean()) - 0.5) < 0.03
    assert abs(float(share.var()) - 1 / (4 * 1.8)) < 0.01
    other, _ = draw(jax.random.key(1))
    assert (pairs != other).any()


def test_mixup_of_pixels_is_refused() -> None:
    batch = batch_of(scores(B, T, K))
    batch["video"] = jnp.zeros((B, T, 2, 2, 3), jnp.uint8)
    del batch["features"]
    with pytest.raises(ValueError, match="mixup: expected features, received video of uint8"):
        VideoClassification(mixup=0.4).loss(Echo(), {"params": {}}, batch, KEY)
