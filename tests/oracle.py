"""What the operation should give, in float64 NumPy, written from its definition alone.

Values are masks and assignments; nothing here is shared with the library. Operands are arrays (or
numbers) that already have the value which the library computes with: `taken` says which value that
is for a Python number as threshold.
"""

import ml_dtypes
import numpy as np

VARIANTS = ("shift", "hard", "clamp")

#: Relative tolerance of one rounding or two in each dtype.
RTOL = {
    "float64": 1e-14,
    "float32": 5e-7,
    "float16": 2e-3,
    "bfloat16": 1.6e-2,
    "float8_e4m3fn": 0.13,
    "float8_e5m2": 0.26,
}


def undefined(variant):
    """Of a variant that is written down here incompletely."""
    return ValueError(f"tests/oracle.py does not define {variant!r}")


def taken(number, dtype):
    """A Python number as the library takes it: in x's dtype."""
    return rounded(np.asarray(number, np.float64), dtype)


def wide(array):
    """The same values in float64."""
    return np.asarray(array).astype(np.float64)


def opened(x, threshold, ceiling=None):
    """Where the gate is open: not where x <= threshold, nor from the ceiling on. NaN is open."""
    x, threshold = np.broadcast_arrays(wide(x), wide(threshold))
    closed = x <= threshold
    if ceiling is not None:
        closed = closed | (x >= threshold + ceiling)
    return ~closed


def value(x, threshold, *, variant="shift", ceiling=None, fill=0):
    """The activation."""
    x, threshold = np.broadcast_arrays(wide(x), wide(threshold))
    above = x > threshold
    if variant == "shift":
        out = np.zeros(x.shape)
        with np.errstate(invalid="ignore"):
            out[above] = x[above] - threshold[above]
        if ceiling is not None:
            out[out > ceiling] = ceiling
    elif variant == "hard":
        out = np.full(x.shape, float(fill))
        out[above] = x[above]
    elif variant == "clamp":
        out = np.array(threshold)
        out[above] = x[above]
    else:
        raise undefined(variant)
    out[np.isnan(x) | np.isnan(threshold)] = np.nan
    return out


def antiderivative(x, threshold, *, variant="shift", ceiling=None, fill=0):
    """The integral of the activation from the threshold to x, piece by piece."""
    x, threshold = np.broadcast_arrays(wide(x), wide(threshold))
    way = x - threshold
    if variant == "shift":
        below, above = 0 * way, way**2 / 2
        if ceiling is not None:
            above = np.where(way > ceiling, ceiling**2 / 2 + ceiling * (way - ceiling), above)
    elif variant == "hard":
        below, above = fill * way, (x**2 - threshold**2) / 2
    elif variant == "clamp":
        below, above = threshold * way, (x**2 - threshold**2) / 2
    else:
        raise undefined(variant)
    return np.where(way > 0, above, below)


def summed_to(array, shape):
    """The sum over all axes along which an array of that shape was broadcast."""
    lead = array.ndim - len(shape)
    stretched = tuple(i for i, size in enumerate(shape) if size == 1 and array.shape[lead + i] != 1)
    with np.errstate(invalid="ignore"):
        array = array.sum(axis=tuple(lead + i for i in stretched), keepdims=True)
        return array.sum(axis=tuple(range(lead)))


def cotangents(x, threshold, cotangent, *, variant="shift", ceiling=None, fill=0, density=None):
    """The cotangents (of x, of the threshold in its own shape); `density` is a surrogate's D."""
    shape = np.shape(threshold)
    x, threshold = np.broadcast_arrays(wide(x), wide(threshold))
    ct = np.broadcast_to(wide(cotangent), x.shape)
    gate = opened(x, threshold, ceiling)
    dx = np.where(gate, ct, 0.0)
    if variant == "shift":
        dt = np.where(gate, -ct, 0.0)
    elif variant == "clamp":
        dt = np.where(gate, 0.0, ct)
    elif variant == "hard":
        dt = np.zeros(x.shape)
        if density is not None:
            dt = -(threshold - fill) * density(x - threshold) * ct
    else:
        raise undefined(variant)
    return dx, summed_to(dt, shape)


def rounded(array, dtype):
    """Rounded once to a dtype, given by its name, and back in float64."""
    return wide(np.asarray(array).astype(np.dtype(getattr(ml_dtypes, dtype, dtype))))
