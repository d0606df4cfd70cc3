"""The sparse two-layer product against the dense function, gradients included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import jaxtrelu
from jaxtrelu.sparse import Activity, entry_sum, sparse_mlp

CASES = {
    "hard": {"variant": "hard"},
    "shift": {"variant": "shift"},
    "ceiling": {"variant": "shift", "ceiling": 0.5},
    "jump": {"variant": "hard", "surrogate": jaxtrelu.Rectangle(0.3)},
    "jump to input": {"variant": "hard", "surrogate": jaxtrelu.Triangle(0.3, to_input=True)},
    "smoothed shift": {"variant": "shift", "surrogate": jaxtrelu.Rectangle(0.3)},
}


def dense_mlp(x, w_in, b_in, threshold, w_out, b_out, *, variant, ceiling=None, surrogate=None):
    """y, l0 and the latent, by dense products."""
    z = x @ w_in.T + b_in
    a = jaxtrelu.thresholded_relu(
        z, threshold, variant=variant, ceiling=ceiling, surrogate=surrogate
    )
    gates = jaxtrelu.step(z, threshold, surrogate=surrogate)
    return a @ w_out + b_out, gates.sum(-1), a


def operands(seed, rows, d, m, threshold, shared, d_out=5):
    rng = np.random.default_rng(seed)
    shapes = [(rows, d), (m, d), (m,), (m, d_out), (d_out,)]
    x, w_in, b_in, w_out, b_out = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes
    )
    theta = jnp.asarray(threshold if shared else threshold + rng.random(m) * 0.1, jnp.float32)
    return x, w_in / d**0.5, b_in * 0.1, theta, w_out, b_out


@partial(jax.jit, static_argnums=(0, 1))
def sparse_loss(case, capacity, weight, *args):
    y, activity = sparse_mlp(*args, **CASES[case], capacity=capacity)
    l1 = entry_sum(jnp.tanh, activity, lambda: dense_mlp(*args, **CASES[case])[2])
    return jnp.sum(y * weight) + jnp.sum(activity.l0 * weight[:, 0]) + l1


@partial(jax.jit, static_argnums=0)
def dense_loss(case, weight, *args):
    y, l0, a = dense_mlp(*args, **CASES[case])
    return jnp.sum(y * weight) + jnp.sum(l0 * weight[:, 0]) + jnp.sum(jnp.tanh(a))


sparse_grad = jax.jit(jax.grad(sparse_loss, range(3, 9)), static_argnums=(0, 1))
dense_grad = jax.jit(jax.grad(dense_loss, range(2, 8)), static_argnums=0)


def compare(case, args, capacity=None):
    weight = jnp.asarray(np.random.default_rng(9).normal(size=(args[0].shape[0], 5)), jnp.float32)
    np.testing.assert_allclose(
        sparse_loss(case, capacity, weight, *args), dense_loss(case, weight, *args),
        rtol=1e-4, atol=1e-3,
    )  # fmt: skip
    ours, theirs = sparse_grad(case, capacity, weight, *args), dense_grad(case, weight, *args)
    for name, one, other in zip(
        ("x", "w_in", "b_in", "threshold", "w_out", "b_out"), ours, theirs, strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([-9.0, 0.3, 1.0, 9.0]), st.sampled_from([64, 4]))
@example(0, 1.0, 64)
@example(0, 1.0, 4)
def test_gradients_against_the_dense_function(case, seed, threshold, capacity):
    compare(case, operands(seed, 40, 8, 64, threshold, False), capacity)


@pytest.mark.parametrize("shape", [(0, 3, 8), (3, 4, 0), (1, 1, 1), (3, 4, 33), (33, 5, 31)])
@pytest.mark.parametrize("threshold", [-9.0, 0.3])
def test_shapes_of_every_kind(shape, threshold):
    compare("jump", operands(1, *shape, threshold, True))


def test_one_full_row_among_empty_ones():
    x, w_in, b_in, _, w_out, b_out = operands(0, 40, 8, 300, 0.0, True)
    x = jnp.zeros_like(x).at[17].set(1.0)
    b_in, w_in = jnp.zeros_like(b_in), jnp.abs(w_in) + 0.1
    args = (x, w_in, b_in, jnp.float32(0.05), w_out, b_out)
    _, activity = sparse_mlp(*args, capacity=32)
    assert not activity.wide
    assert activity.counts.tolist() == [300 * (row == 17) for row in range(40)]
    compare("hard", args, 32)


@pytest.mark.parametrize(("capacity", "wide"), [(64, False), (1, True)])
def test_the_record(capacity, wide):
    args = operands(3, 40, 8, 64, 0.7, False)
    _, activity = jax.jit(partial(sparse_mlp, capacity=capacity))(*args)
    _, l0, latent = dense_mlp(*args, **CASES["hard"])
    latent = np.asarray(latent)
    assert isinstance(activity, Activity) and bool(activity.wide) is wide
    np.testing.assert_array_equal(activity.l0, l0)
    np.testing.assert_array_equal(activity.counts, (latent != 0).sum(1))
    np.testing.assert_array_equal(activity.fired, (latent != 0).sum(0))
    rows, features = np.nonzero(latent)
    size = 0 if wide else rows.size
    np.testing.assert_array_equal(activity.rows[:size], rows[:size])
    np.testing.assert_array_equal(activity.indices[:size], features[:size])
    np.testing.assert_allclose(activity.values[:size], latent[rows, features][:size], rtol=1e-5)
    assert (np.asarray(activity.rows[size:]) == 40).all()
    assert (np.asarray(activity.indices[size:]) == 64).all()
    assert (np.asarray(activity.values[size:]) == 0).all()


@pytest.mark.parametrize("capacity", [64, 4])
def test_the_record_holds_the_window_in_row_order(capacity):
    x, w_in, b_in, threshold, w_out, b_out = operands(3, 40, 8, 64, 1.6, False)
    args = (x, w_in, b_in, threshold, w_out, b_out)
    jump = CASES["jump"]
    _, activity = jax.jit(partial(sparse_mlp, **jump, capacity=capacity))(*args)
    z = np.asarray(x @ w_in.T + b_in)
    is_open, inside = z > threshold, np.abs(z - threshold) < 0.15
    assert 0 < is_open.sum() <= 4 * 40 < (is_open | inside).sum()
    wide = capacity == 4
    assert bool(activity.wide) is wide  # the window counts: four a row hold the open entries alone
    np.testing.assert_array_equal(activity.l0, is_open.sum(1))
    np.testing.assert_array_equal(activity.counts, (is_open | inside).sum(1))
    rows, features = np.nonzero(is_open | inside)
    size = 0 if wide else rows.size
    np.testing.assert_array_equal(activity.rows[:size], rows[:size])
    np.testing.assert_array_equal(activity.indices[:size], features[:size])
    values = np.where(is_open, z, 0)[rows, features]
    np.testing.assert_allclose(activity.values[:size], values[:size], rtol=1e-5)
    assert (np.asarray(activity.rows[size:]) == 40).all()
    compare("jump", args, capacity)


@pytest.mark.parametrize("capacity", [None, 1])
def test_nan_everywhere(capacity):
    args = [a * jnp.nan for a in operands(0, 3, 4, 33, 0.3, False)]
    y, activity = sparse_mlp(*args, capacity=capacity)
    assert jnp.isnan(y).all()
    assert activity.counts.tolist() == [33] * 3
    grads = jax.grad(lambda *args: sparse_mlp(*args, capacity=capacity)[0].sum(), range(5))(*args)
    assert all(jnp.isnan(g).all() for g in (grads[0], grads[1], grads[2], grads[4]))


def test_a_closed_entry_stays_out_of_the_way_of_nan():
    x, w_in, b_in, _, w_out, b_out = operands(0, 3, 4, 33, 0.3, True)
    w_out = w_out.at[5].set(jnp.nan)
    threshold = jnp.full(33, -9.0).at[5].set(9.0)

    def loss(x, w):
        return sparse_mlp(x, w_in, b_in, threshold, w, b_out, capacity=33)[0].sum()

    value, grads = jax.value_and_grad(loss, (0, 1))(x, w_out)
    assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("capacity", [33, 1])
def test_low_precision_is_no_worse_than_dense(capacity):
    args = operands(1, 16, 32, 33, 0.3, True)
    low = [a.astype(jnp.bfloat16) for a in args]
    exact = [a.astype(jnp.float32) for a in low]
    truth = dense_mlp(*exact, **CASES["shift"])[0]
    y, _ = sparse_mlp(*low, variant="shift", capacity=capacity)
    assert y.dtype == jnp.bfloat16
    error = jnp.abs(y.astype(jnp.float32) - truth).max()
    dense = dense_mlp(*low, **CASES["shift"])[0].astype(jnp.float32)
    assert error <= jnp.abs(dense - truth).max()
    grad = jax.grad(lambda w: sparse_mlp(low[0], w, *low[2:], capacity=capacity)[0].sum())(low[1])
    assert grad.dtype == jnp.bfloat16


def test_leading_shapes():
    x, *rest = operands(0, 6, 4, 33, 0.3, True)
    y, _ = sparse_mlp(x, *rest)
    shaped, record = sparse_mlp(x.reshape(2, 3, 4), *rest)
    np.testing.assert_array_equal(shaped, y.reshape(2, 3, 5))
    assert record.l0.shape == record.counts.shape == (2, 3)
    np.testing.assert_allclose(sparse_mlp(x[0], *rest)[0], y[0], rtol=1e-5)
