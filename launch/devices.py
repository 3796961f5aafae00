"""Devices that a plan can be made for: peaks and memory from their makers' data sheets."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
      platform: JAX's name of it.
      peak: operations a second of dense products, by the dtype of their operands; float32 is what
        JAX uses for it by default: TF32 on GPUs, bfloat16 passes on TPUs.
      memory: bytes.
    """

    platform: str
    peak: dict[str, float]
    memory: float


GIB = 2.0**30


def _gpu(bfloat16: float, tf32: float, gigabytes: float) -> Device:
    return Device("cuda", {"bfloat16": bfloat16 * 1e12, "float32": tf32 * 1e12}, gigabytes * 1e9)


def _tpu(bfloat16: float, gibibytes: float) -> Device:
    peak = dict.fromkeys(("bfloat16", "float32"), bfloat16 * 1e12)
    return Device("tpu", peak, gibibytes * GIB)


DEVICES = {
    "a100": _gpu(312, 156, 80),
    "h100": _gpu(989, 495, 80),
    "h200": _gpu(989, 495, 141),
    "tpu_v4": _tpu(275, 32),
    "tpu_v5e": _tpu(197, 16),
    "tpu_v5p": _tpu(459, 95),
    "tpu_v6e": _tpu(918, 32),
}
"""A100 and H100 with SXM and 80 GB."""
CPU = "cpu"
"""This machine, whose speed is measured."""


def find_device(name: str) -> Device:
    """The device of a name.

    Raises:
      ValueError: an unknown one, with the list.
    """
    if name not in DEVICES:
        names = ", ".join([*DEVICES, CPU])
        raise ValueError(f"device: expected one of {names}, received {name!r}")
    return DEVICES[name]
