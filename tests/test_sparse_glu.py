"""The gated unit and the gated product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrelu
from jaxtrelu.sparse import gated_mlp, thresholded_glu


def reference_glu(gate, up, threshold):
    """vLLM's: F.threshold(gate, threshold, 0) * up, every operation rounded to the dtype."""
    closed = gate.astype(np.float64) <= threshold
    kept = np.where(closed, np.zeros_like(gate), gate)
    return (kept.astype(np.float64) * up.astype(np.float64)).astype(gate.dtype)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("width", [512, 13824])
@pytest.mark.parametrize("tokens", [7, 83, 2048])
def test_the_shapes_of_vllm_exactly(dtype, width, tokens):
    rng = np.random.default_rng(tokens + width)
    gate, up = rng.standard_normal((2, tokens, width), np.float32).astype(dtype)
    ours = jax.jit(thresholded_glu, static_argnums=2)(gate, up, 0.5)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, reference_glu(gate, up, 0.5))


def test_glu_gradient():
    gate, up = jnp.array([0.5, 1.0, 2.0]), jnp.array([3.0, 4.0, 5.0])
    d_gate, d_up = jax.grad(lambda g, u: thresholded_glu(g, u, 1.0).sum(), (0, 1))(gate, up)
    assert d_gate.tolist() == [0, 0, 5] and d_up.tolist() == [0, 0, 2]


def dense_mlp(x, w_gate, w_up, w_out, threshold, variant):
    gate = jaxtrelu.thresholded_relu(x @ w_gate.T, threshold, variant=variant)
    return (gate * (x @ w_up.T)) @ w_out


def operands(rows, d=12, h=70, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(rows, d), (h, d), (h, d), (h, 5)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize(
    ("variant", "rows", "threshold", "capacity"),
    [
        ("hard", 1, 3.0, None),
        ("hard", 3, 3.0, None),
        ("shift", 3, 3.0, 1),
        ("hard", 40, 3.0, None),
        ("shift", 40, 3.0, 70),
        ("shift", 40, 3.0, 1),
        ("hard", 40, -99.0, 70),
        ("hard", 40, 99.0, None),
    ],
)
def test_against_dense(variant, rows, threshold, capacity):
    x, *weights = operands(rows)
    threshold = jnp.float32(threshold)

    def ours(*args):
        return gated_mlp(*args, variant=variant, capacity=capacity)

    def theirs(*args):
        return dense_mlp(*args, variant)

    args = (x, *weights, threshold)
    close = {"rtol": 1e-4, "atol": 1e-3}
    np.testing.assert_allclose(jax.jit(ours)(*args), theirs(*args), **close)
    ct = jnp.cos(jnp.arange(rows * 5.0)).reshape(rows, 5)
    gradients = jax.jit(lambda ct, *args: jax.vjp(ours, *args)[1](ct))(ct, *args)
    expected = jax.vjp(theirs, *args)[1](ct)
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(one, other, **close)


def test_a_threshold_for_each_unit_and_leading_shapes():
    x, *weights = operands(6)
    threshold = jnp.linspace(0, 5, 70)
    shaped = gated_mlp(x.reshape(2, 3, 12), *weights, threshold)
    expected = dense_mlp(x, *weights, threshold, "hard")
    np.testing.assert_allclose(shaped.reshape(6, 5), expected, rtol=1e-4, atol=1e-3)
    assert gated_mlp(x[:0], *weights, threshold).shape == (0, 5)
    assert gated_mlp(x[0], *weights, threshold).shape == (5,)


@pytest.mark.parametrize("rows", [1, 40])
def test_nan_everywhere(rows):
    x, *weights = [a * jnp.nan for a in operands(rows)]
    assert jnp.isnan(gated_mlp(x, *weights, 1.0)).all()


def test_errors_say_what_to_pass():
    x, w_gate, w_up, w_out = operands(2)
    with pytest.raises(ValueError, match=r"`w_up` should have the shape of `w_gate`"):
        gated_mlp(x, w_gate, w_up[1:], w_out, 1.0)
    with pytest.raises(ValueError, match="no zeros"):
        gated_mlp(x, w_gate, w_up, w_out, 1.0, variant="clamp")
    with pytest.raises(ValueError, match="shape and dtype of `gate`"):
        thresholded_glu(x, x[1:], 1.0)
    with pytest.raises(ValueError, match="closes nothing"):
        thresholded_glu(x, x, 1.0, variant="clamp")
