"""`jaxtrelu.plot`: the data on the axes, against what they were drawn from."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from jaxtrelu import plot, theory
from jaxtrelu.plot._theory import fixed_points


@pytest.fixture
def axes():
    return Figure().subplots()


@pytest.mark.parametrize("quantity", ["function", "derivative", "antiderivative"])
def test_curve_jumps_where_the_function_does(quantity, axes):
    assert plot.curve(0.5, quantity=quantity, variant="hard", axes=axes) is axes
    below, above, *circles = axes.lines
    x = above.get_xdata()
    assert below.get_xdata()[-1] < 0.5 < x[0] and x[-1] <= 3
    expected = {"function": x, "derivative": 1, "antiderivative": (x**2 - 0.25) / 2}[quantity]
    np.testing.assert_allclose(above.get_ydata(), expected + 0 * x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(below.get_ydata(), 0)
    if quantity == "antiderivative":
        assert not circles
        return
    missed, value = circles  # no line goes from one to the other
    assert missed.get_markerfacecolor() == "white" != value.get_markerfacecolor()
    np.testing.assert_allclose(
        missed.get_ydata(), [0.5 if quantity == "function" else 1], rtol=1e-6
    )
    assert value.get_ydata() == [0] and value.get_xdata() == [0.5]
    assert axes.get_ylabel() == quantity and axes.get_xlim() == (-2, 3)


def test_curve_with_a_ceiling(axes):
    plot.curve(0.0, ceiling=1.0, limits=(-1, 2), axes=axes)
    ends = [(line.get_ydata()[0], line.get_ydata()[-1]) for line in axes.lines]
    np.testing.assert_allclose(ends, [(0, 0), (0, 1), (1, 1)], atol=1e-6)


def marked(axes):
    """The fixed points that are drawn: (where, whether as stable)."""
    circles = axes.lines[2:]
    return [(float(c.get_xdata()[0]), c.get_markerfacecolor() != "white") for c in circles]


def test_variance_map_and_its_fixed_points(axes):
    start = theory.critical_init(0.85, slope=0.5)
    numbers = {
        "weight_variance": float(start.weight_variance),
        "bias_variance": float(start.bias_variance),
        "ceiling": float(start.ceiling),
    }
    plot.variance_map(float(start.threshold), **numbers, axes=axes)
    diagonal, curve = axes.lines[:2]
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    expected = theory.variance_map(curve.get_xdata(), float(start.threshold), **numbers)
    np.testing.assert_allclose(curve.get_ydata(), expected, rtol=1e-5)
    (found,) = marked(axes)
    assert found == (pytest.approx(1, abs=2e-3), True)


def test_an_unstable_fixed_point_is_open(axes):
    """hard at 1 with weights of 2.4: below its fixed point the variance dies, above it grows."""
    plot.variance_map(1.0, weight_variance=2.4, variant="hard", largest=4.0, axes=axes)
    (found,) = [point for point in marked(axes) if point[0] > 0.1]
    value = float(theory.variance_map(found[0], 1.0, weight_variance=2.4, variant="hard"))
    assert value == pytest.approx(found[0], rel=1e-4)
    assert not found[1]


def test_relu_is_all_fixed_points_and_none_is_marked(axes):
    plot.variance_map(0.0, weight_variance=2.0, axes=axes)
    assert marked(axes) == []


def test_correlation_map(axes):
    plot.correlation_map(0.0, weight_variance=2.0, axes=axes)
    rho = axes.lines[1].get_xdata()
    expected = (np.sqrt(1 - rho**2) + rho * (np.pi - np.arccos(rho))) / np.pi
    np.testing.assert_allclose(axes.lines[1].get_ydata(), expected, atol=1e-6)
    assert marked(axes) == [(1.0, True)]
    assert axes.get_ylabel() == "correlation at the next"


def test_fixed_points():
    x = np.linspace(-1, 1, 400)
    crossing = fixed_points(x, 0.3 + 0.5 * x)
    assert crossing == [(pytest.approx(0.6), True)]
    twice = fixed_points(x, x + 2 * (x - 0.2) * (x + 0.5))
    assert twice == [(pytest.approx(-0.5, abs=1e-4), True), (pytest.approx(0.2, abs=1e-4), False)]
    assert fixed_points(x, 2 * x + 1) == [(-1.0, False)]
    assert fixed_points(x, x) == [] == fixed_points(x, x + 1)


def test_sparsity_of_data_and_of_the_normal_law(axes):
    data = np.random.default_rng(0).exponential(size=(50, 20)).astype(np.float32)
    plot.sparsity(data, axes=axes)
    drawn, normal = axes.lines
    for threshold, share in zip(*drawn.get_data(), strict=True):
        assert share == np.mean(data <= threshold)
    expected = stats.norm.cdf(normal.get_xdata(), data.mean(), data.std())
    np.testing.assert_allclose(normal.get_ydata(), expected, atol=1e-6)
    assert axes.get_legend().get_texts()[0].get_text() == "data"


def test_thresholds(axes):
    values = np.random.default_rng(0).normal(size=300)
    plot.thresholds(values, bins=7, axes=axes)
    heights = [bar.get_height() for bar in axes.patches]
    np.testing.assert_array_equal(heights, np.histogram(values, 7)[0])
    assert axes.lines[0].get_xdata()[0] == pytest.approx(np.median(values))


def test_accuracy_in_order_with_every_run(axes):
    plot.accuracy([0.9, 0.5], [[0.6, 0.8], [0.8, 0.9]], dense=0.95, label="ours", axes=axes)
    mean, *runs, dense = axes.lines
    np.testing.assert_allclose(mean.get_data(), [[0.5, 0.9], [0.85, 0.7]])
    np.testing.assert_allclose([run.get_ydata() for run in runs], [[0.8, 0.6], [0.9, 0.8]])
    assert set(dense.get_ydata()) == {0.95}
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["ours", "without a threshold"]


def test_activations_leave_zeros_blank(axes):
    x = np.array([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    plot.activations(x, names=["a", "b", "c"], axes=axes)
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array().mask, x == 0)
    assert image.get_clim() == (0, 2)
    assert axes.get_title() == "66.7 % zeros"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b", "c"]
    signed = Figure().subplots()
    plot.activations(x - 1.5, axes=signed)
    assert signed.images[0].get_clim() == (-1.5, 1.5)


def test_new_axes_where_none_are_given():
    from matplotlib import pyplot

    before = set(pyplot.get_fignums())
    axes = plot.thresholds(np.arange(3.0))
    assert set(pyplot.get_fignums()) - before == {axes.get_figure().number}
    pyplot.close(axes.get_figure())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plot.curve(quantity="slope"), "`quantity` should be one of 'function'"),
        (lambda: plot.curve(limits=(1, 1)), "`limits` should rise"),
        (lambda: plot.curve(points=0), "`points` should be at least 2, but is 0"),
        (
            lambda: plot.variance_map(weight_variance=1.0, points=1),
            "`points` should be at least 2, but is 1",
        ),
        (
            lambda: plot.correlation_map(weight_variance=1.0, points=-1),
            "`points` should be at least 2, but is -1",
        ),
        (lambda: plot.information(points=0), "`points` should be at least 2, but is 0"),
        (lambda: plot.variance_map(weight_variance=-1.0), "`weight_variance` should be"),
        (lambda: plot.correlation_map(weight_variance=1.0, variance=0.0), "`variance` should be"),
        (lambda: plot.sparsity(np.ones(3)), "are equal, 1"),
        (lambda: plot.sparsity(np.ones(0)), "no elements to draw"),
        (lambda: plot.thresholds(np.array([np.nan])), "`values` should be finite"),
        (lambda: plot.accuracy([0.5], [0.1, 0.2]), r"\(1,\) and \(2,\)"),
        (lambda: plot.activations(np.ones(3)), r"\(rows, features\), but has \(3,\)"),
        (lambda: plot.activations(np.ones((3, 2)), names="ab"), "`names` should be 3"),
    ],
)
def test_refusals_before_a_figure_is_made(call, words):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    with pytest.raises(ValueError, match=words):
        call()
    assert pyplot.get_fignums() == before


def test_import_does_not_load_matplotlib():
    code = "import sys, jaxtrelu.plot; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_information(axes):
    """Against scipy's normal distribution, at the share drawn."""
    best, linear, bits = plot.information(variant="hard", axes=axes).lines
    share = best.get_xdata().astype(np.float64)
    a = stats.norm.ppf(share)
    mean = -stats.norm.pdf(a) / share  # of x below a
    left = share * (1 + a * mean - mean**2)
    np.testing.assert_allclose(best.get_ydata(), 1 - left, atol=2e-3)
    np.testing.assert_allclose(
        bits.get_ydata(), stats.entropy([share, 1 - share], base=2), atol=1e-3
    )
    assert np.all(linear.get_ydata() <= best.get_ydata() + 1e-5)
    assert axes.get_xlabel() == "share of zeros"
