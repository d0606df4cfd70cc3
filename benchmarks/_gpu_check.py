"""The GPU kernels against float64 NumPy, on whole and ragged shapes, before anything is timed.

Inputs are eighths, so that nothing is rounded in float32, and a difference is an error. On a GPU
the memory that outputs are written to was full of NaN before; an interpreter does that by itself.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrelu._primitive.packing import unpack_last
from jaxtrelu._primitive.spec import Spec

ELEMENTWISE = [  # shape, dtype, shape of the threshold, function
    ((33, 200), "float32", (1, 200), Spec("shift", ceiling=0.75)),
    ((64, 4096), "float32", (1, 1), Spec("shift")),
    ((5, 4160), "bfloat16", (5, 1), Spec("hard", fill=-2)),
    ((7, 64), "float16", (7, 64), Spec("clamp")),
]
LINEAR = [  # rows, depth, columns, dtype, function
    (70, 130, 300, "bfloat16", Spec("shift", ceiling=1.5)),
    (128, 64, 256, "float16", Spec("hard")),
]


class Checks:
    """Counts comparisons, and keeps what differs."""

    def __init__(self):
        self.count, self.failures = 0, []

    def compare(self, name: str, got, expected, relative: float = 0.0) -> None:
        self.count += 1
        expected = np.asarray(expected, np.float64)
        difference = float(np.max(np.abs(np.asarray(got, np.float64) - expected)))
        limit = relative * float(np.max(np.abs(expected)))
        if not difference <= limit:  # NaN is not
            self.failures.append(f"{name}: differs by {difference:.3g}, more than {limit:.3g}")


def poison() -> None:
    """Leaves NaN in every piece of memory that the allocator may hand out next."""
    held = [jnp.full(2**power, jnp.nan, jnp.float32) for power in range(6, 22) for _ in range(16)]
    jax.block_until_ready(held)
    for array in held:
        array.delete()


def check(interpret) -> Checks:
    """Runs every kernel; `interpret` as Pallas takes it, None on a GPU."""
    checks, rng = Checks(), np.random.default_rng(0)

    def eighths(shape, dtype):
        return jnp.asarray(rng.integers(-16, 17, shape) / 8, dtype)

    for case in ELEMENTWISE:
        _elementwise(checks, eighths, *case, interpret)
    for case in LINEAR:
        _linear(checks, eighths, *case, interpret)
    return checks


def _elementwise(checks, eighths, shape, dtype, threshold_shape, spec, interpret) -> None:
    from jaxtrelu._backends.mosaic_gpu import elementwise as gpu

    x, threshold = eighths(shape, dtype), eighths(threshold_shape, "float32")
    poison()
    y, words = gpu.forward(x, threshold, spec, ("value", "gate"), interpret=interpret)
    value, opened = expected(x, threshold, spec)
    label = f"{spec.variant} {dtype} {shape}"
    checks.compare(f"value, {label}", y, value)
    checks.compare(f"words, {label}", unpack_last(words, words.shape[1] * 32), _padded(opened))
    poison()
    gated = gpu.gate(x, words, interpret=interpret)
    checks.compare(f"gate, {label}", gated, np.where(opened, _wide(x), 0))


def _linear(checks, eighths, rows, depth, columns, dtype, spec, interpret) -> None:
    from jaxtrelu._backends.mosaic_gpu import linear as gpu_linear

    x, w, ct = (eighths(s, dtype) for s in ((rows, depth), (depth, columns), (rows, columns)))
    b, threshold = eighths((1, columns), dtype), eighths((1, columns), "float32")
    rounding = {"bfloat16": 2**-8, "float16": 2**-10}[dtype]
    label = f"{spec.variant} {dtype} {rows}x{depth}x{columns}"
    poison()
    y, words = gpu_linear.forward(x, w, b, threshold, spec, ("value", "gate"), interpret=interpret)
    value, opened = expected(_wide(x) @ _wide(w) + _wide(b), threshold, spec)
    checks.compare(f"linear, {label}", y, value, rounding)
    checks.compare(f"its words, {label}", unpack_last(words, words.shape[1] * 32), _padded(opened))
    gated = np.where(opened, _wide(ct), 0)
    poison()
    dx = gpu_linear.input_gradient(ct, words, w, interpret=interpret)
    checks.compare(f"dx, {label}", dx, gated @ _wide(w).T, rounding)
    poison()
    dw, total = gpu_linear.weight_gradient(x, ct, words, interpret=interpret)
    checks.compare(f"dw, {label}", dw, _wide(x).T @ gated, rounding)
    checks.compare(f"db, {label}", total, gated.sum(0, keepdims=True))


def expected(x, threshold, spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Value and gate from the definition, in float64."""
    x, threshold = np.broadcast_arrays(_wide(x), _wide(threshold))
    opened = x > threshold
    if spec.variant == "shift":
        ceiling = np.inf if spec.ceiling is None else spec.ceiling
        value = np.where(opened, np.minimum(x - threshold, ceiling), 0)
        opened = opened & (x < threshold + ceiling)
    else:
        closed = threshold if spec.variant == "clamp" else spec.fill
        value = np.where(opened, x, closed)
    return value, opened


def _wide(array) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def _padded(mask: np.ndarray) -> np.ndarray:
    """Bits past the end are zero."""
    return np.pad(mask, ((0, 0), (0, -mask.shape[1] % 32)))
