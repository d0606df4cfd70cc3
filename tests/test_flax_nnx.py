"""`jaxtrelu.nnx.ThresholdedReLU`: construction, values, gradients and Flax's transformations."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jaxtrelu
from jaxtrelu.nnx import FixedThreshold, Threshold, ThresholdedReLU

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5)).astype(np.float32)
PER_CHANNEL = np.float32([-0.6, -0.2, 0.1, 0.4, 0.9])
CONTINUOUS = [("shift", None), ("shift", 0.75), ("clamp", None)]


class Net(nnx.Module):
    """A dense layer and a learned threshold per unit: weights and thresholds side by side."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(5, 7, rngs=rngs)
        self.act = ThresholdedReLU(0.2, features=7, learned=True)

    def __call__(self, x):
        return self.act(self.dense(x))


def weighted(cotangent):
    return lambda layer, x: jnp.sum(layer(x) * cotangent)


# --- construction ----------------------------------------------------------------------------


def test_fixed_number_stores_nothing():
    layer = ThresholdedReLU(0.25)
    assert layer.threshold == 0.25
    assert not jax.tree.leaves(nnx.state(layer))
    np.testing.assert_array_equal(layer(X), jaxtrelu.thresholded_relu(X, 0.25))


@pytest.mark.parametrize(
    ("threshold", "features"), [(0.25, 5), (PER_CHANNEL, None), (jnp.float32(0.5), None)]
)
def test_fixed_threshold_that_is_stored_is_no_parameter(threshold, features):
    layer = ThresholdedReLU(threshold, features=features)
    assert isinstance(layer.threshold, FixedThreshold)
    assert not jax.tree.leaves(nnx.state(layer, nnx.Param))
    assert layer.threshold[...].shape == (() if np.ndim(threshold) == 0 and not features else (5,))
    wanted = oracle.value(X, np.asarray(threshold))
    np.testing.assert_allclose(layer(X), wanted, rtol=1e-6)
    layer.threshold[...] = jnp.full_like(layer.threshold[...], 0.5)  # as a calibration does
    np.testing.assert_array_equal(layer(X), jaxtrelu.thresholded_relu(X, 0.5))


def test_learned_threshold_is_a_param_of_its_own_type():
    model = Net(nnx.Rngs(0))
    assert isinstance(model.act.threshold, Threshold)
    assert isinstance(model.act.threshold, nnx.Param)
    found = nnx.to_flat_state(nnx.state(model, Threshold))
    assert [path for path, _ in found] == [("act", "threshold")]


def test_default_is_the_function_with_threshold_one():
    np.testing.assert_array_equal(ThresholdedReLU()(X), jaxtrelu.thresholded_relu(X))


def test_initialiser_draws_from_the_params_stream():
    init = nnx.initializers.uniform(0.5)
    layer = ThresholdedReLU(init, features=5, learned=True, rngs=nnx.Rngs(params=3))
    drawn = init(nnx.Rngs(params=3).params(), (5,), jnp.float32)
    np.testing.assert_array_equal(layer.threshold[...], drawn)
    assert len(np.unique(drawn)) == 5


def test_metadata_reaches_the_variable():
    metadata = {"tag": "width"}
    layer = ThresholdedReLU(0.1, features=5, learned=True, threshold_metadata=metadata)
    assert layer.threshold.tag == "width"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variant": "hard", "learned": True}, "would not learn.*jaxtrelu.Rectangle"),
        (
            {"variant": "hard", "learned": True, "threshold": 0.0, "surrogate": "Rectangle"},
            "would not leave 0",
        ),
        ({"learned": True, "param_dtype": jnp.bfloat16}, "param_dtype.*float32"),
        ({"variant": "soft"}, "'shift', 'hard', 'clamp'"),
        ({"variant": "hard", "ceiling": 1.0}, "ceiling"),
        ({"threshold": float("nan")}, "NaN"),
        ({"threshold": [0.1, float("nan")]}, "NaN"),
        ({"threshold": PER_CHANNEL, "features": 4}, r"\(4,\).*\(5,\)"),
        ({"axis": 1}, "features"),
        ({"features": (2, 3), "axis": 1}, "one axis of x for each"),
        ({"threshold": nnx.initializers.ones, "features": 3}, "rngs=nnx.Rngs"),
    ],
)
def test_construction_refuses_what_cannot_work(arguments, words):
    if arguments.get("surrogate") == "Rectangle":
        arguments = arguments | {"surrogate": jaxtrelu.Rectangle(0.1)}
    with pytest.raises(ValueError, match=words):
        ThresholdedReLU(**arguments)


