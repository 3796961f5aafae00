"""Cloud TPU slices: TPU generations, and the chips and machines of each topology.

Sources: https://cloud.google.com/tpu/docs/v5e, v5p and v6e (shapes, chips and hosts of slices),
https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus (names of the accelerators and
which machines a topology is made of), https://cloud.google.com/tpu/docs/runtimes (versions).
"""

import dataclasses
import math
import re

from flaxnets.configuration import nearest

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
CHIPS_PER_HOST = 4
"""Chips of each machine in a slice of several machines."""


@dataclasses.dataclass(frozen=True)
class TpuType:
    """A generation of TPUs.

    Attributes:
      gke_accelerator: label of GKE's nodes.
      prefix: first part of Cloud TPU's accelerator types, as in ``v5litepod-16``.
      units_per_chip: unit of the number in an accelerator type: chips (1), or cores, of which a
        chip has 2.
      runtime_version: TPU software version for JAX.
      three_dimensional: True for topologies ``AxBxC``, False for ``AxB``.
      max_chips: most chips of a slice.
    """

    gke_accelerator: str
    prefix: str
    units_per_chip: int
    runtime_version: str
    three_dimensional: bool
    max_chips: int


TYPES = {
    "v4": TpuType("tpu-v4-podslice", "v4", 2, "tpu-ubuntu2204-base", True, 4096),
    "v5e": TpuType("tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite", False, 256),
    "v5p": TpuType("tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5", True, 6144),
    "v6e": TpuType("tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e", False, 256),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice: chips on one interconnect, and the machines that hold them."""

    type: TpuType
    topology: str
    hosts: int
    chips_per_host: int


def find_slice(name: str, topology: str, hosts: int | None = None) -> Slice:
    """Returns the slice of a TPU type and topology.

    Args:
      name: ``v4``, ``v5e``, ``v5p`` or ``v6e``.
      topology: chips along each axis, as ``4x4`` or ``2x2x4``.
      hosts: required number of machines; None: the default of the topology. Only 2x4 leaves a
        choice: one machine of eight chips (the default) or two of four.

    Raises:
      ValueError: an unknown type, a topology that the type does not have, or another number of
        machines than the topology has.
    """
    if name not in TYPES:
        raise ValueError(f"tpu: unknown {name!r}{nearest(name, TYPES)}")
    tpu = TYPES[name]
    chips = math.prod(_sides(name, tpu, topology))
    choices = [chips // CHIPS_PER_HOST] if chips > CHIPS_PER_HOST else [1]
    if topology == "2x4":
        choices = [1, 2]
    if hosts is None:
        hosts = choices[0]
    if hosts not in choices:
        raise ValueError(
            f"processes: expected {' or '.join(map(str, choices))}, one for each machine of a "
            f"{name} slice of {topology} ({chips} chips), received {hosts}"
        )
    return Slice(tpu, topology, hosts, chips // hosts)


def _sides(name: str, tpu: TpuType, topology: str) -> list[int]:
    """Returns the chips along each axis; raises ValueError for a topology the type lacks."""
    if not tpu.three_dimensional:
        if topology in _FLAT:
            return [int(side) for side in topology.split("x")]
        raise ValueError(
            f"topology: expected one of {', '.join(_FLAT)} for {name}, received {topology!r}"
        )
    if re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", topology):
        sides = [int(side) for side in topology.split("x")]
        cubes = sides == sorted(sides) and all(side % 4 == 0 for side in sides)
        if (cubes or topology in _SMALL) and math.prod(sides) <= tpu.max_chips:
            return sides
    raise ValueError(
        f"topology: expected one of {', '.join(_SMALL)}, or AxBxC of multiples of 4 with A <= B "
        f"<= C and up to {tpu.max_chips} chips for {name}, received {topology!r}"
    )


def find_accelerator(value: str) -> tuple[TpuType, int]:
    """Returns the TPU type and the number of machines of a Cloud TPU accelerator type.

    Args:
      value: as ``v5litepod-16`` (chips) or ``v5p-32`` (cores).

    Raises:
      ValueError: an unknown type, or a number that the type does not have.
    """
    prefix, _, number = value.rpartition("-")
    types = {tpu.prefix: tpu for tpu in TYPES.values()}
    known = ", ".join(f"{name}-N" for name in types)
    if not prefix or not number.isdecimal():
        raise ValueError(f"type: expected one of {known}, received {value!r}")
    if prefix not in types:
        # GKE's short name, as in v5e-16.
        hint = f"; did you mean {TYPES[prefix].prefix!r}?" if prefix in TYPES else ""
        raise ValueError(f"type: unknown {prefix!r} in {value!r}{hint or nearest(prefix, types)}")
    tpu = types[prefix]
    chips, rest = divmod(int(number), tpu.units_per_chip)
    whole = (
        chips % CHIPS_PER_HOST == 0
        if tpu.three_dimensional
        else chips in (1, 4, 8, 16, 32, 64, 128, 256)
    )
    if rest or not chips or not whole or chips > tpu.max_chips:
        unit = "chips: 1, 4, 8, 16, 32, 64, 128 or 256"
        if tpu.three_dimensional:
            unit = f"cores: a multiple of 8, up to {tpu.max_chips * tpu.units_per_chip}"
        raise ValueError(f"type: expected {prefix}-N with N {unit}, received {value!r}")
    single = CHIPS_PER_HOST if tpu.three_dimensional else 2 * CHIPS_PER_HOST
    return tpu, 1 if chips <= single else chips // CHIPS_PER_HOST
