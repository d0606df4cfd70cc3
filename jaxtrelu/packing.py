"""One bit per element: masks packed into 32-bit words, the layout that everything else shares.

Bit ``i % 32`` (least significant first) of word ``i // 32`` holds element ``i`` of the packed axis;
bits past the end of the axis are zero. The order is the natural one, so that a word is at once a
residual (which elements does the gradient pass through), a population count and an index.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

WORD_BITS = 32


def words_for(size):
    """The number of words that hold `size` bits. Symbolic sizes work."""
    return (size + WORD_BITS - 1) // WORD_BITS


def pack_last(mask: jax.Array) -> jax.Array:
    """Packs a boolean array (..., n) along its last axis into uint32 words (..., ceil(n / 32))."""
    *lead, size = mask.shape
    words = words_for(size)
    if not (isinstance(size, int) and size % WORD_BITS == 0):
        padding = [(0, 0, 0)] * len(lead) + [(0, words * WORD_BITS - size, 0)]
        mask = lax.pad(mask, np.bool_(False), padding)
    # Shift and sum, since `jnp.packbits` has no answer for a symbolic size.
    bits = lax.reshape(mask, (*lead, words, WORD_BITS)).astype(jnp.uint32)
    shifts = lax.broadcasted_iota(jnp.uint32, bits.shape, bits.ndim - 1)
    return jnp.sum(bits << shifts, axis=-1, dtype=jnp.uint32)


def unpack_last(words: jax.Array, size) -> jax.Array:
    """The inverse of `pack_last`: uint32 words (..., ceil(n / 32)) to a boolean array (..., n)."""
    *lead, count = words.shape
    shape = (*lead, count, WORD_BITS)
    spread = lax.broadcast_in_dim(words, shape, tuple(range(words.ndim)))
    shifts = lax.broadcasted_iota(jnp.uint32, shape, words.ndim)
    bits = lax.reshape((spread >> shifts) & jnp.uint32(1), (*lead, count * WORD_BITS))
    bits = lax.slice_in_dim(bits, 0, size, axis=bits.ndim - 1)
    return bits.astype(bool)
