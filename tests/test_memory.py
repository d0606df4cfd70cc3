"""What reverse mode keeps, in bytes: at the boundary of a jit, and within a compiled gradient."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxtrelu import Rectangle, thresholded_relu

VARIANTS = {
    "shift": {},
    "ceiling": {"ceiling": 2.0},
    "hard": {"variant": "hard"},
    "clamp": {"variant": "clamp"},
}
CONSTANT = 64  # bytes: the end of the last word, and whatever else does not grow


def _residual_bytes(function, *operands):
    _, vjp = jax.vjp(function, *operands)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(vjp))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("transform", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_vjp_keeps_one_bit_per_element(transform, dtype, options):
    with jax.enable_x64(True):
        x = jnp.linspace(-3, 3, 33 * 4096).reshape(33, 4096).astype(dtype)
        kept = _residual_bytes(transform(lambda x: thresholded_relu(x, 1.0, **options)), x)
    assert 0 < kept <= x.size / 8 + CONSTANT


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("shape", [(), (1,), (4096,), (33, 4096)], ids=str)
def test_vjp_in_a_learned_threshold_keeps_no_more(shape, options):
    x, threshold = jnp.linspace(-3, 3, 33 * 4096).reshape(33, 4096), jnp.ones(shape)
    kept = _residual_bytes(jax.jit(lambda x, t: thresholded_relu(x, t, **options)), x, threshold)
    assert 0 < kept <= x.size / 8 + CONSTANT


@pytest.mark.parametrize("shape", [(100003,), (4096, 3), (8, 16, 16, 24), (1, 4096)], ids=str)
def test_awkward_shapes_waste_little(shape):
    x = jnp.zeros(shape)
    kept = _residual_bytes(jax.jit(thresholded_relu), x)
    assert 0 < kept <= x.size / 8 + CONSTANT


def test_a_flat_surrogate_adds_one_bit_per_element():
    def act(x, threshold):
        return thresholded_relu(x, threshold, variant="hard", surrogate=Rectangle(0.1))

    x, threshold = jnp.linspace(-3, 3, 33 * 4096).reshape(33, 4096), jnp.ones(4096)
    kept = _residual_bytes(jax.jit(act), x, threshold)
    assert 0 < kept <= 2 * x.size / 8 + threshold.nbytes + CONSTANT


# Twelve layers of act(x @ W), in the three ways that deep networks are written.

DEPTH, ROWS, WIDTH = 12, 2048, 1024


def _plain(act):
    return lambda x, weights: functools.reduce(lambda h, w: act(h @ w), weights, x).sum()


def _residual(act):
    return lambda x, weights: functools.reduce(lambda h, w: h + 0.1 * act(h @ w), weights, x).sum()


def _scan(act):
    return lambda x, weights: jax.lax.scan(lambda h, w: (act(h @ w), None), x, weights)[0].sum()


@functools.cache
def _gradient_bytes(network, act, depth=DEPTH):
    """Temporary memory of the compiled gradient, in units of one float32 activation."""
    x, w, stack = (
        jax.ShapeDtypeStruct(shape, "float32")
        for shape in ((ROWS, WIDTH), (WIDTH, WIDTH), (depth, WIDTH, WIDTH))
    )
    weights = stack if network is _scan else [w] * depth
    gradient = jax.jit(jax.grad(network(act), argnums=1))
    memory = gradient.lower(x, weights).compile().memory_analysis()
    return memory.temp_size_in_bytes / (4 * x.size)


def _ours(options):
    return lambda x: thresholded_relu(x, 1.0, **options)


NETWORKS = [
    pytest.param(_plain, 0.55, id="plain"),
    pytest.param(_residual, 0.58, id="residual"),
    pytest.param(_scan, 0.88, id="scan"),
]


@pytest.mark.parametrize(("network", "limit"), NETWORKS)
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_gradient_memory_of_a_deep_network(network, limit, options):
    ours = _gradient_bytes(network, _ours(options))
    assert 0 < ours <= limit * _gradient_bytes(network, jax.nn.relu)


@pytest.mark.parametrize("network", [_plain, _residual, _scan])
def test_gradient_memory_per_layer(network):
    """A layer adds its input and the words, so nothing else hides in what all layers share.

    (The words themselves can: in the buffers of gradients that are not yet written.)
    """
    act = _ours({})
    growth = _gradient_bytes(network, act) - _gradient_bytes(network, act, depth=DEPTH // 2)
    assert growth / (DEPTH - DEPTH // 2) <= 1 + 1 / 32 + 0.01
