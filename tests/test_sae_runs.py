"""What runs do beyond the plain one: other penalties, revival, extension, several at once."""

import dataclasses
import functools
import json
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrelu import sae
from jaxtrelu.__main__ import main
from jaxtrelu.sae import _settings, _step, _training

RECIPE = dataclasses.replace(sae.short_run(), batch_size=128, learning_rate_warmup=10)
WORLD = sae.PlantedWorld(features=32, dimension=16, mean_l0=3.0)


@functools.cache
def planted():
    return np.asarray(WORLD.sample(jax.random.key(0), 4000)[0])


def rows():
    return sae.Rows(planted(), "planted", held_out=400)


def settings(**changes):
    return sae.Settings(
        **{"features": 48, "steps": 60, "recipe": RECIPE, "target_l0": 5.0, "log_every": 10}
        | changes
    )


def assert_same(a, b):
    for name, first, second in zip(sae.Weights._fields, a, b, strict=True):
        np.testing.assert_array_equal(first, second, err_msg=name)


# the quadratic penalty


def test_the_quadratic_penalty_and_its_gradient():
    recipe = dataclasses.replace(RECIPE, penalty="quadratic_l0")
    weights = sae.initial_weights(jax.random.key(0), 24, planted()[:64], recipe)
    x = jnp.asarray(planted()[:64])
    _, terms = sae.loss(weights, x, 2.0, recipe, target_l0=3.0)
    l0 = float(terms.l0)
    assert l0 > 0 and float(terms.penalty) == pytest.approx((l0 / 3 - 1) ** 2, rel=1e-5)

    def gradient(recipe, coefficient, **options):
        loss = lambda w: sae.loss(w, x, coefficient, recipe, **options)[0]  # noqa: E731
        return jax.grad(loss)(weights).threshold

    # d/dL0 of 2 (L0/3 − 1)² is the λ of the linear penalty with the same gradient.
    linear = gradient(RECIPE, 2 * 2 * (l0 / 3 - 1) / 3)
    found = gradient(recipe, 2.0, target_l0=3.0)
    np.testing.assert_allclose(found, linear, rtol=1e-4, atol=1e-6)
    assert np.abs(found).max() > 0
    with pytest.raises(ValueError, match="is about a target: pass a `target_l0`"):
        sae.loss(weights, x, 2.0, recipe)
    with pytest.raises(ValueError, match="is about a target: pass a `target_l0`"):
        settings(recipe=recipe, target_l0=None)


def test_the_quadratic_penalty_brings_l0_to_its_target():
    recipe = dataclasses.replace(RECIPE, penalty="quadratic_l0", coefficient=200.0)
    assert settings(recipe=recipe).controller() is None
    result = sae.run(rows(), settings(recipe=recipe, steps=400))
    assert result.history["l0"][-5:].mean() == pytest.approx(5, rel=0.15)
    np.testing.assert_allclose(result.history["coefficient"], 200, rtol=1e-6)
    assert sae.gemma_scope_2() == dataclasses.replace(
        sae.gemma_scope(), name="gemma_scope_2", penalty="quadratic_l0", coefficient=10.0
    )


# revival


@pytest.mark.parametrize("source", ["examples", "residuals"])
def test_silent_features_are_given_examples_with_large_errors(source):
    weights = sae.initial_weights(jax.random.key(0), 6, planted()[:64], RECIPE)
    weights = weights._replace(encoder=weights.encoder * 3, encoder_bias=jnp.ones(6))
    silent = jnp.array([False, True, False, False, True, False])
    left = np.random.default_rng(5).normal(size=planted().shape[1]).astype(np.float32)
    residual = jnp.zeros((64, len(left))).at[7].set(left)  # all the probability is on one example
    recipe = dataclasses.replace(RECIPE, resample_from=source)
    found = sae.revived(
        weights, silent, jnp.asarray(planted()[:64]), residual, jax.random.key(1), recipe
    )
    direction = left if source == "residuals" else planted()[7] - np.asarray(weights.decoder_bias)
    direction = direction / np.linalg.norm(direction)
    for i in (1, 4):
        np.testing.assert_allclose(found.decoder[i], direction, rtol=1e-5)
        np.testing.assert_allclose(found.encoder[i], 0.2 * 3 * direction, rtol=1e-5)
        pi = max(0.0, float(0.6 * direction @ planted()[7]))
        assert found.encoder_bias[i] == 0
        assert found.threshold[i] == pytest.approx(min(RECIPE.initial_threshold, pi / 2), rel=1e-5)
    for i in (0, 2, 3, 5):
        assert all((a[i] == b[i]).all() for a, b in zip(found[:4], weights[:4], strict=True))


