"""Losses, recipes, weights, controller and diagnostics of sparse autoencoders."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick

from jaxtrelu import Gaussian, Rectangle, sae
from jaxtrelu.sae import _recipes
from jaxtrelu.sae._formats.recipe import from_json, to_json

RECIPES = {
    "gemma_scope": dataclasses.replace(sae.gemma_scope(), surrogate=Rectangle(0.1)),
    "anthropic_2025": sae.anthropic_2025(),
    "short_run": sae.short_run(),
}


def example(recipe, features=48, dimension=10):
    x = jax.random.normal(jax.random.key(3), (64, dimension))
    x = x / jnp.linalg.norm(x, axis=1).mean()
    if recipe.input_scaling == "sqrt_dimension":
        x = x * dimension**0.5
    initial = jax.jit(sae.initial_weights, static_argnums=(1, 3))
    weights = initial(jax.random.key(4), features, x, recipe)
    bias = 0.1 * jax.random.normal(jax.random.key(5), (features,))
    return weights._replace(encoder_bias=weights.encoder_bias + bias), x


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_loss_is_what_the_recipe_says(recipe):
    """Against the definition, in float64 NumPy."""
    weights, x = example(recipe)
    w = {name: np.asarray(value, np.float64) for name, value in weights._asdict().items()}
    x64 = np.asarray(x, np.float64)
    pi = x64 @ w["encoder"].T + w["encoder_bias"]
    f = np.where(pi > w["threshold"], pi, 0)
    residual = x64 - f @ w["decoder"] - w["decoder_bias"]
    norms = np.linalg.norm(w["decoder"], axis=1)
    reconstruction = (residual**2).sum(1).mean()
    l0 = (pi > w["threshold"]).sum(1).mean()
    penalty = l0 if recipe.penalty == "l0" else np.tanh(4 * f * norms).sum(1).mean()
    pull = (np.maximum(w["threshold"] - pi, 0) * norms).sum(1).mean()
    total = reconstruction + 0.3 * penalty + recipe.pre_activation_penalty * pull
    value, terms = jax.jit(sae.loss, static_argnums=3)(weights, x, 0.3, recipe)
    assert float(value) == pytest.approx(total, rel=1e-4)
    assert float(terms.l0) == pytest.approx(l0, rel=1e-6)
    assert float(terms.reconstruction) == pytest.approx(reconstruction, rel=1e-4)


_loss_and_gradient = jax.jit(
    jax.value_and_grad(sae.loss, has_aux=True),
    static_argnames=("recipe", "sparse", "screen", "capacity"),
)


@pytest.mark.parametrize(
    ("capacity", "screen"), quick([(1, None), (40, None), (40, "bfloat16")], {(40, None)})
)
def test_the_sparse_loss_is_the_dense_one(capacity, screen):
    recipe = RECIPES["short_run"]
    weights, x = example(recipe)
    found = {}
    for sparse in (False, True):
        options = {"sparse": True, "capacity": capacity, "screen": screen} if sparse else {}
        found[sparse] = _loss_and_gradient(weights, x, 0.3, recipe, **options)
    (dense, dense_terms), dense_gradient = found[False]
    (sparse, sparse_terms), sparse_gradient = found[True]
    assert float(sparse) == pytest.approx(float(dense), rel=1e-5)
    for a, b in zip(jax.tree.leaves(dense_terms), jax.tree.leaves(sparse_terms), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    for name, a, b in zip(sae.Weights._fields, dense_gradient, sparse_gradient, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5, err_msg=name)
    assert float(jnp.abs(sparse_gradient.threshold).sum()) > 0


def test_a_screen_needs_the_sparse_loss():
    recipe = RECIPES["short_run"]
    with pytest.raises(ValueError, match="for sparse=True"):
        sae.loss(*example(recipe), 1.0, recipe, screen="int8")


def test_a_recipe_that_needs_the_dense_latent_says_so():
    weights, x = example(RECIPES["anthropic_2025"])
    with pytest.raises(NotImplementedError, match="needs the dense latent"):
        sae.loss(weights, x, 1.0, RECIPES["anthropic_2025"], sparse=True)


def test_published_numbers_of_the_recipes():
    first, second = sae.gemma_scope(), sae.anthropic_2025()
    assert (first.surrogate, first.initial_threshold) == (Rectangle(1e-3), 1e-3)
    assert (first.learning_rate, first.adam_b1, first.batch_size) == (7e-5, 0.0, 4096)
    assert second.surrogate == Rectangle(2.0, to_input=True)
    assert (second.initial_threshold, second.tanh_scale) == (0.1, 4.0)
    assert second.pre_activation_penalty == 3e-6
    rate = first.learning_rate_schedule(20_000)
    assert float(rate(0)) == pytest.approx(0.7e-5)
    assert float(rate(500)) == pytest.approx((7e-5 + 0.7e-5) / 2, rel=1e-3)
    assert float(rate(1000)) == float(rate(19_999)) == pytest.approx(7e-5)
    assert float(first.coefficient_schedule(20_000)(5000)) == pytest.approx(first.coefficient / 2)
    decay = second.learning_rate_schedule(1000)
    assert float(decay(799)) == pytest.approx(2e-4)
    assert float(decay(900)) == pytest.approx(1e-4)
    assert float(second.coefficient_schedule(1000)(500)) == pytest.approx(5)


def test_initialisation_and_scale():
    x = np.asarray(jax.random.normal(jax.random.key(0), (4000, 16))) * 7
    norms = np.linalg.norm(x, axis=1)
    for name, recipe in RECIPES.items():
        scale = sae.input_scale(norms.mean(), (norms**2).mean(), 16, recipe)
        scaled = norms * scale
        if name == "gemma_scope":
            assert (scaled**2).mean() == pytest.approx(1, rel=1e-5)
        else:
            assert scaled.mean() == pytest.approx(4, rel=1e-5)
        weights = sae.initial_weights(jax.random.key(1), 64, x * scale, recipe)
        assert weights.threshold.dtype == jnp.float32
        if recipe.initialisation == "tied_unit":
            np.testing.assert_allclose(jnp.linalg.norm(weights.decoder, axis=1), 1, rtol=1e-5)
            np.testing.assert_array_equal(weights.encoder, weights.decoder)
        else:
            np.testing.assert_allclose(weights.encoder, weights.decoder * 16 / 64, rtol=1e-6)
            pi = sae.pre_activations(weights, jnp.asarray(x * scale, jnp.float32))
            share = (pi > weights.threshold).mean(0)
            np.testing.assert_allclose(share, 0.5, atol=0.02)  # 10,000/64 is more than half


def test_inputs_are_brought_to_a_mean_norm():
    recipe = dataclasses.replace(sae.short_run(), input_scaling=3.5)
    assert sae.input_scale(7.0, 50.0, 16, recipe) == 0.5
    for wrong in (0, -1.0, math.inf, math.nan, True, "unit"):
        with pytest.raises(ValueError, match="`input_scaling` of a recipe should be"):
            dataclasses.replace(recipe, input_scaling=wrong)


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("targets", [None, np.ones((9, 5), np.float32)], ids=["own", "targets"])
def test_rows_start_with_the_norm_that_is_asked_for(unit_norm, targets):
    plain = dataclasses.replace(sae.short_run(), unit_norm_decoder=unit_norm)
    small = dataclasses.replace(plain, initial_norm=0.1)
    x = np.asarray(jax.random.normal(jax.random.key(0), (9, 16)))
    before, found = (
        sae.initial_weights(jax.random.key(1), 24, x, recipe, targets) for recipe in (plain, small)
    )
    np.testing.assert_allclose(jnp.linalg.norm(found.encoder, axis=1), 0.1, rtol=1e-5)
    np.testing.assert_allclose(found.encoder, 0.1 * before.encoder, rtol=1e-6)
    # Those that are kept at norm 1 start there.
    size = 1 if unit_norm else 0.1
    np.testing.assert_allclose(found.decoder, size * before.decoder, rtol=1e-6)
    for a, b in zip(found, before, strict=True):
        assert a.dtype == b.dtype == jnp.float32


def test_what_an_initial_norm_cannot_be():
    with pytest.raises(ValueError, match="`initial_norm` of a recipe should be greater than 0"):
        dataclasses.replace(sae.short_run(), initial_norm=0.0)
    with pytest.raises(ValueError, match='is for the initialisation "tied_unit"'):
        dataclasses.replace(sae.anthropic_2025(), initial_norm=0.1)


def test_the_parallel_part_of_the_gradient_is_projected_out_and_norms_stay_one():
    recipe = RECIPES["gemma_scope"]
    weights, x = example(recipe)
    gradient = jax.jit(jax.grad(lambda w: sae.loss(w, x, 0.1, recipe)[0]))(weights)
    tangent = jax.jit(sae.constrained_gradient, static_argnums=2)(gradient, weights, recipe)
    along = jnp.sum(tangent.decoder * weights.decoder, axis=1)
    assert float(jnp.abs(jnp.sum(gradient.decoder * weights.decoder, axis=1)).max()) > 1e-3
    np.testing.assert_allclose(along, 0, atol=1e-6)
    moved = weights._replace(decoder=3 * weights.decoder, threshold=weights.threshold - 5)
    back = sae.constrained(moved, recipe)
    np.testing.assert_allclose(back.decoder, weights.decoder, rtol=1e-5)
    assert float(back.threshold.max()) == 0.0


def test_losses_in_bfloat16_keep_thresholds_in_float32():
    recipe = RECIPES["short_run"]
    weights, x = example(recipe)
    slope = jax.jit(jax.value_and_grad(lambda w, x: sae.loss(w, x, 0.3, recipe)[0]))
    value, gradient = slope(weights, x.astype(jnp.bfloat16))
    wanted = slope(weights, x)[1]
    assert value.dtype == gradient.threshold.dtype == jnp.float32
    scale = float(jnp.abs(wanted.threshold).max())
    assert float(jnp.abs(gradient.threshold - wanted.threshold).mean()) < 0.1 * scale


def test_diagnostics_of_a_hand_made_batch():
    pi = jnp.array([[0.4, 0.52, 0.48, 1.0], [0.2, 0.1, 0.3, 0.6]])
    seen = sae.diagnostics(pi, jnp.full(4, 0.5), jnp.array([0.5, 0.4, 0.5, 0.9]), Rectangle(0.1))
    assert [round(v.item(), 6) for v in seen] == [1.5, 0.5, 0.25, 0.5, 0.125]
    unbounded = sae.diagnostics(pi, jnp.full(4, 0.5), 0.5, Gaussian(0.11))
    assert unbounded.window_share.item() == 0.5
    with pytest.raises(ValueError, match=r"shape \(batch, features\)"):
        sae.diagnostics(pi[0], jnp.full(4, 0.5), 0.5, Rectangle(0.1))


# --- the controller ------------------------------------------------------------------------------


def simulate(target, first, steps=1500):
    """A plant like thresholds under Adam: θ walks to √λ at a limited rate, L0 = 400 Q(θ)."""
    controller = sae.l0_target_controller(target, initial_coefficient=first)

    def update(carry, key):
        theta, state = carry
        l0 = 400 * jax.scipy.stats.norm.sf(theta) * (1 + 0.05 * jax.random.normal(key))
        coefficient, state = controller.update(l0, state)
        theta = theta + jnp.clip(jnp.sqrt(coefficient) - theta, -0.02, 0.02)
        return (theta, state), l0

    keys = jax.random.split(jax.random.key(0), steps)
    _, l0 = jax.jit(lambda: jax.lax.scan(update, (jnp.float32(0.0), controller.init()), keys))()
    return np.asarray(l0)


@pytest.mark.parametrize("target", [2.0, 20.0, 90.0])
@pytest.mark.parametrize("first", [0.03, 1.0, 30.0])
def test_controller_reaches_its_target_from_far_off(target, first):
    l0 = simulate(target, first, 3000)
    assert l0[-500:].mean() == pytest.approx(target, rel=0.03)


def test_controller_follows_a_schedule():
    l0 = simulate(lambda count: jnp.where(count < 1500, 60.0, 15.0), 0.5, 3000)
    assert l0[1200:1500].mean() == pytest.approx(60, rel=0.03)
    assert l0[-300:].mean() == pytest.approx(15, rel=0.03)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"target": 0}, "`target` should be a positive number"),
        ({"target": math.nan}, "`target`"),
        ({"initial_coefficient": -1.0}, "`initial_coefficient`"),
        ({"smoothing": 1.0}, "`smoothing` should be a number in"),
        ({"integral_gain": 0.0}, "`integral_gain`"),
    ],
)
def test_controller_refuses(changed, words):
    arguments = {"target": 10.0, "initial_coefficient": 1.0, **changed}
    with pytest.raises(ValueError, match=words):
        sae.l0_target_controller(arguments.pop("target"), **arguments)


@pytest.mark.parametrize(
    ("field", "wrong", "words"),
    [
        ("clip_norm", -1, "greater than 0, or None, but is -1"),
        ("clip_norm", 0, "greater than 0, or None, but is 0"),
        ("clip_norm", np.nan, "greater than 0, or None, but is nan"),
        ("clip_norm", "1", "a number greater than 0, or None, but is '1'"),
        ("learning_rate_decay", 2, "a fraction of the run, at least 0 and at most 1, but is 2"),
        ("coefficient_warmup", -1, r"a number of steps, .* \(at most 1\), or 0, but is -1"),
        ("coefficient_warmup", 1.5, r"a number of steps, .* \(at most 1\), or 0, but is 1\.5"),
        ("resample_every", 1.25, r"a number of steps, .* \(at most 1\), or 0, but is 1\.25"),
        ("resample_every", math.inf, r"a number of steps, .*, or 0, but is inf"),
        ("adam_b1", 1.5, "at least 0 and less than 1, but is 1.5"),
        ("adam_b2", 1, "at least 0 and less than 1, but is 1"),
        ("adam_eps", 0, "greater than 0, but is 0"),
        ("tanh_scale", np.inf, "greater than 0, but is inf"),
        ("pre_activation_penalty", -1e-6, "at least 0, but is -1e-06"),
        ("learning_rate_warmup", -1, "a whole number of steps, at least 0, but is -1"),
        ("learning_rate_warmup", 0.1, "a whole number of steps, at least 0, but is 0.1"),
        ("batch_size", 1.5, "a whole number greater than 0, but is 1.5"),
        ("batch_size", None, "a whole number greater than 0, but is None"),
        ("unit_norm_decoder", "no", "True or False, but is 'no'"),
        ("initial_norm", True, "a number greater than 0, but is True"),
        ("initial_norm", "0.1", "a number greater than 0, but is '0.1'"),
        ("initial_threshold", np.zeros(3), "a number at least 0 .* but is array"),
        ("steer_from", "half", "a fraction of the run, at least 0 and less than 1, but is 'half'"),
        ("steer_from", None, "a fraction of the run, at least 0 and less than 1, but is None"),
        ("resample_until", "0.5", "a fraction of the run, .* but is '0.5'"),
        ("input_scaling", "unit", '"unit_mean_square", "sqrt_dimension" or .*, but is \'unit\''),
        ("penalty", "l1", '"l0" or "tanh" or "quadratic_l0", but is \'l1\''),
        ("initialisation", ["uniform"], r'"tied_unit" or "uniform", but is \[\'uniform\'\]'),
        ("name", 3, "a text, but is 3"),
    ],
)
def test_every_field_of_a_recipe_says_what_it_should_be(field, wrong, words):
    with pytest.raises((TypeError, ValueError), match=f"^`{field}` of a recipe should be {words}"):
        dataclasses.replace(sae.short_run(), **{field: wrong})


@pytest.mark.parametrize("field", [*_recipes._NUMBERS, "input_scaling"])
def test_no_number_of_a_recipe_is_a_truth_value(field):
    for value in (True, np.False_):
        with pytest.raises((TypeError, ValueError), match=f"^`{field}` of a .*, but is .*{value}"):
            dataclasses.replace(sae.short_run(), **{field: value})


def test_numbers_of_every_kind_are_numbers_of_a_recipe():
    """Kept as Python's own, which a file and the identity of a run can hold."""
    found = dataclasses.replace(
        sae.short_run(), clip_norm=np.float32(0.5), batch_size=np.int64(8), initial_norm=1,
        coefficient_warmup=np.float64(0.5), learning_rate_decay=1, input_scaling=np.float32(2),
    )  # fmt: skip
    assert found.clip_norm == 0.5
    kinds = {type(value) for value in dataclasses.astuple(found)}
    assert kinds <= {int, float, str, bool, tuple, dict}, kinds
    assert from_json(json.loads(json.dumps(to_json(found)))) == found
    found.optimizer(10).init(np.zeros(3))


@pytest.mark.parametrize("run", [sae.train, sae.sweep])
def test_a_scale_that_float32_cannot_hold_is_no_matter_of_the_learning_rate(run):
    x = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
    for changes in ({"initial_norm": 1e30}, {"input_scaling": 1e30}):
        recipe = dataclasses.replace(sae.short_run(), batch_size=64, **changes)
        with pytest.raises(FloatingPointError, match=r"not finite at step 1, .*`initial_norm`\."):
            run(x, features=16, steps=3, recipe=recipe)


def test_recipes_refuse():
    for wrong, error in ((0, ValueError), (math.nan, ValueError), (True, TypeError)):
        with pytest.raises(error, match=f"^`l0` of a recipe should be .*, but is {wrong}"):
            sae.frequent_resampling(wrong)
    with pytest.raises(ValueError, match="`initial_threshold` of a recipe should be at least 0"):
        dataclasses.replace(sae.gemma_scope(), initial_threshold=-0.1)
    with pytest.raises(TypeError, match="without one the thresholds would not learn"):
        dataclasses.replace(sae.gemma_scope(), surrogate=None)
    with pytest.raises(ValueError, match="`learning_rate` of a recipe"):
        dataclasses.replace(sae.gemma_scope(), learning_rate=0)
