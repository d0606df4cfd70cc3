"""`jaxtrelu.theory`: closed forms against quadrature, exact constants and published tables."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats
from test_new_rows import DOUBLE, FLOOR, QUICKLY

from jaxtrelu import theory
from jaxtrelu._primitive.variants import VARIANTS
from jaxtrelu.theory import _moments


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def compiled(function):
    """A function of arrays as one program: a closed form alone is dozens, for each shape."""
    return jax.jit(function, compiler_options=QUICKLY)


def check(actual, expected, rtol=1e-10, atol=0.0):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=atol)


# (variant, ceiling, fill) and the definition
CASES = {
    "shift": (("shift", None, 0), lambda x, t: np.maximum(x - t, 0)),
    "shift, ceiling": (("shift", 1.3, 0), lambda x, t: np.clip(x - t, 0, 1.3)),
    "shift, low ceiling": (("shift", 0.01, 0), lambda x, t: np.clip(x - t, 0, 0.01)),
    "hard": (("hard", None, 0), lambda x, t: np.where(x > t, x, 0.0)),
    "hard, fill": (("hard", None, -0.7), lambda x, t: np.where(x > t, x, -0.7)),
    "clamp": (("clamp", None, 0), lambda x, t: np.maximum(x, t)),
    "floor": (("floor", None, 0), lambda x, t: np.where(x > t, x, 2 * t)),
    "double": (("double", None, 0), lambda x, t: 2 * np.maximum(x - t, 0)),
}
#: What else is said of each: of "low ceiling" and "floor" it follows from those beside them.
few_cases = pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in ("shift, low ceiling", "floor") else ())
        for n in CASES
    ],
)
THRESHOLDS = (-3.0, -0.4, 0.0, 1.0, 2.5)
NORMALS = ((0.0, 1.0), (-0.5, 0.7), (1.5, 2.0))


@pytest.fixture
def rows(monkeypatch):
    """The variants, and two throw-away rows of the table that nothing here knows by name."""
    monkeypatch.setitem(VARIANTS, "floor", FLOOR)
    monkeypatch.setitem(VARIANTS, "double", DOUBLE)


def options_of(name):
    (variant, ceiling, fill), function = CASES[name]
    return {"variant": variant, "ceiling": ceiling}, {"fill": fill}, function


NODES, WEIGHTS = np.polynomial.legendre.leggauss(100)


def normal_density(u):
    return np.exp(-0.5 * u * u) / np.sqrt(2 * np.pi)


def expectation(g, breaks, mean=0.0, std=1.0):
    """E g(x) by Gauss-Legendre quadrature between breaks; g takes arrays."""
    ends = [mean - 14 * std, *(b for b in sorted(breaks) if abs(b - mean) < 14 * std)]
    total = 0.0
    for low, high in itertools.pairwise([*ends, mean + 14 * std]):
        x = low + (high - low) / 2 * (1 + NODES)
        density = normal_density((x - mean) / std) / std
        total += (high - low) / 2 * np.sum(WEIGHTS * g(x) * density)
    return total


@pytest.mark.parametrize("name", CASES)
def test_moments_are_integrals(name, rows):
    kind, fill, f = options_of(name)
    grid = [(t, *normal) for t in THRESHOLDS for normal in NORMALS]
    threshold, mean, std = np.array(grid).T
    found = theory.moments(threshold, mean=mean, std=std, **kind, **fill)
    for i, (t, mu, sigma) in enumerate(grid):
        breaks = [t] if kind["ceiling"] is None else [t, t + kind["ceiling"]]
        of = functools.partial(expectation, breaks=breaks, mean=mu, std=sigma)
        first = of(lambda x, t=t: f(x, t))
        h = 1e-7 if kind["ceiling"] is None else 1e-7 * kind["ceiling"]

        def slope(x, t=t, breaks=breaks, h=h):
            side = np.where(x - h > t, h, -h)  # a difference that stays on x's side of the kinks
            crossed = np.any([(x - b) * (x - side - b) < 0 for b in breaks], 0)
            side = np.where(crossed, -side, side)
            return (f(x, t) - f(x - side, t)) / side

        check(found.mean[i], first)
        check(found.second[i], of(lambda x, t=t: f(x, t) ** 2))
        check(found.variance[i], of(lambda x, t=t, first=first: (f(x, t) - first) ** 2))
        check(found.cross[i], of(lambda x, t=t: x * f(x, t)), atol=1e-13)
        check(found.open[i], of(lambda x, t=t: x > t))
        check(found.slope[i], of(slope), 1e-6)
        check(found.slope_second[i], of(lambda x: slope(x) ** 2), 1e-6)


# E (u − a)⁺ to the powers 0, 1, 2: exact, from 900 digits.
TAILS = {
    -30.0: (1.0, 30.0, 901.0),
    -8.0: (0.99999999999999938, 8.0000000000000001, 65.0),
    -2.0: (0.97724986805182079, 2.0084907026168296, 4.9942312732854801),
    0.0: (0.5, 0.39894228040143268, 0.5),
    2.0: (0.022750131948179207, 0.0084907026168296375, 0.0057687267145199321),
    2.14: (0.016177383372166098, 0.005787953506424858, 0.0037911628684169016),
    8.0: (6.2209605742717841e-16, 7.5502624119464989e-17, 1.8075064471458499e-17),
    30.0: (4.9067139271481871e-198, 1.6319567340914012e-199, 1.0843724873983491e-200),
}
# (a, c): share in the band, then mean, second moment and variance of min(max(u − a, 0), c).
CAPPED = {
    (-30.0, 0.5): (1.4394740615577865e-191, 0.5, 0.25, 3.2893216409925732e-194),
    (-30.0, 31.0): (
        *(0.84134474606854295, 29.916684529412314, 895.75910104021968, 0.75108780784160903),
    ),
    (-8.0, 3.0): (
        *(2.8665157125709785e-7, 2.9999999465383447, 8.9999996985733631, 1.9343291858313771e-8),
    ),
    (-2.0, 0.001): (
        *(5.4044984479681493e-5, 0.00097722285456482559),
        *(9.7721384706786239e-7, 2.2249339584036117e-8),
    ),
    (0.0, 1.0): (
        *(0.34134474606854295, 0.31562680981374638, 0.25802927548085665, 0.15840899240765382),
    ),
    (2.0, 1.5): (
        *(0.022517502869143682, 0.0084322216984082151, 0.0055653380946951183, 0.005494235731924012),
    ),
    (8.0, 0.001): (
        *(5.0321149454758251e-18, 6.1957664500516295e-19),
        *(6.1873796006164754e-22, 6.1873796006164715e-22),
    ),
    (30.0, 0.01): (
        *(1.2731211121826625e-198, 4.2383678079955699e-200),
        *(4.0264983069967906e-202, 4.0264983069967906e-202),
    ),
}
# Of a standard normal at a: mean, second moment, variance, E x f.
FAR = {
    ("hard", -30.0): (1.4736461348785475e-196, 1.0, 1.0, 1.0),
    ("hard", 8.0): (
        *(5.0522710835368923e-15, 4.1040264725722317e-14),
        *(4.1040264725722291e-14, 4.1040264725722317e-14),
    ),
    ("hard", 30.0): (1.4736461348785475e-196, *(3 * (4.4258451185627907e-195,))),
    ("clamp", -30.0): (1.6319567340914012e-199, 1.0, 1.0, 1.0),
    ("clamp", -8.0): (
        *(7.5502624119464989e-17, 0.99999999999999877),
        *(0.99999999999999877, 0.99999999999999938),
    ),
    ("clamp", 8.0): (8.0, 64.0, 1.8075064471458494e-17, 6.2209605742717841e-16),
    ("clamp", 30.0): (30.0, 900.0, 1.0843724873983491e-200, 4.9067139271481871e-198),
}


def test_far_tails_of_shift():
    at = np.array(list(TAILS))
    expected = np.array(list(TAILS.values())).T
    found = theory.moments(at)
    check([found.open, found.mean, found.second], expected, 2e-13)
    check(found.cross, expected[0], 2e-13)  # Stein's lemma
    # u − a is (u − a)⁺ − (a − u)⁺, of which one is 0, and its variance is 1.
    other = theory.moments(-at)
    check(found.variance + other.variance + 2 * found.mean * other.mean, np.ones_like(at), 1e-14)
    check(found.variance[-2:], expected[2, -2:], 1e-12)  # where the mean squared is nothing


def test_far_tails_with_a_ceiling():
    for (a, c), expected in CAPPED.items():
        found = theory.moments(np.float64(a), ceiling=c)
        check([found.slope, found.mean, found.second, found.variance], expected, 5e-13)


def test_far_tails_of_the_others():
    for (variant, a), expected in FAR.items():
        found = theory.moments(np.float64(a), variant=variant)
        check([found.mean, found.second, found.variance, found.cross], expected, 2e-13)


def test_strict_promotion(strict_promotion):
    """No promotion of ranks or dtypes is relied on, in arrays of either precision.

    Promotions are refused while a function is traced, so nothing needs to run.
    """

    def everything(at):
        found = {}
        for name in ("shift", "shift, ceiling", "hard", "clamp"):
            kind, _, _ = options_of(name)
            found[name] = theory.moments(at, mean=0.5, std=2.0, **kind).cross
            rho = 0.3 * jnp.ones_like(at)
            of = functools.partial(theory.correlation_map, weight_variance=2.0, **kind)
            found[f"map of {name}"] = of(rho, at)
        start = theory.critical_init(0.5 + 0.1 * jnp.abs(at), slope=0.5)
        found["ceiling"] = start.ceiling
        found["error"] = theory.information(at, ceiling=1.0).best_error
        return found, theory.gaussian_cutoff(at, 0.9)

    for dtype in (jnp.float32, jnp.float64):
        at = jnp.asarray([[-1.0, 0.5, 3.0]], dtype)
        found, cutoff = jax.eval_shape(everything, at)
        for name, array in found.items():
            assert (array.dtype, array.shape) == (dtype, at.shape), name
        assert cutoff.dtype == dtype
    assert theory.moments(at).mean.dtype == dtype  # what only numbers meet: their checks


def test_units_and_shifts():
    """x = μ + σu: f of `shift` depends on x − θ alone, and every variant is homogeneous."""
    threshold, mean, std = np.float64(1.2), 0.3, 2.5
    for variant in ("shift", "hard", "clamp"):
        one = theory.moments(threshold, mean=mean, std=std, variant=variant)
        ten = theory.moments(10 * threshold, mean=10 * mean, std=10 * std, variant=variant)
        check(ten.mean, 10 * one.mean)
        check(ten.variance, 100 * one.variance)
        check(ten.cross, 100 * one.cross)
        check(ten.slope, one.slope)
    one = theory.moments(threshold, mean=mean, std=std)
    moved = theory.moments(threshold + 5, mean=mean + 5, std=std)
    check([moved.mean, moved.second], [one.mean, one.second])


@pytest.mark.parametrize("name", ["shift", "shift, ceiling", "hard", "clamp"])
def test_float32(name):
    kind, _, _ = options_of(name)
    at = np.linspace(-8, 8, 33)
    wide = theory.moments(at, **kind)
    narrow = theory.moments(at.astype(np.float32), **kind)
    for one, other in zip(narrow, wide, strict=True):
        assert one.dtype == np.float32
        check(one, other, 2e-5, 1e-37)


def test_dtype_and_shape():
    found = theory.moments(np.zeros((3, 1), np.float32), mean=np.zeros(4, np.float32), std=1.0)
    assert {(field.shape, str(field.dtype)) for field in found} == {((3, 4), "float32")}
    assert theory.moments(np.float64(0), std=np.ones(2, np.float32)).mean.dtype == np.float64
    assert theory.moments(jnp.zeros(2, jnp.bfloat16)).mean.dtype == np.float32
    assert theory.moments(np.zeros(0)).mean.shape == (0,)


@few_cases
def test_derivatives_of_the_moments(name, rows):
    """Against central differences, in θ, μ and σ; and finite at the ends of the range."""
    kind, fill, _ = options_of(name)

    def fields(threshold, mean, std):
        return jnp.stack(theory.moments(threshold, mean=mean, std=std, **kind, **fill))

    h = 1e-5
    values, slopes = compiled(fields), compiled(jax.jacfwd(fields, (0, 1, 2)))
    for point in ((0.7, -0.2, 0.8), (-1.1, 0.3, 1.4), (3.9, 0.1, 0.9)):
        point = np.array(point)
        for i, exact in enumerate(slopes(*point)):
            step = h * np.eye(3)[i]
            near = (values(*(point + step)) - values(*(point - step))) / (2 * h)
            check(exact, near, 1e-6, 1e-9)
    for a in (-30.0, 30.0):
        assert all(np.isfinite(g).all() for g in slopes(np.float64(a), np.float64(0), 1.0))


# maps


def test_the_slopes_of_the_variance_map():
    """V′ = σ_w² Q for shift, with a ceiling χ₁ − σ_w² m φ(b)/√q; V″ by a difference of those."""
    q, threshold, weight, m = np.float64(1.7), 0.9, 2.2, 1.1
    of = functools.partial(theory.variance_map, threshold=threshold, weight_variance=weight)
    a = threshold / np.sqrt(q)
    b = a + m / np.sqrt(q)
    check(compiled(jax.grad(of))(q), weight * special.ndtr(-a))

    def slope(q):
        a, b = threshold / np.sqrt(q), (threshold + m) / np.sqrt(q)
        band = special.ndtr(-a) - special.ndtr(-b)
        return weight * (band - m * stats.norm.pdf(b) / np.sqrt(q))

    capped = functools.partial(of, ceiling=m)
    first, curve = compiled(jax.value_and_grad(jax.grad(capped)))(q)
    check(first, slope(q))
    check(curve, (slope(q + 1e-5) - slope(q - 1e-5)) / 2e-5, 1e-7)
    check(theory.gradient_gain(q, threshold, weight_variance=weight), weight * special.ndtr(-a))
    band = special.ndtr(-a) - special.ndtr(-b)
    check(theory.gradient_gain(q, threshold, weight_variance=weight, ceiling=m), weight * band)


def test_hard_has_no_stable_edge():
    """V′ = 1 + a φ/Q + a³ φ/(2Q) where χ₁ = 1: above 1 from the median on."""

    @compiled
    @jax.grad
    def slope_at(q, a, weight):
        return theory.variance_map(q, a, weight_variance=weight, variant="hard")

    for a in (0.3, 1.0, 2.0):
        weight = 1 / special.ndtr(-a)
        slope = slope_at(np.float64(1), a, weight)
        density = stats.norm.pdf(a)
        check(slope, weight * (special.ndtr(-a) + a * density + a**3 * density / 2))
        assert slope > 1


def joint(f, rho, breaks):
    """E f(u) f(v) by quadrature over u, and over v given u, split at the breaks of both."""
    if abs(rho) == 1:
        return expectation(lambda u: f(u) * f(rho * u), {s * b for b in breaks for s in (1, -1)})
    rest = np.sqrt(1 - rho * rho)

    def inner(u):
        """E[f(v) | u], v = ρu + √(1 − ρ²) w, by quadrature in w between the breaks."""
        ends = [(b - rho * u) / rest for b in sorted(breaks)]
        ends = np.clip(np.stack([np.full_like(u, -10), *ends, np.full_like(u, 10)]), -10, 10)
        half = (ends[1:] - ends[:-1])[..., None] / 2
        w = ends[:-1, :, None] + half * (1 + NODES)
        values = f(rho * u[:, None] + rest * w)
        return np.sum(half * WEIGHTS * values * normal_density(w), (0, 2))

    # Where u = b / ρ, v's conditional mean crosses a break.
    smooth = [s * b / rho for b in breaks for s in (1, -1)] if rho else []
    wide = [b + d for b in (*breaks, *smooth) for d in (-rest, 0, rest)]
    return expectation(lambda u: f(u) * inner(u), wide)


@few_cases
def test_correlation_map_is_an_integral(name, rows):
    kind, fill, f = options_of(name)
    if fill["fill"]:
        return  # the maps are of what a layer passes on: closed entries at the default
    rho = np.array([-1, -0.95, -0.3, 0.0, 0.4, 0.9, 1.0])
    for threshold in (-0.8, 0.6):
        breaks = [threshold]
        if kind["ceiling"] is not None:
            breaks.append(threshold + kind["ceiling"])
        found = theory.correlation_map(
            rho, threshold, weight_variance=1.4, bias_variance=0.2, **kind
        )
        second = expectation(lambda u, t=threshold: f(u, t) ** 2, breaks)
        expected = [
            (1.4 * joint(functools.partial(f, t=threshold), r, breaks) + 0.2) / (1.4 * second + 0.2)
            for r in rho
        ]
        check(found, expected, 1e-8, 1e-10)


def test_correlation_map_of_relu():
    """The arc-cosine kernel, and a correlation of 1 stays."""
    rho = np.linspace(-0.99, 0.99, 23)
    found = theory.correlation_map(rho, 0.0, weight_variance=2.0)
    check(found, (np.sqrt(1 - rho**2) + rho * (np.pi - np.arccos(rho))) / np.pi, 1e-12)
    check(theory.correlation_map(np.float64(1), 0.0, weight_variance=2.0), 1.0, 1e-14)


@pytest.mark.parametrize("variant", ["shift", "hard", "clamp"])
def test_the_correlation_map_has_slopes_at_a_threshold_of_zero(variant):
    """There the two sides of its formula meet."""

    def of(threshold):
        return theory.correlation_map(0.4, threshold, weight_variance=2.0, variant=variant)

    value, slope = compiled(of), compiled(jax.grad(of))
    near = (value(np.float64(1e-5)) - value(np.float64(-1e-5))) / 2e-5
    check(slope(np.float64(0)), near, 1e-6, 1e-9)


@pytest.mark.parametrize("ceiling", [None, 0.8])
def test_the_slope_at_a_correlation_of_one_is_the_gradient_gain(ceiling):
    start = theory.critical_init(np.float64(0.8), slope=None if ceiling is None else 0.5)
    cap = None if ceiling is None else float(start.ceiling)
    of = functools.partial(
        theory.correlation_map,
        threshold=start.threshold,
        weight_variance=start.weight_variance,
        bias_variance=start.bias_variance,
        ceiling=cap,
    )
    gain = theory.gradient_gain(
        1.0, start.threshold, weight_variance=start.weight_variance, ceiling=cap
    )
    check(gain, 1.0, 1e-12)
    check(compiled(jax.grad(of))(np.float64(1 - 1e-8)), gain, 1e-3)


def test_smoothed():
    x = np.linspace(-2, 3, 11)
    for name in ("shift", "shift, ceiling", "hard", "clamp"):
        kind, fill, f = options_of(name)
        found = compiled(functools.partial(theory.smoothed, std=0.3, **kind, **fill))(x, 0.5)
        breaks = [0.5] if kind["ceiling"] is None else [0.5, 0.5 + kind["ceiling"]]
        expected = [
            expectation(lambda y, f=f: f(y, 0.5), breaks, mean=centre, std=0.3) for centre in x
        ]
        check(found, expected, 1e-10, 1e-13)
    of = functools.partial(theory.smoothed, threshold=0.5, std=0.3)
    first, second = compiled(jax.vmap(jax.value_and_grad(jax.grad(of))))(x)
    check(first, special.ndtr((x - 0.5) / 0.3))
    check(second, stats.norm.pdf(x, 0.5, 0.3), 1e-10)


# initialisation

# Price et al. 2024, as printed: s, τ, then for V′ = .5, .7, .9 m, σ_w² and σ_b².
PRICE = (
    (0.6, 0.253, (1.217, 1.626, 2.247), (3.036, 2.704, 2.539), (0.311, 0.239, 0.194)),
    (0.7, 0.524, (1.051, 1.447, 2.054), (4.125, 3.628, 3.389), (0.465, 0.393, 0.347)),
    (0.8, 0.842, (0.891, 1.267, 1.852), (6.311, 5.480, 5.090), (0.598, 0.530, 0.484)),
    (0.85, 1.036, (0.810, 1.170, 1.739), (8.507, 7.335, 6.791), (0.661, 0.595, 0.551)),
    (0.9, 1.282, (0.722, 1.063, 1.611), (12.92, 11.05, 10.20), (0.723, 0.663, 0.620)),
)
# Where the exact value, to six digits, does not round to what is printed.
NOT_AS_PRINTED = {(0.7, 0.9): 0.346497, (0.85, 0.5): 0.660492}


def test_the_published_table():
    for s, tau, ceilings, weights, biases in PRICE:
        for slope, *printed in zip((0.5, 0.7, 0.9), ceilings, weights, biases, strict=True):
            found = theory.critical_init(np.float64(s), slope=slope)
            *others, bias = (float(v) for v in found)
            for value, digits in zip(others, (tau, *printed[:2]), strict=True):
                decimals = 2 if digits > 10 else 3
                # 10.20 is 10.195 rounded: half a unit of the last place, and what float64 adds.
                assert abs(value - digits) <= 0.5 * 10**-decimals * (1 + 1e-3)
            if (s, slope) in NOT_AS_PRINTED:
                check(bias, NOT_AS_PRINTED[s, slope], 0, 5e-7)
                assert 5e-4 < abs(bias - printed[2]) < 6e-4
            else:
                assert abs(bias - printed[2]) <= 5e-4


@pytest.mark.parametrize("slope", [None, 0.2, 0.5, 0.95])
def test_critical_init_is_a_fixed_point_on_the_edge(slope):
    q = np.float64(2.5)
    for s in (0.5, 0.85, 0.99):
        found = theory.critical_init(s, slope=slope, variance=q)
        options = {"weight_variance": found.weight_variance}
        if slope is not None:
            options["ceiling"] = float(found.ceiling)
        of = functools.partial(
            theory.variance_map,
            threshold=found.threshold,
            bias_variance=found.bias_variance,
            **options,
        )
        again, across = compiled(jax.value_and_grad(of))(q)
        check(again, q, 1e-12)
        check(across, 1.0 if slope is None else slope, 1e-9)
        check(theory.gradient_gain(q, found.threshold, **options), 1.0, 1e-12)
        check(theory.moments(found.threshold, std=np.sqrt(q)).open, 1 - s, 1e-12)


def test_critical_init_is_differentiable():
    """In the share of zeros and in V′, through the root that is searched for."""
    of = jax.grad(lambda at: theory.critical_init(at[0], slope=at[1]).ceiling)
    value = compiled(lambda at: theory.critical_init(at[0], slope=at[1]).ceiling)
    at = np.array([0.8, 0.6])
    for exact, step in zip(compiled(of)(at), 1e-6 * np.eye(2), strict=True):
        check(exact, (value(at + step) - value(at - step)) / 2e-6, 1e-6)


def test_critical_init_broadcasts_under_jit():
    share, slope = np.array([[0.6], [0.8]]), np.array([0.5, 0.7, 0.9])
    one = jax.jit(lambda s, v: theory.critical_init(s, slope=v))(share, slope)
    assert one.ceiling.shape == (2, 3)
    check(one.ceiling[1, 2], theory.critical_init(np.float64(0.8), slope=0.9).ceiling, 1e-12)
    narrow = theory.critical_init(np.float32(0.8), slope=0.9)
    assert narrow.ceiling.dtype == np.float32
    check(narrow.ceiling, one.ceiling[1, 2], 1e-4)


def test_gain_keeps_the_variance_of_a_deep_net():
    check(theory.gain(np.float64(0)), 2.0)  # He's, for ReLU
    x = np.sqrt(2.0) * np.random.default_rng(0).normal(size=(500, 1500))
    # Variance scaling, of which `gain` is the scale: drawn once, for a scale of 1.
    init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    w = np.asarray(init(jax.random.key(0), (1500, 3000), np.float32))
    for variant, ceiling in (("shift", None), ("shift", 0.7), ("hard", None), ("clamp", None)):
        scale = float(theory.gain(0.5, variance=2.0, variant=variant, ceiling=ceiling))
        f = CASES["shift"][1] if variant == "shift" else CASES[variant][1]
        y = f(x, 0.5)
        y = np.minimum(y, ceiling) if ceiling is not None else y
        z = y.astype(np.float32) @ (np.float32(np.sqrt(scale)) * w)
        # Where activations have a mean, all rows share it: one number per output, 3000 in all.
        check(np.mean(z**2), 2.0, 0.06)


def test_a_new_row_has_a_start(rows):
    """Twice the ReLU: half of He's deviation; and what a row cannot have is said."""
    check(theory.gain(np.float64(0), variant="double"), 0.5)
    check(theory.critical_init(np.float64(0.5), variant="double").weight_variance, 0.5)
    with pytest.raises(ValueError, match="no stable edge of chaos: its jump tears"):
        theory.critical_init(0.8, variant="floor")
    with pytest.raises(ValueError, match="`ceiling` belongs to variant='shift'"):
        theory.critical_init(0.8, slope=0.5, variant="double")