@pytest.mark.parametrize(
    "change",
    [{"resample_until": 0.0}, {"resample_until": 1.5}, {"resample_from": "noise"}],
    ids=str,
)
def test_what_revival_cannot_be_told(change):
    with pytest.raises(ValueError, match=f"`{next(iter(change))}` of a recipe should be"):
        dataclasses.replace(RECIPE, **change)


def test_only_features_that_were_silent_for_the_period_start_again():
    recipe = dataclasses.replace(RECIPE, resample_every=0.25, adam_b1=0.9)
    run = settings(recipe=recipe, steps=40)
    assert recipe.resampling_steps(40) == 10 and RECIPE.resampling_steps(40) == 0
    assert [s for s in range(1, 41) if _step.revives_after(s, run)] == [10, 20]
    longer = dataclasses.replace(run, recipe=dataclasses.replace(recipe, resample_until=0.75))
    assert [s for s in range(1, 41) if _step.revives_after(s, longer)] == [10, 20, 30]
    state = sae.initial_state(run, planted()[:128])
    for _ in range(3):
        state, terms = sae.train_step(state, planted()[:128], 1.0, run)
    np.testing.assert_array_equal(np.asarray(state.silent)[np.asarray(terms.opened)], 0)
    state = state._replace(silent=jnp.zeros(48, jnp.int32).at[jnp.array([5, 9])].set(10))
    before = jax.tree.map(np.asarray, state)
    after = _step.revive(state, planted()[:128], 1.0, run)
    changed = (np.asarray(after.weights.decoder) != before.weights.decoder).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [5, 9]
    assert not np.asarray(after.silent)[[5, 9]].any()
    moments = [
        m
        for m in jax.tree.leaves(after.optimizer, is_leaf=lambda n: isinstance(n, sae.Weights))
        if isinstance(m, sae.Weights)
    ]
    assert len(moments) == 2
    for moment in moments:
        rest = np.delete(np.asarray(moment.decoder), [5, 9], axis=0)
        assert not np.asarray(moment.decoder)[[5, 9]].any() and rest.any()


def test_a_run_with_revival_leaves_fewer_dead_and_resumes_bit_for_bit(tmp_path):
    # Started so high that most features never open.
    start = {"initial_threshold": 5.0, "batch_size": 64}
    plain, reviving = (
        settings(steps=120, recipe=dataclasses.replace(RECIPE, **start, resample_every=every))
        for every in (0, 20)
    )
    dead = {}
    for name, run in (("plain", plain), ("reviving", reviving)):
        result = sae.run(rows(), run)
        model = sae.Autoencoder(result.weights, input_scale=result.scale)
        dead[name] = len(sae.dead_features(model, planted()).features)
    assert dead["reviving"] < dead["plain"] / 2

    class StopError(Exception):
        pass

    def stop(step, entry):
        if step == 44:
            raise StopError

    part = {"checkpoint_folder": tmp_path, "checkpoint_every": 15}
    with pytest.raises(StopError):
        sae.run(rows(), reviving, on_step=stop, **part)
    resumed = sae.run(rows(), reviving, **part)
    assert resumed.resumed_from == 30
    assert_same(resumed.weights, result.weights)


# steering that begins late


LATE = dataclasses.replace(
    RECIPE, coefficient=0.5, coefficient_warmup=0.5, steer_from=0.25, initial_norm=0.5,
    unit_norm_decoder=False,
)  # fmt: skip


def test_the_coefficient_ramps_up_until_it_is_steered(tmp_path):
    late = settings(recipe=LATE, steps=600, log_every=20)
    fixed = settings(
        recipe=dataclasses.replace(LATE, steer_from=0.0), steps=600, log_every=20, target_l0=None
    )
    steered, free = (sae.run(rows(), run).history for run in (late, fixed))
    # What is recorded is λ of the step, counted from 0: a ramp to 0.5 in 300 steps.
    ramp = 0.5 * np.minimum(np.arange(19, 600, 20) / 300, 1)
    np.testing.assert_allclose(free["coefficient"], ramp, rtol=1e-5)
    np.testing.assert_array_equal(steered["l0"][:7], free["l0"][:7])  # steered from step 150 on
    assert (np.abs(steered["coefficient"][9:] / ramp[9:] - 1) > 0.01).all()
    assert steered["l0"][-5:].mean() == pytest.approx(5, rel=0.1)
    assert abs(free["l0"][-5:].mean() / 5 - 1) > 0.15

    part = {"checkpoint_folder": tmp_path, "checkpoint_every": 20}
    short = dataclasses.replace(late, steps=40)

    def stop(step, entry):
        if step == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sae.run(rows(), short, on_step=stop, **part)
    resumed = sae.run(rows(), short, **part)
    assert resumed.resumed_from == 20
    assert_same(resumed.weights, sae.run(rows(), short).weights)


