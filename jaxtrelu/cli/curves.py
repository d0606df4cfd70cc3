"""Curves to plot: a function, its derivative and its antiderivative, in pieces between jumps."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrelu._activation import thresholded_relu
from jaxtrelu._calculus import antiderivative, derivative

QUANTITIES = ("function", "derivative", "antiderivative")
_LEAKY_SLOPE = 0.01  # jax.nn.leaky_relu's
_PRELU_SLOPE = 0.25  # where PReLU begins in its paper (He et al. 2015)

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


def pieces(
    function: Real, breaks: Sequence[float], low: float, high: float, points: int
) -> tuple[list[Piece], list[Jump]]:
    """Samples a function between its breaks.

    Returns:
        The pieces, and the jumps at those breaks where the function is not continuous.
    """
    inside = sorted({b for b in np.asarray(breaks, np.float32).tolist() if low < b < high})
    edges = [low, *inside, high]
    found: list[Piece] = []
    jumps: list[Jump] = []
    for left, right in itertools.pairwise(edges):
        x = np.linspace(left, right, points, dtype=np.float32)
        # Approached from within, so that neither end belongs to the neighbour.
        x[0], x[-1] = _beside(x[0], 1), _beside(x[-1], -1)
        found.append(Piece(x, np.asarray(function(jnp.asarray(x)))))
    for at, before, after in zip(inside, found[:-1], found[1:], strict=True):
        limits = (float(before.y[-1]), float(after.y[0]))
        value = float(function(jnp.asarray([at], jnp.float32))[0])
        tolerance = 1e-4 * (1 + max(map(abs, limits)))
        missed = tuple(limit for limit in limits if abs(limit - value) > tolerance)
        if abs(limits[0] - limits[1]) > tolerance:
            jumps.append(Jump(at, value, missed))
    return found, jumps


def _beside(x: np.float32, side: int) -> np.float32:
    """The next float32; beside 0 the smallest normal one, since XLA takes the others for 0."""
    if x == 0:
        return side * np.finfo(np.float32).tiny
    return np.nextafter(x, np.float32(side * np.inf))
