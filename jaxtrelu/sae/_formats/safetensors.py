"""safetensors: a length, a table in JSON, and the bytes of the tensors. Nothing in it can run.

Read and written here, in a page, so that no package is needed and every refusal is one sentence. A
file of the library's own is *sealed*: its metadata holds a checksum of all the rest.

Source: the format's README, github.com/huggingface/safetensors.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_HEADER_LIMIT = 100_000_000  # the format's own
#: The name of the checksum among the metadata of a sealed file.
SEAL = "sha256"


def to_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of a file that holds `tensors` and `metadata`."""
    arrays = {name: _plain(array) for name, array in sorted(tensors.items())}
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name, array in arrays.items():
        ends = [place, place + array.nbytes]
        table[name] = {"dtype": _NAMES[array.dtype], "shape": array.shape, "data_offsets": ends}
        place = ends[1]
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join([len(header).to_bytes(8, "little"), header, *map(_bytes, arrays.values())])


def sealed(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The same, with a checksum of everything in the metadata."""
    return to_bytes(tensors, sealed_metadata(tensors, metadata))


def sealed_metadata(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> dict[str, str]:
    """The metadata with a checksum of everything, under `SEAL`."""
    return {**metadata, SEAL: _checksum(tensors, metadata)}


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of a file.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is damaged, or no safetensors; the message is one sentence.
    """
    data = Path(path).read_bytes()
    table, body = _table(path, data)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "its metadata are not texts")
    spans, tensors = [], {}
    for name, entry in table.items():
        try:
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            shape = tuple(entry["shape"])
            start, stop = entry["data_offsets"]
            sizes = (*shape, start, stop)
            if not all(type(size) is int and size >= 0 for size in sizes):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise _damaged(
                path, f"tensor {name!r} has an entry that cannot be understood"
            ) from None
        if stop - start != math.prod(shape) * dtype.itemsize or stop > len(body):
            raise _damaged(
                path,
                f"{name!r} of shape {list(shape)} does not fit the {len(body):,} bytes there",
            )
        spans.append((start, stop))
        tensors[name] = np.frombuffer(body[start:stop], dtype).reshape(shape)
    spans.sort()
    ends = [0, *(stop for _, stop in spans)]
    if [start for start, _ in spans] != ends[:-1] or ends[-1] != len(body):
        raise _damaged(path, "its tensors overlap, or leave bytes over")
    return tensors, metadata


def check_seal(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> dict[str, str]:
    """The metadata without the checksum. Raises ValueError if it is not that of the rest."""
    rest = dict(metadata)
    if rest.pop(SEAL, None) != _checksum(tensors, rest):
        raise _damaged(path, "its checksum is not that of its content")
    return rest


def metadata_of(path: str | os.PathLike) -> dict[str, str]:
    """The metadata alone, of a file that may be large. Empty where there are none."""
    with open(path, "rb") as stream:
        head = stream.read(8)
        length = int.from_bytes(head, "little")
        size = os.fstat(stream.fileno()).st_size
        if len(head) < 8 or length > min(_HEADER_LIMIT, size):
            return {}
        try:
            found = json.loads(stream.read(length)).get("__metadata__", {})
        except (ValueError, AttributeError, RecursionError):
            return {}
    return found if isinstance(found, dict) else {}


def _table(path: str | os.PathLike, data: bytes) -> tuple[dict[str, Any], memoryview]:
    if not data:
        raise _damaged(path, "it is empty")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_HEADER_LIMIT, len(data) - 8):
        raise _damaged(path, f"it says that its header has {length:,} bytes, and has {len(data):,}")
    try:
        table = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is no JSON") from None
    if not isinstance(table, dict):
        raise _damaged(path, "its header is no table")
    return table, memoryview(data)[8 + length :]


def _checksum(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    arrays = {name: _plain(array) for name, array in sorted(tensors.items())}
    kinds = {name: [_NAMES[a.dtype], list(a.shape)] for name, a in arrays.items()}
    digest = hashlib.sha256(json.dumps([kinds, dict(sorted(metadata.items()))]).encode())
    for array in arrays.values():
        digest.update(_bytes(array))
    return digest.hexdigest()


def _plain(array: Any) -> np.ndarray:
    """In C order and little-endian."""
    # Not ascontiguousarray, which makes a vector of a number.
    array = np.asarray(array, order="C")
    return array.astype(array.dtype.newbyteorder("<")) if array.dtype.byteorder == ">" else array


def _bytes(array: np.ndarray) -> memoryview | bytes:
    # A view of bytes: foreign dtypes such as bfloat16 have no buffer of their own.
    return array.reshape(-1).view(np.uint8).data if array.size else b""


def _damaged(path: str | os.PathLike, reason: str) -> ValueError:
    return ValueError(f"{os.fspath(path)!r} is damaged or no safetensors file: {reason}.")
