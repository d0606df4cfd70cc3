"""Surrogate gradients: hand values, the √λ law, how large the bias is, and what they keep."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

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
    np.testing.assert_allclose(dtheta, [0, -5, -5, 0], rtol=1e-6)
    dz, dtheta = pulled(partial(step, surrogate=Rectangle(0.1)), z, theta)
    np.testing.assert_array_equal(dz, [0, 0, 0, 0])
    np.testing.assert_allclose(dtheta, [0, -10, -10, 0], rtol=1e-6)


def test_hand_values_one_threshold_per_feature():
    x = jnp.array([[-0.2, 0.08, 0.10, 0.12, 0.5], [0.099, 0.101, 0.2, 0.07, 0.13]])
    theta = jnp.full(5, 0.1)
    dx, dtheta = pulled(partial(jump_relu, surrogate=Rectangle(0.05)), x, theta)
    np.testing.assert_array_equal(dx, [[0, 0, 0, 1, 1], [0, 1, 1, 0, 1]])
    np.testing.assert_allclose(dtheta, [-2, -4, -2, -2, 0], rtol=1e-6)
    dx, dtheta = pulled(partial(step, surrogate=Rectangle(0.05)), x, theta)
    np.testing.assert_array_equal(dx, np.zeros((2, 5)))
    np.testing.assert_allclose(dtheta, [-20, -40, -20, -20, 0], rtol=1e-6)


def test_hand_values_to_input():
    z, theta = jnp.array([0.10, 0.52, 0.48, 1.0]), jnp.full(4, 0.5)
    surrogate = Rectangle(0.1, to_input=True)
    dz, dtheta = pulled(partial(jump_relu, surrogate=surrogate), z, theta)
    np.testing.assert_allclose(dz, [0, 1 + 5, 5, 1], rtol=1e-6)
    np.testing.assert_allclose(dtheta, [0, -5, -5, 0], rtol=1e-6)
    dz, dtheta = pulled(partial(step, surrogate=surrogate), z, theta)
    np.testing.assert_allclose(dz, [0, 10, 10, 0], rtol=1e-6)
    np.testing.assert_allclose(dtheta, [0, -10, -10, 0], rtol=1e-6)


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


@pytest.mark.parametrize("kind", ALL)
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


# --- the √λ law ------------------------------------------------------------------------------


def _window_quadrature(center, half_width, panels=24):
    """Gauss-Legendre nodes on both sides of the threshold: none on an edge of the window."""
    nodes, weights = np.polynomial.legendre.leggauss(panels)
    nodes, weights = (nodes + 1) * half_width / 2, weights * half_width / 2
    return center + np.concatenate([-nodes, nodes]), np.concatenate([weights, weights])


def _root(penalised, coefficient, bandwidth, density=stats.norm.pdf, bracket=(0.2, 3.0)):
    """Where the expected gradient of E (z − f)² + λ E H(· − θ) vanishes, by quadrature over z."""
    surrogate = Rectangle(bandwidth)

    @jax.jit
    def gradient(theta, z, weight):
        def objective(t):
            f = jump_relu(z, t, surrogate=surrogate)
            gates = step(penalised(z, f), t, surrogate=surrogate)
            return jnp.sum(weight * ((z - f) ** 2 + coefficient * gates))

        return jax.grad(objective)(theta)

    def at(theta):
        z, weight = _window_quadrature(theta, bandwidth / 2)
        return float(gradient(jnp.asarray(theta), jnp.asarray(z), jnp.asarray(weight * density(z))))

    return brentq(at, *bracket, xtol=1e-7)


PUBLISHED_ROOTS = [
    (0.25, (0.5001, 0.5047, 0.5096, 0.5195, 0.5515, 0.7654)),
    (1.0, (1.0000, 1.0001, 1.0004, 1.0016, 1.0099, 1.1421)),
    (2.25, (1.4998, 1.4925, 1.4856, 1.4736, 1.4494, 1.5101)),
]


@pytest.mark.parametrize(("coefficient", "roots"), PUBLISHED_ROOTS)
def test_the_estimators_own_root_for_gaussian_inputs(coefficient, roots):
    with jax.enable_x64(True):
        for bandwidth, root in zip((0.001, 0.05, 0.1, 0.2, 0.5, 2.0), roots, strict=True):
            found = _root(lambda z, f: z, coefficient, bandwidth)
            assert found == pytest.approx(root, abs=1e-3), bandwidth


def test_a_step_on_the_activation_sees_half_the_window_and_finds_another_root():
    """The control: H(f − θ) instead of H(z − θ) gives √(λ/2), so the law above can fail."""
    with jax.enable_x64(True):
        assert _root(lambda z, f: f, 0.25, 0.001) == pytest.approx(0.3536, abs=1e-3)


SAMPLERS = {
    "gaussian": jax.random.normal,
    "laplace": jax.random.laplace,
    "uniform": lambda key, shape: jax.random.uniform(key, shape, minval=-3.0, maxval=3.0),
}


@pytest.mark.parametrize("inputs", SAMPLERS)
def test_thresholds_learned_from_samples_come_to_the_root_of_lambda(inputs):
    surrogate, steps, average = Rectangle(0.05), 260, 100
    coefficient = jnp.array([0.25, 1.0, 2.25])

    def objective(theta, z):
        f = jump_relu(z, theta, surrogate=surrogate)
        gates = step(z, theta, surrogate=surrogate)
        return jnp.sum(jnp.mean((z - f) ** 2 + coefficient * gates, axis=0))

    def update(carry, key):
        theta, rate = carry
        z = SAMPLERS[inputs](key, (32_768, 3))
        # Sign descent with a falling step, as Adam's early steps are: no knowledge of p(θ) needed.
        theta = theta - rate * jnp.sign(jax.grad(objective)(theta, z))
        return (theta, jnp.maximum(rate * 0.975, 1e-3)), theta

    keys = jax.random.split(jax.random.key(1), steps)
    start = (jnp.array([1.1, 0.4, 0.7]), jnp.float32(0.04))
    _, path = jax.jit(lambda s: jax.lax.scan(update, s, keys))(start)
    learned = np.asarray(path[-average:]).mean(axis=0)
    np.testing.assert_allclose(learned, np.sqrt(coefficient), rtol=0.02)


# --- bias ------------------------------------------------------------------------------------

DENSITIES = {
    "gaussian": lambda z: stats.norm.pdf(z),
    "laplace": lambda z: stats.laplace.pdf(z),
    "skewed": lambda z: stats.skewnorm.pdf(z, 3.0),
}


def _expected_gradient(surrogate, loss, theta, density, penalty=0.0):
    """E of the surrogate gradient of loss(f, z) + penalty · H(z − θ), by quadrature over z."""
    reach = surrogate.half_width or 40 * surrogate.bandwidth
    z, weight = _window_quadrature(theta, reach, 200)

    def objective(t):
        f = jump_relu(jnp.asarray(z), t, surrogate=surrogate)
        gates = step(jnp.asarray(z), t, surrogate=surrogate)
        return jnp.sum(jnp.asarray(weight * density(z)) * (loss(f, z) + penalty * gates))

    return float(jax.grad(objective)(jnp.asarray(theta)))


def _true_gradient(loss, theta, density, penalty=0.0):
    """d/dθ of the expected loss: −(loss(θ) − loss(0) + penalty) p(θ), the loss taken at z = θ."""
    return -float((loss(theta, theta) - loss(0.0, theta) + penalty) * density(theta))


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize("kind", ALL)
def test_a_quadratic_loss_has_no_bias_at_small_bandwidth(kind, density):
    with jax.enable_x64(True):
        losses = (lambda f, z: (z - f) ** 2, lambda f, z: (f - 0.3) ** 2, lambda f, z: 1.7 * f)
        for loss in losses:
            for theta in (0.5, 1.2):
                found = _expected_gradient(kind(5e-4), loss, theta, density, 0.4)
                assert found == pytest.approx(_true_gradient(loss, theta, density, 0.4), abs=1e-3)


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize("kind", ALL)
def test_order_of_the_error_in_the_bandwidth(kind, density):
    """Squared where the cotangent does not depend on the gate; first order where it does."""
    with jax.enable_x64(True):

        def errors(loss, penalty):
            true = _true_gradient(loss, 0.8, density, penalty)
            estimate = partial(_expected_gradient, theta=0.8, density=density, penalty=penalty)
            return [estimate(kind(width), loss) - true for width in (0.01, 0.005)]

        wide, narrow = errors(lambda f, z: 0.0 * f, 1.0)  # the L0 penalty alone
        assert wide / narrow == pytest.approx(4, rel=0.05)
        wide, narrow = errors(lambda f, z: f, 0.0)  # a cotangent that is given
        assert wide / narrow == pytest.approx(4, rel=0.05)
        wide, narrow = errors(lambda f, z: (z - f) ** 2, 0.0)  # the loss's own cotangent
        assert wide / narrow == pytest.approx(2, rel=0.1)


def test_size_of_the_bias_for_another_loss():
    """The docstring's example: |f − 1|³ at θ = 0.5."""
    with jax.enable_x64(True):

        def loss(f, z):
            return jnp.abs(f - 1.0) ** 3

        found = _expected_gradient(Rectangle(1e-4), loss, 0.5, stats.norm.pdf)
        true = _true_gradient(loss, 0.5, stats.norm.pdf)
        # The trapezoid rule θ (L'(0) + L'(θ)) / 2 in place of L(θ) − L(0).
        assert found / stats.norm.pdf(0.5) == pytest.approx(0.5 * (3 + 0.75) / 2, abs=1e-3)
        assert true / stats.norm.pdf(0.5) == pytest.approx(0.875, abs=1e-9)


