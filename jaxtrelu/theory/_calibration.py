"""Thresholds from data that is larger than memory, or for a wanted error of the next layer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu._activation import thresholded_relu
from jaxtrelu._primitive.spec import VariantName, checked_spec, real_array, whole_number
from jaxtrelu.theory._operands import known, within

# Each halves the interval: after these, what is left of it is below the spacing of float32.
_HALVINGS = 40


class QuantileSketch:
    """A stream of pre-activations in a few kilobytes, from which thresholds can be read.

    A KLL sketch (Karnin, Lang and Liberty 2016) for each channel, by Apache DataSketches
    (``pip install 'jaxtrelu[calibration]'``). What it says of a share of zeros is off by at most
    `rank_error` with 99 % confidence, whatever the data and however much of it. It draws random
    numbers of its own, so two runs differ, within that bound; `quantile_threshold` is exact.

    Args:
      channels: how many channels have a threshold of their own; None: one threshold for all.
      k: the size, from 8 to 65535; the error falls almost as 1/k, and is .0014 at 2000.

    Raises:
      TypeError: `channels` or `k` is not a whole number.
      ValueError: `channels` is less than 1, or `k` out of its range.
      ModuleNotFoundError: DataSketches is not installed.
    """

    def __init__(self, channels: int | None = None, *, k: int = 2000):
        if channels is not None:
            whole_number(channels, "channels")
        if not 8 <= whole_number(k, "k") <= 65535:
            raise ValueError(f"`k` should be from 8 to 65535, but is {k}.")
        from datasketches import vector_of_kll_floats_sketches

        self._channels, self._k = channels, k
        self._sketches = vector_of_kll_floats_sketches(k, channels or 1)

    def update(self, data: Float[ArrayLike, "..."]) -> "QuantileSketch":
        """Takes in more data, and returns itself.

        Args:
          data: any shape; with channels, those are its last axis. Kept in float32.

        Raises:
          TypeError: `data` is not a real array.
          ValueError: NaN in it, or another number of channels.
        """
        rows = np.asarray(real_array(data, "data"))
        width = self._channels or 1
        if self._channels and rows.shape[-1:] != (width,):
            raise ValueError(
                f"`data` should have {width} channels along its last axis, but has shape "
                f"{rows.shape}."
            )
        rows = np.array(rows.reshape(-1, width), np.float32)  # a copy: it wants to own it
        if np.isnan(rows).any():
            raise ValueError("`data` holds NaN, which has no place in an order. Remove it first.")
        if len(rows):
            self._sketches.update(rows)
        return self

    def merge(self, other: "QuantileSketch") -> "QuantileSketch":
        """Takes in what `other` has seen, and returns itself: of parts of a stream, in any order.

        Raises:
          ValueError: `other` has another number of channels, or another size.
        """
        if (other._channels, other._k) != (self._channels, self._k):
            raise ValueError(
                f"`other` should have channels={self._channels} and k={self._k}, but has "
                f"channels={other._channels} and k={other._k}."
            )
        self._sketches.merge(other._sketches)
        return self

    @property
    def count(self) -> int:
        """How many values each channel has seen."""
        return int(self._sketches.get_n()[0])

    @property
    def rank_error(self) -> float:
        """By how much the share of zeros may be off, with 99 % confidence."""
        return float(self._sketches.get_normalized_rank_error(self._k, False))

    def threshold(self, sparsity: float) -> Float[Array, "..."]:
        """A threshold at which a share `sparsity` of the stream is closed, to `rank_error`.

        Args:
          sparsity: between 0 and 1.

        Returns:
          A value of the stream for each channel, or one; float32.

        Raises:
          ValueError: nothing seen, all of a channel equal, or a sparsity outside of (0, 1).
        """
        within(0, 1, sparsity=np.asarray(sparsity))
        if not self.count:
            raise ValueError("the sketch has seen no data, and so has no quantile.")
        low, high = self._sketches.get_min_values(), self._sketches.get_max_values()
        if np.any(np.asarray(low) == np.asarray(high)):
            raise ValueError("all values of some channel are equal: no threshold divides them.")
        found = np.asarray(self._sketches.get_quantiles(float(sparsity)), np.float32)
        return jnp.asarray(found[:, 0] if self._channels else found[0, 0])


class ErrorThreshold(NamedTuple):
    """A threshold, and what it costs and gives on the data that it was found on."""

    threshold: Array
    """θ, in the units of the pre-activations."""
    error: Array
    """The relative error of the next layer's output there, at most the wanted one."""
    sparsity: Array
    """The share of closed entries there."""


