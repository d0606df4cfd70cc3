"""Training examples as the rows of an array, in memory or in a file larger than memory.

A batch is a pure function of the seed and the number of the step, so a run that is killed and
resumed sees the same examples as one that is not.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtrelu.sae._shards import BFLOAT16, Shards, open_shards, open_tensor

_CHUNK_BYTES = 1 << 20  # read at once, in one piece
_GROUP_BYTES = 1 << 28  # shuffled together, in memory
_PIECES_ASIDE = 128  # that rows are kept aside in, at least: data are seldom alike from end to end


class Statistics(NamedTuple):
    """What a pass over all rows finds. Rows that are kept aside count for the fingerprint alone."""

    mean_norm: float
    """Mean of ‖x‖, in the units of the data."""
    mean_square_norm: float
    """Mean of ‖x‖², in those units squared."""
    variance: float
    """Mean of ‖x − mean of x‖², in the same."""
    fingerprint: str
    """A checksum of shape, dtype and every byte."""


class Rows:
    """Batches of the rows of a matrix, reshuffled in every epoch.

    An array in memory is shuffled whole, and so is a file of up to 256 MB: the same batches come of
    both. Of a larger memory-mapped one, pieces of about a megabyte are
    shuffled, and the rows inside groups of about 256 MB of them: every byte is read once in an
    epoch, in long reads, and memory holds one group. (A few rows that fill neither a batch nor a
    group are left out of an epoch, other ones each time.)

    Args:
      array: (n, d) of floating point (bfloat16, too) or integer numbers; an `np.memmap`, and what
        `open_rows` finds in files, is not read into memory.
      name: what to call it in messages.
      seed: of the shuffling.
      held_out: how many rows, about, are kept aside and never in a batch: `held_out_rows`, in
        pieces of less than a hundredth of them, spread evenly over the data. Which ones does not
        depend on the seed.
      group_bytes: size of the groups of a memory-mapped array, and that of the largest one that is
        shuffled whole.

    Raises:
      TypeError: the numbers are neither floating point nor integers.
      ValueError: the array is not a matrix, or empty.
    """

    def __init__(
        self,
        array: np.ndarray | Shards,
        name: str = "the data",
        seed: int = 0,
        *,
        held_out: int = 0,
        group_bytes: int = _GROUP_BYTES,
    ):
        if array.dtype.kind not in "fiu" and array.dtype != BFLOAT16:
            raise TypeError(
                f"{name} should hold floating point numbers, but holds {array.dtype}. "
                f"{_conversion(array.dtype)}"
            )
        if array.ndim != 2:
            raise ValueError(
                f"{name} should have one example per row, shape (examples, dimension), but has "
                f"shape {array.shape}. Pass array.reshape(-1, array.shape[-1])."
            )
        if 0 in array.shape:
            raise ValueError(f"{name} is empty: its shape is {array.shape}.")
        self.array, self.name, self.seed, self.held_out = array, name, seed, held_out
        if not 0 <= held_out < len(array):
            raise ValueError(
                f"`held_out` should leave some of the {len(array)} rows of {name} to train on, but "
                f"is {held_out!r}."
            )
        row_bytes = array.shape[1] * array.dtype.itemsize
        in_files = isinstance(array, np.memmap | Shards)
        mapped = self._mapped = in_files and len(array) * row_bytes > group_bytes
        piece = max(1, _CHUNK_BYTES // row_bytes)
        if held_out:  # in pieces small enough to come from all over the data
            piece = max(1, min(piece, held_out // _PIECES_ASIDE))
        pieces = math.ceil(len(array) / piece)
        aside = _spread(pieces, max(1, round(held_out / piece)) if held_out else 0)
        # The same rows of a file as of the array that it holds.
        self._chunk = piece if mapped else 1
        if not mapped:
            aside = _rows_of(aside, piece, len(array))
        self._aside = np.sort(aside)
        chunks = math.ceil(len(array) / self._chunk)
        self._kept = np.setdiff1d(np.arange(chunks), self._aside, assume_unique=True)
        # Two at least: one alone could be the short last piece.
        fitting = max(2, group_bytes // (row_bytes * self._chunk)) if mapped else len(self._kept)
        self._group_chunks = min(len(self._kept), fitting)
        self._groups = max(1, len(self._kept) // self._group_chunks)
        self._cached: tuple[tuple[int, int], np.ndarray] | None = None

    @property
    def order(self) -> str:
        """What the order of the rows depends on, beside the seed: how they are shuffled."""
        if not self._mapped:
            return "shuffled whole"
        return f"shuffled in pieces of {self._chunk} rows, {self._group_chunks} together"

    @property
    def held_out_rows(self) -> np.ndarray:
        """The rows that are kept aside: float32, (k, d), in the order of the data."""
        return np.asarray(self.array[_rows_of(self._aside, self._chunk, len(self))], np.float32)

    @property
    def training_rows(self) -> int:
        """How many rows batches are made of."""
        return len(self) - len(_rows_of(self._aside, self._chunk, len(self)))

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
            return self.training_rows
        # The short last piece may be in any group: count as if it were in this one.
        return (self._group_chunks - 1) * self._chunk + 1

    def fingerprint(self) -> str:
        """A text that changes with the data: a checksum of its shape, dtype and every byte.

        `statistics` finds it in the same pass as the rest.
        """
        digest = self._digest()
        for _, block in self._blocks():
            digest.update(np.ascontiguousarray(block).view(np.uint8))
        return digest.hexdigest()[:32]

    def statistics(self, advance: Callable[[int], None] | None = None) -> Statistics:
        """One pass over all rows: checks that they are finite, and measures them.

        Args:
          advance: called with the number of rows done since the last call.

        Returns:
          `Statistics`.

        Raises:
          ValueError: some rows hold NaN or infinity; the message names them.
        """
        bad: list[int] = []
        norm = square = 0.0
        count = 0
        total, centre = np.zeros(self.dimension), np.zeros(self.dimension)
        around = 0.0
        aside = np.zeros(math.ceil(len(self) / self._chunk), bool)
        aside[self._aside] = True
        digest = self._digest()
        for start, block in self._blocks():
            digest.update(np.ascontiguousarray(block).view(np.uint8))
            exact = np.asarray(block, np.float64)
            squares = np.einsum("nd,nd->n", exact, exact)
            bad.extend((start + np.flatnonzero(~np.isfinite(squares))).tolist())
            if len(self._aside):
                used = ~aside[np.arange(start, start + len(block)) // self._chunk]
                exact, squares = exact[used], squares[used]
            if not count and len(exact):
                centre = exact.mean(axis=0)  # sums around it lose no digits
            moved = exact - centre
            total += moved.sum(axis=0)
            around += float(np.einsum("nd,nd->", moved, moved))
            norm += float(np.sqrt(squares).sum())
            square += float(squares.sum())
            count += len(exact)
            if advance:
                advance(len(block))
        self._refuse(np.asarray(bad))
        variance = max(0.0, around / count - float(total @ total) / count**2)
        return Statistics(norm / count, square / count, variance, digest.hexdigest()[:32])

    def _digest(self) -> Any:
        return hashlib.blake2b(f"{self.array.shape} {self.array.dtype}".encode())

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        rows = max(1, (16 * _CHUNK_BYTES) // (self.dimension * 8))
        for start in range(0, len(self.array), rows):
            yield start, self.array[start : start + rows]

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
        self.check_batch(size)
        per_group = self.shuffled_together // size
        group, place = divmod(step, per_group)
        rows = self._group(*divmod(group, self._groups))[place * size : (place + 1) * size]
        if self._mapped:
            return rows
        picked = np.asarray(self.array[rows], np.float32)
        if not np.isfinite(picked).all():
            self._refuse(rows[~np.isfinite(picked).all(axis=1)])
        return picked

    def check_batch(self, size: int) -> None:
        """Refuses batches that are too large.

        Args:
          size: the number of rows of a batch.

        Raises:
          ValueError: the data has fewer rows than `size` that are shuffled together.
        """
        if size > self.shuffled_together:
            raise ValueError(
                f"a batch of {size} examples is more than the {self.shuffled_together} rows of "
                f"{self.name} that are shuffled together. Pass a smaller batch size."
            )

    def _group(self, epoch: int, group: int) -> np.ndarray:
        """Shuffled rows of a group; of an array in memory, their numbers."""
        if self._cached is None or self._cached[0] != (epoch, group):
            self._cached = ((epoch, group), self._shuffled(epoch, group))
        return self._cached[1]

    def _shuffled(self, epoch: int, group: int) -> np.ndarray:
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self._kept))
        chosen = self._kept[order[group * self._group_chunks :][: self._group_chunks]]
        if not self._mapped:
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


def _spread(pieces: int, count: int) -> np.ndarray:
    """The numbers of `count` of the pieces, one at random from each of as many equal stretches.

    Not from all pieces alike: where a file is one source after another, as the two photographs of
    the demo are, 16 pieces that were drawn so held one source in 6 : 10.
    """
    if not count:
        return np.zeros(0, int)
    edges = np.arange(count + 1) * pieces // count
    return np.random.default_rng(0x68656C64).integers(edges[:-1], edges[1:])


def _rows_of(pieces: np.ndarray, size: int, count: int) -> np.ndarray:
    """The numbers of the rows in some pieces of `count` rows."""
    rows = (pieces[:, None] * size + np.arange(size)).reshape(-1)
    return rows[rows < count]


def open_rows(path: str | os.PathLike, seed: int = 0, *, held_out: int = 0) -> Rows:
    """A user's file or folder of activations, memory-mapped: it may be larger than memory.

    Args:
      path: of a `.npy` or `.safetensors` file, with one example per row; or of a folder of such
        files, of one width and dtype, which are taken as one matrix in the order of their names (2
        before 10), and shuffled across files. float16 and bfloat16 are read as they
        are; a `.npy` file of two bytes without a dtype is bfloat16, as numpy.save leaves it.
      seed: of the shuffling.
      held_out: how many rows, about, are kept aside; see `Rows`.

    Returns:
      `Rows` that read the file as they are asked for.

    Raises:
      FileNotFoundError: there is no such file.
      TypeError: it holds no numbers.
      ValueError: it is no such file; the message says what it is.
    """
    name = os.fspath(path)
    if os.path.isdir(path):
        shards = open_shards(Path(path), _open_npy)
        return Rows(shards, os.path.basename(os.path.normpath(name)), seed, held_out=held_out)
    if Path(name).suffix == ".safetensors" and os.path.isfile(path):
        array = open_tensor(Path(path))
        return Rows(array, os.path.basename(name), seed, held_out=held_out)
    return Rows(_open_npy(path), os.path.basename(name), seed, held_out=held_out)


def _open_npy(path: str | os.PathLike) -> np.ndarray:
    """The array of a .npy file, memory-mapped."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as stream:
            start = stream.read(1024)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {name!r}.") from None
    except OSError as error:
        raise ValueError(
            f"{name!r} cannot be read: {(error.strerror or str(error)).lower()}."
        ) from None
    if start[:6] != b"\x93NUMPY":
        raise ValueError(f"{name!r} is no .npy file: {_kind(start, name)}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a header is text that NumPy evaluates: anything can come of it
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        if "Object arrays" in reason or "Python objects" in reason:
            reason = "it holds pickled objects, which are never loaded"
        raise ValueError(
            f"{name!r} cannot be read as a .npy file: {reason}. "
            "Pass a file that numpy.save wrote, with one example per row."
        ) from None
    # As numpy.save leaves bfloat16: two bytes without a meaning.
    plain = array.dtype.type is np.void and array.dtype.names is None
    return array.view(BFLOAT16) if plain and array.dtype.itemsize == 2 else array


_KINDS = {
    b"PK": "it is a zip archive, such as an .npz of several arrays; numpy.save writes one.",
    b"\x80": "it is a pickle, which is never loaded; save the array with numpy.save.",
    b"PAR1": "it is a Parquet file; numpy.save(…, frame.to_numpy()) makes one.",
    b"\x89HDF": "it is an HDF5 file; numpy.save(…, file[name][:]) makes one.",
}


def _kind(start: bytes, name: str) -> str:
    """What a file is that is no .npy file, and what to do about it."""
    if not start:
        return "it is empty."
    for magic, text in _KINDS.items():
        if start.startswith(magic):
            return text
    if start[8:9] == b"{":
        return "it is a safetensors file; give it a name that ends with .safetensors."
    if b"\0" not in start:
        for mark, sign in (("commas", ","), ("tabs", "\t"), ("semicolons", ";")):
            if sign.encode() in start:
                return (
                    f"it is a text with {mark}, such as a CSV; "
                    f"np.save('data.npy', np.loadtxt({name!r}, delimiter={sign!r})) makes one "
                    "(skiprows=1 leaves a heading out)."
                )
        return f"it is a text; np.save('data.npy', np.loadtxt({name!r})) makes one, of numbers."
    return "it begins as no known file does; pass a file that numpy.save wrote."


def _conversion(dtype: np.dtype) -> str:
    """What to do with an array of a dtype that is not taken."""
    if dtype.type is np.void and dtype.itemsize == 2 and dtype.names is None:
        return "If these are bfloat16 numbers, pass array.view(ml_dtypes.bfloat16)."
    return "Pass float32 or float16, converted with .astype(np.float32)."
