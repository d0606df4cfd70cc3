"""Pictures of the function and of its maps."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jax.scipy.special import ndtri

from jaxtrelu import theory
from jaxtrelu._primitive.spec import VariantName, checked_spec, whole_number
from jaxtrelu.plot._axes import axes_or_new
from jaxtrelu.plot._curves import QUANTITIES, draw_curve, thresholded
from jaxtrelu.plot._palette import GREY, SEQUENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def curve(
    threshold: float = 1.0,
    *,
    quantity: Literal["function", "derivative", "antiderivative"] = "function",
    variant: VariantName = "shift",
    ceiling: float | None = None,
    limits: tuple[float, float] = (-2.0, 3.0),
    points: int = 400,
    colour: str = SEQUENCE[0],
    axes: "Axes | None" = None,
) -> "Axes":
    """Draws the function, its derivative or its antiderivative; jumps are drawn as jumps.

    Where the curve jumps, the full circle is its value and the open one the limit that it does not
    reach: at the threshold the gate is closed.

    Args:
      threshold: θ.
      quantity: what to draw, ``"function"``, ``"derivative"`` or ``"antiderivative"``.
      variant: as in `jaxtrelu.thresholded_relu`.
      ceiling: for ``shift``, a positive Python number.
      limits: the range of x.
      points: samples between two breaks, 2 at least.
      colour: any colour of Matplotlib's.
      axes: what to draw on; by default new ones.

    Returns:
      The axes.

    Raises:
      TypeError: `points` is not a whole number.
      ValueError: an unknown quantity, limits that do not rise, fewer than 2 points; else as
        `thresholded_relu`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from jaxtrelu import plot
      >>> axes = plot.curve(1.0, variant="hard", axes=Figure().subplots())
      >>> len(axes.lines)  # the two sides of the jump, and its two circles
      4

    Source: the definition.
    """
    if quantity not in QUANTITIES:
        raise ValueError(
            f"`quantity` should be one of {', '.join(map(repr, QUANTITIES))}, but is {quantity!r}."
        )
    low, high = limits
    if not low < high:
        raise ValueError(f"`limits` should rise, but are {limits}.")
    points = whole_number(points, "points", least=2)
    spec = checked_spec(variant, ceiling)
    axes = axes_or_new(axes)
    shape = thresholded(spec.variant, threshold, spec.ceiling)
    look = {"c": colour, "lw": 2.0}
    draw_curve(axes, shape, QUANTITIES.index(quantity), (low, high), points, look, circles=True)
    axes.set(xlabel="x", ylabel=quantity, xlim=limits)
    return axes


def variance_map(
    threshold: float = 1.0,
    *,
    weight_variance: float,
    bias_variance: float = 0.0,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    largest: float = 3.0,
    points: int = 400,
    colour: str = SEQUENCE[0],
    axes: "Axes | None" = None,
) -> "Axes":
    """Draws V(q), the variance of the next layer against that of this one, and its fixed points.

    A fixed point is a full circle where it is stable (the slope there is between -1 and 1), else an
    open one. Where the map lies on the diagonal, as ReLU's, none is marked.

    Args:
      threshold: θ, in the units of the pre-activations.
      weight_variance: σ_w², of a weight times the width.
      bias_variance: σ_b².
      variant: as in `jaxtrelu.thresholded_relu`.
      ceiling: for ``shift``, a positive Python number.
      largest: the largest q drawn.
      points: how many values of q.
      colour: any colour of Matplotlib's.
      axes: what to draw on; by default new ones.

    Returns:
      The axes.

    Raises:
      TypeError, ValueError: as `jaxtrelu.theory.variance_map`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from jaxtrelu import plot, theory
      >>> start = theory.critical_init(0.85, slope=0.5)
      >>> axes = plot.variance_map(
      ...     float(start.threshold), weight_variance=float(start.weight_variance),
      ...     bias_variance=float(start.bias_variance), ceiling=float(start.ceiling),
      ...     axes=Figure().subplots())
      >>> axes.lines[-1].get_xdata().round(2)  # stable, and where it was put
      array([1.])

    Source: Price et al. 2024, arXiv 2402.16184.
    """
    q = np.linspace(0, largest, whole_number(points, "points", least=2) + 1)[1:]
    found = theory.variance_map(
        q.astype(np.float32),
        threshold,
        weight_variance=weight_variance,
        bias_variance=bias_variance,
        variant=variant,
        ceiling=ceiling,
    )
    axes = axes_or_new(axes)
    _draw_map(axes, q, np.asarray(found, np.float64), colour)
    axes.set(xlabel="variance q of this layer", ylabel="variance V(q) of the next")
    return axes


def correlation_map(
    threshold: float = 1.0,
    *,
    weight_variance: float,
    variance: float = 1.0,
    bias_variance: float = 0.0,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    points: int = 400,
    colour: str = SEQUENCE[0],
    axes: "Axes | None" = None,
) -> "Axes":
    """Draws the correlation of two inputs at the next layer against that at this one.

    Fixed points are marked as in `variance_map`. A stable one at 1 forgets what the inputs were, a
    slope of 1 there is the edge of chaos.

    Args:
      threshold: θ, in the units of the pre-activations.
      weight_variance: σ_w², of a weight times the width.
      variance: q, of both.
      bias_variance: σ_b².
      variant: as in `jaxtrelu.thresholded_relu`.
      ceiling: for ``shift``, a positive Python number.
      points: how many correlations.
      colour: any colour of Matplotlib's.
      axes: what to draw on; by default new ones.

    Returns:
      The axes.

    Raises:
      TypeError, ValueError: as `jaxtrelu.theory.correlation_map`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from jaxtrelu import plot
      >>> axes = plot.correlation_map(0.0, weight_variance=2.0, axes=Figure().subplots())
      >>> axes.get_xlabel()
      'correlation at this layer'

    Source: Poole et al. 2016, arXiv 1606.05340.
    """
    rho = np.linspace(-1, 1, whole_number(points, "points", least=2))
    found = theory.correlation_map(
        rho.astype(np.float32),
        threshold,
        variance=variance,
        weight_variance=weight_variance,
        bias_variance=bias_variance,
        variant=variant,
        ceiling=ceiling,
    )
    axes = axes_or_new(axes)
    _draw_map(axes, rho, np.asarray(found, np.float64), colour)
    axes.set(xlabel="correlation at this layer", ylabel="correlation at the next")
    return axes


def information(
    *,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    points: int = 200,
    colour: str = SEQUENCE[0],
    axes: "Axes | None" = None,
) -> "Axes":
    """Draws what can still be read of a standard normal x from f(x), against the share of zeros.

    As a share of its variance: by the best read-out of any kind, and dashed by the best linear one;
    dotted the bits that the gate alone carries. See `jaxtrelu.theory.information`.

    Args:
      variant: as in `jaxtrelu.thresholded_relu`.
      ceiling: for ``shift``, a positive Python number.
      points: how many thresholds.
      colour: any colour of Matplotlib's.
      axes: what to draw on; by default new ones.

    Returns:
      The axes.

    Raises:
      TypeError, ValueError: as `jaxtrelu.theory.information`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from jaxtrelu import plot
      >>> axes = plot.information(axes=Figure().subplots())
      >>> [line.get_label() for line in axes.lines]
      ['best read-out', 'best linear read-out', 'bits of the gate']

    Source: the definitions.
    """
    share = np.linspace(0.01, 0.995, whole_number(points, "points", least=2), dtype=np.float32)
    kept = theory.information(ndtri(share), variant=variant, ceiling=ceiling)
    axes = axes_or_new(axes)
    axes.plot(share, 1 - np.asarray(kept.best_error), color=colour, label="best read-out")
    linear = 1 - np.asarray(kept.linear_error)
    axes.plot(share, linear, color=colour, ls="--", label="best linear read-out")
    axes.plot(share, np.asarray(kept.gate_entropy), color=GREY, ls=":", label="bits of the gate")
    axes.set(xlabel="share of zeros", ylabel="share of the variance, bits", xlim=(0, 1))
    axes.set_ylim(0, 1.02)
    axes.legend()
    return axes


def _draw_map(axes: "Axes", x: np.ndarray, y: np.ndarray, colour: str) -> None:
    axes.plot(x, x, color=GREY, lw=1, ls="--")
    axes.plot(x, y, color=colour)
    for at, stable in fixed_points(x, y):
        look: dict[str, Any] = {"marker": "o", "ms": 6, "mec": colour, "zorder": 4}
        axes.plot([at], [at], ls="none", mfc=colour if stable else "white", **look)


def fixed_points(x: np.ndarray, y: np.ndarray) -> list[tuple[float, bool]]:
    """Where sampled y(x) meets x, and whether |y′| < 1 there.

    Where they cross, by interpolation; where they only touch, or at an end, the nearest sample.
    """
    gap = y - x
    close = np.abs(gap) <= 1e-5 * (x[-1] - x[0])
    if np.mean(close) > 0.1:
        return []  # they lie on each other
    found: list[tuple[float, int]] = []
    for i in np.flatnonzero(gap[:-1] * gap[1:] < 0):
        found.append((float(x[i] - gap[i] * (x[i + 1] - x[i]) / (gap[i + 1] - gap[i])), int(i)))
    apart = 0.02 * (x[-1] - x[0])
    # From the closest on, and none beside one that is there already.
    for i in sorted(map(int, np.flatnonzero(close)), key=lambda i: float(abs(gap[i]))):
        if all(abs(x[i] - other) > apart for other, _ in found):
            found.append((float(x[i]), min(i, len(x) - 2)))
    slopes = np.diff(y) / np.diff(x)
    return sorted((at, bool(abs(slopes[i]) < 1)) for at, i in found)
