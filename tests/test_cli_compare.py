"""`compare`: data that is refused, numbers that are right, files that can be read."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from flax import nnx

from jaxtrelu.__main__ import main
from jaxtrelu._cli import datasets
from jaxtrelu._cli.compare import experiment, network, results, settings, training

# One of each sort.
SOME = ["relu", "leaky_relu", "gelu", "shift-fixed", "clamp-calibrated", "hard-learned"]
TINY = ["--epochs", "2", "--seeds", "2", "--width", "8", "--depth", "1", "--learning-rate", "0.01"]


def rows(count=30, features=4, classes=3, seed=0):
    """Separable rows."""
    labels = np.arange(count) % classes
    noise = np.random.default_rng(seed).normal(size=(count, features))
    return noise + 4 * labels[:, None], labels


def compare(*arguments):
    return main(["compare", *map(str, arguments)])


class Ran(NamedTuple):
    """A run that went well."""

    output: object  # the folder
    out: str
    err: str


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A small file of the user's own."""
    path = tmp_path_factory.mktemp("compare") / "mine.npz"
    x, y = rows()
    np.savez(path, X=x, y=np.array(["red", "green", "blue"])[y])
    return path


@pytest.fixture(scope="module")
def tiny(mine):
    """One run of all sorts on it, in a terminal of 100 characters."""
    output = mine.parent / "output"
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            arguments = ("--data", mine, "--output", output, *TINY, "--activations", *SOME[1:])
            assert compare(*arguments) == 0
    return Ran(output, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def ascii_run(mine):
    """ReLU alone, in a terminal that has nothing but ASCII."""
    output = mine.parent / "ascii"
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(stream):
        assert compare("--data", mine, "--output", output, *TINY, "--activations", "relu") == 0
        stream.flush()
    return Ran(output, stream.buffer.getvalue().decode("ascii"), "")


def per_seed(output, name):
    return json.loads((output / "compare.json").read_text())["per_seed"][name]


# What it writes.


def test_files(tiny):
    figures = ("accuracy_sparsity", "fatrelu_after_training", "learned_thresholds")
    figures += ("learning_curves",)
    expected = ["compare.csv", "compare.json"]
    expected += [f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    assert sorted(path.name for path in tiny.output.iterdir()) == sorted(expected)
    for name in figures:
        assert (tiny.output / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert (tiny.output / f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_csv_and_json_agree(tiny):
    with open(tiny.output / "compare.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    document = json.loads((tiny.output / "compare.json").read_text())
    assert [record["activation"] for record in table] == SOME
    assert list(table[0]) == list(document["columns"]) == list(results.COLUMNS)
    for record, found in zip(table, document["results"], strict=True):
        for column, value in found.items():
            assert record[column] == value or float(record[column]) == value
    assert document["settings"]["width"] == 8
    assert document["about"]["classes"] == 3
    assert len(document["per_seed"]["relu"]["test_accuracy"]) == 2
    assert np.shape(document["per_seed"]["relu"]["loss_by_epoch"]) == (2, 2)


def test_numbers_are_possible(tiny):
    found = json.loads((tiny.output / "compare.json").read_text())["results"]
    for record in found:
        for share in ("test_accuracy", "zeros", "closed"):
            assert 0 <= record[share] <= 1
        assert 0 <= record["dead_units"] <= record["units"] == 8
        assert 0 < record["time_ratio_low"] <= record["time_ratio"] <= record["time_ratio_high"]
    by_name = {record["activation"]: record for record in found}
    assert by_name["gelu"]["zeros"] == by_name["leaky_relu"]["closed"] == 0
    for name in ("relu", "shift-fixed", "hard-learned"):
        assert by_name[name]["zeros"] == by_name[name]["closed"] > 0
    assert by_name["clamp-calibrated"]["zeros"] == 0 < by_name["clamp-calibrated"]["closed"]
    assert by_name["relu"]["difference"] == 0
    assert all(0 <= record["read"] <= 1 for record in found)


def test_fatrelu_after_training(tiny):
    """The shares that were asked for, on other rows; and zeros enough leave nothing to read."""
    cut = json.loads((tiny.output / "compare.json").read_text())["fatrelu_after_training"]
    assert list(cut) == ["relu", "gelu"]
    for found in cut.values():
        zeros = np.mean(found["zeros"], 0)
        assert np.all(np.diff(zeros) >= 0)
        np.testing.assert_allclose(zeros[1:4], found["sparsity"][1:4], atol=0.15)
        assert np.shape(found["test_accuracy"]) == (2, len(experiment.SHARES))


def test_thresholds_after_training_are_those_of_the_layers_in_turn():
    kernels = network.initial_kernels(jax.random.key(0), (10, 64, 64, 3))
    net = network.Network(kernels, "gelu", 0.0)
    x = np.asarray(jax.random.normal(jax.random.key(1), (300, 10)))
    cut = net.with_zeros(jnp.asarray(x), 0.8)
    h = x
    for dense, threshold, value in zip(net.dense, cut.thresholds, cut.hidden(x)[1], strict=True):
        z = np.asarray(dense(h))
        assert float(threshold) == pytest.approx(np.quantile(z, 0.8), abs=5e-3)
        h = np.where(z > np.asarray(threshold), z, 0)
        np.testing.assert_allclose(value, h, atol=1e-4)


def test_the_same_seed_gives_the_same(tiny, ascii_run):
    """Whatever else is compared."""
    assert per_seed(tiny.output, "relu") == per_seed(ascii_run.output, "relu")


def test_another_seed_gives_another_start(mine):
    """Other splits, other kernels, another order of batches."""
    small = settings.Settings(("relu",), 1, 1, 2, 1, 8, (0.01,), 0.8, 1.0, 0)
    found = [
        training.stack_runs(datasets.load(str(mine)), dataclasses.replace(small, seed=seed))[0]
        for seed in (0, 1)
    ]
    for part in ("train", "kernels", "key"):
        first, second = (jax.tree.leaves(getattr(runs, part))[0] for runs in found)
        assert jnp.any(first != second), part


def test_table_and_sentence(tiny):
    assert "mine: 30 rows" in tiny.out
    assert "±" in tiny.out
    assert "may be noise" in " ".join(tiny.out.split())
    assert f"wrote {tiny.output / 'compare.csv'}" in tiny.out
    # Without a terminal the progress is a line per activation.
    assert [line.split()[0] for line in tiny.err.splitlines()] == SOME


def test_a_table_in_ascii(ascii_run):
    (line,) = [line for line in ascii_run.out.splitlines() if line.startswith("relu ")]
    assert " +- " in line
    assert "+- their standard error" in ascii_run.out.replace("\n", " ")
    assert "\\u" not in ascii_run.out
    assert f"wrote {ascii_run.output / 'compare.csv'}" in ascii_run.out


@pytest.mark.parametrize(
    ("width", "read", "quartiles", "rate"),
    [(80, 0, 0, 0), (86, 1, 0, 0), (98, 1, 1, 0), (106, 1, 1, 1)],
)
def test_what_gives_way_in_a_narrow_terminal(width, read, quartiles, rate):
    """The probe, the quartiles of the times and the chosen rates, and nothing is cut off."""
    values = (
        0.123,
        0.101,
        -0.133,
        0.106,
        0.5,
        0.8,
        100.0,
        256,
        0.9,
        24.0,
        0,
        0.1,
        1.0,
        0.9,
        1.1,
        0.003,
    )
    record = dict(zip(results.COLUMNS, ("clamp-calibrated", *values), strict=True))
    chosen = settings.Settings(("relu",), 5, 30, 128, 2, 64, (0.003,), 0.8, 1.0, 0)
    screen = rich.console.Console(width=width, file=io.StringIO())
    results.show(screen, [{**record, "activation": "relu"}, record], chosen, datasets.load("iris"))
    lines = screen.file.getvalue().splitlines()
    header = next(line for line in lines if line.startswith("activation"))
    columns = "activation accuracy, % vs relu zeros closed dead" + " read" * read + " bytes time"
    assert " ".join(header.split()) == columns + " rate" * rate
    (row,) = [line for line in lines if line.startswith("clamp-calibrated")]
    time = "1.00 (0.90–1.10)" if quartiles else "1.00"
    shown = f"clamp-calibrated 12.3 ± 10.1 -13.3 ± 10.6 50% 80% 100.0{' 90.0' * read} 24.00 {time}"
    assert " ".join(row.split()) == shown + " 0.003" * rate
    said = " ".join(" ".join(lines[lines.index(row) + 1 :]).split())
    for name in ("zeros", "closed", "dead", "read", "bytes", "time"):
        assert f"{name} " in said, f"{name} is not explained"
    assert said.count(". ") + 1 == 2  # sentences


def test_relu_learns_digits_and_a_reader_that_goes_away_costs_no_file(tmp_path):
    """The reader goes as `head -1` does."""
    reader, writer = os.pipe()
    os.close(reader)
    size = ["--epochs", "5", "--seeds", "1", "--width", "32", "--depth", "1"]
    arguments = [*size, "--activations", "relu", "--learning-rate", "3e-3"]
    with os.fdopen(writer, "w") as stream, contextlib.redirect_stdout(stream):
        assert compare("--output", tmp_path, *arguments) == 141
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".json", ".png", ".svg"}
    (record,) = json.loads((tmp_path / "compare.json").read_text())["results"]
    assert record["activation"] == "relu"
    assert record["test_accuracy"] > 0.85


# What it measures.


@pytest.mark.parametrize(
    ("name", "kept"),
    [("relu", 9.0), ("leaky_relu", 5.0), ("shift-fixed", 4.125), ("hard-fixed", 4.125)],
)
def test_kept_bytes(name, kept):
    kernels = network.initial_kernels(jax.random.key(0), (10, 64, 64, 3))
    found = experiment.kept_bytes_per_unit(network.Network(kernels, name, 1.0), batch=128)
    assert found == pytest.approx(kept, abs=0.01)


def test_calibration_reaches_the_share():
    kernels = network.initial_kernels(jax.random.key(0), (10, 64, 64, 3))
    net = network.Network(kernels, "hard-calibrated", 0.0)
    x = jax.random.normal(jax.random.key(1), (200, 10))
    net.calibrate(x, 0.7)
    _, values, slopes = net.hidden(x)
    for value, slope in zip(values, slopes, strict=True):
        assert float(jnp.mean(slope == 0)) == pytest.approx(0.7, abs=1e-3)
        np.testing.assert_array_equal(value == 0, slope == 0)


def test_quantile_against_numpy():
    values = jax.random.normal(jax.random.key(0), (50, 40))
    expected = np.quantile(np.asarray(values), 0.8)
    assert float(network.quantile(values, 0.8)) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("name", settings.ACTIVATIONS)
def test_only_learned_thresholds_are_trained(name):
    kernels = network.initial_kernels(jax.random.key(0), (4, 8, 3))
    net = network.Network(kernels, name, 0.5)

    def loss(net):
        return jnp.sum(net(jnp.linspace(-2, 2, 40).reshape(10, 4)) ** 2)

    gradient = nnx.to_pure_dict(nnx.state(nnx.grad(loss)(net), nnx.Param))
    learned = "threshold" in gradient.get("activations", {0: {}}).get(0, {})
    assert learned == name.endswith("-learned")
    if learned:
        assert jnp.any(gradient["activations"][0]["threshold"] != 0)


def test_time_ratio_of_a_call_that_does_more():
    ratio, seconds = experiment.time_ratio(lambda: sum(range(200_000)), lambda: None)
    assert ratio.low > 1
    assert seconds > 0


def test_splits_are_stratified_and_disjoint():
    labels = np.repeat([0, 1, 2], [3, 20, 101]).astype(np.int32)
    first, second = (datasets.stratified_split(labels, seed) for seed in (0, 1))
    for split in (first, second):
        parts = (split.train, split.validation, split.test)
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
        assert all(set(labels[part]) == {0, 1, 2} for part in parts)
    assert first.test.shape == second.test.shape
    assert set(first.test) != set(second.test)


@pytest.mark.parametrize("name", datasets.BUNDLED)
def test_bundled_data(name):
    found = datasets.load(name)
    assert found.features.dtype == np.float32
    assert found.features.ndim == 2
    assert set(found.labels) == set(range(found.classes))


# What it refuses: one sentence, status 2, and no file.


def refused(capsys, folder, *arguments):
    before = sorted(path.name for path in folder.iterdir())
    assert compare("--output", folder / "out", *TINY, *arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("jaxtrelu: error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(path.name for path in folder.iterdir()) == before
    return err


X, Y = rows()


def changed(row, column, value):
    x = X.copy()
    x[row, column] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": Y}, "holds y but not X"),
        ({"X": X}, "holds X but not y"),
        ({"a": X, "b": Y}, "holds a, b but not X and y"),
        ({"X": X.astype(str), "y": Y}, "X should hold real numbers, but has dtype <U"),
        ({"X": X * 1j, "y": Y}, "X should hold real numbers, but has dtype complex128"),
        ({"X": X[:, 0], "y": Y}, "has shape (30,)"),
        ({"X": X[:0], "y": Y[:0]}, "X is empty: its shape is (0, 4)"),
        ({"X": X[:, :0], "y": Y}, "X is empty"),
        (
            {"X": changed(7, 2, np.nan), "y": Y},
            "bad.npz: X holds nan at row 7, column 2, counted",
        ),
        ({"X": changed(slice(4, 6), 1, np.inf), "y": Y}, "row 4, column 1 (and 1 more"),
        ({"X": changed(3, 0, 1e300), "y": Y}, "X holds 1e+300 at row 3, column 0"),
        ({"X": X, "y": Y * 0}, "one class only (0)"),
        ({"X": X, "y": Y[:-1]}, "X has 30 rows but y has 29 labels"),
        ({"X": X, "y": np.eye(3)[Y]}, "y should have shape (rows,)"),
        ({"X": X, "y": Y + 0.5}, "regression"),
        ({"X": X, "y": np.where(Y == 1, np.nan, Y)}, "y holds nan at row 1"),
        ({"X": X, "y": Y * 1j}, "y should hold numbers or strings"),
        ({"X": X, "y": np.array([5] + [0, 1] * 14 + [0])}, "class 5 has 1 row(s) of 30"),
        ({"X": X.astype(object), "y": Y}, "Python objects"),
        ({"X": X, "y": Y.astype(object)}, "Python objects"),
    ],
)
def test_bad_arrays(arrays, words, tmp_path, capsys):
    np.savez(tmp_path / "bad.npz", **arrays)
    assert words in refused(capsys, tmp_path, "--data", tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a readable .npz file"),
        (b"X,y\n1,2\n", "not a readable .npz file"),
        (pickle.dumps({"X": X, "y": Y}), "not a readable .npz file"),
    ],
)
def test_files_of_another_kind(content, words, tmp_path, capsys):
    (tmp_path / "bad.npz").write_bytes(content)
    assert words in refused(capsys, tmp_path, "--data", tmp_path / "bad.npz")


def test_a_damaged_file(tmp_path, capsys):
    np.savez_compressed(tmp_path / "bad.npz", X=X, y=Y)
    content = bytearray((tmp_path / "bad.npz").read_bytes())
    content[200:260] = bytes(60)
    (tmp_path / "bad.npz").write_bytes(content)
    assert "bad.npz" in refused(capsys, tmp_path, "--data", tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "digitz"], "no data set 'digitz'"),
        (["--data", "rows.npy"], "--data takes no file such as rows.npy, but a .npz file with X"),
        (["--data", "a/b.csv"], "--data takes no file such as a/b.csv, but a .npz file with X"),
        (["--data", "diabetes"], "regression"),
        (["--data", "nowhere.npz"], "there is no file nowhere.npz"),
        (["--data", "/proc/self.npz/x.npz"], "/proc/self.npz/x.npz"),
        (["--activations", "shift-leraned"], "did you mean shift-learned?"),
        (["--width", "100000"], "--width should be from 1 to 8192, but is 100000"),
        (["--width", "8192", "--depth", "32", "--seeds", "64"], "GB"),
        (["--width", "4096", "--epochs", "10000", "--depth", "9"], "operations"),
        (["--depth", "0"], "--depth should be from 1"),
        (["--seeds", "0"], "--seeds should be from 1"),
        (["--epochs", "-1"], "--epochs should be from 1"),
        (["--epochs", "many"], "invalid int value: 'many'"),
        (["--batch", "0"], "--batch should be from 1"),
        (["--seed", "-1"], "--seed should be from 0 to 4294967295, but is -1."),
        (["--seed", "1" + "0" * 400], "--seed should be from 0 to 4294967295, but is 1000"),
        (["--seed", "-1e3"], "invalid int value: '-1e3'"),
        (["--threshold", "-1e9"], "--threshold should be from -1e+06 to 1e+06, but is -1e+09."),
        (["--sparsity", "1"], "--sparsity should be from 0.01 to 0.99"),
        (["--threshold", "nan"], "--threshold should be from"),
        (["--learning-rate", "0"], "--learning-rate should be from"),
        (["--learning-rate", *"123456789"], "at most 8 values, but got 9"),
    ],
)
def test_bad_arguments(arguments, words, tmp_path, capsys):
    assert words in refused(capsys, tmp_path, *arguments)


def test_unwritable_output(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "cannot write" in refused(capsys, tmp_path, "--output", tmp_path / "file" / "folder")
