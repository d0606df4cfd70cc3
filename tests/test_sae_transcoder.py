"""Transcoders: from rows to targets of another width, trained as autoencoders are."""

import contextlib
import dataclasses
import io
import json
import warnings

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from jaxtrelu import sae
from jaxtrelu.__main__ import main
from jaxtrelu.sae._pairs import Pairs
from jaxtrelu.sae._train import rows_of

D, TO, N = 16, 24, 6000
RECIPE = dataclasses.replace(sae.short_run(), batch_size=128, learning_rate_warmup=10)
WORLD = sae.PlantedWorld(features=32, dimension=D, mean_l0=3.0)
SHORT = {"features": 64, "l0": 5.0, "steps": 60, "recipe": RECIPE}


@pytest.fixture(scope="module")
def pairs():
    """What an MLP makes of planted rows: 32 units with a jump, 24 outputs, units of their own."""
    x = np.asarray(WORLD.sample(jax.random.key(0), N)[0])
    pi = x @ np.asarray(WORLD.directions).T
    directions = np.random.default_rng(1).normal(size=(32, TO))
    return x, (50 * np.where(pi > 0.6, pi, 0) @ directions + 7).astype(np.float32)


@pytest.fixture(scope="module")
def trained(pairs):
    x, y = pairs
    return sae.train(x, targets=y, features=64, l0=4, steps=900, recipe=RECIPE)


def explained(y, found):
    """1 − mean ‖y − ŷ‖² / mean ‖y − mean of y‖², by its definition."""
    y = np.asarray(y, np.float64)
    return 1 - np.sum((y - found) ** 2) / np.sum((y - y.mean(axis=0)) ** 2)


