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

# Padding that is accepted so that devices can share an array: 64 bytes or, of all words, such a
# share beside leading axes that stay apart, and such a share for parts of the packed axis.
_FEW_WORDS = 16
_APART, _PARTS = 1 / 16, 0.3


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
    shifts = lax.broadcasted_iota(jnp.uint32, (1,) * (bits.ndim - 1) + (WORD_BITS,), bits.ndim - 1)
    return jnp.sum(bits << shifts, axis=-1, dtype=jnp.uint32)


def unpack_last(words: jax.Array, size) -> jax.Array:
    """The inverse of `pack_last`: uint32 words (..., ceil(n / 32)) to a boolean array (..., n)."""
    *lead, count = words.shape
    shifts = lax.broadcasted_iota(jnp.uint32, (1,) * words.ndim + (WORD_BITS,), words.ndim)
    bits = ((words[..., None] >> shifts) & jnp.uint32(1)).astype(bool)
    bits = lax.reshape(bits, (*lead, count * WORD_BITS))
    return lax.slice_in_dim(bits, 0, size, axis=bits.ndim - 1)


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


@dataclasses.dataclass(frozen=True)
class Packing:
    """Which axes of an array are packed. Counted from the end, so that batching leaves it alone.

    `axes` trailing axes, ending `behind` axes before the last one, are merged into one and packed;
    with no axes at all the mask is kept as it is, one byte per element. The merged axis is packed
    in `parts` equal parts, each padded to whole words, with an axis of their own before the words:
    so however many devices share the axis, if their number divides `parts`, each has its own words.
    """

    axes: int = 1
    behind: int = 0
    parts: int = 1

    def pack(self, mask: jax.Array) -> jax.Array:
        """A boolean array to words; the packed axis comes last."""
        if self.axes == 0:
            return mask
        merged = self._merge(mask)
        if self.parts > 1:
            *lead, size = merged.shape
            merged = lax.reshape(merged, (*lead, self.parts, size // self.parts))
        return pack_last(merged)

    def unpack(self, words: jax.Array, shape: tuple) -> jax.Array:
        """Words to a boolean array of that shape: the inverse of `pack`."""
        if self.axes == 0:
            return words
        lead = len(shape) - self.axes - self.behind
        packed, behind = shape[lead : lead + self.axes], shape[lead + self.axes :]
        size = math.prod(packed)
        if self.parts > 1:
            mask = unpack_last(words, size // self.parts)
            mask = lax.reshape(mask, (*mask.shape[:-2], size))
        else:
            mask = unpack_last(words, size)
        if self.axes > 1 or self.behind:
            mask = lax.reshape(mask, (*shape[:lead], *behind, *packed))
        if self.behind:
            mask = jnp.moveaxis(mask, range(lead, lead + self.behind), range(-self.behind, 0))
        return mask

    def _merge(self, mask: jax.Array) -> jax.Array:
        lead = mask.ndim - self.axes - self.behind
        if self.behind:
            mask = jnp.moveaxis(mask, range(-self.behind, 0), range(lead, lead + self.behind))
        if self.axes == 1:
            return mask
        sizes = mask.shape[lead + self.behind :]
        return lax.reshape(mask, (*mask.shape[: lead + self.behind], math.prod(sizes)))


def choose_packing(
    shape: tuple, shards: tuple[int, ...] | None = None, devices: int = 1
) -> Packing:
    """The packing that keeps 1/8 byte per element and needs no collective.

    On one device: the fewest trailing axes whose merged size is a multiple of the word, all of them
    if there is none, so that padding costs at most one word. With several `devices`, over which the
    partitioner may share any axis: the fewest trailing axes whose padding costs little, in as many
    parts as cost little. With `shards`, the number of parts of each axis of an explicitly sharded
    array, a single axis whose part is a multiple of the word; else the longest whole axis, padded;
    else none, and the mask stays a mask.
    """
    if not shape:
        return Packing(axes=0)
    if shards is None or all(parts == 1 for parts in shards):
        known = all(isinstance(size, int) and size for size in shape)
        if devices > 1 and known:
            return _shared_packing(shape, devices)
        return Packing(axes=_merged_axes(shape))
    order = range(len(shape) - 1, -1, -1)
    aligned = [i for i in order if shape[i] and shape[i] % (WORD_BITS * shards[i]) == 0]
    whole = [i for i in order if shards[i] == 1]
    if aligned:
        return Packing(behind=len(shape) - 1 - aligned[0])
    if whole:
        longest = max(whole, key=lambda i: shape[i])
        if shape[longest] >= WORD_BITS // 4:  # shorter, a padded word is larger than a mask
            return Packing(behind=len(shape) - 1 - longest)
    return Packing(axes=0)


def parts_of(size: int, devices: int) -> int:
    """The most parts of an axis among which any number of the devices can share it equally."""
    return math.gcd(size, devices)


def _shared_packing(shape: tuple[int, ...], devices: int) -> Packing:
    """The packing of an array that several devices may share, leading axes first."""

    def words(axes: int, parts: int) -> int:
        lead, packed = shape[: len(shape) - axes], shape[len(shape) - axes :]
        return math.prod(lead) * parts * words_for(math.prod(packed) // parts)

    least = words_for(math.prod(shape))

    def most(share: float) -> float:
        return least + max(_FEW_WORDS, share * least)

    axes = next(n for n in range(1, len(shape) + 1) if words(n, 1) <= most(_APART))
    parts = parts_of(shape[len(shape) - axes], devices)
    while parts > 1 and words(axes, parts) > most(_PARTS):
        # The next divisor.
        parts = next(n for n in range(parts - 1, 0, -1) if parts % n == 0)
    return Packing(axes=axes, parts=parts)


def _merged_axes(shape: tuple) -> int:
    size = 1
    for count, axis in enumerate(reversed(shape), start=1):
        if not isinstance(axis, int):  # symbolic: whether it is a multiple cannot be decided
            break
        size *= axis
        if size and size % WORD_BITS == 0:
            return count
    return len(shape)
