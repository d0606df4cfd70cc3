"""`jaxtrelu.linen`: collections, lifted transformations, optimisers, checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn

from jaxtrelu import Rectangle
from jaxtrelu.linen import CompactMLP, JumpReLU, ThresholdedReLU

RNG = np.random.default_rng(1)
X = RNG.normal(size=(6, 5)).astype(np.float32)
PER_CHANNEL = (-0.6, -0.2, 0.1, 0.4, 0.9)
KEY = jax.random.key(0)
SOFTPLUS = {"surrogate": Rectangle(0.1), "parametrisation": "softplus"}


class Net(nn.Module):
    """A dense layer and a learned threshold per unit: weights and thresholds side by side."""

    @nn.compact
    def __call__(self, x):
        return ThresholdedReLU(0.2, axis=-1, learned=True)(nn.Dense(7)(x))


def total(module):
    return lambda variables, x: jnp.sum(module.apply(variables, x) ** 2)


def assert_same(a, b):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-6), a, b)


# --- modules ---------------------------------------------------------------------------------


def test_modules_with_tuples_are_hashable():
    assert hash(ThresholdedReLU(PER_CHANNEL)) == hash(ThresholdedReLU(PER_CHANNEL))
    assert ThresholdedReLU(PER_CHANNEL) != ThresholdedReLU(PER_CHANNEL, variant="hard")
    assert hash(JumpReLU(2, Rectangle(0.1), (0.1, 0.2))) == hash(
        JumpReLU(2, Rectangle(0.1), (0.1, 0.2))
    )


def test_initialiser_with_partitioning():
    init = nn.with_partitioning(nn.initializers.constant(0.25), ("model",))
    layer = ThresholdedReLU(init, axis=-1, learned=True)
    variables = layer.init(KEY, X)
    assert nn.get_partition_spec(variables)["params"]["threshold"] == jax.P("model")
    np.testing.assert_allclose(layer.apply(variables, X), oracle.value(X, 0.25), rtol=1e-6)
    found = layer.apply(variables, method="threshold_value")
    np.testing.assert_array_equal(found, np.full(5, 0.25, np.float32))


def test_as_an_attribute_and_in_a_table():
    class Holder(nn.Module):
        act: nn.Module = ThresholdedReLU(0.2, axis=-1, learned=True)

        def __call__(self, x):
            return self.act(x)

    assert Holder().init(KEY, X)["params"]["act"]["threshold"].shape == (5,)
    assert "(20 B)" in nn.tabulate(Holder(), KEY)(X)


# --- a collection that is not passed -------------------------------------------------------------

STORED = {
    "ThresholdedReLU": ThresholdedReLU(PER_CHANNEL),
    "CompactMLP": CompactMLP(4, threshold=(0.1, 0.2, 0.3, 0.4)),
    "JumpReLU": JumpReLU(5, **SOFTPLUS),
}


@pytest.mark.parametrize("kind", STORED)
def test_a_missing_collection_says_what_to_pass(kind):
    layer = STORED[kind]
    variables = layer.init(KEY, X)
    assert "thresholds" in variables
    params = {"params": variables.get("params", {})}
    words = f"of {kind} .*'thresholds', and is not there. Pass all collections.*variable_axes="
    with pytest.raises(ValueError, match=words):
        layer.apply(params, X)
    with pytest.raises(ValueError, match=words):
        layer.apply({**params, "thresholds": {"of_another": jnp.ones(5)}}, X)
    with pytest.raises(ValueError, match=r"is not there\. Pass all collections"):
        layer.apply(params, method="threshold_value")


def test_a_learned_threshold_that_is_not_there():
    with pytest.raises(ValueError, match=r"'threshold' of ThresholdedReLU .*'params', and is not"):
        ThresholdedReLU(0.1, learned=True).apply({}, method="threshold_value")


class Block(nn.Module):
    """One step of a scan with a stored threshold and a stored scale."""

    @nn.compact
    def __call__(self, x, _):
        x = ThresholdedReLU(PER_CHANNEL)(nn.Dense(5)(x))
        return JumpReLU(5, **SOFTPLUS)(x), None


def test_a_scan_that_does_not_declare_the_collection_says_how():
    def scanned(**lifted):
        axes = {"params": 0, **lifted.pop("axes", {})}
        split = {"params": True}
        return nn.scan(Block, variable_axes=axes, split_rngs=split, length=3, **lifted)()

    words = r"\(ThresholdedReLU_0\).*variable_axes={'params': 0, 'thresholds': 0}"
    with pytest.raises(ValueError, match=words):
        scanned().init(KEY, X, None)
    declared = scanned(axes={"thresholds": 0})
    variables = declared.init(KEY, X, None)
    with pytest.raises(ValueError, match=words):
        scanned().apply(variables, X, None)
    with pytest.raises(ValueError, match=words):
        declared.apply({"params": variables["params"]}, X, None)
    assert variables["thresholds"]["ThresholdedReLU_0"]["threshold"].shape == (3, 5)
    y, _ = declared.apply(variables, X, None)
    shared = scanned(variable_broadcast="thresholds")
    once = shared.init(KEY, X, None)
    assert once["thresholds"]["ThresholdedReLU_0"]["threshold"].shape == (5,)
    same = {"params": variables["params"], "thresholds": once["thresholds"]}
    np.testing.assert_allclose(shared.apply(same, X, None)[0], y, rtol=1e-6)


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


def by_name(params, threshold, other):
    """As the docstring of `jaxtrelu.linen` has it."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: threshold if "threshold" in jax.tree_util.keystr(path[-1:]) else other,
        params,
    )


@pytest.mark.parametrize("made", ["once", "by Optax"])
def test_weight_decay_spares_thresholds_by_name(made):
    params = Net().init(KEY, X)["params"]
    mask = by_name(params, False, True) if made == "once" else lambda p: by_name(p, False, True)
    optimiser = optax.adamw(1.0, weight_decay=0.5, mask=mask)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimiser.update(nothing, optimiser.init(params), params)
    after = optax.apply_updates(params, updates)
    assert_same(after["ThresholdedReLU_0"], params["ThresholdedReLU_0"])
    assert_same(after["Dense_0"]["kernel"], params["Dense_0"]["kernel"] / 2)


def test_multi_transform_gives_thresholds_their_own_rate():
    net = Net()
    params = net.init(KEY, X)["params"]
    rates = {"threshold": optax.sgd(1.0), "weight": optax.set_to_zero()}
    optimiser = optax.multi_transform(rates, by_name(params, "threshold", "weight"))
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
