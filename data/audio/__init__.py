"""Sound: decoding, log-mel spectrograms, recordings as examples, and their augmentation.

``sources``, ``digit_strings``, ``dial_tones`` and ``generated_sounds`` are not imported here: with
``data.loader`` they need grain, which imports JAX.
"""

from data.audio.decoding import AudioError, Sound, read_audio, read_sound
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

__all__ = [
    "LOG_OFFSET",
    "SOUND",
    "SPEECH",
    "TELEPHONE",
    "AudioError",
    "LogMel",
    "Sound",
    "log_mel",
    "log_mel_patches",
    "mel_filters",
    "read_audio",
    "read_sound",
    "spectrogram",
]