def threshold_for_error(
    pre_activations: Float[ArrayLike, "rows m"],
    w_out: Float[ArrayLike, "m d"],
    error: float,
    *,
    variant: VariantName = "shift",
) -> ErrorThreshold:
    r"""A threshold that the next layer bears: zeros for a wanted error instead of a wanted share.

    By bisection over θ ≥ 0, of
    :math:`\lVert (f_\theta(z) - f_0(z)) W \rVert_F / \lVert f_0(z) W \rVert_F`. At θ = 0 ``shift``
    and ``hard`` are ReLU. For a network that was trained with ReLU, ``hard`` (FATReLU) has far more
    zeros at the same error, as what stays open is left as it is. The error rises nearly, but not
    strictly, with θ; what is returned has been measured to be within it.

    Args:
      pre_activations: z, a row an example.
      w_out: W, the weights of the layer behind, feature-major.
      error: the relative error allowed, between 0 and 1.
      variant: one that has zeros, ``"shift"`` or ``"hard"``.

    Returns:
      `ErrorThreshold`, of 0-d arrays.

    Raises:
      TypeError: an operand is not a real array, or is inside of `jax.jit` or another
        transformation.
      ValueError: shapes that do not fit, no data, NaN or infinity, an error outside of (0, 1), a
        variant without zeros, or an output that is 0 at θ = 0.

    Example:
      >>> import jax
      >>> from jaxtrelu import theory
      >>> z, w = (jax.random.normal(jax.random.key(i), (256, 256)) for i in range(2))
      >>> found = theory.threshold_for_error(z, w, 0.1, variant="hard")
      >>> bool(found.error <= 0.1), round(float(found.sparsity), 1)
      (True, 0.6)

    Source: Kurtz et al. 2020 (FATReLU) for the idea; the definition.
    """
    spec = checked_spec(variant)
    if not spec.traits.has_zeros:
        raise ValueError(f"variant={variant!r} has no zeros: it is {spec.traits.formula}.")
    known("threshold_for_error", pre_activations=pre_activations, w_out=w_out, error=error)
    z, w = real_array(pre_activations, "pre_activations"), real_array(w_out, "w_out")
    within(0, 1, error=np.asarray(error))
    if z.ndim != 2 or w.ndim != 2 or z.shape[1] != w.shape[0]:
        raise ValueError(
            "`pre_activations` should have shape (rows, m) and `w_out` (m, d), but they have "
            f"{z.shape} and {w.shape}."
        )
    if not z.size or not w.size:
        raise ValueError(f"there is no data: the shapes are {z.shape} and {w.shape}.")
    dtype = jnp.promote_types(jnp.promote_types(z.dtype, w.dtype), jnp.float32)
    z, w = z.astype(dtype), w.astype(dtype)
    if not (jnp.isfinite(z).all() and jnp.isfinite(w).all()):
        raise ValueError("`pre_activations` and `w_out` should be finite, and hold no NaN.")
    whole = thresholded_relu(z, 0.0, variant=variant)
    norm = jnp.linalg.norm(whole @ w)
    if not norm > 0:
        raise ValueError("the output is 0 without a threshold, so that no error is relative to it.")

    @jax.jit
    def error_at(threshold):
        kept = thresholded_relu(z, threshold, variant=variant)
        return jnp.linalg.norm((kept - whole) @ w) / norm

    low, high = 0.0, float(z.max())
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (
            (middle, high) if error_at(jnp.asarray(middle, dtype)) <= error else (low, middle)
        )
    threshold = jnp.asarray(low, dtype)
    return ErrorThreshold(threshold, error_at(threshold), jnp.mean((z <= threshold).astype(dtype)))
