"""Which rows of a sharded array each process writes to a checkpoint, and which it reads.

Arrays are sharded over their first axis, or not at all.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxtrelu.sae._processes import Processes

#: The numbers of the first row and of the one after the last.
Span = tuple[int, int]


def divided(
    state: object, processes: Processes
) -> tuple[dict[str, np.ndarray], dict[str, dict[Span, np.ndarray]]]:
    """A pytree's leaves by name: what the first process writes, and the rows that this one does.

    Alone, a process writes all. Of several each writes the rows of its own devices; what several
    have is shared equally among them. NumPy arrays and numbers are the first one's.
    """
    whole, pieces = {}, {}
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        if processes.count == 1 or not isinstance(leaf, jax.Array) or not leaf.ndim:
            whole[name] = np.asarray(leaf)
        else:
            own = _rows_to_write(leaf)[processes.number]
            if own:
                pieces[name] = {span: _held(leaf, span) for span in own}
    return whole, pieces


def needed(leaf: Any) -> list[Span]:
    """The rows that the devices of this process have of an array, or will have."""
    shape, sharding = leaf.shape, getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not shape:
        return [(0, shape[0] if shape else 1)]
    indices = sharding.addressable_devices_indices_map(shape).values()
    return sorted({_span(index, shape) for index in indices})


def rows_of(
    pieces: Mapping[Span, np.ndarray], index: tuple[slice, ...] | None, shape: tuple[int, ...]
) -> np.ndarray:
    """What an index of a whole array asks for, of pieces one of which has it."""
    if not shape:
        (array,) = pieces.values()
        return array
    start, stop = _span(index, shape)
    first, piece = next((a, p) for (a, b), p in pieces.items() if a <= start and stop <= b)
    return piece[start - first : stop - first]


def _span(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> Span:
    start, stop, _ = (index or (slice(None),))[0].indices(shape[0])
    return start, stop


def _rows_to_write(array: jax.Array) -> dict[int, list[Span]]:
    """For each process, the rows that it writes. The same in all of them."""
    holders: dict[Span, set[int]] = {}
    devices: Mapping[Any, Any] = array.sharding.devices_indices_map(array.shape)
    for device, index in devices.items():
        holders.setdefault(_span(index, array.shape), set()).add(device.process_index)
    # Neighbours that the same processes hold are one.
    merged: list[tuple[int, int, set[int]]] = []
    for (start, stop), who in sorted(holders.items()):
        if merged and merged[-1][1] == start and merged[-1][2] == who:
            start = merged.pop()[0]
        merged.append((start, stop, who))
    own: dict[int, list[Span]] = {device.process_index: [] for device in devices}
    for start, stop, who in merged:
        cuts = [start + (stop - start) * i // len(who) for i in range(len(who) + 1)]
        for process, span in zip(sorted(who), pairwise(cuts), strict=True):
            if span[0] < span[1]:
                own[process].append(span)
    return own


def _held(array: jax.Array, span: Span) -> np.ndarray:
    """Some rows of an array that the devices of this process have."""
    start, stop = span
    parts = {}
    for shard in array.addressable_shards:
        first, last = _span(shard.index, array.shape)
        low, high = max(first, start), min(last, stop)
        if low < high and low not in parts:
            parts[low] = np.asarray(shard.data[low - first : high - first])
    return np.concatenate([parts[low] for low in sorted(parts)])