# information


def test_gate_entropy_and_the_best_estimates():
    at = np.linspace(-3, 3, 13)
    kept = theory.information(at)
    p = special.ndtr(at)
    check(kept.sparsity, p, 1e-14)
    check(kept.gate_entropy, stats.entropy(np.stack([p, 1 - p]), base=2, axis=0), 1e-12)
    for i, a in enumerate(at):
        centre = -stats.norm.pdf(a) / special.ndtr(a)
        best = expectation(lambda x, a=a, c=centre: np.where(x <= a, (x - c) ** 2, 0), [a])
        check(kept.best_error[i], best, 1e-10)
    for variant, ceiling in (("shift", None), ("shift", 1.3), ("hard", None), ("clamp", None)):
        linear = theory.information(at, variant=variant, ceiling=ceiling).linear_error
        for i, a in enumerate(at):
            breaks = [a, a + (ceiling or 1)]

            def f(x, a=a, variant=variant, ceiling=ceiling):
                y = CASES[variant][1](x, a)
                return y if ceiling is None else np.minimum(y, ceiling)

            mean = expectation(f, breaks)
            spread = expectation(lambda x, f=f, m=mean: (f(x) - m) ** 2, breaks)
            shared = expectation(lambda x, f=f: x * f(x), breaks)
            check(linear[i], 1 - shared**2 / spread, 1e-9, 1e-12)


