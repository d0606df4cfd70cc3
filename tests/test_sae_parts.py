"""The small parts of `jaxtrelu.sae`, each against its formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrelu import Gaussian, Rectangle, sae

RNG = np.random.default_rng(0)
PI = RNG.normal(size=(6, 5)).astype(np.float32)
THETA = RNG.uniform(0.1, 0.5, 5).astype(np.float32)
DECODER = RNG.normal(size=(5, 4)).astype(np.float32)
NORMS = np.linalg.norm(DECODER, axis=1)


def test_l0_penalty():
    surrogate = Rectangle(0.5)
    value, slope = jax.value_and_grad(sae.l0_penalty, 1)(PI, THETA, surrogate)
    np.testing.assert_allclose(value, (PI > THETA).sum(1).mean(), rtol=1e-6)
    inside = np.abs(PI - THETA) < 0.25
    np.testing.assert_allclose(slope, -inside.sum(0) / 0.5 / 6, rtol=1e-6)
    assert inside.any()


def test_tanh_penalty():
    features = np.maximum(PI, 0)
    expected = np.tanh(3 * features * NORMS).sum(1).mean()
    np.testing.assert_allclose(sae.tanh_penalty(features, DECODER, scale=3), expected, rtol=1e-5)


def test_pre_activation_penalty():
    expected = (np.maximum(THETA - PI, 0) * NORMS).sum(1).mean()
    found = sae.pre_activation_penalty(jnp.asarray(PI), THETA, DECODER)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_reconstruct_keeps_the_dtype_of_features():
    weights = sae.Weights(DECODER, THETA, THETA, jnp.asarray(DECODER), jnp.arange(4.0))
    np.testing.assert_allclose(
        sae.reconstruct(weights, PI), PI @ DECODER + np.arange(4), rtol=1e-5, atol=1e-5
    )
    assert sae.reconstruct(weights, jnp.asarray(PI, jnp.bfloat16)).dtype == jnp.bfloat16


def test_rows_of_unit_norm_and_the_tangent_to_them():
    rows = sae.unit_rows(jnp.asarray(DECODER).at[2].set(0))
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(norms, [1, 1, 0, 1, 1], rtol=1e-6)
    gradient = RNG.normal(size=(5, 4)).astype(np.float32)
    tangent = sae.project_out(gradient, rows)
    np.testing.assert_allclose(np.sum(tangent * rows, axis=1), 0, atol=1e-6)
    np.testing.assert_array_equal(tangent[2], gradient[2])
    np.testing.assert_allclose(sae.project_out(tangent, rows), tangent, atol=1e-6)


@pytest.mark.parametrize(
    ("ramp", "steps", "expected"), [(0.25, 40, 10), (10, 40, 10), (99, 40, 40)]
)
def test_warmup_of_the_coefficient(ramp, steps, expected):
    recipe = sae.Recipe("r", Rectangle(0.1), 0.1, "unit_mean_square", "l0", coefficient_warmup=ramp)
    assert recipe.warmup_steps(steps) == expected
    schedule = recipe.coefficient_schedule(steps)
    assert schedule(0) == 0
    np.testing.assert_allclose(schedule(expected), recipe.coefficient)


def test_rows_know_their_width_and_their_content():
    rows = sae.Rows(PI)
    assert (rows.dimension, len(rows)) == (5, 6)
    assert rows.fingerprint() == sae.Rows(PI.copy()).fingerprint()
    for other in (PI.astype(np.float64), PI[:5], PI + 1):
        assert sae.Rows(other).fingerprint() != rows.fingerprint()


def test_which_runs_skip_zeros_and_which_are_steered():
    fixed = sae.Settings(2048, 10)
    assert not sae.Settings(64, 10).visits_entries_only()  # lists cannot pay
    assert fixed.controller() is None
    assert fixed.visits_entries_only()
    assert not sae.Settings(64, 10, target_l0=3.0).visits_entries_only()  # more than one in 32
    unbounded = sae.Recipe("r", Gaussian(0.1), 0.1, "unit_mean_square", "l0")
    assert not sae.Settings(64, 10, unbounded).visits_entries_only()
    controller = sae.Settings(64, 10, target_l0=2.0).controller()
    state = controller.init()
    assert isinstance(state, sae.ControllerState)
    many, _ = controller.update(jnp.float32(60.0), state)
    assert many > state.coefficient == jnp.float32(sae.gemma_scope().coefficient)
