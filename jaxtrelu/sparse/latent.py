"""The latent: its dense product, its activation, and where it is open."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtrelu import variants
from jaxtrelu.functions import step, thresholded_relu
from jaxtrelu.packing import pack_last
from jaxtrelu.sparse.entries import Groups, List, groups_of, listed
from jaxtrelu.sparse.loops import take
from jaxtrelu.variants import Spec

# Share of entries for which lists are made; beyond it dense products are taken. On a CPU those are
# faster from 1/10 on for rows of 768 numbers, from 1/48 on for rows of 144 (docs/sparse.md).
CROSSOVER = 1 / 32
# Entries per feature summed in the first pass over a weight gradient.
DIRECT = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static part of a call."""

    spec: Spec
    size: int
    """Entries that the lists hold."""
    direct: int
    """Entries per feature that a weight gradient sums in its first pass."""

    @property
    def window_is_silent(self) -> bool:
        """Whether closed entries inside the window matter to the threshold's gradient alone."""
        surrogate = self.spec.surrogate
        return surrogate is not None and self.spec.variant == "hard" and not surrogate.to_input


class Entries(NamedTuple):
    """Some entries of a latent (B, m), listed in row order."""

    groups: Groups
    by_row: List
    z: jax.Array
    """The pre-activation of each."""
    total: jax.Array
    """How many slots of the lists are used: none, where the lists are too short."""

    @property
    def there(self) -> jax.Array:
        """Which slots of the lists are used."""
        return jnp.arange(self.z.shape[0], dtype=jnp.int32) < self.total


class Found(NamedTuple):
    """The entries of a latent (B, m): open ones, and those inside a surrogate's window."""

    opened: jax.Array
    """Words of the open entries alone."""
    visited: Entries
    """All entries, or the open ones."""
    window: Entries | None
    """Closed entries inside the window, where they are listed apart."""
    wide: jax.Array
    """Whether there are more entries than the lists hold; they are empty then."""


def activate(plan: Plan, z: jax.Array, threshold: jax.Array) -> jax.Array:
    """The activation, differentiable, of any shape."""
    spec = plan.spec
    return thresholded_relu(
        z, threshold, variant=spec.variant, ceiling=spec.ceiling, surrogate=spec.surrogate
    )


def opened(plan: Plan, z: jax.Array, threshold: jax.Array) -> jax.Array:
    """The gate as a number, with the surrogate's gradient, of any shape."""
    return step(z, threshold, surrogate=plan.spec.surrogate)


def encode(x: jax.Array, weights: jax.Array) -> jax.Array:
    """``x @ weights.T``, in float32 at least: what is near a threshold is decided unrounded."""
    return jnp.matmul(x, weights.T, preferred_element_type=accumulator(x.dtype))


def biased(product: jax.Array, bias: jax.Array | None) -> jax.Array:
    """The pre-activations, from the product and as much of the bias as belongs to it."""
    return product if bias is None else product + bias.astype(product.dtype)


def find(plan: Plan, product, bias, threshold: jax.Array, *, apart: bool = False) -> Found:
    """The entries of ``product + bias``, which is not kept; with those of a window apart or not."""
    z = biased(product, bias)
    visited = opened = pack_last(~(z <= threshold))
    silent = None
    if plan.spec.surrogate is not None:
        inside = pack_last(variants.window(z, jnp.broadcast_to(threshold, z.shape), plan.spec))
        if apart:
            silent = groups_of(inside & ~opened)
        else:
            visited = opened | inside
    groups = groups_of(visited)
    number = groups.total if silent is None else groups.total + silent.total
    wide = number > plan.size
    window = None if silent is None else entries_of(plan, silent, wide, product, bias)
    return Found(opened, entries_of(plan, groups, wide, product, bias), window, wide)


def entries_of(plan: Plan, groups: Groups, wide: jax.Array, product, bias) -> Entries:
    """Lists entries with what stands there in ``product + bias``; none, if there are too many."""
    total = jnp.where(wide, 0, groups.total)
    by_row = listed(groups, total, plan.size)
    z = take(product.reshape(-1), by_row.group * product.shape[1] + by_row.member)
    if bias is not None:
        z = biased(z, take(bias, by_row.member))
    return Entries(groups, by_row, z, total)


def accumulator(dtype) -> jnp.dtype:
    """The type in which sums are kept."""
    return jnp.promote_types(dtype, jnp.float32)
