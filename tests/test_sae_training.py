"""Training: L0 reaches its target, and a run that is killed resumes bit for bit."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxtrelu import sae, sparse_mlp
from jaxtrelu.__main__ import main
from jaxtrelu.sae import _settings, _step, _training
from jaxtrelu.sae._formats import safetensors

RECIPE = dataclasses.replace(sae.short_run(), batch_size=128, learning_rate_warmup=10)
WORLD = sae.PlantedWorld(features=32, dimension=16, mean_l0=3.0)


def rows(seed=0):
    return sae.Rows(np.asarray(WORLD.sample(jax.random.key(0), 8000)[0]), "planted", seed)


def settings(**changes):
    return sae.Settings(
        **{"features": 64, "steps": 60, "recipe": RECIPE, "target_l0": 5.0} | changes
    )


def assert_same(first, second):
    for name, a, b in zip(sae.Weights._fields, first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    for name in first.history:
        np.testing.assert_array_equal(first.history[name], second.history[name], err_msg=name)


def test_training_reaches_the_target_and_finds_planted_features():
    result = sae.run(rows(), settings(steps=900, target_l0=4.0, log_every=20))
    assert result.history["l0"][-5:].mean() == pytest.approx(4, rel=0.15)
    assert result.history["reconstruction"][-1] < 0.25
    x, magnitudes = map(np.asarray, WORLD.sample(jax.random.key(9), 4000))
    pi = np.asarray(sae.pre_activations(result.weights, result.scale * x))
    gates = pi > np.asarray(result.weights.threshold)
    found = sae.planted_scores(result.weights.decoder, gates, WORLD.directions, magnitudes > 0)
    assert found.mean_correlation > 0.85
    np.testing.assert_allclose(np.linalg.norm(result.weights.decoder, axis=1), 1, rtol=1e-5)


def test_sparse_and_dense_runs_have_the_same_loss_curve():
    """From half of all features, which are dense products, to few, which are lists of entries."""
    few = {"features": 256, "target_l0": 1.5, "log_every": 5}
    runs = {
        "dense": settings(sparse=False, **few),
        "sparse": settings(**few),
        "screened": settings(screen="int8", **few),
    }
    assert [run.visits_entries_only() for run in runs.values()] == [False, True, True]
    curves = {name: sae.run(rows(), run) for name, run in runs.items()}
    for other, name in itertools.product(
        ("sparse", "screened"), ("reconstruction", "threshold_50", "coefficient")
    ):
        dense, found = (curves[run].history[name] for run in ("dense", other))
        np.testing.assert_allclose(found, dense, rtol=1e-3, err_msg=f"{other}, {name}")
    sample = np.asarray(WORLD.sample(jax.random.key(0), 128)[0]) * curves["sparse"].scale
    first = sae.initial_state(runs["sparse"], sample).weights
    sides = [bool(_overflow(weights, sample)) for weights in (first, curves["sparse"].weights)]
    assert sides == [True, False]
    rounds = [_rounds_to_int8(run, sample) for run in runs.values()]
    assert rounds == [False, False, True]


def test_runs_that_differ_in_what_no_step_depends_on_share_its_program():
    def trained(recipe=RECIPE, **changes):
        return sae.run(rows(), settings(steps=4, log_every=2, recipe=recipe, **changes))

    first = trained()
    before = _step._advance._cache_size(), _step.measure._cache_size()
    other = dataclasses.replace(RECIPE, name="other", coefficient=2.0, initial_threshold=0.9)
    found = [trained(seed=1), trained(target_l0=7.0), trained(other)]
    assert (_step._advance._cache_size(), _step.measure._cache_size()) == before
    for one in found:
        assert np.abs(one.weights.threshold - first.weights.threshold).max() > 1e-5
    free = [dataclasses.replace(RECIPE, coefficient=c) for c in (0.5, 8.0)]
    at_last = [trained(recipe, target_l0=None).history["coefficient"][-1] for recipe in free]
    assert at_last == [0.5, 8.0]
    assert _step._advance._cache_size() == before[0] + 1


def test_a_step_reads_no_field_that_its_program_leaves_out():
    read = set()

    class Watched(sae.Recipe):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    for recipe in (sae.gemma_scope_2(), sae.anthropic_2025(), RECIPE):
        run = settings(recipe=dataclasses.replace(recipe, batch_size=128))
        state = sae.initial_state(run, rows().batch(0, 128))
        watched = Watched(**vars(_settings.program_of(run).recipe))
        read.clear()
        jax.eval_shape(
            lambda state, watched=watched, run=run: _step.advance(
                state, jnp.ones((128, WORLD.dimension)), 1.0, _settings.asked(run),
                _settings.program_of(run)._replace(recipe=watched), None, 1.0,
            ),
            state,
        )  # fmt: skip
        assert {"surrogate", "penalty", "learning_rate"} <= read
        # λ itself is an operand: of the recipe's 1, its ramp is made.
        assert read & set(_settings.UNREAD) <= {"coefficient"}, run.recipe.name


def _rounds_to_int8(run, x):
    """Whether a training step has a product of int8."""
    state = sae.initial_state(run, x)
    return "i8[" in str(jax.make_jaxpr(lambda s: sae.train_step(s, x, 1.0, run))(state))


def test_a_screen_is_for_runs_that_skip_zeros():
    for changes, reason in (
        ({"sparse": False}, "`sparse` is False"),
        ({"target_l0": 9.0}, "9 open features are more than one in 32 of 256"),
        ({"recipe": sae.anthropic_2025()}, "the recipe 'anthropic_2025' needs the dense latent"),
    ):
        with pytest.raises(ValueError, match=f"takes dense products: {reason}"):
            settings(**{"features": 256, "target_l0": 1.5, "screen": "int8"} | changes)
    with pytest.raises(ValueError, match="without a `target_l0`, 32 open features"):
        settings(features=256, target_l0=None, screen="int8")
    with pytest.raises(ValueError, match="'int8' or 'bfloat16', or a bool, but is 'int4'"):
        settings(screen="int4")
    with pytest.raises(ValueError, match="or a bool, but is array"):
        settings(screen=np.ones(3))
    few = {"features": 256, "target_l0": 1.5}
    assert [settings(screen=s, **few).screen for s in (np.True_, False)] == ["int8", None]


def test_a_checkpoint_belongs_to_its_screen(tmp_path):
    few = {"features": 256, "target_l0": 1.5, "log_every": 5}  # compiled for the loss curves
    sae.run(rows(), settings(**few), checkpoint_folder=tmp_path)
    with pytest.raises(ValueError, match="screen is None there and 'int8' here"):
        sae.run(rows(), settings(screen="int8", **few), checkpoint_folder=tmp_path)


@jax.jit
def _overflow(weights, x):
    """Whether dense products are taken for a batch, as a training step asks for it."""
    activity = sparse_mlp(
        x,
        weights.encoder,
        weights.decoder,
        weights.threshold,
        b_in=weights.encoder_bias,
        variant="hard",
        surrogate=RECIPE.surrogate,
        with_activity=True,
    )[1]
    return activity.overflow


@pytest.mark.parametrize("target", [5.0, pytest.param(None, marks=pytest.mark.slow)])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, target):
    whole = sae.run(rows(), settings(target_l0=target, log_every=10))

    class StopError(Exception):
        pass

    def stop(step, entry):
        if step == 47:
            raise StopError

    part = {"checkpoint_folder": tmp_path / "run", "checkpoint_every": 20}
    with pytest.raises(StopError):
        sae.run(rows(), settings(target_l0=target, log_every=10), on_step=stop, **part)
    resumed = sae.run(rows(), settings(target_l0=target, log_every=10), **part)
    assert (whole.resumed_from, resumed.resumed_from) == (0, 40)
    assert_same(whole, resumed)
    again = sae.run(rows(), settings(target_l0=target, log_every=10), **part)
    assert again.resumed_from == 60
    assert_same(whole, again)


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path):
    folder = tmp_path / "run"
    first = sae.run(rows(), settings(steps=20), checkpoint_folder=folder)
    for changes, words in (
        ({"features": 32}, "features is 64 there and 32 here"),
        ({"steps": 10}, "steps is 20 there and 10 here"),
        ({"recipe": dataclasses.replace(RECIPE, learning_rate=1e-4)}, "recipe.learning_rate is"),
    ):
        with pytest.raises(ValueError, match=words):
            sae.run(rows(), settings(**{"steps": 20} | changes), checkpoint_folder=folder)
    other = sae.Rows(rows().array[:500])
    with pytest.raises(ValueError, match=r"belong to another run: data is"):
        sae.run(other, settings(steps=20), checkpoint_folder=folder)
    assert_same(first, sae.run(rows(), settings(steps=20), checkpoint_folder=folder))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        sae.run(rows(), settings(), checkpoint_folder=tmp_path / "file")


def checkpoints(folder):
    return sorted(folder.glob("step-*.safetensors"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "one bit": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "no header": lambda path: path.write_bytes(b"\xff" * 1000),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_the_newest_intact_checkpoint_is_taken_and_the_damaged_one_named(tmp_path, damage):
    whole = sae.run(rows(), settings(steps=30, log_every=10))
    part = {"checkpoint_folder": tmp_path / "run", "checkpoint_every": 10}
    sae.run(rows(), settings(steps=30, log_every=10), **part)
    files = checkpoints(tmp_path / "run")
    assert [path.stem for path in files] == ["step-0000000020", "step-0000000030"]
    (tmp_path / "run" / "step-0000000099.safetensors").mkdir()  # strays are left alone
    (tmp_path / "run" / "notes.txt").write_text("mine")
    damage(files[-1])
    why = r"skipped: it is empty\." if not files[-1].stat().st_size else "skipped: "
    with pytest.warns(UserWarning, match=rf"0030\.safetensors is damaged, and was {why}"):
        resumed = sae.run(rows(), settings(steps=30, log_every=10), **part)
    assert resumed.resumed_from == 20
    assert_same(whole, resumed)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_with_no_intact_checkpoint_the_run_begins_again_and_says_so(tmp_path):
    part = {"checkpoint_folder": tmp_path / "run", "checkpoint_every": 10}
    first = sae.run(rows(), settings(steps=20), **part)
    for path in checkpoints(tmp_path / "run"):
        flip(path)
    with pytest.warns(UserWarning, match="is damaged") as warned:
        again = sae.run(rows(), settings(steps=20), **part)
    assert len([w for w in warned if "is damaged" in str(w.message)]) == 2
    assert again.resumed_from == 0
    assert_same(first, again)


def test_one_changed_number_of_the_data_is_other_data(tmp_path):
    array = np.array(rows().array)
    sae.run(sae.Rows(array), settings(steps=2), checkpoint_folder=tmp_path)
    array[1, 3] += 1e-3
    with pytest.raises(ValueError, match="belong to another run: data is"):
        sae.run(sae.Rows(array), settings(steps=2), checkpoint_folder=tmp_path)


def test_two_runs_in_one_folder(tmp_path):
    def second(step, entry):
        with pytest.raises(
            ValueError, match=rf"another run \(process {os.getpid()}\) is writing to"
        ):
            sae.run(rows(), settings(), checkpoint_folder=tmp_path / "run")

    sae.run(rows(), settings(steps=2), checkpoint_folder=tmp_path / "run", on_step=second)
    sae.run(rows(), settings(steps=2), checkpoint_folder=tmp_path / "run")  # let go of by now


def test_a_folder_that_cannot_be_written_is_noticed_before_the_data_are_read(tmp_path):
    (tmp_path / "file").write_text("")
    read = []
    with pytest.raises(OSError, match="checkpoints cannot be written to"):
        sae.run(
            rows(), settings(), checkpoint_folder=tmp_path / "file" / "run", on_read=read.append
        )
    assert not read


def test_a_run_that_never_began_leaves_no_folder(tmp_path):
    bad = np.array(rows().array)
    bad[3, 1] = np.nan
    folder = tmp_path / "new" / "run"
    with pytest.raises(ValueError, match="row 3"):
        sae.run(sae.Rows(bad), settings(), checkpoint_folder=folder)
    with pytest.raises(ValueError, match="row 3"):
        sae.sweep(bad, features=32, l0=(2, 3), steps=2, checkpoint_folder=folder)
    assert not list(tmp_path.iterdir())
    folder.mkdir(parents=True)  # somebody else's: left, as is what lies in it
    with pytest.raises(ValueError, match="row 3"):
        sae.run(sae.Rows(bad), settings(), checkpoint_folder=folder)
    assert folder.is_dir()

    def stop(step, entry):
        if step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sae.run(
            rows(), settings(), checkpoint_folder=tmp_path / "a", checkpoint_every=1, on_step=stop
        )
    assert len(checkpoints(tmp_path / "a")) == 2


LIMITED = """
import resource, sys
import numpy as np
from jaxtrelu.sae._checkpoints import Checkpoints

