"""Training: L0 reaches its target, and a run that is killed resumes bit for bit."""

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxtrelu import sae, sparse_mlp
from jaxtrelu.__main__ import main

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
    result = sae.train(rows(), settings(steps=900, target_l0=4.0, log_every=20))
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
    runs = {sparse: settings(sparse=sparse, **few) for sparse in (False, True)}
    assert [run.visits_entries_only() for run in runs.values()] == [False, True]
    curves = {sparse: sae.train(rows(), run) for sparse, run in runs.items()}
    for name in ("reconstruction", "threshold_50", "coefficient"):
        dense, sparse = (curves[is_sparse].history[name] for is_sparse in (False, True))
        np.testing.assert_allclose(sparse, dense, rtol=1e-3, err_msg=name)
    sample = np.asarray(WORLD.sample(jax.random.key(0), 128)[0]) * curves[True].scale
    first = sae.initial_state(runs[True], sample).weights
    assert [_overflow(weights, sample) for weights in (first, curves[True].weights)] == [
        True,
        False,
    ]


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
    return bool(activity.overflow)


@pytest.mark.parametrize("target", [5.0, pytest.param(None, marks=pytest.mark.slow)])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, target):
    whole = sae.train(rows(), settings(target_l0=target, log_every=10))

    class StopError(Exception):
        pass

    def stop(step, entry):
        if step == 47:
            raise StopError

    part = {"checkpoint_folder": tmp_path / "run", "checkpoint_every": 20}
    with pytest.raises(StopError):
        sae.train(rows(), settings(target_l0=target, log_every=10), on_step=stop, **part)
    resumed = sae.train(rows(), settings(target_l0=target, log_every=10), **part)
    assert (whole.resumed_from, resumed.resumed_from) == (0, 40)
    assert_same(whole, resumed)
    again = sae.train(rows(), settings(target_l0=target, log_every=10), **part)
    assert again.resumed_from == 60
    assert_same(whole, again)


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path):
    folder = tmp_path / "run"
    first = sae.train(rows(), settings(steps=20), checkpoint_folder=folder)
    for changes, words in (
        ({"features": 32}, "features is 64 there and 32 here"),
        ({"steps": 30}, "steps is 20 there and 30 here"),
        ({"recipe": dataclasses.replace(RECIPE, learning_rate=1e-4)}, "recipe.learning_rate is"),
    ):
        with pytest.raises(ValueError, match=words):
            sae.train(rows(), settings(**{"steps": 20} | changes), checkpoint_folder=folder)
    other = sae.Rows(np.ones((500, 16), np.float32))
    with pytest.raises(ValueError, match=r"belong to another run: data is"):
        sae.train(other, settings(steps=20), checkpoint_folder=folder)
    assert_same(first, sae.train(rows(), settings(steps=20), checkpoint_folder=folder))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        sae.train(rows(), settings(), checkpoint_folder=tmp_path / "file")


def test_a_checkpoint_that_cannot_be_written_says_so_and_loses_nothing(tmp_path, monkeypatch):
    part = {"checkpoint_folder": tmp_path / "run", "checkpoint_every": 20}
    save = ocp.CheckpointManager.save

    def full(self, step, **arguments):
        if step == 40:
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")
        return save(self, step, **arguments)

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(OSError, match=r"checkpoint of step 40 cannot .* left on device\. Earlier"):
        sae.train(rows(), settings(), **part)
    monkeypatch.undo()
    resumed = sae.train(rows(), settings(), **part)
    assert resumed.resumed_from == 20
    assert_same(sae.train(rows(), settings()), resumed)


def test_reading_reports_every_row():
    done = []
    sae.train(rows(), settings(steps=2), on_read=done.append)
    assert sum(done) == 8000


def test_settings_refuse():
    with pytest.raises(ValueError, match="`target_l0` should be between 0 and the number of feat"):
        settings(target_l0=64.0)
    with pytest.raises(ValueError, match="`steps` should be a whole number ≥ 1, but is 0"):
        settings(steps=0)


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


def arguments(activations, out):
    sizes = ["--features", "32", "--l0", "4", "--steps", str(STEPS), "--batch-size", "64"]
    return ["sae", str(activations), *sizes, "--checkpoint-every", "10", "--output", str(out)]


def test_command_writes_what_it_prints(whole):
    folder, printed = whole
    names = ("sae.npz", "sae.json", "history.csv", "training.png", "dictionary.svg")
    for name in names:
        assert str(folder / name) in printed.replace("\n", "")
        assert (folder / name).stat().st_size > 200
    report = json.loads((folder / "sae.json").read_text())
    assert report["data"] == {"name": "acts.npy", "rows": 4000, "dimension": 16}
    with np.load(folder / "sae.npz") as model:
        assert model["decoder"].shape == (32, 16)
        assert float(model["input_scale"]) == pytest.approx(report["input_scale"])


def test_command_killed_hard_reaches_the_same_result(activations, whole, tmp_path):
    """SIGKILL at some moment of the run, twice; then to its end."""
    command = [sys.executable, "-m", "jaxtrelu", *arguments(activations, tmp_path / "cut")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    checkpoints = tmp_path / "cut" / "checkpoints"
    for _ in range(2):
        seen = set(checkpoints.glob("[0-9]*"))
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and set(checkpoints.glob("[0-9]*")) <= seen:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(arguments(activations, tmp_path / "cut")) == 0
    with np.load(whole[0] / "sae.npz") as uncut, np.load(tmp_path / "cut/sae.npz") as cut:
        for key in uncut:
            np.testing.assert_array_equal(uncut[key], cut[key], err_msg=key)
    histories = [(folder / "history.csv").read_text() for folder in (whole[0], tmp_path / "cut")]
    assert histories[0] == histories[1]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--features", "0"], "--features should be from 1 to"),
        (["--l0", "99"], "between 0 and the number of features"),
        (["--bandwidth", "-1"], "`bandwidth` of Rectangle"),
        (["--threshold", "-1"], "`initial_threshold` of a recipe should be at least 0"),
        (["--checkpoint-every", "0"], "--checkpoint-every should be at least 1"),
        (["--batch-size", "5000"], "a batch of 5000 examples is more than the 4000 rows"),
        (["--recipe", "other"], "invalid choice: 'other'"),
    ],
)
def test_command_says_what_is_wrong_in_one_sentence(activations, tmp_path, capsys, extra, words):
    assert main([*arguments(activations, tmp_path / "out"), *extra]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not list((tmp_path / "out").glob("*.*"))


def test_command_names_rows_that_are_not_finite(tmp_path, capsys):
    array = np.ones((100, 4), np.float32)
    array[42] = np.nan
    np.save(tmp_path / "bad.npy", array)
    assert main(["sae", str(tmp_path / "bad.npy"), "--output", str(tmp_path / "out")]) == 2
    assert "in row 42 (counted from 0)" in capsys.readouterr().err
    assert main(["sae", str(tmp_path / "none.npy"), "--output", str(tmp_path / "out")]) == 2
    assert "there is no file" in capsys.readouterr().err
