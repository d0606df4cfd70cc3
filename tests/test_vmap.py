"""vmap over any subset of arguments and axes, of the function and of its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, assert_close, over_cases, together

import jaxtrelu

AXES = [(x, t) for x in (None, 0, 1, 2, -1) for t in (None, 0) if (x, t) != (None, None)]


@pytest.mark.parametrize("variant", ["shift", "hard", "clamp"])
def test_any_axis_of_any_argument(variant):
    together({str(axes): _mapped_over(axes, variant) for axes in AXES})


def _mapped_over(in_axes, variant):
    x_axis, t_axis = in_axes
    case = Case(variant, "float32", "scalar")
    x = case.draw((4, 5, 6) if x_axis is None else tuple(np.insert([5, 6], x_axis % 3, 4)))
    thresholds = case.draw((4,)) if t_axis == 0 else case.threshold
    gradient = jax.grad(lambda x, t: case.function(x, t).sum(), argnums=(0, 1))

    def program(x, thresholds):
        return [jax.vmap(f, in_axes)(x, thresholds) for f in (case.function, gradient)]

    mapped, slopes = yield program, x, thresholds
    for i in range(4):
        row = x if x_axis is None else np.take(np.asarray(x), i, x_axis)
        threshold = thresholds if t_axis is None else thresholds[i]
        value, dx, dt = case.expected(row, threshold)
        assert_close(mapped[i], value, case)
        assert_close(slopes[0][i], dx, case)
        assert_close(slopes[1][i], dt.sum(), case)


@over_cases
def test_rows_one_by_one(case):
    in_axes = (0, 0 if case.kind == "full" else None)
    mapped = yield jax.vmap(case.function, in_axes), case.x, case.threshold
    assert_close(mapped, case.expected()[0], case)


@over_cases
def test_gradient_per_example(case):
    in_axes = (0, 0 if case.kind == "full" else None)
    gradient = jax.grad(lambda x, t: case.function(x, t).sum(), argnums=(0, 1))
    from_x, from_threshold = yield jax.vmap(gradient, in_axes), case.x, case.threshold
    _, dx, dt = case.expected()
    assert_close(from_x, dx, case)
    per_row = {"number": dt.sum(1), "scalar": dt.sum(1)}.get(case.kind, dt)
    assert_close(from_threshold, per_row, case)


def test_nested_and_against_a_table_of_thresholds():
    x, thresholds = jnp.linspace(-1, 1, 37), jnp.linspace(-0.9, 0.9, 5)
    table = jax.vmap(jax.vmap(jaxtrelu.thresholded_relu, (0, None)), (None, 0))(x, thresholds)
    np.testing.assert_array_equal(table, jnp.maximum(x - thresholds[:, None], 0))


def test_the_packed_axis_stays_the_feature_axis_under_vmap():
    """Packed across the batch, the words of one example would hold bits of its neighbours."""
    x = jnp.ones((3, 64))
    _, pullback = jax.vjp(jax.vmap(lambda x: jaxtrelu.thresholded_relu(x, 0.5)), x)
    (words,) = [leaf for leaf in jax.tree.leaves(pullback) if leaf.dtype == jnp.uint32]
    # Two words for each example, or four parts of one, which eight devices can share.
    assert words.shape in [(3, 2), (3, 4, 1)]


def test_batched_cotangents_on_shared_words():
    x = jnp.linspace(-1, 1, 33)
    _, pullback = jax.vjp(lambda x: jaxtrelu.thresholded_relu(x, 0.25), x)
    (rows,) = jax.vmap(pullback)(jnp.eye(33))
    np.testing.assert_array_equal(rows, jnp.diag((x > 0.25) * 1.0))
