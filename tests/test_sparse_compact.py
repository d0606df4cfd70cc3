"""Compact residuals: the dense function's gradients, and the bytes that are kept for them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sparse_cases import (  # fmt: skip
    CAPACITY,
    CASES,
    QUICK,
    SIDES,
    assert_close,
    cotangent,
    dense_mlp,
    operands,
    spoilt,
)

from jaxtrelu._primitive.spec import block_operands, checked_spec
from jaxtrelu.sparse import _compact, compact_mlp
from jaxtrelu.sparse._block import Plan, product_of_nonzeros
from jaxtrelu.sparse._mlp import operands_of

NAMES = ("x", "w_in", "w_out", "threshold", "b_in", "b_out")


def call(case, x, w_in, w_out, threshold, b_in, b_out):
    options = CASES[case] | {"b_in": b_in, "b_out": b_out, "capacity": CAPACITY}
    return compact_mlp(x, w_in, w_out, threshold, **options)


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def gradients(case, *args):
    """Whether pre-activations are computed again, y and the gradients."""
    y, pullback = jax.vjp(partial(call, case), *args)
    x, w_in, w_out, threshold, b_in, b_out = args
    block = block_operands(x, {"w_in": w_in}, w_out, threshold, {"b_in": b_in}, b_out)
    plan = Plan(checked_spec(**CASES[case]), CAPACITY * len(y))
    _, residuals = _compact.forward(plan, operands_of(block))
    return residuals.overflow, y, pullback(cotangent(len(y)).astype(y.dtype))


@partial(jax.jit, static_argnums=0)
def dense(case, *args):
    y, pullback = jax.vjp(lambda *args: dense_mlp(*args, **CASES[case])[0], *args)
    return y, pullback(cotangent(len(y)))


@pytest.mark.parametrize("case", ["ceiling", "jump to input", "smoothed shift"])
@pytest.mark.parametrize("side", SIDES)
def test_values_and_gradients_on_either_path(case, side):
    args = operands(SIDES[side])
    overflow, y, slopes = gradients(case, *args)
    expected, expected_slopes = dense(case, *args)
    assert bool(overflow) == (side == "dense")
    assert_close([y, *slopes], [expected, *expected_slopes], ("y", *NAMES))


@pytest.mark.parametrize("case", ["ceiling", "jump to input"])
@pytest.mark.parametrize("side", SIDES)
def test_a_closed_entry_contributes_nothing_beside_nan_and_infinity(case, side):
    sound, bad = spoilt(operands(SIDES[side]))
    overflow, y, slopes = gradients(case, *bad)
    _, expected, expected_slopes = gradients(case, *sound)
    assert bool(overflow) == (side == "dense")
    assert_close([y, *slopes], [expected, *expected_slopes], ("y", *NAMES))


def test_several_entries_beside_nan_that_some_examples_open():
    """One by one: an example that opens such a feature is NaN, and the others are as before."""
    x, w_in, w_out, threshold, b_in, b_out = args = operands(SIDES["sparse"])
    opened = x @ w_in.T + b_in > threshold
    chosen = jnp.argsort(jnp.abs(opened.sum(0) - 2))[:3]  # open for two examples or so
    bad = (x, w_in, w_out.at[chosen].set(jnp.nan), threshold, b_in, b_out)
    opened = opened[:, chosen].any(1)
    assert 0 < opened.sum() < len(opened)
    y, expected = gradients("ceiling", *bad)[1], gradients("ceiling", *args)[1]
    assert jnp.isnan(y).all(1).tolist() == opened.tolist()
    assert_close([y[~opened]], [expected[~opened]])


@pytest.mark.parametrize("over", [0, 1])
def test_nan_beside_zeros_in_several_blocks_of_rows(over):
    """A block is 256 rows; the last of 300 is cleaned together with those before it."""
    rng = np.random.default_rng(0)
    a = np.maximum(rng.standard_normal((4, 300)), 0).astype("float32")
    b = rng.standard_normal((300, 8)).astype("float32")
    a[:, [0, 260, 299]] = [[0.0, 0.0, 0.0]] * 3 + [[1.0, 0.0, 0.0]]
    bad = b.copy()
    bad[[0, 260, 299], [1, 2, 3]] = np.nan, np.inf, -np.inf
    result = product_of_nonzeros(
        jnp.asarray(a.T if over == 0 else a), jnp.asarray(bad), "float32", over
    )
    expected = a.astype("float64") @ b.astype("float64")
    np.testing.assert_allclose(result[:3], expected[:3], rtol=1e-5, atol=1e-5)
    assert np.isnan(result[3]).tolist() == [False, True] + [False] * 6


@pytest.mark.parametrize("seed", range(4))
def test_infinities_and_nan_are_summed_by_their_terms(seed):
    """Of either sign, infinity and NaN, also beside infinite factors, and beside zeros alone."""
    rng = np.random.default_rng(seed)
    a = np.maximum(rng.standard_normal((40, 300)), 0).astype("float32")
    a *= rng.choice(np.float32([1, -1, 0]), a.shape, p=[0.1, 0.1, 0.8])
    b = rng.standard_normal((300, 24)).astype("float32")
    special = rng.choice(np.float32([np.inf, -np.inf, np.nan]), b.shape)
    b = np.where(rng.random(b.shape) < 5e-3, special, b)
    b[0, 0] = np.nan
    a[0] = 0
    a[0, np.flatnonzero(~np.isfinite(b).all(axis=1))[1]] = np.inf
    with np.errstate(invalid="ignore"):
        terms = a[:, :, None].astype("float64") * b[None].astype("float64")
        expected = np.where(a[:, :, None] != 0, terms, 0).sum(axis=1)
    assert min(np.isfinite(expected).mean(), np.isinf(expected).mean()) > 0.05
    for over in (0, 1):
        result = product_of_nonzeros(
            jnp.asarray(a if over else a.T), jnp.asarray(b), "float32", over
        )
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3, 8), (3, 0, 8), (3, 4, 0)])
def test_shapes_without_elements(shape):
    args = operands(0.3, *shape)
    y, pullback = jax.vjp(partial(call, "ceiling"), *args)
    slopes = pullback(cotangent(len(y)))
    expected, expected_slopes = dense("ceiling", *args)
    assert_close([y, *slopes], [expected, *expected_slopes], ("y", *NAMES))


def temporary_bytes(layer, depth, rows, d, m):
    def loss(weights, x):
        for w_in, w_out in weights:
            x = x + layer(x, w_in, w_out, 1.28 * d**0.5)
        return jnp.sum(x)

    pair = (jax.ShapeDtypeStruct((m, d), "float32"), jax.ShapeDtypeStruct((m, d), "float32"))
    x = jax.ShapeDtypeStruct((rows, d), "float32")
    program = jax.jit(jax.grad(loss, argnums=0)).lower([pair] * depth, x).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_bytes_kept_per_hidden_element():
    """Growth per layer between two depths; x, which a dense layer keeps as well, is 0.25 of it."""
    rows, d, m = 256, 64, 1024
    layer = partial(compact_mlp, capacity=m // 8)
    few, many = (temporary_bytes(layer, depth, rows, d, m) for depth in (4, 6))
    assert (many - few) / (2 * rows * m) <= 1.0
