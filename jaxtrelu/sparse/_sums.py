"""The two products over lists of entries: weighted sums of gathered rows, and dots of such rows.

With a list sorted by group, `gather_sum` is at once the decoder (groups are examples, members
features) and a weight gradient (groups are features, members examples), in which every row of the
result is written once. XLA's CPU back end runs the elementwise loop over a gathered row on all
cores, but scatters on one; so a sum is a chain of gathers.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxtrelu._compat import row_sums
from jaxtrelu._primitive.rules import varying_like
from jaxtrelu.sparse._entries import EntryList, Groups
from jaxtrelu.sparse._loops import at_most, ceil_div, repeat, take, take_columns

_UNROLL = 8
_BLOCK = 128
_DOTS = 4096
# At most so many slices of so many columns at least: more are no faster, narrower ones slower.
_SLICES = 16
_COLUMNS = 16


def gather_sum(
    groups: Groups, members: jax.Array, values: jax.Array, table: jax.Array, direct: int
) -> jax.Array:
    """``out[g] = sum over g's entries e of values[e] * table[members[e]]``, (groups, d).

    A value that is exactly 0 contributes nothing, whatever the table holds there.

    The first `direct` entries of every group are summed in one pass over the result; what is left
    of larger groups, in blocks of groups of about the same size, each with the trip count that its
    largest group needs. So one large group costs what it holds and not what it holds times the
    number of groups.
    """
    number = groups.counts.shape[0]
    dtype = values.dtype

    def terms(base, starts, counts, width):
        """The sum of entries base .. base + width of the groups given."""
        slots = base + jnp.arange(width, dtype=jnp.int32)[:, None]
        there = slots < counts[None]
        at = jnp.where(there, starts[None] + slots, 0)
        weights = jnp.where(there, take(values, at), 0)
        # Held back from the loop over the table, into which XLA would fuse it once per element.
        weights, chosen = lax.optimization_barrier((weights, take(members, at)))
        return weighted_rows(weights, chosen, table)

    if direct:
        out = terms(0, groups.starts, groups.counts, direct)
    else:
        out = varying_like(jnp.zeros((number, table.shape[1]), dtype), values, table, members)
    if isinstance(number, int) and not number:
        return out

    block = at_most(_BLOCK, number)
    order = jnp.argsort(-groups.counts, stable=False).astype(jnp.int32)
    pad = ceil_div(number, block) * block - number
    order = jnp.concatenate([order, jnp.full(pad, number, jnp.int32)])

    def add_block(i, out):
        chosen = lax.dynamic_slice(order, (i * block,), (block,))
        counts = jnp.where(chosen < number, groups.counts.at[chosen].get(mode="clip"), 0)
        starts = groups.starts.at[chosen].get(mode="clip")
        trips = ceil_div(jnp.maximum(jnp.max(counts) - direct, 0), _UNROLL)
        start = varying_like(jnp.zeros((block, table.shape[1]), dtype), out)

        def more(k, acc):
            return acc + terms(direct + k * _UNROLL, starts, counts, _UNROLL)

        acc = repeat(trips, more, start)
        return out.at[chosen].add(acc, mode="drop", unique_indices=True)

    large = jnp.sum(groups.counts > direct, dtype=jnp.int32)
    return repeat(ceil_div(large, block), add_block, out)


def weighted_rows(weights: jax.Array, rows: jax.Array, table: jax.Array) -> jax.Array:
    """``out[g] = sum over r of weights[r, g] * table[rows[r, g]]``, in one pass, (groups, d).

    A weight that is exactly 0 contributes nothing, whatever the table holds there.
    """
    there = lax.optimization_barrier(weights != 0)
    acc = None
    for r in range(weights.shape[0]):
        term = weights[r][:, None] * take(table, rows[r]).astype(weights.dtype)
        term = jnp.where(there[r][:, None], term, 0)
        acc = term if acc is None else acc + term
    assert acc is not None
    return acc


def row_dots(vector: jax.Array, rows: jax.Array, table: jax.Array, dtype) -> jax.Array:
    """``out[e] = table[rows[e]] . vector``, without a copy of the rows."""
    parts, step = column_slices(vector.shape[0])
    folded = sum(
        take_columns(table, rows, k * step, step).astype(dtype)
        * vector[None, k * step : (k + 1) * step].astype(dtype)
        for k in range(parts)
    )
    return row_sums(lax.optimization_barrier(folded))


def column_slices(width: int) -> tuple[int, int]:
    """How many slices of how many columns a row is folded in, before it is summed up."""
    parts = math.gcd(width, _SLICES)
    while parts > 1 and width // parts < _COLUMNS:
        parts //= 2
    return parts, width // parts


def scalar_sum(number: int, group: jax.Array, values: jax.Array, total: jax.Array) -> jax.Array:
    """``out[g] = sum of values[e] over the entries e of g``, (number,), in the first `total`."""
    there = jnp.arange(values.shape[0], dtype=jnp.int32) < total
    zeros = varying_like(jnp.zeros(number, values.dtype), values, group)
    return zeros.at[group].add(jnp.where(there, values, 0), mode="promise_in_bounds")


def entry_dots(
    entries: EntryList, total: jax.Array, by_group: jax.Array, by_member: jax.Array, dtype
) -> jax.Array:
    """``out[e] = by_group[group[e]] . by_member[member[e]]``, for the first `total` entries."""
    size, width = entries.group.shape[0], by_group.shape[1]
    length = at_most(_DOTS, size)
    padded = ceil_div(size, length) * length
    lists = [jnp.pad(ids, (0, padded - size)) for ids in entries]
    parts, step = column_slices(width)

    def dots(i, out):
        group, member = (lax.dynamic_slice(ids, (i * length,), (length,)) for ids in lists)
        # Products of slices first, in one fused pass over both gathers, which leaves a few columns.
        folded = sum(
            take_columns(by_group, group, k * step, step).astype(dtype)
            * take_columns(by_member, member, k * step, step).astype(dtype)
            for k in range(parts)
        )
        sums = row_sums(lax.optimization_barrier(folded))
        return lax.dynamic_update_slice(out, sums, (i * length,))

    start = varying_like(jnp.zeros(padded, dtype), by_group, by_member)
    return repeat(ceil_div(total, length), dots, start)[:size]
