"""The gated product: only the gate is dense, and the other two weights are read where it is open.

With z = x @ w_gate.T, its open entries E, a = act(z) and u[b, f] = x[b] . w_up[f] on E:

    y[b] = sum over f of (a u)[b, f] w_out[f]
    dh[b, f] = g[b] . w_out[f]      da = dh u      du = dh a      dz, dθ = pullback of act of da
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxtrelu import bits
from jaxtrelu.sparse.entries import groups_of, listed, position
from jaxtrelu.sparse.latent import Entries, Plan, accumulator, activate, encode, find
from jaxtrelu.sparse.loops import ceil_div, repeat, take, varying_like
from jaxtrelu.sparse.products import entry_dots, gather_sum, scalar_sum

# Up to this many rows the weights of all units that any row opens are read together.
FEW_ROWS = 8
_ROUND = 128


class GatedOperands(NamedTuple):
    """x (B, d), w_gate (h, d), w_up (h, d), w_out (h, d_out), threshold (h,)."""

    x: jax.Array
    w_gate: jax.Array
    w_up: jax.Array
    w_out: jax.Array
    threshold: jax.Array


class GatedResiduals(NamedTuple):
    """What the gradient needs: one bit per element of the gate, and what stands at the entries."""

    operands: GatedOperands
    visited: Entries
    wide: jax.Array


def gated_dense(plan: Plan, operands: GatedOperands) -> jax.Array:
    """Returns y by dense products."""
    return _dense_rest(plan, operands, encode(operands.x, operands.w_gate))


def _dense_rest(plan: Plan, operands: GatedOperands, z: jax.Array) -> jax.Array:
    x, _, w_up, w_out, threshold = operands
    latent = activate(plan, z, threshold) * encode(x, w_up)
    dtype = accumulator(x.dtype)
    return jnp.matmul(latent.astype(w_out.dtype), w_out, preferred_element_type=dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(plan: Plan, operands: GatedOperands) -> jax.Array:
    """Returns y (B, d_out), in the accumulator's type."""
    if operands.x.shape[0] > FEW_ROWS:
        return _forward(plan, operands)[0]
    z = encode(operands.x, operands.w_gate)
    return _few_rows(plan, operands, z)


def _few_rows(plan: Plan, operands: GatedOperands, z: jax.Array) -> jax.Array:
    """Decoding: rounds of units that some row opens, each a small dense product over their rows."""
    x, _, w_up, w_out, threshold = operands
    units = z.shape[1]
    most = plan.size // x.shape[0]
    listed_units, _, number = bits.compact(
        bits.pack(jnp.any(~(z <= threshold), axis=0)), ceil_div(most, _ROUND) * _ROUND
    )
    a = activate(plan, z, threshold)

    def more(i, y):
        unit = lax.dynamic_slice(listed_units, (i * _ROUND,), (_ROUND,))
        there = unit < units
        unit = jnp.minimum(unit, units - 1)
        up = jnp.matmul(x, take(w_up, unit).T, preferred_element_type=z.dtype)
        latent = jnp.where(there, a[:, unit] * up, 0).astype(w_out.dtype)
        out = jnp.where(there[:, None], take(w_out, unit), 0)
        return y + jnp.matmul(latent, out, preferred_element_type=z.dtype)

    start = varying_like(jnp.zeros((x.shape[0], w_out.shape[1]), z.dtype), z)

    def sparse(z):
        return repeat(ceil_div(number, _ROUND), more, start)

    wide = number > most
    return lax.cond(wide, partial(_dense_rest, plan, operands), sparse, z)


def _forward(plan: Plan, operands: GatedOperands):
    x, w_gate, w_up, w_out, threshold = operands
    product = encode(x, w_gate)
    _, visited, _, wide = find(plan, product, None, threshold)
    unit = visited.by_row.member

    def sparse(product):
        a = activate(plan, visited.z, take(threshold, unit))
        dots = entry_dots(visited.by_row, visited.total, x, w_up, product.dtype)
        return gather_sum(visited.groups, unit, a * dots, w_out, 0)

    y = lax.cond(wide, partial(_dense_rest, plan, operands), sparse, product)
    return y, GatedResiduals(operands, visited, wide)


def _backward(plan: Plan, residuals: GatedResiduals, g: jax.Array):
    def through_dense(residuals, g):
        return jax.vjp(partial(gated_dense, plan), residuals.operands)[1](g)[0]

    sparse = partial(_sparse_gradients, plan)
    return (lax.cond(residuals.wide, through_dense, sparse, residuals, g),)


def _sparse_gradients(plan: Plan, residuals: GatedResiduals, g: jax.Array) -> GatedOperands:
    x, w_gate, w_up, w_out, threshold = residuals.operands
    rows, by_row, at_rows, total = residuals.visited
    columns = groups_of(bits.transpose(rows.words, w_gate.shape[0]))
    by_column = listed(columns, total, plan.size)
    unit, row = by_column

    z = take(at_rows, position(rows, row, unit))
    dtype = z.dtype
    a, pullback = jax.vjp(partial(activate, plan), z, take(threshold, unit))
    up = entry_dots(by_column, total, w_up, x, dtype)
    dlatent = entry_dots(by_column, total, w_out, g, dtype)
    dz, dthreshold = pullback(dlatent * up)
    dup = dlatent * a

    def by_unit(values, table):
        return gather_sum(columns, row, values, table, plan.direct)

    def by_example(values, table):
        values = take(values, position(columns, by_row.member, by_row.group))
        return gather_sum(rows, by_row.member, values, table, 0)

    return GatedOperands(
        x=(by_example(dz, w_gate) + by_example(dup, w_up)).astype(x.dtype),
        w_gate=by_unit(dz, x).astype(w_gate.dtype),
        w_up=by_unit(dup, x).astype(w_up.dtype),
        w_out=by_unit(a * up, g).astype(w_out.dtype),
        threshold=scalar_sum(len(threshold), unit, dthreshold, total).astype(threshold.dtype),
    )


gated.defvjp(_forward, _backward)
