"""The record of what was open, and penalties built on it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


class Activity(NamedTuple):
    """What was open in a call of `jaxtrelu.sparse_mlp`: a flat list in row order, and counts.

    For m features and inputs of shape (..., d), flattened to B rows. An entry is an open feature of
    a row or, for a threshold that learns, one inside the surrogate's window (whose value is 0).
    Differentiable are `values` and `l0`.

    >>> import jaxtrelu
    >>> x, w = jnp.array([[1.0, 3.0, 2.0]]), jnp.eye(3)
    >>> y, activity = jaxtrelu.sparse_mlp(x, w, None, 1.5, w, variant="shift")
    >>> y.tolist(), activity.l0.tolist(), activity.values[:3].tolist()
    ([[0.0, 1.5, 0.5]], [2.0], [1.5, 0.5, 0.0])
    """

    indices: jax.Array
    """(N,) int32: the feature of each entry; m past the last one."""
    rows: jax.Array
    """(N,) int32: its row; B past the last one."""
    values: jax.Array
    """(N,): its activation; 0 past the last one."""
    counts: jax.Array
    """(...) int32: entries of each row. Exact, also where `wide` is true."""
    l0: jax.Array
    """(...): open features of each row. Exact, also where `wide` is true; with a surrogate its
    gradient to the threshold is that of the step."""
    fired: jax.Array
    """(m,) int32: rows for which each feature was open. Exact, also where `wide` is true."""
    wide: jax.Array
    """Whether more entries than the lists hold were found, and the dense path was taken. The lists
    are empty then; `entry_sum` is exact in both cases."""


def entry_sum(
    cost: Callable[..., jax.Array],
    activity: Activity,
    latent: Callable[[], jax.Array],
    *per_feature: ArrayLike,
) -> jax.Array:
    """``sum of cost(f, *parameters of the feature)`` over the open entries f, exactly.

    For penalties such as L1 or tanh without a dense latent. Where the record is complete, the sum
    runs over its list; where `activity.wide` is true, over `latent()`. The choice is made on the
    device, and the gradient follows it: through `activity.values` or through `latent`.

    Args:
      cost: an elementwise function of the values and one array per array of `per_feature`, with
        ``cost(0, ...) == 0``. Nothing that it closes over may be differentiated, only arguments.
      activity: the record of `jaxtrelu.sparse_mlp`.
      latent: a function without arguments that computes the dense activations (..., m), from the
        arrays that were given to `sparse_mlp`.
      *per_feature: arrays (m,), of which `cost` receives the entry's element.

    Returns:
      A scalar, summed over all rows, in float32 at least.

    Raises:
      ValueError: an array of `per_feature` is not of shape (m,).

    >>> import jaxtrelu
    >>> x, w = jnp.array([[1.0, 3.0, 2.0]]), jnp.eye(3)
    >>> y, activity = jaxtrelu.sparse_mlp(x, w, None, 1.5, w)
    >>> norms = jnp.array([1.0, 2.0, 4.0])
    >>> latent = lambda: jaxtrelu.thresholded_relu(x @ w.T, 1.5, variant="hard")
    >>> entry_sum(lambda f, norm: jnp.abs(f) * norm, activity, latent, norms).item()
    14.0
    """
    features = activity.fired.shape
    parameters = [jnp.asarray(p) for p in per_feature]
    for p in parameters:
        if p.shape != features:
            raise ValueError(
                f"`per_feature` should be arrays of shape {features}, one element per feature, but "
                f"one has shape {p.shape}."
            )
    wide = jnp.promote_types(activity.values.dtype, jnp.float32)

    def listed(values, *parameters):
        there = activity.indices < features[0]
        at = [p.at[activity.indices].get(mode="clip") for p in parameters]
        return jnp.sum(jnp.where(there, cost(values, *at), 0), dtype=wide)

    def dense(values, *parameters):
        return jnp.sum(cost(latent(), *parameters), dtype=wide)

    # Recomputed backwards: a conditional's residuals exist in both branches, so a dense latent kept
    # for the second one would be paid by the first.
    return lax.cond(
        activity.wide, jax.checkpoint(dense), jax.checkpoint(listed), activity.values, *parameters
    )
