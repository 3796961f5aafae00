"""Decoding of sound: channels, resampling, the time of the first sample, unreadable files."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import scipy.signal  # type: ignore[import-untyped]
from PIL import Image

from data.audio import decoding
from data.audio.decoding import AudioError, read_audio, read_sound
from data.video.decoding import VideoError
from flaxnets.inference.runtime import sound as runtime_decoding
from tests.data.audio.tones import RATE, tone
from tests.data.audio.wavs import FLOAT, PCM, write_wav
from tests.data.video_files import write_video


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
    """Writes (C,S) float32 samples, with ``num_pictures`` pictures at 25 frames/s."""
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
    np.testing.assert_allclose(exact, (left + right) / 2, atol=4e-5)  # one step of 16 bits
    resampled = read_audio(path)
    expected = (tone(440) + 0.5 * tone(1000)) / 2
    assert resampled.shape == expected.shape
    np.testing.assert_allclose(resampled[100:-100], expected[100:-100], atol=1e-4)


def test_the_sound_of_an_mp4_file_begins_with_its_pictures(tmp_path: Path) -> None:
    # Low-pass noise has a single sharp peak of its autocorrelation.
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
        shifts = range(-40, 41)
        correlation = [
            np.corrcoef(samples[part.start + late + d : part.stop + late + d], expected[part])[0, 1]
            for d in shifts
        ]
        # The container stores the start of a stream in whole milliseconds.
        assert abs(shifts[int(np.argmax(correlation))]) <= RATE / 1000, name
        assert max(correlation) > 0.9, name


def test_files_without_sound_are_refused(tmp_path: Path) -> None:
    silent = write_video(tmp_path / "silent.mp4", 3)
    with pytest.raises(ValueError, match=r"silent\.mp4: no audio stream"):
        read_audio(silent)
    with pytest.raises(VideoError):  # callers that read videos catch this one
        read_audio(silent)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(AudioError, match=r"text\.wav: its sound is not readable \("):
        read_audio(tmp_path / "text.wav")
    with pytest.raises(FileNotFoundError, match="a file with sound, which does not exist"):
        read_audio(tmp_path / "none.wav")
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    with pytest.raises(AudioError, match="its container is none of those with sound"):
        read_audio(tmp_path / "image.png")
    with pytest.raises(ValueError, match="sample_rate: expected at least 1 Hz, received 0"):
        read_audio(silent, 0)


@pytest.mark.parametrize("name", ["12:30.wav", "pipe:0", "http:a.wav", "concat:a.wav|b.wav"])
def test_names_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    written = write_sound(tmp_path / "a.wav", tone(440)[None], "pcm_s16le", rate=RATE)
    expected = read_audio(written)
    written.rename(tmp_path / name)
    np.testing.assert_array_equal(read_audio(tmp_path / name), expected)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(read_audio(name), expected)


def test_a_script_of_other_files_is_not_followed(tmp_path: Path) -> None:
    write_sound(tmp_path / "secret.wav", tone(440)[None], "pcm_s16le", rate=RATE)
    script = tmp_path / "concat.wav"
    script.write_text("ffconcat version 1.0\nfile 'secret.wav'\n")
    with pytest.raises(AudioError, match=r"concat\.wav: its container is none of those with sound"):
        read_audio(script)


def test_sound_without_a_decoder_is_named(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", tone(440)[None], "pcm_s16le", rate=RATE)
    content = bytearray(path.read_bytes())
    format_tag = content.find(b"fmt ") + 8
    content[format_tag : format_tag + 2] = b"\x99\x99"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"a\.wav: there is no decoder for the codec of its sound"):
        read_audio(path)


def test_a_cover_is_no_picture_at_whose_time_sound_begins(tmp_path: Path) -> None:
    plain = write_sound(tmp_path / "a.mp4", tone(440)[None], "aac", rate=RATE)
    covered = tmp_path / "covered.mp4"
    with av.open(str(plain)) as reads, av.open(str(covered), "w") as writes:
        sound = reads.streams.audio[0]
        copy = writes.add_stream_from_template(sound)
        cover: Any = writes.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        image = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        packets: list[Any] = [*cover.encode(image), *cover.encode()]
        for packet in reads.demux(sound):
            if packet.size:
                packet.stream = copy
                packets.append(packet)
        for packet in packets:
            writes.mux(packet)
    np.testing.assert_array_equal(read_audio(covered), read_audio(plain))


@pytest.mark.parametrize(
    ("bits", "format", "error"),
    [(8, PCM, 1 / 127), (16, PCM, 2**-15), (24, PCM, 2**-22), (32, PCM, 1e-6), (32, FLOAT, 1e-7)],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_wavs_of_every_kind(
    tmp_path: Path, bits: int, format: int, error: float, channels: int
) -> None:
    expected = tone(440, 0.1, 8_000)
    both = np.stack([expected, expected / 2], axis=1)
    written = both if channels == 2 else expected
    path = write_wav(tmp_path / "a.WAV", written, bits=bits, format=format)
    sound = read_sound(path, 8_000)
    assert sound.file_rate == 8_000
    np.testing.assert_allclose(sound.samples, expected * (0.75 if channels == 2 else 1), atol=error)


def test_float_samples_beyond_one_are_clipped_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = 2 * tone(440, 0.1, 8_000) / np.abs(tone(440, 0.1, 8_000)).max()
    loud = write_wav(tmp_path / "loud.wav", samples, format=FLOAT)
    runtime_decoding._tell_clipping.cache_clear()
    decoding._tell_clipping.cache_clear()
    for _ in range(2):
        sound = read_sound(loud, 8_000)
        np.testing.assert_allclose(sound.samples, np.clip(samples, -1, 1), atol=1e-6)
        np.testing.assert_array_equal(runtime_decoding.read_sound(loud, 8_000), sound.samples)
    assert sound.peak == pytest.approx(2, abs=1e-6)
    told = [record.name for record in caplog.records if "beyond ±1 are clipped" in record.message]
    assert sorted(told) == [decoding.__name__, runtime_decoding.__name__]
    assert read_sound(write_wav(tmp_path / "a.wav", samples / 2), 8_000).peak == 0


@pytest.mark.parametrize("codec", ["flac", "libmp3lame", "libopus"])
def test_compressed_sound_is_that_of_the_wav(tmp_path: Path, codec: str) -> None:
    suffix = {"flac": "flac", "libmp3lame": "mp3"}.get(codec, "ogg")
    rate = 48_000 if codec == "libopus" else 44_100
    samples = tone(440, rate=rate)
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            size = stream.codec_context.frame_size or piece.samples
            whole = piece.to_ndarray()
            for start in range(0, piece.samples, size):
                part = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(whole[:, start : start + size]),
                    format=stream.format.name,
                    layout="mono",
                )
                part.sample_rate, part.pts = rate, start
                container.mux(stream.encode(part))
        container.mux(stream.encode())
    sound = read_sound(path, RATE)
    assert sound.file_rate == rate
    # Encoders of speech and music delay and pad; FFmpeg cuts what the container declares.
    assert len(sound.samples) == pytest.approx(RATE, abs=0.05 * RATE)
    middle = sound.samples[4000:12_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() * RATE / len(middle) == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_broken_wavs_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = tone(440, 0.1)
    broken[7] = np.nan
    path = write_wav(tmp_path / "nan.wav", broken, format=FLOAT)
    with pytest.raises(AudioError, match=r"nan\.wav: its samples are not finite"):
        read_audio(path)
    path = write_wav(tmp_path / "header.wav", np.zeros(0))
    with pytest.raises(AudioError, match=r"header\.wav: "):
        read_audio(path)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match=r"empty\.wav: its sound is not readable"):
        read_audio(tmp_path / "empty.wav")
    whole = Path(write_wav(tmp_path / "cut.wav", tone(440))).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:1044])
    assert not caplog.records
    assert len(read_audio(tmp_path / "cut.wav", 8_000)) == 500
    assert "cut.wav: cut off: 1,044 of 32,044 bytes" in caplog.text
    (tmp_path / "cut.wav").write_bytes(whole[:30])
    with pytest.raises(AudioError, match=r"cut\.wav: "):
        read_audio(tmp_path / "cut.wav")
