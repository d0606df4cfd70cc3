"""Loops whose trip count is found on the device, and gathers that fuse."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxtrelu._primitive.rules import varying_like


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


def at_most(limit: int, size) -> int:
    """The smaller of the two; `limit` for a size that is not known, whose arrays are padded."""
    return min(limit, size) if isinstance(size, int) else limit


def take(table: jax.Array, index: jax.Array) -> jax.Array:
    """``table[index]`` along the first axis, for indices that are in bounds."""
    return table.at[index].get(mode="promise_in_bounds")


def take_columns(table: jax.Array, index: jax.Array, first: int, width: int) -> jax.Array:
    """``table[index, first:first + width]`` as one gather, which fuses; a slice of it would not."""
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0, 1)
    )
    at = jnp.stack([index, jnp.full_like(index, first)], axis=-1)
    return lax.gather(table, at, numbers, (1, width), mode=lax.GatherScatterMode.CLIP)
