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

# Share of open entries from which on dense products are faster, on a CPU (see the benchmark).
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


class Found(NamedTuple):
    """The entries of a latent (B, m): open ones, and those inside a surrogate's window."""

    opened: jax.Array
    """Words of the open entries alone."""
    rows: Groups
    by_row: List
    there: jax.Array
    """Which slots of the lists are used."""
    z: jax.Array
    """The pre-activation of each entry."""
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


def find(plan: Plan, product: jax.Array, bias: jax.Array | None, threshold: jax.Array) -> Found:
    """The entries of ``product + bias``, which is not kept."""
    z = biased(product, bias)
    support = ~(z <= threshold)
    opened = pack_last(support)
    if plan.spec.surrogate is None:
        rows = groups_of(opened)
    else:
        support |= variants.window(z, jnp.broadcast_to(threshold, z.shape), plan.spec)
        rows = groups_of(pack_last(support))
    wide = rows.total > plan.size
    total = jnp.where(wide, 0, rows.total)
    by_row = listed(rows, total, plan.size)
    kept = take(product.reshape(-1), by_row.group * product.shape[1] + by_row.member)
    if bias is not None:
        kept = biased(kept, take(bias, by_row.member))
    there = jnp.arange(plan.size, dtype=jnp.int32) < total
    return Found(opened, rows, by_row, there, kept, wide)


def accumulator(dtype) -> jnp.dtype:
    """The type in which sums are kept."""
    return jnp.promote_types(dtype, jnp.float32)
