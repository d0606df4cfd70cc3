"""The network that `compare` trains, with one activation or another."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrelu import Rectangle, thresholded_relu
from jaxtrelu._primitive.variants import VARIANTS
from jaxtrelu.nnx import ThresholdedReLU

# Where learned thresholds begin: near the ReLU that they generalise, yet not at 0, where the
# surrogate gradient of `hard`, which is proportional to the threshold, vanishes.
LEARNED_START = 0.1
# In units of the pre-activations, whose standard deviation is of the order of 1 at the start.
BANDWIDTH = 0.5

_FUNCTIONS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
}


class Elementwise(nnx.Module):
    """An activation without parameters."""

    def __init__(self, function: Callable[[jax.Array], jax.Array]):
        self.function = function

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the function."""
        return self.function(x)


def activation(name: str, width: int, threshold: float) -> nnx.Module:
    """A new activation layer for `width` units; `threshold` is that of the fixed kind."""
    if name in _FUNCTIONS:
        return Elementwise(_FUNCTIONS[name])
    if name == "prelu":
        return nnx.PReLU()
    variant: Any
    variant, kind = name.split("-")
    if kind == "fixed":
        return ThresholdedReLU(threshold, variant=variant)
    if kind == "calibrated":
        # One per layer; as an array it is stored, so that it can be set.
        return ThresholdedReLU(jnp.asarray(threshold), variant=variant)
    surrogate = Rectangle(BANDWIDTH) if VARIANTS[variant].jump else None
    return ThresholdedReLU(
        LEARNED_START, features=width, learned=True, variant=variant, surrogate=surrogate
    )


def quantile(values: jax.Array, share: float | jax.Array) -> jax.Array:
    """The smallest number, to a millionth of the range, that `share` of the values do not exceed.

    By bisection: XLA sorts slowly on the CPU.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.mean(values <= middle) >= share
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    return jax.lax.fori_loop(0, 20, halve, (jnp.min(values), jnp.max(values)))[1]


def initial_kernels(key: jax.Array, sizes: Sequence[int]) -> tuple[jax.Array, ...]:
    """Kernels of dense layers from sizes[0] to sizes[-1] units, normal with variance 2 / inputs.

    They are drawn apart from the network so that every activation starts from the same ones.
    """
    he_normal = jax.nn.initializers.he_normal()
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = itertools.pairwise(sizes)
    return tuple(he_normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def _dense(kernel: jax.Array) -> nnx.Linear:
    return nnx.Linear(*kernel.shape, kernel_init=lambda *_: kernel, rngs=nnx.Rngs(0))


class Network(nnx.Module):
    """Dense layers, each but the last followed by an activation."""

    def __init__(self, kernels: Sequence[jax.Array], name: str, threshold: float):
        *hidden, last = kernels
        self.dense = nnx.List([_dense(kernel) for kernel in hidden])
        self.activations = nnx.List(
            [activation(name, kernel.shape[1], threshold) for kernel in hidden]
        )
        self.head = _dense(last)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Class scores (..., classes) of rows (..., inputs)."""
        for dense, activate in zip(self.dense, self.activations, strict=True):
            x = activate(dense(x))
        return self.head(x)

    def hidden(self, x: jax.Array) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
        """Class scores and, layer by layer, hidden values and their derivatives (..., width)."""
        values, slopes = [], []
        for dense, activate in zip(self.dense, self.activations, strict=True):
            before = dense(x)
            x, pull = jax.vjp(activate, before)
            (slope,) = pull(jnp.ones_like(x))
            values.append(x)
            slopes.append(slope)
        return self.head(x), values, slopes

    def calibrate(self, x: jax.Array, sparsity: float) -> None:
        """Sets each layer's threshold so that `sparsity` of the gates are closed on rows x."""
        for dense, activate in zip(self.dense, self.activations, strict=True):
            before = dense(x)
            assert isinstance(activate, ThresholdedReLU)
            activate.threshold[...] = quantile(before, sparsity)
            x = activate(before)

    def with_zeros(self, x: jax.Array, share: float | jax.Array) -> "Cut":
        """Thresholds after training: of each layer the quantile of what arrives there, 0 at least.

        Layer by layer, on rows x: what arrives has gone through the thresholds in front (FATReLU).
        """
        thresholds = []
        for dense in self.dense:
            before = dense(x)
            thresholds.append(jnp.maximum(quantile(before, share), 0))
            x = thresholded_relu(before, thresholds[-1], variant="hard")
        return Cut(self, tuple(thresholds))

    def threshold_quantiles(self) -> jax.Array:
        """The quantiles .1, .5 and .9 of each layer's thresholds (depth, 3); NaN if it has none."""
        quantiles = []
        for activate in self.activations:
            threshold = getattr(activate, "threshold", jnp.nan)
            value = threshold[...] if isinstance(threshold, nnx.Variable) else threshold
            quantiles.append(
                jnp.quantile(jnp.asarray(value, jnp.float32), jnp.array([0.1, 0.5, 0.9]))
            )
        return jnp.stack(quantiles)


class Cut(NamedTuple):
    """A trained network whose activations were exchanged for FATReLU."""

    network: Network
    thresholds: tuple[jax.Array, ...]

    def hidden(self, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Class scores (..., classes) and, layer by layer, hidden values (..., width)."""
        values = []
        for dense, threshold in zip(self.network.dense, self.thresholds, strict=True):
            x = thresholded_relu(dense(x), threshold, variant="hard")
            values.append(x)
        return self.network.head(x), values
