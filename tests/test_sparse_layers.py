"""The compact block as a Flax layer: the function's values, and parameters that learn."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtrelu.linen.compact import CompactMLP as LinenCompact
from jaxtrelu.nnx.compact import CompactMLP

import jaxtrelu


def reference(x, p):
    z = x @ p["w_in"].T + p["b_in"]
    return jaxtrelu.thresholded_relu(z, p["threshold"]) @ p["w_out"] + p["b_out"]


X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)


def test_linen_learns_every_parameter_as_the_dense_block():
    layer = LinenCompact(33, 3, threshold=0.5, learned=True)
    params = layer.init(jax.random.key(0), X)["params"]
    ours = jax.grad(lambda p: jnp.sum(layer.apply({"params": p}, X) ** 2))(params)
    theirs = jax.grad(lambda p: jnp.sum(reference(X, p) ** 2))(params)
    assert set(ours) == {"w_in", "b_in", "threshold", "w_out", "b_out"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_nnx_learns_every_parameter_as_the_dense_block():
    layer = CompactMLP(4, 33, 3, threshold=0.5, learned=True, rngs=nnx.Rngs(0))
    gradients = nnx.grad(lambda layer: jnp.sum(layer(X) ** 2))(layer)
    names = ("w_in", "b_in", "threshold", "w_out", "b_out")
    params = {name: getattr(layer, name)[...] for name in names}
    theirs = jax.grad(lambda p: jnp.sum(reference(X, p) ** 2))(params)
    for name in names:
        np.testing.assert_allclose(gradients[name][...], theirs[name], rtol=1e-4, atol=1e-5)


def test_a_fixed_threshold_is_no_parameter():
    layer = CompactMLP(4, 33, rngs=nnx.Rngs(0))
    assert len(jax.tree.leaves(nnx.state(layer, nnx.Param))) == 4
    assert layer(X).shape == (5, 4)
