"""Training examples as the rows of an array, in memory or in a file larger than memory.

A batch is a pure function of the seed and the number of the step, so a run that is killed and
resumed sees the same examples as one that is not.
"""

import hashlib
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_CHUNK_BYTES = 1 << 20  # read at once, in one piece
_GROUP_BYTES = 1 << 28  # shuffled together, in memory


class Statistics(NamedTuple):
    """What a pass over all rows finds."""

    mean_norm: float
    """Mean of ‖x‖, in the units of the data."""
    mean_square_norm: float
    """Mean of ‖x‖², in those units squared."""


class Rows:
    """Batches of the rows of a matrix, reshuffled in every epoch.

    An array in memory is shuffled whole. Of a memory-mapped one, pieces of about a megabyte are
    shuffled, and the rows inside groups of about 256 MB of them: every byte is read once in an
    epoch, in long reads, and memory holds one group. (A few rows that fill neither a batch nor a
    group are left out of an epoch, other ones each time.)

    Args:
      array: (n, d) of floating point or integer numbers; an `np.memmap` is not read into memory.
      name: what to call it in messages.
      seed: of the shuffling.
      group_bytes: size of the groups of a memory-mapped array.

    Raises:
      TypeError: the numbers are neither floating point nor integers.
      ValueError: the array is not a matrix, or empty.
    """

    def __init__(
        self,
        array: np.ndarray,
        name: str = "the data",
        seed: int = 0,
        *,
        group_bytes: int = _GROUP_BYTES,
    ):
        # bfloat16, a foreign type to NumPy, is of kind "V": its bytes mean nothing here.
        if array.dtype.kind not in "fiu":
            raise TypeError(
                f"{name} should hold floating point numbers, but holds {array.dtype}. "
                "Pass float32 or float16, converted with .astype(np.float32)."
            )
        if array.ndim != 2:
            raise ValueError(
                f"{name} should have one example per row, shape (examples, dimension), but has "
                f"shape {array.shape}. Pass array.reshape(-1, array.shape[-1])."
            )
        if 0 in array.shape:
            raise ValueError(f"{name} is empty: its shape is {array.shape}.")
        self.array, self.name, self.seed = array, name, seed
        row_bytes = array.shape[1] * array.dtype.itemsize
        mapped = isinstance(array, np.memmap)
        self._chunk = max(1, _CHUNK_BYTES // row_bytes) if mapped else 1
        chunks = math.ceil(len(array) / self._chunk)
        # Two at least: one alone could be the short last piece.
        fitting = max(2, group_bytes // (row_bytes * self._chunk)) if mapped else chunks
        self._group_chunks = min(chunks, fitting)
        self._groups = max(1, chunks // self._group_chunks)
        self._cached: tuple[tuple[int, int], np.ndarray] | None = None

    @property
    def dimension(self) -> int:
        """d, the number of columns."""
        return self.array.shape[1]

    def __len__(self) -> int:
        return len(self.array)

    @property
    def shuffled_together(self) -> int:
        """How many rows are shuffled together, at least: the largest possible batch."""
        if self._groups == 1:
            return len(self)
        # The short last piece may be in any group: count as if it were in this one.
        return (self._group_chunks - 1) * self._chunk + 1

    def fingerprint(self) -> str:
        """A short text that changes with the data: shape, dtype and a sample of the bytes."""
        digest = hashlib.sha256(f"{self.array.shape} {self.array.dtype}".encode())
        for row in np.linspace(0, len(self.array) - 1, 64).astype(int):
            digest.update(np.ascontiguousarray(self.array[row]).tobytes())
        return digest.hexdigest()[:16]

    def statistics(self, advance: Callable[[int], None] | None = None) -> Statistics:
        """One pass over all rows: checks that they are finite, and measures their norms.

        Args:
          advance: called with the number of rows done since the last call.

        Raises:
          ValueError: some rows hold NaN or infinity; the message names them.
        """
        bad: list[int] = []
        norm = square = 0.0
        rows = max(1, (16 * _CHUNK_BYTES) // (self.dimension * 8))
        for start in range(0, len(self.array), rows):
            block = np.asarray(self.array[start : start + rows], np.float64)
            squares = np.einsum("nd,nd->n", block, block)
            bad.extend((start + np.flatnonzero(~np.isfinite(squares))).tolist())
            norm += float(np.sqrt(squares).sum())
            square += float(squares.sum())
            if advance:
                advance(len(block))
        self._refuse(np.asarray(bad))
        return Statistics(norm / len(self), square / len(self))

    def batch(self, step: int, size: int) -> np.ndarray:
        """The batch of step `step`, `size` rows of the data as they are, unscaled.

        Args:
          step: the number of the step, from 0.
          size: the number of rows.

        Returns:
          float32, (size, d).

        Raises:
          ValueError: the data has fewer rows than `size`, or a row of the batch is not finite.
        """
        whole = self.shuffled_together
        per_group = whole // size
        if not per_group:
            raise ValueError(
                f"a batch of {size} examples is more than the {whole} rows of {self.name} that "
                "are shuffled together. Pass a smaller batch size."
            )
        group, place = divmod(step, per_group)
        rows = self._group(*divmod(group, self._groups))[place * size : (place + 1) * size]
        if isinstance(self.array, np.memmap):
            return rows
        picked = np.asarray(self.array[rows], np.float32)
        if not np.isfinite(picked).all():
            self._refuse(rows[~np.isfinite(picked).all(axis=1)])
        return picked

    def _group(self, epoch: int, group: int) -> np.ndarray:
        """Shuffled rows of a group; of an array in memory, their numbers."""
        if self._cached is None or self._cached[0] != (epoch, group):
            self._cached = ((epoch, group), self._shuffled(epoch, group))
        return self._cached[1]

    def _shuffled(self, epoch: int, group: int) -> np.ndarray:
        chunks = math.ceil(len(self) / self._chunk)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(chunks)
        chosen = order[group * self._group_chunks :][: self._group_chunks]
        if not isinstance(self.array, np.memmap):
            return chosen
        starts = chosen * self._chunk
        parts = [np.asarray(self.array[s : s + self._chunk], np.float32) for s in starts]
        rows = np.concatenate(parts)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            numbers = np.concatenate(
                [np.arange(s, s + len(p)) for s, p in zip(starts, parts, strict=True)]
            )
            self._refuse(numbers[~finite])
        shuffle = np.random.default_rng([self.seed, 1, epoch, group])
        return rows[shuffle.permutation(len(rows))]

    def _refuse(self, bad: np.ndarray) -> None:
        if not len(bad):
            return
        named = ", ".join(str(row) for row in sorted(bad.tolist())[:10])
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        noun = "row" if len(bad) == 1 else "rows"
        raise ValueError(
            f"{self.name} holds NaN or infinity in {noun} {named}{more} (counted from 0). "
            "Remove or repair these rows; training on them would turn every weight into NaN."
        )


def open_rows(path: str | os.PathLike, seed: int = 0) -> Rows:
    """A user's `.npy` file of activations, memory-mapped: it may be larger than memory.

    Args:
      path: of the file, which holds a matrix with one example per row.
      seed: of the shuffling.

    Returns:
      `Rows` that read the file as they are asked for.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a `.npy` file of a plain matrix; the message says what it is.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}.") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{os.fspath(path)!r} cannot be read as a .npy file: {error}. "
            "Pass a file that numpy.save wrote, with one example per row."
        ) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(
            f"{os.fspath(path)!r} is an archive of several arrays. Pass a .npy file with one."
        )
    return Rows(array, os.path.basename(os.fspath(path)), seed)
