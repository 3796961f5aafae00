"""Scaling of channels, fitted on the training part alone, with its inverse for the metrics."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from data.series.tables import shorten

Kind = Literal["standard", "min_max", "max_abs", "none"]
KINDS: tuple[str, ...] = get_args(Kind)
"""standard: mean 0 and standard deviation 1; min_max: 0 to 1; max_abs: divided by the greatest
absolute value, as LSTNet (Lai et al., 1703.07015) does; none: as they are."""

_CONSTANT = 1e-12  # relative range below which differences are rounding errors


@dataclass(frozen=True)
class Scaling:
    """Affine scaling of each channel: (value − offset) / divisor.

    >>> scaling = Scaling.fit([np.array([[1.0, 5.0], [3.0, 5.0]])], "standard")
    >>> scaling.apply(np.array([[3.0, 5.0]])).tolist(), scaling.constant
    ([[1.0, 0.0]], (1,))
    >>> scaling.inverse(np.array([[1.0, 0.0]])).tolist()
    [[3.0, 5.0]]

    Attributes:
        kind: one of ``KINDS``.
        offsets: of each of the D channels.
        divisors: of each, not 0.
        constant: numbers of the channels that do not vary in the training part. By "standard" and
            "min_max" they are only shifted (the divisor is 1): a division by their range would make
            infinities, or blow up rounding errors.

    Raises:
        ValueError: an unknown kind, or numbers that are not finite or zero divisors.
    """

    kind: Kind
    offsets: tuple[float, ...]
    divisors: tuple[float, ...]
    constant: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, received {self.kind!r}")
        numbers = (*self.offsets, *self.divisors)
        if (
            len(self.offsets) != len(self.divisors)
            or not all(math.isfinite(number) for number in numbers)
            or 0 in self.divisors
        ):
            raise ValueError(
                f"offsets, divisors: expected finite numbers for each channel, divisors other than "
                f"0, received {self.offsets} and {self.divisors}"
            )

    @classmethod
    def fit(
        cls, arrays: Iterable[np.ndarray], kind: Kind = "standard", channels: Sequence[str] = ()
    ) -> "Scaling":
        """Returns the scaling of the training part.

        Args:
            arrays: (T,D) each, the training part; NaN where a value is missing, which is left out.
            kind: one of ``KINDS``.
            channels: names of the D channels, for errors.

        Raises:
            ValueError: an unknown kind, no values, infinite ones, or a channel whose values are all
                missing.
        """
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, received {kind!r}")
        parts = [np.asarray(array, np.float64) for array in arrays]
        if not parts or not sum(map(len, parts)):
            raise ValueError("arrays: expected the values of the training part, received none")
        values = np.concatenate(parts)
        names = channels or [str(number) for number in range(values.shape[1])]
        seen = ~np.isnan(values)
        if empty := [names[i] for i in np.flatnonzero(~seen.any(0)).tolist()]:
            raise ValueError(
                f"arrays: expected values of each channel in the training part, received only "
                f"missing ones of {shorten(empty)}; leave the channel out"
            )
        if infinite := [names[i] for i in np.flatnonzero(np.isinf(values).any(0)).tolist()]:
            raise ValueError(
                f"arrays: expected finite values, received infinite ones of {shorten(infinite)}"
            )
        least, most = np.nanmin(values, 0), np.nanmax(values, 0)
        greatest = np.maximum(np.abs(least), np.abs(most))
        constant = most - least <= _CONSTANT * greatest
        offsets, divisors = np.zeros(values.shape[1]), np.ones(values.shape[1])
        if kind == "standard":
            # The mean of equal numbers may differ from them by rounding.
            offsets = np.where(constant, least, np.nanmean(values, 0))
            divisors = np.nanstd(values, 0)
        elif kind == "min_max":
            offsets, divisors = least, most - least
        elif kind == "max_abs":
            divisors = greatest
        if kind in ("standard", "min_max"):
            divisors = np.where(constant, 1.0, divisors)
        divisors = np.where(divisors == 0, 1.0, divisors)
        return cls(
            kind,
            tuple(offsets.tolist()),
            tuple(divisors.tolist()),
            tuple(np.flatnonzero(constant).tolist()),
        )

    def apply(self, values: np.ndarray, channels: Sequence[int] | None = None) -> np.ndarray:
        """Returns scaled values, float32; NaN stays NaN.

        Args:
            values: (...,D), or (...,C) of the given channels.
            channels: numbers of the C channels; None: all D.

        Raises:
            ValueError: another number of channels.
        """
        offsets, divisors = self._chosen(values, channels)
        # In float64: close to a large offset float32 has few digits left.
        return ((np.asarray(values, np.float64) - offsets) / divisors).astype(np.float32)

    def inverse(self, values: np.ndarray, channels: Sequence[int] | None = None) -> np.ndarray:
        """Returns values in their own units, float64, of scaled ones; arguments as ``apply``.

        Raises:
            ValueError: another number of channels.
        """
        offsets, divisors = self._chosen(values, channels)
        return np.asarray(values, np.float64) * divisors + offsets

    def to_json(self) -> dict[str, Any]:
        """Returns all numbers, for JSON."""
        return {
            "kind": self.kind,
            "offsets": list(self.offsets),
            "divisors": list(self.divisors),
            "constant": list(self.constant),
        }

    @classmethod
    def from_json(cls, content: Any) -> "Scaling":
        """Returns the scaling that ``to_json`` gave.

        Raises:
            ValueError: another content.
        """
        keys = {"kind", "offsets", "divisors", "constant"}
        if not isinstance(content, dict) or content.keys() != keys:
            raise ValueError(
                f"content: expected a dict with {', '.join(sorted(keys))} as Scaling.to_json "
                f"returns it, received {content!r:.80}"
            )
        return cls(
            content["kind"],
            tuple(map(float, content["offsets"])),
            tuple(map(float, content["divisors"])),
            tuple(map(int, content["constant"])),
        )

    def _chosen(
        self, values: np.ndarray, channels: Sequence[int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.arange(len(self.offsets)) if channels is None else np.asarray(channels, int)
        if np.ndim(values) == 0 or np.shape(values)[-1] != len(chosen):
            raise ValueError(
                f"values: expected {len(chosen)} channels in the last axis, received "
                f"{np.shape(values)}"
            )
        return np.array(self.offsets)[chosen], np.array(self.divisors)[chosen]
