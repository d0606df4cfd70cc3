"""Index operations on packed gates: count, rank, select, compaction and back.

A packed gate is one bit per element in 32-bit words, bit ``i % 32`` (least significant first) of
word ``i // 32`` along the last axis. So the words are an index already: a population count per word
and its running sum say where the k-th open entry is, in a few operations per entry *found* instead
of several per element looked at. All functions here work under `jit` and `vmap`, with any leading
shape and any width.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Int, Int32, Shaped, UInt32

from jaxtrelu._primitive.packing import (
    WORD_BITS,
    pack_last,
    population,
    rank_in_word,
    select_in_word,
    unpack_last,
    words_for,
)
from jaxtrelu._primitive.partition import along_rows
from jaxtrelu._primitive.rules import vary_together, varying_like
from jaxtrelu._primitive.spec import whole_number

__all__ = ["compact", "count", "expand", "pack", "rank", "select", "transpose", "unpack"]

# Half-block sizes of a 32 x 32 bit transposition, with the masks of their low halves.
_HALVES = ((16, 0x0000FFFF), (8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555))

# At most so many blocks of words in a row are told apart by comparing, before a search inside one.
_BLOCKS = 16


def pack(mask: Shaped[ArrayLike, "*batch n"]) -> UInt32[Array, "*batch w"]:
    """Packs a mask along its last axis, 32 elements to a word.

    Args:
      mask: (..., n), bool; of any other dtype, what is not zero is set.

    Returns:
      uint32 words of shape (..., ceil(n / 32)); the bits past n are zero.

    Raises:
      ValueError: `mask` has no axis.

    >>> pack(jnp.array([True, False, True])).tolist()
    [5]
    """
    mask = jnp.asarray(mask)
    if mask.ndim == 0:
        raise ValueError("`mask` should have at least one axis, but is a scalar. Pass mask[None].")
    return pack_last(mask if mask.dtype == jnp.bool_ else mask != 0)


def unpack(words: UInt32[ArrayLike, "*batch w"], width: int) -> Bool[Array, "*batch {width}"]:
    """The inverse of `pack`.

    Args:
      words: (..., w) uint32.
      width: the number of elements n, at most 32 w.

    Returns:
      A boolean array (..., n).

    Raises:
      TypeError, ValueError: `words` are not words, or `width` does not fit them.

    >>> unpack(jnp.array([5], jnp.uint32), 3).tolist()
    [True, False, True]
    """
    words = _checked(words)
    _check_width(words, width)
    return unpack_last(words, width)


def count(words: UInt32[ArrayLike, "*batch w"]) -> Int32[Array, "*batch"]:
    """The number of set bits in each row.

    Args:
      words: (..., w) uint32.

    Returns:
      int32 counts of shape (...).

    Raises:
      TypeError, ValueError: `words` are not words.

    >>> count(jnp.array([[5, 1], [0, 0]], jnp.uint32)).tolist()
    [3, 0]
    """
    return jnp.sum(population(_checked(words)), axis=-1, dtype=jnp.int32)


def transpose(
    words: UInt32[ArrayLike, "*batch rows w"], width: int
) -> UInt32[Array, "*batch {width} down"]:
    """The words of the transposed mask, without unpacking it.

    Five rounds exchange half-blocks of every 32 x 32 bits (Warren, Hacker's Delight, 7-3).

    Args:
      words: (..., rows, w) uint32.
      width: the number of columns n, at most 32 w.

    Returns:
      uint32 words of shape (..., n, ceil(rows / 32)).

    Raises:
      TypeError, ValueError: `words` are not words or have no rows, or `width` does not fit them.

    >>> transpose(pack(jnp.array([[True, True], [False, True]])), 2).tolist()
    [[1], [3]]
    """
    words = _checked(words)
    if words.ndim < 2:
        raise ValueError(
            f"`words` should have shape (..., rows, w), but have {words.shape}. Pass words[None]."
        )
    _check_width(words, width)
    return along_rows(lambda words: _transposed(words, width), [words], 2, 2)


def _transposed(words: jax.Array, width: int) -> jax.Array:
    *lead, rows, across = words.shape
    down = words_for(rows)
    block = jnp.pad(words, [(0, 0)] * len(lead) + [(0, down * WORD_BITS - rows), (0, 0)])
    for half, ones in _HALVES:
        low, mask = jnp.uint32(half), jnp.uint32(ones)
        block = block.reshape(*lead, down, WORD_BITS // (2 * half), 2, half, across)
        upper, lower = block[..., 0, :, :], block[..., 1, :, :]
        block = jnp.stack(
            [(upper & mask) | ((lower & mask) << low), ((upper >> low) & mask) | (lower & ~mask)],
            axis=-3,
        )
    block = block.reshape(*lead, down, WORD_BITS, across)
    block = jnp.moveaxis(block, (-1, -3), (-3, -1)).reshape(*lead, across * WORD_BITS, down)
    return block[..., :width, :]


def rank(
    words: UInt32[ArrayLike, "*#batch w"], index: Int[ArrayLike, "*#batch k"]
) -> Int32[Array, "*batch k"]:
    """The number of set bits before `index`: where an open entry stands among the open ones.

    Args:
      words: (..., w) uint32.
      index: (..., k) integers, from 0 to the width (which gives the row's count); others count as
        the nearest of these. Leading axes broadcast against those of `words`, as in `select`.

    Returns:
      int32 ranks of shape (..., k).

    Raises:
      TypeError, ValueError: `words` are not words, `index` is not of integers or is a scalar, or
        their leading axes do not broadcast.

    >>> rank(jnp.array([5], jnp.uint32), jnp.array([0, 1, 2, 3])).tolist()
    [0, 1, 1, 2]
    """
    operands = _one_lead(_checked(words), index, "index")
    return along_rows(_rank, operands, 1, 1)


def _rank(words: jax.Array, index: jax.Array) -> jax.Array:
    if words.shape[-1] == 0:
        return jnp.zeros_like(index)
    index = jnp.clip(index, 0, words.shape[-1] * WORD_BITS)
    ones = population(words)
    before = jnp.cumsum(ones, axis=-1) - ones
    place = jnp.clip(index // WORD_BITS, 0, words.shape[-1] - 1)
    word = jnp.take_along_axis(words, place, axis=-1)
    return jnp.take_along_axis(before, place, axis=-1) + rank_in_word(
        word, index - place * WORD_BITS
    )


def select(
    words: UInt32[ArrayLike, "*#batch w"], k: Int[ArrayLike, "*#batch j"]
) -> Int32[Array, "*batch j"]:
    """The index of the k-th set bit, counted from 0; the inverse of `rank` on open entries.

    Args:
      words: (..., w) uint32.
      k: (..., j) integers. Leading axes broadcast against those of `words`.

    Returns:
      int32 indices of shape (..., j); 32 w where a row has no k-th set bit.

    Raises:
      TypeError, ValueError: `words` are not words, `k` is not of integers or is a scalar, or their
        leading axes do not broadcast.

    >>> select(jnp.array([5], jnp.uint32), jnp.array([0, 1, 2])).tolist()
    [0, 2, 32]
    """
    operands = _one_lead(_checked(words), k, "k")
    return along_rows(_select, operands, 1, 1)


def _select(words: jax.Array, k: jax.Array) -> jax.Array:
    width = words.shape[-1]
    if width == 0:
        return jnp.zeros_like(k)
    rows = math.prod(words.shape[:-1])
    found = _select_rows(words.reshape(rows, width), k.reshape(rows, k.shape[-1]))
    return found.reshape(k.shape)


def compact(
    words: UInt32[ArrayLike, "*batch w"],
    size: int,
    values: Shaped[ArrayLike, "*batch n"] | None = None,
) -> tuple[
    Int32[Array, "*batch {size}"], Shaped[Array, "*batch {size}"] | None, Int32[Array, "*batch"]
]:
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
      TypeError, ValueError: `words` are not words, `size` is no whole number or negative, or
        `values` are not those of that many bits.

    >>> words = jnp.array([5], jnp.uint32)
    >>> indices, values, counts = compact(words, 3, jnp.array([7.0, 8.0, 9.0]))
    >>> indices.tolist(), values.tolist(), counts.item()
    ([0, 2, 32], [7.0, 9.0, 0.0], 2)
    """
    words = _checked(words)
    size = _size(size, "size")
    if values is not None:
        values = jnp.asarray(values)
        if values.shape[:-1] != words.shape[:-1] or words_for(values.shape[-1]) != words.shape[-1]:
            raise ValueError(
                f"`values` should have shape (..., n) beside words of shape (..., ceil(n / 32)), "
                f"but have {values.shape} and words {words.shape}."
            )
    if values is None:
        found = along_rows(lambda words: _compact(words, size, None), [words], 1, (1, None, 0))
    else:
        given = [words, values]
        found = along_rows(lambda *given: _compact(given[0], size, given[1]), given, 1, (1, 1, 0))
    return found


def _compact(words: jax.Array, size: int, values: jax.Array | None):
    counts = count(words)
    slots = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (*words.shape[:-1], size))
    indices = _select(words, varying_like(slots, words))
    if values is None:
        return indices, None, counts
    there = jnp.take_along_axis(values, indices, axis=-1, mode="clip")
    return indices, jnp.where(slots < counts[..., None], there, jnp.zeros_like(there)), counts


def expand(
    indices: Int[ArrayLike, "*batch K"], values: Shaped[ArrayLike, "*batch K"], width: int
) -> Shaped[Array, "*batch {width}"]:
    """Back from lists to a dense array: the inverse of `compact`.

    Args:
      indices: (..., K) integers; those below 0 or not below `width` are padding. Each once: of one
        that is there twice, one value stays, and JAX does not say which.
      values: (..., K) of any dtype.
      width: n.

    Returns:
      A dense array (..., n) in the dtype of `values`, zero where no index points.

    Raises:
      TypeError: `indices` are no integers, or `width` is no whole number.
      ValueError: the shapes of `indices` and `values` differ, or `width` is negative.

    >>> expand(jnp.array([0, 2, 32]), jnp.array([7.0, 9.0, 0.0]), 3).tolist()
    [7.0, 0.0, 9.0]
    """
    indices, values = _integers(indices, "indices"), jnp.asarray(values)
    if indices.shape != values.shape:
        raise ValueError(
            f"`indices` and `values` should have one shape, but have {indices.shape} and "
            f"{values.shape}."
        )
    if indices.ndim == 0:
        raise ValueError("`indices` should have at least one axis, but is a scalar.")
    width = _size(width, "width")
    both = vary_together(indices, values)
    return along_rows(lambda indices, values: _expand(indices, values, width), both, 1, 1)


def _expand(indices: jax.Array, values: jax.Array, width: int) -> jax.Array:
    *lead, size = indices.shape
    rows = math.prod(lead)  # not -1, which has no answer for an array without elements
    # A negative index would count from the end.
    indices = jnp.where(indices < 0, width, indices)
    put = jax.vmap(lambda row, i, v: row.at[i].set(v, mode="drop"))
    dense = put(
        varying_like(jnp.zeros((rows, width), values.dtype), values, indices),
        indices.reshape(rows, size),
        values.reshape(rows, size),
    )
    return dense.reshape(*lead, width)


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
        place = place + (end <= k).astype(jnp.int32)
        before = jnp.where(end <= k, end, before)
    left = k - before
    for level in reversed(counts):
        lower = level.reshape(-1).at[2 * place].get(mode="promise_in_bounds")
        above = left >= lower
        left = jnp.where(above, left - lower, left)
        place = 2 * place + above.astype(jnp.int32)
    word = words.reshape(-1).at[place].get(mode="promise_in_bounds")
    bit = select_in_word(word, left)
    place = place - first * 2**levels
    there = (k >= 0) & (k < upto[:, -1:])
    return jnp.where(there, place * WORD_BITS + bit, width * WORD_BITS)


def _one_lead(words: jax.Array, numbers: ArrayLike, name: str) -> list[jax.Array]:
    """Words, and the numbers called `name`, with the leading axes to which both broadcast."""
    numbers = _integers(numbers, name)
    if not numbers.ndim:
        raise ValueError(
            f"`{name}` should have at least one axis, but is a scalar. Pass several numbers, or "
            f"jnp.array([{name}])."
        )
    try:
        lead = jnp.broadcast_shapes(words.shape[:-1], numbers.shape[:-1])
    except ValueError:
        raise ValueError(
            f"the leading axes of `words` and `{name}` should broadcast, but the shapes are "
            f"{words.shape} and {numbers.shape}."
        ) from None
    return [jnp.broadcast_to(array, (*lead, array.shape[-1])) for array in (words, numbers)]


def _size(size: int, name: str) -> int:
    """A whole number that is part of a shape, so none that is traced."""
    traced = isinstance(size, jax.core.Tracer)
    return whole_number(size, name, 0, " Under jax.jit, make it a static argument." * traced)


def _integers(array: ArrayLike, name: str) -> jax.Array:
    """The operand in int32, or an error that says what to pass."""
    array = jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"`{name}` should be integers, but is an array of dtype {array.dtype}. "
            "Pass for example an int32 array."
        )
    return array.astype(jnp.int32)


def _check_width(words: jax.Array, width: int) -> None:
    width = _size(width, "width")
    if not 0 <= width <= words.shape[-1] * WORD_BITS:
        raise ValueError(
            f"`width` should be between 0 and {words.shape[-1] * WORD_BITS}, the number of bits in "
            f"words of shape {words.shape}, but is {width!r}."
        )


def _checked(words: ArrayLike) -> jax.Array:
    """`words` as an array of uint32 with at least one axis, or an error that says what to pass."""
    words = jnp.asarray(words)
    if words.dtype != jnp.uint32 or words.ndim == 0:
        raise (TypeError if words.dtype != jnp.uint32 else ValueError)(
            "`words` should be a uint32 array with at least one axis, as jaxtrelu.bits.pack "
            f"returns it, but is an array of dtype {words.dtype} and shape {words.shape}."
        )
    return words