# --- low precision ---------------------------------------------------------------------------


def _distance_moved(x_dtype, theta_dtype):
    """Mean distance of thresholds after 200 Adam steps at 7e-5 (SAELens#728)."""
    import optax

    surrogate, adam = Rectangle(0.05), optax.adam(7e-5)
    z = jax.random.normal(jax.random.key(2), (200, 256, 32)).astype(x_dtype)
    theta = jnp.full(32, 0.5, theta_dtype)

    def objective(theta, z):
        f = jump_relu(z, theta, surrogate=surrogate)
        gates = step(z, theta, surrogate=surrogate)
        return jnp.mean((z - f) ** 2, dtype=jnp.float32) + jnp.mean(gates, dtype=jnp.float32)

    def update(carry, z):
        theta, state = carry
        updates, state = adam.update(jax.grad(objective)(theta, z), state)
        return (optax.apply_updates(theta, updates), state), None

    (moved, _), _ = jax.lax.scan(update, (theta, adam.init(theta)), z)
    return float(jnp.mean(jnp.abs(moved.astype(jnp.float32) - 0.5)))


def test_float32_thresholds_learn_under_bfloat16_activations():
    full = _distance_moved(jnp.float32, jnp.float32)
    assert full > 5e-3
    assert _distance_moved(jnp.bfloat16, jnp.float32) == pytest.approx(full, rel=0.05)
    # The control: with a bfloat16 threshold the steps are rounded away.
    assert _distance_moved(jnp.bfloat16, jnp.bfloat16) < 0.2 * full


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
