"""Weight gradients as the rows that were touched, for optimisers that update no others.

A feature that no example opens has a gradient of zero, and a dense gradient writes that zero: for a
small batch and many features, most of the step. Here the sums over a feature's entries are made for
the touched features alone, in a list.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxtrelu import bits
from jaxtrelu.sparse.latent import Plan
from jaxtrelu.sparse.mlp import Operands, Residuals, at_entries, dense_gradients, summed


class RowGradients(NamedTuple):
    """The gradients of a call of `jaxtrelu.sparse_mlp_vjp`, weights' as rows.

    Update with ``w.at[gradients.rows].add(-rate * gradients.w_in, mode="drop")``.

    >>> import jaxtrelu
    >>> w = jnp.eye(3)
    >>> _, pullback = jaxtrelu.sparse_mlp_vjp(jnp.array([[0.0, 2.0, 0.0]]), w, None, 1.0, w)
    >>> gradients = pullback(jnp.ones((1, 3)))
    >>> gradients.rows.tolist(), gradients.w_out.tolist()
    ([1, 3, 3], [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    """

    x: jax.Array
    """(..., d)."""
    rows: jax.Array
    """(R,) int32: the touched features in rising order; m past the last one."""
    w_in: jax.Array
    """(R, d); 0 past the last row, as in all that follow."""
    b_in: jax.Array | None
    """(R,), or None."""
    threshold: jax.Array
    """(R,), for a threshold per feature; a shared one's gradient is its sum."""
    w_out: jax.Array
    """(R, d_out)."""
    b_out: jax.Array | None
    """(d_out,), or None."""
    complete: jax.Array
    """Whether R rows were enough. If not, all of the above but `x` and `b_out` are NaN: nothing is
    dropped unseen."""


def row_gradients(plan: Plan, residuals: Residuals, given, size: int):
    """Returns (gradients as `Operands` of rows, the rows (size,), whether they are all)."""
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

    sums = lax.cond(residuals.wide, dense, sparse, residuals, given)
    some = jax.tree.map(lambda sum: jnp.where(complete, sum, jnp.nan), sums[1:])
    return Operands(sums.x, *some), touched, complete


def _touched(residuals: Residuals, size: int) -> tuple[jax.Array, jax.Array]:
    """The features with an entry, in a list of `size`, and whether they all fit."""
    words, features = residuals.visited.groups.words, residuals.operands.w_in.shape[0]
    if residuals.window is not None:
        words = words | residuals.window.groups.words
    found = bits.count(bits.transpose(words, features)) > 0
    rows, _, number = bits.compact(bits.pack(found), size)
    return jnp.minimum(rows, features), number <= size


def _at(rows: jax.Array, whole: Any) -> Any:
    """What stands in these rows of the arrays in a tree; 0 past the last one."""
    return jax.tree.map(lambda array: array.at[rows].get(mode="fill", fill_value=0), whole)
