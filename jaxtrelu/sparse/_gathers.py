"""The two-layer product with a fixed number of slots for every row, and no loop of unknown length.

A loop whose trip count is found on the device asks the host at every turn, on an accelerator. Here
every row has K slots, filled from its words in one pass, and all that follows are gathers, sums
that they fuse into, and scatters of what belongs to weights:

    y[b] = sum over k of a[b, k] w_out[f[b, k]]        da[b, k] = g[b] . w_out[f[b, k]]
    dx[b] = sum over k of dz[b, k] w_in[f[b, k]]       dw_out[f[b, k]] += a[b, k] g[b]

Where a row has more entries than slots, all products are dense.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxtrelu import bits
from jaxtrelu._primitive import formulas
from jaxtrelu._primitive.packing import pack_last
from jaxtrelu._primitive.rules import once, varying_like
from jaxtrelu.sparse._activity import Activity
from jaxtrelu.sparse._block import (
    Operands,
    Plan,
    activated,
    biased,
    compiled_once,
    decoded,
    dense_forward,
    encoded,
    gates,
)
from jaxtrelu.sparse._loops import take

# Slots whose rows of a table are added in one pass over the sums.
_TOGETHER = 8


class Slots(NamedTuple):
    """The entries of a latent (B, m), K slots a row."""

    feature: jax.Array
    """(B, K) int32; any feature where `used` is false."""
    used: jax.Array
    """(B, K)."""
    z: jax.Array
    """(B, K): the pre-activations."""


class GatheredResiduals(NamedTuple):
    """What the gradient needs: the operands, and what stands in the slots."""

    operands: Operands
    slots: Slots
    overflow: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def by_gathers(plan: Plan, operands: Operands) -> tuple[jax.Array, Activity]:
    """Returns y (B, d_out) in the accumulator's type, without b_out, and the record of activity."""
    return _forward(plan, operands)[0]


@compiled_once
def _forward(plan: Plan, operands: Operands):
    x, w_in, b_in, threshold, w_out = operands
    (examples, _), (features, _) = x.shape, w_in.shape
    number = plan.size // examples  # without a rest
    product = encoded(x, w_in)
    z = biased(product, b_in)
    opened = visited = pack_last(formulas.above(z, threshold[None]))
    if plan.spec.surrogate is not None:
        visited = opened | pack_last(formulas.window(z, threshold[None], plan.spec))
    feature, at, counts = bits.compact(visited, number, z)
    assert at is not None
    overflow = jnp.any(counts > number)
    used = (jnp.arange(number, dtype=jnp.int32)[None] < counts[:, None]) & ~overflow
    slots = Slots(jnp.minimum(feature, features - 1), used, at)
    values = jnp.where(used, activated(plan, at, take(threshold, slots.feature)), 0)

    def dense(product):
        return decoded(plan, biased(product, b_in), threshold, w_out)

    def gathered(_):
        return _weighted_sum(values, slots.feature, w_out)

    y = lax.cond(overflow, dense, gathered, product)
    row = jnp.broadcast_to(jnp.arange(examples, dtype=jnp.int32)[:, None], used.shape)
    activity = Activity(
        features=jnp.where(used, feature, features).ravel(),
        rows=jnp.where(used, row, examples).ravel(),
        values=values.ravel(),
        counts=counts,
        l0=bits.count(opened).astype(values.dtype),
        fired=bits.count(bits.transpose(opened, features)),
        overflow=overflow,
    )
    return (y, activity), GatheredResiduals(operands, slots, overflow)


def _backward(plan: Plan, residuals: GatheredResiduals, cotangents):
    g, activity = cotangents
    gradients = once("sparse_mlp", partial(_gradients, plan))
    return (gradients(residuals, (g, activity.values, activity.l0)),)


@compiled_once
def _gradients(plan: Plan, residuals: GatheredResiduals, given) -> Operands:
    def dense(residuals, given):
        g, _, l0 = given
        return jax.vjp(partial(dense_forward, plan), residuals.operands)[1]((g, l0))[0]

    gathered = partial(_gathered_gradients, plan)
    return lax.cond(residuals.overflow, dense, gathered, residuals, given)


def _gathered_gradients(plan: Plan, residuals: GatheredResiduals, given) -> Operands:
    g, values, l0 = given
    x, w_in, b_in, threshold, w_out = residuals.operands
    feature, used, z = residuals.slots

    def both(z, threshold):
        return activated(plan, z, threshold), gates(plan, z, threshold)

    (a, _), pullback = jax.vjp(both, z, take(threshold, feature))
    dots = _dots(g, feature, w_out)
    cotangent = dots + values.reshape(dots.shape)
    dz, dthreshold = pullback((cotangent, jnp.broadcast_to(l0[:, None], dots.shape)))
    # Nothing may come from an unused slot, also beside a NaN.
    a, dz, dthreshold = (jnp.where(used, part, 0) for part in (a, dz, dthreshold))

    flat = feature.ravel()
    row = jnp.arange(flat.size, dtype=jnp.int32) // feature.shape[1]

    def per_feature(parts, like):
        zeros = jnp.zeros(like.shape, parts.dtype)
        return zeros.at[flat].add(parts, mode="promise_in_bounds").astype(like.dtype)

    def by_feature(factors, table, like):
        # Flat, so that XLA's GPU compiler makes the terms inside of the scatter.
        factors = factors.ravel()[:, None]
        terms = factors * take(table, row).astype(factors.dtype)
        # A NaN in a row of the table must not reach a feature whose factor is exactly 0.
        return per_feature(jnp.where(factors != 0, terms, 0), like)

    return Operands(
        x=_weighted_sum(dz, feature, w_in).astype(x.dtype),
        w_in=by_feature(dz, x, w_in),
        b_in=None if b_in is None else per_feature(dz.ravel(), b_in),
        threshold=per_feature(dthreshold.ravel(), threshold),
        w_out=by_feature(a, g, w_out),
    )


def _weighted_sum(weights: jax.Array, index: jax.Array, table: jax.Array) -> jax.Array:
    """``out[b] = sum over k of weights[b, k] table[index[b, k]]``, over weights that are not 0."""
    padding = ((0, -weights.shape[1] % _TOGETHER), (0, 0))
    weights, index = (jnp.pad(part.T, padding) for part in (weights, index))
    start = varying_like(
        jnp.zeros((weights.shape[1], table.shape[1]), weights.dtype), weights, table
    )

    def add(i, out):
        for k in range(_TOGETHER):
            weight = weights[i * _TOGETHER + k][:, None]
            term = weight * take(table, index[i * _TOGETHER + k]).astype(out.dtype)
            out = out + jnp.where(weight != 0, term, 0)
        return out

    # As one sum, XLA's GPU compiler would write all the gathered rows out.
    return lax.fori_loop(0, weights.shape[0] // _TOGETHER, add, start)


def _dots(left: jax.Array, index: jax.Array, table: jax.Array) -> jax.Array:
    """``out[b, k] = left[b] . table[index[b, k]]``."""
    rows = take(table, index).astype(left.dtype)
    return jnp.sum(left[:, None] * rows, axis=-1)


by_gathers.defvjp(once("sparse_mlp", _forward, 1), _backward)
