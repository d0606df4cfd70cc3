"""One table of cases for all tests of transformations: variant x dtype x kind of threshold.

The expected values and slopes come from the float64 oracle, at inputs in quarters, so that no
rounding decides a gate: elements lie at the threshold exactly, or well away from it.

A law of all cases is a generator: it yields a function and its operands, gets back what the
function returns, and checks it in NumPy:

    @over_cases
    def test_grad(case):
        dx = yield jax.grad(lambda x: case.function(x, case.threshold).sum()), case.x
        assert_close(dx, case.expected()[1], case)

The functions of all cases of a dtype are compiled as one program: one compilation in place of
twenty, or of hundreds where each is run step by step. `make test` takes the cases `PAIRS`, in which
each two of variant, dtype and kind meet, and one of them step by step; `make test-all` takes all
80, and `ALONE` step by step. `together` does the same for any other generators.
"""

import dataclasses
import functools
import zlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from runs import one_program, step_by_step

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


def placed(array, dtype) -> jax.Array:
    """Converted by NumPy: by JAX it would be a program for each shape and dtype."""
    return jax.device_put(np.asarray(array).astype(jnp.dtype(dtype)))


@dataclasses.dataclass(frozen=True)
class Case:
    variant: str
    dtype: str
    kind: str

    def __str__(self):
        return f"{self.variant}-{self.dtype}-{self.kind}"

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
        return placed(self.rng.integers(-8, 9, shape) / 4, self.dtype)

    @functools.cached_property
    def threshold(self):
        if self.kind == "number":
            return 0.5
        shape = {"scalar": (), "channel": SHAPE[-1:], "full": SHAPE}[self.kind]
        wide = "float64" if self.dtype == "float64" else "float32"
        return placed(self.rng.integers(-3, 4, shape) / 4, wide)

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
        slopes = oracle.cotangents(x, np.broadcast_to(t, x.shape), 1.0, **options)
        return oracle.value(x, t, **options), *slopes

    def threshold_cotangent(self, elementwise) -> np.ndarray:
        """Sums an array of x's shape back to the threshold's shape."""
        shape = np.shape(self.threshold)
        lead = tuple(range(elementwise.ndim - len(shape)))
        return elementwise.sum(axis=lead).reshape(shape)


CASES = [Case(v, d, k) for v in VARIANTS for d in DTYPES for k in KINDS]
#: Each variant with each dtype, each variant with each kind, each dtype with each kind.
PAIRS = [
    Case(v, d, KINDS[(i + j) % len(KINDS)])
    for i, v in enumerate(VARIANTS)
    for j, d in enumerate(DTYPES)
]
#: Of these, each variant, each dtype and each kind: what runs step by step, operation by operation.
ALONE = [PAIRS[len(DTYPES) * i + j] for i, j in enumerate((0, 1, 3, 0, 2))]


def examples(count):
    """Of hypothesis: half of ``count`` in `make test`, twice as many in `make test-slow`."""
    return hypothesis.settings(
        max_examples=max(1, count * hypothesis.settings().max_examples // 100)
    )


def quick(values, kept):
    """Parameters of a test, of which `make test` takes those in ``kept``, and `make test-all` all.

    A value that is a tuple is one of several parameters.
    """
    found = []
    for value in values:
        each = value if isinstance(value, tuple) else (value,)
        found.append(pytest.param(*each, marks=() if value in kept else pytest.mark.slow))
    return found


def together(laws, run=one_program) -> None:
    """Runs generators, given by name, that yield ``(function, *operands)`` and check the result.

    `runs.py` says what ``run`` can be. Every failure of a check
    is collected, and all are raised as one, each with its name.
    """
    failures: dict[str, Exception] = {}
    answers = dict.fromkeys(laws)
    while answers:
        functions, operands = {}, {}
        for name, answer in answers.items():
            try:
                function, *given = laws[name].send(answer)
            except StopIteration:
                continue
            except Exception as error:
                failures[name] = error
                continue
            functions[name], operands[name] = _named(name, function), given
        answers = run(functions, operands) if functions else {}
    if failures:
        words = "\n\n".join(f"{name}: {error}" for name, error in failures.items())
        raise AssertionError(
            f"{len(failures)} of {len(laws)} fail: {', '.join(failures)}\n\n{words}"
        ) from next(iter(failures.values()))


def _named(name, function):
    """The function; an exception out of it says which case it was tracing."""

    @functools.wraps(function)
    def traced(*operands):
        try:
            return function(*operands)
        except Exception as error:
            error.add_note(f"in the case {name}")
            raise

    return traced


def over_cases(law=None, *, run=one_program):
    """A law of every case of the table: by dtype in one program each, and some of them alone.

    Alone they run step by step; with a ``run`` of its own, which compiles or exports in another
    way, a law has no test alone. float64 cases have x64 enabled.
    """
    if law is None:
        return functools.partial(over_cases, run=run)

    parameters = []
    for dtype in DTYPES:
        pairs = [case for case in PAIRS if case.dtype == dtype]
        others = [case for case in CASES if case.dtype == dtype and case not in pairs]
        parameters.append(pytest.param(run, pairs, id=dtype))
        rest = f"{dtype}, other cases"
        parameters.append(pytest.param(run, others, id=rest, marks=pytest.mark.slow))
    if run is one_program:
        always = PAIRS[zlib.crc32(law.__name__.encode()) % len(PAIRS)]
        for case in [always, *(c for c in ALONE if c != always)]:
            marks = () if case == always else pytest.mark.slow
            parameters.append(pytest.param(step_by_step, [case], id=str(case), marks=marks))

    @pytest.mark.parametrize(("run", "cases"), parameters)
    @functools.wraps(law)
    def test(run, cases):
        # Fresh copies: their arrays are made under this test's setting of x64.
        with jax.enable_x64(cases[0].dtype == "float64"):
            fresh = {str(case): dataclasses.replace(case) for case in cases}
            for case in fresh.values():
                _ = case.x, case.threshold  # drawn here, not first inside a trace
            together({name: law(case) for name, case in fresh.items()}, run)

    # `wraps` shows pytest the law's own signature, which asks for a fixture `case`.
    del test.__wrapped__
    return test


def assert_close(actual, expected, case: Case) -> None:
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, **case.tolerance)