def test_a_file_keeps_how_the_run_began(tmp_path):
    recipe = dataclasses.replace(LATE, input_scaling=2.5)
    model = sae.train(planted(), features=48, l0=5, steps=20, recipe=recipe, held_out=0)
    norms = np.linalg.norm(model.input_scale * planted(), axis=1)
    assert norms.mean() == pytest.approx(2.5, rel=1e-3)
    sae.save(model, tmp_path / "model.safetensors")
    assert sae.load(tmp_path / "model.safetensors").recipe == recipe


def test_a_sweep_steers_late_as_a_run_does():
    options = {"features": 48, "steps": 60, "recipe": LATE, "log_every": 10}
    found = sae.sweep(rows(), l0=(4.0, 8.0), **options)
    for model, l0 in zip(found.models, (4.0, 8.0), strict=True):
        one = sae.run(rows(), settings(recipe=LATE, target_l0=l0, sparse=False))
        np.testing.assert_allclose(
            model.training.history["coefficient"], one.history["coefficient"], rtol=1e-3
        )


@pytest.mark.parametrize("wrong", [-0.1, 1.0, math.nan])
def test_what_steering_cannot_begin_at(wrong):
    with pytest.raises(ValueError, match="`steer_from` of a recipe should be a fraction"):
        dataclasses.replace(RECIPE, steer_from=wrong)


def test_steering_late_without_a_target_has_no_effect_and_is_refused():
    with pytest.raises(ValueError, match=r"steered to a target, .* pass a `l0`, or leave it out"):
        sae.train(planted(), features=48, steps=20, recipe=LATE)
    with pytest.raises(ValueError, match='and with the penalty "quadratic_l0" it is not'):
        dataclasses.replace(LATE, penalty="quadratic_l0")


def test_checkpoints_from_before_these_settings_go_on():
    plain = _settings.identity_of(settings(), rows(), "data")
    assert not {"recipe.initial_norm", "recipe.steer_from"} & set(plain)
    later = _settings.identity_of(settings(recipe=LATE), rows(), "data")
    assert later["recipe.initial_norm"] == "0.5" and later["recipe.steer_from"] == "0.25"


# extension and a fresh start


def test_a_finished_run_is_extended(tmp_path):
    """Where the schedules do not depend on the length, into the very run of that length."""
    flat = dataclasses.replace(RECIPE, learning_rate_decay=0.0)
    short, long = (settings(recipe=flat, steps=s, log_every=e) for s, e in ((30, 10), (60, 20)))
    first = sae.run(rows(), short, checkpoint_folder=tmp_path)
    extended = sae.run(rows(), long, checkpoint_folder=tmp_path)
    assert (first.resumed_from, extended.resumed_from) == (0, 30)
    assert extended.history["step"].tolist() == [10, 20, 30, 40, 60]
    assert_same(extended.weights, sae.run(rows(), long).weights)
    with pytest.raises(ValueError, match="steps is 60 there and 30 here"):
        sae.run(rows(), short, checkpoint_folder=tmp_path)
    with pytest.raises(ValueError, match=r"target_l0 is 5.0 there and 4.0 here\. .*fresh=True"):
        sae.run(rows(), settings(recipe=flat, steps=90, target_l0=4.0), checkpoint_folder=tmp_path)
    again = sae.run(rows(), short, checkpoint_folder=tmp_path, fresh=True)
    assert again.resumed_from == 0
    assert_same(again.weights, first.weights)


# warnings


def test_what_a_run_did_not_reach_is_said():
    words = r"L0 is \S+ at the end of the run, and 1\.6 was asked"
    with pytest.warns(UserWarning, match=words) as warned:
        sae.run(rows(), settings(steps=3, target_l0=1.6))
    assert {w.filename for w in warned} == {__file__}  # not a line of the library
    with pytest.warns(UserWarning, match=words) as warned:
        sae.train(planted(), features=48, steps=3, l0=1.6, recipe=RECIPE)
    assert {w.filename for w in warned} == {__file__}
    frozen = dataclasses.replace(RECIPE, surrogate=dataclasses.replace(RECIPE.surrogate))
    history = {name: np.full(9, 1e-3) for name in _training.HISTORY} | {"l0": np.full(9, 5.0)}
    (said,) = _training.shortcomings(history, settings(recipe=frozen, steps=500), 5.0)
    assert "the thresholds moved by 0.001 on average" in said
    assert "0.13 entries per feature and batch" in said  # a share of .001, of 128 examples
    assert not _training.shortcomings(history, settings(steps=50), 5.0)  # too early to say
    worse = history | {"reconstruction": np.linspace(0.2, 1.8, 9)}  # the last five: 1.4
    (said,) = _training.shortcomings(worse, settings(steps=50), 5.0)
    assert "the explained variance is -0.4 at the end of the run" in said
    quadratic = dataclasses.replace(RECIPE, penalty="quadratic_l0")
    (said,) = _training.shortcomings(history, settings(recipe=quadratic), 4.0)
    assert "a larger coefficient brings it nearer" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sae.run(rows(), settings(steps=400, target_l0=4.0))


