"""Scaling: fitted on what it is given, safe for constant channels, exact inverse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.series.scaling import KINDS, Scaling

VALUES = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, 2.0], [8.0, 5.0, -4.0]])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, (6, 2), elements=st.floats(-1e9, 1e9, allow_nan=False)))
def test_inverse(kind: str, values: np.ndarray) -> None:
    scaling = Scaling.fit([values], kind)
    scaled = scaling.apply(values)
    assert scaled.dtype == np.float32
    assert np.isfinite(scaled).all()
    tolerance = 1e-6 * np.abs(values).max(initial=0) + 1e-6
    np.testing.assert_allclose(scaling.inverse(scaled), values, rtol=1e-5, atol=tolerance)
    assert Scaling.from_json(scaling.to_json()) == scaling


def test_kinds() -> None:
    standard = Scaling.fit([VALUES[:2], VALUES[2:]], "standard").apply(VALUES)
    np.testing.assert_allclose(np.nanmean(standard, 0), [0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(np.nanstd(standard, 0), [1, 0, 1], atol=1e-6)
    np.testing.assert_array_equal(np.isnan(standard), np.isnan(VALUES))
    least = Scaling.fit([VALUES], "min_max").apply(VALUES)
    np.testing.assert_allclose(least[:, 0], [0, 2 / 7, 1], rtol=1e-6)
    np.testing.assert_array_equal(least[:, 1], 0)
    greatest = Scaling.fit([VALUES], "max_abs").apply(VALUES)
    np.testing.assert_allclose(greatest[1:, 2], [0.5, -1])
    np.testing.assert_array_equal(Scaling.fit([VALUES], "none").apply(VALUES), VALUES)


@pytest.mark.parametrize("constant", [0.0, 14.62, 0.1 + 0.2, -1e12])
def test_constant_channels_are_not_stretched(constant: float) -> None:
    values = np.full((1_000, 1), constant)
    scaling = Scaling.fit([values], "standard")
    assert scaling.constant == (0,)
    # The mean of a thousand 0.3 is not 0.3; a division by that rounding would make noise of it.
    np.testing.assert_array_equal(scaling.apply(values), 0)
    later = scaling.apply(np.array([[constant + 2]]))
    np.testing.assert_allclose(later, 2)
    assert Scaling.fit([np.array([[1.0], [1.0 + 1e-9]])], "min_max").constant == ()


def test_channels_of_the_targets() -> None:
    scaling = Scaling.fit([VALUES], "min_max")
    np.testing.assert_allclose(scaling.inverse(np.array([[1.0], [0.5]]), [2]), [[2.0], [-1.0]])
    np.testing.assert_allclose(scaling.inverse(scaling.apply(VALUES[1:])), VALUES[1:], rtol=1e-6)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="received only missing ones of OT; leave the channel"):
        Scaling.fit([np.array([[1.0, np.nan]])], "standard", ["x", "OT"])
    with pytest.raises(ValueError, match="expected finite values, received infinite ones of 0"):
        Scaling.fit([np.array([[np.inf]])])
    with pytest.raises(ValueError, match="expected the values of the training part"):
        Scaling.fit([])
    with pytest.raises(ValueError, match=r"kind: expected one of standard, .* received 'robust'"):
        Scaling.fit([VALUES], "robust")
    with pytest.raises(ValueError, match="values: expected 3 channels"):
        Scaling.fit([VALUES]).apply(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="divisors other than 0"):
        Scaling("none", (0.0,), (0.0,))
    with pytest.raises(ValueError, match=r"Scaling\.to_json"):
        Scaling.from_json({"kind": "none"})
