"""The open entries of a packed matrix, as flat lists in row order and in column order.

A list is sorted by its group (the row, or the column of the transposed words) and by the member
inside it; group g's entries stand from ``starts[g]`` on, ``counts[g]`` of them. Both lists come
from words, the second from transposed ones, so nothing is sorted. Ranks lead from one to the other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxtrelu.bits.words import population, rank_in_word, select_in_word
from jaxtrelu.packing import WORD_BITS
from jaxtrelu.sparse.loops import ceil_div, repeat, take

# Entries found per round: enough to keep both cores busy, few enough for a cache.
_ROUND = 4096


class Groups(NamedTuple):
    """Packed words (groups, w) with what is needed to count and find their set bits."""

    words: jax.Array
    upto: jax.Array
    """(groups, w) int32: set bits up to and with each word, over the whole matrix."""
    starts: jax.Array
    """(groups,) int32: where each group's entries start in the list."""
    counts: jax.Array
    """(groups,) int32: the number of set bits in each group."""

    @property
    def total(self) -> jax.Array:
        """The number of set bits."""
        return jnp.sum(self.counts, dtype=jnp.int32)


class List(NamedTuple):
    """A flat list of entries, padded: past the last one group and member are 0."""

    group: jax.Array
    member: jax.Array


def groups_of(words: jax.Array) -> Groups:
    """Counts the set bits of words (groups, w)."""
    within = jnp.cumsum(population(words), axis=-1)
    counts = within[:, -1]
    starts = jnp.cumsum(counts) - counts
    return Groups(words, within + starts[:, None], starts, counts)


def nth(groups: Groups, k: jax.Array) -> List:
    """The k-th entries of the whole matrix, from 0, for an array k; past the last, any."""
    across = groups.words.shape[1]
    upto, words = groups.upto.reshape(-1), groups.words.reshape(-1)
    place = jnp.searchsorted(upto, k, side="right", method="scan_unrolled")
    place = jnp.minimum(place.astype(jnp.int32), upto.shape[0] - 1)
    word = take(words, place)
    bit = select_in_word(word, k - (take(upto, place) - population(word)))
    return List(place // across, place % across * WORD_BITS + bit)


def listed(groups: Groups, total: jax.Array, size: int) -> List:
    """The first `total` entries, in a list of `size`; rounds are as many as `total` needs."""
    length = min(_ROUND, size)
    padded = ceil_div(size, length) * length

    def found(i, lists):
        k = i * length + jnp.arange(length, dtype=jnp.int32)
        return List(
            *(
                lax.dynamic_update_slice(whole, jnp.where(k < total, part, 0), (i * length,))
                for whole, part in zip(lists, nth(groups, k), strict=True)
            )
        )

    start = List(jnp.zeros(padded, jnp.int32), jnp.zeros(padded, jnp.int32))
    group, member = repeat(ceil_div(total, length), found, start)
    return List(group[:size], member[:size])


def position(groups: Groups, group: jax.Array, member: jax.Array) -> jax.Array:
    """Where the entries (group, member), which must be set, stand in the list of `groups`."""
    place = member // WORD_BITS
    flat = group * groups.words.shape[1] + place
    word = take(groups.words.reshape(-1), flat)
    before = take(groups.upto.reshape(-1), flat) - population(word)
    return before + rank_in_word(word, member % WORD_BITS)