# several at once


def test_a_sweep_is_its_runs():
    found = sae.sweep(rows(), features=48, l0=(4.0, 8.0), seeds=(0, 3), steps=60, recipe=RECIPE)
    assert isinstance(found, sae.Sweep)
    assert found.targets == (4.0, 4.0, 8.0, 8.0) and found.seeds == (0, 3, 0, 3)
    for place, model in enumerate(found.models):
        alone = settings(target_l0=found.targets[place], seed=found.seeds[place], log_every=3)
        result = sae.run(rows(), dataclasses.replace(alone, sparse=False))
        for name, a, b in zip(sae.Weights._fields, model.weights, result.weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3, err_msg=name)
        np.testing.assert_allclose(
            model.training.history["l0"], result.history["l0"], rtol=0.02, atol=0.1
        )
    lines = found.table()
    assert lines[2]["target_l0"] == 8.0 and lines[2]["seed"] == 0
    assert lines[2]["l0"] == found.evaluations[2].l0
    assert found.to_csv().splitlines()[0].startswith("target_l0,coefficient,seed,rows,explained")
    assert len(found.to_csv().splitlines()) == 5


def test_a_sweep_over_the_coefficient_and_its_resumption(tmp_path):
    options = {"features": 32, "coefficients": (0.5, 8.0), "steps": 40, "recipe": RECIPE}
    whole = sae.sweep(rows(), **options)
    assert whole.targets == (None, None) and whole.coefficients == (0.5, 8.0)
    assert whole.evaluations[0].l0 > whole.evaluations[1].l0
    assert whole.models[1].recipe.coefficient == 8.0

    class StopError(Exception):
        pass

    def stop(step, entry):
        if step == 25:
            raise StopError

    part = {"checkpoint_folder": tmp_path, "checkpoint_every": 10}
    with pytest.raises(StopError):
        sae.sweep(rows(), on_step=stop, **options, **part)
    resumed = sae.sweep(rows(), **options, **part)
    assert resumed.models[0].training.resumed_from == 20
    for a, b in zip(whole.models, resumed.models, strict=True):
        assert_same(a.weights, b.weights)
    with pytest.raises(ValueError, match="belong to another run: runs is"):
        sae.sweep(rows(), **{**options, "coefficients": (0.5, 4.0)}, **part)


def test_a_sweep_refuses():
    with pytest.raises(ValueError, match="should each have one value at least"):
        sae.sweep(rows(), features=32, seeds=())
    with pytest.raises(ValueError, match="`l0` should be numbers, or None alone"):
        sae.sweep(rows(), features=32, l0=(4.0, None))
    with pytest.raises(ValueError, match=r"`l0` should be different values, but are \(4\.0, 4\)"):
        sae.sweep(rows(), features=32, l0=(4.0, 4))
    with pytest.raises(TypeError, match="`l0` should be several values, such as a list, not 4"):
        sae.sweep(rows(), features=32, l0=4)
    with pytest.raises(ValueError, match="`checkpoint_every` should be a whole number ≥ 1"):
        sae.sweep(rows(), features=32, checkpoint_every=0)
    # By the names that they have here.
    with pytest.raises(ValueError, match=r"^`l0` should be between 0 and .* \(32\), but is 99\.$"):
        sae.sweep(rows(), features=32, l0=(4, 99))
    with pytest.raises(TypeError, match=r"^`l0` should be one number or None, but is True\.$"):
        sae.sweep(rows(), features=32, l0=(True,))
    with pytest.raises(ValueError, match=r"^each of `seeds` should be a whole number .* is True"):
        sae.sweep(rows(), features=32, seeds=(True,))
    for wrong in (True, "0.5"):
        with pytest.raises(TypeError, match=r"^each of `coefficients` should be a number greater"):
            sae.sweep(rows(), features=32, coefficients=(wrong,))
    with pytest.raises(TypeError, match=r"^`fresh` should be True or False, but is 'no'"):
        sae.sweep(rows(), features=32, fresh="no")
    wild = dataclasses.replace(RECIPE, learning_rate=1e38, learning_rate_warmup=0)
    with pytest.raises(FloatingPointError, match="of run 0 of the sweep is not finite"):
        sae.sweep(rows(), features=32, l0=(4.0,), steps=20, recipe=wild)


