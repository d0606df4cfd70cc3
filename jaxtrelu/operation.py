"""Binding the primitive: operands that vary together, and the packing that fits their sharding."""

import math
import sys

import jax
from jax import lax

from jaxtrelu import _compat
from jaxtrelu.packing import Packing, choose_packing
from jaxtrelu.primitive import thresholded_p
from jaxtrelu.variants import Spec


def thresholded(x: jax.Array, threshold: jax.Array, spec: Spec) -> jax.Array:
    """Binds the primitive for canonical operands: `threshold` is 0-d or has x's rank."""
    if "jax.experimental.jet" in sys.modules:
        # Importing jet would cost more than importing this library, so it is not done ahead.
        from jaxtrelu import taylor

        taylor.register_rules()
    x, threshold = vary_together(x, threshold)
    (value,) = thresholded_p.bind(
        x, threshold, spec=spec, packing=packing_of(x), outputs=("value",)
    )
    return value


def vary_together(*operands: jax.Array) -> list[jax.Array]:
    """Inside a `shard_map`, lets all operands vary over every mesh axis that any varies over."""
    axes = frozenset().union(*map(_compat.varying_axes, operands))
    return [
        lax.pcast(o, tuple(missing), to="varying")
        if (missing := axes - _compat.varying_axes(o))
        else o
        for o in operands
    ]


def packing_of(x: jax.Array) -> Packing:
    """The packing of x's gate, given how many parts each axis has on an explicit mesh."""
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return choose_packing(x.shape)
    names = [axis if isinstance(axis, tuple) else (axis,) for axis in sharding.spec]
    shards = [math.prod(sharding.mesh.shape[n] for n in axis if n is not None) for axis in names]
    return choose_packing(x.shape, tuple(shards))
