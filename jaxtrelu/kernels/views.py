"""How arrays of any shape become the two-dimensional views that the kernels work on.

A view has the packed axis last: the axes that a `Packing` merges become the columns, all axes
before them the rows. A threshold becomes a two-dimensional array whose axes are 1 or full.
"""

import math

import jax
import jax.numpy as jnp

from jaxtrelu.packing import WORD_BITS, Packing, words_for

LANES = 128  # of a TPU register, and the number of words in one


def as_rows(x: jax.Array, packing: Packing) -> jax.Array:
    """x as (rows, columns), the packed axes merged into the columns."""
    split = x.ndim - packing.axes
    return x.reshape(math.prod(x.shape[:split]), math.prod(x.shape[split:]))


def threshold_as_rows(threshold: jax.Array, shape: tuple[int, ...], packing: Packing) -> jax.Array:
    """The threshold (0-d, or of x's rank) as (1 or rows, 1 or columns)."""
    if threshold.ndim == 0:
        return threshold.reshape(1, 1)
    split = len(shape) - packing.axes
    wanted = [
        (1,) * len(part) if math.prod(given) == 1 else part
        for given, part in (
            (threshold.shape[:split], shape[:split]),
            (threshold.shape[split:], shape[split:]),
        )
    ]
    spread = jnp.broadcast_to(threshold, (*wanted[0], *wanted[1]))
    return spread.reshape(math.prod(wanted[0]), math.prod(wanted[1]))


def words_as_rows(words: jax.Array) -> jax.Array:
    """Words as (rows, words per row)."""
    return words.reshape(math.prod(words.shape[:-1]), words.shape[-1])


def words_shape(shape: tuple[int, ...], packing: Packing) -> tuple[int, ...]:
    """The shape of the words of an array."""
    split = len(shape) - packing.axes
    return (*shape[:split], words_for(math.prod(shape[split:])))


def unsupported_view(shape: tuple, packing: Packing) -> str | None:
    """Why a shape has no such view, in words; None if it has one."""
    if not all(isinstance(size, int) for size in shape):
        return f"the shape {shape} is symbolic, and a kernel's grid needs numbers"
    if packing.axes == 0:
        return f"x of shape {shape} keeps a mask, not packed words"
    if packing.behind:
        return f"the words are packed along axis {-packing.behind - 1}, not along the last axes"
    if not math.prod(shape):
        return f"x of shape {shape} has no elements"
    return None


def like(x: jax.Array, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    """The type of a kernel's output, which varies over the same axes of a `jax.shard_map` as x."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def pad_to_words(x: jax.Array) -> jax.Array:
    """Pads the columns of a view with zeros to whole words."""
    missing = -x.shape[1] % WORD_BITS
    return jnp.pad(x, ((0, 0), (0, missing))) if missing else x


def pad_axis(x: jax.Array, axis: int, multiple: int, value=0) -> jax.Array:
    """Pads one axis at its end up to a multiple."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    padding = [(0, missing if a == axis else 0) for a in range(x.ndim)]
    return jnp.pad(x, padding, constant_values=value)
