"""`jaxtrelu.linen.ThresholdedReLU`: construction, values, gradients and Flax's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import traverse_util

import jaxtrelu
from jaxtrelu.linen import ThresholdedReLU

RNG = np.random.default_rng(1)
X = RNG.normal(size=(6, 5)).astype(np.float32)
PER_CHANNEL = (-0.6, -0.2, 0.1, 0.4, 0.9)
CONTINUOUS = [("shift", None), ("shift", 0.75), ("clamp", None)]
KEY = jax.random.key(0)


class Net(nn.Module):
    """A dense layer and a learned threshold per unit: weights and thresholds side by side."""

    @nn.compact
    def __call__(self, x):
        return ThresholdedReLU(0.2, axis=-1, learned=True)(nn.Dense(7)(x))


def total(module):
    return lambda variables, x: jnp.sum(module.apply(variables, x) ** 2)


def assert_same(a, b):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-6), a, b)


# --- construction ----------------------------------------------------------------------------


def test_fixed_number_stores_nothing():
    layer = ThresholdedReLU(0.25)
    assert layer.init(KEY, X) == {}
    np.testing.assert_array_equal(layer.apply({}, X), jaxtrelu.thresholded_relu(X, 0.25))


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"threshold": 0.25, "axis": -1}, (5,)),
        ({"threshold": PER_CHANNEL}, (5,)),
        ({"threshold": np.float32(PER_CHANNEL), "axis": 1}, (5,)),
        ({"threshold": nn.initializers.constant(0.25)}, ()),
        ({"threshold": nn.initializers.uniform(0.25), "axis": (0, 1)}, (6, 5)),
    ],
)
def test_fixed_threshold_that_is_stored_is_no_parameter(arguments, shape):
    layer = ThresholdedReLU(**arguments)
    variables = layer.init(KEY, X)
    assert list(variables) == ["thresholds"]
    theta = np.asarray(variables["thresholds"]["threshold"])
    assert theta.shape == shape
    np.testing.assert_allclose(layer.apply(variables, X), oracle.value(X, theta), rtol=1e-6)


def test_a_module_with_a_tuple_is_hashable():
    assert hash(ThresholdedReLU(PER_CHANNEL)) == hash(ThresholdedReLU(PER_CHANNEL))
    assert ThresholdedReLU(PER_CHANNEL) != ThresholdedReLU(PER_CHANNEL, variant="hard")


def test_default_is_the_function_with_threshold_one():
    np.testing.assert_array_equal(ThresholdedReLU().apply({}, X), jaxtrelu.thresholded_relu(X))


def test_initialiser_draws_from_the_params_stream():
    layer = ThresholdedReLU(nn.initializers.uniform(0.5), axis=-1, learned=True)
    theta = layer.init(KEY, X)["params"]["threshold"]
    assert theta.shape == (5,)
    assert len(np.unique(theta)) == 5
    np.testing.assert_array_equal(theta, layer.init(KEY, X)["params"]["threshold"])


def test_initialiser_with_partitioning():
    init = nn.with_partitioning(nn.initializers.constant(0.25), ("model",))
    layer = ThresholdedReLU(init, axis=-1, learned=True)
    variables = layer.init(KEY, X)
    assert nn.get_partition_spec(variables)["params"]["threshold"] == jax.P("model")
    np.testing.assert_array_equal(
        layer.apply(variables, X), jaxtrelu.thresholded_relu(X, np.float32(0.25))
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variant": "hard", "learned": True}, "would not learn.*jaxtrelu.Rectangle"),
        (
            {
                "variant": "hard",
                "learned": True,
                "threshold": 0.0,
                "surrogate": jaxtrelu.Rectangle(1),
            },
            "would not leave 0",
        ),
        ({"learned": True, "param_dtype": jnp.float16}, "param_dtype.*float32"),
        ({"variant": "soft"}, "'shift', 'hard', 'clamp'"),
        ({"variant": "hard", "ceiling": 1.0}, "ceiling"),
        ({"threshold": float("nan")}, "NaN"),
    ],
)
def test_construction_refuses_what_cannot_work(arguments, words):
    with pytest.raises(ValueError, match=words):
        ThresholdedReLU(**arguments)


@pytest.mark.parametrize("threshold", ["0.5", None, True, (0.1, "a")])
def test_construction_refuses_what_is_no_number(threshold):
    with pytest.raises(TypeError, match="`threshold` of a layer should be a number, an array"):
        ThresholdedReLU(threshold)


def test_wrong_number_of_channels_names_both_shapes():
    with pytest.raises(ValueError, match=r"shape of the channels, \(6,\).*shape \(5,\)"):
        ThresholdedReLU(PER_CHANNEL, axis=0).init(KEY, X)
    with pytest.raises(ValueError, match="does not have"):
        ThresholdedReLU(0.1, axis=2).init(KEY, X)
    layer = ThresholdedReLU(0.1, axis=-1, learned=True)
    with pytest.raises(Exception, match=r"shape"):  # Flax's own ScopeParamShapeError, or ours
        layer.apply(layer.init(KEY, X), X[:, :4])


def test_as_an_attribute_and_in_a_table():
    class Holder(nn.Module):
        act: nn.Module = ThresholdedReLU(0.2, axis=-1, learned=True)

        def __call__(self, x):
            return self.act(x)

    assert Holder().init(KEY, X)["params"]["act"]["threshold"].shape == (5,)
    assert "(20 B)" in nn.tabulate(Holder(), KEY)(X)


# --- values and gradients ---------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "ceiling"), CONTINUOUS)
@pytest.mark.parametrize("threshold", [0.3, PER_CHANNEL], ids=["scalar", "channel"])
def test_learned_threshold_gets_the_true_gradient(variant, ceiling, threshold):
    layer = ThresholdedReLU(threshold, learned=True, variant=variant, ceiling=ceiling)
    ct = RNG.normal(size=X.shape).astype(np.float32)
    theta = np.float32(threshold)
    variables = layer.init(KEY, X)
    wanted = oracle.value(X, theta, variant=variant, ceiling=ceiling)
    np.testing.assert_allclose(layer.apply(variables, X), wanted, rtol=1e-6)
    grads, dx = jax.grad(lambda v, x: jnp.sum(layer.apply(v, x) * ct), argnums=(0, 1))(
        variables, jnp.asarray(X)
    )
    ox, ot = oracle.cotangents(X, theta, ct, variant=variant, ceiling=ceiling)
    np.testing.assert_array_equal(dx, ox.astype(np.float32))
    np.testing.assert_allclose(grads["params"]["threshold"], ot, rtol=1e-5, atol=1e-6)

    def slope(index, step=1e-6):
        bump = np.zeros(theta.shape)
        bump[index] = step
        ends = [
            (oracle.value(X, theta + sign * bump, variant=variant, ceiling=ceiling) * ct).sum()
            for sign in (1, -1)
        ]
        return (ends[0] - ends[1]) / (2 * step)

    for index in np.ndindex(theta.shape):
        np.testing.assert_allclose(grads["params"]["threshold"][index], slope(index), atol=1e-5)


def test_hard_learns_with_a_surrogate():
    surrogate = jaxtrelu.Rectangle(0.4)
    layer = ThresholdedReLU(PER_CHANNEL, learned=True, variant="hard", surrogate=surrogate)
    variables = layer.init(KEY, X)
    grads = jax.grad(lambda v: layer.apply(v, X).sum())(variables)
    _, wanted = oracle.cotangents(
        X, np.float32(PER_CHANNEL), 1.0, variant="hard", density=lambda d: (abs(d) < 0.2) / 0.4
    )
    assert np.count_nonzero(wanted) >= 3
    np.testing.assert_allclose(grads["params"]["threshold"], wanted, rtol=1e-5)


@pytest.mark.parametrize("axis", [1, -3, (1, -1), (-1, 1)])
def test_channels_along_any_axes(axis):
    x = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    layer = ThresholdedReLU(nn.initializers.normal(), axis=axis, learned=True)
    variables = layer.init(KEY, x)
    theta = np.asarray(variables["params"]["threshold"])
    axes = [a % 4 for a in np.atleast_1d(axis)]
    assert theta.shape == tuple(x.shape[a] for a in axes)
    letters = "".join("abcd"[a] for a in axes)
    aligned = np.einsum(f"{letters},abcd->abcd", theta, np.ones(x.shape))
    np.testing.assert_allclose(layer.apply(variables, x), oracle.value(x, aligned), rtol=1e-6)


# --- dtypes ----------------------------------------------------------------------------------


def test_bfloat16_activations_with_a_float32_threshold():
    layer = ThresholdedReLU(1.001, learned=True, dtype=jnp.bfloat16)
    x = jnp.float32([0.5, 1.0, 1.0078125, 2.0])
    variables = layer.init(KEY, x)
    assert variables["params"]["threshold"].dtype == jnp.float32
    y = layer.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    assert (np.asarray(y) > 0).tolist() == [False, False, True, True]
    grad = jax.grad(lambda v: layer.apply(v, x).astype(jnp.float32).sum())(variables)
    assert grad["params"]["threshold"].dtype == jnp.float32
    assert grad["params"]["threshold"] == -2


def test_dtype_by_default_is_that_of_x():
    layer = ThresholdedReLU(0.1, learned=True)
    variables = layer.init(KEY, X)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        assert layer.apply(variables, jnp.asarray(X, dtype)).dtype == dtype


# --- transformations ---------------------------------------------------------------------------


@pytest.mark.parametrize("lift", [nn.jit, nn.remat], ids=["jit", "remat"])
def test_lifted(lift):
    plain = ThresholdedReLU(PER_CHANNEL, learned=True)
    lifted = lift(ThresholdedReLU)(PER_CHANNEL, learned=True)
    variables = plain.init(KEY, X)
    assert_same(lifted.init(KEY, X), variables)
    assert_same(lifted.apply(variables, X), plain.apply(variables, X))
    assert_same(jax.grad(total(lifted))(variables, X), jax.grad(total(plain))(variables, X))


def test_plain_jit_and_vmap():
    net = Net()
    variables = net.init(KEY, X)
    y = net.apply(variables, X)
    assert_same(jax.jit(net.apply)(variables, X), y)
    assert_same(jax.vmap(net.apply, in_axes=(None, 0))(variables, X), y)


def test_lifted_vmap_gives_each_member_a_threshold():
    layers = nn.vmap(
        ThresholdedReLU, in_axes=0, variable_axes={"params": 0}, split_rngs={"params": True}
    )(nn.initializers.uniform(0.5), learned=True)
    variables = layers.init(KEY, X)
    theta = np.asarray(variables["params"]["threshold"])
    assert theta.shape == (6,)
    assert len(np.unique(theta)) == 6
    wanted = oracle.value(X, theta[:, None])
    np.testing.assert_allclose(layers.apply(variables, X), wanted, rtol=1e-6)


class Cell(nn.Module):
    """One step of a scan: an activation whose threshold may be learned or stored."""

    learned: bool
    rematerialised: bool = False

    @nn.compact
    def __call__(self, x, _):
        kind = nn.remat(ThresholdedReLU) if self.rematerialised else ThresholdedReLU
        return kind(nn.initializers.uniform(0.3), axis=-1, learned=self.learned)(x), None


@pytest.mark.parametrize("rematerialised", [False, True], ids=["plain", "remat"])
@pytest.mark.parametrize(("learned", "collection"), [(True, "params"), (False, "thresholds")])
def test_scan_over_layers(learned, collection, rematerialised):
    run = nn.scan(Cell, variable_axes={collection: 0}, split_rngs={"params": True}, length=3)(
        learned, rematerialised
    )
    variables = run.init(KEY, jnp.asarray(X), None)
    (theta,) = jax.tree.leaves(variables)
    assert theta.shape == (3, 5)
    x = X.astype(np.float64)
    for row in np.asarray(theta):
        x = oracle.value(x, row)
    y, _ = run.apply(variables, jnp.asarray(X), None)
    np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)
    grads = jax.grad(lambda v: run.apply(v, jnp.asarray(X), None)[0].sum())(variables)
    open_at_the_end = np.count_nonzero(x, axis=0)
    assert open_at_the_end.sum() > 3
    (grad,) = jax.tree.leaves(grads)
    np.testing.assert_array_equal(grad, np.tile(-open_at_the_end, (3, 1)))


def test_scan_with_one_threshold_shared_by_all_steps():
    run = nn.scan(Cell, variable_broadcast="params", split_rngs={"params": False}, length=3)(True)
    variables = run.init(KEY, jnp.asarray(X), None)
    (theta,) = jax.tree.leaves(variables)
    wanted = X.astype(np.float64)
    for _ in range(3):
        wanted = oracle.value(wanted, np.asarray(theta))
    y, _ = run.apply(variables, jnp.asarray(X), None)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


# --- optimisers and checkpoints ------------------------------------------------------------------


def test_multi_transform_gives_thresholds_their_own_rate():
    net = Net()
    params = net.init(KEY, X)["params"]
    labels = traverse_util.path_aware_map(
        lambda path, _: "threshold" if path[-1] == "threshold" else "weight", params
    )
    rates = {"threshold": optax.sgd(1.0), "weight": optax.set_to_zero()}
    optimiser = optax.multi_transform(rates, labels)
    grads = jax.grad(lambda p: total(net)({"params": p}, X))(params)
    updates, _ = optimiser.update(grads, optimiser.init(params), params)
    after = optax.apply_updates(params, updates)
    assert_same(after["Dense_0"], params["Dense_0"])
    before, grad = (tree["ThresholdedReLU_0"]["threshold"] for tree in (params, grads))
    assert np.any(np.asarray(grad))
    assert_same(after["ThresholdedReLU_0"]["threshold"], before - grad)


def test_checkpoint_round_trip(tmp_path):
    net, fixed = Net(), ThresholdedReLU(PER_CHANNEL)
    variables = {"net": net.init(KEY, X), "fixed": fixed.init(KEY, X)}
    path = tmp_path.resolve() / "checkpoint"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, variables)
        checkpointer.wait_until_finished()
        target = jax.tree.map(jnp.zeros_like, variables)
        restored = checkpointer.restore(path, target)
    np.testing.assert_array_equal(net.apply(restored["net"], X), net.apply(variables["net"], X))
    np.testing.assert_array_equal(
        fixed.apply(restored["fixed"], X), fixed.apply(variables["fixed"], X)
    )
