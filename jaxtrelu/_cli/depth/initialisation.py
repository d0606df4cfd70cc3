"""What the nets of `depth` do before training, measured layer by layer and held against the maps.

A net of 300 units is a noisy copy of an infinitely wide one, and where the variance map has slope 1
the noise adds up. So what is compared is a layer: the variance that it makes, over what the formula
makes of the variance that it was given; and likewise the squared gradient. Every configuration
meets the same draws, and weights are drawn again where the backward pass needs them.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrelu import theory
from jaxtrelu._cli.depth.network import activate, input_scale
from jaxtrelu._cli.depth.settings import Configuration, Start
from jaxtrelu._cli.numbers import standard_error

NETS = 20
_ROWS = 8


class Measured(NamedTuple):
    """Of one configuration, (nets, layers, rows) each: means over the units of a layer."""

    variance: np.ndarray
    """q, of the pre-activations."""
    gradient: np.ndarray
    """Mean squared gradient of a random read-out of the last layer, by the pre-activations."""
    zeros: np.ndarray
    """Share of zeros."""


class Agreement(NamedTuple):
    """Measured over predicted, of single layers: the mean over nets and layers, and its error."""

    ratio: float
    standard_error: float


def measure(
    configurations: list[Configuration],
    x: np.ndarray,
    *,
    width: int,
    depth: int,
    seed: int,
    nets: int = NETS,
) -> list[Measured]:
    """Sends a few of the rows x (their root mean square 1) through nets of each configuration."""
    keys = jax.random.split(jax.random.key(seed), nets)
    rows = jnp.asarray(x[:_ROWS], jnp.float32)
    found: list[Measured | None] = [None] * len(configurations)
    for capped in (False, True):
        chosen = [
            i for i, c in enumerate(configurations) if (c.start.ceiling is not None) == capped
        ]
        if not chosen:
            continue
        starts = stack([configurations[i].start for i in chosen])
        parts = jax.device_get(_of_nets(keys, rows, starts, width, depth))
        for place, i in enumerate(chosen):
            found[i] = Measured(*(part[:, place].astype(np.float64) for part in parts))
    return [part for part in found if part is not None]


def stack(starts: list[Start]) -> Start:
    """Several as one, with an axis in front; all of them have a ceiling or none."""
    return jax.tree.map(lambda *numbers: jnp.asarray(numbers, jnp.float32), *starts)


@functools.partial(jax.jit, static_argnames=("width", "depth"))
def _of_nets(keys: jax.Array, rows: jax.Array, starts: Start, width: int, depth: int) -> Any:
    """(nets, configurations, layers, rows) of each of the three."""
    of_a_net = jax.vmap(functools.partial(_of_a_net, width=width, depth=depth), (None, None, 0))
    return jax.lax.map(lambda key: of_a_net(key, rows, starts), keys)


def _of_a_net(key: jax.Array, rows: jax.Array, start: Start, *, width: int, depth: int) -> tuple:
    first_key, hidden_key, out_key = jax.random.split(key, 3)

    @jax.checkpoint
    def dense(key, y):
        kernel_key, bias_key = jax.random.split(key)
        kernel = jax.random.normal(kernel_key, (y.shape[-1], width))
        bias = jax.random.normal(bias_key, (width,))
        scale = jnp.sqrt(start.weight_variance / y.shape[-1])
        return y @ kernel * scale + bias * jnp.sqrt(start.bias_variance)

    def read_out(nudges):
        """Nudges are added to every layer's pre-activations: what is differentiated by."""

        def layer(z, operand):
            number, nudge = operand
            y = activate(z + nudge, start)
            after = dense(jax.random.fold_in(hidden_key, number), y)
            return after, (jnp.mean(z * z, -1), jnp.mean(y == 0, -1))

        z = dense(first_key, rows * input_scale(start))
        z, (variance, zeros) = jax.lax.scan(layer, z, (jnp.arange(depth - 1), nudges[:-1]))
        last = activate(z, start)
        variance = jnp.concatenate([variance, jnp.mean(z * z, -1)[None]])
        zeros = jnp.concatenate([zeros, jnp.mean(last == 0, -1)[None]])
        return jnp.sum((z + nudges[-1]) * jax.random.normal(out_key, z.shape)), (variance, zeros)

    nudges = jnp.zeros((depth, len(rows), width))
    gradient, (variance, zeros) = jax.grad(read_out, has_aux=True)(nudges)
    return variance, jnp.mean(gradient**2, -1), zeros


def variance_agreement(configuration: Configuration, measured: Measured) -> Agreement:
    """Of the variance of a layer with V of the variance of the layer before."""
    start, given = configuration.start, _ordinary(measured)
    predicted = theory.variance_map(
        np.where(given, measured.variance[:, :-1], 1).astype(np.float32),
        start.threshold,
        weight_variance=start.weight_variance,
        bias_variance=start.bias_variance,
        ceiling=start.ceiling,
    )
    return _agreement(measured.variance[:, 1:], np.asarray(predicted), given)


def gradient_agreement(configuration: Configuration, measured: Measured) -> Agreement:
    """Of the squared gradient of a layer with χ₁ times that of the layer behind."""
    start, given = configuration.start, _ordinary(measured)
    gain = theory.gradient_gain(
        np.where(given, measured.variance[:, :-1], 1).astype(np.float32),
        start.threshold,
        weight_variance=start.weight_variance,
        ceiling=start.ceiling,
    )
    passed = measured.gradient[:, 1:]
    # Beside what overflows or vanishes there is nothing to compare.
    given &= np.isfinite(measured.gradient[:, :-1]) & np.isfinite(passed) & (passed > 0)
    return _agreement(measured.gradient[:, :-1], np.asarray(gain) * passed, given)


def _ordinary(measured: Measured) -> np.ndarray:
    """Which layers were given a variance that is still of the order of 1."""
    given = measured.variance[:, :-1]
    return (given > 0.1) & (given < 10)


def _agreement(measured: np.ndarray, predicted: np.ndarray, given: np.ndarray) -> Agreement:
    """Of the mean over rows of a layer, then over layers, then over nets, which alone are drawn."""
    of_nets = []
    for net in range(len(given)):
        layers = given[net].all(-1)
        if layers.any():
            ratio = measured[net, layers].mean(-1) / predicted[net, layers].mean(-1)
            of_nets.append(ratio.mean())
    if not of_nets:
        return Agreement(math.nan, math.nan)
    return Agreement(float(np.mean(of_nets)), standard_error(np.array(of_nets)))


def drift(measured: Measured) -> tuple[float, float]:
    """Variance of the last layer over that of the first: the quartiles over nets."""
    low, high = _quantiles(measured.variance, [0.25, 0.75])
    return low, high


def gradient_drift(measured: Measured) -> tuple[float, float, float]:
    """Squared gradient of the first layer over that of the last: quartiles and median over nets."""
    low, middle, high = _quantiles(measured.gradient[:, ::-1], [0.25, 0.5, 0.75])
    return low, middle, high


def _quantiles(values: np.ndarray, shares: list[float]) -> list[float]:
    """Over nets, of what is at the end over what is at the beginning, whatever overflowed."""
    first, last = values[:, 0].mean(1), values[:, -1].mean(1)
    ratio = np.where(np.isfinite(last), last, np.inf) / first
    return [float(q) for q in np.quantile(ratio, shares, method="nearest")]  # of ∞ no mean
