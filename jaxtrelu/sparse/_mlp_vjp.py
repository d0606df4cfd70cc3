"""The pullback of the two-layer product, with gradients of the features that were touched alone.

A feature that no example opens has a gradient of zero, and a dense gradient writes that zero: for a
small batch and many features, most of the step. Here the sums over a feature's entries are made for
the touched features alone, in a list, for optimisers that update no others.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu import bits
from jaxtrelu._primitive.rules import once, vary_together
from jaxtrelu._primitive.spec import (
    ImplementationName,
    VariantName,
    checked_spec,
    real_array,
    whole_number,
)
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.sparse._activity import Activity
from jaxtrelu.sparse._block import Plan, Products, checked_products, finished
from jaxtrelu.sparse._loops import at_most
from jaxtrelu.sparse._mlp import (
    Operands,
    Residuals,
    at_entries,
    checked_call,
    dense_gradients,
    forward,
    has_elements,
    in_shape,
    operands_of,
    summed,
)
from jaxtrelu.sparse._screen import Precision, Screen, checked_screen


class FeatureGradients(NamedTuple):
    """The gradients of a call of `jaxtrelu.sparse_mlp_vjp`: of weights, those of touched features.

    Update with ``w.at[gradients.features].add(-rate * gradients.w_in, mode="drop")``.

    >>> import jaxtrelu
    >>> w = jnp.eye(3)
    >>> _, pullback = jaxtrelu.sparse_mlp_vjp(jnp.array([[0.0, 3.0, 0.0]]), w, w, 1.0)
    >>> gradients = pullback(jnp.ones((1, 3)))
    >>> gradients.features.tolist(), gradients.w_out.tolist()
    ([1, 3, 3], [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    """

    x: jax.Array
    """(..., d)."""
    features: jax.Array
    """(R,) int32: the touched features in rising order; m past the last one."""
    w_in: jax.Array
    """(R, d); 0 past the last feature, as in all that follow."""
    b_in: jax.Array | None
    """(R,), or None."""
    threshold: jax.Array
    """(R,), for a threshold per feature; a shared one's gradient is its sum."""
    w_out: jax.Array
    """(R, d_out)."""
    b_out: jax.Array | None
    """(d_out,), or None."""
    complete: jax.Array
    """Whether R features were enough. If not, all of the above but `x` and `b_out` are NaN: nothing
    is dropped unseen."""


def sparse_mlp_vjp(
    x: Float[ArrayLike, "*batch d"],
    w_in: Float[ArrayLike, "m d"],
    w_out: Float[ArrayLike, "m d_out"],
    threshold: Float[ArrayLike, "..."] = 1.0,
    *,
    b_in: Float[ArrayLike, " m"] | None = None,
    b_out: Float[ArrayLike, " d_out"] | None = None,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    fill: float = 0,
    surrogate: Surrogate | None = None,
    implementation: ImplementationName | None = None,
    capacity: int | None = None,
    with_activity: bool = False,
    touched: int | None = None,
    products: Products | None = None,
    screen: Screen | Precision | bool | None = None,
) -> tuple[
    Float[Array, "*batch d_out"] | tuple[Float[Array, "*batch d_out"], Activity],
    Callable[..., FeatureGradients],
]:
    """`sparse_mlp` and its pullback, with weight gradients of touched features alone.

    For optimisers that update touched features only: with a small batch and many features a dense
    gradient is mostly zeros, and writing them most of the step. As `jax.vjp`, but not itself
    differentiable. Works under `jit`.

    Convention at the threshold: as `sparse_mlp`. With a surrogate, features inside its window count
    as touched.

    Args:
      x: (..., d), floating point.
      w_in: (m, d), feature-major.
      w_out: (m, d_out), feature-major.
      threshold: a number or (m,), in the units of the pre-activations.
      b_in: (m,), or None.
      b_out: (d_out,), or None.
      variant: ``"shift"`` or ``"hard"``.
      ceiling: for ``shift``, as in `jaxtrelu.thresholded_relu`.
      fill: 0: closed entries contribute nothing.
      surrogate: of bounded support, such as ``jaxtrelu.Rectangle(0.05)``; with ``hard`` that is
        JumpReLU.
      implementation: None or ``"xla"``; the kernels have none for this product.
      capacity: as in `sparse_mlp`.
      with_activity: as in `sparse_mlp`.
      touched: R, how many touched features the lists of gradients hold. Default: as many as the
        entries' lists hold, at most m, which is enough unless the dense path is taken.
      products: as in `sparse_mlp`, ``"loops"`` or ``"dense"``.
      screen: as in `sparse_mlp`.

    Returns:
      ``(y, pullback)``, or with `with_activity` ``((y, activity), pullback)``.
      ``pullback(g, values=None, l0=None)`` takes cotangents of y and, where there are penalties, of
      the record's `values` and `l0`; it returns `FeatureGradients`.

    Raises:
      TypeError: an operand is not a floating-point array.
      ValueError: as `sparse_mlp`, or `touched` is less than 1.
      NotImplementedError: as `sparse_mlp`. The pullback raises a ValueError for a cotangent that
        has not the shape of what it belongs to.

    Example:
      >>> import jax.numpy as jnp, jaxtrelu
      >>> w = jnp.eye(3)
      >>> y, pullback = jaxtrelu.sparse_mlp_vjp(jnp.array([[0.0, 3.0, 0.0]]), w, w, 1.0)
      >>> gradients = pullback(y)
      >>> w.at[gradients.features].add(-0.25 * gradients.w_out, mode="drop")[1].tolist()
      [0.0, 0.0, 0.0]

    Source: as `sparse_mlp`.
    """
    spec = checked_spec(variant, ceiling, fill, surrogate, implementation)
    products = checked_products(products, ("dense", "loops"), "sparse_mlp_vjp")
    arrays = (x, w_in, w_out, threshold, b_in, b_out)
    plan, block = checked_call(spec, capacity, products, *arrays, distributed=False)
    operands = operands_of(block)
    features, width = operands.w_out.shape
    if not has_elements(operands):
        raise ValueError(
            "`x` and the weights should have elements here, but have shapes "
            f"{jnp.shape(x)}, {operands.w_in.shape} and {operands.w_out.shape}. Use sparse_mlp."
        )
    if touched is not None:
        touched = whole_number(touched, "touched", hint=" Pass None for the default.")
    size = at_most(features, plan.size if touched is None else touched)
    screen = checked_screen(screen, operands.w_in)
    found = once("sparse_mlp_vjp", partial(forward, plan), said=_PULLED_BACK)(operands, screen)
    (total, activity), residuals = found
    y = finished(total, block.b_out, block.lead, block.x.dtype)

    def pullback(g, values=None, l0=None):
        g = _cotangent(g, "g", "y", (*block.lead, width), total.dtype).reshape(-1, width)
        listed, lead = activity.values, block.lead
        values = _cotangent(values, "values", "activity.values", listed.shape, listed.dtype)
        l0 = _cotangent(l0, "l0", "activity.l0", lead, activity.l0.dtype).reshape(-1)
        g, values, l0 = vary_together(g, values, l0)
        given = g, values, l0
        sums, found, complete = _feature_gradients(plan, residuals, given, size)
        return FeatureGradients(
            sums.x.reshape(*block.lead, sums.x.shape[1]),
            found,
            sums.w_in,
            sums.b_in,
            sums.threshold,
            sums.w_out,
            None if block.b_out is None else jnp.sum(g, axis=0).astype(block.b_out.dtype),
            complete,
        )

    return ((y, in_shape(plan, activity, block.lead)) if with_activity else y), pullback


_PULLED_BACK = (
    "cannot be differentiated: its gradient is what the pullback returns. "
    "Call that, or take jax.grad of jaxtrelu.sparse_mlp"
)


def _cotangent(cotangent, name: str, of: str, shape: tuple, dtype) -> jax.Array:
    """The cotangent in the dtype of the sums; zeros for None."""
    if cotangent is None:
        return jnp.zeros(shape, dtype)
    cotangent = real_array(cotangent, name)
    if cotangent.shape != shape:
        raise ValueError(
            f"`{name}` should have the shape of {of}, {shape}, but has {cotangent.shape}."
        )
    return cotangent.astype(dtype)


@partial(jax.jit, static_argnums=(0, 3), inline=True)
def _feature_gradients(plan: Plan, residuals: Residuals, given, size: int):
    """Returns (gradients as `Operands` of features, which (size,), whether they are all)."""
    features = residuals.operands.w_in.shape[0]
    touched, complete = _touched(residuals, size)

    def sparse(residuals, given):
        found = at_entries(plan, residuals, given)
        at = jnp.minimum(touched, features - 1)
        counts = jnp.where(touched < features, found.columns.counts[at], 0)
        some = found.columns._replace(starts=found.columns.starts[at], counts=counts)
        sums = summed(plan, residuals.operands, found, given[0], some)
        b_in, threshold = _at(touched, (sums.b_in, sums.threshold))
        return sums._replace(b_in=b_in, threshold=threshold)

    def dense(residuals, given):
        sums = dense_gradients(plan, residuals, given)
        return Operands(sums.x, *_at(touched, sums[1:]))

    sums = lax.cond(residuals.overflow, dense, sparse, residuals, given)
    some = jax.tree.map(lambda sum: jnp.where(complete, sum, jnp.nan), sums[1:])
    return Operands(sums.x, *some), touched, complete


def _touched(residuals: Residuals, size: int) -> tuple[jax.Array, jax.Array]:
    """The features with an entry, in a list of `size`, and whether they all fit."""
    words, features = residuals.visited.groups.words, residuals.operands.w_in.shape[0]
    if residuals.window is not None:
        words = words | residuals.window.groups.words
    found = bits.count(bits.transpose(words, features)) > 0
    touched, _, number = bits.compact(bits.pack(found), size)
    return jnp.minimum(touched, features), number <= size


def _at(index: jax.Array, whole: Any) -> Any:
    """What stands there in the arrays of a tree, along the first axis; 0 past the last one."""
    return jax.tree.map(lambda array: array.at[index].get(mode="fill", fill_value=0), whole)
