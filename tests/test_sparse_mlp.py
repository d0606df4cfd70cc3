"""The sparse two-layer product against the dense function, gradients included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import examples, quick
from hypothesis import given
from hypothesis import strategies as st
from sparse_cases import (  # fmt: skip
    CAPACITY,
    CASES,
    FEATURES,
    OUT,
    QUICK,
    ROWS,
    SIDES,
    assert_close,
    cotangent,
    dense_mlp,
    operands,
    spoilt,
)

from jaxtrelu.sparse import Activity, entry_sum, sparse_mlp

NAMES = ("x", "w_in", "w_out", "threshold", "b_in", "b_out")


@partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def sparse(case, capacity, *args):
    """y, l0 and a penalty on the activations; the record; and gradients of their weighted sum."""

    def outputs(*args):
        options = CASES[case] | {"b_in": args[4], "b_out": args[5], "capacity": capacity}
        y, activity = sparse_mlp(*args[:4], **options, with_activity=True)

        def activations():
            # The caller's own products: nothing but what is passed to the library skips infinity.
            x, w_in, *rest = (a.astype(jnp.float32) for a in args)
            return dense_mlp(x, jnp.where(jnp.isinf(w_in), 0, w_in), *rest, **CASES[case])[2]

        return (y, activity.l0, entry_sum(jnp.tanh, activity, activations)), activity

    values, pullback, activity = jax.vjp(outputs, *args, has_aux=True)
    return values, activity, pullback(cotangents(*values))


@partial(jax.jit, static_argnums=0)
def dense(case, *args):
    def outputs(*args):
        y, l0, a = dense_mlp(*args, **CASES[case])
        return y, l0, jnp.sum(jnp.tanh(a))

    values, pullback = jax.vjp(outputs, *args)
    return values, pullback(cotangents(*values))


def cotangents(y, l0, penalty):
    return (
        cotangent(*y.shape).astype(y.dtype),
        cotangent(l0.size, 1)[:, 0].astype(l0.dtype),
        jnp.ones(()),
    )


def assert_agrees(case, args, capacity=CAPACITY):
    values, activity, gradients = sparse(case, capacity, *args)
    expected, expected_gradients = dense(case, *args)
    assert_close(values, expected, ("y", "l0", "penalty"))
    assert_close(gradients, expected_gradients, NAMES)
    return activity


SIDED = [(side, case) for side in SIDES for case in CASES]
QUICK_SIDED = {("sparse", "shift"), ("sparse", "smoothed shift"), ("dense", "jump to input")}


@pytest.mark.parametrize(("side", "case"), quick(SIDED, QUICK_SIDED))
def test_values_and_gradients_on_either_path(case, side):
    assert bool(assert_agrees(case, operands(SIDES[side])).overflow) == (side == "dense")


@examples(20)
@given(st.sampled_from(list(CASES)), st.integers(0, 2**31), st.sampled_from([-9.0, 1.0, 1.5, 9.0]))
def test_any_operands(case, seed, threshold):
    assert_agrees(case, operands(threshold, seed=seed))


@pytest.mark.parametrize(
    "shape",
    [(0, 3, 8), (3, 0, 8), (3, 4, 0), pytest.param((1, 1, 1), marks=pytest.mark.slow), (33, 5, 31)],
)
def test_shapes_of_every_kind(shape):
    for threshold in (-9.0, 0.3):
        assert_agrees("jump", operands(threshold, *shape), 32)


def test_a_width_of_zero():
    """d = 0: the pre-activations are the bias alone."""
    x, w_in, w_out, threshold, b_in, b_out = operands(0.0, 3, 0, 8)
    y = sparse_mlp(x, w_in, w_out, threshold, b_in=b_in + 1, b_out=b_out)
    np.testing.assert_allclose(y, dense_mlp(x, w_in, w_out, threshold, b_in + 1, b_out)[0], 1e-5)


def test_one_full_row_among_empty_ones():
    x, w_in, w_out, threshold, b_in, b_out = operands(0.05)
    x = jnp.zeros_like(x).at[17].set(1.0)
    args = (x, jnp.abs(w_in) + 0.1, w_out, threshold, jnp.zeros_like(b_in), b_out)
    activity = assert_agrees("hard", args)
    assert not activity.overflow
    assert activity.counts.tolist() == [FEATURES * (row == 17) for row in range(ROWS)]


@pytest.mark.parametrize("case", quick(["hard", "jump"], {"jump"}))
@pytest.mark.parametrize("side", SIDES)
def test_the_record_in_row_order(case, side):
    """The entries inside the window stand among those that are open."""
    x, w_in, _, threshold, b_in, _ = args = operands(SIDES[side])
    activity = sparse(case, CAPACITY, *args)[1]
    z = np.asarray(x @ w_in.T + b_in)
    is_open = z > threshold
    visited = is_open | (np.abs(z - threshold) < 0.15) if case == "jump" else is_open
    assert isinstance(activity, Activity) and bool(activity.overflow) == (side == "dense")
    np.testing.assert_array_equal(activity.l0, is_open.sum(1))
    np.testing.assert_array_equal(activity.counts, visited.sum(1))
    np.testing.assert_array_equal(activity.fired, is_open.sum(0))
    rows, features = np.nonzero(visited)
    size = 0 if side == "dense" else rows.size
    np.testing.assert_array_equal(activity.rows[:size], rows[:size])
    np.testing.assert_array_equal(activity.features[:size], features[:size])
    values = np.where(is_open, z, 0)[rows, features]
    np.testing.assert_allclose(activity.values[:size], values[:size], rtol=1e-5)
    assert (np.asarray(activity.rows[size:]) == ROWS).all()
    assert (np.asarray(activity.features[size:]) == FEATURES).all()
    assert (np.asarray(activity.values[size:]) == 0).all()


def test_the_window_counts_towards_the_capacity():
    args = operands(0.8)
    overflow = {
        case: bool(assert_agrees(case, args).overflow) for case in ("hard", "jump to input")
    }
    assert overflow == {"hard": False, "jump to input": True}


# NaN and infinity


def test_nan_everywhere():
    args = [a * jnp.nan for a in operands(1.0)]
    (y, *_), activity, gradients = sparse("jump", CAPACITY, *args)
    assert activity.overflow and activity.counts.tolist() == [FEATURES] * ROWS
    assert jnp.isnan(y).all()
    assert all(jnp.isnan(gradients[NAMES.index(n)]).all() for n in ("x", "w_in", "b_in", "w_out"))


def test_a_nan_example_is_seen_on_the_sparse_path_as_well():
    x, *rest = operands(SIDES["sparse"])
    (y, *_), activity, gradients = sparse("hard", CAPACITY, x.at[3].set(jnp.nan), *rest)
    assert not activity.overflow and activity.counts[3] == FEATURES
    assert jnp.isnan(y).all(axis=1).tolist() == [row == 3 for row in range(ROWS)]
    assert jnp.isnan(gradients[0]).all(axis=1).tolist() == [row == 3 for row in range(ROWS)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("side", SIDES)
def test_a_closed_entry_contributes_nothing_beside_nan_and_infinity(case, side):
    sound, bad = spoilt(operands(SIDES[side]))
    values, activity, gradients = sparse(case, CAPACITY, *bad)
    expected, _, expected_gradients = sparse(case, CAPACITY, *sound)
    assert bool(activity.overflow) == (side == "dense")
    assert_close(values[:2], expected[:2])
    assert_close(gradients, expected_gradients, NAMES)


@pytest.mark.parametrize("side", SIDES)
def test_a_value_of_zero_inside_the_window_contributes_nothing_beside_nan(side):
    """To the value and to the weights' gradients; the estimate itself is made of that weight."""
    args = operands(SIDES[side])
    x, w_in, w_out, threshold, b_in, b_out = args
    highest = jnp.max((x @ w_in.T + b_in)[:, 7])
    threshold = threshold.at[7].set(highest + 0.05)
    args = (x, w_in, w_out, threshold, b_in, b_out)
    bad = (x, w_in, w_out.at[7].set(jnp.nan), threshold, b_in, b_out)
    values, activity, gradients = sparse("jump to input", CAPACITY, *bad)
    expected, _, expected_gradients = sparse("jump to input", CAPACITY, *args)
    assert bool(activity.overflow) == (side == "dense")
    assert_close(values[:2], expected[:2])
    assert_close(gradients[2:3], expected_gradients[2:3], ("w_out",))
    assert jnp.isnan(gradients[3]).tolist() == [feature == 7 for feature in range(FEATURES)]


