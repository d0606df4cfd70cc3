"""Every law under a surrogate: dtypes, vmap, both modes at both orders, control flow, edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrelu
from jaxtrelu import Gaussian, Rectangle, Sigmoid, Triangle, jump_relu, step

SURROGATES = [
    kind(0.4, to_input=to_input)
    for kind in (Rectangle, Triangle, Gaussian, Sigmoid)
    for to_input in (False, True)
]
each_surrogate = pytest.mark.parametrize("surrogate", SURROGATES, ids=str)
# "shift" has no jump: its surrogate smooths the kink of the backward pass.
FUNCTIONS = {"jump_relu": jump_relu, "step": step, "shift": jaxtrelu.thresholded_relu}
each_pair = pytest.mark.parametrize(
    ("name", "surrogate"),
    [(n, s) for n in FUNCTIONS for s in SURROGATES if n != "shift" or not s.to_input],
    ids=str,
)

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


def slopes(name, surrogate, x, theta):
    """dy/dx and dy/dθ by the stated rule; the slope of `shift` is the integral of the density."""
    d = x - theta
    if name == "shift":
        grid = np.linspace(-20, 0, 200_001)[:, None, None]
        smooth = np.trapezoid(density(surrogate, d + grid), grid[:, 0, 0], axis=0)
        return smooth, -smooth
    estimate = density(surrogate, d) * (theta if name == "jump_relu" else 1.0)
    is_open = (x > theta) * (name == "jump_relu")
    return is_open + surrogate.to_input * estimate, -estimate


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@each_pair
def test_dtypes_and_values(name, surrogate, dtype):
    with jax.enable_x64(dtype == "float64"):
        wide = jnp.promote_types(dtype, jnp.float32)
        x, theta = jnp.asarray(X, dtype), jnp.asarray(THETA, wide)
        y, pull = jax.vjp(of(name, surrogate), x, theta)
        weights = jnp.asarray([[1, -2, 0.5, 3, 1], [2, 1, -1, 0.5, 4]], dtype)
        dx, dtheta = pull(weights)
        assert (y.dtype, dx.dtype, dtheta.dtype) == (x.dtype, x.dtype, theta.dtype)
        value = {"jump_relu": X, "step": np.ones_like(X), "shift": X - THETA}[name]
        np.testing.assert_array_equal(np.asarray(y, float), np.where(X > THETA, value, 0))
        to_x, to_theta = slopes(name, surrogate, X, THETA)
        tolerance = {"bfloat16": 2e-2, "float16": 3e-3}.get(dtype, 1e-3)
        wanted = np.asarray(weights, float) * to_x
        np.testing.assert_allclose(np.asarray(dx, float), wanted, rtol=tolerance, atol=tolerance)
        wanted = (np.asarray(weights, float) * to_theta).sum(0)
        size = 10 * tolerance
        np.testing.assert_allclose(np.asarray(dtheta, float), wanted, rtol=tolerance, atol=size)


@each_pair
def test_vmap_of_values_and_gradients_is_the_loop(name, surrogate):
    f = of(name, surrogate)
    x = jax.random.normal(jax.random.key(0), (3, 4, 5))
    theta = 0.5 + 0.1 * jax.random.normal(jax.random.key(1), (3, 5))

    def loss(x, theta):
        return jnp.sum(jnp.cos(x) * f(x, theta))

    gradient = jax.grad(loss, (0, 1))
    for axes in ((0, 0), (0, None), (None, 0), (1, None)):
        one_theta, one_x = theta if axes[1] is not None else theta[0], x
        if axes[0] is None:
            one_x = x[0]
        many = jax.vmap(gradient, axes)(one_x, one_theta)
        size = {0: 3, 1: 4, None: 3}[axes[0]]
        for i in range(size):
            xi = one_x if axes[0] is None else jnp.take(one_x, i, axes[0])
            ti = one_theta if axes[1] is None else one_theta[i]
            for a, b in zip(many, gradient(xi, ti), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)


@each_pair
def test_both_modes_agree_at_both_orders(name, surrogate):
    with jax.enable_x64(True):
        f = of(name, surrogate)
        operands = jnp.asarray(X), jnp.asarray(THETA)
        keys = jax.random.split(jax.random.key(2), 3)
        tangents = tuple(
            jax.random.normal(k, o.shape) for k, o in zip(keys, operands, strict=False)
        )
        ct = jax.random.normal(keys[2], X.shape)
        _, pushed = jax.jvp(f, operands, tangents)
        np.testing.assert_allclose(jax.linearize(f, *operands)[1](*tangents), pushed, rtol=1e-12)
        pulled = jax.vjp(f, *operands)[1](ct)
        inner = sum(jnp.vdot(a, b) for a, b in zip(pulled, tangents, strict=True))
        np.testing.assert_allclose(inner, jnp.vdot(ct, pushed), rtol=1e-12)
        for argument in (0, 1):
            forward = jax.jacfwd(f, argument)(*operands)
            np.testing.assert_allclose(jax.jacrev(f, argument)(*operands), forward, atol=1e-12)

        def loss(x, theta):
            return jnp.sum(jnp.sin(f(x, theta)) + 0.5 * f(x, theta) ** 2)

        hessian = jax.hessian(loss, (0, 1))(*operands)
        reverse = jax.jacrev(jax.grad(loss, (0, 1)), (0, 1))(*operands)
        for a, b in zip(jax.tree.leaves(hessian), jax.tree.leaves(reverse), strict=True):
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b, atol=1e-10)


@each_pair
def test_jit_checkpoint_and_scan_change_nothing(name, surrogate):
    f = of(name, surrogate)
    x, theta = jnp.asarray(X, jnp.float32), jnp.asarray(THETA, jnp.float32)

    def loss(theta, f=f):
        return jnp.sum(jnp.cos(x) * f(x, theta))

    def scanned(theta):
        def body(total, row):
            return total + jnp.sum(jnp.cos(row) * f(row, theta)), None

        return jax.lax.scan(body, jnp.zeros(()), x)[0]

    wanted = jax.grad(loss)(theta)
    assert float(jnp.abs(wanted).sum()) > 0
    again = (jax.jit(loss), partial(loss, f=jax.checkpoint(f)), scanned, jax.jit(scanned))
    for other in again:
        np.testing.assert_allclose(jax.grad(other)(theta), wanted, rtol=1e-5, atol=1e-6)


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
