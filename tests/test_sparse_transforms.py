"""The sparse products under JAX's transformations.

Their rules are shared in part, and each is a program that takes seconds to compile: `make test` has
every product under `vmap`, and every transformation of two products.
"""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxtrelu
from jaxtrelu.sparse import compact_mlp, gated_mlp, sparse_mlp


def _normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, W_IN, B_IN, W_OUT = _normal(16, 6), _normal(40, 6, seed=1), _normal(40), _normal(40, 6, seed=2)
THETA = jnp.float32(1.0)
JUMP = jaxtrelu.Rectangle(0.5)


def jump(x, w_in, theta, w_out):
    options = {"variant": "hard", "surrogate": JUMP, "capacity": 40, "with_activity": True}
    y, activity = sparse_mlp(x, w_in, w_out, theta, b_in=B_IN, **options)
    return y + activity.l0[..., None]


def gated(x, w_in, theta, w_out):
    return gated_mlp(x, w_in, w_in, w_out, theta, variant="hard", capacity=40)


def compact(x, w_in, theta, w_out):
    return compact_mlp(x, w_in, w_out, theta, b_in=B_IN, capacity=40)


def dense(name, x, w_in, theta, w_out):
    if name == "gated":
        z = x @ w_in.T
        return (jaxtrelu.thresholded_relu(z, theta, variant="hard") * z) @ w_out
    z = x @ w_in.T + B_IN
    if name == "compact":
        return jaxtrelu.thresholded_relu(z, theta) @ w_out
    l0 = jaxtrelu.step(z, theta, surrogate=JUMP).sum(-1)
    return jaxtrelu.jump_relu(z, theta, surrogate=JUMP) @ w_out + l0[..., None]


PRODUCTS = {"jump": jump, "gated": gated, "compact": compact}


def products(left_out):
    """All of them; one of them in `make test-slow` only."""
    marks = {left_out: pytest.mark.slow}
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=marks.get(name, ())) for name in PRODUCTS]
    )


ARGS = (X, W_IN, THETA, W_OUT)


def gradients(function, *args):
    return jax.grad(lambda *args: jnp.sum(jnp.sin(function(*args))), range(4))(*args)


@functools.cache
def dense_gradients(name):
    return jax.tree.map(np.asarray, jax.jit(partial(gradients, partial(dense, name)))(*ARGS))


def assert_close(ours, theirs):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("name", PRODUCTS)
def test_vmap_grad(name):
    x = X.reshape(2, 8, 6)
    over = partial(jax.vmap, in_axes=(0, None, None, None))
    ours = jax.jit(over(partial(gradients, PRODUCTS[name])))(x, *ARGS[1:])
    assert_close(ours, jax.jit(over(partial(gradients, partial(dense, name))))(x, *ARGS[1:]))


@products(left_out="gated")
def test_scan_grad(name):
    def stack(layer, x, *rest):
        return jax.lax.scan(lambda h, _: (h + 0.01 * layer(h, *rest), None), x, length=3)[0]

    ours = jax.jit(partial(gradients, partial(stack, PRODUCTS[name])))(*ARGS)
    assert_close(ours, jax.jit(partial(gradients, partial(stack, partial(dense, name))))(*ARGS))


@products(left_out="jump")
def test_checkpoint_grad(name):
    ours = jax.jit(partial(gradients, jax.checkpoint(PRODUCTS[name])))(*ARGS)
    assert_close(ours, dense_gradients(name))


@products(left_out="gated")
def test_shard_map_grad(name):
    """Over the batch, with varying axes checked: replicated weights get summed gradients."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    specs = (P("batch"), P(), P(), P())
    sharded = jax.shard_map(PRODUCTS[name], mesh=mesh, in_specs=specs, out_specs=P("batch"))
    ours = jax.jit(partial(gradients, sharded))(*ARGS)
    assert_close(ours, dense_gradients(name))