# dtypes


@pytest.mark.parametrize("side", SIDES)
def test_bfloat16_is_the_float32_function_of_the_same_operands_rounded(side):
    low = [a.astype(jnp.bfloat16) for a in operands(SIDES[side])]
    (y, *_), activity, gradients = sparse("shift", CAPACITY, *low)
    assert bool(activity.overflow) == (side == "dense") and y.dtype == jnp.bfloat16
    (truth, *_), slopes = dense("shift", *[a.astype(jnp.float32) for a in low])
    for ours, exact in zip((y, *gradients), (truth, *slopes), strict=True):
        assert ours.dtype == jnp.bfloat16 and exact.dtype == jnp.float32
        error = jnp.abs(ours.astype(jnp.float32) - exact).max()
        assert error <= 2**-7 * jnp.abs(exact).max()


def test_leading_shapes():
    x, w_in, w_out, threshold, b_in, b_out = operands(1.0, 6, 4, 33)
    call = partial(sparse_mlp, b_in=b_in, b_out=b_out, with_activity=True)
    y, _ = call(x, w_in, w_out, threshold)
    shaped, record = call(x.reshape(2, 3, 4), w_in, w_out, threshold)
    np.testing.assert_array_equal(shaped, y.reshape(2, 3, OUT))
    assert record.l0.shape == record.counts.shape == (2, 3)
    np.testing.assert_allclose(call(x[0], w_in, w_out, threshold)[0], y[0], rtol=1e-5)