# the commands


def test_commands(tmp_path, capsys):
    np.save(tmp_path / "x.npy", planted())
    base = [str(tmp_path / "x.npy"), "--features", "32", "--batch-size", "64"]
    out = ["--output", str(tmp_path / "out")]
    train = ["sae", "train", *base, "--l0", "4", *out]
    assert main([*train, "--steps", "20", "--resample-every", "0.25"]) == 0
    assert "going on" not in capsys.readouterr().err
    assert main([*train, "--steps", "30", "--resample-every", "0.25"]) == 0
    printed = capsys.readouterr()
    assert "resumed from step 20" in printed.out
    assert printed.err.splitlines()[0] == "going on from step 20"
    assert main([*train, "--steps", "30", "--resample-every", "0.25"]) == 0
    finished = "this run of 30 steps was finished before, and nothing is trained: more --steps go"
    assert finished in capsys.readouterr().err
    assert main([*train, "--steps", "20", "--resample-every", "0.25"]) == 2
    assert "or another --output, or --fresh." in capsys.readouterr().err
    assert main([*train, "--steps", "30", "--l0", "5", "--learning-rate", "0.01"]) == 2
    error = capsys.readouterr().err
    assert "another run: --learning-rate is 0.004 there and 0.01 here; --resample-every" in error
    assert "; --l0 is 4.0 there and 5.0 here" in error
    quadratic = ["--recipe", "gemma_scope_2", "--coefficient", "30"]
    assert main([*train, "--steps", "20", *quadratic, "--fresh"]) == 0
    assert "note: L0 is" in capsys.readouterr().err  # 4 is out of reach in 20 steps
    recipe = sae.load(tmp_path / "out").recipe
    assert (recipe.penalty, recipe.coefficient) == ("quadratic_l0", 30)
    assert main([*train, "--steps", "3", "--initial-norm", "0.1", "--fresh"]) == 0
    assert sae.load(tmp_path / "out").recipe.initial_norm == 0.1
    capsys.readouterr()
    tanh = ["--recipe", "anthropic_2025", "--initial-norm", "0.1"]
    assert main([*train, "--steps", "3", *tanh, "--fresh"]) == 2
    assert '--initial-norm is for the initialisation "tied_unit"' in capsys.readouterr().err

    many = ["sae", "sweep", *base, "--l0", "3", "6", "--seeds", "0", "1", "--steps", "20", *out]
    assert main([*many, "--fresh"]) == 0
    printed = capsys.readouterr().out
    lines = json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]
    assert [line["target_l0"] for line in lines] == [3, 3, 6, 6]
    assert f"{lines[3]['explained_variance']:.4f}" in printed
    assert main(many) == 0
    assert "this run of 20 steps was finished before" in capsys.readouterr().err
    assert main([*many, "--steps", "22"]) == 0
    assert "going on from step 20\n" in capsys.readouterr().err
    assert main([*many, "--fresh"]) == 0
    assert "step 20" not in capsys.readouterr().err
    for name in ("sweep.csv", "sweep.png", "sweep.svg"):
        assert (tmp_path / "out" / name).stat().st_size > 100
    model = sae.load(tmp_path / "out" / "l0-6-seed-1")
    assert model.about["training"]["seed"] == 1
    assert sae.evaluate(model, sae.held_out(model, planted())).l0 == pytest.approx(lines[3]["l0"])
    np.save(tmp_path / "few.npy", planted()[:300])  # fewer than the usual batch
    few = ["sae", "sweep", str(tmp_path / "few.npy"), "--features", "8", "--l0", "2"]
    assert main([*few, "--steps", "2", "--output", str(tmp_path / "few")]) == 0
    assert main([*many, "--recipe", "frequent_resampling"]) == 2
    assert "--recipe frequent_resampling is for one --l0, to which" in capsys.readouterr().err
    for l0 in ("99", "nan"):
        assert main([*many, "--l0", l0]) == 2
        assert "--l0 should be between 0 and the number of --features" in capsys.readouterr().err
    assert main([*many, "--l0", "3", "5"]) == 2
    error = capsys.readouterr().err
    assert "another run: what is combined (--l0, λ, --seeds) is [(3.0, 1.0, 0), (3.0" in error
    assert "target_l0" not in error