def test_a_ceiling_keeps_less():
    at = np.linspace(-1, 2, 7)
    free, capped = theory.information(at), theory.information(at, ceiling=1.3)
    assert (capped.best_error > free.best_error).all()
    check(theory.information(at, ceiling=30.0).best_error, free.best_error, 1e-12)
    assert (free.best_error <= free.linear_error).all()
    # No code of so few bits could leave less.
    bits = theory.rate_at(free.best_error)
    assert bits.shape == at.shape and (bits > 0).all()
    check(theory.rate_at(np.array([2.0, 1.0, 0.25])), [0, 0, 1])


# thresholds


def test_gaussian_cutoff():
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 7))
    found = theory.gaussian_cutoff(x, 0.95)
    check(found, x.mean(-1, keepdims=True) + x.std(-1, keepdims=True) * stats.norm.ppf(0.95))
    found = theory.gaussian_cutoff(x, np.float64(0.3), axis=(0, 2))
    assert found.shape == (1, 5, 1)
    narrow = theory.gaussian_cutoff(jnp.asarray(x, jnp.bfloat16), 0.9)
    assert narrow.dtype == np.float32
    h = 1e-6

    def of(x):
        return theory.gaussian_cutoff(x, 0.9)[0]

    cutoff, slope = compiled(of), compiled(jax.grad(of))(x[0, 0])
    for i in range(7):
        step = h * np.eye(7)[i]
        one, other = (cutoff(x[0, 0] + s * step) for s in (1, -1))
        check(slope[i], (one - other) / (2 * h), 1e-6)


