"""Training that begins with a model: the same function before the first step, and on from there."""

import dataclasses

import numpy as np
import pytest

import jaxtrelu
from jaxtrelu import sae
from jaxtrelu.__main__ import main

RNG = np.random.default_rng(0)
X = (RNG.laplace(size=(600, 24)) @ RNG.normal(size=(24, 8))).astype(np.float32)
RECIPE = dataclasses.replace(sae.short_run(), batch_size=64)


def foreign(**options):
    """A model as another library writes one: rows of any norm, thresholds in raw units."""
    rng = np.random.default_rng(1)
    encoder, decoder = rng.normal(size=(2, 16, 8)) * rng.uniform(0.5, 2, (2, 16, 1))
    weights = sae.Weights(
        encoder, rng.normal(size=16), rng.uniform(1, 3, 16), decoder, rng.normal(size=8)
    )
    return sae.Autoencoder(weights, **options)


KINDS = {
    "plain": {},
    "scaled": {"input_scale": 0.3, "output_scale": 0.3},
    "two scales": {"input_scale": 0.3, "output_scale": 0.7},
    "bias subtracted": {"subtract_decoder_bias": True},
}


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_first_step_is_taken_from_the_function_itself(kind, unit_norm):
    start = foreign(**KINDS[kind])
    recipe = dataclasses.replace(RECIPE, unit_norm_decoder=unit_norm, learning_rate=1e-9)
    with pytest.warns(UserWarning, match="L0"):
        model = sae.train(X, start=start, l0=4, steps=1, recipe=recipe)
    assert float(model.input_scale) != pytest.approx(float(start.input_scale))
    np.testing.assert_allclose(model(X[:50]), start(X[:50]), rtol=1e-4, atol=1e-3)
    assert np.mean((model.encode(X) > 0) != (start.encode(X) > 0)) < 1e-3
    norms = np.linalg.norm(model.weights.decoder, axis=1)
    assert np.allclose(norms, 1, atol=1e-5) == unit_norm


