"""Weight gradients of touched features, against the dense gradients of the same products."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick
from sparse_cases import CAPACITY, CASES, FEATURES, QUICK, SIDES, operands

from jaxtrelu import sparse_mlp, sparse_mlp_vjp

NAMES = ("x", "w_in", "w_out", "threshold", "b_in", "b_out")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def cotangents(y, activity):
    """Of y, of the entries' values and of l0."""
    return [jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape)
            for a in (y, activity.values, activity.l0)]  # fmt: skip


def call(function, case, *args, **more):
    options = CASES[case] | {"b_in": args[4], "b_out": args[5], "capacity": CAPACITY}
    return function(*args[:4], **options, with_activity=True, **more)


@partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def touched_only(case, touched, *args):
    (y, activity), pullback = call(sparse_mlp_vjp, case, *args, touched=touched)
    return y, activity, pullback(*cotangents(y, activity))


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def whole(case, *args):
    def outputs(*args):
        y, activity = call(sparse_mlp, case, *args)
        return (y, activity.values, activity.l0), activity

    (y, *_), pullback, activity = jax.vjp(outputs, *args, has_aux=True)
    return y, dict(zip(NAMES, pullback(tuple(cotangents(y, activity))), strict=True))


def few_touched(threshold):
    """A batch (2, 10) of which few features are open for any example."""
    x, *rest = operands(threshold)
    return x.reshape(2, 10, -1), *rest


@pytest.mark.parametrize("case", quick(["hard", "ceiling", "jump"], {"jump"}))
@pytest.mark.parametrize("threshold", [*SIDES.values(), 2.6, 99.0])
def test_gradients_are_those_of_the_whole(case, threshold):
    args = few_touched(threshold)
    y, activity, found = touched_only(case, None, *args)
    expected_y, expected = whole(case, *args)
    assert bool(activity.overflow) == (threshold == SIDES["dense"])
    np.testing.assert_allclose(y, expected_y, **CLOSE)
    features = np.asarray(found.features)
    there = features < FEATURES
    assert found.complete and np.all(np.diff(features[there]) > 0)
    if case == "hard":  # elsewhere the window alone may touch a feature
        np.testing.assert_array_equal(features[there], np.flatnonzero(activity.fired))
    for name in ("w_in", "b_in", "threshold", "w_out"):
        rebuilt = np.zeros(expected[name].shape, np.float32)
        rebuilt[features[there]] = np.asarray(getattr(found, name))[there]
        np.testing.assert_allclose(rebuilt, expected[name], **CLOSE, err_msg=name)
        assert not np.any(np.asarray(getattr(found, name))[~there])
    for name in ("x", "b_out"):
        np.testing.assert_allclose(getattr(found, name), expected[name], **CLOSE, err_msg=name)


@pytest.mark.parametrize("side", SIDES)
def test_too_few_features_are_loud(side):
    _, activity, found = touched_only("hard", 2, *few_touched(SIDES[side]))
    assert bool(activity.overflow) == (side == "dense")
    assert not found.complete
    assert np.isnan(found.w_in).all() and np.isnan(found.threshold).all()
    assert np.isfinite(found.x).all()


def test_without_biases_and_without_the_record():
    x, w_in, w_out, threshold, *_ = operands(1.0, 3)
    y, pullback = sparse_mlp_vjp(x, w_in, w_out, threshold)
    found = pullback(y)
    assert found.b_in is None
    assert found.b_out is None


def test_errors():
    x, w_in, w_out, *_ = operands(1.0, 3)
    with pytest.raises(ValueError, match="`touched` should be at least 1, but is 0"):
        sparse_mlp_vjp(x, w_in, w_out, touched=0)
    with pytest.raises(ValueError, match="should have elements"):
        sparse_mlp_vjp(x[:0], w_in, w_out)
    with pytest.raises(ValueError, match="clamp"):
        sparse_mlp_vjp(x, w_in, w_out, variant="clamp")
    y, pullback = sparse_mlp_vjp(x, w_in, w_out)
    for g in (y.T, y.ravel(), y[:2]):
        with pytest.raises(ValueError, match="`g` should have the shape of y, "):
            pullback(g)
    with pytest.raises(ValueError, match=r"`values` should have the shape of activity\.values"):
        pullback(y, values=jnp.ones(3))
    with pytest.raises(ValueError, match=r"`l0` should have the shape of activity\.l0, \(3,\)"):
        pullback(y, l0=jnp.ones(2))
    with pytest.raises(TypeError, match="`g` should be a real array"):
        pullback(y + 0j)
