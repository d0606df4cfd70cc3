"""The JumpReLU layers of both Flax interfaces, and the sparse autoencoder as a module."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxtrelu
from jaxtrelu import Rectangle, sae
from jaxtrelu.linen import JumpReLU as LinenJumpReLU
from jaxtrelu.nnx import InputScale, JumpReLU, SparseAutoencoder, Threshold

Z = jnp.array([[0.10, 0.52, 0.48, 1.0], [0.7, 0.2, 0.53, 0.47]])
SURROGATE = Rectangle(0.1)


def test_both_interfaces_are_the_function():
    theta = np.float32([0.5, 0.4, 0.3, 0.6])
    wanted = jaxtrelu.jump_relu(Z, theta, surrogate=SURROGATE)
    layer = JumpReLU(4, surrogate=SURROGATE, threshold=theta)
    np.testing.assert_array_equal(layer(Z), wanted)
    linen = LinenJumpReLU(4, surrogate=SURROGATE, threshold=tuple(theta.tolist()))
    variables = linen.init(jax.random.key(0), Z)
    y, l0 = linen.apply(variables, Z, with_l0=True)
    np.testing.assert_array_equal(y, wanted)
    assert l0 == layer.l0(Z) == np.mean(np.sum(np.asarray(Z) > theta, axis=1))
    assert set(variables) == {"params"}  # nothing is sown


def test_gradients_of_the_layer_are_the_hand_values():
    layer = JumpReLU(4, surrogate=SURROGATE, threshold=0.5)
    pulled = nnx.grad(lambda layer: layer(Z[:1]).sum())(layer).parameter[...]
    np.testing.assert_allclose(pulled, [0, -5, -5, 0], rtol=1e-6)
    pulled = nnx.grad(lambda layer: layer.l0(Z[:1]))(layer).parameter[...]
    np.testing.assert_allclose(pulled, [0, -10, -10, 0], rtol=1e-6)


@pytest.mark.parametrize("parametrisation", ["raw", "softplus"])
def test_parametrisations_start_where_they_were_told_to_and_stay_positive(parametrisation):
    first = np.float32([0.2, 0.5, 0.9, 1.3])
    layer = JumpReLU(4, surrogate=SURROGATE, threshold=first, parametrisation=parametrisation)
    np.testing.assert_allclose(layer.threshold, first, rtol=1e-5)
    layer.parameter[...] = layer.parameter[...] - 30.0
    assert (np.asarray(layer.threshold) >= 0).all()


def test_a_raw_threshold_below_zero_still_receives_a_gradient():
    layer = JumpReLU(1, surrogate=SURROGATE, threshold=0.0)
    layer.parameter[...] = jnp.array([-0.3])
    assert layer.threshold.tolist() == [0.0]
    pulled = nnx.grad(lambda layer: layer.l0(jnp.array([[0.02]])))(layer).parameter[...]
    np.testing.assert_allclose(pulled, [-10], rtol=1e-6)


def test_a_small_softplus_threshold_moves_as_fast_as_a_raw_one():
    """Under Adam a logarithm (or an unscaled softplus) would move it by θ · lr a step."""
    moved = {}
    for parametrisation in ("raw", "softplus"):
        layer = JumpReLU(
            8, surrogate=Rectangle(0.02), threshold=0.01, parametrisation=parametrisation
        )
        optimizer = nnx.Optimizer(layer, optax.adam(1e-4), wrt=Threshold)
        z = 0.02 * jax.random.normal(jax.random.key(0), (512, 8))
        for _ in range(20):
            optimizer.update(layer, nnx.grad(lambda m, z=z: m.l0(z))(layer))
        moved[parametrisation] = float(jnp.mean(layer.threshold) - 0.01)
    assert moved["raw"] == pytest.approx(20e-4, rel=0.05)
    assert moved["softplus"] == pytest.approx(moved["raw"], rel=0.5)


def test_axis_and_dtype():
    layer = JumpReLU(2, surrogate=SURROGATE, threshold=0.5, axis=0)
    np.testing.assert_array_equal(layer(Z), np.where(np.asarray(Z) > 0.5, Z, 0))
    low = layer(Z.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    assert layer.parameter.dtype == jnp.float32
    assert layer.l0(Z.astype(jnp.bfloat16)).dtype == jnp.float32


def test_layer_under_transformations():
    layer = JumpReLU(4, surrogate=SURROGATE, threshold=0.5)
    wanted = layer(Z)
    np.testing.assert_array_equal(nnx.jit(lambda m, z: m(z))(layer, Z), wanted)
    np.testing.assert_array_equal(nnx.remat(lambda m, z: m(z))(layer, Z), wanted)
    each = nnx.vmap(lambda m, z: m(z), in_axes=(None, 0))(layer, Z)
    np.testing.assert_array_equal(each, wanted)
    graph, thresholds, rest = nnx.split(layer, Threshold, ...)
    np.testing.assert_array_equal(nnx.merge(graph, thresholds, rest)(Z), wanted)


def test_linen_layer_trains_inside_a_network():
    network = nn.Sequential(
        [nn.Dense(8), LinenJumpReLU(8, surrogate=Rectangle(0.5), threshold=0.1)]
    )
    params = network.init(jax.random.key(0), Z)
    pulled = jax.grad(lambda p: network.apply(p, Z).sum())(params)
    threshold = pulled["params"]["layers_1"]["threshold"]
    assert threshold.shape == (8,)
    assert float(jnp.abs(threshold).sum()) > 0


@pytest.mark.parametrize("kind", [JumpReLU, LinenJumpReLU])
@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"threshold": -0.1}, ValueError, "at least 0, but is -0.1"),
        ({"threshold": float("nan")}, ValueError, "finite"),
        ({"threshold": (0.1, 0.2)}, ValueError, r"shape \(4,\).*shape \(2,\)"),
        ({"threshold": 0.0, "parametrisation": "softplus"}, ValueError, "greater than 0 under"),
        ({"parametrisation": "log"}, ValueError, "'raw' or 'softplus', but is 'log'"),
        ({"surrogate": None}, TypeError, "without one the thresholds would not learn"),
        ({"features": 0}, ValueError, "whole number ≥ 1"),
    ],
)
def test_bad_arguments(kind, changed, error, words):
    arguments = {"features": 4, "surrogate": SURROGATE, **changed}

    def build():
        layer = kind(**arguments)
        layer.init(jax.random.key(0), Z)  # Linen checks when it is first called

    with pytest.raises(error, match=words):
        build()


def test_wrong_number_of_features():
    with pytest.raises(ValueError, match=r"4 features along axis -1, but has shape \(2, 3\)"):
        JumpReLU(4, surrogate=SURROGATE)(jnp.ones((2, 3)))


# --- the autoencoder ---------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [sae.gemma_scope(), sae.anthropic_2025()], ids=lambda r: r.name)
def test_autoencoder_keeps_its_units(recipe):
    """Scaling the inputs scales reconstructions and nothing else: the scale is in the model."""
    x = jax.random.normal(jax.random.key(1), (300, 12)) + 0.5
    models = [SparseAutoencoder(40, c * x, recipe=recipe, rngs=nnx.Rngs(0)) for c in (1.0, 50.0)]
    small, large = models
    np.testing.assert_allclose(large.encode(50 * x), small.encode(x), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(large(50 * x), 50 * small(x), rtol=2e-3, atol=2e-2)
    losses = [float(m.loss(c * x, 0.1)[0]) for m, c in ((small, 1.0), (large, 50.0))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(jax.tree.leaves(nnx.state(small, nnx.Param))) == 5
    assert len(jax.tree.leaves(nnx.state(small, InputScale))) == 1


def test_autoencoder_trains_as_a_module():
    recipe = sae.short_run()
    x = jax.random.normal(jax.random.key(1), (256, 12))
    model = SparseAutoencoder(24, x, recipe=recipe, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, recipe.optimizer(100), wrt=nnx.Param)

    @nnx.jit
    def update(model, optimizer):
        value, gradient = nnx.value_and_grad(lambda model: model.loss(x, 0.5)[0])(model)
        optimizer.update(model, model.constrained_gradient(gradient))
        model.constrain()
        return value

    values = [float(update(model, optimizer)) for _ in range(60)]
    assert values[-1] < 0.7 * values[0]
    np.testing.assert_allclose(jnp.linalg.norm(model.decoder[...], axis=1), 1, rtol=1e-5)
    np.testing.assert_array_less(-1e-9, model.threshold[...])


@pytest.mark.parametrize("recipe", [sae.short_run(), sae.anthropic_2025()], ids=lambda r: r.name)
def test_a_flax_loop_is_the_same_run_as_the_plain_step(recipe):
    """Gradient, projection, Adam and constraint: `sae.train_step` with a λ that follows a ramp."""
    x = np.asarray(jax.random.normal(jax.random.key(1), (128, 12)), np.float32)
    model = SparseAutoencoder(80, x, recipe=recipe, rngs=nnx.Rngs(0))
    scale = float(model.input_scale[...])
    optimizer = nnx.Optimizer(model, recipe.optimizer(40), wrt=nnx.Param)
    schedule = recipe.coefficient_schedule(40)
    settings = sae.Settings(80, 40, recipe)
    state = sae.initial_state(settings, x * scale)
    state = state._replace(weights=jax.tree.map(jnp.copy, model.weights))

    @nnx.jit
    def update(model, optimizer, coefficient):
        gradient = nnx.grad(lambda model: model.loss(x, coefficient)[0])(model)
        optimizer.update(model, model.constrained_gradient(gradient))
        model.constrain()

    for number in range(6):
        update(model, optimizer, schedule(number))
        state, _ = sae.train_step(state, x, scale, settings)
    assert float(jnp.abs(model.threshold[...] - recipe.initial_threshold).max()) > 1e-4
    for name, value in state.weights._asdict().items():
        ours = getattr(model, name)[...]
        np.testing.assert_allclose(ours, value, rtol=2e-3, atol=2e-4, err_msg=name)


def test_the_modules_loss_skips_zeros_by_default():
    recipe = dataclasses.replace(sae.short_run(), initial_threshold=2.2)
    x = jax.random.normal(jax.random.key(1), (64, 24))
    model = SparseAutoencoder(512, x, recipe=recipe, rngs=nnx.Rngs(0))
    found = {}
    for sparse in (True, False):
        loss = nnx.value_and_grad(lambda m, s=sparse: m.loss(x, 0.5, sparse=s)[0])
        found[sparse] = jax.tree.leaves(loss(model))
        listed = "while" in str(jax.make_jaxpr(lambda x, s=sparse: model.loss(x, 0.5, sparse=s))(x))
        assert listed == sparse
    for a, b in zip(*found.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_optimizer_of_thresholds_moves_nothing_else_and_a_checkpoint_brings_all_back(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    x = 3 * jax.random.normal(jax.random.key(1), (256, 12))
    model = SparseAutoencoder(24, x, recipe=sae.short_run(), rngs=nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, model.weights)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=Threshold)
    wrt = nnx.DiffState(0, Threshold)
    optimizer.update(model, nnx.grad(lambda m: m.loss(x, 5.0)[0], argnums=wrt)(model))
    moved = [bool((a != b).any()) for a, b in zip(before, model.weights, strict=True)]
    assert moved == [name == "threshold" for name in sae.Weights._fields]

    graph, state = nnx.split(model)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "model", jax.eval_shape(lambda: state))
    again = nnx.merge(graph, restored)
    np.testing.assert_array_equal(again(x), model(x))
    np.testing.assert_array_equal(again.input_scale[...], model.input_scale[...])


def test_autoencoder_names_what_is_wrong():
    x = np.ones((8, 3), np.float32)
    x[5, 1] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in rows 5"):
        SparseAutoencoder(4, x, recipe=sae.gemma_scope(), rngs=nnx.Rngs(0))
    model = SparseAutoencoder(4, np.ones((8, 3)), recipe=sae.gemma_scope(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"3 columns.*shape \(2, 5\)"):
        model(jnp.ones((2, 5)))
