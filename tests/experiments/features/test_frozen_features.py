"""Projection of frozen features, compared with an SVD, and the key of their cache."""

from pathlib import Path

import numpy as np
import pytest

from experiments.features import frozen_features
from experiments.features.frozen_features import describe_encoder, fit_projection, make_encode
from flaxnets.encoders.config import EncoderConfig

N, D, P = 40, 6, 4


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """Correlated features (N,D) of unequal scale and offset."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)) @ rng.normal(size=(D, D))
    return (x * [1, 5, 0.3, 2, 10, 1] + [0, 3, -1, 100, 0, 7]).astype(np.float32)


def components(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the principal components (N,P) by SVD, and their variances (P,)."""
    x = features.astype(np.float64)
    standard = (x - x.mean(0)) / (x.std(0) + 1e-2)
    u, s, _ = np.linalg.svd(standard, full_matrices=False)
    return (u * s)[:, :P], (s**2 / N)[:P]


def project(features: np.ndarray, whitening: float, size: int = P) -> np.ndarray:
    kernel, bias = fit_projection(features, size, whitening=whitening)
    assert kernel.shape == (features.shape[1], size)
    assert bias.shape == (size,)
    assert kernel.dtype == bias.dtype == np.float32
    return features.astype(np.float64) @ kernel + bias


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_the_projection_is_that_of_an_svd(features: np.ndarray, whitening: float) -> None:
    scores, variances = components(features)
    expected = scores / np.sqrt(variances**whitening * variances[0] ** (1 - whitening))
    projected = project(features, whitening)
    signs = np.sign((projected * expected).sum(0))  # A component may point either way.
    np.testing.assert_allclose(projected * signs, expected, atol=1e-3)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_components_are_centred_and_uncorrelated_and_the_first_has_unit_variance(
    features: np.ndarray, whitening: float
) -> None:
    projected = project(features, whitening)
    np.testing.assert_allclose(projected.mean(0), 0, atol=1e-3)
    covariance = projected.T @ projected / N
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-3)
    assert covariance[0, 0] == pytest.approx(1, abs=1e-3)


def test_whitening_wholly_gives_unit_variances(features: np.ndarray) -> None:
    np.testing.assert_allclose(project(features, 1.0).var(0), 1, atol=1e-3)


def test_without_whitening_the_relative_variances_are_those_of_the_components(
    features: np.ndarray,
) -> None:
    _, variances = components(features)
    assert variances[0] > 1.5 * variances[-1]
    np.testing.assert_allclose(project(features, 0.0).var(0), variances / variances[0], atol=1e-3)


def test_features_that_are_constant_or_double_stay_finite(features: np.ndarray) -> None:
    degenerate = np.concatenate([features[:, :2], features[:, :2], np.full((N, 2), 3)], 1)
    for whitening in (0.0, 1.0):
        projected = project(degenerate.astype(np.float32), whitening, size=6)
        assert np.isfinite(projected).all()
        # Two directions are all there is.
        assert projected.var(0)[:2].min() > 0.1
        assert projected.var(0)[2:].max() < 0.1


def test_components_beyond_the_number_of_features_are_zero(features: np.ndarray) -> None:
    kernel, bias = fit_projection(features, D, whitening=0.5)
    wider = fit_projection(features, D + 3, whitening=0.5)
    assert np.array_equal(wider[0], np.concatenate([kernel, np.zeros((D, 3))], 1))
    assert np.array_equal(wider[1], np.concatenate([bias, np.zeros(3)]))


def test_an_unknown_pool_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"data.pool: expected one of .*'flatten', 'none'\), received 'sum'"
    ):
        make_encode(EncoderConfig(), "sum")


def test_the_cache_knows_the_code_of_an_encoder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import flax.linen as nn\n\n\n"
        "class Mean(nn.Module):\n"
        "    def __call__(self, images, mask=None, *, train):\n"
        "        return images.mean((1, 2))\n"
    )
    file = tmp_path / "own_encoder_of_features.py"
    file.write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = EncoderConfig("own_encoder_of_features:Mean")
    before = describe_encoder(config)
    assert describe_encoder(config) == before
    file.write_text(code.replace("mean", "max"))
    assert describe_encoder(config) != before
    assert "code" not in describe_encoder(EncoderConfig("small_cnn"))


def test_progress_without_a_terminal_is_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(frozen_features.time, "monotonic", lambda: now[0])
    caplog.set_level("INFO")
    with frozen_features.Progress("encoded", "example") as progress:
        for done in range(51, 101):  # An earlier process has encoded 50 of the 100.
            now[0] += 30.0 if done == 51 else 0.5  # The first waits for the compilation.
            progress(done, 100)
    assert caplog.messages == [
        "encoded 51 of 100 examples",
        "encoded 71 of 100 examples, 2/s, 14 s left",
        "encoded 91 of 100 examples, 2/s, 4 s left",
        "encoded 100 of 100 examples, 2/s",
    ]
