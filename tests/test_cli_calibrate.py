"""`calibrate`: the shares that it reaches, counted here, its files, and what it refuses."""

import json
import sys

import numpy as np
import pytest
from scipy import stats
from test_cli_main import refused

from jaxtrelu.__main__ import main
from jaxtrelu._cli import parser

SCALES = np.array([0.5, 1.0, 4.0])


@pytest.fixture
def normal(tmp_path):
    """4,000 rows of three channels of different spread."""
    data = (np.random.default_rng(0).normal(size=(40, 100, 3)) * SCALES + 1).astype(np.float32)
    path = tmp_path / "z.npy"
    np.save(path, data)
    return path, data.reshape(-1, 3)


def run(*words):
    assert main(["calibrate", *map(str, words)]) == 0


@pytest.mark.parametrize("channels", [[], ["--per-channel"]], ids=["shared", "per channel"])
def test_reaches_the_share_exactly(channels, normal, tmp_path, capsys):
    path, data = normal
    output = tmp_path / "out" / "found.json"
    run(path, "--sparsity", 0.5, 0.9, "--held-out", 0, *channels, "--output", output)
    found = json.loads(output.read_text())
    out = capsys.readouterr().out
    assert out.endswith(f"{output}\n")
    assert "4,000 rows of 3 to calibrate on, 0 held out" in out
    assert [result["sparsity"] for result in found["results"]] == [0.5, 0.9]
    for result in found["results"]:
        closed = data <= np.array(result["threshold"], np.float32)
        s = result["sparsity"]
        assert np.shape(result["threshold"]) == ((3,) if channels else ())
        shares = closed.mean(0) if channels else closed.mean()
        assert np.all(shares >= s) and np.all(shares < s + 1e-3)
        assert result["reached"] == pytest.approx(closed.mean(), abs=1e-12)
        assert result["held_out"] is None


def test_held_out_rows_are_others_and_the_same_each_time(normal, tmp_path):
    path, data = normal
    files = [tmp_path / f"{name}.npz" for name in "abc"]
    for file, seed in zip(files, (3, 3, 4), strict=True):
        run(path, "--sparsity", 0.8, "--held-out", 0.25, "--seed", seed, "--output", file)
    one, again, other = (dict(np.load(file)) for file in files)
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert one["threshold"] != other["threshold"]
    assert str(one["variant"]) == "shift"
    # What is not counted on the one set is counted on the other.
    closed = (data <= one["threshold"][0]).mean(0)
    rest = (closed - one["reached"][0]) / (one["held_out"][0] - one["reached"][0])
    np.testing.assert_allclose(rest, 0.25, atol=0.03)
    np.testing.assert_allclose(rest, rest[0], rtol=1e-4)
    assert abs(one["held_out"].mean() - 0.8) < 0.03


def test_the_normal_distribution(normal, tmp_path):
    """Block by block as at once; and on data that are normal, near the quantile."""
    path, data = normal
    file = tmp_path / "found.npz"
    run(path, "--method", "gaussian", "--per-channel", "--held-out", 0, "--output", file)
    expected = data.mean(0, dtype=float) + data.std(0, dtype=float) * stats.norm.ppf(0.8)
    found = dict(np.load(file))
    np.testing.assert_allclose(found["threshold"][0], expected, rtol=1e-6)
    np.testing.assert_allclose(found["reached"][0], 0.8, atol=0.02)


@pytest.mark.parametrize("method", ["quantile", "gaussian"])
def test_blocks_make_no_difference(method, normal, tmp_path, monkeypatch):
    from jaxtrelu._cli.calibrate import data as reading

    path, _ = normal
    files = [tmp_path / "whole.npz", tmp_path / "parts.npz"]
    for file, size in zip(files, (2**22, 3 * 64), strict=True):
        monkeypatch.setattr(reading, "_BLOCK", size)
        run(path, "--method", method, "--held-out", 0, "--output", file)
    one, other = (np.load(file) for file in files)
    for name in ("threshold", "reached"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-9)


