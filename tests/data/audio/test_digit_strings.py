"""Strings of digits: splits, speakers, silence, level, noise, determinism."""

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.audio.decoding import read_audio
from data.audio.digit_strings import DigitStrings, draw_noise, split_digits
from data.datasets.audio_folder import read_sounds
from data.datasets.labelled_files import LabelledFiles
from tests.data.audio.tones import tone
from tests.data.audio.wavs import write_wav

DIGITS = Path(__file__).parents[3].parent / "shared" / "data" / "spoken_digits" / "train.csv"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> LabelledFiles:
    """Three digits of two speakers, ten recordings each, all different tones."""
    root = tmp_path_factory.mktemp("digits")
    rows = ["file,digit,speaker"]
    for number in range(60):
        digit, who, take = number % 3, ("ann", "bob")[number // 3 % 2], number // 6
        name = f"{digit}_{who}_{take}.wav"
        write_wav(root / name, tone(200 + 50 * number, 0.1 + number / 1000, 8_000) / 2)
        rows.append(f"{name},{digit},{who}")
    (root / "digits.csv").write_text("\n".join(rows))
    return split_digits(
        read_sounds(list_file=root / "digits.csv"), validation_share=0.2, test_share=0.2
    )


def test_all_speakers_and_digits_are_in_all_splits(files: LabelledFiles) -> None:
    cells = Counter(zip(files.splits, files.labels, files.groups, strict=True))
    assert cells == {
        (split, digit, who): count
        for split, count in (("train", 6), ("validation", 2), ("test", 2))
        for digit in range(3)
        for who in ("ann", "bob")
    }


def test_a_speaker_is_held_out(files: LabelledFiles) -> None:
    split = split_digits(files, held_out="bob", validation_share=0.2)
    cells = Counter(zip(split.splits, split.groups, strict=True))
    assert cells == {("train", "ann"): 24, ("validation", "ann"): 6, ("test", "bob"): 30}
    with pytest.raises(ValueError, match="held_out: expected a speaker of ann, bob, received 'x'"):
        split_digits(files, held_out="x")


def test_a_string_is_one_speakers_recordings_of_its_split(files: LabelledFiles) -> None:
    seen = {}
    for split in ("train", "validation", "test"):
        strings = DigitStrings(files, split, 200)
        plans = [strings.plan(index) for index in range(200)]
        for index, plan in enumerate(plans):
            assert 3 <= len(plan.recordings) <= 7
            assert len({files.groups[k] for k in plan.recordings}) == 1
            assert {files.splits[k] for k in plan.recordings} == {split}
            digits = [files.class_names[files.labels[k]] for k in plan.recordings]
            assert strings.text(index) == " ".join(digits)
        used = {int(k) for plan in plans for k in plan.recordings}
        assert used == set(files.indices(split))
        assert {len(plan.recordings) for plan in plans} == {3, 4, 5, 6, 7}
        seen[split] = used
    assert not seen["train"] & seen["test"]


def test_the_samples_are_recordings_gaps_and_noise(files: LabelledFiles) -> None:
    strings = DigitStrings(files, "train", 20, snrs=(60.0, 60.0), levels=(-6.0, 6.0))
    for index in range(20):
        plan, samples = strings.plan(index), strings.waveform(index)
        place, gain = int(plan.gaps[0]), 10 ** (plan.level / 20)
        for recording, gap in zip(plan.recordings, plan.gaps[1:], strict=True):
            expected = gain * read_audio(files.paths[recording], 8_000)
            part = samples[place : place + len(expected)]
            np.testing.assert_allclose(part, expected.clip(-1, 1), atol=0.01)
            silence = samples[place + len(expected) : place + len(expected) + gap]
            assert len(silence) == gap
            assert np.abs(silence).max(initial=0) < 0.01
            place += len(expected) + gap
        assert place == len(samples)


def test_the_noise_has_the_power_that_is_drawn(files: LabelledFiles) -> None:
    loud = DigitStrings(files, "train", 8, snrs=(0.0, 0.0), levels=(-12.0, -12.0))
    quiet = DigitStrings(files, "train", 8, snrs=(90.0, 90.0), levels=(-12.0, -12.0))
    for index in range(8):
        spoken = quiet.waveform(index).astype(float)
        noise = loud.waveform(index) - spoken
        plan = loud.plan(index)
        power = np.square(spoken).sum() / (len(spoken) - plan.gaps.sum())
        assert np.square(noise).mean() / power == pytest.approx(1, rel=0.35)


def test_noise_is_white_or_pink() -> None:
    rng = np.random.default_rng(0)
    for pink, expected in ((False, 0.0), (True, -1.0)):
        found = np.stack([draw_noise(4096, rng, pink=pink) for _ in range(100)])
        assert found.dtype == np.float32
        assert np.square(found).mean() == pytest.approx(1, rel=0.05)
        spectrum = np.square(np.abs(np.fft.rfft(found))).mean(0)[1:]
        slope = np.polyfit(np.log(np.arange(1, len(spectrum) + 1)), np.log(spectrum), 1)[0]
        assert slope == pytest.approx(expected, abs=0.05)
    assert len(draw_noise(1, rng, pink=True)) == 1


def test_examples_are_a_function_of_seed_and_index(files: LabelledFiles) -> None:
    strings = DigitStrings(files, "train", 10)
    lengths, tokens = strings.lengths(), strings.token_lengths()
    again = pickle.loads(pickle.dumps(strings))
    assert repr(again) == repr(strings)
    for index in (9, 0, 4):
        example = strings[index]
        assert example["spectrogram"].shape == (lengths[index], 40)
        assert example["lengths"] == lengths[index]
        assert example["token_lengths"] == len(example["tokens"]) == tokens[index]
        assert strings.alphabet.decode(example["tokens"]) == strings.text(index)
        np.testing.assert_array_equal(again[index]["spectrogram"], example["spectrogram"])
        more = DigitStrings(files, "train", 10_000)[index]
        np.testing.assert_array_equal(more["spectrogram"], example["spectrogram"])
    others = DigitStrings(files, "train", 10, seed=1)
    assert [strings.text(i) for i in range(10)] != [others.text(i) for i in range(10)]
    with pytest.raises(IndexError, match=r"index: expected 0\.\.9, received 10"):
        strings[10]


def test_unusable_recordings_are_left_out(files: LabelledFiles, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("no sound")
    position = files.indices("train")[0]
    paths = [*files.paths]
    paths[position] = str(tmp_path / "bad.wav")
    strings = DigitStrings(replace(files, paths=tuple(paths)), "train", 200)
    assert all(position not in strings.plan(index).recordings for index in range(200))


def test_bad_arguments_are_refused(files: LabelledFiles) -> None:
    for options, message in (
        ({"min_digits": 0}, "min_digits, max_digits: expected 1 <= min_digits"),
        ({"min_digits": 5, "max_digits": 4}, "min_digits, max_digits"),
        ({"num_examples": 0}, "num_examples, seed, max_gap: expected at least 1, 0 and 0"),
        ({"snrs": (3.0, 2.0)}, r"snrs: expected \(least, greatest\) dB"),
        ({"split": "dev"}, "split: expected one of train, validation, test, received 'dev'"),
        ({"files": files.take(files.indices("test"))}, "split: expected one with recordings"),
    ):
        with pytest.raises(ValueError, match=message):
            DigitStrings(**{"files": files, "split": "train", "num_examples": 1, **options})


@pytest.mark.slow
@pytest.mark.skipif(not DIGITS.is_file(), reason=f"{DIGITS} is not there")
def test_strings_of_the_shared_recordings() -> None:
    split = split_digits(read_sounds(list_file=DIGITS), held_out="theo")
    strings = DigitStrings(split, "test", 50)
    lengths = strings.lengths()
    assert len(strings.alphabet) == 11
    for index in range(0, 50, 7):
        example = strings[index]
        assert np.isfinite(example["spectrogram"]).all()
        assert len(example["spectrogram"]) == lengths[index]
        # Room for CTC at a stride of 4.
        assert lengths[index] / 4 > example["token_lengths"]