def test_gaussian_cutoff_of_equal_values_has_a_gradient():
    """A row without spread, such as padding: its cutoff is its value, and no NaN comes back."""
    slope = jax.grad(lambda x: theory.gaussian_cutoff(x, 0.9).sum())(jnp.ones((2, 4)))
    check(theory.gaussian_cutoff(jnp.ones((2, 4)), 0.9), [[1], [1]])
    check(slope, np.full((2, 4), 0.25))


def test_quantile_threshold_closes_the_share_and_no_less():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(200, 3)).astype(np.float32)
    for s in (0.001, 0.3, 0.5, 0.7, 0.9, 0.999):
        shared = theory.quantile_threshold(data, s)
        assert (data <= shared).mean() >= s > (data < shared).mean()
        per_channel = theory.quantile_threshold(data, s, axis=0)
        assert per_channel.shape == (3,)
        below, upto = (data < per_channel).sum(0), (data <= per_channel).sum(0)
        wanted = round(s * len(data), 9)
        assert (np.asarray(upto) >= wanted).all() and (np.asarray(below) < wanted).all()
    check(theory.quantile_threshold(np.arange(10.0), 0.7), 6.0)  # .7 of ten are seven
    check(theory.quantile_threshold(np.array([1.0, 1, 1, 2]), 0.5), 1.0)  # ties
    check(theory.quantile_threshold(data.T, 0.6, axis=-1), theory.quantile_threshold(data, 0.6, 0))


