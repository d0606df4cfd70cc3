"""The figure of `plot`: a line of axes for each variant, with peers behind."""

import itertools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxtrelu._cli import style
from jaxtrelu._primitive.variants import VARIANTS as TABLE
from jaxtrelu.plot._curves import QUANTITIES, Real, Shape, draw_curve

_LEAKY_SLOPE = 0.01  # jax.nn.leaky_relu's
_PRELU_SLOPE = 0.25  # where PReLU begins in its paper (He et al. 2015)


def peer(name: str) -> Shape:
    """One of the activations that thresholded ReLU is compared with. Antiderivatives are 0 at 0."""
    function, integral, breaks = _PEERS[name]
    slope = jax.vmap(jax.grad(function))
    return Shape(name, (function, slope, integral), breaks)


def _bent(slope: float) -> tuple[Real, Real, tuple[float, ...]]:
    """A line of slope 1 above 0 and of `slope` below."""
    return (
        lambda x: jnp.where(x > 0, x, slope * x),
        lambda x: jnp.where(x > 0, x, slope * x) * x / 2,
        (0.0,),
    )


def _gelu_integral(x: jax.Array) -> jax.Array:
    density = jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return ((x**2 - 1) * jax.scipy.stats.norm.cdf(x) + x * density) / 2 + 0.25


def _elu_integral(x: jax.Array) -> jax.Array:
    below = jnp.minimum(x, 0)
    return jnp.where(x > 0, x**2 / 2, jnp.expm1(below) - below)


_PEERS: dict[str, tuple[Real, Real, tuple[float, ...]]] = {
    "relu": (jax.nn.relu, *_bent(0.0)[1:]),
    "leaky_relu": (jax.nn.leaky_relu, *_bent(_LEAKY_SLOPE)[1:]),
    "prelu": _bent(_PRELU_SLOPE),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), _gelu_integral, ()),
    "elu": (jax.nn.elu, _elu_integral, ()),
}


_FORMULAS = {
    "shift": "x − θ where x > θ, else 0",
    "hard": "x where x > θ, else 0",
    "clamp": "x where x > θ, else θ",
}
_PEER_DASHES = ((0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1.5)), (0, (8, 3)))


def draw(
    shapes: Mapping[str, Sequence[Shape]],
    peers: Sequence[Shape],
    limits: tuple[float, float],
    points: int,
    *,
    ceiling: float | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draws thresholded ReLUs, each variant in a line of axes with the same peers behind.

    Variants that stand beside each other and have the same derivative, the gate, share its axes.

    Args:
        shapes: variant to the curves of its thresholds.
        peers: drawn thin and dashed in every line.
        limits: the range of x.
        points: samples between two breaks.
        ceiling: of `shift`, for the formula in its line.
        figure: to draw on; by default a new one.
    """
    figure = figure or Figure()
    figure.set_size_inches(11, 0.9 + 2.75 * len(shapes))
    figure.set_layout_engine("constrained", h_pad=0.08, w_pad=0.06)
    grid = figure.add_gridspec(len(shapes), len(QUANTITIES))
    capped = {name: ceiling if TABLE[name].takes_ceiling else None for name in shapes}

    def axes_of(lines: slice, number: int, title: str) -> Axes:
        axes = figure.add_subplot(grid[lines, number])
        own = list(shapes.values())[lines.start]
        _draw_curves(axes, own, peers, number, limits, points)
        _frame(axes, limits)
        axes.set_title(title)
        axes.set_xlabel("x")
        return axes

    function, derivative, antiderivative = range(len(QUANTITIES))
    for line, variant in enumerate(shapes):
        rows = slice(line, line + 1)
        first = axes_of(rows, function, _formula(variant, capped[variant]))
        first.set_ylabel(variant, fontweight="bold", fontsize=11)
        axes_of(rows, antiderivative, QUANTITIES[antiderivative])
    for rows, names in _runs(capped):
        of = "all" if len(names) == len(shapes) else " and ".join(names)
        shared = f" of {of}" if len(names) > 1 else ""
        axes = axes_of(rows, derivative, QUANTITIES[derivative] + shared)
        if shared:  # as large as the others, and in the middle
            axes.set_box_aspect(0.75)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    order = [*range(len(peers), len(labels)), *range(len(peers))]
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside upper left",
        ncols=8,
    )
    return figure


def _runs(capped: Mapping[str, float | None]) -> list[tuple[slice, list[str]]]:
    """Lines beside each other whose derivative is the same: that of one gate, capped or not."""
    found: list[tuple[slice, list[str]]] = []
    start = 0
    for _, run in itertools.groupby(capped, key=capped.__getitem__):
        names = list(run)
        found.append((slice(start, start + len(names)), names))
        start += len(names)
    return found


def _draw_curves(axes, own, peers, number, limits, points) -> None:
    for shape, dashes in zip(peers, _PEER_DASHES, strict=False):
        look = {"c": style.COLOURS[shape.label], "ls": dashes, "lw": 1.2}
        draw_curve(axes, shape, number, limits, points, look)
    # From wide to narrow, so that curves that coincide all show.
    widths = np.linspace(2.0 + 0.5 * (len(own) - 1), 2.0, len(own))
    for shape, colour, width in zip(own, style.SEQUENCE, widths, strict=False):
        look = {"c": colour, "lw": width}
        draw_curve(axes, shape, number, limits, points, look, circles=True)


def _formula(variant: str, ceiling: float | None) -> str:
    formula = _FORMULAS[variant]
    if ceiling is not None:
        formula = formula.replace("x − θ", f"min(x − θ, {ceiling:g})", 1)
    return formula


def _frame(axes: Axes, limits: tuple[float, float]) -> None:
    axes.axhline(0, color=style.GREY, lw=0.8, zorder=1)
    if limits[0] < 0 < limits[1]:
        axes.axvline(0, color=style.GREY, lw=0.8, zorder=1)
    axes.set_xlim(*limits)
    axes.margins(y=0.1)
