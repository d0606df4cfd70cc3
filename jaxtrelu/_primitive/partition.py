"""Products on several devices, each of which computes its own part as if it were all there is.

A list of entries says nothing to a partitioner, so that automatic sharding would replicate it and
sum over the network in loops. Here a whole product, and a whole gradient, is one operation with a
rule: examples and features may be sharded, everything else is whole on each device. A device finds
and uses its own open entries; what is a sum over examples or features is then summed over the
devices once, as in the dense program.

One local function runs in three ways. Under automatic sharding inside a
`jax.experimental.custom_partitioning`, which leaves nothing behind where a program turns out to be
for one device. On an explicit mesh inside a `jax.shard_map`. Else as it is: inside a `shard_map`,
under `vmap`, on a TPU (where a custom partitioning does not compile: jax#38196), and where JAX sees
one device only, in which case nothing of this module is in the program.

Dimensions have letters: b examples, m features, w words of an example, c columns of a list, n a
list that is sharded over both (on explicit meshes), any other one that is whole everywhere. Of a
result, "bo/m" says that it has dimensions b and o and is a sum over m.

Words and lists need a shape that does not depend on the sharding, which nobody knows while a
program is traced. So features come in p = gcd(m, number of devices) parts; every part has its own
words and its own columns of the lists. However many devices share the features, that number
divides p, and a device has the columns of its parts.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    CompoundFactor,
    SdyShardingRule,
    custom_partitioning,
)
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxtrelu._primitive.packing import words_for
from jaxtrelu._primitive.rules import vary_together


class Axes(NamedTuple):
    """The axes of a mesh over which examples and features are sharded."""

    examples: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    def of(self, dimension: str) -> tuple[str, ...]:
        """Those over which a dimension is sharded."""
        if dimension in "bn":
            return self.examples + (self.features if dimension == "n" else ())
        return self.features if dimension in "mwc" else ()

    def spec(self, array: str) -> PartitionSpec:
        """The sharding of an array."""
        return PartitionSpec(*(self.of(dimension) or None for dimension in _dimensions(array)))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a call is laid out over devices, as far as that is known while it is traced."""

    examples: int
    features: int
    parts: int
    """p: into how many equal parts features can be divided."""
    axes: Axes | None = None
    """On an explicit mesh; None: the partitioner will know."""
    mesh: Any = None
    """The explicit mesh."""

    @property
    def words(self) -> int:
        """Words of an example: those of the parts."""
        return self.parts * words_for(self.features // self.parts)

    @property
    def devices(self) -> int:
        """Over how many devices the call is sharded, or can be."""
        if self.axes is None:
            return jax.device_count()
        return _devices(self.mesh, self.axes.examples + self.axes.features)

    @property
    def list(self) -> str:
        """The dimensions of a list that is part of the result."""
        return "bc" if self.axes is None else "n"

    def share(self, examples: int, features: int) -> "Layout":
        """The layout of one of so many equal shares."""
        return dataclasses.replace(
            self,
            examples=self.examples // examples,
            features=self.features // features,
            parts=self.parts // features,
        )


class Share(NamedTuple):
    """What of a call a device computes."""

    layout: Layout
    number: int
    """How many shares there are."""
    first_example: jax.Array | int
    first_feature: jax.Array | int


def layout_of(x: jax.Array, weights: jax.Array, axis: int = 0) -> Layout | None:
    """The layout of a call with these examples and weights; None: it is left as it is.

    `axis` is that of the features in the weights.
    """
    examples, features = x.shape[0], weights.shape[axis]
    if not all(isinstance(size, int) and size for size in (examples, features)):
        return None
    mesh = next((m for m in map(_mesh_of, (x, weights)) if not m.empty), _mesh_of(x))
    kinds = set(mesh.axis_types) | set(jax.sharding.get_abstract_mesh().axis_types)
    if AxisType.Manual in kinds:
        return None
    if AxisType.Explicit in kinds:
        axes = Axes(_axes_of(x, 0), _axes_of(weights, axis))
        axes = _usable(axes, mesh, examples, features)
        parts = _devices(mesh, axes.features)
        return Layout(examples, features, parts, axes, mesh)
    if jax.device_count() == 1 or jax.default_backend() == "tpu":
        return None
    return Layout(examples, features, math.gcd(features, jax.device_count()))


def _mesh_of(array: jax.Array):
    return jax.typeof(array).sharding.mesh


def _axes_of(array: jax.Array, dimension: int) -> tuple[str, ...]:
    """The axes of an explicit mesh over which a dimension is sharded."""
    return _names(jax.typeof(array).sharding.spec[dimension])


def _names(axes) -> tuple[str, ...]:
    if axes is None:
        return ()
    return axes if isinstance(axes, tuple) else (axes,)


def _devices(mesh, names: Iterable[str]) -> int:
    return math.prod(mesh.shape[name] for name in names)


def _usable(axes: Axes, mesh, examples: int, parts: int) -> Axes:
    """As many of the axes as divide examples and parts, none of them twice."""

    def dividing(names, size):
        kept = 1
        chosen = []
        for name in names:
            kept *= mesh.shape[name]
            if size % kept:
                break
            chosen.append(name)
        return tuple(chosen)

    rows = dividing(axes.examples, examples)
    return Axes(rows, dividing([n for n in axes.features if n not in rows], parts))


def distributed(layout: Layout, local: Callable, operands, taken, given):
    """``local(share, *operands)``, each device with its share; a pytree of arrays.

    Args:
      layout: that of the call.
      local: what a device computes, from a `Share` and the operands' parts.
      operands: a tuple of pytrees of arrays.
      taken: the dimensions of each, in pytrees of strings.
      given: the dimensions of the results, and over which ones they are sums.
    """
    flat, structure = jax.tree.flatten(operands)
    taken, given = jax.tree.leaves(taken), jax.tree.leaves(given)
    results: list = []

    def compute(share: Share, *flat) -> tuple[jax.Array, ...]:
        tree = local(share, *jax.tree.unflatten(structure, flat))
        leaves, shape = jax.tree.flatten(tree)
        results[:] = [shape]
        return tuple(leaves)

    def whole(*flat):
        return compute(Share(layout, 1, 0, 0), *flat)

    def of_device(axes: Axes, mesh, *flat):
        examples, features = (_devices(mesh, names) for names in axes)
        own = layout.share(examples, features)
        share = Share(
            own,
            examples * features,
            lax.axis_index(axes.examples) * own.examples if axes.examples else 0,
            lax.axis_index(axes.features) * own.features if axes.features else 0,
        )
        return tuple(
            _summed(axes, array, dimensions)
            for array, dimensions in zip(compute(share, *flat), given, strict=True)
        )

    if layout.axes is not None:
        body = functools.partial(of_device, layout.axes, layout.mesh)
        leaves = _on_mesh(layout, body, flat, taken, given)
    else:
        leaves = _by_partitioner(layout, whole, of_device, flat, taken, given)
    return jax.tree.unflatten(results[0], leaves)


def like(operands, dimensions):
    """The dimensions of operands in a named tuple, without those of operands that are None."""
    there = zip(operands, dimensions, strict=True)
    return type(dimensions)(*(None if operand is None else array for operand, array in there))


def _summed(axes: Axes, array: jax.Array, dimensions: str) -> jax.Array:
    over = [axis for dimension in _sums(dimensions) for axis in axes.of(dimension)]
    return lax.psum(array, tuple(over)) if over else array


def _dimensions(array: str) -> str:
    return array.partition("/")[0]


def _sums(array: str) -> str:
    return array.partition("/")[2]


# an explicit mesh


def _on_mesh(layout: Layout, body: Callable, operands, taken, given):
    axes = layout.axes
    assert axes is not None
    into = [axes.spec(array) for array in taken]
    operands = [
        jax.sharding.reshard(operand, NamedSharding(layout.mesh, spec))
        for operand, spec in zip(operands, into, strict=True)
    ]
    mapped = jax.shard_map(
        lambda *flat: body(*vary_together(*flat)),
        mesh=layout.mesh,
        in_specs=tuple(into),
        out_specs=tuple(axes.spec(array) for array in given),
    )
    return mapped(*operands)


def along_rows(function: Callable, arrays: Iterable[jax.Array], whole: int, results):
    """``function(*arrays)``, of which rows are independent; on an explicit mesh by device.

    Args:
      function: what is computed of arrays with the same leading axes.
      arrays: its operands.
      whole: how many trailing axes belong together: all others are rows.
      results: a pytree with the number of such axes of each result.
    """
    arrays = tuple(arrays)
    shardings = (jax.typeof(array).sharding for array in arrays)
    explicit = next((s for s in shardings if any(s.spec)), None)
    if explicit is None or AxisType.Manual in explicit.mesh.axis_types:
        return function(*arrays)
    mesh, lead = explicit.mesh, explicit.spec[:-whole]

    def spec(own: int) -> PartitionSpec:
        return PartitionSpec(*lead, *(None,) * own)

    sharding = NamedSharding(mesh, spec(whole))
    arrays = tuple(jax.sharding.reshard(array, sharding) for array in arrays)
    out = jax.tree.map(spec, results)
    return jax.shard_map(function, mesh=mesh, in_specs=sharding.spec, out_specs=out)(*arrays)


# automatic sharding


def _by_partitioner(layout: Layout, whole: Callable, of_device: Callable, operands, taken, given):
    def partition(mesh, operands, results):
        arrays = [*zip(taken, operands, strict=True), *zip(given, results, strict=True)]
        if mesh.empty:
            # Sharded by something without names: whole everywhere.
            devices = {device for _, array in arrays for device in array.sharding.device_set}
            mesh = Mesh(np.array(sorted(devices, key=lambda device: device.id)), ("all",))
            arrays = []
        axes = _usable(_found(arrays), mesh, layout.examples, layout.parts)
        into, out = (
            tuple(NamedSharding(mesh, axes.spec(array)) for array in arrays)
            for arrays in (taken, given)
        )
        return mesh, functools.partial(of_device, axes, mesh), out, into

    partitioned = custom_partitioning(whole)
    partitioned.def_partition(partition, sharding_rule=_rule(layout, taken, given))

    @custom_vmap
    def run(*operands):
        return partitioned(*operands)

    @run.def_vmap
    def _(size, batched, *operands):
        axes = tuple(0 if mapped else None for mapped in batched)
        results = jax.vmap(whole, in_axes=axes, axis_size=size)(*operands)
        return results, (True,) * len(results)

    return run(*operands)


def _found(arrays: Iterable[tuple[str, Any]]) -> Axes:
    """The axes over which examples and features are sharded: those of the first that are."""
    found: dict[str, tuple[str, ...]] = {}
    for dimensions, array in arrays:
        for dimension, axes in zip(_dimensions(dimensions), array.sharding.spec, strict=False):
            if _names(axes) and (kind := "m" if dimension in "mwc" else dimension) in "bm":
                found.setdefault(kind, _names(axes))
    return Axes(found.get("b", ()), found.get("m", ()))


def _rule(layout: Layout, taken, given) -> Callable:
    """What may be sharded, as Shardy is told: b, and p, of which m, w and c are multiples."""

    def rule(mesh, operands, results):
        sizes: dict[str, Any] = {"p": layout.parts}
        # Else a mesh of some of the devices (6 of 8), whose axes the parts cannot follow.
        follow = not any(layout.parts % n and layout.features % n == 0 for n in mesh.shape.values())

        def factor(dimension: str, size: int):
            if dimension not in "mwc" or layout.parts == 1 or not follow:
                return dimension
            sizes[dimension] = size // layout.parts  # stays together
            return CompoundFactor("p", dimension) if sizes[dimension] > 1 else "p"

        into, out = (
            tuple(
                ArrayMapping(*map(factor, _dimensions(array), of.shape))
                for array, of in zip(arrays, types, strict=True)
            )
            for arrays, types in ((taken, operands), (given, results))
        )
        dimensions = [dimension for array in (*into, *out) for dimension in array]
        # In the order in which Shardy counts them.
        used = dict.fromkeys(f for d in dimensions for f in ([d] if isinstance(d, str) else d))
        alone = {dimension for dimension in dimensions if isinstance(dimension, str)}
        return SdyShardingRule(
            into,
            out,
            need_replication_factors=tuple(factor for factor in used if factor not in ("b", "p")),
            **{factor: sizes[factor] for factor in used if factor not in alone},
        )

    return rule


# words and lists, whose shapes do not depend on the sharding


def columns_for(layout: Layout, entries: int) -> int:
    """Entries of an example that lists hold: as many for each part of the features."""
    return layout.parts * -(-entries // layout.parts)


def to_columns(words: jax.Array, layout: Layout) -> jax.Array:
    """Words of a device's features, in the columns that are kept for its parts."""
    return jnp.pad(words, ((0, 0), (0, layout.words - words.shape[1])))


def from_columns(words: jax.Array, layout: Layout) -> jax.Array:
    """The inverse of `to_columns`."""
    return words[:, : words_for(layout.features)]


def to_rows(entries: jax.Array, layout: Layout) -> jax.Array:
    """A list as a matrix, with a row for each example to which no meaning is attached."""
    return entries.reshape(layout.examples, -1)


def to_list(entries: jax.Array, layout: Layout) -> jax.Array:
    """A list of a device or a whole one, in the dimensions of `layout.list`."""
    return entries if layout.axes is not None else to_rows(entries, layout)


def from_list(array: jax.Array) -> jax.Array:
    """The inverse of `to_list`."""
    return array if array.ndim == 1 else array.reshape(-1)