# what is refused


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: theory.moments(np.nan), "`threshold` should be finite, but is nan"),
        (lambda: theory.moments(np.inf), "`threshold` should be finite, but is inf"),
        (lambda: theory.moments(0.0, mean=np.nan), "`mean` should be finite"),
        (
            lambda: theory.moments(0.0, std=0.0),
            "`std` should be finite and greater than 0, but is 0",
        ),
        (lambda: theory.moments(0.0, std=-1.0), "greater than 0, but is -1"),
        (lambda: theory.moments(0.0, std=np.nan), "greater than 0, but is nan"),
        (lambda: theory.moments(np.zeros(2), std=np.ones(3)), r"`threshold` \(2,\).*do not"),
        (lambda: theory.moments(0.0, variant="soft"), "`variant` should be one of"),
        (lambda: theory.moments(0.0, ceiling=-1.0), "`ceiling` should be greater than 0"),
        (lambda: theory.moments(0.0, variant="hard", ceiling=1.0), "`ceiling` belongs to"),
        (
            lambda: theory.moments(np.float32(0), variant="hard", fill=1e39),
            "`fill` = 1e\\+39 does not fit in the dtype of the operands, float32, .* Cast the ope",
        ),
        (lambda: theory.variance_map(0.0, weight_variance=1.0), "`variance` should be .* greater"),
        (lambda: theory.variance_map(1.0, weight_variance=-1.0), "`weight_variance` should be"),
        (
            lambda: theory.variance_map(1.0, weight_variance=1.0, bias_variance=-1.0),
            "`bias_variance` should be at least 0, but is -1",
        ),
        (lambda: theory.gradient_gain(-1.0, weight_variance=1.0), "`variance` should be"),
        (lambda: theory.correlation_map(1.1, weight_variance=1.0), "from -1 to 1, but is 1.1"),
        (lambda: theory.smoothed(0.0, std=0.0), "`std` should be"),
        (lambda: theory.gain(0.0, variance=0.0), "`variance` should be"),
        (
            lambda: theory.critical_init(0.0),
            "`sparsity` .* greater than 0 and less than 1, but is 0",
        ),
        (lambda: theory.critical_init(1.0), "less than 1, but is 1"),
        (lambda: theory.critical_init(np.nan), "less than 1, but is nan"),
        (lambda: theory.critical_init(0.3), "at least 0.5 .*: at 0.3 .* negative bias variance"),
        (
            lambda: theory.critical_init(0.8, slope=1.0),
            "`slope` should be .* less than 1, but is 1",
        ),
        (lambda: theory.critical_init(0.8, slope=0.0), "`slope` should be greater than 0"),
        (lambda: theory.critical_init(0.8, variance=0.0), "`variance` should be"),
        (lambda: theory.critical_init(0.8, variant="hard"), "'hard' has no stable edge of chaos"),
        (lambda: theory.critical_init(0.8, variant="clamp"), "'clamp' has no zeros"),
        (lambda: theory.rate_at(0.0), "`distortion` should be"),
        (lambda: theory.gaussian_cutoff(np.ones(3), 1.5), "`sparsity` should be"),
        (lambda: theory.gaussian_cutoff(np.ones((3, 0)), 0.5), "no elements along axis -1"),
        (lambda: theory.gaussian_cutoff(np.ones(3), 0.5, axis=2), "axis 2 .* shape \\(3,\\)"),
        (lambda: theory.quantile_threshold(np.ones(3), 0.5), "all values .* are equal"),
        (lambda: theory.quantile_threshold(np.ones((3, 2)), 0.5, axis=0), "in some channel"),
        (lambda: theory.quantile_threshold(np.zeros((0, 2)), 0.5), "no elements"),
        (lambda: theory.quantile_threshold(np.array([1, np.nan]), 0.5), "holds NaN"),
        (lambda: theory.quantile_threshold(np.arange(3.0), 0.0), "`sparsity` should be"),
        (lambda: theory.quantile_threshold(np.arange(3.0), np.nan), "`sparsity` should be"),
        (
            lambda: theory.quantile_threshold(np.arange(3.0), 0.5, axis=1),
            "axis 1 .* shape \\(3,\\)",
        ),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: theory.moments("a"),
        lambda: theory.moments(1j),
        lambda: theory.gaussian_cutoff(np.arange(3), 0.5),
        lambda: theory.quantile_threshold(["a"], 0.5),
    ],
)
def test_refused_types(call):
    with pytest.raises(TypeError):
        call()


