"""Every law under a surrogate: dtypes, vmap, both modes at both orders, control flow, edges."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from cases import together

import jaxtrelu
from jaxtrelu import Gaussian, Rectangle, Sigmoid, Triangle, jump_relu, step

SLOW = pytest.mark.slow
SURROGATES = [
    kind(0.4, to_input=to_input)
    for kind in (Rectangle, Triangle, Gaussian, Sigmoid)
    for to_input in (False, True)
]
each_surrogate = pytest.mark.parametrize("surrogate", SURROGATES, ids=str)
# "shift" has no jump: its surrogate smooths the kink of the backward pass.
FUNCTIONS = {"jump_relu": jump_relu, "step": step, "shift": jaxtrelu.thresholded_relu}
PAIRS = [(n, s) for n in FUNCTIONS for s in SURROGATES if n != "shift" or not s.to_input]


#: Each function with each kind, of which one half gives to the input as well.
SOME = [PAIRS[0], PAIRS[3], PAIRS[4], PAIRS[7], PAIRS[9], PAIRS[10], PAIRS[13], PAIRS[14]]
SOME += PAIRS[16:]
#: For what takes long to compile: each function twice, each kind, and each half of them.
FEW = [PAIRS[i] for i in (3, 4, 9, 14, 17, 18)]


def all_of(law, pairs, run=runs.one_program):
    together({f"{name} {surrogate}": law(name, surrogate) for name, surrogate in pairs}, run)


def every_pair(law=None, *, some=SOME):
    """A law of every function under every surrogate: a generator, as `cases.together` takes it.

    `some` are run in one program; slow, each of `FEW` step by step.
    """
    if law is None:
        return partial(every_pair, some=some)

    @functools.wraps(law)
    def test(run, pairs):
        all_of(law, pairs, run)

    del test.__wrapped__  # which would show pytest the law's own parameters
    parameters = [pytest.param(runs.one_program, some, id="together")]
    for pair in FEW:
        alone = pytest.param(runs.step_by_step, [pair], id=f"{pair[0]} {pair[1]}", marks=SLOW)
        parameters.append(alone)
    return pytest.mark.parametrize(("run", "pairs"), parameters)(test)


# In eighths, exact in every dtype; none on a threshold, none on the edge of a window.
X = np.array([[-1.0, 0.25, 0.375, 1.5, 0.625], [0.125, 0.625, 0.875, 0.25, 2.0]])
THETA = np.array([0.5, 0.375, 0.5, 0.625, 0.75])


def of(name, surrogate):
    return partial(FUNCTIONS[name], surrogate=surrogate)


def density(surrogate, d):
    """Written out once more, in float64."""
    u = d / surrogate.bandwidth
    forms = {
        Rectangle: lambda: np.abs(u) < 0.5,
        Triangle: lambda: np.maximum(1 - np.abs(u), 0),
        Gaussian: lambda: np.exp(-u * u / 2) / np.sqrt(2 * np.pi),
        Sigmoid: lambda: 1 / (2 + np.exp(u) + np.exp(-u)),
    }
    return forms[type(surrogate)]() / surrogate.bandwidth


@functools.cache
def mass_below(surrogate):
    """The integral of the density up to X − THETA."""
    grid = np.linspace(-20, 0, 200_001)[:, None, None]
    return np.trapezoid(density(surrogate, X - THETA + grid), grid[:, 0, 0], axis=0)


def slopes(name, surrogate):
    """dy/dx and dy/dθ by the stated rule; the slope of `shift` is the integral of the density."""
    if name == "shift":
        return mass_below(surrogate), -mass_below(surrogate)
    estimate = density(surrogate, X - THETA) * (THETA if name == "jump_relu" else 1.0)
    is_open = (X > THETA) * (name == "jump_relu")
    return is_open + surrogate.to_input * estimate, -estimate


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_dtypes_and_values(dtype):
    def law(name, surrogate):
        def program(x, theta, weights):
            y, pull = jax.vjp(of(name, surrogate), x, theta)
            return y, *pull(weights)

        wide = jnp.promote_types(dtype, jnp.float32)
        weights = np.array([[1, -2, 0.5, 3, 1], [2, 1, -1, 0.5, 4]])
        operands = [jnp.asarray(o, d) for o, d in ((X, dtype), (THETA, wide), (weights, dtype))]
        y, dx, dtheta = yield program, *operands
        assert (y.dtype, dx.dtype, dtheta.dtype) == (dtype, dtype, wide)
        value = {"jump_relu": X, "step": np.ones_like(X), "shift": X - THETA}[name]
        np.testing.assert_array_equal(np.asarray(y, float), np.where(X > THETA, value, 0))
        to_x, to_theta = slopes(name, surrogate)
        tolerance = {"bfloat16": 2e-2, "float16": 3e-3}.get(dtype, 1e-3)
        wanted = weights * to_x
        np.testing.assert_allclose(np.asarray(dx, float), wanted, rtol=tolerance, atol=tolerance)
        wanted = (weights * to_theta).sum(0)
        size = 10 * tolerance
        np.testing.assert_allclose(np.asarray(dtheta, float), wanted, rtol=tolerance, atol=size)

    with jax.enable_x64(dtype == "float64"):
        all_of(law, PAIRS)


AXES = [(0, 0), (0, None), (None, 0), (1, None)]
PARTS = [pytest.param(axes, PAIRS[i::4], id=str(axes)) for i, axes in enumerate(AXES)]
PARTS += [pytest.param(a, FEW, id=f"{a}, the same pairs", marks=SLOW) for a in AXES]


@pytest.mark.parametrize(("axes", "pairs"), PARTS)
def test_vmap_of_values_and_gradients_is_the_loop(axes, pairs):
    """Every pair over one choice of axes, and, slow, a few over all."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 5))
    theta = 0.5 + 0.1 * jax.random.normal(jax.random.key(1), (3, 5))
    operands = [o[0] if a is None else o for o, a in zip((x, theta), axes, strict=True)]
    (size, *_) = (o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None)

    def law(name, surrogate):
        def loss(x, theta):
            y = of(name, surrogate)(x, theta)
            return jnp.sum(jnp.cos(x) * y), y

        gradient = jax.grad(loss, (0, 1), has_aux=True)

        def program(*operands):
            def at(i):
                pairs = zip(operands, axes, strict=True)
                return [o if a is None else jnp.take(o, i, a) for o, a in pairs]

            return jax.vmap(gradient, axes)(*operands), [gradient(*at(i)) for i in range(size)]

        many, one_by_one = yield program, *operands
        for i, one in enumerate(one_by_one):
            for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)

    all_of(law, pairs)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("x64")
