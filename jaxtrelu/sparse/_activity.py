"""The record of what was open, and penalties built on it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu._primitive.spec import accumulator_dtype


class Activity(NamedTuple):
    """What was open in a call of `jaxtrelu.sparse_mlp`: a flat list in row order, and counts.

    For m features and inputs of shape (..., d), flattened to B rows, one example each. An entry is
    an open feature of a row or, for a threshold that learns, one inside the surrogate's window
    (whose value is 0). Differentiable are `values` and `l0`.

    >>> import jaxtrelu
    >>> x, w = jnp.array([[1.0, 3.0, 2.0]]), jnp.eye(3)
    >>> y, activity = jaxtrelu.sparse_mlp(x, w, w, 1.5, with_activity=True)
    >>> y.tolist(), activity.l0.tolist(), activity.values[:3].tolist()
    ([[0.0, 1.5, 0.5]], [2.0], [1.5, 0.5, 0.0])
    """

    features: jax.Array
    """(N,) int32: the feature of each entry; m past the last one."""
    rows: jax.Array
    """(N,) int32: its row; B past the last one."""
    values: jax.Array
    """(N,): its activation; 0 past the last one."""
    counts: jax.Array
    """(...) int32: entries of each row. Exact, also where `overflow` is true."""
    l0: jax.Array
    """(...): open features of each row. Exact, also where `overflow` is true; with a surrogate its
    gradient to the threshold is that of the step."""
    fired: jax.Array
    """(m,) int32: rows for which each feature was open. Exact, also where `overflow` is true."""
    overflow: jax.Array
    """Whether more entries than the lists hold were found, and the dense path was taken. The lists
    are empty then; `entry_sum` is exact in both cases."""


def entry_sum(
    cost: Callable[..., jax.Array],
    activity: Activity,
    activations: Callable[[], jax.Array],
    *per_feature: Float[ArrayLike, " m"],
) -> Float[Array, ""]:
    """``sum of cost(f, *parameters of the feature)`` over the open entries f, exactly.

    For penalties such as L1 or tanh without a dense latent. Where the record is complete, the sum
    runs over its list; where `activity.overflow` is true, over `activations()`. The choice is made
    on the device, and the gradient follows it: through `activity.values` or `activations`.

    Args:
      cost: an elementwise function of the values and one array per array of `per_feature`, with
        ``cost(0, ...) == 0``. Nothing that it closes over may be differentiated, only arguments.
      activity: the record of `jaxtrelu.sparse_mlp`.
      activations: a function without arguments that computes the dense activations (..., m), from
        the arrays that were given to `sparse_mlp`.
      *per_feature: arrays (m,), of which `cost` receives the entry's element.

    Returns:
      A scalar, summed over all rows, in float32 at least.

    Raises:
      ValueError: an array of `per_feature` is not of shape (m,).

    >>> import jaxtrelu
    >>> x, w = jnp.array([[1.0, 3.0, 2.0]]), jnp.eye(3)
    >>> y, activity = jaxtrelu.sparse_mlp(x, w, w, 1.5, variant="hard", with_activity=True)
    >>> norms = jnp.array([1.0, 2.0, 4.0])
    >>> dense = lambda: jaxtrelu.thresholded_relu(x @ w.T, 1.5, variant="hard")
    >>> entry_sum(lambda f, norm: jnp.abs(f) * norm, activity, dense, norms).item()
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
    dtype = accumulator_dtype(activity.values.dtype)

    def over_list(values, *parameters):
        used = activity.features < features[0]
        at = [p.at[activity.features].get(mode="clip") for p in parameters]
        return jnp.sum(jnp.where(used, cost(values, *at), 0), dtype=dtype)

    def over_activations(_, *parameters):
        values = activations()
        spread = [jnp.broadcast_to(p, values.shape) for p in parameters]
        return jnp.sum(cost(values, *spread), dtype=dtype)

    # Recomputed backwards: a conditional's residuals exist in both branches, so a dense latent kept
    # for the second one would be paid by the first.
    return lax.cond(
        activity.overflow,
        jax.checkpoint(over_activations),
        jax.checkpoint(over_list),
        activity.values,
        *parameters,
    )
