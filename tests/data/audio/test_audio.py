"""Sound: files, spectra against a direct transform and SciPy, mel bands, patches."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import scipy.signal  # type: ignore[import-untyped]

from data.audio.decoding import AudioError, read_audio
from data.audio.log_mel import LOG_OFFSET, log_mel, log_mel_patches, mel_filters, spectrogram
from data.video.decoding import VideoError
from tests.data.video_files import write_video

RATE = 16_000


def tone(frequency: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )


def write_sound(
    path: Path,
    samples: np.ndarray,
    codec: str,
    *,
    rate: int = 44_100,
    num_pictures: int = 0,
    first_picture: int = 0,
    first_sample: int = 0,
) -> Path:
    """Writes (C,S) float32 samples, and pictures at 25 frames/s where there shall be any."""
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    format = "s16" if codec == "pcm_s16le" else "fltp"
    if format == "s16":
        samples = np.round(samples.T.reshape(1, -1) * 32767).astype(np.int16)
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("mpeg4", rate=25) if num_pictures else None
        audio: Any = container.add_stream(codec, rate=rate)
        audio.layout = layout
        if video:
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
            for number in range(num_pictures):
                picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
                picture.pts = first_picture + number
                container.mux(video.encode(picture))
            container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(samples, format=format, layout=layout)
        frame.sample_rate, frame.pts = rate, first_sample
        container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return path


def test_a_wav_file_is_the_mean_of_its_channels(tmp_path: Path) -> None:
    left, right = tone(440, rate=44_100), 0.5 * tone(1000, rate=44_100)
    path = write_sound(tmp_path / "a.wav", np.stack([left, right]), "pcm_s16le")
    exact = read_audio(path, 44_100)
    assert exact.dtype == np.float32
    np.testing.assert_allclose(exact, (left + right) / 2, atol=4e-5)  # A step of 16 bits.
    resampled = read_audio(path)
    expected = (tone(440) + 0.5 * tone(1000)) / 2
    assert resampled.shape == expected.shape
    np.testing.assert_allclose(resampled[100:-100], expected[100:-100], atol=1e-4)


def test_the_sound_of_an_mp4_file_begins_with_its_pictures(tmp_path: Path) -> None:
    # Low noise, whose place cannot be mistaken.
    noise = np.random.default_rng(0).normal(size=44_100)
    low = scipy.signal.sosfilt(scipy.signal.butter(6, 3000, fs=44_100, output="sos"), noise)
    sound = (0.1 * low / low.std()).astype(np.float32)
    expected = scipy.signal.resample_poly(sound, 160, 441)
    part = slice(5000, 11_000)
    cases = {"together": (0, 0), "sound first": (5, 0), "pictures first": (0, 22_050)}
    for name, (picture, sample) in cases.items():
        path = tmp_path / f"{name}.mp4"
        write_sound(
            path,
            sound[None],
            "aac",
            num_pictures=20,
            first_picture=picture,
            first_sample=sample,
        )
        samples = read_audio(path)
        assert samples.dtype == np.float32
        assert np.abs(samples).max() <= 1
        late = round((sample / 44_100 - picture / 25) * RATE)
        places = range(-40, 41)
        likeness = [
            np.corrcoef(samples[part.start + late + d : part.stop + late + d], expected[part])[0, 1]
            for d in places
        ]
        # The container says when a stream begins in whole milliseconds.
        assert abs(places[int(np.argmax(likeness))]) <= RATE / 1000, name
        assert max(likeness) > 0.9, name


def test_files_without_sound_are_refused(tmp_path: Path) -> None:
    silent = write_video(tmp_path / "silent.mp4", 3)
    with pytest.raises(ValueError, match=r"silent\.mp4: no audio stream"):
        read_audio(silent)
    with pytest.raises(VideoError):  # As what reads videos expects of a bad file.
        read_audio(silent)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(AudioError, match=r"text\.wav: its sound is not readable \("):
        read_audio(tmp_path / "text.wav")
    with pytest.raises(FileNotFoundError, match="expected a file with sound"):
        read_audio(tmp_path / "none.wav")
    with pytest.raises(ValueError, match="sample_rate: expected at least 1 Hz, received 0"):
        read_audio(silent, 0)


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
        # Parseval: the energy of all bins, of which those inside count twice, is that in time.
        energy = 2 * (actual[:, column] ** 2).sum() - (actual[[0, -1], column] ** 2).sum()
        np.testing.assert_allclose(energy, 32 * (piece**2).sum(), rtol=1e-4)


def test_a_spectrogram_is_scipys() -> None:
    samples = np.random.default_rng(1).normal(size=RATE // 2).astype(np.float32)
    transform = scipy.signal.ShortTimeFFT(
        scipy.signal.get_window("hann", 400), hop=160, fs=RATE, mfft=512
    )
    expected = np.abs(transform.stft(samples))
    actual = spectrogram(samples, RATE)
    columns = np.arange(2, 48)  # Away from the ends, where SciPy has columns more.
    np.testing.assert_allclose(
        actual[:, columns], expected[:, columns - transform.p_min], atol=1e-3
    )


def test_filters_are_triangles_on_htks_scale() -> None:
    filters = mel_filters(RATE, 257)
    assert filters.shape == (64, 257)
    lowest, highest = (1127 * np.log1p(f / 700) for f in (125, 7500))  # The scale, natural log.
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
        place = (mel[2] - mel[0]) / (mel[1] - mel[0]) * 65 - 1
        assert abs(int(bands[:, 50].argmax()) - place) <= 1
    silence = log_mel(np.zeros(RATE, np.float32), RATE, num_mels=8)
    np.testing.assert_allclose(silence, np.log(LOG_OFFSET), rtol=1e-6)
    # As the formula says.
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
    # Half of the first patch lies before the beginning, and all of the last behind the end.
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