@pytest.mark.parametrize("ceiling", [10**39, 1e39, np.inf])
def test_a_ceiling_that_float32_does_not_hold_is_never_reached(ceiling):
    theta = np.float32(0.75)

    def all_of(**options):
        return (
            theory.moments(theta, **options),
            theory.information(theta, **options),
            theory.correlation_map(np.float32(0.5), theta, weight_variance=2.0, **options),
        )

    jax.tree.map(np.testing.assert_array_equal, all_of(ceiling=ceiling), all_of())
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(all_of(ceiling=ceiling)))


def test_what_looks_at_values_says_so_under_jit():
    calls = {
        "`data` .* quantile_threshold": lambda x: theory.quantile_threshold(x, 0.5),
        "`sparsity` .* quantile_threshold": lambda x: theory.quantile_threshold(np.eye(3), x[0, 0]),
        "`w_out` .* threshold_for_error": lambda x: theory.threshold_for_error(np.eye(3), x, 0.1),
    }
    for words, call in calls.items():
        with pytest.raises(TypeError, match=f"{words} has to see its values. Call it outside"):
            jax.jit(call)(np.eye(3))


def test_the_continued_fraction_meets_the_closed_form():
    """Where the one gives way to the other there is no step."""
    edge = _moments._TAIL
    below, above = edge, np.nextafter(edge, 9)
    for one, other in zip(*map(theory.moments, map(np.float64, (below, above))), strict=True):
        check(one, other, 2e-13)
    check(theory.moments(np.float64(edge)).mean, integrate.quad(special.ndtr, -40, -edge)[0], 1e-10)


