"""Wav files of every kind for tests of sound, written byte by byte."""

import struct
from pathlib import Path

import numpy as np

PCM, FLOAT = 1, 3


def write_wav(
    path: Path, samples: np.ndarray, rate: int = 8_000, *, bits: int = 16, format: int = PCM
) -> str:
    """Writes (S,) or (S,C) float samples in [-1,1] as a RIFF file; returns its path."""
    samples = np.atleast_2d(np.asarray(samples, np.float64).T).T
    if format == FLOAT:
        content = samples.astype("<f4").tobytes()
        bits = 32
    elif bits == 8:  # Unsigned, with silence at 128.
        content = np.round(samples * 127 + 128).astype(np.uint8).tobytes()
    else:
        wide = np.round(samples * (2 ** (bits - 1) - 1)).astype("<i4")
        content = wide.view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()
    channels = samples.shape[1]
    block = channels * bits // 8
    header = struct.pack("<HHIIHH", format, channels, rate, rate * block, block, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(header)) + header
    body += b"data" + struct.pack("<I", len(content)) + content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return str(path)
