"""The open entries of a latent (B, m), as flat lists in row order and in column order.

Rows are examples, columns features. A list is sorted by its group (the row, or the column of the
transposed words) and by the member inside it; group g's entries stand from ``starts[g]`` on,
``counts[g]`` of them. Both lists come from words, the second from transposed ones, so nothing is
sorted. Ranks lead from one to the other.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxtrelu._primitive import formulas
from jaxtrelu._primitive.packing import (
    WORD_BITS,
    pack_last,
    population,
    rank_in_word,
    select_in_word,
)
from jaxtrelu._primitive.partition import Layout, Share, from_columns, to_columns, to_rows
from jaxtrelu._primitive.rules import varying_like
from jaxtrelu.sparse._block import Plan, biased, takes_dense
from jaxtrelu.sparse._loops import at_most, ceil_div, repeat, take

# Entries listed per round: enough to keep both cores busy, few enough for a cache.
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
        large = isinstance(self.words.size, int) and self.words.size * WORD_BITS >= 2**31
        return jnp.sum(self.counts, dtype=jnp.uint32 if large else jnp.int32)


class EntryList(NamedTuple):
    """A flat list of entries, padded: past the last one group and member are 0."""

    group: jax.Array
    member: jax.Array


def groups_of(words: jax.Array) -> Groups:
    """Counts the set bits of words (groups, w)."""
    within = jnp.cumsum(population(words), axis=-1)
    counts = within[:, -1]
    starts = jnp.cumsum(counts) - counts
    return Groups(words, within + starts[:, None], starts, counts)


def list_entries(groups: Groups, total: jax.Array, size: int) -> EntryList:
    """The first `total` entries, in a list of `size`; rounds are as many as `total` needs.

    A mark where each group starts and a running sum of marks tell an entry's group; what is left to
    search are the words of that group, and not those of the matrix.
    """
    length = at_most(_ROUND, size)
    padded = ceil_div(size, length) * length
    marks = varying_like(jnp.zeros(padded, jnp.int32), groups.starts)
    marks = marks.at[groups.starts].add(1, mode="drop")

    def found(i, state):
        before, lists = state
        k = i * length + jnp.arange(length, dtype=jnp.int32)
        group = before + jnp.cumsum(lax.dynamic_slice(marks, (i * length,), (length,)))
        part = EntryList(group, _member(groups, group, k))
        lists = EntryList(
            *(
                lax.dynamic_update_slice(whole, jnp.where(k < total, new, 0), (i * length,))
                for whole, new in zip(lists, part, strict=True)
            )
        )
        return group[-1], lists

    start = EntryList(jnp.zeros(padded, jnp.int32), jnp.zeros(padded, jnp.int32))
    before = jnp.full((), -1, jnp.int32)
    _, (group, member) = repeat(ceil_div(total, length), found, (before, start))
    return EntryList(group[:size], member[:size])


def _member(groups: Groups, group: jax.Array, k: jax.Array) -> jax.Array:
    """The member of the matrix's k-th entry, which is in `group`; anything where there is none."""
    across = groups.words.shape[1]
    upto, first = groups.upto.reshape(-1), group * across

    def narrowed(half, place):
        middle = jnp.minimum(place + (half - 1), across - 1)
        return jnp.where(take(upto, first + middle) <= k, middle + 1, place)

    place = jnp.zeros_like(k)
    if isinstance(across, int):
        for step in reversed(range((across - 1).bit_length())):
            place = narrowed(1 << step, place)
    else:
        # How often to halve is known when the program runs.
        steps = 32 - lax.clz(jnp.asarray(across - 1, jnp.int32))
        place = repeat(steps, lambda i, place: narrowed(1 << (steps - 1 - i), place), place)
    at = first + jnp.minimum(place, across - 1)
    word = take(groups.words.reshape(-1), at)
    bit = select_in_word(word, k - (take(upto, at) - population(word)))
    return (at - first) * WORD_BITS + bit


def position(groups: Groups, group: jax.Array, member: jax.Array) -> jax.Array:
    """Where the entries (group, member) stand in the list of `groups`, or would stand."""
    place = member // WORD_BITS
    flat = group * groups.words.shape[1] + place
    word = take(groups.words.reshape(-1), flat)
    before = take(groups.upto.reshape(-1), flat) - population(word)
    return before + rank_in_word(word, member % WORD_BITS)


