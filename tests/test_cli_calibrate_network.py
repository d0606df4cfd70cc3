"""`calibrate --model`: a checkpoint as Flax's users write one, to thresholds and a model again."""

import json
import shutil
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from test_cli_main import refused

from jaxtrelu.__main__ import main
from jaxtrelu.nnx import ThresholdedReLU, swap_activations

CODE = """
import jax.numpy as jnp
from flax import nnx


class Net(nnx.Module):
    def __init__(self, rngs, width=32):
        self.first = nnx.Linear(6, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.act = nnx.relu
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(width, width, rngs=rngs), nnx.gelu])
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        h = self.drop(self.act(self.norm(self.first(x))))
        return self.head(self.blocks[1](self.blocks[0](h)))


def build():
    return Net(nnx.Rngs(0))


def wider():
    return Net(nnx.Rngs(0), 40)


def failing():
    raise RuntimeError("no weights today")


def twice(model, rows):
    return model.act(model(rows) @ jnp.ones((3, 32)))


def scaled(model, rows):
    return model(10 * rows)


number = 3
"""
ROWS = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trained model's state, in the ways in which people save it, and its module."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "a_net.py").write_text(CODE)
    (folder / "__pycache__").mkdir()
    np.save(folder / "rows.npy", ROWS)
    np.save(folder / "narrow.npy", ROWS[:, :5])
    broken = ROWS.astype(np.float64)
    broken[[400, 17], 2] = np.nan, 1e300
    np.save(folder / "broken.npy", broken)
    names: dict = {}
    exec(CODE, names)
    model = names["Net"](nnx.Rngs(7))
    model.norm.mean[...] = model.norm.mean[...] + 0.25  # as training moves it
    model.eval()
    weights = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    with ocp.StandardCheckpointer() as files:
        files.save(folder / "state", nnx.state(model))
        files.save(folder / "pure", nnx.to_pure_dict(nnx.state(model)))
        files.save(folder / "nested", {"model": weights, "step": 3})
        files.save(folder / "twice", {"model": weights, "ema": weights})
        files.wait_until_finished()
    with ocp.CheckpointManager(folder / "steps") as manager:
        for step in (2, 10):
            tree = jax.tree.map(lambda v, step=step: v * (step == 10), weights)
            manager.save(step, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
    return folder, model


@pytest.fixture
def inside(saved, monkeypatch):
    """Called from the folder; what the command imports is forgotten afterwards."""
    monkeypatch.chdir(saved[0])
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield saved
    sys.modules.pop("a_net", None)


def calibrate(*words):
    assert main(["calibrate", *map(str, words)]) == 0


def found_by(tmp_path, *words):
    path = tmp_path / "found.json"
    calibrate(*words, "--output", path)
    return json.loads(path.read_text())


COMMON = ["--model", "a_net:build", "--data", "rows.npy"]


@pytest.mark.parametrize(
    ("checkpoint", "options"),
    [
        ("state", []),
        ("pure", ["--model", "a_net.py:build"]),
        ("nested", []),
        ("steps", []),
        ("twice", ["--part", "ema"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_way_of_saving_gives_the_thresholds_of_swap_activations(
    checkpoint, options, inside, tmp_path, capsys
):
    _, model = inside
    words = [*COMMON, *options, "--held-out", "0", "--sparsity", "0.8"]
    found = found_by(tmp_path, checkpoint, *words)
    expected = swap_activations(model, ROWS, sparsity=0.8)
    (result,) = found["results"]
    assert [layer["path"] for layer in result["layers"]] == ["act", "blocks.1"]
    for layer, wanted in zip(result["layers"], expected.layers, strict=True):
        assert layer["threshold"] == pytest.approx(float(wanted.threshold), rel=1e-5)
        assert layer["held_out"] is None and layer["was"] == wanted.was
    assert result["kept_after"] == expected.kept_after < result["kept_before"]
    assert found["checkpoint"].endswith({"steps": "steps/10/default"}.get(checkpoint, checkpoint))
    out = capsys.readouterr().out
    assert "500 rows to calibrate on, 0 held out" in out and "80.00% zeros in each layer" in out


def test_held_out_rows_are_counted_layer_by_layer(inside, tmp_path):
    """As counted here, from the thresholds reported and the rows that they were not found from."""
    _, model = inside
    found = found_by(tmp_path, "state", *COMMON, "--sparsity", "0.7", "0.9", "--rows", "400")
    assert (found["rows"], found["held_out_rows"]) == (320, 80)
    for result, share in zip(found["results"], (0.7, 0.9), strict=True):
        first, _ = result["layers"]
        assert first["reached"] == pytest.approx(share, abs=5e-3)
        assert 0 < abs(first["held_out"] - share) < 0.05
        assert 0 < result["output_change"] < 1
    # The 80 rows are among the 500: their zeros are nearly those of all.
    z = np.asarray(model.norm(model.first(ROWS)))
    closed = np.mean(z <= found["results"][1]["layers"][0]["threshold"])
    assert closed == pytest.approx(found["results"][1]["layers"][0]["held_out"], abs=0.03)
    few, more = (result["output_change"] for result in found["results"])
    assert few < more


def test_a_wanted_error_some_layers_and_another_forward_pass(inside, tmp_path, capsys):
    _, model = inside
    words = ["--error", "0.2", "--layers", "a*", "--forward", "a_net:scaled", "--held-out", "0"]
    found = found_by(tmp_path, "state", *COMMON, *words)
    expected = swap_activations(
        model,
        ROWS,
        error=0.2,
        which=lambda path, value: path[-1] == "act",
        forward=lambda model, rows: model(10 * rows),
    )
    ((layer,),) = [result["layers"] for result in found["results"]]
    assert layer["threshold"] == pytest.approx(float(expected.layers[0].threshold), rel=1e-3)
    assert layer["error"] == pytest.approx(0.2, abs=0.01) and layer["error"] <= 0.2
    assert found["wish"] == "error" and "error of the next" in capsys.readouterr().out


def test_the_saved_model_and_the_npz_file(inside, tmp_path, capsys):
    """What is saved goes into an exchanged model, which then computes the same."""
    _, model = inside
    words = [*COMMON, "--per-channel", "--variant", "shift", "--held-out", "0"]
    calibrate("state", *words, "--save", tmp_path / "new", "--output", tmp_path / "t.npz")
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "new")
    stored = np.load(tmp_path / "t.npz")
    assert stored["act.threshold"].shape == (1, 32) and stored["sparsity"].tolist() == [0.8]
    assert str(stored["variant"]) == "shift"
    expected = swap_activations(model, ROWS, per_channel=True, variant="shift").model
    other = swap_activations(
        inside_model(inside), ROWS[:9], per_channel=True, variant="shift"
    ).model
    state = nnx.state(other)
    with ocp.StandardCheckpointer() as files:
        read = files.restore(tmp_path / "new", nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, read)
    nnx.update(other, state)
    other.eval()
    assert isinstance(other.act, ThresholdedReLU)
    np.testing.assert_allclose(other(ROWS), expected(ROWS), rtol=1e-4, atol=1e-5)


def inside_model(inside):
    """Another model of the kind, with other weights."""
    return type(inside[1])(nnx.Rngs(3))


def test_the_model_is_run_as_in_evaluation(inside, tmp_path):
    """Dropout and batch statistics of a training step would change what arrives."""
    runs = [found_by(tmp_path, "state", *COMMON, "--seed", "1")["results"] for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["state"], "state is a folder: for a checkpoint pass --model"),
        (["rows.npy", "--data", "rows.npy"], "--data is for a network: pass --model as well"),
        (["state", "--model", "a_net:build"], "--model needs --data"),
        (["state", *COMMON, "--method", "sketch"], "--method is for a file of pre-activations"),
        (["state", *COMMON, "--sparsity", "1"], "--sparsity should be between 0 and 1"),
        (["state", *COMMON, "--error", "0"], "--error should be between 0 and 1"),
        (["state", *COMMON, "--error", ".1", "--sparsity", ".8"], "two ways to say what is wanted"),
        (["state", *COMMON, "--error", ".1", "--per-channel"], "no --per-channel"),
        (["state", *COMMON, "--error", "1e-4"], "the exchange of gelu for a threshold of 0 itself"),
        (["state", *COMMON, "--layers", "none*"], "--layers none* names no activation of the"),
        (["state", *COMMON, "--layers", "*", "zzz"], "--layers zzz names no activation of the"),
        (["state", *COMMON, "--save", "state"], "a folder that is not there yet"),
        (["state", *COMMON, "--save", "x", "--sparsity", ".8", ".9"], "--save is of one model"),
        (["state", *COMMON, "--held-out", "0.9", "--rows", "2"], "too few to hold out"),
        (["state", *COMMON, "--data", "no.npy"], "cannot read no.npy"),
        (
            ["state", *COMMON, "--data", "narrow.npy"],
            "rows of narrow.npy, whose shape is (5,)",
        ),
        (["state", *COMMON, "--data", "broken.npy"], "broken.npy holds NaN or infinity in row "),
        (["state", *COMMON, "--forward", "a_net:twice"], "build: act is applied more than once"),
        (["nowhere", *COMMON], "nowhere is not there"),
        (["rows.npy", *COMMON], "rows.npy is a file, not the folder of an Orbax checkpoint"),
        (["steps/2", *COMMON, "--part", "x"], "has no part 'x'"),
        ([".", *COMMON], ". holds nested, pure, state and 1 more: pass one of these folders"),
        (["__pycache__", *COMMON], "__pycache__ holds no Orbax checkpoint"),
        (["twice", *COMMON], "fits several parts of"),
        (["nested", *COMMON, "--part", "weights"], "has no part 'weights': there are model, step"),
        (["state", *COMMON, "--model", "a_net"], "should be MODULE:FUNCTION"),
        (["state", *COMMON, "--model", "a_net:nothing"], "a_net has no 'nothing'"),
        (["state", *COMMON, "--model", "a_net:number"], "number of a_net should be a function"),
        (["state", *COMMON, "--model", "no_net:build"], "cannot import no_net: ModuleNotFound"),
        (["state", *COMMON, "--model", "no_net.py:build"], "there is no file no_net.py"),
        (["state", *COMMON, "--model", "a_net:Net"], "a_net:Net raised TypeError"),
        (["state", *COMMON, "--model", "builtins:dict"], "should return a flax.nnx.Module"),
        (["state", *COMMON, "--model", "a_net:wider"], "has shape (32,), not (40,)"),
        (["state", *COMMON, "--forward", "a_net:build"], "--forward a_net:build raised TypeError"),
    ],
)
def test_what_is_refused(words, sentence, inside, capsys):
    folder, _ = inside
    before = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
    assert sentence in refused(capsys, "calibrate", *words)
    assert before == sorted(p.name for p in folder.iterdir() if p.name != "__pycache__")


def test_errors_in_the_users_code_name_their_line(inside, capsys):
    line = CODE.splitlines().index('    raise RuntimeError("no weights today")') + 1
    message = refused(capsys, "calibrate", "state", *COMMON, "--model", "a_net:failing")
    assert "a_net:failing raised RuntimeError: no weights today" in message
    assert f"a_net.py, line {line})" in message


def test_another_models_checkpoint_and_a_damaged_one(inside, tmp_path, capsys):
    folder, _ = inside
    with ocp.StandardCheckpointer() as files:
        files.save(
            tmp_path / "other", {"first": {"kernel": np.zeros((6, 32))}, "extra": np.ones(2)}
        )
        files.wait_until_finished()
    message = refused(capsys, "calibrate", tmp_path / "other", *COMMON)
    assert "it lacks blocks.0.bias, blocks.0.kernel, first.bias and" in message
    shutil.copytree(folder / "pure", tmp_path / "broken")
    for file in (tmp_path / "broken").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"nonsense")
    assert "cannot read the checkpoint" in refused(
        capsys, "calibrate", tmp_path / "broken", *COMMON
    )


def test_an_error_of_the_next_layer_from_files(tmp_path, capsys):
    """Of pre-activations and weights in files: the definition, on the rows used and held out."""
    rng = np.random.default_rng(0)
    z, w = rng.normal(size=(400, 16)).astype(np.float32), rng.normal(size=(16, 8))
    np.save(tmp_path / "z.npy", z)
    np.save(tmp_path / "w.npy", w.astype(np.float32))
    bad = tmp_path / "bad.npy"
    np.save(bad, np.where(np.arange(16)[:, None] == 5, np.nan, w))
    files = [tmp_path / "z.npy", "--weights", tmp_path / "w.npy"]
    words = [*files, "--error", 0.1, 0.3, "--variant", "hard", "--held-out", 0]
    found = found_by(tmp_path, *words)
    for result, error in zip(found["results"], (0.1, 0.3), strict=True):
        whole, kept = np.maximum(z, 0), np.where(z > result["threshold"], z, 0)
        off = np.linalg.norm((kept - whole) @ w) / np.linalg.norm(whole @ w)
        assert result["error"] == error and 0.98 * error < result["error_reached"] <= error
        assert result["error_reached"] == pytest.approx(off, rel=1e-4)
        assert result["reached"] == pytest.approx(np.mean(kept == 0), abs=1e-6)
        assert result["error_held_out"] is None
    aside = found_by(tmp_path, *files, "--error", 0.1, "--variant", "hard")["results"][0]
    assert aside["error_held_out"] == pytest.approx(0.1, abs=0.03)
    assert abs(aside["error_held_out"] - aside["error_reached"]) > 1e-3  # of other rows
    assert "error, there, held out" in capsys.readouterr().out
    for words, sentence in (
        ([files[0], "--error", 0.1], "--error needs --weights"),
        ([files[0], "--error", 0.1, "--weights", bad], "--weights holds NaN or infinity in row 5"),
        ([*files], "--weights is for --error"),
        ([files[2], "--error", 0.1, "--weights", files[0]], "should have shape (8, outputs)"),
    ):
        assert sentence in refused(capsys, "calibrate", *words)