def test_the_sketch_is_within_its_bound(normal, tmp_path, capsys):
    pytest.importorskip("datasketches", reason="datasketches is not installed")
    path, data = normal
    file = tmp_path / "found.json"
    run(path, "--method", "sketch", "--per-channel", "--held-out", 0, "--output", file)
    found = json.loads(file.read_text())
    assert 0 < found["rank_error"] < 0.002
    closed = (data <= np.array(found["results"][0]["threshold"], np.float32)).mean(0)
    # The bound has 99 % confidence, and the sketch its own random numbers: four times it.
    assert np.all(np.abs(closed - 0.8) < 4 * found["rank_error"])
    assert "with 99 % confidence" in capsys.readouterr().out


def test_a_missing_sketch_is_named(normal, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasketches", None)
    message = refused(capsys, "calibrate", normal[0], "--method", "sketch")
    assert "pip install 'jaxtrelu[calibration]'" in message


def test_an_npz_file(normal, tmp_path, capsys):
    path = tmp_path / "two.npz"
    np.savez(path, a=np.arange(10.0), b=normal[1])
    run(path, "--array", "a", "--sparsity", 0.7, "--held-out", 0)
    assert "10 rows of 1" in capsys.readouterr().out
    assert "pass --array, one of ['a', 'b']" in refused(capsys, "calibrate", path)
    assert "has no array 'c'" in refused(capsys, "calibrate", path, "--array", "c")


def saved(folder, name, array):
    np.save(folder / name, array, allow_pickle=True)
    return folder / name


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.arange(10), "should hold floating-point numbers, but its dtype is int64"),
        (np.array([None, 1]), "should be a .npy or .npz file of numbers"),
        (np.zeros((0, 3)), "should hold rows of numbers, but its shape is (0, 3)"),
        (np.float32(1), "should hold rows of numbers, but its shape is ()"),
        (np.array([1.0, np.nan] * 50), "bad.npy holds NaN or infinity in row 1 (counted from 0)"),
        (np.array([1.0] * 98 + [1e300, 1]), "bad.npy holds NaN or infinity in row 98 (counted"),
        (np.full((30, 5, 2), np.inf) ** (np.arange(30) > 28)[:, None, None], "in row 29 (counted"),
        (np.ones((100, 2)), "all values of `data` are equal"),
        (np.array([[1.0, 2.0]]), "has 1 rows, too few to hold out a share of 0.2"),
    ],
)
def test_bad_data(array, words, tmp_path, capsys):
    path = saved(tmp_path, "bad.npy", array)
    output = tmp_path / "out.json"
    assert words in refused(capsys, "calibrate", path, "--output", output)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sparsity", "1"], "--sparsity should be between 0 and 1, both left out, not 1."),
        (["--sparsity", "-1e-3"], "--sparsity should be between 0 and 1"),
        (["--sparsity", "nan"], "--sparsity should be between 0 and 1"),
        (["--held-out", "1"], "--held-out should be from 0 to 0.9, but is 1."),
        (["--seed", "-1"], "--seed should be from 0 to"),
        (["--variant", "clamp"], "--variant clamp has no zeros"),
        (["--output", "x.txt"], "--output should end in .json or .npz, but is x.txt."),
        (["--array", "a"], "--array is for .npz files"),
        (["--method", "guess"], "invalid choice: 'guess'"),
    ],
)
def test_bad_options(options, words, normal, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, "calibrate", "z.npy", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["z.npy"]


def test_files_that_are_none(tmp_path, capsys):
    assert "no such file" in refused(capsys, "calibrate", tmp_path / "nothing.npy")
    (tmp_path / "text.npy").write_text("text")
    assert "should be a .npy or .npz" in refused(capsys, "calibrate", tmp_path / "text.npy")
    assert "calibrate" in parser.COMMANDS
