"""The two-layer product around a thresholded activation, in which only the first one is dense.

With z = x @ w_in.T + b_in and the open entries E, the rest visits E only:

    y[b] = sum over (b, f) in E of act(z)[b, f] w_out[f]
    da[b, f] = g[b] . w_out[f]        dz, dθ = pullback of act at (z, θ)[b, f]
    dw_out[f] = sum over b of act(z)[b, f] g[b]        dw_in[f] = sum over b of dz[b, f] x[b]
    dx[b] = sum over f of dz[b, f] w_in[f]

For a threshold that learns, E is what is open or inside the surrogate's window. Closed entries of
the window have act = dz = 0 unless the estimate flows to z as well; they are listed apart then, and
dθ alone is computed there.

Kept for the gradient: the operands, one bit per element of z (two with a window), and z at the
entries.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxtrelu import bits, variants
from jaxtrelu.sparse.activity import Activity
from jaxtrelu.sparse.entries import Groups, groups_of, listed, position
from jaxtrelu.sparse.latent import (
    Entries,
    Plan,
    activate,
    biased,
    encode,
    entries_of,
    find,
    opened,
)
from jaxtrelu.sparse.loops import take
from jaxtrelu.sparse.products import entry_dots, gather_sum, scalar_sum
from jaxtrelu.variants import Spec


class Operands(NamedTuple):
    """x (B, d), w_in (m, d), b_in (m,) or None, threshold (m,), w_out (m, d_out)."""

    x: jax.Array
    w_in: jax.Array
    b_in: jax.Array | None
    threshold: jax.Array
    w_out: jax.Array


class Residuals(NamedTuple):
    """What the gradient needs: one bit per element, and what stands at the entries."""

    operands: Operands
    visited: Entries
    window: Entries | None
    wide: jax.Array


def dense(plan: Plan, operands: Operands) -> tuple[jax.Array, jax.Array]:
    """Returns y and l0 by dense products: the reference, and the path for what is not sparse."""
    z = biased(encode(operands.x, operands.w_in), operands.b_in)
    l0 = jnp.sum(opened(plan, z, operands.threshold), axis=-1)
    return decode(plan, z, operands.threshold, operands.w_out), l0


def decode(plan: Plan, z: jax.Array, threshold: jax.Array, w_out: jax.Array) -> jax.Array:
    """``act(z) @ w_out``, a dense product, in z's type."""
    a = activate(plan, z, threshold).astype(w_out.dtype)
    return jnp.matmul(a, w_out, preferred_element_type=z.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def fused(plan: Plan, operands: Operands) -> tuple[jax.Array, Activity]:
    """Returns y (B, d_out) in the accumulator's type, without b_out, and the record of activity."""
    return forward(plan, operands)[0]


def forward(plan: Plan, operands: Operands):
    """Returns what `fused` does, and what the gradient needs."""
    _, w_in, b_in, threshold, w_out = operands
    product = encode(operands.x, w_in)
    found = find(plan, product, b_in, threshold, apart=plan.window_is_silent)
    visited, wide = found.visited, found.wide

    def activations(entries):
        a = activate(plan, entries.z, take(threshold, entries.by_row.member))
        return jnp.where(entries.there, a, 0)

    values = activations(visited)

    def sparse(product):
        return gather_sum(visited.groups, visited.by_row.member, values, w_out, 0)

    def through_dense(product):
        # The bias is added here again, so that the sum need not be kept as an operand.
        return decode(plan, biased(product, b_in), threshold, w_out)

    y = lax.cond(wide, through_dense, sparse, product)
    every, counts = visited, visited.groups.counts
    if found.window is not None:
        # One list of all entries, in row order: dropped by the compiler where nobody reads it.
        support = groups_of(found.opened | found.window.groups.words)
        every, counts = entries_of(plan, support, wide, product, b_in), support.counts
        values = activations(every)
    rows, features = product.shape
    activity = Activity(
        indices=jnp.where(every.there, every.by_row.member, features),
        rows=jnp.where(every.there, every.by_row.group, rows),
        values=values,
        counts=counts,
        l0=bits.count(found.opened).astype(values.dtype),
        fired=bits.count(bits.transpose(found.opened, features)),
        wide=wide,
    )
    return (y, activity), Residuals(operands, visited, found.window, wide)


def _backward(plan: Plan, residuals: Residuals, cotangents):
    g, activity = cotangents
    given = (g, activity.values, activity.l0)
    gradients = lax.cond(
        residuals.wide,
        partial(dense_gradients, plan),
        partial(_sparse_gradients, plan),
        residuals,
        given,
    )
    return (gradients,)


def dense_gradients(plan: Plan, residuals: Residuals, given) -> Operands:
    """The gradients by dense products, for cotangents of y, of the entries' values and of l0."""
    g, _, l0 = given
    return jax.vjp(partial(dense, plan), residuals.operands)[1]((g, l0))[0]


class AtEntries(NamedTuple):
    """Gradients before weights' are summed, in a list by feature."""

    columns: Groups
    feature: jax.Array
    row: jax.Array
    a: jax.Array
    """The activations."""
    dz: jax.Array
    threshold: jax.Array
    """The gradient of the threshold, (m,), summed already."""
    x: jax.Array
    """The gradient of x, (B, d), summed already."""


def at_entries(plan: Plan, residuals: Residuals, given) -> AtEntries:
    """The gradients at the entries, for cotangents of y, of the entries' values and of l0."""
    g, values, l0 = given
    x, w_in, _, threshold, w_out = residuals.operands
    rows, by_row, at_rows, total = residuals.visited
    window, features = residuals.window, w_in.shape[0]
    columns = groups_of(bits.transpose(rows.words, features))
    by_column = listed(columns, total, plan.size)
    feature, row = by_column
    dtype = at_rows.dtype

    def pulled_back(z, row, feature, dots):
        """The activations, dz and dθ at some entries."""
        # In the record of activity an entry stands after those of both lists that come before it.
        place = position(rows, row, feature)
        if window is not None:
            place = place + position(window.groups, row, feature)

        def both(z, threshold):
            return activate(plan, z, threshold), opened(plan, z, threshold)

        (a, _), pullback = jax.vjp(both, z, take(threshold, feature))
        return a, *pullback((dots + take(values, place), take(l0, row)))

    z = take(at_rows, position(rows, row, feature))
    dots = entry_dots(by_column, total, w_out, g, dtype)
    a, dz, at_threshold = pulled_back(z, row, feature, dots)
    dthreshold = scalar_sum(features, feature, at_threshold, total)
    if window is not None:
        dots = entry_dots(window.by_row, window.total, g, w_out, dtype)
        _, _, at_threshold = pulled_back(window.z, *window.by_row, dots)
        inside = window.by_row.member
        dthreshold = dthreshold + scalar_sum(features, inside, at_threshold, window.total)

    dz_by_row = take(dz, position(columns, by_row.member, by_row.group))
    dx = gather_sum(rows, by_row.member, dz_by_row, w_in, 0).astype(x.dtype)
    return AtEntries(columns, feature, row, a, dz, dthreshold.astype(threshold.dtype), dx)


def summed(plan: Plan, operands: Operands, found: AtEntries, g, features: Groups) -> Operands:
    """The gradients summed by feature, for all features or for some of `found.columns`."""
    x, w_in, b_in, _, w_out = operands

    def by_feature(values, table):
        return gather_sum(features, found.row, values, table, plan.direct)

    def bias():
        number, total = w_in.shape[0], found.columns.total
        return scalar_sum(number, found.feature, found.dz, total)

    return Operands(
        x=found.x,
        w_in=by_feature(found.dz, x).astype(w_in.dtype),
        b_in=None if b_in is None else bias().astype(b_in.dtype),
        threshold=found.threshold,
        w_out=by_feature(found.a, g).astype(w_out.dtype),
    )


def _sparse_gradients(plan: Plan, residuals: Residuals, given) -> Operands:
    found = at_entries(plan, residuals, given)
    return summed(plan, residuals.operands, found, given[0], found.columns)


def nothing(plan: Plan, operands: Operands) -> tuple[jax.Array, Activity]:
    """The same as `fused` for operands without an element: by dense products, and with no list."""
    y, l0 = dense(plan, operands)
    features = operands.w_in.shape[0]
    z = biased(encode(operands.x, operands.w_in), operands.b_in)
    gates = variants.gate(z, operands.threshold, Spec(plan.spec.variant))
    record = Activity(
        indices=jnp.full(plan.size, features, jnp.int32),
        rows=jnp.full(plan.size, l0.shape[0], jnp.int32),
        values=jnp.zeros(plan.size, y.dtype),
        counts=jnp.sum(gates, axis=-1, dtype=jnp.int32),
        l0=l0,
        fired=jnp.sum(gates, axis=0, dtype=jnp.int32),
        wide=jnp.sum(gates, dtype=jnp.int32) > 0,
    )
    return y, record


fused.defvjp(forward, _backward)
