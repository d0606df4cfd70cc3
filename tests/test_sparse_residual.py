"""Compact residuals: the dense function's gradients, and the bytes that are kept for them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrelu
from jaxtrelu.sparse import compact_mlp

CASES = {
    "shift": {"variant": "shift"},
    "ceiling": {"variant": "shift", "ceiling": 0.5},
    "jump": {"variant": "hard", "surrogate": jaxtrelu.Triangle(0.3, to_input=True)},
}


def dense_mlp(x, w_in, b_in, threshold, w_out, b_out, **case):
    return jaxtrelu.thresholded_relu(x @ w_in.T + b_in, threshold, **case) @ w_out + b_out


def operands(rows=6, d=5, m=70):
    rng = np.random.default_rng(0)
    shapes = [(rows, d), (m, d), (m,), (m,), (m, 4), (4,)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("capacity", [70, 1])
def test_gradients_are_those_of_the_dense_function(case, capacity):
    args = operands()
    ct = jnp.cos(jnp.arange(24.0)).reshape(6, 4)
    ours = partial(compact_mlp, **CASES[case], capacity=capacity)
    theirs = partial(dense_mlp, **CASES[case])
    np.testing.assert_allclose(ours(*args), theirs(*args), rtol=1e-5, atol=1e-5)
    gradients = jax.jit(lambda ct, *args: jax.vjp(ours, *args)[1](ct))(ct, *args)
    for one, other in zip(gradients, jax.vjp(theirs, *args)[1](ct), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def temporary_bytes(layer, depth, rows, d, m):
    def loss(weights, x):
        for w_in, w_out in weights:
            x = x + layer(x, w_in, None, 1.28 * d**0.5, w_out)
        return jnp.sum(x)

    pair = (jax.ShapeDtypeStruct((m, d), "float32"), jax.ShapeDtypeStruct((m, d), "float32"))
    x = jax.ShapeDtypeStruct((rows, d), "float32")
    program = jax.jit(jax.grad(loss, argnums=0)).lower([pair] * depth, x).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_bytes_kept_per_hidden_element():
    """Growth per layer between two depths; x, which a dense layer keeps as well, is 0.25 of it."""
    rows, d, m = 256, 64, 1024
    layer = partial(compact_mlp, variant="shift", capacity=m // 8)
    few, many = (temporary_bytes(layer, depth, rows, d, m) for depth in (8, 16))
    assert (many - few) / (8 * rows * m) <= 1.0
