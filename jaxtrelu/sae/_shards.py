"""A folder of files as one matrix: shards of activations, read only where they are asked for."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

SUFFIXES = (".npy", ".safetensors")
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "I8": "int8", "U8": "uint8"}
_LONGEST_HEADER = 100_000_000
BFLOAT16 = np.dtype(jnp.bfloat16)


class Shards:
    """Several matrices of one width and dtype, one below the other; what is asked for is read.

    It has what `Rows` needs of an array: shape, dtype, length, and rows by a slice or by numbers.
    """

    in_files = True

    def __init__(self, parts: Sequence[np.ndarray], names: Sequence[str]):
        self.parts, self.names = tuple(parts), tuple(names)
        self.dtype = self.parts[0].dtype
        lengths = [len(part) for part in self.parts]
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.shape = (int(self.starts[-1]), self.parts[0].shape[1])
        self.ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def place(self, row: int) -> tuple[str, int]:
        """The name of the file that a row is in, and its number there."""
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.names[shard], row - int(self.starts[shard])

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The rows of a slice without a step, or of an array of numbers."""
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self))
            assert step == 1
            shard = int(np.searchsorted(self.starts, first, side="right")) - 1
            found = []
            while first < last:
                begin, end = self.starts[shard : shard + 2]
                found.append(self.parts[shard][first - begin : min(last, end) - begin])
                first, shard = min(last, end), shard + 1
            return found[0] if len(found) == 1 else np.concatenate(found or [self.parts[0][:0]])
        rows = np.asarray(rows)
        which = np.searchsorted(self.starts, rows, side="right") - 1
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        for shard in np.unique(which):
            here = which == shard
            out[here] = self.parts[shard][rows[here] - self.starts[shard]]
        return out


def open_shards(folder: Path, open_npy: Any) -> Shards:
    """The shards of a folder, in the order of their names; numbers in names count as numbers.

    Args:
      folder: holds `.npy` or `.safetensors` files with a matrix each.
      open_npy: opens a `.npy` file as a memory-mapped array.

    Returns:
      `Shards`.

    Raises:
      ValueError: there are none, or they do not go together.
    """
    files = sorted(
        (p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file()), key=_natural
    )
    if not files:
        raise ValueError(f"{str(folder)!r} holds no .npy and no .safetensors files.")
    parts = [open_tensor(p) if p.suffix == ".safetensors" else open_npy(p) for p in files]
    first = parts[0]
    for path, part in zip(files, parts, strict=True):
        if part.ndim != 2 or (part.shape[1], part.dtype) != (first.shape[-1], first.dtype):
            raise ValueError(
                f"the shards in {str(folder)!r} do not go together: {files[0].name} has shape "
                f"{first.shape} of {first.dtype}, {path.name} has {part.shape} of {part.dtype}. "
                "Each should be a matrix with one example per row, of one width and dtype."
            )
    used = [k for k, part in enumerate(parts) if len(part)] or [0]
    return Shards([parts[k] for k in used], [files[k].name for k in used])


def open_tensor(path: Path) -> np.ndarray:
    """The matrix in a safetensors file, memory-mapped: the only tensor of two axes.

    Raises:
      ValueError: it is no such file, or has no such tensor, or several.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{str(path)!r} is no safetensors file, or is cut off.")
        try:
            header = json.loads(stream.read(length))
            tensors = {k: v for k, v in header.items() if k != "__metadata__"}
            found = [(k, v) for k, v in tensors.items() if len(v["shape"]) == 2]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{str(path)!r} has a header that cannot be understood.") from None
    if len(found) != 1:
        names = ", ".join(map(repr, tensors)) or "none"
        raise ValueError(
            f"{str(path)!r} should hold one matrix with one example per row, but holds {names}."
        )
    name, entry = found[0]
    kind = entry["dtype"]
    if kind != "BF16" and kind not in _DTYPES:
        raise ValueError(f"{str(path)!r} holds {name!r} as {kind}: pass floating point numbers.")
    dtype = BFLOAT16 if kind == "BF16" else np.dtype(_DTYPES[kind])
    rows, columns = map(int, entry["shape"])
    begin, end = map(int, entry["data_offsets"])
    whole = 8 + length
    if min(rows, columns) < 0 or end - begin != rows * columns * dtype.itemsize:
        raise ValueError(f"{str(path)!r} declares a shape that its bytes do not have.")
    if begin < 0 or whole + end > size:
        raise ValueError(f"{str(path)!r} is cut off.")
    if not rows * columns:
        return np.zeros((rows, columns), dtype)
    return np.memmap(path, dtype, "r", whole + begin, (rows, columns))


def _natural(path: Path) -> tuple[Any, ...]:
    digits = "".join(c if c.isdigit() else " " for c in path.name).split()
    text = "".join("#" if c.isdigit() else c for c in path.name)
    while "##" in text:
        text = text.replace("##", "#")
    return text, [int(d) for d in digits], path.name