with Checkpoints(sys.argv[1]) as store:
    store.save(10, {"a": np.zeros(1000)})
    # No file of more than 2 kB: as a full disk is, for who writes one.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        store.save(20, {"a": np.ones(1000)})
    except OSError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_checkpoint_that_cannot_be_written_says_so_and_loses_nothing(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "the checkpoint of step 20 cannot be written" in done.stdout, done.stderr
    assert "file too large. Earlier checkpoints are kept: make room" in done.stdout
    assert "Traceback" not in done.stderr
    (path,) = checkpoints(tmp_path / "run")
    assert path.stem == "step-0000000010"
    safetensors.check_seal(path, *safetensors.read(path))
    assert not list((tmp_path / "run").glob(".*.part"))


def test_a_part_of_a_checkpoint_left_by_a_killed_run_is_removed(tmp_path):
    (tmp_path / ".step-0000000010.safetensors.99.part").write_bytes(b"x")
    sae.run(rows(), settings(steps=2), checkpoint_folder=tmp_path)
    assert not list(tmp_path.glob(".*.part"))


def test_a_run_that_diverges_stops_and_says_at_which_step(tmp_path):
    wild = dataclasses.replace(RECIPE, learning_rate=1e38, learning_rate_warmup=0)
    with pytest.raises(FloatingPointError, match=r"not finite any more at step \d+: .*smaller"):
        sae.run(
            rows(), settings(recipe=wild), checkpoint_folder=tmp_path / "run", checkpoint_every=1
        )
    for path in checkpoints(tmp_path / "run"):
        tensors, _ = safetensors.read(path)
        assert all(np.isfinite(array).all() for name, array in tensors.items() if "weights" in name)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((300, 4), np.float32), "has the same values in all rows"),
        (np.tile(np.float32([1e4, 3, -2, 7]), (300, 1)), "has the same values in all rows"),
        (np.ones((1, 4), np.float32), "has one row only"),
        (np.zeros((300, 4), np.float32), "has the same values in all rows"),
    ],
)
def test_data_without_variance_are_refused(array, words):
    recipe = dataclasses.replace(RECIPE, batch_size=1)
    with pytest.raises(ValueError, match=words):
        sae.run(sae.Rows(array), settings(recipe=recipe))