class Entries(NamedTuple):
    """Some entries of a latent (B, m), listed in row order."""

    groups: Groups
    by_row: EntryList
    z: jax.Array
    """The pre-activation of each."""
    total: jax.Array
    """How many slots of the lists are used: none, where the lists are too short."""

    @property
    def used(self) -> jax.Array:
        """Which slots of the lists are used."""
        return jnp.arange(self.z.shape[0], dtype=jnp.int32) < self.total


class Support(NamedTuple):
    """What of a latent (B, m) matters: open entries, and those inside a surrogate's window."""

    opened: jax.Array
    """Words of the open entries alone."""
    visited: Entries
    """All entries, or the open ones."""
    window: Entries | None
    """Closed entries inside the window, where they are listed apart."""
    overflow: jax.Array
    """Whether dense products are taken, as where there are more entries than the lists hold. They
    are empty then."""


def support_of(plan: Plan, product, bias, threshold: jax.Array, *, apart: bool = False) -> Support:
    """The support of ``product + bias``, which is not kept; a window's entries apart or not."""
    z, threshold = biased(product, bias), threshold[None]
    opened, inside = pack_last(formulas.above(z, threshold)), None
    if plan.spec.surrogate is not None:
        inside = pack_last(formulas.window(z, threshold, plan.spec))

    def z_at(row, feature):
        if isinstance(product.size, int) and product.size >= 2**31:
            z = product.at[row, feature].get(mode="promise_in_bounds")
        else:
            z = take(product.reshape(-1), row * product.shape[1] + feature)
        return z if bias is None else biased(z, take(bias, feature))

    return support_from(plan, opened, inside, z_at, apart=apart)


def support_from(
    plan: Plan, opened: jax.Array, inside: jax.Array | None, z_at: Callable, *, apart: bool
) -> Support:
    """The support of these words, with ``z_at(row, feature)`` at its entries."""
    visited, silent = opened, None
    if inside is not None and apart:
        silent = groups_of(inside & ~opened)
    elif inside is not None:
        visited = opened | inside
    groups = groups_of(visited)
    number = groups.total if silent is None else groups.total + silent.total
    overflow = takes_dense(plan, number, plan.size)
    window = None if silent is None else entries_of(plan, silent, overflow, z_at)
    return Support(opened, entries_of(plan, groups, overflow, z_at), window, overflow)


def entries_of(plan: Plan, groups: Groups, overflow: jax.Array, z_at: Callable) -> Entries:
    """Lists entries with their pre-activations; none, if there are too many."""
    total = jnp.where(overflow, 0, groups.total).astype(jnp.int32)
    by_row = list_entries(groups, total, plan.size)
    return Entries(groups, by_row, z_at(*by_row), total)


def has_bit(words: jax.Array, row: jax.Array, member: jax.Array) -> jax.Array:
    """Whether the bit of an entry (row, member) is set."""
    word = take(words.reshape(-1), row * words.shape[1] + member // WORD_BITS)
    return (word >> (member % WORD_BITS).astype(jnp.uint32)) & 1 == 1


# between the passes, on several devices


class Kept(NamedTuple):
    """Entries in arrays whose shapes are those of their layout, whatever the sharding."""

    words: jax.Array
    group: jax.Array
    member: jax.Array
    z: jax.Array


#: The dimensions of `Kept`.
KEPT = Kept("bw", "bc", "bc", "bc")  # type: ignore[arg-type]


def kept(entries: Entries, layout: Layout) -> Kept:
    """What is kept of the entries of a device."""
    lists = (to_rows(array, layout) for array in (*entries.by_row, entries.z))
    return Kept(to_columns(entries.groups.words, layout), *lists)


def restored(
    plan: Plan, share: Share, visited: Kept, window: Kept | None
) -> tuple[Entries, Entries | None, jax.Array]:
    """The inverse of `kept` for both lists, and whether dense products are taken."""
    lists = [visited] if window is None else [visited, window]
    groups = [groups_of(from_columns(one.words, share.layout)) for one in lists]
    number = functools.reduce(jnp.add, [some.total for some in groups])
    overflow = takes_dense(plan, number, plan.size)
    found = [
        Entries(
            some,
            EntryList(one.group.reshape(-1), one.member.reshape(-1)),
            one.z.reshape(-1),
            jnp.where(overflow, 0, some.total).astype(jnp.int32),
        )
        for one, some in zip(lists, groups, strict=True)
    ]
    return found[0], None if window is None else found[1], overflow
