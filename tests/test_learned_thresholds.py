"""Learned thresholds: the √λ law, how large the estimate's bias is, and low precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from scipy.optimize import brentq

from jaxtrelu import Gaussian, Rectangle, Sigmoid, Triangle, jump_relu, step

ALL = (Rectangle, Triangle, Gaussian, Sigmoid)


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

#: What is said of any inputs is tested on one kind of them, and with `--all` on the others.
SLOW = pytest.mark.slow
each_sampler = pytest.mark.parametrize(
    "inputs", [pytest.param(n, marks=() if n == "laplace" else SLOW) for n in SAMPLERS]
)


def learned_from_samples(inputs, coefficient, start, penalised):
    """Thresholds of E (z − f)² + λ H(penalised(z, f) − θ), by descent on fresh samples."""
    surrogate, steps, average = Rectangle(0.05), 260, 100

    def objective(theta, z):
        f = jump_relu(z, theta, surrogate=surrogate)
        gates = step(penalised(z, f), theta, surrogate=surrogate)
        return jnp.sum(jnp.mean((z - f) ** 2 + coefficient * gates, axis=0))

    def update(carry, key):
        theta, rate = carry
        z = SAMPLERS[inputs](key, (16_384, len(start)))
        # Sign descent with a falling step, as Adam's early steps are: no knowledge of p(θ) needed.
        theta = theta - rate * jnp.sign(jax.grad(objective)(theta, z))
        return (theta, jnp.maximum(rate * 0.975, 1e-3)), theta

    keys = jax.random.split(jax.random.key(1), steps)
    first = (jnp.asarray(start), jnp.float32(0.04))
    _, path = jax.jit(lambda s: jax.lax.scan(update, s, keys))(first)
    return np.asarray(path[-average:]).mean(axis=0)


@each_sampler
def test_thresholds_learned_from_samples_come_to_the_root_of_lambda(inputs):
    coefficient = jnp.array([0.25, 1.0, 2.25])
    learned = learned_from_samples(inputs, coefficient, [1.1, 0.4, 0.7], lambda z, f: z)
    np.testing.assert_allclose(learned, np.sqrt(coefficient), rtol=0.02)


@each_sampler
def test_learned_from_samples_through_half_a_window_they_do_not(inputs):
    """The control again: H(f − θ) comes to √(λ/2) = .3536, for any inputs."""
    learned = learned_from_samples(inputs, jnp.array([0.25]), [0.8], lambda z, f: f)
    np.testing.assert_allclose(learned, 0.3536, rtol=0.03)
    assert abs(learned[0] - 0.5) > 0.02 * 0.5


# --- bias ------------------------------------------------------------------------------------

DENSITIES = {
    "gaussian": lambda z: stats.norm.pdf(z),
    "laplace": lambda z: stats.laplace.pdf(z),
    "skewed": lambda z: stats.skewnorm.pdf(z, 3.0),
}
each_density = pytest.mark.parametrize(
    "density",
    [pytest.param(d, id=n, marks=() if n == "skewed" else SLOW) for n, d in DENSITIES.items()],
)


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


@each_density
@pytest.mark.parametrize("kind", ALL)
def test_a_quadratic_loss_has_no_bias_at_small_bandwidth(kind, density):
    with jax.enable_x64(True):
        losses = (lambda f, z: (z - f) ** 2, lambda f, z: (f - 0.3) ** 2, lambda f, z: 1.7 * f)
        for loss in losses:
            for theta in (0.5, 1.2):
                found = _expected_gradient(kind(5e-4), loss, theta, density, 0.4)
                assert found == pytest.approx(_true_gradient(loss, theta, density, 0.4), abs=1e-3)


@each_density
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
    surrogate, adam = Rectangle(0.05), optax.adam(7e-5)
    z = np.random.default_rng(2).normal(size=(200, 256, 32)).astype(x_dtype)
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