@pytest.mark.skipif(_training.memory_free() is None, reason="the system does not say")
def test_a_run_that_needs_more_memory_than_there_is_is_refused_with_the_figure():
    with pytest.raises(MemoryError, match=r"1,000,000,000,000 features .* needs about [\d,.]+ GB"):
        sae.run(rows(), settings(features=10**12))
    small = _training.memory_needed(settings(), 16)
    assert small < 10**6
    assert _training.memory_needed(settings(features=6400), 16) == pytest.approx(
        100 * small, rel=0.1
    )


def test_reading_reports_every_row():
    done = []
    sae.run(rows(), settings(steps=2), on_read=done.append)
    assert sum(done) == 8000


def test_settings_refuse():
    with pytest.raises(ValueError, match="`target_l0` should be between 0 and the number of feat"):
        settings(target_l0=64.0)
    with pytest.raises(ValueError, match="`steps` should be a whole number ≥ 1, but is 0"):
        settings(steps=0)
    x = np.ones((40, 4), np.float32)
    with pytest.raises(ValueError, match="`l0` should be between 0 and the number of features"):
        sae.train(x, features=8, l0=9)
    with pytest.raises(TypeError, match=r"`l0` should be one number .* use jaxtrelu\.sae\.sweep"):
        sae.train(x, features=8, l0=[2, 4])
    with pytest.raises(ValueError, match="`seed` should be at least 0, but is -1"):
        sae.train(x, features=8, seed=-1)
    with pytest.raises(ValueError, match="`seed` should be a whole number ≥ 0, but is -1"):
        settings(seed=-1)
    for recipe in ("gemma_scope", sae.gemma_scope):
        with pytest.raises(TypeError, match=r"`recipe` should be a recipe, such as .*\(\)"):
            sae.train(x, features=8, recipe=recipe)
    with pytest.raises(ValueError, match="`checkpoint_every` should be a whole number ≥ 1"):
        sae.train(x, features=8, checkpoint_every=0)
    with pytest.raises(TypeError, match=r"`model` should be a jaxtrelu\.sae\.Autoencoder"):
        sae.save(x, "there")