@pytest.mark.parametrize("threshold", ["0.5", None, True, [0.1, "a"], [[1.0], [1.0, 2.0]], 1j])
def test_construction_refuses_what_is_no_number(threshold):
    with pytest.raises(TypeError, match="`threshold` of a layer should be a number, an array"):
        ThresholdedReLU(threshold)


@pytest.mark.parametrize("arguments", [{"features": 2.0}, {"features": "5"}])
def test_construction_refuses_a_number_of_channels_that_is_none(arguments):
    with pytest.raises(TypeError, match="`features` should be an integer or several"):
        ThresholdedReLU(0.1, **arguments)


def test_wrong_number_of_channels_names_both_shapes():
    layer = ThresholdedReLU(0.1, features=4, learned=True)
    with pytest.raises(ValueError, match=r"shape \(4,\).*axis -1.*shape \(6, 5\) has 5"):
        layer(X)
    with pytest.raises(ValueError, match="does not have"):
        ThresholdedReLU(0.1, features=4, axis=2)(X)
    with pytest.raises(ValueError, match="twice"):
        ThresholdedReLU(0.1, features=(6, 6), axis=(0, -2))(X)


def test_missing_flax_names_the_extra():
    code = """
import sys
sys.modules["flax"] = None
import jaxtrelu
try:
    jaxtrelu.nnx
except ImportError as error:
    print(error)
try:
    jaxtrelu.linen
except ImportError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, line in zip(("nnx", "linen"), out.stdout.splitlines(), strict=True):
        assert f"jaxtrelu.{name} needs Flax" in line
        assert "pip install 'jaxtrelu[flax]'" in line


# --- values and gradients ---------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "ceiling"), CONTINUOUS)
@pytest.mark.parametrize("threshold", [np.float32(0.3), PER_CHANNEL], ids=["scalar", "channel"])
def test_learned_threshold_gets_the_true_gradient(variant, ceiling, threshold):
    layer = ThresholdedReLU(threshold, learned=True, variant=variant, ceiling=ceiling)
    ct = RNG.normal(size=X.shape).astype(np.float32)
    wanted = oracle.value(X, threshold, variant=variant, ceiling=ceiling)
    np.testing.assert_allclose(layer(X), wanted, rtol=1e-6)

    dlayer, dx = nnx.grad(weighted(ct), argnums=(0, 1))(layer, jnp.asarray(X))
    ox, ot = oracle.cotangents(X, threshold, ct, variant=variant, ceiling=ceiling)
    np.testing.assert_array_equal(dx, ox.astype(np.float32))
    np.testing.assert_allclose(dlayer.threshold[...], ot, rtol=1e-5, atol=1e-6)

    # Finite differences of the oracle: exact for a piecewise linear function away from its kinks.
    def total(theta):
        return (oracle.value(X, theta, variant=variant, ceiling=ceiling) * ct).sum()

    step = 1e-6
    for index in np.ndindex(np.shape(threshold)):
        up, down = np.float64(threshold), np.float64(threshold)
        bump = np.zeros(np.shape(threshold))
        bump[index] = step
        slope = (total(up + bump) - total(down - bump)) / (2 * step)
        np.testing.assert_allclose(ot[index], slope, rtol=1e-6, atol=1e-6)


def test_hard_learns_with_a_surrogate():
    surrogate = jaxtrelu.Triangle(0.4)
    layer = ThresholdedReLU(PER_CHANNEL, learned=True, variant="hard", surrogate=surrogate)
    dlayer = nnx.grad(weighted(jnp.ones_like(X)))(layer, X)

    def density(d):
        return np.maximum(1 - np.abs(d) / 0.4, 0) / 0.4

    _, wanted = oracle.cotangents(X, PER_CHANNEL, 1.0, variant="hard", density=density)
    assert np.count_nonzero(wanted) >= 4
    np.testing.assert_allclose(dlayer.threshold[...], wanted, rtol=1e-5)


def test_fill_closes_to_a_value():
    layer = ThresholdedReLU(0.25, variant="hard", fill=-2.0)
    wanted = oracle.value(X, 0.25, variant="hard", fill=-2.0)
    np.testing.assert_array_equal(layer(X), wanted.astype(np.float32))


@pytest.mark.parametrize(
    ("shape", "axis", "aligned"),
    [
        ((3,), 1, (1, 3, 1, 1)),
        ((3,), -3, (1, 3, 1, 1)),
        ((5,), None, (1, 1, 1, 5)),
        ((4, 5), None, (1, 1, 4, 5)),
        ((3, 5), (1, -1), (1, 3, 1, 5)),
        ((2, 4), (0, -2), (2, 1, 4, 1)),
    ],
)
def test_channels_along_any_axes(shape, axis, aligned):
    x = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    theta = RNG.normal(size=shape).astype(np.float32)
    layer = ThresholdedReLU(theta, axis=axis, learned=True)
    wanted = oracle.value(x, theta.reshape(aligned))
    np.testing.assert_allclose(layer(x), wanted, rtol=1e-6)
    grad = nnx.grad(lambda layer: layer(x).sum())(layer).threshold[...]
    counted = oracle.cotangents(x, theta.reshape(aligned), 1.0)[1].reshape(shape)
    np.testing.assert_array_equal(grad, counted.astype(np.float32))


def test_axes_in_another_order_transpose_the_threshold():
    x = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    theta = RNG.normal(size=(4, 2)).astype(np.float32)
    layer = ThresholdedReLU(theta, axis=(-1, 0), learned=True)
    np.testing.assert_allclose(layer(x), oracle.value(x, theta.T[:, None, :]), rtol=1e-6)


# --- dtypes ----------------------------------------------------------------------------------


def test_bfloat16_activations_with_a_float32_threshold():
    # bfloat16(1) < 1.001, which rounds to 1 in bfloat16: the gate at 1 tells which was compared.
    x = jnp.asarray([0.5, 1.0, 1.0078125, 2.0], jnp.bfloat16)
    theta = np.float32([0.999, 0.999, 1.001, 1.001])
    layer = ThresholdedReLU(theta, learned=True)
    y = layer(x)
    assert y.dtype == jnp.bfloat16
    assert layer.threshold[...].dtype == jnp.float32
    assert (np.asarray(y) > 0).tolist() == [False, True, True, True]
    wanted = oracle.rounded(oracle.value(np.asarray(x), theta), "bfloat16")
    np.testing.assert_allclose(np.float64(y), wanted, rtol=oracle.RTOL["bfloat16"])
    grad = nnx.grad(lambda layer: layer(x).astype(jnp.float32).sum())(layer).threshold[...]
    assert grad.dtype == jnp.float32
    assert grad.tolist() == [0.0, -1.0, -1.0, -1.0]


def test_dtype_casts_the_activations_and_not_the_threshold():
    layer = ThresholdedReLU(PER_CHANNEL, learned=True, dtype=jnp.bfloat16)
    y = layer(X)
    assert y.dtype == jnp.bfloat16
    x = jnp.asarray(X, jnp.bfloat16)
    np.testing.assert_array_equal(y, jaxtrelu.thresholded_relu(x, PER_CHANNEL))
    np.testing.assert_array_equal(layer.threshold[...], PER_CHANNEL)


def test_dtype_by_default_is_that_of_x():
    layer = ThresholdedReLU(PER_CHANNEL, learned=True)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        assert layer(jnp.asarray(X, dtype)).dtype == dtype


def test_float64_thresholds():
    with jax.enable_x64(True):
        layer = ThresholdedReLU(0.1, features=5, learned=True, param_dtype=jnp.float64)
        assert layer.threshold[...].dtype == jnp.float64
        y = layer(X.astype(np.float64))
        np.testing.assert_allclose(y, oracle.value(X, 0.1), rtol=1e-14)


def test_integers_with_an_integer_threshold():
    x = jnp.arange(-3, 4)
    fixed = ThresholdedReLU(1)
    assert fixed(x).tolist() == [0, 0, 0, 0, 0, 1, 2]
    stored = ThresholdedReLU(1, features=7, param_dtype=jnp.int32)
    assert stored(x).tolist() == [0, 0, 0, 0, 0, 1, 2]


# --- transformations ---------------------------------------------------------------------------


def gradients(model, x):
    return nnx.grad(lambda m, x: jnp.sum(m(x) ** 2))(model, x)


def assert_same_state(a, b):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-6), a, b)


@pytest.fixture
def model():
    return Net(nnx.Rngs(0))


def test_jit(model):
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(model, X), model(X), rtol=1e-6)
    assert_same_state(nnx.jit(gradients)(model, X), gradients(model, X))


def test_split_and_merge_through_plain_jit(model):
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, x):
        return nnx.merge(graph, state)(x)

    np.testing.assert_allclose(run(state, X), model(X), rtol=1e-6)
    grads = jax.grad(lambda s: jnp.sum(run(s, X) ** 2))(state)
    assert_same_state(grads, gradients(model, X))


def test_graph_definition_is_hashable_and_compares_by_what_the_layer_is():
    graph = [nnx.graphdef(ThresholdedReLU(0.1)) for _ in range(2)]
    assert graph[0] == graph[1]
    assert hash(graph[0]) == hash(graph[1])
    assert graph[0] != nnx.graphdef(ThresholdedReLU(0.2))
    assert graph[0] != nnx.graphdef(ThresholdedReLU(0.1, variant="hard"))


def test_vmap_over_layers_made_by_vmap():
    thetas = jnp.float32([0.0, 0.3, 0.6])
    layers = nnx.vmap(lambda t: ThresholdedReLU(t, learned=True))(thetas)
    assert layers.threshold[...].shape == (3,)
    y = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(layers, X)
    np.testing.assert_allclose(y, oracle.value(X, np.asarray(thetas)[:, None, None]), rtol=1e-6)


def test_vmap_over_x_alone(model):
    y = nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(model, X)
    np.testing.assert_allclose(y, model(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, nnx.remat], ids=["plain", "remat"])
def test_scan_over_layers(wrap):
    thetas = jnp.float32([0.1, 0.2, 0.3])
    layers = nnx.vmap(lambda t: ThresholdedReLU(t, learned=True))(thetas)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(x, layer):
        return wrap(lambda layer, x: layer(x))(layer, x)

    grads = nnx.grad(lambda layers: run(jnp.asarray(X), layers).sum())(layers)
    x = X.astype(np.float64)
    for theta in np.asarray(thetas):
        x = oracle.value(x, theta)
    np.testing.assert_allclose(run(jnp.asarray(X), layers), x, rtol=1e-5, atol=1e-6)
    # Each open path loses every threshold once: all three count the entries open at the end.
    np.testing.assert_array_equal(grads.threshold[...], np.full(3, -np.count_nonzero(x)))


def test_remat(model):
    remat = nnx.grad(lambda m: jnp.sum(nnx.remat(lambda m, x: m(x))(m, X) ** 2))(model)
    assert_same_state(remat, gradients(model, X))


def test_value_and_grad_of_a_jitted_train_step_moves_the_threshold(model):
    optimiser = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    before = np.asarray(model.act.threshold[...])
    wanted = gradients(model, X).act.threshold[...]

    @nnx.jit
    def train(model, optimiser):
        optimiser.update(model, gradients(model, X))

    train(model, optimiser)
    np.testing.assert_allclose(model.act.threshold[...], before - 0.1 * wanted, rtol=1e-5)
    assert np.any(wanted)


def test_optimiser_of_thresholds_alone(model):
    optimiser = nnx.Optimizer(model, optax.sgd(0.1), wrt=Threshold)
    kernel, theta = np.asarray(model.dense.kernel[...]), np.asarray(model.act.threshold[...])
    wrt = nnx.DiffState(0, Threshold)
    grads = nnx.grad(lambda m: jnp.sum(m(X) ** 2), argnums=wrt)(model)
    optimiser.update(model, grads)
    np.testing.assert_array_equal(model.dense.kernel[...], kernel)
    assert not np.array_equal(model.act.threshold[...], theta)


def test_multi_transform_gives_thresholds_their_own_rate(model):
    params = nnx.state(model, nnx.Param)
    labels = jax.tree.map(
        lambda v: "threshold" if isinstance(v, Threshold) else "weight",
        params,
        is_leaf=lambda v: isinstance(v, nnx.Variable),
    )
    rates = {"threshold": optax.sgd(1.0), "weight": optax.set_to_zero()}
    optimiser = nnx.Optimizer(model, optax.multi_transform(rates, labels), wrt=nnx.Param)
    grads = gradients(model, X)
    kernel, theta = np.asarray(model.dense.kernel[...]), np.asarray(model.act.threshold[...])
    optimiser.update(model, grads)
    np.testing.assert_array_equal(model.dense.kernel[...], kernel)
    moved = theta - np.asarray(grads.act.threshold[...])
    np.testing.assert_allclose(model.act.threshold[...], moved, rtol=1e-6)


def test_fixed_thresholds_stay_while_a_model_trains():
    model = nnx.Sequential(nnx.Linear(5, 7, rngs=nnx.Rngs(0)), ThresholdedReLU(0.1, features=7))
    optimiser = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    optimiser.update(model, gradients(model, X))
    np.testing.assert_array_equal(model.layers[1].threshold[...], np.full(7, 0.1, np.float32))


def test_checkpoint_round_trip(model, tmp_path):
    fixed = ThresholdedReLU(PER_CHANNEL)
    saved = {"model": nnx.state(model), "fixed": nnx.state(fixed)}
    path = tmp_path.resolve() / "checkpoint"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, saved)
        checkpointer.wait_until_finished()
        target = {
            "model": nnx.state(nnx.eval_shape(lambda: Net(nnx.Rngs(1)))),
            "fixed": nnx.state(ThresholdedReLU(0.0, features=5)),
        }
        restored = checkpointer.restore(path, target)
    other = Net(nnx.Rngs(1))
    nnx.update(other, restored["model"])
    np.testing.assert_array_equal(other(X), model(X))
    assert isinstance(other.act.threshold, Threshold)
    again = ThresholdedReLU(0.0, features=5)
    nnx.update(again, restored["fixed"])
    np.testing.assert_array_equal(again(X), fixed(X))
