"""`sae`: what it prints. What it trains is in test_sae_training.py."""

import contextlib
import inspect
import io
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxtrelu import sae
from jaxtrelu._cli import console, parser
from jaxtrelu._cli.sae import results, train


def test_every_recipe_of_the_library_is_a_choice():
    functions = {name: value for name, value in vars(sae).items() if inspect.isfunction(value)}
    made = {n for n, f in functions.items() if inspect.signature(f).return_annotation is sae.Recipe}
    assert made == set(train._RECIPES) and len(made) > 3


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_recipe_of_an_l0_gets_the_one_that_is_asked_for(command):
    words = ["sae", command, "--l0", "9", "--recipe", "frequent_resampling", "--coefficient", "2"]
    recipe = train.recipe_of(parser.build().parse_args(words))
    assert recipe == sae.frequent_resampling(9.0, coefficient=2.0) and recipe.input_scaling == 3


@pytest.fixture(scope="module")
def found():
    """The report of a run of three steps, in which a feature that never opens is planted."""
    x = np.random.default_rng(0).normal(size=(900, 4)).astype(np.float32)
    model = sae.train(x, features=12, l0=3.0, steps=3)
    model.weights.threshold.block_until_ready()
    weights = model.weights._replace(threshold=model.weights.threshold.at[4].set(1e9))
    object.__setattr__(model, "weights", weights)
    return results.Results(sae.Rows(x, "mine", held_out=90), model)


@pytest.mark.parametrize(("encoding", "name"), [("utf-8", "λ"), ("ascii", "lambda")])
def test_the_table_in_the_terminals_encoding(found, encoding, name):
    """In line, whatever the characters."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console.spell_out(stream)  # as `main` does
    with contextlib.redirect_stdout(stream):
        found.show(2.0)
        results.show_evaluation(found.evaluation, "θ of mine")
        stream.flush()
    lines = stream.buffer.getvalue().decode(encoding).splitlines()
    edge = "│" if encoding == "utf-8" else "|"
    table = [line for line in lines if line.startswith(edge)]
    assert any(line.split()[:2] == [edge, name] for line in table)
    assert len({len(line) for line in table}) == 2  # of two tables
    assert "for 3 steps" in "".join(table)
    assert any(f"thresholds and {name} find their place" in line for line in lines)
    assert any("figures on 90 rows kept aside" in line for line in lines)


def test_dead_features_are_counted_over_all_rows_and_the_number_is_said(found, capsys):
    found.show(1.0)
    printed = capsys.readouterr().out
    assert "open in none of 900 rows" in printed
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert 4 in found.dead.features
    assert summary["dead"] == {"features": len(found.dead.features), "rows": 900}
    assert summary["evaluation"]["rows"] == 90


def test_the_frame_of_the_dictionary_is_no_shade_of_grey():
    """White pixels would melt into a white frame, and black ones into a black one."""
    axis = Figure().subplots()
    results._draw_grid(axis, np.linspace(-1, 1, 12).reshape(3, 4), 2, 3)
    (image,) = axis.images
    *colour, _ = image.cmap(np.ma.masked_invalid(image.get_array()))[0, 0]
    assert max(colour) - min(colour) > 0.3
    assert image.get_array().shape == (7, 7)


def test_the_picture_counts_as_the_table_does(found):
    """And draws images only where told that rows are images: 4 columns are none of themselves."""
    living = f"{12 - len(found.dead.features)} living features of 12"
    # matplotlib notes each text in a comment beside its outlines.
    assert living in found.draw_dictionary(2)["dictionary.svg"].decode()
    assert "living features of" not in found.draw_dictionary(None)["dictionary.svg"].decode()
