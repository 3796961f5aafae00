"""Spectra against a direct transform and SciPy, mel bands, patches around frames."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import scipy.signal  # type: ignore[import-untyped]

from data.audio.log_mel import (
    LOG_OFFSET,
    SOUND,
    SPEECH,
    TELEPHONE,
    LogMel,
    log_mel,
    log_mel_patches,
    mel_filters,
    spectrogram,
)
from tests.data.audio.tones import RATE, tone


def test_a_spectrogram_is_the_direct_transform() -> None:
    samples = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    actual = spectrogram(samples, 1000, window=0.025, hop=0.01)
    assert actual.shape == (32 // 2 + 1, 101)
    assert actual.dtype == np.float32
    n = np.arange(25)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 25)
    padded = np.concatenate([np.zeros(12), samples, np.zeros(13)])
    k = np.arange(17)[:, None]
    for column in (0, 1, 50, 100):
        piece = window * padded[10 * column : 10 * column + 25]
        direct = np.abs((piece * np.exp(-2j * np.pi * k * n / 32)).sum(1))
        np.testing.assert_allclose(actual[:, column], direct, atol=1e-4)
        # Parseval: the energy of all bins, the inner ones counted twice, equals that in time.
        energy = 2 * (actual[:, column] ** 2).sum() - (actual[[0, -1], column] ** 2).sum()
        np.testing.assert_allclose(energy, 32 * (piece**2).sum(), rtol=1e-4)


def test_a_spectrogram_is_scipys() -> None:
    samples = np.random.default_rng(1).normal(size=RATE // 2).astype(np.float32)
    transform = scipy.signal.ShortTimeFFT(
        scipy.signal.get_window("hann", 400), hop=160, fs=RATE, mfft=512
    )
    expected = np.abs(transform.stft(samples))
    actual = spectrogram(samples, RATE)
    columns = np.arange(2, 48)  # without the ends, where SciPy has more columns
    np.testing.assert_allclose(
        actual[:, columns], expected[:, columns - transform.p_min], atol=1e-3
    )


def test_filters_are_triangles_on_htks_scale() -> None:
    filters = mel_filters(RATE, 257)
    assert filters.shape == (64, 257)
    lowest, highest = (
        1127 * np.log1p(f / 700) for f in (125, 7500)
    )  # HTK's scale in natural logarithms
    step = (highest - lowest) / 65
    for band in (0, 10, 63):
        feet = 700 * np.expm1((lowest + step * np.arange(band, band + 3)) / 1127)
        for k in range(257):
            f = k * RATE / 512
            expected = 0.0
            if feet[0] < f <= feet[1]:
                expected = (f - feet[0]) / (feet[1] - feet[0])
            elif feet[1] < f < feet[2]:
                expected = (feet[2] - f) / (feet[2] - feet[1])
            assert filters[band, k] == pytest.approx(expected, abs=2e-4)


def test_a_tone_is_loudest_in_its_band_and_silence_is_the_offset() -> None:
    for frequency in (300, 1000, 4000):
        bands = log_mel(tone(frequency), RATE)
        assert bands.shape == (64, 101)
        assert bands.dtype == np.float32
        mel = 2595 * np.log10(1 + np.array([125, 7500, frequency]) / 700)
        loudest = (mel[2] - mel[0]) / (mel[1] - mel[0]) * 65 - 1
        assert abs(int(bands[:, 50].argmax()) - loudest) <= 1
    silence = log_mel(np.zeros(RATE, np.float32), RATE, num_mels=8)
    np.testing.assert_allclose(silence, np.log(LOG_OFFSET), rtol=1e-6)
    # The formula of the docstring.
    samples = tone(700)
    expected = np.log(mel_filters(RATE, 257) @ spectrogram(samples, RATE) + 0.01)
    np.testing.assert_allclose(log_mel(samples, RATE), expected, atol=1e-6)


def test_patches_lie_around_their_frames() -> None:
    samples = np.zeros(RATE, np.float32)
    samples[int(0.4 * RATE) : int(0.42 * RATE)] = tone(1000, 0.02)
    bands = log_mel(samples, RATE)
    times = np.arange(10) / 10
    patches = log_mel_patches(bands, times, 10)
    assert patches.shape == (10, 64, 10, 1)
    assert patches.dtype == np.float32
    assert patches.max((1, 2, 3)).argmax() == 4
    assert 5 <= patches[4, :, :, 0].max(0).argmax() <= 7
    for t in (3, 7):
        np.testing.assert_array_equal(patches[t, :, :, 0], bands[:, 10 * t - 5 : 10 * t + 5])
    # Half of the first patch lies before the beginning, all of the last beyond the end.
    np.testing.assert_allclose(patches[0, :, :5], np.log(LOG_OFFSET), rtol=1e-6)
    np.testing.assert_allclose(log_mel_patches(bands, [9.0], 4), np.log(LOG_OFFSET), rtol=1e-6)
    assert log_mel_patches(bands, [0.5], 3, hop=0.02)[0, :, 1, 0].tolist() == bands[:, 25].tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_mel(np.zeros((2, 9), np.float32), RATE), r"samples: expected \(S,\) float"),
        (lambda: log_mel(np.zeros(9, np.int16), RATE), r"samples: .* shape \(9,\) int16"),
        (lambda: log_mel(tone(9), RATE, window=0), "window, hop: expected at least one sample"),
        (lambda: log_mel(tone(9), RATE, hop=1e-6), "window, hop: expected at least one sample"),
        (lambda: log_mel(tone(9), RATE, high=9000), "low, high: expected 0 <= low < high <= 8000"),
        (lambda: log_mel(tone(9), RATE, low=7500), "low, high: expected 0 <= low < high <= 8000"),
        (lambda: log_mel(tone(9), RATE, num_mels=0), "num_mels: expected at least 1, received 0"),
        (lambda: log_mel(tone(9), RATE, num_mels=200), "num_mels: expected bands that hold a bin"),
        (
            lambda: log_mel_patches(np.zeros(4), [0.0], 2),
            r"bands: expected \(M,F\) float, received",
        ),
        (
            lambda: log_mel_patches(np.zeros((4, 4), int), [0.0], 2),
            r"bands: expected \(M,F\) float",
        ),
        (
            lambda: log_mel_patches(np.zeros((4, 4)), np.zeros((1, 1)), 2),
            r"times: expected \(T,\) finite",
        ),
        (lambda: log_mel_patches(np.zeros((4, 4)), [np.nan], 2), r"times: expected \(T,\) finite"),
        (lambda: log_mel_patches(np.zeros((4, 4)), [0.0], 0), "width: expected at least 1 column"),
    ],
)
def test_wrong_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_parameters_of_a_kind_of_sound_are_those_of_the_function() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 5_000).astype(np.float32)
    for kind in (SOUND, dataclasses.replace(TELEPHONE, normalisation="none"), LogMel()):
        expected = log_mel(
            samples,
            kind.sample_rate,
            window=kind.window,
            hop=kind.hop,
            num_mels=kind.num_mels,
            low=kind.low,
            high=kind.high,
        )
        np.testing.assert_array_equal(kind(samples), expected.T)
        for count in (0, 1, 79, 80, 81, 319, 320, 5_000):
            assert len(kind(samples[:count])) == kind.num_frames(count)


def test_normalisation_is_that_of_the_formula() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32)
    plain = dataclasses.replace(SPEECH, normalisation="none")(samples).astype(np.float64)
    band = SPEECH(samples)
    np.testing.assert_allclose(band, (plain - plain.mean(0)) / plain.std(0), atol=1e-4)
    whole = dataclasses.replace(SPEECH, normalisation="all")(samples)
    np.testing.assert_allclose(whole, (plain - plain.mean()) / plain.std(), atol=1e-4)
    # Silence and a recording of one frame have no deviation.
    for samples in (np.zeros(800, np.float32), np.ones(1, np.float32)):
        assert not SPEECH(samples).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalisation": "mean"}, "normalisation: expected one of none, all, band"),
        ({"hop": 0.0}, "sample_rate, hop: expected frames of at least one sample"),
        ({"high": 9_000.0}, "low, high: expected 0 <= low < high <= 8000"),
        ({"num_mels": 300}, "num_mels: expected bands that hold a bin"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogMel(**options)
