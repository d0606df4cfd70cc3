"""Surrogate gradients: hand values, the rule in every mode, what is kept, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick

import jaxtrelu
from jaxtrelu import Gaussian, Rectangle, Sigmoid, Triangle, jump_relu, step

ALL = (Rectangle, Triangle, Gaussian, Sigmoid)


def pulled(function, *operands):
    """The cotangents of all operands for a cotangent of ones."""
    value, pull = jax.vjp(function, *operands)
    return [np.asarray(c) for c in pull(jnp.ones_like(value))]


# --- hand values -----------------------------------------------------------------------------


def test_hand_values_one_threshold_per_element():
    z, theta = jnp.array([0.10, 0.52, 0.48, 1.0]), jnp.full(4, 0.5)
    jump = partial(jump_relu, surrogate=Rectangle(0.1))
    np.testing.assert_array_equal(jump(z, theta), np.float32([0, 0.52, 0, 1]))
    dz, dtheta = pulled(jump, z, theta)
    np.testing.assert_array_equal(dz, [0, 1, 0, 1])
    np.testing.assert_array_equal(dtheta, [0, -5, -5, 0])
    dz, dtheta = pulled(partial(step, surrogate=Rectangle(0.1)), z, theta)
    np.testing.assert_array_equal(dz, [0, 0, 0, 0])
    np.testing.assert_array_equal(dtheta, [0, -10, -10, 0])


def test_hand_values_one_threshold_per_feature():
    x = jnp.array([[-0.2, 0.08, 0.10, 0.12, 0.5], [0.099, 0.101, 0.2, 0.07, 0.13]])
    theta = jnp.full(5, 0.1)
    dx, dtheta = pulled(partial(jump_relu, surrogate=Rectangle(0.05)), x, theta)
    np.testing.assert_array_equal(dx, [[0, 0, 0, 1, 1], [0, 1, 1, 0, 1]])
    np.testing.assert_array_equal(dtheta, [-2, -4, -2, -2, 0])
    dx, dtheta = pulled(partial(step, surrogate=Rectangle(0.05)), x, theta)
    np.testing.assert_array_equal(dx, np.zeros((2, 5)))
    np.testing.assert_array_equal(dtheta, [-20, -40, -20, -20, 0])


def test_hand_values_to_input():
    z, theta = jnp.array([0.10, 0.52, 0.48, 1.0]), jnp.full(4, 0.5)
    surrogate = Rectangle(0.1, to_input=True)
    dz, dtheta = pulled(partial(jump_relu, surrogate=surrogate), z, theta)
    np.testing.assert_array_equal(dz, [0, 1 + 5, 5, 1])
    np.testing.assert_array_equal(dtheta, [0, -5, -5, 0])
    dz, dtheta = pulled(partial(step, surrogate=surrogate), z, theta)
    np.testing.assert_array_equal(dz, [0, 10, 10, 0])
    np.testing.assert_array_equal(dtheta, [0, -10, -10, 0])


# --- the densities ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_density_is_symmetric_of_unit_mass_and_the_slope_of_cumulative(kind):
    surrogate = kind(0.3)
    with jax.enable_x64(True):
        u = jnp.linspace(-9, 9, 200_002)
        density = np.asarray(surrogate.density(u))
        np.testing.assert_allclose(density, density[::-1], rtol=1e-9, atol=1e-12)
        assert np.trapezoid(density, u) == pytest.approx(1, abs=1e-3)
        slope = jax.vmap(jax.grad(surrogate.cumulative))(u)
        np.testing.assert_allclose(slope, density, atol=1e-9)
        assert surrogate.cumulative(jnp.array([-9.0, 0.0, 9.0])).tolist() == pytest.approx(
            [0, 0.5, 1], abs=1e-9
        )


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("to_input", [False, True])
def test_gradients_follow_the_stated_rule_in_both_modes(kind, to_input):
    surrogate = kind(0.2, to_input=to_input)
    z = jax.random.normal(jax.random.key(0), (64, 7))
    theta = jnp.linspace(0.2, 0.8, 7)
    density = np.asarray(surrogate.density(z - theta))
    opened = np.asarray(z > theta, np.float32)
    for function, slope, height in ((jump_relu, opened, theta), (step, 0 * opened, 1.0)):
        f = partial(function, surrogate=surrogate)
        dz, dtheta = pulled(f, z, theta)
        estimate = np.asarray(height) * density
        np.testing.assert_allclose(dz, slope + to_input * estimate, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(dtheta, -estimate.sum(0), rtol=2e-5, atol=1e-5)
        tangents = (jnp.cos(z), jnp.sin(theta))
        _, pushed = jax.jvp(f, (z, theta), tangents)
        wanted = (slope + to_input * estimate) * tangents[0] - estimate * tangents[1]
        np.testing.assert_allclose(pushed, wanted, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("kind", quick(ALL, ALL[:2]))
@pytest.mark.parametrize("function", [jump_relu, step])
def test_second_derivatives_are_those_of_the_rule(kind, function):
    """The Hessian in θ is the derivative of −J(θ) D(z − θ), by finite differences of that rule."""
    with jax.enable_x64(True):
        surrogate, theta, h = kind(0.4), 0.55, 1e-6
        z = jnp.array([0.2, 0.47, 0.61, 0.7, 1.4])

        def rule(t):
            height = t if function is jump_relu else 1.0
            return float(jnp.sum(-height * surrogate.density(z - t)))

        def total(t):
            return jnp.sum(function(z, t, surrogate=surrogate))

        wanted = (rule(theta + h) - rule(theta - h)) / (2 * h)
        for second in (jax.grad(jax.grad(total)), jax.jacfwd(jax.grad(total))):
            assert float(second(jnp.asarray(theta))) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_shift_with_a_surrogate_smooths_its_kink_backwards_only():
    x = jnp.array([0.2, 0.45, 0.56, 0.9])
    smooth = partial(jaxtrelu.thresholded_relu, surrogate=Triangle(0.2))
    np.testing.assert_array_equal(smooth(x, 0.5), jaxtrelu.thresholded_relu(x, 0.5))
    dx, dtheta = pulled(smooth, x, jnp.float32(0.5))
    slope = Triangle(0.2).cumulative(x - 0.5)
    np.testing.assert_allclose(dx, slope, rtol=1e-5)
    assert float(dtheta) == pytest.approx(-float(slope.sum()), rel=1e-5)


# --- what is kept for the backward pass --------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("surrogate", "bits", "numbers"),
    [
        (Rectangle(0.1), 2, 0),
        (Rectangle(0.1, to_input=True), 2, 0),
        (Triangle(0.1), 2, 1),
        (Gaussian(0.1), 1, 1),
        (Sigmoid(0.1), 1, 1),
    ],
    ids=str,
)
def test_residual_size(surrogate, bits, numbers, dtype):
    x = jax.random.normal(jax.random.key(0), (256, 1024)).astype(dtype)
    theta = jnp.full(1024, 0.5)
    pull = jax.jit(lambda x, t: jax.vjp(partial(jump_relu, surrogate=surrogate), x, t)[1])
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull(x, theta)))
    wanted = x.size * bits / 8 + numbers * x.nbytes
    assert wanted <= kept <= wanted + 2 * theta.nbytes


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("bandwidth", [0, -0.1, float("nan"), float("inf")])
def test_bandwidth_has_to_be_positive(kind, bandwidth):
    with pytest.raises(ValueError, match=r"`bandwidth` of .* greater than 0, in the units of x"):
        kind(bandwidth)


@pytest.mark.parametrize("bandwidth", ["0.1", None, True, jnp.float32(0.1)])
def test_bandwidth_has_to_be_a_number(bandwidth):
    with pytest.raises(TypeError, match=r"`bandwidth` of Rectangle should be a number"):
        Rectangle(bandwidth)


def test_errors_name_what_was_given():
    x = jnp.ones((4, 3))
    with pytest.raises(ValueError, match="nothing to estimate for variant='clamp'"):
        jaxtrelu.thresholded_relu(x, 0.5, variant="clamp", surrogate=Rectangle(0.1))
    with pytest.raises(ValueError, match=r"broadcasts against x of shape .*\(5,\)"):
        jump_relu(x, jnp.ones(5), surrogate=Rectangle(0.1))
    with pytest.raises(TypeError, match="without one a JumpReLU's threshold does not learn"):
        jump_relu(x, 0.5, surrogate=None)
    with pytest.raises(TypeError, match=r"should be a jaxtrelu surrogate.*0\.1"):
        jump_relu(x, 0.5, surrogate=0.1)
