"""A training run over the devices of a mesh, of one process or of several.

Every process runs the same program. Examples and features are shared among the devices; what is
written (checkpoints, results) is whole, and written by the first process. So a run may go on with
another number of processes, or on one device.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxtrelu.sae._checkpoints import Checkpoints

T = TypeVar("T")
#: The names of the axes of a mesh, and what is sharded over each.
AXES = ("examples", "features")


class Devices:
    """Where the arrays of a run are.

    Args:
      mesh: with one or both of the axes "examples" and "features"; None: wherever JAX puts them.
    """

    def __init__(self, mesh: Mesh | None):
        self.mesh = mesh
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

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return jax.process_index() == 0

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        return self.mesh is not None and jax.process_count() > 1

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

    def batch(self, rows: np.ndarray) -> Any:
        """A batch that all processes have, over the devices: each keeps its own rows."""
        if self.mesh is None:
            return rows
        return _spread(rows, self._sharding("examples"))

    def state(self, state: T, features: int) -> T:
        """A state that all processes have: what has an entry for each feature is shared."""
        if self.mesh is None:
            return state

        def placed(leaf: Any) -> Any:
            own = np.ndim(leaf) and np.shape(leaf)[0] == features
            return _spread(leaf, self._sharding(*["features"] if own else []))

        return jax.tree.map(placed, state)

    def whole(self, tree: T) -> T:
        """Arrays of the run, whole and in every process."""
        if self.mesh is None:
            return tree
        everywhere = jax.jit(lambda tree: tree, out_shardings=self._sharding())(tree)
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), everywhere)

    def agreed(self, attempt: Callable[[], T]) -> T | None:
        """What the first process is told to do, and the others wait for. None in those.

        Raises what the attempt raises, in every process, so that none is left waiting.
        """
        if not self.several:
            return attempt()
        result, error = None, None
        if self.first:
            try:
                result = attempt()
            except Exception as raised:
                error = raised
        failed = multihost_utils.broadcast_one_to_all(np.array(error is not None))
        if error is not None:
            raise error
        if failed:
            raise ValueError("the first process has stopped, and says why.")
        return result

    def restored(self, store: Checkpoints, fresh: Any) -> Any:
        """What `Checkpoints.restore` finds, the same in every process."""
        found = store.restore(fresh)
        if self.several:
            step = np.asarray(jax.device_get(found.state[0].step))
            steps = multihost_utils.process_allgather(step)
            if len(set(np.ravel(steps).tolist())) > 1:
                raise ValueError(
                    f"the processes find checkpoints of different steps in {store.folder} "
                    f"({', '.join(map(str, np.ravel(steps)))}): it has to be one folder that all "
                    "of them see."
                )
        return found


def _spread(array: Any, sharding: NamedSharding) -> jax.Array:
    held = np.asarray(array)
    return jax.make_array_from_callback(held.shape, sharding, lambda index: held[index])