def sketch_of(*parts, channels=None):
    made = theory.QuantileSketch(channels)
    for part in parts:
        made.update(part)
    return made


def test_sketch_is_within_its_bound_and_merges():
    pytest.importorskip("datasketches", reason="datasketches is not installed")
    data = np.random.default_rng(0).normal(size=(30_000, 2)).astype(np.float32) * [1, 5]
    whole = sketch_of(data, channels=2)
    merged = sketch_of(data[:9_000], channels=2).merge(sketch_of(data[9_000:], channels=2))
    shared = sketch_of(data[:20_000], data[20_000:])
    assert whole.count == merged.count == 30_000 and shared.count == 60_000
    assert 0.001 < whole.rank_error < 0.002
    for s in (0.1, 0.5, 0.95):
        for sketch, axis in ((whole, 0), (merged, 0), (shared, None)):
            threshold = np.asarray(sketch.threshold(s))
            assert threshold.shape == ((2,) if axis == 0 else ())
            closed = (data <= threshold).mean(axis)
            # Its random numbers are its own, and the bound has 99 % confidence: four times it.
            assert np.all(np.abs(closed - s) < 4 * sketch.rank_error)
    few = sketch_of(np.arange(10.0))
    assert few.threshold(0.55) == 5.0  # kept whole


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: theory.QuantileSketch(0), "`channels` should be"),
        (lambda: theory.QuantileSketch(k=3), "`k` should be from 8 to 65535, but is 3"),
        (lambda: sketch_of(np.ones((3, 2)), channels=3), r"3 channels .* shape \(3, 2\)"),
        (lambda: sketch_of(np.array([np.nan])), "holds NaN"),
        (lambda: sketch_of().threshold(0.5), "has seen no data"),
        (lambda: sketch_of(np.ones(3)).threshold(0.5), "are equal"),
        (lambda: sketch_of(np.arange(3.0)).threshold(1.0), "`sparsity` should be"),
        (
            lambda: sketch_of().merge(sketch_of(channels=2)),
            "channels=None and k=2000, but has channels=2",
        ),
    ],
)
def test_sketch_refuses(call, words):
    pytest.importorskip("datasketches", reason="datasketches is not installed")
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("variant", ["shift", "hard"])
def test_threshold_for_error(variant):
    """Within the error, and not much below it; an error written out in NumPy."""
    rng = np.random.default_rng(0)
    z, w = rng.normal(size=(300, 40)), rng.normal(size=(40, 20))
    found = theory.threshold_for_error(z, w, 0.1, variant=variant)
    f = CASES[variant][1]

    def error(threshold):
        whole = np.maximum(z, 0) @ w
        return np.linalg.norm(f(z, threshold) @ w - whole) / np.linalg.norm(whole)

    threshold = float(found.threshold)
    check(found.error, error(threshold), 1e-9)
    assert error(threshold) <= 0.1 < error(threshold + 0.01)
    check(found.sparsity, (z <= threshold).mean(), 1e-12)
    if variant == "hard":
        assert found.sparsity > theory.threshold_for_error(z, w, 0.1).sparsity + 0.05