@pytest.mark.parametrize(
    "name",
    ["features", "l0", "steps", "seed", "held_out", "log_every", "checkpoint_every"],
)
def test_no_number_is_a_truth_value(name):
    x = np.ones((40, 4), np.float32)
    with pytest.raises((TypeError, ValueError), match=f"^`{name}` should be .*, but is True"):
        sae.train(x, **{"features": 8, "l0": 2, name: True})


@pytest.mark.parametrize("name", ["sparse", "fresh"])
def test_no_truth_value_is_a_word(name):
    x = np.ones((40, 4), np.float32)
    with pytest.raises(TypeError, match=f"^`{name}` should be True or False, but is 'no'"):
        sae.train(x, features=8, **{name: "no"})


def test_rows_kept_aside_are_counted_and_no_share():
    words = r"`held_out` should be a whole number, but is 0\.1 \(float\)\. It is a number of rows"
    with pytest.raises(TypeError, match=words):
        sae.train(np.ones((40, 4), np.float32), features=8, held_out=0.1)


def test_numbers_of_numpy_are_those_of_python(tmp_path):
    """What a file and a checkpoint say of them, too."""
    numbers = {
        "features": np.int64(32), "steps": np.int32(4), "l0": np.float32(4),
        "seed": np.int64(3), "held_out": np.int64(400), "log_every": np.int64(2),
    }  # fmt: skip
    told = {"checkpoint_folder": tmp_path / "run", "recipe": RECIPE}
    x = np.array(rows().array)
    model = sae.train(x, **numbers, **told)
    sae.save(model, tmp_path / "m.safetensors")
    again = sae.load(tmp_path / "m.safetensors").about["training"]
    assert again == model.about["training"] and again["target_l0"] == 4
    plain = {name: number.item() for name, number in numbers.items()}
    assert sae.train(x, **plain, **told).training.resumed_from == 4


