"""The autoencoder as an object, its module, and figures of it: against definitions in NumPy."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrelu import Rectangle, sae
from jaxtrelu.__main__ import main
from jaxtrelu.sae import _model

D, M = 6, 13


def random(shape, seed, scale=0.6):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def weights(d=D, m=M, out=D):
    parts = (m, d), m, m, (m, out), out
    drawn = [random(shape, seed) for seed, shape in enumerate(parts)]
    return sae.Weights(drawn[0], drawn[1], np.abs(drawn[2]), *drawn[3:])


ROWS = random((200, D), 9, 1.5)
MODELS = {
    "plain": {},
    "scaled": {"input_scale": 0.5, "output_scale": 0.25},
    "subtracting": {"subtract_decoder_bias": True, "input_scale": 2.0},
    "layer_norm": {"normalisation": "layer_norm", "output_scale": 2.0},
    "constant_norm": {"normalisation": "constant_norm_rescale", "subtract_decoder_bias": True},
    "skip": {"skip": random((D, D), 7)},
}


def by_hand(w, x, settings):
    """(features, output), in float64, from the definition."""
    w = sae.Weights(*(np.asarray(v, np.float64) for v in w))
    x = x.astype(np.float64)
    mean, spread = 0.0, 1.0
    inner = x
    if settings.get("normalisation") == "layer_norm":
        mean, spread = x.mean(1, keepdims=True), x.std(1, keepdims=True, ddof=1)
        inner = (x - mean) / (spread + 1e-5)
    elif settings.get("normalisation"):
        spread = np.linalg.norm(x, axis=1, keepdims=True) / x.shape[1] ** 0.5
        inner = x / spread
    inner = inner * settings.get("input_scale", 1)
    if settings.get("subtract_decoder_bias"):
        inner = inner - w.decoder_bias
    pi = inner @ w.encoder.T + w.encoder_bias
    f = np.where(pi > w.threshold, pi, 0)
    out = (f @ w.decoder + w.decoder_bias) / settings.get("output_scale", 1) * spread + mean
    return f, out + (x @ settings["skip"] if "skip" in settings else 0)


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_the_function_is_the_defined_one(settings):
    model = sae.Autoencoder(weights(), **settings)
    features, output = by_hand(weights(), ROWS, settings)
    np.testing.assert_allclose(model.encode(ROWS), features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model(ROWS), output, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.decode(features, ROWS), output, rtol=1e-4, atol=1e-5)
    if model.needs_inputs:
        with pytest.raises(ValueError, match=r"pass decode\(features, x\)"):
            model.decode(features)
    pi = model.pre_activations(ROWS)
    np.testing.assert_array_equal(np.asarray(pi > model.threshold), features > 0)


def test_indices_and_values_are_the_open_features(monkeypatch):
    monkeypatch.setattr(_model, "_BLOCK_ENTRIES", 30 * M)  # several blocks, the last one short
    model = sae.Autoencoder(weights())
    found, dense = model.encode_sparse(ROWS), np.asarray(model.encode(ROWS))
    assert isinstance(found, sae.OpenFeatures)
    np.testing.assert_array_equal(found.counts, (dense > 0).sum(1))
    assert found.indices.shape == found.values.shape == (200, found.counts.max())
    for row, count in enumerate(found.counts):
        open_here = np.flatnonzero(dense[row])
        np.testing.assert_array_equal(found.indices[row, :count], open_here)
        np.testing.assert_allclose(found.values[row, :count], dense[row, open_here], rtol=1e-6)
        assert (found.indices[row, count:] == M).all() and not found.values[row, count:].any()
    np.testing.assert_allclose(model.decode(found), model.decode(dense), rtol=1e-5, atol=1e-6)
    closed = dataclasses.replace(model, weights=model.weights._replace(threshold=np.full(M, 1e9)))
    assert closed.encode_sparse(ROWS).indices.shape == (200, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named_where_they_are_looked_at(tmp_path, monkeypatch, value):
    """NaN would count as open, or be passed over; in what `jit` compiles it stays NaN."""
    monkeypatch.setattr(_model, "_BLOCK_ENTRIES", 30 * M)
    model, x = sae.Autoencoder(weights()), ROWS.copy()
    x[[42, 71], 3] = value
    np.save(tmp_path / "bad.npy", x)
    calls = (
        model.encode_sparse,
        lambda x: model.top_rows(x, 0),
        lambda x: sae.dead_features(closed, x),
        lambda x: sae.evaluate(model, x),
    )
    closed = dataclasses.replace(model, weights=model.weights._replace(threshold=np.full(M, 1e9)))
    for call in calls:
        for rows, name in ((x, "x"), (tmp_path / "bad.npy", "bad.npy")):
            with pytest.raises(ValueError, match=rf"^{name} holds NaN or infinity in row 42 \("):
                call(rows)
    with pytest.raises(ValueError, match="`row` holds NaN or infinity"):
        model.top_features(x[42])
    if np.isnan(value):
        for call in (model.encode, model.pre_activations, model):
            found = np.isnan(jax.jit(call)(x))
            assert found[[42, 71]].all() and found.sum() == 2 * found.shape[1]


def test_top_rows_and_features(tmp_path, monkeypatch):
    monkeypatch.setattr(_model, "_BLOCK_ENTRIES", 30 * M)
    model = sae.Autoencoder(weights())
    dense = np.asarray(model.encode(ROWS))
    np.save(tmp_path / "x.npy", ROWS)
    for feature in (0, 5, M - 1):
        found = model.top_rows(tmp_path / "x.npy", feature, 7)
        assert isinstance(found, sae.TopRows)
        order = np.argsort(-dense[:, feature], kind="stable")[:7]
        order = order[dense[order, feature] > 0]
        np.testing.assert_array_equal(found.rows, order)
        np.testing.assert_allclose(found.values, dense[order, feature], rtol=1e-5)
    several = model.top_rows_of(sae.Rows(ROWS), [5, 0], 7)
    np.testing.assert_array_equal(several[1].rows, model.top_rows(ROWS, 0, 7).rows)
    of_row = model.top_features(ROWS[3])
    assert isinstance(of_row, sae.TopFeatures)
    np.testing.assert_array_equal(np.sort(of_row.indices), np.flatnonzero(dense[3]))
    assert (np.diff(of_row.values) <= 0).all()
    assert len(model.top_features(ROWS[3], 2).indices) == 2
    with pytest.raises(ValueError, match="there is no feature 13: they go from 0 to 12"):
        model.top_rows(ROWS, 13)


def test_a_model_is_a_pytree_and_can_be_differentiated():
    recipe = dataclasses.replace(sae.short_run(), surrogate=Rectangle(1.0))
    model = sae.Autoencoder(weights(), skip=random((D, D), 7), recipe=recipe, about={"layer": 3})
    same = jax.tree.unflatten(jax.tree.structure(model), jax.tree.leaves(model))
    assert same.about == {"layer": 3} and same.recipe == recipe

    @jax.jit
    def loss(model, x):
        return jnp.sum((model(x) - x) ** 2)

    gradient = jax.grad(loss)(model, ROWS)
    assert float(jnp.abs(gradient.weights.threshold).sum()) > 0
    assert gradient.skip.shape == (D, D)
    assert float(loss(model, ROWS)) == pytest.approx(float(((model(ROWS) - ROWS) ** 2).sum()), 1e-4)


def test_narrow_and_integer_rows_are_computed_in_float32():
    model = sae.Autoencoder(weights())
    whole = np.round(ROWS * 3)
    for dtype in (np.float16, np.int32, jnp.bfloat16):
        found = model.encode(whole.astype(dtype))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, model.encode(whole))


def test_what_does_not_go_together_is_refused():
    w = weights()
    for settings, words in (
        ({"weights": w._replace(threshold=-np.ones(M))}, "thresholds should be at least 0"),
        ({"weights": w._replace(decoder=w.decoder[:3])}, "`decoder` should have shape"),
        ({"weights": w._replace(encoder=w.encoder[0])}, "should be matrices"),
        ({"skip": np.zeros((D, 2))}, "`skip` should have shape"),
        ({"input_scale": 0.0}, "`input_scale` should be finite and greater than 0"),
        ({"normalisation": "batch"}, "`normalisation` should be one of none"),
        ({"weights": weights(out=3), "subtract_decoder_bias": True}, "a transcoder from 6 to 3"),
    ):
        with pytest.raises(ValueError, match=words):
            sae.Autoencoder(**{"weights": w, **settings})
    model = sae.Autoencoder(w)
    for call in (model.encode, model.encode_sparse, model, lambda x: model.top_rows(x, 0)):
        with pytest.raises(ValueError, match="6 columns, as the model has"):
            call(np.zeros((4, 5), np.float32))
    with pytest.raises(ValueError, match="features should have 13 columns"):
        model.decode(np.zeros((4, 5)))


# --- training in one call, and the module --------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    world = sae.PlantedWorld(features=16, dimension=8, mean_l0=2.0)
    x = np.asarray(world.sample(jax.random.key(0), 3000)[0])
    return sae.train(x, features=24, l0=3.0, steps=200), x


def test_training_in_one_call(trained, tmp_path):
    model, x = trained
    assert model.training.history["step"][-1] == 200
    aside = sae.held_out(model, x)
    assert len(aside) == pytest.approx(300, abs=20)
    assert sae.evaluate(model, aside).explained_variance > 0.3
    assert sae.held_out(model, x[::-1]) is None
    # Of rows that are opened with another number kept aside, those of the model count.
    for other in (0, 17, len(x) // 10):
        np.testing.assert_array_equal(sae.held_out(model, sae.Rows(x, held_out=other)), aside)
    assert sae.held_out(sae.Autoencoder(model.weights), x) is None
    np.save(tmp_path / "x.npy", x)
    sae.save(model, tmp_path / "m.safetensors")
    again = sae.load(tmp_path / "m.safetensors")
    assert again.recipe == model.recipe and again.training is None
    np.testing.assert_array_equal(sae.held_out(again, tmp_path / "x.npy"), aside)


def test_small_data_get_small_batches():
    model = sae.train(random((90, 4), 1), features=8, l0=1.0, steps=2)
    assert model.recipe.batch_size == 81


def test_the_module_and_the_model_convert_both_ways(trained):
    model, x = trained
    module = sae.SparseAutoencoder.from_model(model)
    np.testing.assert_allclose(module(x), model(x), rtol=1e-5, atol=1e-6)
    back = module.to_model()
    for name, a, b in zip(sae.Weights._fields, model.weights, back.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert back.input_scale == pytest.approx(model.input_scale) and back.recipe == model.recipe
    module.decoder_bias[...] += 1  # a copy: the model stays
    np.testing.assert_array_equal(back.weights.decoder_bias, model.weights.decoder_bias)
    grown = sae.SparseAutoencoder(24, x, recipe=sae.gemma_scope(), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(grown.to_model()(x), grown(x), rtol=1e-5, atol=1e-6)


def test_the_module_folds_what_it_has_no_place_for():
    model = sae.Autoencoder(weights(), subtract_decoder_bias=True, input_scale=2.0)
    with pytest.raises(ValueError, match="pass a recipe"):
        sae.SparseAutoencoder.from_model(model)
    module = sae.SparseAutoencoder.from_model(model, sae.short_run())
    np.testing.assert_allclose(module(ROWS), model(ROWS), rtol=1e-4, atol=1e-5)
    skip = sae.Autoencoder(weights(), random((D, D), 1), recipe=sae.short_run())
    with pytest.raises(ValueError, match="a skip connection"):
        sae.SparseAutoencoder.from_model(skip)
    per_row = sae.Autoencoder(weights(), normalisation="layer_norm", recipe=sae.short_run())
    with pytest.raises(ValueError, match=r"normalises each row \(layer_norm\) is no Sparse"):
        sae.SparseAutoencoder.from_model(per_row)


# --- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [D, 4])
def test_evaluation_is_the_definition(monkeypatch, out):
    monkeypatch.setattr(_model, "_BLOCK_ENTRIES", 30 * M)
    model = sae.Autoencoder(weights(out=out))
    x = ROWS + 5  # far from the origin, where a wrong variance shows
    y = x if out == D else random((200, out), 3) + 7
    targets = {} if out == D else {"targets": y}
    seen = []
    found = sae.evaluate(model, x, on_rows=seen.append, **targets)
    features, output = by_hand(weights(out=out), x, {})
    y = y.astype(np.float64)
    lost = ((y - output) ** 2).sum(1).mean()
    norms = np.linalg.norm(y, axis=1), np.linalg.norm(output, axis=1)
    wanted = {
        "rows": 200,
        "explained_variance": 1 - lost / ((y - y.mean(0)) ** 2).sum(1).mean(),
        "mean_squared_error": lost,
        "cosine_similarity": ((y * output).sum(1) / norms[0] / norms[1]).mean(),
        "norm_in": norms[0].mean(),
        "norm_out": norms[1].mean(),
        "norm_ratio": (norms[1] / norms[0]).mean(),
        "relative_reconstruction_bias": (norms[1] ** 2).mean() / (y * output).sum(1).mean(),
        "l0": (features > 0).sum(1).mean(),
        "l1": features.sum(1).mean(),
        "over_1_percent": ((features > 0).mean(0) > 0.01).mean(),
        "over_10_percent": ((features > 0).mean(0) > 0.1).mean(),
        "alive_share": (features > 0).any(0).mean(),
    }
    assert found.numbers() == pytest.approx(wanted, rel=1e-4)
    np.testing.assert_allclose(found.density, (features > 0).mean(0))
    for name, matrix in (("encoder", weights().encoder), ("decoder", weights(out=out).decoder)):
        unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        cosines = unit @ unit.T - 9 * np.eye(M)
        np.testing.assert_allclose(getattr(found, f"max_{name}_cosine"), cosines.max(1), rtol=1e-4)
    assert np.isnan(found.encoder_decoder_cosine).all() == (out != D)
    assert sum(seen) == 200 and len(seen) > 3


def test_evaluation_refuses():
    model = sae.Autoencoder(weights(out=4))
    with pytest.raises(ValueError, match="pass `targets`"):
        sae.evaluate(model, ROWS)
    with pytest.raises(ValueError, match=r"`targets` should have shape \(200, 4\)"):
        sae.evaluate(model, ROWS, targets=ROWS)
    with pytest.raises(ValueError, match="NaN or infinity"):
        sae.evaluate(sae.Autoencoder(weights()), ROWS * np.nan)
    with pytest.raises(ValueError, match="no rows"):
        sae.evaluate(sae.Autoencoder(weights()), ROWS[:0])


@pytest.mark.parametrize(
    ("rows", "why"), [(ROWS[:1], "one row only"), (ROWS[[3] * 9], "all rows are the same")]
)
def test_rows_without_variance_have_no_explained_variance(rows, why):
    """It is NaN, and said so at the user's line; everything else is measured, and JSON has it."""
    with pytest.warns(UserWarning, match=f"explained_variance is NaN, as .*{why}") as warned:
        found = sae.evaluate(sae.Autoencoder(weights()), rows)
    assert [w.filename for w in warned] == [__file__]
    assert np.isnan(found.explained_variance) and found.mean_squared_error > 0
    quality = found.to_saebench()["eval_result_metrics"]["reconstruction_quality"]
    assert quality["explained_variance"] == -1


