"""Streams of sound: chunk by chunk equal to the whole recording, in constant memory."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from flaxnets.encoders.config import EncoderConfig
from flaxnets.inference.column_functions import ColumnStream, LinenReader
from flaxnets.inference.runtime.media import MediaError
from flaxnets.inference.runtime.sound_streaming import SoundStream
from flaxnets.models.deep_speech2 import (
    ConvolutionsConfig,
    DeepSpeech2Config,
    make_deep_speech2,
)
from tests.flaxnets.inference import sounds


def stream_all(stream: SoundStream, samples: np.ndarray, block: int) -> list[Any]:
    results = []
    for start in range(0, len(samples), block):
        results += stream(samples[start : start + block])
    return results + stream.finish()


def probabilities_of(model: Any, samples: np.ndarray) -> np.ndarray:
    """Probabilities of all steps by one call of the network on the whole recording."""
    item, functions = model.prepare(samples, rate=sounds.RATE), model.functions
    logits = functions.module.apply(
        functions.variables, item.inputs[None], np.array([item.width]), train=False
    )
    exp = np.exp(np.asarray(logits[0], np.float64))
    return exp / exp.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def speech() -> Any:
    return sounds.reader()[0]


class Recorded(LinenReader):
    """Functions that keep what their steps returned."""

    def step(self, *arguments: Any) -> Any:
        result = super().step(*arguments)
        self.seen: list[np.ndarray] = [*getattr(self, "seen", []), result[1]]
        return result


@pytest.mark.parametrize(("chunk", "block"), [(0.01, 333), (0.16, 80), (0.4, 50_000)])
def test_chunks_give_what_the_whole_recording_gives(speech: Any, chunk: float, block: int) -> None:
    samples = sounds.sound(1.23)
    functions = Recorded(
        speech.functions.module, speech.functions.variables, speech.functions.search, sounds.MELS
    )
    model = dataclasses.replace(speech, functions=functions)
    results = stream_all(model.stream(chunk), samples, block)
    np.testing.assert_allclose(
        np.concatenate(functions.seen), probabilities_of(speech, samples), atol=1e-5
    )
    whole = speech.read(samples, rate=sounds.RATE, beam_width=0)
    assert len(whole.text) >= 3
    assert "".join(result.text for result in results) == whole.text
    characters = [character for result in results for character in result.characters]
    for own, theirs in zip(characters, whole.characters, strict=True):
        assert (own.character, own.start, own.end) == (
            theirs.character,
            theirs.start,
            theirs.end,
        )
        assert own.confidence == pytest.approx(theirs.confidence, abs=1e-5)
    times = [result.time for result in results]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(1.23)


def test_deep_speech_2_in_one_direction() -> None:
    convolutions = ConvolutionsConfig((4, 4), (5, 3), (5, 3), (2, 2), (2, 2))
    config = DeepSpeech2Config(convolutions, "gru", features=6, num_layers=2, bidirectional=False)
    model = sounds.reader(make_deep_speech2(config, 4))[0]
    samples = sounds.sound(1.0)
    functions: Any = model.functions
    recorded = Recorded(functions.module, functions.variables, functions.search, sounds.MELS)
    stream_all(dataclasses.replace(model, functions=recorded).stream(0.1), samples, 1_000)
    np.testing.assert_allclose(
        np.concatenate(recorded.seen), probabilities_of(model, samples), atol=1e-5
    )
    for change, message in (
        ({"bidirectional": True}, r"bidirectional=false of Deep Speech 2"),
        ({"lookahead": 2}, r"--config\.model\.lookahead=0"),
    ):
        refused = dataclasses.replace(config, **change)
        with pytest.raises(ValueError, match=message):
            sounds.reader(make_deep_speech2(refused, 4))[0].stream()


@pytest.mark.parametrize("length", [1, 257])
def test_recordings_shorter_than_a_chunk(speech: Any, length: int) -> None:
    samples = sounds.sound(length / sounds.RATE, seed=1)
    results = stream_all(speech.stream(0.16), samples, 50)
    expected = speech.read(samples, rate=sounds.RATE, beam_width=0).text
    assert "".join(result.text for result in results) == expected
    assert speech.stream().finish() == []


def test_silence_at_the_start_waits_for_sound(speech: Any) -> None:
    quiet, sound = np.zeros(4_000, np.float32), sounds.sound(0.5)
    stream = speech.stream(0.16)
    assert stream(quiet) == []
    results = [*stream(sound), *stream.finish()]
    whole = speech.read(np.concatenate([quiet, sound]), rate=sounds.RATE, beam_width=0)
    assert "".join(result.text for result in results) == whole.text
    stream = speech.stream(0.16)
    assert stream(quiet) == stream(quiet + 1e-5) == []
    with pytest.raises(MediaError, match="silence: none of its samples"):
        stream.finish()
    assert stream.finish() == []


def test_memory_does_not_grow(speech: Any) -> None:
    stream = speech.stream(0.16)
    held = []
    for second in range(6):
        stream(sounds.sound(1.0, second))
        held.append(len(stream._frames) + len(stream._spectrogram._samples))
    assert max(held[1:]) <= held[0] + sounds.RATE // 50


def test_the_receptive_field_is_that_of_the_layers() -> None:
    variables_of, shape = sounds.variables_of, np.zeros((1, 64, sounds.MELS), np.float32)

    def field(encoder: EncoderConfig) -> tuple[int, int] | None:
        module = sounds.network(4, encoder=encoder)
        stream = ColumnStream(module, variables_of(module, shape), sounds.MELS)
        return stream.receptive_field

    # 3x3 kernels at strides 1 and 2: one and two columns to either side, in whole steps of four.
    two = EncoderConfig("sound_cnn", features=(4, 6), strides=(4, 4), column_strides=(2, 2))
    assert field(two) == (4, 4)
    assert field(EncoderConfig("raw_columns")) == (0, 0)


def test_a_classifier_of_sounds_tells_its_classes_so_far() -> None:
    model, _ = sounds.classifier()
    samples = sounds.sound(0.5)  # Exactly one window.
    steps = stream_all(model.stream(chunk=0.08), samples, 700)
    assert [step.step for step in steps] == list(range(len(steps)))
    expected = model.predict(samples, rate=sounds.RATE).probabilities
    np.testing.assert_allclose(steps[-1].smoothed, expected, atol=1e-5)
    assert steps[0].labels == model.labels
    np.testing.assert_allclose([step.probabilities.sum() for step in steps], 1, atol=1e-5)


def test_what_is_not_causal_is_refused_with_what_to_train_instead() -> None:
    both = sounds.network(4, bidirectional=True)
    with pytest.raises(ValueError, match=r"layer is bidirectional; train one with --config\.mode"):
        sounds.reader(both)[0].stream()
    normalised = {**sounds.LOG_MEL, "normalisation": "band"}
    with pytest.raises(ValueError, match=r"normalised over .* --config\.data\.normalisation=none"):
        sounds.reader(preprocessing=normalised)[0].stream()
    with pytest.raises(ValueError, match=r"AttentionPooling pools .* --config\.model\.head\.pool"):
        sounds.classifier(pool="attention")[0].stream()
    with pytest.raises(ValueError, match="expected a model of sound, received one of transcript"):
        sounds.reader(preprocessing=sounds.LINE)[0].stream()


def test_wrong_samples_are_refused(speech: Any) -> None:
    with pytest.raises(ValueError, match="chunk: expected seconds above 0"):
        speech.stream(0)
    stream = speech.stream()
    with pytest.raises(ValueError, match=r"samples: expected \(n,\) float, received \(2, 3\)"):
        stream(np.zeros((2, 3), np.float32))
    stream(np.full(10, 0.1, np.float32))
    stream.finish()
    with pytest.raises(ValueError, match="expected none after the end"):
        stream(np.full(10, 0.1, np.float32))
