"""`depth`: what nets do before training against the formulas, files, resuming, what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrelu.__main__ import main
from jaxtrelu._cli import datasets, parser
from jaxtrelu._cli.depth import initialisation, network, runs, settings, training

TINY = ["--depth", "3", "--width", "8", "--epochs", "2", "--seeds", "2", "--batch", "16"]
TINY += ["--sparsity", "0.7", "--slope", "0.5", "--data", "iris"]


def depth(*arguments):
    return main(["depth", *map(str, arguments)])


def agreed(**changes):
    values = {
        **{
            "depth": 3,
            "width": 8,
            "seeds": 2,
            "epochs": 1,
            "batch": 16,
            "optimiser": "adam",
            "learning_rate": 1e-3,
        },
        **{"sparsity": (0.7, 0.85), "slope": (0.5, 0.9), "seed": 0, "together": 1},
    }
    return settings.Settings(**{**values, **changes})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth")
    assert depth(*TINY, "--output", folder) == 0
    return folder


# What nets do before training.


@pytest.mark.slow
def test_a_layer_does_what_the_formulas_say():
    """To 2 %, at a width at which what they leave out, of order 1/(width · open), is below that."""
    wanted = settings.configurations(agreed(sparsity=(0.7,), slope=(0.5,)))
    x = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    rows = np.asarray(training.prepared(x, 0.0))
    measured = initialisation.measure(wanted, rows, width=300, depth=8, seed=1, nets=8)
    assert [c.slope for c in wanted] == [None, None, 0.5]
    for configuration, found in zip(wanted, measured, strict=True):
        assert found.variance.shape == (8, 8, 8)
        for agreement in (
            initialisation.variance_agreement(configuration, found),
            initialisation.gradient_agreement(configuration, found),
        ):
            assert agreement.ratio == pytest.approx(1, abs=0.02), configuration.name
        assert np.mean(found.variance[:, 0]) == pytest.approx(1, abs=0.05)
        share = configuration.sparsity or 0.5
        assert np.mean(found.zeros) == pytest.approx(share, abs=0.02)


def test_other_formulas_do_not_agree_to_five_per_cent_and_these_do():
    (wanted,) = settings.configurations(agreed(sparsity=(0.7,), slope=(0.5,)))[-1:]
    rows = np.asarray(training.prepared(np.random.default_rng(0).normal(size=(8, 64)), 0.0))
    (found,) = initialisation.measure([wanted], rows, width=300, depth=5, seed=1, nets=4)
    assert initialisation.variance_agreement(wanted, found).ratio == pytest.approx(1, abs=0.05)
    assert initialisation.gradient_agreement(wanted, found).ratio == pytest.approx(1, abs=0.05)
    start = wanted.start._replace(weight_variance=1.15 * wanted.start.weight_variance)
    wrong = settings.Configuration(wanted.sparsity, wanted.slope, start)
    assert abs(initialisation.variance_agreement(wrong, found).ratio - 1) > 0.05
    assert abs(initialisation.gradient_agreement(wrong, found).ratio - 1) > 0.05


def test_layers_that_overflow_are_left_out():
    variance = np.array([[[1.0], [2.0], [np.inf], [np.nan]]])
    found = initialisation.Measured(variance, variance[:, ::-1], variance)
    start = settings.Start(0.0, None, 2.0, 0.0)
    relu = settings.Configuration(None, None, start)
    assert initialisation.variance_agreement(relu, found).ratio == np.inf  # of those given 1 and 2
    ordinary = found._replace(variance=variance[:, :2])
    assert initialisation.variance_agreement(relu, ordinary).ratio == pytest.approx(2)
    assert initialisation.drift(found) == (np.inf, np.inf)


def test_the_activation_with_a_ceiling_is_that_of_the_library():
    z = jnp.linspace(-1, 4, 101)
    start = settings.Start(0.5, 0.8, 1.0, 0.0)
    expected = np.clip(np.asarray(z) - 0.5, 0, 0.8)
    np.testing.assert_allclose(network.activate(z, start), expected, atol=1e-6)
    slope = jax.vmap(jax.grad(lambda z: network.activate(z, start)))(jnp.array([0.4, 1.0, 1.4]))
    np.testing.assert_allclose(slope, [0, 1, 0])


def test_images_are_moved_and_stay_what_they_are():
    data = datasets.load("digits")
    image = jnp.asarray(data.features[0])
    keys = jax.random.split(jax.random.key(0), 50)
    moved = np.asarray(jax.vmap(training._changed, (0, None))(keys, image))
    alike = [np.corrcoef(image, other)[0, 1] for other in moved]
    assert 0.2 < np.min(alike) < 0.9 and np.mean(alike) > 0.65


# What it writes.


def test_the_command_that_has_the_same_again():
    words = [
        *("--data", "wine", "--depth", "10", "--learning-rate", "0.001"),
        *("--sparsity", "0.7", "0.85", "--slope", "none", "--quick"),
    ]
    args = parser.build().parse_args(["depth", *words])
    agreed = settings.from_arguments(args)
    again = settings.command(agreed, args.data)
    assert again.startswith("jaxtrelu depth --data wine --depth 10 ") and "--quick" not in again
    parsed = parser.build().parse_args(again.split()[1:])
    assert (settings.from_arguments(parsed), parsed.data) == (agreed, "wine")
    plain = settings.from_arguments(parser.build().parse_args(["depth"]))
    assert settings.command(plain, "digits") == "jaxtrelu depth"


def test_files_and_numbers(tiny):
    names = {path.name for path in tiny.iterdir()}
    figures = {
        f"{name}.{kind}" for name in ("accuracy", "initialisation") for kind in ("png", "svg")
    }
    assert names == {"depth.json", "runs", *figures}
    document = json.loads((tiny / "depth.json").read_text())
    results = document["results"]
    assert [r["name"] for r in results] == [
        *("relu", "sparsity-0.7-no-ceiling", "sparsity-0.7-slope-0.5")
    ]
    assert list(results[0]) == list(document["columns"])
    about = document["about"]
    assert about["command"].startswith("jaxtrelu depth --data iris --depth 3 ")
    assert about["date"] >= "2026"
    low, middle, high = (results[2][f"gradient_drift{end}"] for end in ("_low", "", "_high"))
    assert 0 < low <= middle <= high
    assert results[2]["ceiling"] == pytest.approx(1.051, abs=1e-3)  # of the paper's table
    assert results[2]["weight_variance"] == pytest.approx(4.125, abs=1e-3)
    for record in results:
        assert 0 <= record["test_accuracy"] <= 1
        seeds = document["per_seed"][record["name"]]
        assert np.shape(seeds["loss"]) == (2, 2)
        assert np.mean(seeds["test_accuracy"]) == pytest.approx(record["test_accuracy"])
    assert np.shape(document["by_layer_at_start"]["relu"]["variance"]) == (3,)


def test_gradient_descent_takes_the_gradient_as_it_is():
    """Two steps of the same gradient: 1 and 1.9 of it; of Adam's each is of the rate's size."""
    gradient = np.float32([1e6, -1e-3])
    taken = {}
    for name in settings.OPTIMISERS:
        optimiser = training.optimiser_of(name, 0.5)
        state, taken[name] = optimiser.init(gradient), []
        for _ in range(2):
            update, state = optimiser.update(gradient, state)
            taken[name].append(np.asarray(update))
    np.testing.assert_allclose(taken["sgd"], [-0.5 * gradient, -0.95 * gradient], rtol=1e-6)
    assert np.abs(taken["adam"]).max() <= 0.51


def test_nets_of_nan_are_not_trained_on(monkeypatch):
    """Their losses are there for every epoch, and progress comes to its end."""
    data = datasets.load("iris")
    ask = agreed(optimiser="sgd", learning_rate=1e6, epochs=40, slope=())
    programs, epochs, ticks = training._programs, [], []

    def counting(*arguments):
        begin, epoch, evaluate = programs(*arguments)
        return begin, lambda *operands: epochs.append(0) or epoch(*operands), evaluate

    monkeypatch.setattr(training, "_programs", counting)
    wanted = settings.configurations(ask)[1:2]
    parts = training.divide(data, ask)
    (result,) = training.train(wanted, parts, data.classes, ask, lambda: ticks.append(0))
    assert len(epochs) < 40 == len(ticks) == result.loss.shape[-1]
    assert np.isnan(result.loss[:, len(epochs) - 1 :]).all()


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_killed(tiny, capsys):
    """What is there is taken, what is missing is trained, and comes out as it did."""
    before = (tiny / "depth.json").read_text()
    missing = tiny / runs.FOLDER / "sparsity-0.7-slope-0.5.json"
    missing.write_text(missing.read_text()[:100])  # cut off
    assert depth(*TINY, "--output", tiny) == 0
    err = capsys.readouterr().err
    assert err.count("(from ") == 2
    assert (tiny / "depth.json").read_text() == before
    other = ["--learning-rate", "0.01", "--slope", "none"]
    assert depth(*TINY, *other, "--output", tiny) == 0
    assert "(from " not in capsys.readouterr().err


OTHER = {
    "depth": 4, "width": 9, "seeds": 3, "epochs": 2, "batch": 8, "optimiser": "sgd",
    "learning_rate": 1e-2, "seed": 1,
}  # fmt: skip


def test_a_result_is_taken_for_the_same_settings_alone():
    """Whatever else is trained, and beside what."""
    data, first = datasets.load("iris"), settings.configurations(agreed())[1]

    def key(configuration=first, data=data, **changes):
        return runs.key_of(configuration, agreed(**changes), data)

    assert key() == key(sparsity=(0.7,), slope=(), together=4)
    others = [key(**{name: value}) for name, value in OTHER.items()]
    others += [key(settings.configurations(agreed())[2]), key(data=datasets.load("wine"))]
    assert key() not in others
    fields = {field.name for field in dataclasses.fields(settings.Settings)}
    assert fields == {*OTHER, "sparsity", "slope", "together"}


@pytest.mark.slow
def test_together_and_fresh(tiny, tmp_path, capsys):
    """Several configurations in one program are what they are alone."""
    wide = [*TINY, "--slope", "0.5", "0.9"]
    assert depth(*wide, "--output", tmp_path / "apart") == 0
    assert depth(*wide, "--output", tmp_path / "beside", "--together", "4") == 0
    first, second = (
        json.loads((tmp_path / name / "depth.json").read_text()) for name in ("apart", "beside")
    )
    for name, found in first["per_seed"].items():
        np.testing.assert_allclose(found["loss"], second["per_seed"][name]["loss"], rtol=1e-3)
    capsys.readouterr()
    alone = [*TINY, "--slope", "none"]
    assert depth(*alone, "--output", tmp_path / "apart", "--fresh") == 0
    assert "(from " not in capsys.readouterr().err


@pytest.mark.slow
def test_quick(tmp_path, capsys):
    few = ["--epochs", "1", "--seeds", "1", "--sparsity", "0.7", "--slope", "none"]
    assert depth("--quick", *few, "--output", tmp_path) == 0
    document = json.loads((tmp_path / "depth.json").read_text())
    assert (document["settings"]["depth"], document["settings"]["epochs"]) == (8, 1)
    out = capsys.readouterr().out
    assert "Within 2 points of ReLU" in out and f"wrote {tmp_path / 'depth.json'}" in out


def test_the_start_alone(tmp_path, capsys):
    assert depth(*TINY, "--epochs", "0", "--output", tmp_path) == 0
    out = capsys.readouterr().out
    assert "Within" not in out and "Before training a layer misses" in out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"depth.json", "initialisation.png", "initialisation.svg"}
    first, *_ = json.loads((tmp_path / "depth.json").read_text())["results"]
    assert first["test_accuracy"] is None and first["variance_ratio"] > 0


@pytest.mark.slow
def test_relu_learns():
    """And its loss falls from epoch to epoch."""
    chosen = agreed(depth=4, width=32, epochs=6, seeds=1, batch=32, learning_rate=3e-3)
    data = datasets.load("digits")
    relu = settings.configurations(chosen)[:1]
    ticks = []
    parts = training.divide(data, chosen)
    (found,) = training.train(relu, parts, 10, chosen, lambda: ticks.append(1))
    assert len(ticks) == 6
    assert found.test_accuracy[0] > 0.8 and found.loss[0, -1] < found.loss[0, 0] / 2
    assert parts.train[0].shape[1] + parts.test[0].shape[1] == len(data.labels)


def test_a_word_for_no_ceilings():
    """As the help says it; a number beside it still counts."""
    for words, slopes in ((["none"], ()), (["None", "0.5"], (0.5,))):
        args = parser.build().parse_args(["depth", "--sparsity", "0.7", "--slope", *words])
        found = settings.from_arguments(args)
        assert found.slope == slopes
        names = [c.name for c in settings.configurations(found)]
        assert names[:2] == ["relu", "sparsity-0.7-no-ceiling"] and len(names) == 2 + len(slopes)


# What it refuses.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sparsity", "0.4"], "--sparsity should be from 0.5 to 0.99, but is 0.4"),
        (["--slope", "no"], "--slope: invalid float value: 'no'"),
        (["--slope", "1"], "--slope should be from 0.05 to 0.95"),
        (["--depth", "1"], "--depth should be from 2"),
        (["--optimiser", "lion"], "invalid choice: 'lion'"),
        (["--data", "diabetes"], "regression"),
        (["--width", "8192", "--depth", "1000"], "GB"),
        (["--epochs", "10000", "--depth", "1000", "--width", "300", "--seeds", "1"], "operations"),
    ],
)
def test_bad_arguments(arguments, words, tmp_path, capsys):
    assert depth("--output", tmp_path / "out", *arguments) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and out == ""
    assert not (tmp_path / "out").exists()