def assert_same(first, second):
    for name, a, b in zip(sae.Weights._fields, first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    for name, column in first.training.history.items():
        np.testing.assert_array_equal(column, second.training.history[name], err_msg=name)


def test_a_planted_map_is_found_in_units_of_its_own(pairs, trained):
    x, y = pairs
    assert trained.weights.encoder.shape == (64, D)
    assert trained.weights.decoder.shape == (64, TO)
    aside, wanted = sae.held_out(trained, x, y)
    assert aside.shape[1:] == (D,) and wanted.shape == (len(aside), TO) and len(aside) > 500
    places = [np.flatnonzero((x == row).all(axis=1))[0] for row in aside[:20]]
    np.testing.assert_array_equal(y[places], wanted[:20])
    found = explained(wanted, np.asarray(trained(aside)))
    assert found > 0.85
    figures = sae.evaluate(trained, aside, targets=wanted)
    assert figures.explained_variance == pytest.approx(found, abs=1e-4)
    assert figures.l0 == pytest.approx(4, rel=0.2)
    # The history is of the targets, too: of one batch, so about.
    lost = trained.training.history["reconstruction"][-5:].mean()
    assert lost == pytest.approx(1 - found, abs=0.07)
    # Mean norm √d of each, by its own scale.
    kept = (N - len(aside)) / N
    for values, scale in ((x, trained.input_scale), (y, trained.output_scale)):
        mean = np.linalg.norm(values, axis=1).mean()
        assert float(scale) == pytest.approx(values.shape[1] ** 0.5 / mean, rel=0.02 / kept)
    np.testing.assert_allclose(np.linalg.norm(trained.weights.decoder, axis=1), 1, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*(L0|explained)")
def test_a_batch_of_pairs_is_split_into_its_sides(pairs):
    x, y = pairs
    rows = rows_of(x, 0, 0, y)
    assert (rows.width, sae.Rows(x).width) == (D + TO, D)
    examples, targets = rows.split(rows.batch(0, 8))
    assert (examples.shape, targets.shape) == ((8, D), (8, TO))
    assert sae.Rows(x).split(examples)[1] is None


def test_targets_decide(pairs):
    """Shuffled targets cannot be explained: a run that read rows astray would be found."""
    x, y = pairs
    astray = y[np.random.default_rng(2).permutation(N)]
    model = sae.train(x, targets=astray, **SHORT | {"steps": 300})
    assert sae.evaluate(model, x, targets=astray).explained_variance < 0.1


@pytest.fixture(scope="module")
def square(pairs):
    """A transcoder whose shapes do not say so, and its targets."""
    x, y = pairs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few steps
        return sae.train(x, targets=y[:, :D], **SHORT | {"steps": 20}), y[:, :D]


def test_a_square_transcoder_is_not_taken_for_an_autoencoder(pairs, square, tmp_path):
    x, (model, y) = pairs[0], square
    assert model.is_transcoder and model.dimension == model.output_dimension
    assert repr(model) == "Autoencoder(16 -> 64 -> 16, transcoder=True, recipe='short_run')"
    sae.save(model, tmp_path / "own.safetensors")
    sae.save(model, tmp_path / "lens", format="saelens")
    sae.save(model, tmp_path / "layer_0.safetensors", format="circuit_tracer")
    sae.save(model, tmp_path / "params.safetensors", format="gemma_scope_2")
    names = ("own.safetensors", "lens", "layer_0.safetensors", "params.safetensors")
    for found in (model, *(sae.load(tmp_path / name) for name in names)):
        with pytest.raises(ValueError, match="is a transcoder, which writes other rows than it re"):
            sae.evaluate(found, x)
        with pytest.raises(ValueError, match="pass `targets`, or the rows themselves as `targets`"):
            sae.train(x, start=found, steps=1)
        with pytest.raises(ValueError, match=r"^a transcoder, .* train it further with .*start=mo"):
            sae.SparseAutoencoder.from_model(found, RECIPE)
    with pytest.raises(ValueError, match="pass `targets`"):
        sae.report(model, x, tmp_path / "report.html")
    with pytest.raises(ValueError, match="pass `targets`"):
        sae.held_out(model, x)
    for format in ("dictionary_learning", "dictionary_learning_batch_top_k", "llama_scope"):
        with pytest.raises(ValueError, match="has no place for a transcoder"):
            sae.save(model, tmp_path / "other", format=format)
    with pytest.raises(ValueError, match="pass format='gemma_scope_2' or 'saelens'"):
        sae.save(model, tmp_path / "other", format="gemma_scope")
    assert not (tmp_path / "other").exists()
    # The inputs can be meant.
    meant = sae.evaluate(model, x, targets=x).explained_variance
    assert meant == pytest.approx(explained(x, np.asarray(model(x))), abs=1e-4)
    assert sae.evaluate(model, x, targets=y).explained_variance != pytest.approx(meant, abs=0.01)
    plain = dataclasses.replace(model, about={})
    assert not plain.is_transcoder
    np.testing.assert_allclose(sae.evaluate(plain, x).explained_variance, meant)


def test_the_module_holds_no_transcoder_and_says_what_does(trained):
    with pytest.raises(ValueError, match=r"sae\.train\(x, targets=…, start=model\), or take the"):
        sae.SparseAutoencoder.from_model(trained)
    with pytest.raises(ValueError, match=r"transcoder, from 16 to 24 dim.*sae\.Autoencoder\(weig"):
        sae.SparseAutoencoder.from_weights(trained.weights, 1.0, RECIPE)


def test_pairs_that_were_not_kept_aside_say_why(pairs, square):
    x, (model, y) = pairs[0], square
    for wrong, reason in (
        ((x, y + 1), "trained on the data with `targets`, and these are other numbers"),
        ((y, x), "these are other numbers"),
        ((x[:-1], y[:-1]), "of 6,000 rows, and these are 5,999"),
        ((x, pairs[1]), r"`targets` should have 16 columns, but has shape \(6000, 24\)"),
        ((pairs[1], y), "x should have 16 columns"),
    ):
        with pytest.raises(ValueError, match=f"no pairs of these were kept aside: .*{reason}"):
            sae.held_out(model, *wrong)
    whole = dataclasses.replace(model, about={"training": {"targets": "y", "held_out": 0}})
    with pytest.raises(ValueError, match="the training used all rows"):
        sae.held_out(whole, x, y)
    with pytest.raises(ValueError, match="does not say what it was trained on"):
        sae.held_out(sae.Autoencoder(model.weights), x, y)
    alone = dataclasses.replace(model, about={"training": {"held_out": 5, "rows": 6000}})
    with pytest.raises(ValueError, match="trained without targets"):
        sae.held_out(alone, x, y)


# the skip connection


@pytest.fixture(scope="module")
def skipping():
    """A dense map of dense rows, and on top of it few features: (x, y, the dense map)."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, D)).astype(np.float32)
    pi = x @ np.asarray(WORLD.directions).T
    dense = 20 * rng.normal(size=(D, TO))
    y = 10 * np.where(pi > 1.3, pi, 0) @ rng.normal(size=(32, TO)) + x @ dense + 7
    return x, y.astype(np.float32), dense


SKIP = {
    "features": 64, "l0": 3.0, "steps": 600,
    "recipe": dataclasses.replace(RECIPE, coefficient=0.1),
}  # fmt: skip


@pytest.fixture(scope="module")
def skipped(skipping):
    x, y, _ = skipping
    return sae.train(x, targets=y, skip=True, **SKIP)


def test_a_skip_connection_has_a_smaller_coefficient_to_begin_with(skipping):
    x, y, _ = skipping
    few = SKIP | {"recipe": None, "steps": 2}
    with pytest.warns(UserWarning, match=r"coefficient nearer .* \(λ began at 0\.1 and ended at 0"):
        model = sae.train(x, targets=y, skip=True, **few)
    assert model.recipe.coefficient == 0.1
    with pytest.warns(UserWarning, match=r"λ began at 1 "):
        assert sae.train(x, targets=y, **few).recipe.coefficient == 1


def test_a_skip_connection_learns_what_is_dense(skipping, skipped):
    x, y, dense = skipping
    plain = sae.train(x, targets=y, **SKIP | {"recipe": RECIPE})
    assert plain.skip is None and skipped.skip.shape == (D, TO)
    aside, wanted = sae.held_out(skipped, x, y)
    without, found = (explained(wanted, np.asarray(m(aside))) for m in (plain, skipped))
    assert found > 0.9 and found > without + 0.15
    figures = [sae.evaluate(m, aside, targets=wanted) for m in (plain, skipped)]
    assert figures[0].l0 > figures[1].l0  # and it has that of fewer features
    # Its history is of the whole output, and the model is the run's, in the user's units.
    lost = skipped.training.history["reconstruction"][-5:].mean()
    assert lost == pytest.approx(1 - found, abs=0.02)
    features = np.asarray(skipped.encode(aside), np.float64)
    out = features @ np.asarray(skipped.weights.decoder) + skipped.weights.decoder_bias
    inside = aside * float(skipped.input_scale) @ np.asarray(skipped.training.skip)
    np.testing.assert_allclose(
        (out + inside) / float(skipped.output_scale), skipped(aside), rtol=1e-3, atol=0.05
    )
    share = 10 * np.abs(np.corrcoef(np.ravel(skipped.skip), np.ravel(dense))[0, 1])
    assert share > 9


@pytest.mark.filterwarnings("ignore:.*(L0|explained)")
def test_a_skip_connection_starts_at_zero_and_one_step_is_adams(skipping):
    """The first step of Adam is the learning rate, against the sign of the gradient."""
    x, y, _ = skipping
    recipe = dataclasses.replace(RECIPE, learning_rate=1e-3, learning_rate_warmup=0)
    rows = rows_of(x, 0, 0, y)
    run = sae.Settings(32, 1, recipe, target_l0=3.0, skip=True, sparse=False)
    found = sae.run(rows, run)
    a, b = rows.split(rows.batch(0, recipe.batch_size))
    a, b = (np.asarray(v * s, np.float64) for v, s in ((a, found.scale), (b, found.output_scale)))
    w = sae.initial_weights(jax.random.key(0), 32, a.astype(np.float32), recipe, b)
    w = jax.tree.map(lambda v: np.asarray(v, np.float64), w)
    pi = a @ w.encoder.T + w.encoder_bias
    out = np.where(pi > w.threshold, pi, 0) @ w.decoder + w.decoder_bias
    gradient = -2 * a.T @ (b - out) / len(a)
    clear = np.abs(gradient) > 1e-4
    assert clear.mean() > 0.9
    wanted = -recipe.learning_rate * np.sign(gradient)
    np.testing.assert_allclose(np.asarray(found.skip)[clear], wanted[clear], rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*(L0|explained)")
def test_a_run_with_a_skip_connection_resumes_bit_for_bit_and_sparse_is_dense(skipping, tmp_path):
    x, y, _ = skipping
    few = SKIP | {"features": 256, "l0": 4, "steps": 60, "skip": True, "log_every": 10}
    few["recipe"] = dataclasses.replace(RECIPE, resample_every=15)
    whole = sae.train(x, targets=y, **few)
    assert whole.about["training"]["sparse"]

    def stop(step, entry):
        if step == 47:
            raise InterruptedError

    part = few | {"checkpoint_folder": tmp_path, "checkpoint_every": 20}
    with pytest.raises(InterruptedError):
        sae.train(x, targets=y, on_step=stop, **part)
    resumed = sae.train(x, targets=y, **part)
    assert resumed.training.resumed_from == 40
    assert_same(whole, resumed)
    np.testing.assert_array_equal(whole.skip, resumed.skip)
    with pytest.raises(ValueError, match="belong to another run: skip is True there and None here"):
        sae.train(x, targets=y, **part | {"skip": None})
    dense = sae.train(x, targets=y, sparse=False, **few)
    np.testing.assert_allclose(dense.skip, whole.skip, rtol=1e-2, atol=0.05)
    for name in ("reconstruction", "coefficient", "l0"):
        histories = (m.training.history[name] for m in (dense, whole))
        np.testing.assert_allclose(*histories, rtol=5e-3, err_msg=name)


@pytest.mark.parametrize("format", ["jaxtrelu", "saelens", "gemma_scope_2", "circuit_tracer"])
def test_a_skip_connection_is_saved_and_goes_on(skipping, skipped, tmp_path, format):
    x, y, _ = skipping
    name = {"saelens": "m"}.get(format, "layer_0.safetensors")
    sae.save(skipped, tmp_path / name, format=format)
    loaded = sae.load(tmp_path / name)
    np.testing.assert_allclose(loaded(x[:50]), skipped(x[:50]), rtol=1e-4, atol=1e-2)
    if format == "saelens":
        return
    recipe = dataclasses.replace(RECIPE, learning_rate=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        further = sae.train(
            3 * x[:500], targets=y[:500], start=loaded, l0=3, steps=1, recipe=recipe, held_out=0
        )
    np.testing.assert_allclose(further(x[:50]), skipped(x[:50]), rtol=1e-3, atol=0.05)
    np.testing.assert_allclose(further.skip, skipped.skip, rtol=1e-3, atol=0.01)
    with pytest.raises(ValueError, match="`start` has a skip connection: leave `skip` out"):
        sae.train(x, targets=y, start=loaded, skip=False, l0=3, steps=1)


def test_where_a_skip_connection_has_no_place(skipping, skipped, tmp_path):
    x, y, _ = skipping
    for run in (sae.train, sae.sweep):
        with pytest.raises(ValueError, match=r"`skip` is for a transcoder: .* Pass `targets`"):
            run(x, features=8, skip=True)
    with pytest.raises(TypeError, match="`skip` should be True or False, but is 'affine'"):
        sae.train(x, targets=y, features=8, skip="affine")
    for format in ("gemma_scope", "dictionary_learning", "llama_scope"):
        with pytest.raises(ValueError, match=r"no place for a .*skip connection"):
            sae.save(skipped, tmp_path / "m", format=format)


# sweeps


@pytest.mark.filterwarnings("ignore:.*(L0|explained|thresholds)")
def test_a_sweep_of_transcoders(skipping, skipped, tmp_path):
    """Each run is the one that `train` does, to rounding; a killed sweep goes on bit for bit."""
    x, y, _ = skipping
    recipe = dataclasses.replace(RECIPE, resample_every=10)
    few = {"targets": y, "features": 48, "steps": 25, "recipe": recipe, "skip": True}
    found = sae.sweep(x, l0=(3.0, 6.0), **few)
    assert [m.about["training"]["targets"] for m in found.models] == ["`targets`"] * 2
    for model, l0, figures in zip(found.models, found.targets, found.evaluations, strict=True):
        alone = sae.train(x, l0=l0, sparse=False, **few)
        assert float(model.output_scale) == float(alone.output_scale)
        np.testing.assert_allclose(model.skip, alone.skip, rtol=1e-2, atol=0.01)
        np.testing.assert_allclose(model(x[:20]), alone(x[:20]), rtol=1e-2, atol=1)
        aside, wanted = sae.held_out(model, x, y)
        judged = explained(wanted, np.asarray(model(aside)))
        assert figures.explained_variance == pytest.approx(judged, abs=1e-4)

    def stop(step, entry):
        if step == 17:
            raise InterruptedError

    part = few | {"checkpoint_folder": tmp_path, "checkpoint_every": 10}
    with pytest.raises(InterruptedError):
        sae.sweep(x, l0=(3.0, 6.0), on_step=stop, **part)
    resumed = sae.sweep(x, l0=(3.0, 6.0), **part)
    assert resumed.models[0].training.resumed_from == 10
    assert_same(found.models[1], resumed.models[1])
    np.testing.assert_array_equal(found.models[1].skip, resumed.models[1].skip)
    # From a model: the first step is taken from the very function.
    still = dataclasses.replace(RECIPE, learning_rate=1e-9)
    further = sae.sweep(x, targets=y, start=skipped, l0=(2.0, 3.0), steps=1, recipe=still)
    for model in further.models:
        assert model.features == 64 and model.about["training"]["start"]
        np.testing.assert_allclose(model(x[:50]), skipped(x[:50]), rtol=1e-3, atol=0.05)


@pytest.mark.slow  # the loss of both passes is compared below, their runs by those of autoencoders
@pytest.mark.filterwarnings("ignore:.*(L0|explained)")
def test_sparse_and_dense_runs_have_the_same_loss_curve(pairs):
    x, y = pairs
    few = {"features": 256, "l0": 1.5, "steps": 150, "recipe": RECIPE, "log_every": 5}
    dense, sparse = (sae.train(x, targets=y, sparse=s, **few) for s in (False, True))
    assert [m.about["training"]["sparse"] for m in (dense, sparse)] == [False, True]
    l0 = sparse.training.history["l0"]
    assert l0[0] > 256 / 32 > 1.3 * l0[-1]  # from dense products to lists
    for name in ("reconstruction", "threshold_50", "coefficient", "l0"):
        histories = (m.training.history[name] for m in (sparse, dense))
        np.testing.assert_allclose(*histories, rtol=2e-3, err_msg=name)


def test_the_loss_is_of_the_targets(pairs):
    """By its definition, in float64, and the same of both passes."""
    x, y = (values[:64].astype(np.float32) / 10 for values in pairs)
    weights = sae.initial_weights(jax.random.key(0), 128, x, RECIPE, y)
    w = jax.tree.map(lambda v: np.asarray(v, np.float64), weights)
    pi = x @ w.encoder.T + w.encoder_bias
    out = np.where(pi > w.threshold, pi, 0) @ w.decoder + w.decoder_bias
    wanted = np.mean(np.sum((y - out) ** 2, axis=1))
    for sparse in (False, True):
        _, terms = sae.loss(weights, x, 0.1, RECIPE, targets=y, sparse=sparse)
        assert float(terms.reconstruction) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("recipe", [sae.short_run(), sae.anthropic_2025()], ids=lambda r: r.name)
def test_encoder_and_decoder_start_independently(pairs, recipe):
    x, y = pairs
    for wanted in (y, x[::-1]):  # of one width, too, they are different spaces
        weights = sae.initial_weights(jax.random.key(0), 512, x, recipe, wanted)
        np.testing.assert_allclose(weights.decoder_bias, wanted.mean(axis=0), rtol=1e-4, atol=1e-4)
        width = min(D, wanted.shape[1])
        a, b = (np.ravel(v[:, :width]) for v in (weights.encoder, weights.decoder))
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    norms = np.linalg.norm(weights.decoder, axis=1)
    if recipe.unit_norm_decoder:
        np.testing.assert_allclose(norms, 1, rtol=1e-5)
    else:
        assert np.abs(weights.decoder).max() <= TO**-0.5 * (TO / D) ** 0.5


@pytest.mark.parametrize("kind", ["examples", "residuals"])
def test_revived_features_read_the_example_and_write_its_target(pairs, kind):
    x, y = (values[:40].astype(np.float32) for values in pairs)
    recipe = dataclasses.replace(RECIPE, resample_from=kind)
    weights = sae.initial_weights(jax.random.key(0), 6, x, recipe, y)
    silent = np.array([True, False, True, False, False, False])
    residual = np.random.default_rng(0).normal(size=y.shape).astype(np.float32)
    found = sae.revived(weights, silent, x, residual, jax.random.key(1), recipe, y)
    np.testing.assert_array_equal(found.decoder[~silent], weights.decoder[~silent])
    np.testing.assert_array_equal(found.encoder[~silent], weights.encoder[~silent])
    written = residual if kind == "residuals" else y - y.mean(axis=0)
    unit = lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True)  # noqa: E731
    for number in np.flatnonzero(silent):
        drawn = np.argmax(unit(written) @ found.decoder[number])
        np.testing.assert_allclose(found.decoder[number], unit(written[drawn]), atol=1e-4)
        read = unit(x[drawn] - x.mean(axis=0))
        np.testing.assert_allclose(unit(np.asarray(found.encoder[number])), read, atol=1e-4)
        assert float(found.encoder[number] @ x[drawn]) > float(found.threshold[number])


@pytest.mark.filterwarnings("ignore:.*(L0|explained)")
def test_a_run_with_revival_revives(pairs):
    x, y = pairs
    recipe = dataclasses.replace(RECIPE, resample_every=10, initial_threshold=8.0)
    model = sae.train(x, targets=y, **SHORT | {"recipe": recipe, "log_every": 1})
    silent = model.training.history["silent_share"]
    assert silent[:9].min() > 0.9 and silent[12] < 0.5


def test_an_interrupted_run_resumes_bit_for_bit(pairs, tmp_path):
    x, y = pairs
    whole = sae.train(x, targets=y, log_every=10, **SHORT)

    def stop(step, entry):
        if step == 47:
            raise InterruptedError

    part = SHORT | {"checkpoint_folder": tmp_path, "checkpoint_every": 20, "log_every": 10}
    with pytest.raises(InterruptedError):
        sae.train(x, targets=y, on_step=stop, **part)
    resumed = sae.train(x, targets=y, **part)
    assert resumed.training.resumed_from == 40
    assert_same(whole, resumed)
    other = y.copy()
    other[-1, -1] += 1
    with pytest.raises(ValueError, match="belong to another run: data is"):
        sae.train(x, targets=other, **part)
    with pytest.raises(ValueError, match="output dimension is 24 there and None here"):
        sae.train(x, **part)


@pytest.mark.filterwarnings("ignore:.*(L0|explained)")
def test_several_devices_share_pairs(pairs):
    x, y = pairs
    mesh = jax.make_mesh(
        (2, 2), ("examples", "features"), axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[:4],
    )  # fmt: skip
    few = SHORT | {"steps": 20, "log_every": 5}
    one, four = (sae.train(x, targets=y, mesh=m, **few) for m in (None, mesh))
    for name, column in one.training.history.items():
        np.testing.assert_allclose(four.training.history[name], column, rtol=1e-3, err_msg=name)


@pytest.mark.filterwarnings("ignore:.*(L0|explained)")
def test_files_give_the_run_that_arrays_give(pairs, tmp_path):
    x, y = pairs
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "y").mkdir()
    for number, rows in enumerate(np.array_split(y, 3)):
        np.save(tmp_path / "y" / f"{number}.npy", rows)
    few = SHORT | {"steps": 3}
    files = sae.train(tmp_path / "x.npy", targets=tmp_path / "y", **few)
    assert_same(sae.train(x, targets=y, **few), files)
    aside, wanted = sae.held_out(files, tmp_path / "x.npy", tmp_path / "y")
    assert len(aside) == len(wanted) > 500
    assert files.about["training"]["targets"] == "y"


def test_pairs_of_files_larger_than_memory_stay_together(tmp_path):
    """Row i of both says i: every batch has pairs, and every row that is not kept aside once."""
    number = np.arange(4000, dtype=np.float32)
    np.save(tmp_path / "x.npy", np.repeat(number[:, None], 4, axis=1))
    np.save(tmp_path / "y.npy", np.repeat(number[:, None].astype(np.float64), 7, axis=1))
    x = sae.open_rows(tmp_path / "x.npy", held_out=400)
    small = sae.Rows(x.array, "x", held_out=400, group_bytes=40_000)
    pairs = Pairs(small, sae.open_rows(tmp_path / "y.npy"))
    assert "in pieces" in pairs.order and (pairs.dimension, pairs.output_dimension) == (4, 7)
    seen = []
    for step in range(pairs._groups * (pairs.shuffled_together // 50)):  # an epoch
        batch = pairs.batch(step, 50)
        a, b = pairs.split(batch)
        assert a.shape == (50, 4) and b.shape == (50, 7)
        np.testing.assert_array_equal(a[:, 0], b[:, -1])
        seen.extend(a[:, 0].tolist())
    assert len(set(seen)) == len(seen)
    aside = pairs.held_out_rows[:, 0]
    np.testing.assert_array_equal(aside, pairs.held_out_targets[:, 0])
    assert not set(aside.tolist()) & set(seen)
    used = np.setdiff1d(number, aside).astype(np.float64)
    for statistics, width in zip(
        pairs._statistics(sae._rows.Processes(), None), (4, 7), strict=True
    ):
        assert statistics.variance == pytest.approx(width * used.var(), rel=1e-9)
        assert statistics.mean_norm == pytest.approx(width**0.5 * used.mean(), rel=1e-9)


def test_what_is_refused(pairs):
    x, y = pairs
    with pytest.raises(ValueError, match="each of the 6,000 rows of the data, but `targets` has 5"):
        sae.train(x, targets=y[:5], **SHORT)
    bad = y.copy()
    bad[42, 3] = np.nan
    with pytest.raises(ValueError, match="`targets` holds NaN or infinity in row 42"):
        sae.train(x, targets=bad, **SHORT)
    with pytest.raises(ValueError, match="the data holds NaN or infinity in row 7"):
        sae.train(np.where(np.arange(N)[:, None] == 7, np.nan, x), targets=y, **SHORT)
    with pytest.raises(ValueError, match="`targets` has the same values in all rows"):
        sae.train(x, targets=np.ones_like(y), **SHORT)
    with pytest.raises(ValueError, match="`targets` should have one example per row"):
        sae.train(x, targets=y[:, 0], **SHORT)
    for bad, words in (
        ((x, y), "should be one matrix .*, but is a tuple of 2 whose elements differ in shape"),
        ([[1.0, 2.0], [3.0]], "should be one matrix .*, but is a list of 2 whose elements differ"),
        ([], r"is empty: its shape is \(0,\)"),
    ):
        for call in (sae.train, sae.sweep):
            with pytest.raises(ValueError, match=f"^`targets` {words}"):
                call(x, targets=bad, features=8)
            with pytest.raises(ValueError, match=f"^the data {words}"):
                call(bad, features=8)
    with pytest.raises(
        TypeError, match=r"`skip` should be .*, but is an array of shape \(16, 24\)\."
    ):
        sae.train(x, targets=y, skip=np.zeros((D, 24)), features=8)
    with pytest.raises(ValueError, match="`steps` should be a whole number ≥ 1, but is '8'"):
        sae.train(x, features=8, steps="8")


def test_masks_are_not_lost(pairs, trained):
    """Nor are masked arrays refused in which nothing is masked, as readers of files return them."""
    (x, y), few = (v[:400] for v in pairs), {"features": 8, "steps": 1, "held_out": 0}
    hidden = [np.ma.masked_greater(v, np.sort(v, axis=None)[-3]) for v in (x, y)]
    words = "is a masked array, of which 2 entries are masked: pass the rows that have none, or"
    for call in (sae.train, sae.sweep):
        with pytest.raises(ValueError, match=f"^the data {words}"):
            call(hidden[0], features=8)
        with pytest.raises(ValueError, match=f"^`targets` {words}"):
            call(x, targets=hidden[1], features=8)
        with pytest.raises(ValueError, match=r"^an element of the data is a masked array"):
            call(list(hidden[0]), features=8)
    for call in (sae.evaluate, sae.held_out):
        with pytest.raises(ValueError, match=f"^x {words}"):
            call(trained, hidden[0], targets=y)
        with pytest.raises(ValueError, match=f"^`targets` {words}"):
            call(trained, x, targets=hidden[1])
    for call in (trained, trained.encode, trained.encode_sparse):
        with pytest.raises(ValueError, match=f"^x {words}"):
            call(hidden[0])
    with pytest.raises(ValueError, match=f"^mine {words}"):
        sae.Rows(hidden[0], "mine")
    recipe, rngs = sae.short_run(), nnx.Rngs(0)
    with pytest.raises(ValueError, match=f"^`sample` {words}"):
        sae.SparseAutoencoder(8, hidden[0], recipe=recipe, rngs=rngs)
    with pytest.raises(ValueError, match=r"^an element of `sample` is a masked array"):
        sae.SparseAutoencoder(8, list(hidden[0]), recipe=recipe, rngs=rngs)
    module = sae.SparseAutoencoder(8, x, recipe=recipe, rngs=rngs)
    for call in (module, module.encode, lambda x: module.loss(x, 1.0, sparse=False)):
        with pytest.raises(ValueError, match=f"^x {words}"):
            call(hidden[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a step
        plain, same = (sae.train(v, **few) for v in (x, np.ma.asarray(x)))
    np.testing.assert_array_equal(plain.weights.encoder, same.weights.encoder)


def test_a_transcoder_goes_on_from_one(pairs, trained):
    """The first step is taken from the very function, whatever the scales of the new run."""
    x, y = pairs
    recipe = dataclasses.replace(RECIPE, learning_rate=1e-9)
    for unit_norm in (True, False):
        changed = dataclasses.replace(recipe, unit_norm_decoder=unit_norm)
        rows = rows_of(sae.Rows(3 * x[:500] / 3, held_out=0), 0, None, y[:500])
        further = sae.train(rows, start=trained, l0=4, steps=1, recipe=changed)
        assert float(further.output_scale) != float(trained.output_scale)
        np.testing.assert_allclose(further(x[:50]), trained(x[:50]), rtol=1e-3, atol=0.05)
    with pytest.raises(ValueError, match=r"outputs of dimension 24, but .* is of 16: a transcoder"):
        sae.train(x, start=trained)


@pytest.mark.parametrize(
    "format", ["jaxtrelu", "saelens", "circuit_tracer", "gemma_scope", "gemma_scope_2"]
)
def test_saved_and_loaded(pairs, trained, tmp_path, format):
    x, _ = pairs
    name = {"circuit_tracer": "layer_0.safetensors", "jaxtrelu": "m.safetensors"}.get(format, "m")
    sae.save(trained, tmp_path / name, format=format)
    loaded = sae.load(tmp_path / name)
    np.testing.assert_allclose(loaded(x[:50]), trained(x[:50]), rtol=1e-4, atol=1e-2)
    assert loaded.is_transcoder
    if format == "jaxtrelu":
        assert loaded.about == trained.about and loaded.recipe == trained.recipe
        assert sae.held_out(loaded, *pairs) is not None


@pytest.mark.parametrize("scale", [1e-30, 1e18])
def test_figures_hold_at_any_scale(pairs, trained, scale):
    """Those of float64 NumPy; squares of these in float32 are 0 or infinite."""
    x, y = pairs
    weights = jax.tree.map(np.asarray, trained.weights)
    units = {"input_scale": float(trained.input_scale), "output_scale": trained.output_scale}
    base = sae.evaluate(sae.Autoencoder(weights, **units), x[:500], targets=y[:500]).numbers()
    far = sae.Autoencoder(
        weights, input_scale=units["input_scale"] / scale,
        output_scale=float(units["output_scale"]) / scale,
    )  # fmt: skip
    a, b = (np.float32(scale) * v[:500] for v in (x, y))
    found = sae.evaluate(far, a, targets=b)
    out = np.asarray(far(a), np.float64)
    assert found.explained_variance == pytest.approx(explained(b, out), rel=1e-5)
    exact = b.astype(np.float64)
    norms = [np.linalg.norm(v, axis=1) for v in (exact, out)]
    assert found.norm_ratio == pytest.approx((norms[1] / norms[0]).mean(), rel=1e-5)
    assert found.norm_in == pytest.approx(norms[0].mean(), rel=1e-5)
    for name, power in {"mean_squared_error": 2, "norm_out": 1, "cosine_similarity": 0}.items():
        assert found.numbers()[name] == pytest.approx(base[name] * scale**power, rel=1e-4), name
    json.dumps(found.to_saebench(far), allow_nan=False)


def test_numbers_of_other_kinds_are_refused_in_words(pairs, trained):
    x, y = pairs
    for bad, reason in (
        (y > 0, r"holds bool. Pass array.astype\(np.float32\)"),
        (y + 1j, "holds complex64. Pass array.real, or both parts side by side"),
        (y.astype(str), "holds <U32. Pass an array of numbers"),
    ):
        for call in (sae.train, sae.sweep):
            with pytest.raises(TypeError, match=f"`targets` should hold .*{reason}"):
                call(x, targets=bad, features=8)
        with pytest.raises(TypeError, match=f"`targets` should hold .*{reason}"):
            sae.evaluate(trained, x, targets=bad)
    with pytest.raises(ValueError, match=r"shape \(6000,\). Pass array\[:, None\]"):
        sae.train(x, targets=y[:, 0], **SHORT)


@pytest.mark.filterwarnings("ignore:.*(L0|explained)")
def test_data_off_their_centre_are_named(pairs, tmp_path):
    """Inputs or targets, with the figure; and not where they lie about 0."""
    x, y = (np.asarray(v, np.float64) - v.mean(axis=0) for v in pairs)
    spread = [np.sqrt((v**2).sum(axis=1).mean()) for v in (x, y)]
    few = {"features": 8, "l0": 2, "steps": 1, "recipe": RECIPE, "held_out": 0}
    far = x + 20 * spread[0] / D**0.5
    for call in (sae.train, lambda x, **more: sae.sweep(x, **more | {"l0": (2,)})):
        with pytest.warns(
            UserWarning, match=r"the data lies off centre: .* is 20 times .* Subtract"
        ):
            call(far, **few)
    with pytest.warns(
        UserWarning, match="`targets` lies off centre: the norm of the mean is 5 tim"
    ):
        sae.train(x, targets=y + 5 * spread[1] / TO**0.5, **few)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        model = sae.train(x + 2 * spread[0] / D**0.5, targets=y, **few)
    assert model.is_transcoder
    assert not [str(w.message) for w in found if "off centre" in str(w.message)]


def test_infinity_is_refused_without_other_noise(pairs):
    x, y = pairs
    bad = y.copy()
    bad[[0, 5], 2] = np.inf, -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="infinity in rows 0, 5 "):
            sae.train(x, targets=bad, **SHORT)


def test_command(pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", pairs[0])
    np.save("out.npy", pairs[1])
    run = ["sae", "train", "in.npy", "--targets", "out.npy", "--features", "64", "--l0", "5"]
    run += ["--steps", "200", "--batch-size", "128", "--output", "there"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(run) == 0
    text = " ".join(printed.getvalue().split())
    assert "Transcoder from in.npy to out.npy" in text and "6,000 x 16 to 24" in text
    report = json.loads((tmp_path / "there" / "sae.json").read_text())
    assert report["data"]["targets"] == "out.npy" and report["data"]["output_dimension"] == 24
    assert report["output_scale"] != report["input_scale"] and report["skip"] is False
    assert report["recipe"]["initialisation"] == "independent_unit"
    model = sae.load("there")
    assert model.output_dimension == 24
    aside, wanted = sae.held_out(model, "in.npy", "out.npy")
    figures = sae.evaluate(model, aside, targets=wanted)
    evaluation = report["evaluation"]
    assert evaluation["explained_variance"] == pytest.approx(figures.explained_variance)
    assert evaluation["rows"] == len(aside)
    capsys.readouterr()
    assert main(["sae", "eval", "there", "in.npy", "--targets", "out.npy"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "the rows kept aside when it was trained of in.npy, targets out.npy" in out
    assert "mean of the targets'" in out and "of target and output" in out and "of row" not in out
    assert main(["sae", "eval", "there", "in.npy"]) == 2
    assert "is a transcoder" in capsys.readouterr().err
    assert f"{figures.explained_variance:.4f}" in out
    page = ["sae", "report", "there", "in.npy", "--targets", "out.npy", "--rows", "500"]
    assert main(page) == 0
    text = (tmp_path / "report.html").read_text()
    assert "rows kept aside in training" in text and "Transcoder from in.npy to out.npy" in text
    capsys.readouterr()
    np.save("out.npy", pairs[1][:-1])
    assert main(run) == 2
    error = capsys.readouterr().err
    assert "--targets should have a row for each of the 6,000 rows of in.npy" in error
    assert "`" not in error and "out.npy has 5,999" in error
    assert main([*run[:2], "in.npy", "--start", "there", "--output", "on"]) == 2
    assert "a transcoder is trained on with --targets" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*(L0|explained|thresholds)")
def test_commands_with_a_skip_connection(skipping, skipped, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", skipping[0])
    np.save("out.npy", skipping[1])
    sae.save(skipped, "start", format="saelens")
    few = ["in.npy", "--targets", "out.npy", "--steps", "2", "--batch-size", "64"]
    assert main(["sae", "train", *few, "--features", "32", "--skip", "--output", "one"]) == 0
    assert "Transcoder with a skip connection" in " ".join(capsys.readouterr().out.split())
    assert np.abs(sae.load("one").skip).max() > 0
    assert json.loads((tmp_path / "one" / "sae.json").read_text())["skip"] is True
    sweep = ["sae", "sweep", *few, "--start", "start", "--l0", "2", "3", "--output", "several"]
    assert main(sweep) == 0
    assert "Transcoders from in.npy to out.npy" in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "several" / "sweep.json").read_text())
    assert found["targets"] == "out.npy" and len(found["runs"]) == 2
    model = sae.load("several/l0-2-seed-0")
    assert model.features == 64 and model.about["training"]["initialisation"] == "start"
    np.testing.assert_allclose(model.skip, skipped.skip, atol=0.5)
    for command in ("train", "sweep"):
        assert main(["sae", command, "in.npy", "--skip", "--output", "no"]) == 2
        error = capsys.readouterr().err
        assert "--skip is for a transcoder" in error and "Pass --targets" in error
    assert not (tmp_path / "no").exists()
