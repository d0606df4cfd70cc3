"""The JumpReLU layers of both Flax interfaces, and the sparse autoencoder as a module."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as orbax
import pytest
from flax import linen as nn
from flax import nnx
from flax_interfaces import Linen, both

import jaxtrelu
from jaxtrelu import Rectangle, sae
from jaxtrelu.linen import JumpReLU as LinenJumpReLU
from jaxtrelu.nnx import JumpReLU, Threshold, ThresholdScale
from jaxtrelu.sae import InputScale, SparseAutoencoder

Z = jnp.array([[0.10, 0.52, 0.48, 1.0], [0.7, 0.2, 0.53, 0.47]])
SURROGATE = Rectangle(0.1)
FIRST = (0.5, 0.5, 0.3, 0.6)
both_parametrisations = pytest.mark.parametrize("parametrisation", ["raw", "softplus"])


def layer_of(flax, threshold=0.5, features=4, x=Z, **arguments):
    arguments = {"surrogate": SURROGATE, **arguments}
    return flax("JumpReLU", x, features, threshold=threshold, **arguments)


@both
def test_the_layer_is_the_function(flax):
    layer = layer_of(flax, FIRST)
    theta = np.float32(FIRST)
    np.testing.assert_array_equal(layer(Z), jaxtrelu.jump_relu(Z, theta, surrogate=SURROGATE))
    assert layer.l0(Z) == np.mean(np.sum(np.asarray(Z) > theta, axis=1))
    assert list(layer.params) == ["threshold"]
    assert not layer.fixed


def test_linen_returns_the_penalty_beside_the_value():
    layer = layer_of(Linen, FIRST)
    y, l0 = layer.layer.apply(layer.variables, Z, with_l0=True)
    np.testing.assert_array_equal(y, layer(Z))
    assert l0 == layer.l0(Z)


@both
def test_gradients_of_the_layer_are_the_hand_values(flax):
    layer = layer_of(flax)
    pulled = layer.gradients(lambda layer: layer(Z[:1]).sum())["threshold"]
    np.testing.assert_allclose(pulled, [0, -5, -5, 0], rtol=1e-6)
    pulled = layer.gradients(lambda layer: layer.l0(Z[:1]))["threshold"]
    np.testing.assert_allclose(pulled, [0, -10, -10, 0], rtol=1e-6)


@both
@both_parametrisations
def test_parametrisations_start_where_they_were_told_to_and_stay_positive(flax, parametrisation):
    layer = layer_of(flax, (0.2, 0.5, 0.9, 1.3), parametrisation=parametrisation)
    np.testing.assert_allclose(layer.threshold_value, [0.2, 0.5, 0.9, 1.3], rtol=1e-5)
    layer.shift_threshold(-30.0)
    assert (np.asarray(layer.threshold_value) >= 0).all()


@both
def test_softplus_thresholds_of_very_different_sizes(flax):
    """expm1(5 / 0.0035) is infinite in float32, and log(expm1(u)) loses a small u."""
    first = np.full(2000, 1e-3, np.float32)
    first[7] = 5
    layer = layer_of(flax, first, 2000, x=jnp.zeros((1, 2000)), parametrisation="softplus")
    assert np.isfinite(layer.params["threshold"]).all()
    np.testing.assert_allclose(layer.threshold_value, first, rtol=1e-5)


@both
@both_parametrisations
def test_a_state_gives_its_thresholds_to_a_layer_constructed_with_others(flax, parametrisation):
    trained = layer_of(flax, FIRST, parametrisation=parametrisation)
    trained.shift_threshold(0.01)
    other = layer_of(flax, 3.0, parametrisation=parametrisation)
    assert not np.allclose(other.threshold_value, trained.threshold_value)
    other.take_state_of(trained)
    np.testing.assert_array_equal(other.threshold_value, trained.threshold_value)
    np.testing.assert_array_equal(other(Z), trained(Z))


def test_a_softplus_state_by_every_way_back(tmp_path):
    """As plain dictionaries, through a file, and the parameters with their scale alone."""

    def layer(start):
        return JumpReLU(4, surrogate=SURROGATE, threshold=start, parametrisation="softplus")

    trained = layer((0.2, 0.5, 0.9, 1.3))
    trained.threshold[...] = trained.threshold[...] - 0.4
    pure = nnx.to_pure_dict(nnx.state(trained))
    with orbax.StandardCheckpointer() as files:
        files.save(tmp_path / "layer", pure)
        files.wait_until_finished()
        read = files.restore(tmp_path / "layer", nnx.to_pure_dict(nnx.state(layer(1e-3))))
    for found in (pure, read):
        other = layer(3.0)
        state = nnx.state(other)
        nnx.replace_by_pure_dict(state, found)
        nnx.update(other, state)
        np.testing.assert_array_equal(other.threshold_value, trained.threshold_value)
    other = layer(3.0)
    nnx.update(other, nnx.state(trained, nnx.Any(nnx.Param, ThresholdScale)))
    np.testing.assert_array_equal(other.threshold_value, trained.threshold_value)


def test_linen_refuses_the_variables_of_the_other_parametrisation():
    def layer(parametrisation):
        return LinenJumpReLU(4, surrogate=SURROGATE, parametrisation=parametrisation)

    x, key = jnp.ones(4), jax.random.key(0)
    soft, raw = (layer(p).init(key, x) for p in ("softplus", "raw"))
    with pytest.raises(ValueError, match="Pass parametrisation='softplus'"):
        layer("raw").apply(soft, x)
    for variables in (raw, {"params": soft["params"]}):
        with pytest.raises(ValueError, match=r"'threshold_scale' of JumpReLU .* is not there"):
            layer("softplus").apply(variables, x)


@both
def test_the_scale_is_no_parameter(flax):
    layer = layer_of(flax, FIRST, parametrisation="softplus")
    assert list(layer.params) == ["threshold"]
    np.testing.assert_allclose(layer.fixed["threshold_scale"], np.mean(FIRST), rtol=1e-6)
    pulled = layer.gradients(lambda layer: layer.l0(Z))
    assert list(pulled) == ["threshold"]
    assert np.any(pulled["threshold"])
    if flax is Linen:  # whoever differentiates all variables does not move it either
        of_all = jax.grad(lambda v: layer.layer.apply(v, Z, method="l0"))(layer.variables)
        assert of_all["thresholds"]["threshold_scale"] == 0


@both
def test_a_raw_threshold_below_zero_still_receives_a_gradient(flax):
    x = jnp.array([[0.02]])
    layer = layer_of(flax, 0.0, 1, x=x)
    layer.shift_threshold(-0.3)
    assert layer.threshold_value.tolist() == [0.0]
    pulled = layer.gradients(lambda layer: layer.l0(x))["threshold"]
    np.testing.assert_allclose(pulled, [-10], rtol=1e-6)


def test_a_small_softplus_threshold_moves_as_fast_as_a_raw_one():
    """Under Adam a logarithm (or an unscaled softplus) would move it by θ · lr a step."""
    moved = {}
    z = 0.02 * jax.random.normal(jax.random.key(0), (512, 8))

    @nnx.jit
    def update(layer, optimizer):
        optimizer.update(layer, nnx.grad(lambda layer: layer.l0(z))(layer))

    for parametrisation in ("raw", "softplus"):
        layer = JumpReLU(
            8, surrogate=Rectangle(0.02), threshold=0.01, parametrisation=parametrisation
        )
        optimizer = nnx.Optimizer(layer, optax.adam(1e-4), wrt=Threshold)
        for _ in range(20):
            update(layer, optimizer)
        moved[parametrisation] = float(jnp.mean(layer.threshold_value) - 0.01)
    assert moved["raw"] == pytest.approx(20e-4, rel=0.05)
    assert moved["softplus"] == pytest.approx(moved["raw"], rel=0.5)


@both
def test_axis_and_dtype(flax):
    layer = layer_of(flax, features=2, axis=0)
    np.testing.assert_array_equal(layer(Z), np.where(np.asarray(Z) > 0.5, Z, 0))
    low = layer(Z.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    assert layer.l0(Z.astype(jnp.bfloat16)).dtype == jnp.float32
    assert layer.params["threshold"].dtype == jnp.float32
    cast = layer_of(flax, features=2, axis=0, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(cast(Z), low)


@both
def test_features_of_any_integer_type(flax):
    layer = layer_of(flax, features=np.int64(4), axis=np.int64(1))
    assert layer.threshold_value.shape == (4,)
    np.testing.assert_array_equal(layer(Z), layer_of(flax)(Z))


def test_layer_under_transformations():
    layer = JumpReLU(4, surrogate=SURROGATE, threshold=0.5, parametrisation="softplus")
    wanted = layer(Z)
    np.testing.assert_array_equal(nnx.jit(lambda m, z: m(z))(layer, Z), wanted)
    np.testing.assert_array_equal(nnx.remat(lambda m, z: m(z))(layer, Z), wanted)
    each = nnx.vmap(lambda m, z: m(z), in_axes=(None, 0))(layer, Z)
    np.testing.assert_array_equal(each, wanted)
    graph, thresholds, rest = nnx.split(layer, Threshold, ...)
    np.testing.assert_array_equal(nnx.merge(graph, thresholds, rest)(Z), wanted)


def test_layers_made_by_vmap_have_a_scale_each():
    starts = jnp.float32([0.2, 0.5])

    @nnx.vmap
    def make(start):
        return JumpReLU(4, surrogate=SURROGATE, threshold=start, parametrisation="softplus")

    layers = make(starts)
    assert layers.threshold_scale.shape == (2,)
    y = nnx.vmap(lambda layer, z: layer(z), in_axes=(0, None))(layers, Z)
    for row, start in zip(y, starts.tolist(), strict=True):
        np.testing.assert_array_equal(row, np.where(np.asarray(Z) > start, Z, 0))


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
        ({"threshold": float("inf")}, ValueError, "finite"),
        ({"threshold": float("nan")}, ValueError, "NaN"),
        ({"threshold": (0.1, 0.2)}, ValueError, r"shape of the channels, \(4,\).*shape \(2,\)"),
        ({"threshold": "0.1"}, TypeError, "should be a number"),
        ({"threshold": jax.nn.initializers.ones}, TypeError, "one entry per feature"),
        ({"threshold": 0.0, "parametrisation": "softplus"}, ValueError, "greater than 0 under"),
        ({"parametrisation": "log"}, ValueError, "'raw' or 'softplus', but is 'log'"),
        ({"surrogate": None}, TypeError, "without one a JumpReLU's thresholds do not learn"),
        ({"surrogate": 0.1}, TypeError, "should be a jaxtrelu surrogate"),
        ({"features": 0}, ValueError, "`features` should be at least 1, but is 0"),
        ({"features": 4.0}, TypeError, "`features` should be a whole number, but is 4.0"),
        ({"features": True}, TypeError, "`features` should be a whole number"),
        ({"axis": (0, 1)}, TypeError, "`axis` should be a whole number"),
        ({"param_dtype": jnp.bfloat16}, ValueError, "param_dtype.*float32"),
    ],
)
def test_bad_arguments_are_refused_at_construction(kind, changed, error, words):
    with pytest.raises(error, match=words):
        kind(**{"features": 4, "surrogate": SURROGATE, **changed})


@both
def test_x_that_the_layer_does_not_take(flax):
    layer = layer_of(flax)
    for call in (layer, layer.l0):
        with pytest.raises(ValueError, match=r"shape \(4,\).*axis -1 of x.*\(2, 3\) has 3"):
            call(jnp.ones((2, 3)))
        with pytest.raises(TypeError, match="floating point"):
            call(jnp.ones((2, 4), jnp.int32))


# --- the autoencoder ---------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [sae.gemma_scope(), sae.anthropic_2025()], ids=lambda r: r.name)
def test_autoencoder_keeps_its_units(recipe):
    """Scaling the inputs scales reconstructions and nothing else: the scale is in the model."""
    x = jax.random.normal(jax.random.key(1), (300, 12)) + 0.5
    models = [SparseAutoencoder(40, c * x, recipe=recipe, rngs=nnx.Rngs(0)) for c in (1.0, 50.0)]
    small, large = models
    np.testing.assert_allclose(large.encode(50 * x), small.encode(x), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(large(50 * x), 50 * small(x), rtol=2e-3, atol=2e-2)
    loss = nnx.jit(lambda m, x: m.loss(x, 0.1, sparse=False)[0])
    losses = [float(loss(m, c * x)) for m, c in ((small, 1.0), (large, 50.0))]
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
        value, gradient = nnx.value_and_grad(lambda m: m.loss(x, 0.5, sparse=False)[0])(model)
        optimizer.update(model, model.constrained_gradient(gradient))
        model.constrain()
        return value

    values = [float(update(model, optimizer)) for _ in range(60)]
    assert values[-1] < 0.7 * values[0]
    np.testing.assert_allclose(jnp.linalg.norm(model.decoder[...], axis=1), 1, rtol=1e-5)
    np.testing.assert_array_less(-1e-9, model.threshold[...])


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(sae.short_run(), marks=pytest.mark.slow), sae.anthropic_2025()],
    ids=lambda r: r.name,
)
def test_a_flax_loop_is_the_same_run_as_the_plain_step(recipe):
    """Gradient, projection, Adam and constraint: `sae.train_step` with a λ that follows a ramp."""
    x = np.asarray(jax.random.normal(jax.random.key(1), (128, 12)), np.float32)
    model = SparseAutoencoder(24, x, recipe=recipe, rngs=nnx.Rngs(0))
    scale = float(model.input_scale[...])
    optimizer = nnx.Optimizer(model, recipe.optimizer(40), wrt=nnx.Param)
    schedule = recipe.coefficient_schedule(40)
    settings = sae.Settings(24, 40, recipe, sparse=False)
    state = sae.initial_state(settings, x * scale)
    state = state._replace(weights=jax.tree.map(jnp.copy, model.weights))

    @nnx.jit
    def update(model, optimizer, coefficient):
        gradient = nnx.grad(lambda m: m.loss(x, coefficient, sparse=False)[0])(model)
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

        @nnx.jit
        def loss_and_gradient(model, x, sparse=sparse):
            # Where it is not asked for, the default.
            options = {} if sparse else {"sparse": False}
            return nnx.value_and_grad(lambda m: m.loss(x, 0.5, **options)[0])(model)

        found[sparse] = jax.tree.leaves(loss_and_gradient(model, x))
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
    slope = nnx.jit(nnx.grad(lambda m: m.loss(x, 5.0, sparse=False)[0], argnums=wrt))
    optimizer.update(model, slope(model))
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


def test_an_autoencoder_around_trained_weights_is_the_plain_functions():
    recipe = dataclasses.replace(sae.short_run(), batch_size=64)
    x = np.asarray(3 * jax.random.normal(jax.random.key(1), (256, 12)), np.float32)
    found = sae.run(sae.Rows(x), sae.Settings(24, 5, recipe, sparse=False))
    model = SparseAutoencoder.from_weights(found.weights, found.scale, recipe)
    theta = found.weights.threshold
    pi = sae.pre_activations(found.weights, x * found.scale)
    wanted = sae.reconstruct(found.weights, jnp.where(pi > theta, pi, 0)) / found.scale
    np.testing.assert_allclose(model(x), wanted, rtol=1e-5, atol=1e-5)
    assert 0 < np.count_nonzero(model.encode(x)) < pi.size
    np.testing.assert_array_equal(model.decode(model.encode(x)), model(x))
    np.testing.assert_array_equal(model.threshold_value, theta)
    np.testing.assert_array_equal(model.pre_activations(x) > theta, model.encode(x) != 0)
    for ours, theirs in zip(model.weights, found.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    # It is a module as any other, with buffers of its own.
    assert isinstance(model.threshold, Threshold)
    for buffer in found.weights:
        buffer.delete()
    fresh = SparseAutoencoder(24, x, recipe=recipe, rngs=nnx.Rngs(3))
    nnx.update(fresh, nnx.state(model))
    np.testing.assert_array_equal(
        nnx.jit(lambda m, x: m(x))(fresh, x), nnx.jit(lambda m, x: m(x))(model, x)
    )
    gradient = nnx.jit(nnx.grad(lambda m: m.loss(x, 0.5, sparse=False)[0]))(model)
    tangent = model.constrained_gradient(gradient)["decoder"][...]
    along = jnp.sum(tangent * model.decoder[...], axis=1)
    np.testing.assert_allclose(along, np.zeros(24), atol=1e-3)


def test_weights_that_do_not_go_together_are_named():
    weights = sae.initial_weights(jax.random.key(0), 4, jnp.ones((2, 3)), sae.short_run())
    with pytest.raises(ValueError, match=r"`decoder` should have shape \(4, 3\).*\(3, 4\)"):
        SparseAutoencoder.from_weights(
            weights._replace(decoder=weights.decoder.T), 1.0, sae.short_run()
        )
    with pytest.raises(ValueError, match="`scale` should be finite and greater than 0, but is 0"):
        SparseAutoencoder.from_weights(weights, 0, sae.short_run())


def test_autoencoder_names_what_is_wrong():
    x = np.ones((8, 3), np.float32)
    x[5, 1] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in rows 5"):
        SparseAutoencoder(4, x, recipe=sae.gemma_scope(), rngs=nnx.Rngs(0))
    model = SparseAutoencoder(4, np.ones((8, 3)), recipe=sae.gemma_scope(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"3 columns.*shape \(2, 5\)"):
        model(jnp.ones((2, 5)))
    with pytest.raises(ValueError, match=r"shape \(examples, dimension\), but has shape \(3,\)"):
        SparseAutoencoder(4, np.ones(3), recipe=sae.gemma_scope(), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="`features` should be a whole number"):
        SparseAutoencoder(4.0, np.ones((8, 3)), recipe=sae.gemma_scope(), rngs=nnx.Rngs(0))
