"""The figures of `depth`."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxtrelu._cli import style
from jaxtrelu._cli.depth.initialisation import Measured
from jaxtrelu._cli.depth.settings import Configuration


def draw(
    configurations: list[Configuration],
    records: list[dict[str, Any]],
    measured: list[Measured],
    title: str,
    *,
    trained: bool,
) -> dict[str, bytes]:
    """The figures, each as PNG and SVG: file name to content."""
    with style.applied():
        drawn = {"initialisation": _initialisation(configurations, measured, title)}
        if trained:
            drawn["accuracy"] = _accuracy(records, title)
        return {
            f"{name}.{kind}": style.to_bytes(figure, kind)
            for name, figure in drawn.items()
            for kind in ("png", "svg")
        }


def _row_name(slope: float | None) -> str:
    return "no ceiling" if slope is None else f"V′ = {slope:g}"


def _accuracy(records: list[dict[str, Any]], title: str) -> Figure:
    """A line a slope, a column a share of zeros."""
    relu, *others = records
    slopes = list(dict.fromkeys(record["slope"] for record in others))
    shares = list(dict.fromkeys(record["sparsity"] for record in others))
    grid = np.full((len(slopes), len(shares)), np.nan)
    for record in others:
        grid[slopes.index(record["slope"]), shares.index(record["sparsity"])] = record[
            "test_accuracy"
        ]
    figure = Figure(
        figsize=(2.4 + 0.95 * len(shares), 1.6 + 0.6 * len(slopes)), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(grid, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        colour = "black" if value > 0.6 else "white"
        axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(shares)), [f"{share:g}" for share in shares])
    axes.set_yticks(range(len(slopes)), [_row_name(slope) for slope in slopes])
    axes.grid(False)
    axes.set(xlabel="share of zeros at the start")
    axes.set_title(f"{title}\ntest accuracy, % (ReLU: {100 * relu['test_accuracy']:.1f})")
    figure.colorbar(image, ax=axes)
    return figure


def _initialisation(
    configurations: list[Configuration], measured: list[Measured], title: str
) -> Figure:
    """Variance and squared gradient by layer, a column a slope: median and quartiles."""
    pairs = list(zip(configurations, measured, strict=True))
    slopes = list(dict.fromkeys(c.slope for c, _ in pairs if c.sparsity is not None))
    figure = Figure(figsize=(1.4 + 2.7 * len(slopes), 5.2), layout="constrained")
    grid = figure.subplots(2, len(slopes), sharex=True, squeeze=False)
    for column, slope in enumerate(slopes):
        above, below = grid[:, column]
        for place, (configuration, start) in enumerate(
            pair for pair in pairs if pair[0].sparsity is not None and pair[0].slope == slope
        ):
            colour = style.SEQUENCE[place % len(style.SEQUENCE)]
            _by_layer(above, start.variance.mean(2), colour, f"s = {configuration.sparsity:g}")
            gradient = start.gradient.mean(2)
            _by_layer(below, gradient / gradient[:, -1:], colour)
        for axes in (above, below):
            axes.axhline(1, color=style.GREY, lw=0.8, ls="--")
            axes.set_yscale("log")
        above.set_title(_row_name(slope))
        below.set_xlabel("layer")
    grid[0, 0].set_ylabel("variance q")
    grid[1, 0].set_ylabel("squared gradient,\nlast layer 1")
    grid[0, -1].legend(fontsize=8)
    figure.suptitle(
        f"{title}, before training: median of the nets, quartiles; dashed: infinite width",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    return figure


def _by_layer(axes: Axes, values: np.ndarray, colour: str, label: str | None = None) -> None:
    layers = np.arange(1, values.shape[1] + 1)
    # Of nets, not between them: half of infinity is no number. What is beyond float32 is not drawn.
    found = np.quantile(
        np.nan_to_num(values, nan=np.inf), [0.25, 0.5, 0.75], axis=0, method="nearest"
    )
    low, median, high = np.where(found < 1e30, found, np.nan)
    axes.plot(layers, median, color=colour, lw=1.4, label=label)
    for edge in (low, high):  # lines, since bands of several colours mix to grey
        axes.plot(layers, edge, color=colour, lw=0.6, ls=":")
