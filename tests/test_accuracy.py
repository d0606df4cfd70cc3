"""Errors in ulp are not larger than docs/accuracy.md says."""

import accuracy
import numpy as np
import pytest


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(d, marks=pytest.mark.slow if i else ()) for i, d in enumerate(accuracy.DTYPES)],
)
def test_errors_are_those_of_the_table(dtype):
    held = accuracy.held()[dtype]
    found = accuracy.errors(dtype)
    assert set(found) == set(held)
    larger = {name: (error, held[name]) for name, error in found.items()
              if accuracy.rung(error) > held[name]}  # fmt: skip
    assert not larger
    assert max(found.values()) > 0.4  # there is something to be held


def test_half_an_ulp_is_correct_rounding():
    """The measure itself: of a number that is rounded, and of its neighbour."""
    exact = np.array([1 + 2.0**-24 + 2.0**-40, 1000.1, 3e-5])
    rounded = exact.astype(np.float32).astype(np.float64)
    ulp = accuracy.spacing(np.abs(exact), "float32")
    assert 0 < (np.abs(rounded - exact) / ulp).max() <= 0.5
    neighbour = np.nextafter(exact.astype(np.float32), np.float32(np.inf)).astype(np.float64)
    assert 0.5 < (np.abs(neighbour - exact) / ulp).max() <= 1.5
