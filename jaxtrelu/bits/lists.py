"""Rank, select and compaction on packed words."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxtrelu.bits.words import checked, count, population, rank_in_word, select_in_word
from jaxtrelu.packing import WORD_BITS

# At most so many blocks of words in a row are told apart by comparing, before a search inside one.
_BLOCKS = 16


def rank(words: ArrayLike, index: ArrayLike) -> jax.Array:
    """The number of set bits before `index`: where an open entry stands among the open ones.

    Args:
      words: (..., w) uint32.
      index: (..., k) integers, from 0 to the width (which gives the row's count).

    Returns:
      int32 ranks of shape (..., k).

    Raises:
      TypeError, ValueError: `words` are not words.

    >>> rank(jnp.array([5], jnp.uint32), jnp.array([0, 1, 2, 3])).tolist()
    [0, 1, 1, 2]
    """
    words, index = checked(words), jnp.asarray(index, jnp.int32)
    ones = population(words)
    before = jnp.cumsum(ones, axis=-1) - ones
    place = jnp.clip(index // WORD_BITS, 0, words.shape[-1] - 1)
    word = jnp.take_along_axis(words, place, axis=-1)
    return jnp.take_along_axis(before, place, axis=-1) + rank_in_word(
        word, index - place * WORD_BITS
    )


def select(words: ArrayLike, k: ArrayLike) -> jax.Array:
    """The index of the k-th set bit, counted from 0; the inverse of `rank` on open entries.

    Args:
      words: (..., w) uint32.
      k: (..., j) integers.

    Returns:
      int32 indices of shape (..., j); 32 w where a row has no k-th set bit.

    Raises:
      TypeError, ValueError: `words` are not words.

    >>> select(jnp.array([5], jnp.uint32), jnp.array([0, 1, 2])).tolist()
    [0, 2, 32]
    """
    words, k = checked(words), jnp.asarray(k, jnp.int32)
    lead = jnp.broadcast_shapes(words.shape[:-1], k.shape[:-1])
    words, k = (jnp.broadcast_to(a, (*lead, a.shape[-1])) for a in (words, k))
    width = words.shape[-1]
    if width == 0:
        return jnp.zeros_like(k)
    rows = math.prod(lead)
    found = _select_rows(words.reshape(rows, width), k.reshape(rows, k.shape[-1]))
    return found.reshape(k.shape)


def compact(
    words: ArrayLike, size: int, values: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """The set bits of each row as a list of indices, with the values that stand there.

    Args:
      words: (..., w) uint32.
      size: K, the length of the lists. It is the caller's to make it large enough: compare the
        counts, which are exact, with it.
      values: (..., n) of any dtype, or None.

    Returns:
      ``(indices, values, counts)``: int32 indices (..., K) in rising order, 32 w past the last one;
      the values there, 0 past the last one (None if none were given); and the int32 number of set
      bits in each row, whether or not they fit.

    Raises:
      TypeError, ValueError: `words` are not words, or `size` is negative.

    >>> words = jnp.array([5], jnp.uint32)
    >>> indices, values, counts = compact(words, 3, jnp.array([7.0, 8.0, 9.0]))
    >>> indices.tolist(), values.tolist(), counts.item()
    ([0, 2, 32], [7.0, 9.0, 0.0], 2)
    """
    words = checked(words)
    if size < 0:
        raise ValueError(f"`size` should be at least 0, but is {size!r}.")
    counts = count(words)
    slots = jnp.broadcast_to(jnp.arange(size), (*words.shape[:-1], size))
    indices = select(words, slots)
    if values is None:
        return indices, None, counts
    values = jnp.asarray(values)
    there = jnp.take_along_axis(values, indices, axis=-1, mode="clip")
    return indices, jnp.where(slots < counts[..., None], there, jnp.zeros_like(there)), counts


def expand(indices: ArrayLike, values: ArrayLike, width: int) -> jax.Array:
    """Back from lists to a dense array: the inverse of `compact`.

    Args:
      indices: (..., K) integers; those that are not below `width` are padding.
      values: (..., K) of any dtype.
      width: n.

    Returns:
      A dense array (..., n) in the dtype of `values`, zero where no index points.

    Raises:
      ValueError: the shapes of `indices` and `values` differ.

    >>> expand(jnp.array([0, 2, 32]), jnp.array([7.0, 9.0, 0.0]), 3).tolist()
    [7.0, 0.0, 9.0]
    """
    indices, values = jnp.asarray(indices), jnp.asarray(values)
    if indices.shape != values.shape:
        raise ValueError(
            f"`indices` and `values` should have one shape, but have {indices.shape} and "
            f"{values.shape}."
        )
    lead, size = indices.shape[:-1], indices.shape[-1]
    rows = jnp.zeros((*lead, width), values.dtype).reshape(-1, width)
    put = jax.vmap(lambda row, i, v: row.at[i].set(v, mode="drop"))
    return put(rows, indices.reshape(-1, size), values.reshape(-1, size)).reshape(*lead, width)


def _select_rows(words: jax.Array, k: jax.Array) -> jax.Array:
    """`select` of words (rows, w) at k (rows, j).

    A few blocks of words are told apart by comparing, a vector operation; inside one the search
    goes down a tree of counts, a gather per level. Running counts of all words would cost more.
    """
    rows, width = words.shape
    levels = (-(-width // _BLOCKS) - 1).bit_length()
    blocks = -(-width // 2**levels)
    words = jnp.pad(words, ((0, 0), (0, blocks * 2**levels - width)))
    counts = [population(words)]
    for _ in range(levels):
        pairs = counts[-1].reshape(rows, counts[-1].shape[1] // 2, 2)
        counts.append(jnp.sum(pairs, axis=-1, dtype=jnp.int32))
    upto = jnp.cumsum(counts.pop(), axis=-1)

    first = jnp.arange(rows, dtype=jnp.int32)[:, None] * blocks
    place, before = jnp.broadcast_to(first, k.shape), jnp.zeros_like(k)
    for end in jnp.split(upto[:, :-1], blocks - 1, axis=1) if blocks > 1 else ():
        place = place + (end <= k)
        before = jnp.where(end <= k, end, before)
    left = k - before
    for level in reversed(counts):
        lower = level.reshape(-1).at[2 * place].get(mode="promise_in_bounds")
        above = left >= lower
        left = jnp.where(above, left - lower, left)
        place = 2 * place + above
    word = words.reshape(-1).at[place].get(mode="promise_in_bounds")
    bit = select_in_word(word, left)
    place = place - first * 2**levels
    there = (k >= 0) & (k < upto[:, -1:])
    return jnp.where(there, place * WORD_BITS + bit, width * WORD_BITS)