@pytest.mark.filterwarnings("ignore:.*L0")
def test_goes_on_where_it_was():
    first = sae.train(X, features=32, l0=4, steps=150, recipe=RECIPE)
    further = sae.train(X, start=first, l0=4, steps=50)
    afresh = sae.train(X, features=32, l0=4, steps=50, recipe=RECIPE)
    last = first.about["training"]["coefficient"]
    assert further.recipe == dataclasses.replace(first.recipe, coefficient=last)
    assert further.training.history["coefficient"][0] == pytest.approx(last, rel=0.5)
    assert first.about["training"]["start"] is None and further.about["training"]["start"]
    lost = [m.training.history["reconstruction"][0] for m in (further, afresh)]
    assert lost[0] < 0.5 * lost[1]
    distance = further.training.history["threshold_distance"][-1]
    moved = np.abs(further.weights.threshold - first.weights.threshold).mean()
    assert distance == pytest.approx(moved, rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*L0")
@pytest.mark.filterwarnings("ignore:.*L0")
def test_a_ramp_is_not_gone_through_again():
    late = dataclasses.replace(
        RECIPE, coefficient=0.5, coefficient_warmup=0.5, steer_from=0.25, resample_every=0.1
    )
    first = sae.train(X, features=32, l0=4, steps=300, recipe=late, sparse=False)
    further = sae.train(X, start=first, l0=4, steps=60, log_every=5, sparse=False)
    taken = further.recipe
    assert taken.steer_from == taken.coefficient_warmup == taken.resample_every == 0
    last = first.about["training"]["coefficient"]
    assert further.training.history["coefficient"][0] == pytest.approx(last, rel=0.5)
    again = sae.train(X, start=first, l0=4, steps=60, log_every=5, recipe=late, sparse=False)
    # Where it is asked for: at step 4 of a ramp of 30.
    assert again.training.history["coefficient"][0] == pytest.approx(0.5 * 4 / 30, rel=0.05)


def test_what_a_file_says_of_its_model_is_kept():
    known = {"metadata": {"hook_name": "blocks.3"}}
    first = foreign(about={"saelens": known, "training": {"steps": 1}})
    further = sae.train(X, start=first, l0=4, steps=2, recipe=RECIPE)
    assert further.about["saelens"] == known
    assert further.about["training"]["steps"] == 2


def test_what_is_shown_of_a_model_is_one_line():
    model = foreign()
    assert repr(model) == "Autoencoder(8 -> 16 -> 8)"
    shown = repr(sae.evaluate(model, X[:64]))
    assert shown.startswith("Evaluation(") and "l0=" in shown and "\n" not in shown


def test_a_checkpoint_is_of_one_start(tmp_path):
    def trained(start, steps):
        return sae.train(
            X, start=start, l0=4, steps=steps, recipe=RECIPE, checkpoint_folder=tmp_path,
            checkpoint_every=5,
        )  # fmt: skip

    start = foreign()
    whole = sae.train(X, start=start, l0=4, steps=20, recipe=RECIPE)
    trained(start, 20)
    assert trained(start, 20).training.resumed_from == 20
    np.testing.assert_array_equal(trained(start, 20).weights.encoder, whole.weights.encoder)
    with pytest.raises(ValueError, match="start is"):
        trained(foreign(input_scale=0.5, output_scale=0.5), 20)


def test_refusals():
    with pytest.raises(TypeError, match="pass `features`"):
        sae.train(X)
    with pytest.raises(TypeError, match="`start` should be an Autoencoder, but is int"):
        sae.train(X, start=3)
    with pytest.raises(FileNotFoundError, match="there is no file or folder 'nowhere'"):
        sae.train(X, start="nowhere")
    with pytest.raises(ValueError, match="has 16 features, but `features` is 32"):
        sae.train(X, start=foreign(), features=32)
    with pytest.raises(ValueError, match="of dimension 8, but the rows are of 6"):
        sae.train(X[:, :6], start=foreign())
    with pytest.raises(
        ValueError, match=r"normalises each row \(layer_norm\): such models are not"
    ):
        sae.train(X, start=foreign(normalisation="layer_norm"))


@pytest.mark.filterwarnings("ignore:.*L0")
def test_a_path_is_a_start(tmp_path):
    sae.save(foreign(), tmp_path / "there", format="saelens")
    runs = [
        sae.train(X, start=start, l0=4, steps=2, recipe=RECIPE)
        for start in (tmp_path / "there", str(tmp_path / "there"), sae.load(tmp_path / "there"))
    ]
    for one in runs[:2]:
        np.testing.assert_array_equal(one.weights.encoder, runs[2].weights.encoder)
    assert runs[0].about == runs[2].about


@pytest.mark.filterwarnings("ignore:.*L0")
def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    sae.save(foreign(), "there", format="saelens")
    command = ["sae", "train", "x.npy", "--l0", "4", "--steps", "20", "--batch-size", "64"]
    command += ["--output", "out", "--start", "there"]
    assert main(command) == 0
    assert sae.load("out/sae.safetensors").features == 16
    capsys.readouterr()
    assert main([*command, "--output", "on", "--start", "out"]) == 0  # λ goes on as well
    first, second = (sae.load(f"{name}/sae.safetensors") for name in ("out", "on"))
    assert second.recipe.coefficient == first.about["training"]["coefficient"]
    assert second.about["training"]["start"] != first.about["training"]["start"]
    capsys.readouterr()
    assert main([*command, "--features", "9"]) == 2
    assert "--features is 9, but the model of --start has 16" in capsys.readouterr().err
    np.save("x.npy", X[:, :5])
    assert main(command) == 2
    assert "--start is of dimension 8, but the rows are of 5" in capsys.readouterr().err


def test_surrogate_of_the_recipe_counts():
    recipe = dataclasses.replace(RECIPE, surrogate=jaxtrelu.Triangle(0.2))
    with pytest.warns(UserWarning, match="L0"):
        model = sae.train(X, start=foreign(), l0=4, steps=2, recipe=recipe)
    assert model.recipe.surrogate == jaxtrelu.Triangle(0.2)
