"""Examples with targets of their own: what a transcoder reads, and what it should make of it."""

from typing import Any

import numpy as np

from jaxtrelu.sae._rows import Part, Rows
from jaxtrelu.sae._shards import Shards


class Pairs(Rows):
    """Batches of pairs of rows, reshuffled in every epoch: as `Rows`, of two matrices at once.

    A batch has the columns of both, the target's after the example's, so that they are read,
    shuffled and kept aside together; `split` takes them apart.

    Args:
      rows: the examples, (n, d); their seed and the rows kept aside count.
      targets: (n, d_out), of `rows_of`; of which the array and the name count.

    Raises:
      ValueError: there are not as many targets as examples.
    """

    def __init__(self, rows: Rows, targets: Rows):
        if len(targets) != len(rows):
            raise ValueError(
                f"`targets` should have a row for each of the {len(rows):,} rows of {rows.name}, "
                f"but {targets.name} has {len(targets):,}."
            )
        joined: Any = _Beside(rows.array, targets.array)
        super().__init__(
            joined,
            rows.name,
            rows.seed,
            held_out=rows.held_out,
            group_bytes=rows._group_bytes,
        )
        self.array, self.targets, self.targets_name = rows.array, targets.array, targets.name

    @property
    def _parts(self) -> tuple[Part, ...]:
        d = self.dimension
        return (
            Part(self.name, self.array, slice(None, d)),
            Part(self.targets_name, self.targets, slice(d, None)),
        )

    @property
    def held_out_targets(self) -> np.ndarray:
        """The targets of the rows that are kept aside: float32, (k, d_out)."""
        return np.asarray(self.targets[self._numbers_aside], np.float32)

    def split(self, batch: Any) -> tuple[Any, Any]:
        """The examples of a batch, (size, d), and their targets, (size, d_out)."""
        return batch[:, : self.dimension], batch[:, self.dimension :]


class _Beside:
    """Two matrices as one, beside each other; what is asked for is read.

    It has what `Rows` needs of an array, as `Shards` has.
    """

    ndim = 2

    def __init__(self, left: np.ndarray | Shards, right: np.ndarray | Shards):
        self._both = left, right
        self.shape = (len(left), left.shape[1] + right.shape[1])
        self.in_files = any(
            getattr(part, "in_files", isinstance(part, np.memmap)) for part in self._both
        )
        # No number of a part is rounded: training takes float32, and measures in float64.
        narrow = all(part.dtype.itemsize <= 2 or part.dtype == np.float32 for part in self._both)
        self.dtype = np.dtype(np.float32 if narrow else np.float64)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The rows of a slice without a step, or of an array of numbers."""
        return np.concatenate([np.asarray(part[rows], self.dtype) for part in self._both], axis=1)
