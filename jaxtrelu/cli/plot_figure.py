"""The figure of `plot`: a row per variant; function, derivative and antiderivative in columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxtrelu.cli import style
from jaxtrelu.cli.curves import QUANTITIES, Shape, pieces

_FORMULAS = {
    "shift": "x − θ where x > θ, else 0",
    "hard": "x where x > θ, else 0",
    "clamp": "x where x > θ, else θ",
}
_PEER_DASHES = ((0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1.5)), (0, (8, 3)))


def draw(
    rows: Mapping[str, Sequence[Shape]],
    peers: Sequence[Shape],
    limits: tuple[float, float],
    points: int,
    *,
    ceiling: float | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draws thresholded ReLUs by variant, each row with the same peers behind.

    Args:
        rows: variant to shapes.
        peers: drawn thin and dashed in every row.
        limits: the range of x.
        points: samples between two breaks.
        ceiling: of `shift`, for the formula in its row.
        figure: to draw on; by default a new one.
    """
    figure = figure or Figure()
    figure.set_size_inches(11, 0.9 + 2.75 * len(rows))
    figure.set_layout_engine("constrained", h_pad=0.08, w_pad=0.06)
    grid = figure.subplots(len(rows), 3, sharex=True, squeeze=False)
    for row, (variant, shapes) in enumerate(rows.items()):
        for column, (axes, quantity) in enumerate(zip(grid[row], QUANTITIES, strict=True)):
            for shape, dashes in zip(peers, _PEER_DASHES, strict=False):
                colour = style.COLOURS[shape.label]
                _curve(axes, shape, column, limits, points, {"c": colour, "ls": dashes, "lw": 1.2})
            # From wide to narrow, so that curves that coincide all show.
            widths = np.linspace(2.0 + 0.5 * (len(shapes) - 1), 2.0, len(shapes))
            for shape, colour, width in zip(shapes, style.SEQUENCE, widths, strict=False):
                line = {"c": colour, "lw": width}
                _curve(axes, shape, column, limits, points, line, circles=True)
            _frame(axes, quantity if row == 0 else "", limits)
        _name_row(grid[row, 0], variant, ceiling if variant == "shift" else None)
    for axes in grid[-1]:
        axes.set_xlabel("x")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    order = [*range(len(peers), len(labels)), *range(len(peers))]
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside upper left",
        ncols=8,
    )
    return figure


def _curve(
    axes: Axes,
    shape: Shape,
    quantity: int,
    limits: tuple[float, float],
    points: int,
    line: Mapping[str, Any],
    circles: bool = False,
) -> None:
    """One curve; where it jumps, a full circle at the value and an open one at the limit."""
    parts, jumps = pieces(shape.of[quantity], shape.breaks, *limits, points)
    for part in parts:
        label = shape.label if part is parts[0] else None
        axes.plot(part.x, part.y, **line, zorder=3 if circles else 2, label=label)
    if not circles:
        return
    circle = {"color": line["c"], "ls": "none", "marker": "o", "ms": 5.5, "mew": 1.5, "zorder": 4}
    for jump in jumps:
        axes.plot([jump.x] * len(jump.limits), jump.limits, **circle, mfc="white")
        axes.plot([jump.x], [jump.value], **circle)


def _name_row(axes: Axes, variant: str, ceiling: float | None) -> None:
    formula = _FORMULAS[variant]
    if ceiling is not None:
        formula = formula.replace("x − θ", f"min(x − θ, {ceiling:g})")
    axes.set_ylabel(variant, fontweight="bold", fontsize=11)
    box = {"fc": "white", "ec": "none", "pad": 1.5}
    place: dict[str, Any] = {"transform": axes.transAxes, "va": "top", "bbox": box}
    axes.text(0.02, 0.96, formula, fontsize=9, color=style.GREY, **place)


def _frame(axes: Axes, title: str, limits: tuple[float, float]) -> None:
    axes.axhline(0, color=style.GREY, lw=0.8, zorder=1)
    if limits[0] < 0 < limits[1]:
        axes.axvline(0, color=style.GREY, lw=0.8, zorder=1)
    axes.set_xlim(*limits)
    axes.margins(y=0.1)
    axes.set_title(title)
