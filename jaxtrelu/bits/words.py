"""Packed words: pack, unpack, population count, transposition, and positions inside one word."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxtrelu.packing import WORD_BITS, pack_last, unpack_last, words_for

# Half-block sizes of a 32 x 32 bit transposition, with the masks of their low halves.
_HALVES = ((16, 0x0000FFFF), (8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555))


def pack(mask: ArrayLike) -> jax.Array:
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


def unpack(words: ArrayLike, width: int) -> jax.Array:
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
    words = checked(words)
    if not 0 <= width <= words.shape[-1] * WORD_BITS:
        raise ValueError(
            f"`width` should be between 0 and {words.shape[-1] * WORD_BITS}, the number of bits in "
            f"words of shape {words.shape}, but is {width!r}."
        )
    return unpack_last(words, width)


def count(words: ArrayLike) -> jax.Array:
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
    return jnp.sum(population(checked(words)), axis=-1, dtype=jnp.int32)


def transpose(words: ArrayLike, width: int) -> jax.Array:
    """The words of the transposed mask, without unpacking it.

    Five rounds exchange half-blocks of every 32 x 32 bits (Warren, Hacker's Delight, 7-3).

    Args:
      words: (rows, w) uint32.
      width: the number of columns n, at most 32 w.

    Returns:
      uint32 words of shape (n, ceil(rows / 32)).

    Raises:
      TypeError, ValueError: `words` are not words, or not a matrix.

    >>> transpose(pack(jnp.array([[True, True], [False, True]])), 2).tolist()
    [[1], [3]]
    """
    words = checked(words)
    if words.ndim != 2:
        raise ValueError(f"`words` should be a matrix, but have shape {words.shape}.")
    rows, across = words.shape
    down = words_for(rows)
    block = jnp.pad(words, ((0, down * WORD_BITS - rows), (0, 0)))
    for half, ones in _HALVES:
        low, mask = jnp.uint32(half), jnp.uint32(ones)
        block = block.reshape(down, WORD_BITS // (2 * half), 2, half, across)
        upper, lower = block[:, :, 0], block[:, :, 1]
        block = jnp.stack(
            [(upper & mask) | ((lower & mask) << low), ((upper >> low) & mask) | (lower & ~mask)],
            axis=2,
        )
    block = block.reshape(down, WORD_BITS, across).transpose(2, 1, 0)
    return block.reshape(across * WORD_BITS, down)[:width]


def checked(words: ArrayLike) -> jax.Array:
    """`words` as an array of uint32 with at least one axis, or an error that says what to pass."""
    words = jnp.asarray(words)
    if words.dtype != jnp.uint32 or words.ndim == 0:
        raise (TypeError if words.dtype != jnp.uint32 else ValueError)(
            "`words` should be a uint32 array with at least one axis, as jaxtrelu.bits.pack "
            f"returns it, but is an array of dtype {words.dtype} and shape {words.shape}."
        )
    return words


def population(words: jax.Array) -> jax.Array:
    """The number of set bits in each word, int32."""
    return lax.population_count(words).astype(jnp.int32)


def rank_in_word(word: jax.Array, place: jax.Array) -> jax.Array:
    """The number of set bits of `word` below bit `place`, which is from 0 to 32."""
    below = (jnp.uint32(1) << (place & 31).astype(jnp.uint32)) - jnp.uint32(1)
    return population(jnp.where(place >= WORD_BITS, word, word & below))


def select_in_word(word: jax.Array, k: jax.Array) -> jax.Array:
    """The place of the k-th set bit of `word` (from 0), by five halvings; else something < 32."""
    place = jnp.zeros_like(k)
    for half in (16, 8, 4, 2, 1):
        low = word & jnp.uint32((1 << half) - 1)
        lower = population(low)
        above = k >= lower
        k = jnp.where(above, k - lower, k)
        word = jnp.where(above, word >> jnp.uint32(half), low)
        place = jnp.where(above, place + half, place)
    return place