@pytest.mark.parametrize(
    ("z", "w", "options", "words"),
    [
        (np.ones((3, 2)), np.ones((3, 2)), {}, r"\(rows, m\).*\(3, 2\) and \(3, 2\)"),
        (np.ones((0, 2)), np.ones((2, 2)), {}, "there is no data"),
        (np.full((3, 2), np.nan), np.ones((2, 2)), {}, "should be finite"),
        (-np.ones((3, 2)), np.ones((2, 2)), {}, "the output is 0 without a threshold"),
        (np.ones((3, 2)), np.ones((2, 2)), {"error": 1.0}, "`error` should be"),
        (np.ones((3, 2)), np.ones((2, 2)), {"variant": "clamp"}, "'clamp' has no zeros"),
    ],
)
def test_threshold_for_error_refuses(z, w, options, words):
    with pytest.raises(ValueError, match=words):
        theory.threshold_for_error(z, w, **{"error": 0.1, **options})


# A linear probe.


def probe_rows(seed, count=400):
    x = np.random.default_rng(seed).normal(size=(count, 5))
    return x, (x[:, 0] > 0).astype(int) + 2 * (x[:, 1] > 0)


def test_linear_probe_against_least_squares():
    """With next to no penalty it is least squares, and reads what is there."""
    (x, y), (z, truth) = probe_rows(0), probe_rows(1)
    found = theory.linear_probe(x, y, z, truth, ridge=1e-9)
    columns = np.concatenate([x, np.ones((len(x), 1))], 1)
    weights = np.linalg.lstsq(columns, np.eye(4)[y], rcond=None)[0]
    expected = np.mean(
        np.argmax(np.concatenate([z, np.ones((len(z), 1))], 1) @ weights, 1) == truth
    )
    assert found == expected > 0.8
    # What is closed cannot be read: of one sign nothing is left above 3.
    dead = theory.linear_probe(np.maximum(x - 9, 0), y, np.maximum(z - 9, 0), truth)
    assert dead == pytest.approx(np.mean(truth == np.bincount(y).argmax()))
    # In any units.
    assert theory.linear_probe(1e3 * x, y, 1e3 * z, truth) == theory.linear_probe(x, y, z, truth)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"labels": np.ones(400)}, TypeError, "`labels` should be integers"),
        ({"labels": np.ones(3, int)}, ValueError, r"`labels` \(rows,\)"),
        ({"labels": -np.ones(400, int)}, ValueError, "at least 0, but holds -1"),
        ({"held_out": np.ones((400, 4))}, ValueError, "the same features"),
        ({"activations": np.full((400, 5), np.nan)}, ValueError, "should be finite"),
        ({"ridge": 0.0}, ValueError, "`ridge` should be finite and greater than 0"),
    ],
)
def test_linear_probe_refuses(change, error, words):
    (x, y), (z, truth) = probe_rows(0), probe_rows(1)
    given = {"activations": x, "labels": y, "held_out": z, "held_out_labels": truth, **change}
    with pytest.raises(error, match=words):
        theory.linear_probe(**given)
