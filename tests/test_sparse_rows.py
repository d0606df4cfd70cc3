"""Weight gradients as touched rows, against the dense gradients of the same products."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrelu
from jaxtrelu import sparse_mlp, sparse_mlp_vjp

CASES = {
    "hard": {},
    "shift": {"variant": "shift", "ceiling": 0.5},
    "jump": {"surrogate": jaxtrelu.Rectangle(0.3)},
}
NAMES = ("x", "w_in", "b_in", "threshold", "w_out", "b_out")


def operands(batch, m, threshold, d=6, d_out=5, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((*batch, d), (m, d), (m,), (m, d_out), (d_out,))
    x, w_in, b_in, w_out, b_out = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    return x, w_in / d**0.5, 0.1 * b_in, jnp.full(m, threshold, jnp.float32), w_out, b_out


def cotangents(activity, y, seed=1):
    rng = np.random.default_rng(seed)
    arrays = (y, activity.values, activity.l0)
    return [jnp.asarray(rng.normal(size=a.shape), jnp.float32) for a in arrays]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("batch", "m", "threshold", "capacity"),
    [((2, 3), 70, 1.5, None), ((1,), 33, 1.0, 20), ((40,), 64, 1.2, None), ((4,), 40, 9.0, None)],
)
def test_rows_are_those_of_the_dense_gradient(case, batch, m, threshold, capacity):
    args = operands(batch, m, threshold)
    options = CASES[case] | {"capacity": capacity}

    @jax.jit
    def by_rows(*args):
        (y, activity), pullback = sparse_mlp_vjp(*args, **options)
        return y, activity, pullback(*cotangents(activity, y))

    y, activity, found = by_rows(*args)
    assert not activity.wide
    (expected_y, _), pullback = jax.vjp(
        lambda *args: (lambda y, a: (y, (a.values, a.l0)))(*sparse_mlp(*args, **options)), *args
    )
    np.testing.assert_allclose(y, expected_y, rtol=1e-5, atol=1e-5)
    g, values, l0 = cotangents(activity, y)
    expected = dict(zip(NAMES, pullback((g, (values, l0))), strict=True))
    rows = np.asarray(found.rows)
    there = rows < m
    assert found.complete
    assert np.all(np.diff(rows[there]) > 0)
    for name in ("w_in", "b_in", "threshold", "w_out"):
        rebuilt = np.zeros(expected[name].shape, np.float32)
        rebuilt[rows[there]] = np.asarray(getattr(found, name))[there]
        np.testing.assert_allclose(rebuilt, expected[name], rtol=1e-4, atol=1e-5)
        assert not np.any(np.asarray(getattr(found, name))[~there])
    for name in ("x", "b_out"):
        np.testing.assert_allclose(getattr(found, name), expected[name], rtol=1e-4, atol=1e-5)


def test_dense_path_gives_rows_too():
    args = operands((8,), 40, 0.5)
    (y, activity), pullback = sparse_mlp_vjp(*args, capacity=1, rows=40)
    assert activity.wide
    g = jnp.ones_like(y)
    found = pullback(g)
    expected = jax.grad(lambda *args: sparse_mlp(*args)[0].sum(), range(6))(*args)
    assert found.complete
    for name, want in zip(NAMES[1:5], expected[1:5], strict=True):
        rebuilt = jnp.zeros_like(want).at[found.rows].add(getattr(found, name), mode="drop")
        np.testing.assert_allclose(rebuilt, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("capacity", [None, 1])
def test_too_few_rows_are_loud(capacity):
    args = operands((8,), 40, 0.5)
    (y, _), pullback = sparse_mlp_vjp(*args, capacity=capacity, rows=2)
    found = pullback(jnp.ones_like(y))
    assert not found.complete
    assert np.isnan(found.w_in).all()
    assert np.isnan(found.threshold).all()
    assert np.isfinite(found.x).all()


def test_without_biases():
    x, w_in, _, threshold, w_out, _ = operands((3,), 20, 1.0)
    (y, _), pullback = sparse_mlp_vjp(x, w_in, None, threshold, w_out)
    found = pullback(y)
    assert found.b_in is None
    assert found.b_out is None


def test_errors():
    args = operands((3,), 20, 1.0)
    with pytest.raises(ValueError, match="`rows` should be a whole number of rows, at least 1"):
        sparse_mlp_vjp(*args, rows=0)
    with pytest.raises(ValueError, match="should have elements"):
        sparse_mlp_vjp(args[0][:0], *args[1:])
    with pytest.raises(ValueError, match="clamp"):
        partial(sparse_mlp_vjp, variant="clamp")(*args)
