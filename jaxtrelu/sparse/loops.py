"""Loops whose trip count is found on the device, what they start from, and gathers that fuse."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxtrelu._compat import varying_axes


def varying_like(array: jax.Array, *others: jax.Array) -> jax.Array:
    """`array`, varying over every mesh axis over which one of `others` does: a carry has to."""
    wanted = frozenset().union(*(varying_axes(other) for other in others))
    missing = tuple(sorted(wanted - varying_axes(array)))
    return lax.pcast(array, missing, to="varying") if missing else array


def alike(operands):
    """Operands that vary over the same mesh axes, inside a `shard_map`."""
    leaves = jax.tree.leaves(operands)
    return jax.tree.map(lambda leaf: varying_like(leaf, *leaves), operands)


def repeat(trips: jax.Array, body: Callable, start):
    """``start = body(i, start)`` for i below `trips`, a number known on the device only."""
    start = jax.tree.map(lambda leaf: varying_like(leaf, trips), start)

    def step(carry):
        i, state = carry
        return i + 1, body(i, state)

    first = varying_like(jnp.zeros((), jnp.int32), trips)
    return lax.while_loop(lambda carry: carry[0] < trips, step, (first, start))[1]


def ceil_div(a, b: int):
    """``a / b`` rounded up, of non-negative integers."""
    return (a + (b - 1)) // b


def take(table: jax.Array, rows: jax.Array) -> jax.Array:
    """``table[rows]`` along the first axis, for indices that are in bounds."""
    return table.at[rows].get(mode="promise_in_bounds")


def columns(table: jax.Array, rows: jax.Array, first: int, width: int) -> jax.Array:
    """``table[rows, first:first + width]`` as one gather, which fuses; a slice of it would not."""
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0, 1)
    )
    at = jnp.stack([rows, jnp.full_like(rows, first)], axis=-1)
    return lax.gather(table, at, numbers, (1, width), mode=lax.GatherScatterMode.CLIP)
