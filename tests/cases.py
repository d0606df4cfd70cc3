"""One table of cases for all tests of transformations: variant x dtype x kind of threshold.

The expected values and slopes come from the float64 oracle, at inputs in quarters, so that no
rounding decides a gate: elements lie at the threshold exactly, or well away from it.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jaxtrelu

SHAPE = (3, 37)  # 37: not a multiple of the packing word
VARIANTS = {
    "shift": {},
    "capped": {"ceiling": 0.75},
    "hard": {"variant": "hard"},
    "filled": {"variant": "hard", "fill": -2},
    "clamp": {"variant": "clamp"},
}
DTYPES = ("float64", "float32", "bfloat16", "float16")
KINDS = ("number", "scalar", "channel", "full")
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}


@dataclasses.dataclass(frozen=True)
class Case:
    variant: str
    dtype: str
    kind: str

    @property
    def tolerance(self) -> dict:
        return {"rtol": TOLERANCE[self.dtype], "atol": TOLERANCE[self.dtype]}

    @functools.cached_property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(repr(self).encode()))

    def function(self, x, threshold):
        return jaxtrelu.thresholded_relu(x, threshold, **VARIANTS[self.variant])

    def draw(self, shape=SHAPE) -> jax.Array:
        """A random array of quarters: exact in every dtype."""
        return jnp.asarray(self.rng.integers(-8, 9, shape) / 4, self.dtype)

    @functools.cached_property
    def threshold(self):
        if self.kind == "number":
            return 0.5
        shape = {"scalar": (), "channel": SHAPE[-1:], "full": SHAPE}[self.kind]
        wide = "float64" if self.dtype == "float64" else "float32"
        return jnp.asarray(self.rng.integers(-3, 4, shape) / 4, wide)

    @functools.cached_property
    def x(self) -> jax.Array:
        return self.draw()

    def first(self, count):
        """(x, threshold) of the first elements of the first row: small enough for a Jacobian."""
        if self.kind == "full":
            return self.x[0, :count], self.threshold[0, :count]
        channels = self.kind == "channel"
        return self.x[0, :count], self.threshold[:count] if channels else self.threshold

    def expected(self, x=None, threshold=None):
        """(value, slope in x, slope in the threshold), each of x's shape, in float64."""
        x = np.asarray(self.x if x is None else x, np.float64)
        t = np.asarray(self.threshold if threshold is None else threshold, np.float64)
        options = VARIANTS[self.variant]
        slope = oracle.opened(x, t, options.get("ceiling")) * 1.0
        threshold_slope = {"shift": -slope, "hard": 0 * slope, "clamp": 1 - slope}
        variant = options.get("variant", "shift")
        return oracle.value(x, t, **options), slope, threshold_slope[variant]

    def threshold_cotangent(self, elementwise) -> np.ndarray:
        """Sums an array of x's shape back to the threshold's shape."""
        shape = np.shape(self.threshold)
        lead = tuple(range(elementwise.ndim - len(shape)))
        return elementwise.sum(axis=lead).reshape(shape)


CASES = [Case(v, d, k) for v in VARIANTS for d in DTYPES for k in KINDS]


def over_cases(test):
    """Runs a test ``f(case)`` for every case of the table, float64 ones with x64 enabled."""

    @pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.variant}-{c.dtype}-{c.kind}")
    @functools.wraps(test)
    def run(case):
        # A fresh copy: its arrays are made under this test's setting of x64.
        with jax.enable_x64(case.dtype == "float64"):
            fresh = dataclasses.replace(case)
            _ = fresh.x, fresh.threshold  # drawn here, not first inside a trace
            test(fresh)

    return run


def close(actual, expected, case: Case) -> None:
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, **case.tolerance)
