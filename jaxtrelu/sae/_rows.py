"""Training examples as the rows of an array, in memory or in a file larger than memory.

A batch is a pure function of the seed and the number of the step, so a run that is killed and
resumed sees the same examples as one that is not.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtrelu._primitive.spec import whole_number
from jaxtrelu.sae._processes import Processes
from jaxtrelu.sae._shards import BFLOAT16, Shards, open_shards, open_tensor

_CHUNK_BYTES = 1 << 20  # read at once, in one piece
_GROUP_BYTES = 1 << 28  # shuffled together, in memory
_SPAN_BYTES = 1 << 28  # measured by one process, at least
_SPANS = 256  # at most: processes tell each other what they found in each
_STRANDS = 64  # at most, in a group
_NAMED = 10  # rows that are not finite, in a message
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


class Part(NamedTuple):
    """Some columns of what batches are made of: one user's matrix."""

    name: str
    """What it is called in messages."""
    array: Any
    """(n, its width): the matrix itself."""
    columns: slice
    """Where it stands in a batch."""


class Rows:
    """Batches of the rows of a matrix, reshuffled in every epoch.

    An array in memory is shuffled whole, and so is a file of up to 256 MB: the same batches come of
    both. Of a larger memory-mapped one, pieces of about a megabyte are
    shuffled, and the rows inside groups of about 256 MB of them: every byte is read once in an
    epoch, in long reads, and memory holds one group. (A few rows that fill neither a batch nor a
    group are left out of an epoch, other ones each time.)

    The pieces of a group are dealt to strands, 64 of them in a group of 256 MB. A batch takes
    equally many rows of each, one strand after the other: so a process that needs a part of every
    batch reads, and holds, a part of the pieces.

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
      TypeError: the numbers are neither floating point nor integers, or `seed` or `held_out` is no
        whole number.
      ValueError: the array is not a matrix, or empty, or has masked entries, or `held_out` leaves
        no row to train on.
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
        check_unmasked(array, name)
        check_numbers(array, name)
        if 0 in array.shape:
            raise ValueError(f"{name} is empty: its shape is {array.shape}.")
        if array.ndim != 2:
            advice = "array.reshape(-1, array.shape[-1])"
            if array.ndim < 2:
                advice = "array[:, None], of one column" if array.ndim else "a matrix"
            raise ValueError(
                f"{name} should have one example per row, shape (examples, dimension), but has "
                f"shape {array.shape}. Pass {advice}."
            )
        seed = whole_number(seed, "seed", least=0)
        held_out = whole_number(held_out, "held_out", least=0, hint=" It is a number of rows.")
        self.array, self.name, self.seed, self.held_out = array, name, seed, held_out
        self._matrix, self._group_bytes = array, group_bytes  # what batches are read from
        if held_out >= len(array):
            raise ValueError(
                f"`held_out` should leave some of the {len(array)} rows of {name} to train on, but "
                f"is {held_out!r}."
            )
        row_bytes = array.shape[1] * array.dtype.itemsize
        in_files = getattr(array, "in_files", isinstance(array, np.memmap))
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
        self._is_aside = np.zeros(chunks, bool)
        self._is_aside[self._aside] = True
        self._kept = np.setdiff1d(np.arange(chunks), self._aside, assume_unique=True)
        # Two at least: one alone could be the short last piece.
        fitting = max(2, group_bytes // (row_bytes * self._chunk)) if mapped else len(self._kept)
        together = min(len(self._kept), fitting)
        # A power of two, so that devices share them equally; of four pieces each at least.
        most = min(_STRANDS, together // 4) if mapped else 1
        self._strands = 1 << max(0, most.bit_length() - 1)
        self._group_chunks = together - together % self._strands
        self._groups = max(1, len(self._kept) // self._group_chunks)
        self._cached: tuple[tuple[int, int], _Group] | None = None

    @property
    def order(self) -> str:
        """What the order of the rows depends on, beside the seed: how they are shuffled."""
        if not self._mapped:
            return "shuffled whole"
        pieces = f"shuffled in pieces of {self._chunk} rows, {self._group_chunks} together"
        return pieces if self._strands == 1 else f"{pieces} in {self._strands} strands"

    @property
    def held_out_rows(self) -> np.ndarray:
        """The rows that are kept aside: float32, (k, d), in the order of the data."""
        return np.asarray(self.array[self._numbers_aside], np.float32)

    @property
    def _numbers_aside(self) -> np.ndarray:
        return _rows_of(self._aside, self._chunk, len(self))

    @property
    def training_rows(self) -> int:
        """How many rows batches are made of."""
        return len(self) - len(self._numbers_aside)

    @property
    def dimension(self) -> int:
        """d, the number of columns."""
        return self.array.shape[1]

    @property
    def output_dimension(self) -> int:
        """The number of columns of what is to be reconstructed: of the rows themselves, d."""
        return self._parts[-1].array.shape[1]

    @property
    def width(self) -> int:
        """The number of columns of a batch."""
        return self._matrix.shape[1]

    @property
    def _parts(self) -> tuple[Part, ...]:
        return (Part(self.name, self.array, slice(None)),)

    def split(self, batch: Any) -> tuple[Any, Any]:
        """A batch's examples, and their targets; None: the examples are their own."""
        return batch, None

    def __len__(self) -> int:
        return len(self.array)

    @property
    def shuffled_together(self) -> int:
        """How many rows are shuffled together, at least: the largest possible batch."""
        if self._group_chunks == len(self._kept):
            return self.training_rows
        # The short last piece may be in any group: count as if it were in this one.
        return (self._group_chunks - 1) * self._chunk + 1

    def fingerprint(self) -> str:
        """A text that changes with the data: a checksum of its shape, dtype and every byte.

        `statistics` finds it in the same pass as the rest.
        """
        digests = []
        for span in self._spans():
            digest = self._digest(span)
            for _, block in self._blocks(*span):
                digest.update(_bytes(block))
            digests.append(digest.hexdigest())
        return self._joined(digests)

    def statistics(self, advance: Callable[[int], None] | None = None) -> Statistics:
        """One pass over all rows: checks that they are finite, and measures them.

        Args:
          advance: called with the number of rows done since the last call.

        Returns:
          `Statistics`.

        Raises:
          ValueError: some rows hold NaN or infinity; the message names them.
        """
        return self._statistics(Processes(), advance)[0]

    def _statistics(
        self, processes: Processes, advance: Callable[[int], None] | None
    ) -> list[Statistics]:
        """The same of each part, shared by processes: all find what one alone would find."""
        centre = self._centre()
        spans = list(self._spans())
        mine = np.array_split(np.arange(len(spans)), processes.count)[processes.number]
        share = [spans[number] for number in mine]
        own = processes.together(
            lambda: [self._measured(start, stop, centre, advance) for start, stop in share]
        )
        if advance and len(share) < len(spans):
            read = sum(stop - start for start, stop in share)
            advance(len(self) - read)  # by others
        found = [span for each in processes.exchange(own) for span in each]
        fingerprint = self._joined([span["digest"] for span in found])
        statistics = []
        for number, part in enumerate(self._parts):
            own_sums = [span["parts"][number] for span in found]
            _refuse(
                part,
                [row for sums in own_sums for row in sums["bad"]],
                sum(sums["bad count"] for sums in own_sums),
            )
            count, norm, square, around = (
                sum(sums[name] for sums in own_sums)
                for name in ("count", "norm", "square", "around")
            )
            total = np.sum([sums["total"] for sums in own_sums], axis=0)
            variance = max(0.0, around / count - float(total @ total) / count**2)
            statistics.append(Statistics(norm / count, square / count, variance, fingerprint))
        return statistics

    def _measured(
        self, start: int, stop: int, centre: np.ndarray, advance: Callable[[int], None] | None
    ) -> dict[str, Any]:
        """What a pass over some rows finds, in sums, as JSON can hold it."""
        parts = [_Sums(centre[part.columns]) for part in self._parts]
        digest = self._digest((start, stop))
        for first, block in self._blocks(start, stop):
            digest.update(_bytes(block))
            used = self._used(first, len(block))
            for sums, part in zip(parts, self._parts, strict=True):
                sums.add(first, block[:, part.columns], used)
            if advance:
                advance(len(block))
        return {"parts": [sums.plain() for sums in parts], "digest": digest.hexdigest()}

    def _centre(self) -> np.ndarray:
        """About the mean: sums around it lose no digits. That of the first rows that are used."""
        for first, block in self._blocks(0, len(self)):
            used = self._used(first, len(block))
            exact = np.asarray(block if used is None else block[used], np.float64)
            if len(exact):
                with np.errstate(invalid="ignore", over="ignore"):  # refused later, in words
                    return exact.mean(axis=0)
        raise AssertionError("some rows are never kept aside")

    def _used(self, first: int, count: int) -> np.ndarray | None:
        """Which of some rows are not kept aside; None: all."""
        if not len(self._aside):
            return None
        return ~self._is_aside[np.arange(first, first + count) // self._chunk]

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Where the rows are cut, into parts that processes share: (first, one after the last)."""
        row_bytes = self.width * self._matrix.dtype.itemsize
        size = max(_SPAN_BYTES, len(self) * row_bytes // _SPANS + 1)
        block = self._block_rows
        rows = max(block, size // row_bytes // block * block)
        for start in range(0, len(self), rows):
            yield start, min(start + rows, len(self))

    def _digest(self, span: tuple[int, int]) -> Any:
        whole = span == (0, len(self))
        return hashlib.blake2b(self._header() if whole else b"")

    def _header(self) -> bytes:
        return " ".join(f"{p.array.shape} {p.array.dtype}" for p in self._parts).encode()

    def _joined(self, digests: list[str]) -> str:
        """The fingerprint, of the checksums of all spans."""
        if len(digests) == 1:
            return digests[0][:32]
        return hashlib.blake2b(self._header() + "".join(digests).encode()).hexdigest()[:32]

    @property
    def _block_rows(self) -> int:
        return max(1, (16 * _CHUNK_BYTES) // (self.width * 8))

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        rows = self._block_rows
        for first in range(start, stop, rows):
            yield first, self._matrix[first : min(first + rows, stop)]

    def batch(self, step: int, size: int, part: slice | None = None) -> np.ndarray:
        """The batch of step `step`, `size` rows of the data as they are, unscaled.

        Args:
          step: the number of the step, from 0.
          size: the number of rows.
          part: which rows of the batch, without a step; None: all. What they need is read, and
            nothing else.

        Returns:
          float32, (size, d), or those rows of it.

        Raises:
          ValueError: the data has fewer rows than `size`, or a row of the batch is not finite.
        """
        self.check_batch(size)
        start, stop, stride = (part or slice(None)).indices(size)
        if stride != 1:
            raise ValueError(f"`part` should be a slice without a step, but is {part!r}.")
        per_group = self.shuffled_together // size
        number, place = divmod(step, per_group)
        group = self._group(*divmod(number, self._groups))
        chosen = group.order[place * size : (place + 1) * size]
        chosen = chosen[np.argsort(group.strands_of(chosen), kind="stable")][start:stop]
        if self._mapped:
            return self._of_strands(group, chosen)
        picked = np.asarray(self._matrix[group.rows[chosen]], np.float32)
        self._check_finite(picked, group.rows[chosen])
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

    def _group(self, epoch: int, number: int) -> "_Group":
        if self._cached is None or self._cached[0] != (epoch, number):
            self._cached = (epoch, number), self._shuffled(epoch, number)
        return self._cached[1]

    def _shuffled(self, epoch: int, number: int) -> "_Group":
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self._kept))
        chosen = self._kept[order[number * self._group_chunks :][: self._group_chunks]]
        if not self._mapped:
            nothing = np.empty((0, self.width), np.float32)  # they are in memory
            return _Group(
                chosen, np.arange(len(chosen)), np.array([0, len(chosen)]), nothing, set()
            )
        strands = [
            _rows_of(chosen[first :: self._strands], self._chunk, len(self))
            for first in range(self._strands)
        ]
        rows = np.concatenate(strands)
        bounds = np.concatenate([[0], np.cumsum([len(strand) for strand in strands])])
        shuffle = np.random.default_rng([self.seed, 1, epoch, number])
        held = np.empty((len(rows), self.width), np.float32)
        group = _Group(rows, shuffle.permutation(len(rows)), bounds, held, set())
        # From each strand in turn, as long as it has rows.
        strand = group.strands_of(group.order)
        by_strand = np.argsort(strand, kind="stable")
        turn = np.empty(len(rows), np.int64)
        turn[by_strand] = np.arange(len(rows)) - bounds[strand[by_strand]]
        return group._replace(order=group.order[np.argsort(turn, kind="stable")])

    def _of_strands(self, group: "_Group", places: np.ndarray) -> np.ndarray:
        """Rows of a group, by their places; their strands are read, unless they were."""
        for strand in set(group.strands_of(places).tolist()) - group.read:
            first, last = group.bounds[strand : strand + 2]
            rows = group.rows[first:last]
            # Whole pieces, each in one read.
            cuts = np.flatnonzero(np.diff(rows) != 1) + 1
            for start, stop in pairwise([0, *cuts.tolist(), len(rows)]):
                group.held[first + start : first + stop] = self._matrix[
                    rows[start] : rows[stop - 1] + 1
                ]
            self._check_finite(group.held[first:last], rows)
            group.read.add(strand)
        return group.held[places]

    def _check_finite(self, values: np.ndarray, rows: np.ndarray) -> None:
        if np.isfinite(values).all():
            return
        for part in self._parts:
            finite = np.isfinite(values[:, part.columns]).all(axis=1)
            bad = np.sort(rows[~finite]).tolist()
            _refuse(part, bad, len(bad))


class _Sums:
    """What is summed over the rows of a part that are not kept aside, about a centre."""

    def __init__(self, centre: np.ndarray):
        self._centre = centre
        self._bad: list[int] = []
        self._norm = self._square = self._around = 0.0
        self._count = 0
        self._total = np.zeros(len(centre))

    def add(self, first: int, block: np.ndarray, used: np.ndarray | None) -> None:
        """Adds rows, the first of which has that number in the data."""
        exact = np.asarray(block, np.float64)
        squares = np.einsum("nd,nd->n", exact, exact)
        bad = np.flatnonzero(~np.isfinite(squares))
        self._bad.extend((first + bad).tolist())
        if len(bad):  # they will be refused, in words
            exact, squares = exact.copy(), squares.copy()
            exact[bad], squares[bad] = 0, 0
        if used is not None:
            exact, squares = exact[used], squares[used]
        with np.errstate(invalid="ignore"):  # where the first rows are such
            moved = exact - self._centre
        self._total += moved.sum(axis=0)
        self._around += float(np.einsum("nd,nd->", moved, moved))
        self._norm += float(np.sqrt(squares).sum())
        self._square += float(squares.sum())
        self._count += len(exact)

    def plain(self) -> dict[str, Any]:
        """The sums, as JSON can hold them."""
        return {
            "count": self._count, "norm": self._norm, "square": self._square,
            "around": self._around, "total": self._total.tolist(),
            "bad": self._bad[:_NAMED], "bad count": len(self._bad),
        }  # fmt: skip


def array_of(x: Any, name: str) -> np.ndarray:
    """The array that a user passes, or that the lists are which a user passes.

    Raises ValueError where there is none, or where a mask would be lost.
    """
    check_unmasked(x, name)
    for part in x if isinstance(x, list | tuple) else ():
        check_unmasked(part, f"an element of {name}")
    try:
        return np.asarray(x)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(
            f"{name} should be one matrix with one example per row, but is a {type(x).__name__} of "
            f"{len(x)} whose elements differ in shape."
        ) from None


def check_unmasked(x: Any, name: str) -> None:
    """Raises ValueError where entries of a masked array would be taken in spite of its mask."""
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise ValueError(
            f"{name} is a masked array, of which {np.ma.count_masked(x):,} entries are masked: "
            "pass the rows that have none, or array.filled(value) with a value that is meant."
        )


def check_numbers(array: Any, name: str) -> None:
    """Raises TypeError where an array holds neither floating point numbers nor integers."""
    if array.dtype.kind not in "fiu" and array.dtype != BFLOAT16:
        raise TypeError(
            f"{name} should hold floating point numbers, but holds {array.dtype}. "
            f"{_conversion(array.dtype)}"
        )


def _refuse(part: Part, bad: list[int], count: int) -> None:
    """Raises if there are rows that are not finite, the first of which are named."""
    if count:
        training = "; training on them would turn every weight into NaN"
        raise ValueError(not_finite(part.name, part.array, bad, count, training))


def not_finite(name: str, array: Any, bad: Sequence[int], count: int, why: str = "") -> str:
    """What is said of so many rows of an array that hold NaN or infinity, `bad` the first ones."""
    named = ", ".join(str(row) for row in bad[:_NAMED])
    more = f" and {count - _NAMED} more" if count > _NAMED else ""
    noun = "row" if count == 1 else "rows"
    there = ""
    if isinstance(array, Shards):
        file, row = array.place(bad[0])
        there = f"; {'it' if count == 1 else 'the first'} is row {row} of {file}"
    return (
        f"{name} holds NaN or infinity in {noun} {named}{more} (counted from 0{there}). "
        f"Remove or repair these rows{why}."
    )


class _Group(NamedTuple):
    """Rows that are shuffled together."""

    rows: np.ndarray
    """Their numbers in the data, one strand after the other."""
    order: np.ndarray
    """Places in `rows`, in the order in which batches take them."""
    bounds: np.ndarray
    """Where in `rows` strands begin, and the end."""
    held: np.ndarray
    """The rows themselves, float32: memory is taken by the strands that were read."""
    read: set[int]
    """Which strands were."""

    def strands_of(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.bounds, places, side="right") - 1


def _bytes(block: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(block).view(np.uint8)


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
    if dtype.kind == "c":
        return "Pass array.real, or both parts side by side, np.hstack([array.real, array.imag])."
    if dtype.kind == "b":
        return "Pass array.astype(np.float32), in which True is 1."
    if dtype.kind in "OUS":
        return "Pass an array of numbers, of which each row has as many."
    return "Pass float32 or float16, converted with .astype(np.float32)."
