"""NumPy's .npz: a zip of .npy members, read without ever running a pickle."""

import io
import math
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a file.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is damaged, no .npz, or holds pickled objects; the message is one sentence.
    """
    name = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _member(archive, info)
                for info in archive.infolist()
                if not info.is_dir()
            }
    except ValueError as error:
        raise ValueError(f"{name!r} cannot be read as an .npz file: {error}.") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        reason = str(error).rstrip(".") or "it ends too early"
        raise ValueError(
            f"{name!r} is damaged or no .npz file: {reason[:1].lower()}{reason[1:]}."
        ) from None


def header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype of a .npy file that begins at the stream's position.

    Raises:
      ValueError: it is no .npy file of plain numbers; the message is a clause.
    """
    start = stream.read(8)
    if start[:1] == b"\x80":
        raise ValueError("it is a pickle, which is never loaded")
    if start[:6] != b"\x93NUMPY":
        raise ValueError("it does not begin as a .npy file does")
    reader = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if start[6] not in reader:
        raise ValueError(f"it is a .npy file of version {start[6]}.{start[7]}")
    try:
        shape, fortran, dtype = reader[start[6]](stream)
    except Exception as error:  # the header is text that NumPy evaluates: anything can come of it
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        raise ValueError(f"its header cannot be read ({reason})") from None
    if any(size < 0 for size in shape):
        raise ValueError(f"its header says shape {shape}")
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never loaded")
    return shape, fortran, dtype


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        try:
            shape, fortran, dtype = header(stream)
        except ValueError as error:
            raise ValueError(f"of its member {info.filename!r}, {error}") from None
        size = math.prod(shape) * dtype.itemsize
        # Before anything is allocated: a header can claim any size.
        if size > info.file_size:
            raise ValueError(
                f"its member {info.filename!r} says shape {shape}, {size:,} bytes, and has "
                f"{info.file_size:,}"
            )
        # A zip can claim any size, too; what is read grows with what is there.
        data = stream.read(size)
    if len(data) != size:
        raise ValueError(f"its member {info.filename!r} ends too early")
    array = np.frombuffer(data, dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of a .npz file."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()
