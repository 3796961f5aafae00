"""Sound: decoding and log-mel spectrograms."""

from data.audio.decoding import AudioError, read_audio
from data.audio.log_mel import (
    LOG_OFFSET,
    log_mel,
    log_mel_patches,
    mel_filters,
    spectrogram,
)

__all__ = [
    "LOG_OFFSET",
    "AudioError",
    "log_mel",
    "log_mel_patches",
    "mel_filters",
    "read_audio",
    "spectrogram",
]