def test_a_path_where_an_array_is_wanted(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    model = sae.Autoencoder(weights())
    for path in (tmp_path / "x.npy", str(tmp_path / "x.npy")):
        for call in (model.encode, model.pre_activations, model):
            with pytest.raises(TypeError, match=r"is the path '.*x\.npy'\. Pass np\.load of it"):
                call(path)
    assert model.encode_sparse(tmp_path / "x.npy").counts.shape == (200,)


def test_dead_features_are_looked_for_until_all_were_open(monkeypatch):
    monkeypatch.setattr(_model, "_BLOCK_ENTRIES", 10 * M)
    w = weights()
    w = w._replace(encoder_bias=w.encoder_bias + 9)
    assert sae.dead_features(sae.Autoencoder(w), ROWS).rows == 10  # all open in the first block
    w.encoder_bias[[2, 7]] = -1e6
    found = sae.dead_features(sae.Autoencoder(w), ROWS)
    assert found.features.tolist() == [2, 7] and found.rows == 200
    assert sae.dead_features(sae.Autoencoder(w), ROWS, rows=25).rows == 25
    # A feature that opens once, late, is not dead.
    model = sae.Autoencoder(
        w._replace(encoder=np.eye(M, D, dtype=np.float32), encoder_bias=-w.threshold)
    )
    rare = np.zeros((200, D), np.float32)
    rare[190, 1] = 50.0
    assert 1 not in sae.dead_features(model, rare).features
    assert 1 in sae.dead_features(model, rare, rows=100).features


def test_figures_in_the_schema_of_saebench():
    model = sae.Autoencoder(weights())
    found = sae.evaluate(model, ROWS)
    written = json.loads(json.dumps(found.to_saebench(model), allow_nan=False))
    metrics = written["eval_result_metrics"]
    assert set(metrics) == {
        "model_behavior_preservation", "model_performance_preservation", "reconstruction_quality",
        "shrinkage", "sparsity", "token_stats", "misc_metrics",
    }  # fmt: skip
    assert metrics["sparsity"]["l0"] == found.l0
    assert set(metrics["model_behavior_preservation"].values()) == {-1}
    details = written["eval_result_details"]
    assert [d["index"] for d in details] == list(range(M))
    assert details[4]["feature_density"] == found.density[4]
    assert written["sae_cfg_dict"] == {"architecture": "jumprelu", "d_in": D, "d_sae": M}
    one = sae.evaluate(sae.Autoencoder(weights(m=1)), ROWS)  # no other row to have a cosine with
    json.dumps(one.to_saebench(), allow_nan=False)


def test_the_command_looks_at_the_rows_that_were_kept_aside(trained, tmp_path, capsys):
    model, x = trained
    aside = sae.held_out(model, x)
    sae.save(model, tmp_path / "m")
    np.save(tmp_path / "x.npy", aside)
    words = ["sae", "eval", str(tmp_path / "m"), str(tmp_path / "x.npy")]
    assert main([*words, "--json", str(tmp_path / "e.json")]) == 0
    printed = capsys.readouterr().out
    assert "all rows of x.npy" in printed
    found = sae.evaluate(model, aside)
    assert f"{found.explained_variance:.4f}" in printed
    written = json.loads((tmp_path / "e.json").read_text())
    assert written["eval_result_metrics"]["sparsity"]["l0"] == pytest.approx(found.l0)
    assert main(["sae", "eval", str(tmp_path / "absent"), "patches"]) == 2
    assert "there is no file or folder" in capsys.readouterr().err
