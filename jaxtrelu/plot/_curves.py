"""Curves of one real number, sampled in pieces between jumps, and drawn with their jumps."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrelu._activation import thresholded_relu
from jaxtrelu._calculus import antiderivative, derivative

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTITIES = ("function", "derivative", "antiderivative")

Real = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Shape:
    """A function of one real number, with what belongs to it.

    Attributes:
        label: for the legend.
        of: the function, the derivative and the antiderivative, in the order of `QUANTITIES`.
        breaks: where one of them may jump or bend.
    """

    label: str
    of: tuple[Real, Real, Real]
    breaks: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    """A continuous part of a curve."""

    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Jump:
    """A jump at x: the value there, and the limits that it does not have."""

    x: float
    value: float
    limits: tuple[float, ...]


def thresholded(variant: str, threshold: float, ceiling: float | None) -> Shape:
    """Thresholded ReLU; `ceiling` is for `shift` only."""
    options: dict[str, Any] = {"variant": variant, "ceiling": ceiling}
    return Shape(
        f"θ = {threshold:g}".replace("-", "−"),
        (
            lambda x: thresholded_relu(x, threshold, **options),
            lambda x: derivative(x, threshold, **options),
            lambda x: antiderivative(x, threshold, **options),
        ),
        (threshold,) if ceiling is None else (threshold, threshold + ceiling),
    )


def pieces(
    function: Real, breaks: Sequence[float], low: float, high: float, points: int
) -> tuple[list[Piece], list[Jump]]:
    """Samples a function between its breaks.

    Returns:
        The pieces, and the jumps at those breaks where the function is not continuous.
    """
    inside = sorted({b for b in np.asarray(breaks, np.float32).tolist() if low < b < high})
    edges = [low, *inside, high]
    # So far from a break that x - threshold does not round to what it is on the other side.
    rounding = 4 * float(np.spacing(np.float32(max(map(abs, breaks), default=0.0))))
    found: list[Piece] = []
    jumps: list[Jump] = []
    for left, right in itertools.pairwise(edges):
        x = np.linspace(left, right, points, dtype=np.float32)
        # Approached from within, so that neither end belongs to the neighbour.
        step = min(rounding, (right - left) / 4)
        x[0], x[-1] = _beside(x[0], step), _beside(x[-1], -step)
        found.append(Piece(x, np.asarray(function(jnp.asarray(x)))))
    for at, before, after in zip(inside, found[:-1], found[1:], strict=True):
        limits = (float(before.y[-1]), float(after.y[0]))
        value = float(function(jnp.asarray([at], jnp.float32))[0])
        tolerance = 1e-4 * (1 + max(map(abs, limits)))
        missed = tuple(limit for limit in limits if abs(limit - value) > tolerance)
        if abs(limits[0] - limits[1]) > tolerance:
            jumps.append(Jump(at, value, missed))
    return found, jumps


def _beside(x: np.float32, step: float) -> np.float32:
    """A step away, and at least the next float32; beside 0 a normal one: XLA flushes the others."""
    moved = np.float32(x + step)
    if abs(moved) < np.finfo(np.float32).tiny:
        return np.copysign(np.finfo(np.float32).tiny, np.float32(step))
    return moved if moved != x else np.nextafter(x, np.float32(math.copysign(math.inf, step)))


def draw_curve(
    axes: "Axes",
    shape: Shape,
    quantity: int,
    limits: tuple[float, float],
    points: int,
    look: Mapping[str, Any],
    circles: bool = False,
) -> None:
    """One curve; where it jumps, a full circle at the value and an open one at the limit."""
    parts, jumps = pieces(shape.of[quantity], shape.breaks, *limits, points)
    for part in parts:
        label = shape.label if part is parts[0] else None
        axes.plot(part.x, part.y, **look, zorder=3 if circles else 2, label=label)
    if not circles:
        return
    circle = {"color": look["c"], "ls": "none", "marker": "o", "ms": 5.5, "mew": 1.5, "zorder": 4}
    for jump in jumps:
        axes.plot([jump.x] * len(jump.limits), jump.limits, **circle, mfc="white")
        axes.plot([jump.x], [jump.value], **circle)
