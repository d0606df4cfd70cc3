"""`plot`: the curves against their definitions, and real pictures."""

import math

import numpy as np
import pytest

from jaxtrelu.__main__ import main
from jaxtrelu._cli import parser
from jaxtrelu._cli.plot import figure
from jaxtrelu._cli.style import PEERS, VARIANTS
from jaxtrelu.plot import _curves as curves

SIGNATURES = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF-"}


@pytest.mark.parametrize("kind", SIGNATURES)
def test_writes_a_real_picture(kind, tmp_path, capsys):
    path = tmp_path / "folder" / f"plot.{kind}"
    arguments = ["--threshold", "-0.5", "1", "--ceiling", "2", "--peers", "relu", "gelu"]
    assert main(["plot", *arguments, "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {path}\n"
    assert path.read_bytes().startswith(SIGNATURES[kind])
    assert path.stat().st_size > 10_000
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "words",
    [["--threshold", "-1e-3", "-5E-1"], ["--range", "-1e6", "1e6"], ["--thresh", "-.5e0"]],
    ids=" ".join,
)
def test_negative_numbers_in_exponent_form(words, tmp_path, capsys):
    path = tmp_path / "plot.svg"
    arguments = ["--variant", "shift", "--points", "2", *words]
    assert main(["plot", *arguments, "--output", str(path)]) == 0
    if "range" not in words[0]:
        labels = [f"θ = {float(word):g}".replace("-", "−") for word in words[1:]]
        assert all(label in path.read_text() for label in labels)


def test_the_picture_has_ink_of_every_curve(tmp_path, capsys):
    from matplotlib import colors, image

    from jaxtrelu._cli import style

    path = tmp_path / "plot.png"
    assert main(["plot", "--threshold", "0", "1", "--output", str(path)]) == 0
    pixels = image.imread(path)[..., :3]
    for colour in style.SEQUENCE[:2]:
        assert (np.abs(pixels - colors.to_rgb(colour)).max(axis=-1) < 0.02).sum() > 1000


def test_the_same_picture_twice(tmp_path, capsys):
    for name in ("a.svg", "b.svg"):
        assert main(["plot", "--variant", "hard", "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("theta", [-0.5, 0.0, 1.0])
def test_hard_jumps_at_its_threshold_unless_zero(theta):
    shape = curves.thresholded("hard", theta, None)
    _, jumps = curves.pieces(shape.of[0], shape.breaks, -2, 3, 50)
    expected = [] if theta == 0 else [curves.Jump(theta, 0.0, (pytest.approx(theta),))]
    assert jumps == expected


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("theta", [-0.5, 0.0, 1.0])
def test_the_derivative_jumps_from_its_value(variant, theta):
    shape = curves.thresholded(variant, theta, None)
    _, jumps = curves.pieces(shape.of[1], shape.breaks, -2, 3, 50)
    assert jumps == [curves.Jump(theta, 0.0, (1.0,))]


def test_the_ceiling_adds_a_jump_of_the_derivative():
    shape = curves.thresholded("shift", 0.5, 1.0)
    _, jumps = curves.pieces(shape.of[1], shape.breaks, -2, 3, 50)
    assert jumps == [curves.Jump(0.5, 0.0, (1.0,)), curves.Jump(1.5, 0.0, (1.0,))]


@pytest.mark.parametrize(("theta", "ceiling"), [(-0.5, 1.5), (0.1, 0.7), (-300.25, 301.0), (0, 2)])
def test_no_line_joins_the_sides_of_a_jump(theta, ceiling):
    """A piece ends where rounding does not yet take x - threshold for the ceiling."""
    shape = curves.thresholded("shift", theta, ceiling)
    for part in curves.pieces(shape.of[1], shape.breaks, -2, 3, 50)[0]:
        assert len(set(part.y.tolist())) == 1


def test_variants_share_a_derivative():
    shapes = {v: [curves.thresholded(v, 1.0, None)] for v in VARIANTS}
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in
              figure.draw(shapes, [], (-2, 3), 50).axes]  # fmt: skip
    assert sum("derivative of all" in title for title in titles) == 1 and len(titles) == 7
    shapes["shift"] = [curves.thresholded("shift", 1.0, 2.0)]
    titles = [a.get_title(loc="left") or a.get_title() for a in
              figure.draw(shapes, [], (-2, 3), 50, ceiling=2.0).axes]  # fmt: skip
    assert sum("derivative of hard and clamp" in title for title in titles) == 1
    assert len(titles) == 8


SHAPES = [curves.thresholded(variant, 0.7, None) for variant in VARIANTS]
SHAPES += [curves.thresholded("shift", -0.3, 1.1), *map(figure.peer, PEERS)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.label)
def test_antiderivative_and_derivative_belong_to_the_function(shape):
    """On each piece, by the trapezoidal rule and by differences."""
    function, slope, integral = (
        curves.pieces(of, shape.breaks, -2.0, 3.0, 2001)[0] for of in shape.of
    )
    for f, df, area in zip(function, slope, integral, strict=True):
        x = f.x.astype(np.float64)
        sums = np.cumsum((f.y[1:] + f.y[:-1]) / 2 * np.diff(x))
        np.testing.assert_allclose(area.y[1:] - area.y[0], sums, atol=2e-5)
        rises = np.cumsum((df.y[1:] + df.y[:-1]) / 2 * np.diff(x))
        np.testing.assert_allclose(f.y[1:] - f.y[0], rises, atol=2e-5)


@pytest.mark.parametrize("name", PEERS)
def test_antiderivatives_of_peers_are_zero_at_zero(name):
    integral = figure.peer(name).of[2]
    assert math.isclose(float(integral(np.zeros(1, np.float32))[0]), 0, abs_tol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threshold", "nan"], "--threshold takes numbers"),
        (["--threshold", "1e9"], "--threshold takes numbers"),
        (["--threshold", "one"], "invalid float value: 'one'"),
        (["--threshold", *"123456789"], "at most 8 values, but got 9"),
        (["--variant", "soft"], "invalid choice: 'soft'"),
        (["--range", "2", "1"], "from low to high, but is 2 1"),
        (["--range", "1", "1"], "from low to high"),
        (["--range", "0", "inf"], "--range takes numbers"),
        (["--range", "-inf", "0"], "--range takes numbers"),
        (["--threshold", "-1e9"], "--threshold takes numbers"),
        (["--output", "-1e3"], "--output: expected one argument"),
        (["--points", "1"], "--points should be from 2"),
        (["--points", "1000000000"], "--points should be from 2"),
        (["--ceiling", "0"], "--ceiling should be above 0"),
        (["--ceiling", "1", "--variant", "hard"], "--ceiling is for --variant shift"),
        (["--peers", "rleu"], "did you mean relu?"),
        (["--output", "plot.bmp"], "should end in .png, .svg, .pdf, but is plot.bmp"),
        (["--output", "plot"], "should end in .png"),
        (["--output", "."], "a file name is needed"),
        (["--output", ""], "a file name is needed"),
        (["--output", "/proc/plot.png"], "cannot write to /proc"),
    ],
)
def test_bad_input(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", *arguments]) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert err.startswith("jaxtrelu: error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_show_without_a_screen(monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "agg")
    import matplotlib as mpl

    mpl.use("agg")
    assert main(["plot", "--show"]) == 2
    assert "no screen" in capsys.readouterr().err


def test_show_opens_one_window_and_writes_nothing(monkeypatch, tmp_path, capsys):
    from matplotlib import pyplot

    plot = parser.load("plot")
    shown = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plot, "_screen", pyplot.figure)
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(len(pyplot.gcf().axes)))
    assert main(["plot", "--show", "--variant", "shift"]) == 0
    pyplot.close("all")
    assert shown == [3]
    assert list(tmp_path.iterdir()) == []
