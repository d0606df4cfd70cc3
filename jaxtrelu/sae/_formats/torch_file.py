"""PyTorch's .pt files without PyTorch: tensors, numbers, texts and containers.

Such a file is a zip with a pickle that names the tensors' storages. A pickle is a program, and here
it is not run: its instructions are read one by one, and those that build plain values are followed.
Anything else, by name, ends in a refusal.
"""

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
_STORAGE_OF = {np.dtype(dtype): name for name, dtype in _STORAGES.items()}
_DICT, _TENSOR, _PARAMETER = (
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
)
_LIMIT = 64 << 20  # bytes of the pickle, which holds names and shapes


class _Name(NamedTuple):
    """A name that the pickle asks for."""

    full: str


class _Storage(NamedTuple):
    """The bytes of tensors."""

    data: np.ndarray


class _Mark:
    pass


def read(path: str | os.PathLike) -> Any:
    """What `torch.save` wrote: NumPy arrays in place of tensors.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is damaged, or holds more than plain values; the message is one sentence.
    """
    name = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except zipfile.BadZipFile:
        with open(path, "rb") as stream:
            old = stream.read(1) == b"\x80"
        raise ValueError(
            f"{name!r} is a bare pickle, as torch.save wrote it before version 1.6, and is not "
            "loaded: save it again with a newer PyTorch."
            if old
            else f"{name!r} is damaged or no file of torch.save: it is no zip archive."
        ) from None
    except ValueError as error:
        raise ValueError(f"{name!r} cannot be read as a file of torch.save: {error}.") from None
    except (EOFError, NotImplementedError, RuntimeError, RecursionError, zipfile.error) as error:
        raise ValueError(f"{name!r} is damaged: {error or 'it ends too early'}.") from None


