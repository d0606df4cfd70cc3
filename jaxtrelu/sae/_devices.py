"""A training run over the devices of a mesh, of one process or of several.

Every process runs the same program. Examples and features are shared among the devices, and a
process holds what its own devices need.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxtrelu.sae._processes import Processes
from jaxtrelu.sae._rows import Rows

T = TypeVar("T")
#: The names of the axes of a mesh, and what is sharded over each.
AXES = ("examples", "features")


class Devices:
    """Where the arrays of a run are.

    Args:
      mesh: with one or both of the axes "examples" and "features"; None: wherever JAX puts them.

    Attributes:
      mesh: the same.
      processes: those of the run.
    """

    def __init__(self, mesh: Mesh | None):
        self.mesh = mesh
        self.processes = Processes(several=mesh is not None)
        if mesh is None:
            return
        if unknown := [name for name in mesh.axis_names if name not in AXES]:
            raise ValueError(
                f"`mesh` should have the axes 'examples' and 'features', or one of them, but has "
                f"{unknown[0]!r}."
            )
        if any(kind != AxisType.Auto for kind in mesh.axis_types):
            raise ValueError(
                "`mesh` should have automatic axes. Pass jax.make_mesh(sizes, names, "
                "axis_types=(AxisType.Auto,) * len(sizes))."
            )

    def check(self, batch: int, features: int) -> None:
        """Raises ValueError where examples or features cannot be shared equally."""
        if self.mesh is None:
            return
        for axis, size, what in zip(AXES, (batch, features), ("batch", "dictionary"), strict=True):
            parts = self.mesh.shape.get(axis, 1)
            if size % parts:
                raise ValueError(
                    f"a {what} of {size} {axis} cannot be shared equally by {parts} devices. Pass "
                    f"a multiple of {parts}."
                )

    def _sharding(self, *axes: str | None) -> NamedSharding:
        assert self.mesh is not None
        there = (axis if axis in self.mesh.axis_names else None for axis in axes)
        return NamedSharding(self.mesh, PartitionSpec(*there))

    def batch(self, rows: Rows, step: int, size: int) -> Any:
        """The batch of a step, over the devices: each process reads the rows of its own."""
        if self.mesh is None:
            return rows.batch(step, size)

        @functools.cache  # devices that share features have the same rows
        def part(start: int, stop: int) -> np.ndarray:
            return rows.batch(step, size, part=slice(start, stop))

        return jax.make_array_from_callback(
            (size, rows.width),
            self._sharding("examples"),
            lambda index: part(*(index or (slice(None),))[0].indices(size)[:2]),
        )

    def shapes(self, make: Callable[[Any], T], sample: Any, features: int) -> T:
        """What `make` would make of a sample: what has an entry for each feature is shared."""
        found = jax.eval_shape(make, sample)
        if self.mesh is None:
            return found

        def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            own = leaf.shape[:1] == (features,)
            sharding = self._sharding(*["features"] if own else [])
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(placed, found)

    def made(self, make: Callable[[Any], T], sample: Any, shapes: T) -> T:
        """What `make` makes of a sample, as `shapes` has it: on each device what it holds."""
        if self.mesh is None:
            return make(sample)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        return jax.jit(make, out_shardings=shardings)(sample)

    def placed(self, state: T, shapes: T) -> T:
        """A state whose arrays are sharded as `shapes` has them."""
        if self.mesh is None:
            return state

        def leaf(array: Any, wanted: Any) -> Any:
            if array.sharding.is_equivalent_to(wanted.sharding, array.ndim):
                return array
            return jax.jit(lambda array: array, out_shardings=wanted.sharding)(array)

        return jax.tree.map(leaf, state, shapes)

    def whole(self, tree: T) -> T:
        """Arrays of the run, whole and in every process."""
        if self.mesh is None:
            return tree
        everywhere = jax.jit(lambda tree: tree, out_shardings=self._sharding())(tree)
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), everywhere)