# --- the command ---------------------------------------------------------------------------------


STEPS = 150


@pytest.fixture(scope="module")
def activations(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "acts.npy"
    np.save(path, np.asarray(WORLD.sample(jax.random.key(1), 4000)[0]))
    return path


@pytest.fixture(scope="module")
def whole(activations):
    """A run of the command that nothing interrupts: its folder, and what it printed."""
    folder, printed = activations.parent / "whole", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(arguments(activations, folder)) == 0
    return folder, printed.getvalue()


def arguments(activations, out, steps=STEPS):
    sizes = ["--features", "32", "--l0", "4", "--steps", str(steps), "--batch-size", "64"]
    return ["sae", str(activations), *sizes, "--checkpoint-every", "10", "--output", str(out)]


def test_command_writes_what_it_prints(whole, activations):
    folder, printed = whole
    names = ("sae.safetensors", "sae.json", "history.csv", "training.png", "dictionary.svg")
    for name in names:
        assert str(folder / name) in printed.replace("\n", "")
        assert (folder / name).stat().st_size > 200
    report = json.loads((folder / "sae.json").read_text())
    assert report["data"]["name"] == "acts.npy"
    assert (report["data"]["rows"], report["data"]["dimension"]) == (4000, 16)
    assert report["sparse"] is False  # 4 of 32 is no share at which zeros are skipped
    assert report["evaluation"]["held_out"] is True and report["evaluation"]["rows"] == 399
    model = sae.load(folder)
    assert model.weights.decoder.shape == (32, 16)
    assert model.input_scale == pytest.approx(report["input_scale"])
    aside = sae.held_out(model, activations)
    found = sae.evaluate(model, aside)
    assert found.l0 == pytest.approx(report["evaluation"]["l0"])
    assert f"{found.explained_variance:.1%}" in printed


@pytest.mark.slow
def test_command_killed_hard_reaches_the_same_result(activations, whole, tmp_path):
    """SIGKILL at some moment of the run, twice; then to its end."""
    command = [sys.executable, "-m", "jaxtrelu", *arguments(activations, tmp_path / "cut")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    checkpoints = tmp_path / "cut" / "checkpoints"
    for _ in range(2):
        seen = set(checkpoints.glob("step-*.safetensors"))
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and set(checkpoints.glob("step-*.safetensors")) <= seen:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(arguments(activations, tmp_path / "cut")) == 0
    uncut, cut = (sae.load(folder) for folder in (whole[0], tmp_path / "cut"))
    for name, a, b in zip(sae.Weights._fields, uncut.weights, cut.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    histories = [(folder / "history.csv").read_text() for folder in (whole[0], tmp_path / "cut")]
    assert histories[0] == histories[1]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--features", "0"], "--features should be from 1 to"),
        (["--features", "1e11"], "--features: invalid int value"),
        (["--features", "100000000000"], "--features should be from 1 to"),
        (["--features", "100000000", "--batch-size", "4000"], "smaller number of --features, or a"),
        (["--screen", "int8"], "products: 4 open features are more than one in 32 of 32"),
        (["--screen", "int8", "--dense"], "dense products: --dense asks for them."),
        (["--l0", "99"], "--l0 should be between 0 and the number of --features (32), but is 99."),
        (["--bandwidth", "-1"], "--bandwidth should be finite and greater than 0"),
        (["--threshold", "-1"], "--threshold should be at least 0"),
        (["--learning-rate", "-1"], "--learning-rate should be greater than 0"),
        (["--learning-rate", "1e38", "--steps", "200"], "Pass a smaller --learning-rate"),
        (["--held-out", "4000"], "--held-out should leave some of the 4000 rows"),
        (["--checkpoint-every", "0"], "--checkpoint-every should be at least 1"),
        (["--batch-size", "5000"], "a batch of 5000 examples is more than the 3601 rows"),
        (["--recipe", "other"], "invalid choice: 'other'"),
    ],
)
def test_command_says_what_is_wrong_in_one_sentence(activations, tmp_path, capsys, extra, words):
    assert main([*arguments(activations, tmp_path / "out"), *extra]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert not re.search("Traceback|`|target_l0|batch_size|another folder", error)
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.*"))


def test_command_names_rows_that_are_not_finite(tmp_path, capsys):
    array = np.ones((600, 4), np.float32)
    array[42] = np.nan
    np.save(tmp_path / "bad.npy", array)
    assert main(["sae", str(tmp_path / "bad.npy"), "--output", str(tmp_path / "out")]) == 2
    assert "in row 42 (counted from 0)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)  # and what was there stays as it was
    assert main(["sae", str(tmp_path / "bad.npy"), "--output", str(tmp_path / "out")]) == 2
    assert not list((tmp_path / "out" / "checkpoints").iterdir())
    capsys.readouterr()
    assert main(["sae", str(tmp_path / "none.npy"), "--output", str(tmp_path / "out")]) == 2
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"1,2,3\n4,5,6\n", "a text with commas, such as a CSV; np.save("),
        (b"a\tb\n1\t2\n", "a text with tabs"),
        (b"1 2 3\n", "it is a text"),
        (b"", "it is empty"),
        (b"PK\x03\x04rest", "a zip archive, such as an .npz"),
        (b"\x80\x04K\x01.", "a pickle, which is never loaded"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"\x00\x01\x02", "begins as no known file"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4', ", "cannot be read as a .npy file"),
    ],
)
def test_data_that_are_no_npy_file_are_named_for_what_they_are(tmp_path, capsys, content, words):
    (tmp_path / "data.csv").write_bytes(content)
    assert main(["sae", str(tmp_path / "data.csv"), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and "unsafe" not in error


def test_the_advice_for_bfloat16_works(tmp_path):
    array = np.random.default_rng(0).normal(size=(40, 4)).astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "b.npy", array)
    loaded = np.load(tmp_path / "b.npy")  # numpy forgets the dtype
    with pytest.raises(TypeError, match=r"pass array\.view\(ml_dtypes\.bfloat16\)\."):
        sae.Rows(loaded)
    for rows in (sae.Rows(loaded.view(ml_dtypes.bfloat16)), sae.open_rows(tmp_path / "b.npy")):
        np.testing.assert_array_equal(np.asarray(rows.array, np.float32), array.astype(np.float32))
        assert rows.batch(0, 4).dtype == np.float32


def test_a_shape_below_zero_in_a_header_is_one_sentence(tmp_path):
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 4)}".ljust(117) + "\n"
    (tmp_path / "n.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + text.encode())
    with pytest.raises(ValueError, match=r"cannot be read as a \.npy file"):
        sae.open_rows(tmp_path / "n.npy")


@pytest.mark.slow
def test_an_interrupt_at_any_moment_is_one_line_and_130(activations, tmp_path):
    """From when the command has begun: before that it is Python's own start."""
    command = [sys.executable, "-m", "jaxtrelu", *arguments(activations, tmp_path / "cut", 10**6)]
    environment = {
        **os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "JAXTRELU_HUGE_PAGES": "0",
    }  # fmt: skip
    rng = np.random.default_rng(0)
    folder = tmp_path / "cut" / "checkpoints"
    for second in (0, 2, 4):  # while it loads, compiles and trains; more: `make faults`
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        while not (folder / ".lock").exists():
            time.sleep(0.005)
        time.sleep(rng.uniform(second, second + 2))
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert error.splitlines()[-1] == "jaxtrelu: interrupted"
        assert "Traceback" not in error
        for path in checkpoints(folder):
            tensors, metadata = safetensors.read(path)
            safetensors.check_seal(path, tensors, metadata)


def test_a_dangling_link_as_output_is_noticed_at_the_start(activations, tmp_path, capsys):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    assert main(arguments(activations, tmp_path / "out")) == 2
    assert "is a link to nothing" in capsys.readouterr().err