def to_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The content of a file as `torch.save` makes it of a dictionary of tensors."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", _pickle(arrays))
        archive.writestr("archive/byteorder", "little")
        for number, array in enumerate(arrays.values()):
            little = array.astype(array.dtype.newbyteorder("<"))
            archive.writestr(f"archive/data/{number}", little.tobytes())
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def _pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    empty = b"ccollections\nOrderedDict\n)R"
    parts = [b"\x80\x02", empty, b"("]
    for number, (name, array) in enumerate(arrays.items()):
        steps = [s // array.itemsize for s in array.strides]
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(("]
        parts += [_text("storage"), f"ctorch\n{_STORAGE_OF[array.dtype]}\n".encode()]
        parts += [_text(str(number)), _text("cpu"), _int(array.size), b"tQ"]
        parts += [_int(0), b"(", *map(_int, array.shape), b"t(", *map(_int, steps), b"t\x89"]
        parts += [empty, b"tR"]
    return b"".join([*parts, b"u."])


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _int(number: int) -> bytes:
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    data = number.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _read(archive: zipfile.ZipFile) -> Any:
    files = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "data.pkl" not in files:
        raise ValueError("the archive has no data.pkl")
    if "byteorder" in files:
        with archive.open(files["byteorder"]) as stream:
            if stream.read(10).strip() != b"little":
                raise ValueError("its numbers are not little-endian")
    if files["data.pkl"].file_size > _LIMIT:
        raise ValueError(f"its data.pkl has {files['data.pkl'].file_size:,} bytes")
    loaded: dict[str, np.ndarray] = {}

    def storage(key: str, dtype: np.dtype, count: int) -> _Storage:
        if key not in loaded:
            info = files.get(f"data/{key}")
            if info is None:
                raise ValueError(f"the archive has no data/{key}")
            # torch.save compresses nothing; what is compressed could be of any size.
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"data/{key} is compressed")
            loaded[key] = np.frombuffer(archive.read(info), np.uint8)
        if count * dtype.itemsize > len(loaded[key]):
            raise ValueError(f"data/{key} has {len(loaded[key]):,} bytes for {count:,} numbers")
        return _Storage(loaded[key][: count * dtype.itemsize].view(dtype))

    try:
        return _follow(archive.read(files["data.pkl"]), storage)
    except (IndexError, TypeError, KeyError, AttributeError, struct.error):
        raise ValueError("its data.pkl is damaged") from None


def _follow(program: bytes, storage: Any) -> Any:
    """What the pickle builds, out of plain values alone."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        place = len(stack) - 1
        while not isinstance(stack[place], _Mark):  # IndexError where there is none
            place -= 1
        found = stack[place + 1 :]
        del stack[place:]
        return found

    for opcode, argument, _ in _opcodes(program):
        name = opcode.name
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}[name]())
        elif name == "MARK":
            stack.append(_Mark())
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            items = pop_to_mark()
            stack.append(
                dict(zip(items[::2], items[1::2], strict=True))
                if name == "DICT"
                else {"TUPLE": tuple, "LIST": list, "FROZENSET": frozenset}[name](items)
            )
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            items = [stack.pop() for _ in range(count)][::-1]
            stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else pop_to_mark()
            stack[-1].extend(items)
        elif name == "ADDITEMS":
            items = pop_to_mark()
            stack[-1].update(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else pop_to_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_allowed(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            last, module = stack.pop(), stack.pop()
            stack.append(_allowed(f"{module}.{last}"))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_reduce(function, arguments))
        elif name == "BINPERSID":
            kind, of, key, _, count = stack.pop()
            dtype = _STORAGES.get(getattr(of, "full", "").removeprefix("torch."))
            if kind != "storage" or dtype is None or type(count) is not int or count < 0:
                raise ValueError("it names a storage in a way that is not known")
            stack.append(storage(key, np.dtype(dtype), count))
        elif name == "BUILD":
            # The attributes of an ordered dictionary (state_dict's `_metadata`): not needed.
            stack.pop()
            if not isinstance(stack[-1], dict):
                raise ValueError("it sets the state of an object that is no dictionary")
        elif name == "STOP":
            return _plain(stack.pop())
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it holds the pickle instruction {name}, which builds no plain value")
    raise ValueError("its data.pkl ends too early")


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip


def _opcodes(program: bytes) -> Any:
    try:
        yield from pickletools.genops(program)
    except (ValueError, UnicodeError, pickle.UnpicklingError, OverflowError):
        raise ValueError("its data.pkl is damaged") from None


def _allowed(name: str) -> _Name:
    known = {_DICT, _TENSOR, _PARAMETER, *(f"torch.{storage}" for storage in _STORAGES)}
    if name not in known:
        raise ValueError(f"it asks for {name}, which is neither a tensor nor a container")
    return _Name(name)


def _reduce(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise ValueError("it calls what is not a name")
    if function.full == _DICT:
        return dict(*arguments)
    if function.full == _PARAMETER:
        return arguments[0]
    if function.full == _TENSOR:
        return _tensor(*arguments[:4])
    raise ValueError(f"it calls {function.full}")


def _tensor(storage: _Storage, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    sizes = (offset, *shape, *strides)
    if not all(type(size) is int and size >= 0 for size in sizes) or len(shape) != len(strides):
        raise ValueError("a tensor's shape cannot be understood")
    data = storage.data
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    # Strides of 0 would let a few bytes stand for any number of them.
    if math.prod(shape) > data.size or (math.prod(shape) and last >= data.size):
        raise ValueError(f"a tensor of shape {tuple(shape)} is larger than its storage")
    if not math.prod(shape):
        return np.empty(shape, data.dtype)
    steps = [s * data.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(data[offset:], shape, steps, writeable=False).copy()


def _plain(value: Any) -> Any:
    """The value, once it is certain that no name or storage is left in it."""
    seen: set[int] = (
        set()
    )  # a pickle can make a list hold itself, or one list twice in each of many
    open_: list[Any] = [value]
    while open_:
        item = open_.pop()
        if isinstance(item, _Name | _Storage | _Mark):
            raise ValueError("it holds a name where a value should be")
        if isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            open_.extend(item.values() if isinstance(item, dict) else item)
    return value