@every_pair
def test_both_modes_agree(name, surrogate):
    f = of(name, surrogate)

    def program(operands, tangents, ct):
        pushed = jax.jvp(f, operands, tangents)[1], jax.linearize(f, *operands)[1](*tangents)
        jacobians = [jacobian(f, (0, 1))(*operands) for jacobian in (jax.jacfwd, jax.jacrev)]
        return pushed, jax.vjp(f, *operands)[1](ct), jacobians

    rng = np.random.default_rng(2)
    tangents, ct = tuple(rng.normal(size=o.shape) for o in (X, THETA)), rng.normal(size=X.shape)
    (pushed, linear), pulled, (forward, reverse) = yield program, (X, THETA), tangents, ct
    np.testing.assert_allclose(linear, pushed, rtol=1e-12)
    inner = sum(np.vdot(a, b) for a, b in zip(pulled, tangents, strict=True))
    np.testing.assert_allclose(inner, np.vdot(ct, pushed), rtol=1e-12)
    for a, b in zip(reverse, forward, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.usefixtures("x64")
@every_pair(some=FEW)
def test_both_modes_agree_at_second_order(name, surrogate):
    f = of(name, surrogate)

    def loss(x, theta):
        return jnp.sum(jnp.sin(f(x, theta)) + 0.5 * f(x, theta) ** 2)

    def program(x, theta):
        both = jax.hessian(loss, (0, 1)), jax.jacrev(jax.grad(loss, (0, 1)), (0, 1))
        return [second(x, theta) for second in both]

    hessian, reverse = yield program, X, THETA
    for a, b in zip(jax.tree.leaves(hessian), jax.tree.leaves(reverse), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=1e-10)


@every_pair(some=FEW)
def test_jit_checkpoint_and_scan_change_nothing(name, surrogate):
    f = of(name, surrogate)

    def loss(theta, x, f=f):
        return jnp.sum(jnp.cos(x) * f(x, theta))

    def scanned(theta, x):
        def body(total, row):
            return total + jnp.sum(jnp.cos(row) * f(row, theta)), None

        return jax.lax.scan(body, jnp.zeros(()), x)[0]

    ways = (loss, jax.jit(loss), partial(loss, f=jax.checkpoint(f)), scanned, jax.jit(scanned))

    def program(theta, x):
        return [jax.grad(way)(theta, x) for way in ways]

    wanted, *others = yield program, jnp.asarray(THETA, jnp.float32), jnp.asarray(X, jnp.float32)
    assert np.abs(wanted).sum() > 0
    for other in others:
        np.testing.assert_allclose(other, wanted, rtol=1e-5, atol=1e-6)


@each_surrogate
def test_nan_stays_and_what_is_closed_passes_exactly_nothing(surrogate):
    f = of("jump_relu", surrogate)
    x, theta = jnp.array([jnp.nan, -90.0, 90.0]), jnp.full(3, 0.5)
    y, pull = jax.vjp(f, x, theta)
    assert np.isnan(y[0])
    assert y[1:].tolist() == [0.0, 90.0]
    dx, dtheta = pull(jnp.array([1.0, jnp.inf, 1.0]))
    if surrogate.half_width is not None:
        assert dx[1:].tolist() == [0.0, 1.0]
        assert np.abs(dtheta[1:]).tolist() == [0.0, 0.0]
    else:
        assert dx[2] == 1


@pytest.mark.parametrize(
    ("name", "surrogate", "bits", "numbers"),
    [
        ("step", Rectangle(0.1), 1, 0),
        ("step", Triangle(0.1), 1, 1),
        ("step", Gaussian(0.1), 0, 1),
        ("shift", Rectangle(0.1), 1, 1),
        ("shift", Sigmoid(0.1), 0, 1),
    ],
    ids=str,
)
def test_residual_size_of_the_step_and_of_a_smoothed_kink(name, surrogate, bits, numbers):
    x, theta = jax.random.normal(jax.random.key(0), (256, 1024)), jnp.full(1024, 0.5)
    pull = jax.jit(lambda x, t: jax.vjp(of(name, surrogate), x, t)[1])
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull(x, theta)))
    wanted = x.size * bits / 8 + numbers * x.nbytes
    assert wanted <= kept <= wanted + 2 * theta.nbytes
