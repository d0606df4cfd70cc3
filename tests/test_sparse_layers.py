"""The compact block as a layer of both Flax interfaces: values, and parameters that learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_interfaces import Linen, Nnx, both

import jaxtrelu

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
RECTANGLE = jaxtrelu.Rectangle(0.5)
NAMES = {"w_in", "b_in", "threshold", "w_out", "b_out"}
CASES = [
    {"threshold": 0.5},
    {"threshold": 0.5, "variant": "hard", "surrogate": RECTANGLE},
]


def layer_of(flax, features=33, out_features=3, **arguments):
    return flax("CompactMLP", X, features, out_features, **arguments)


@both
@pytest.mark.parametrize("arguments", CASES, ids=["shift", "hard"])
def test_every_parameter_learns_as_in_the_dense_block(flax, arguments):
    layer = layer_of(flax, learned=True, **arguments)
    options = {k: v for k, v in arguments.items() if k != "threshold"}

    def dense(p):
        z = X @ p["w_in"].T + p["b_in"]
        act = jaxtrelu.thresholded_relu(z, p["threshold"], **options)
        return act @ p["w_out"] + p["b_out"]

    params = {name: jnp.asarray(value) for name, value in layer.params.items()}
    assert set(params) == NAMES
    np.testing.assert_allclose(layer(X), dense(params), rtol=1e-5, atol=1e-5)
    ours = layer.gradients(lambda layer: jnp.sum(layer(X) ** 2), jit=True)
    theirs = jax.jit(jax.grad(lambda p: jnp.sum(dense(p) ** 2)))(params)
    assert np.any(theirs["threshold"])
    for name in NAMES:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)


@both
def test_a_fixed_threshold_is_no_parameter(flax):
    layer = layer_of(flax, 8, None)
    assert set(layer.params) == NAMES - {"threshold"}
    assert layer.threshold_value == 1.0
    assert layer(X).shape == X.shape
    starts = tuple(np.linspace(0.1, 0.8, 8).tolist())
    each = layer_of(flax, 8, None, threshold=starts)
    assert set(each.params) == NAMES - {"threshold"}
    np.testing.assert_array_equal(each.threshold_value, np.float32(starts))
    p = each.params
    z = X @ p["w_in"].T + p["b_in"]
    wanted = jaxtrelu.thresholded_relu(z, np.float32(starts)) @ p["w_out"] + p["b_out"]
    np.testing.assert_allclose(each(X), wanted, rtol=1e-5, atol=1e-5)


@both
def test_an_integer_start_is_a_float_that_learns(flax):
    layer = layer_of(flax, 8, None, threshold=1, learned=True)
    assert layer.params["threshold"].dtype == jnp.float32
    found = layer.gradients(lambda layer: jnp.sum(layer(3 * X)), jit=True)["threshold"]
    assert np.any(found)


@both
def test_thresholds_beside_narrow_weights_are_float32(flax):
    layer = layer_of(flax, 8, None, learned=True, param_dtype=jnp.bfloat16)
    assert layer.params["w_in"].dtype == jnp.bfloat16
    assert layer.threshold_value.dtype == jnp.float32


@both
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"learned": True, "variant": "hard"}, ValueError, "would not learn.*surrogate"),
        (
            {"learned": True, "variant": "hard", "surrogate": RECTANGLE, "threshold": 0.0},
            ValueError,
            "would not leave 0",
        ),
        ({"variant": "clamp"}, ValueError, "no zeros to skip"),
        ({"variant": "hard", "fill": 0.5}, ValueError, "`fill` should be 0 here, but is 0.5"),
        ({"surrogate": jaxtrelu.Gaussian(0.1)}, ValueError, "bounded support"),
        ({"threshold": (0.1, 0.2)}, ValueError, r"\(33,\).*shape \(2,\)"),
        ({"threshold": float("nan")}, ValueError, "NaN"),
        ({"features": 0}, ValueError, "`features` should be at least 1"),
        ({"features": 8.0}, TypeError, "`features` should be a whole number"),
        ({"out_features": 0}, ValueError, "`out_features` should be at least 1"),
        ({"capacity": 0}, ValueError, "`capacity` should be at least 1"),
    ],
)
def test_what_cannot_work_is_refused(flax, arguments, error, words):
    with pytest.raises(error, match=words):
        layer_of(flax, **arguments)


def test_a_wrong_width_is_said_in_the_words_of_the_layer():
    layer = jaxtrelu.nnx.CompactMLP(4, 33, threshold=0.5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"should have 4 columns, the in_features .* \(5, 3\)"):
        layer(X[:, :3])


def test_sizes_of_any_integer_type():
    layer = jaxtrelu.nnx.CompactMLP(
        np.int64(4), np.int64(8), capacity=np.int64(2), rngs=nnx.Rngs(0)
    )
    assert layer(X).shape == X.shape
    assert layer_of(Linen, np.int64(8), np.int64(3), capacity=np.int64(2))(X).shape == (5, 3)


@both
def test_an_initialiser_starts_the_thresholds(flax):
    uniform = jax.nn.initializers.uniform(0.5)
    layer = layer_of(flax, 8, None, threshold=uniform, learned=True)
    assert len(np.unique(layer.threshold_value)) == 8
    if flax is Nnx:
        assert isinstance(layer.layer.threshold, jaxtrelu.nnx.Threshold)
