"""Checkpoints of a training run: whole files with a checksum and the run's identity.

One process writes one file. Of several each writes a part, with the rows that it holds; then, when
all parts are there, the first one puts the file of the checkpoint in place, which has the rest, and
names the parts and their checksums. Without that file there is no checkpoint.
"""

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxtrelu import _files
from jaxtrelu.sae._formats import safetensors
from jaxtrelu.sae._pieces import Span, divided, needed, rows_of
from jaxtrelu.sae._processes import Processes

try:
    import fcntl
except ImportError:  # Windows, where two runs in one folder are the user's to avoid
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
_KIND, _VERSION = "checkpoint of jaxtrelu.sae", "1"
_PART = "part of a checkpoint of jaxtrelu.sae"
_NAME = re.compile(r"step-(\d{10})\.safetensors")
_PART_NAME = re.compile(r"step-(\d{10})\.\d+-of-\d+\.safetensors")
_LOCK = ".lock"
_KEPT = 2
# Seconds: file systems of a network may remember for a minute that a file was not there.
_PATIENCE = 60.0


class Found(NamedTuple):
    """What `Checkpoints.restore` found."""

    state: Any
    """The newest intact checkpoint; None: there is none."""
    skipped: list[str]
    """A sentence for each newer one that is damaged."""


class Checkpoints:
    """The two newest checkpoints of one run, in a folder that no other run may use meanwhile.

    A context manager; the folder is made, locked and tried by writing when it is entered, and left
    as it was where an exception comes before the first checkpoint. Several processes enter it, and
    call what it has, together.

    Args:
      folder: where they are; for several processes, one folder that all of them see.
      processes: those of the run; None: this one.

    Attributes:
      identity: what the run is: names and values that a checkpoint has to agree with to be resumed.
    """

    def __init__(self, folder: str | os.PathLike, processes: Processes | None = None):
        self.folder = Path(folder).expanduser().absolute()
        self.identity: Mapping[str, str] = {}
        self._processes = processes or Processes()
        self._lock: Any = None
        self._owner = f"{os.getpid()} {secrets.token_hex(8)}"
        self._made: list[Path] = []  # folders, the innermost first
        self._made_lock = False

    def __enter__(self) -> "Checkpoints":
        self._processes.agreed(self._open)
        owner = self._processes.exchange(self._owner)[0]
        self._processes.together(lambda: self._see(owner))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._lock is not None:
            if kind is not None and self._made_lock and not self._files():
                self._remove_made()
            self._lock.close()

    def _remove_made(self) -> None:
        """Removes the lock, and the folders that were made, as far as there is nothing in them."""
        with contextlib.suppress(OSError):
            (self.folder / _LOCK).unlink()
            for folder in self._made:
                folder.rmdir()

    def _open(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file, so no checkpoints can be kept in it.")
        try:
            missing = (path for path in (self.folder, *self.folder.parents) if not path.exists())
            self._made = list(missing)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._made_lock = not (self.folder / _LOCK).exists()
            self._lock = open(self.folder / _LOCK, "a+", encoding="ascii")  # noqa: SIM115
            self._take_lock()
            for left in self.folder.glob(".step-*.part"):  # of a run that was killed while writing
                left.unlink(missing_ok=True)
            self._remove_parts(self._parts() - {step for step, _ in self._files()})
            self._lock.truncate(0)
            self._lock.write(self._owner)
            self._lock.flush()
            os.fsync(self._lock.fileno())
        except OSError as error:
            raise OSError(
                f"checkpoints cannot be written to {self.folder}: "
                f"{(error.strerror or str(error)).lower()}."
            ) from None

    def _see(self, owner: str) -> None:
        """Looks for the lock of the first process: its folder should be this one."""
        until = time.monotonic() + _PATIENCE
        while not self._processes.first:
            try:
                if (self.folder / _LOCK).read_text(encoding="ascii") == owner:
                    return
            except (OSError, UnicodeDecodeError):
                pass
            if time.monotonic() > until:
                raise ValueError(
                    f"process {self._processes.number} does not find in {self.folder} what the "
                    "first one has written there: it has to be one folder that all of them see."
                )
            time.sleep(0.1)

    def _take_lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._lock.fileno()).st_nlink:
                raise OSError("another run that has just failed removed it")
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().partition(" ")[0].strip()
            self._lock.close()
            raise ValueError(
                f"another run{f' (process {owner})' if owner else ''} is writing to {self.folder}: "
                "wait until it has ended, or pass another folder."
            ) from None

    def clear(self) -> None:
        """Removes the checkpoints that are there, whatever run they are of."""
        self._processes.agreed(lambda: self._remove(self._files()))

    def restore(self, like: T) -> Found:
        """The newest intact checkpoint, in the structure, shapes and dtypes of `like`.

        NumPy arrays grow during a run: they may have any number of rows. What has a
        `NamedSharding` in `like` is sharded so, and of a checkpoint's parts those are read that
        this process needs. A run of fewer steps, equal otherwise, is taken up, too.

        Args:
          like: a pytree of NumPy arrays, and of JAX's or their `jax.ShapeDtypeStruct`.

        Raises:
          ValueError: it belongs to another run; the message says what differs.
        """
        skipped: list[str] = []
        steps = self._processes.exchange([step for step, _ in self._files()])[0]
        for step in reversed(steps):
            path = self._path(step)
            state, damage = self._processes.together(partial(self._read, path, like))
            reasons = [reason for reason in self._processes.exchange(damage) if reason]
            if not reasons:
                return Found(state, skipped)
            skipped.append(f"the checkpoint {path} is damaged, and was skipped: {reasons[0]}.")
        return Found(None, skipped)

    def save(self, step: int, state: object) -> None:
        """Saves `state`, a pytree of arrays, as the checkpoint of `step`; returns when done.

        Raises:
          OSError: it cannot be written. The earlier ones are still there.
        """
        here, pieces = divided(state, self._processes)
        metadata = {"kind": _KIND, "version": _VERSION, "identity": json.dumps(dict(self.identity))}
        if self._processes.count > 1:
            of = f"{self._processes.number + 1}-of-{self._processes.count}"
            part = self.folder / f"step-{step:010d}.{of}.safetensors"
            try:
                written = self._processes.together(lambda: self._write_part(step, part, pieces))
            except Exception:
                if not self._path(step).exists():  # it may be one of an earlier checkpoint's
                    part.unlink(missing_ok=True)
                raise
            metadata["parts"] = json.dumps(
                {name: about for each in self._processes.exchange(written) for name, about in each}
            )
            metadata["arrays"] = json.dumps(
                {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in _named(state).items()}
            )
        self._processes.agreed(lambda: self._write(step, self._path(step), here, metadata))

    def _write_part(
        self, step: int, path: Path, pieces: Mapping[str, dict[Span, np.ndarray]]
    ) -> list[tuple[str, Any]]:
        """Writes what this process holds; (file name, what the checkpoint says of it), or none."""
        tensors = {
            f"{name}[{start}:{stop}]": piece
            for name, held in pieces.items()
            for (start, stop), piece in held.items()
        }
        if not tensors:
            return []
        metadata = {"kind": _PART, "version": _VERSION}
        seal = self._write(step, path, tensors, metadata)
        return [(path.name, {"seal": seal, "rows": {n: list(held) for n, held in pieces.items()}})]

    def _write(
        self, step: int, path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
    ) -> str:
        try:
            metadata = safetensors.sealed_metadata(tensors, metadata)
            _files.write_file(path, safetensors.to_bytes(tensors, metadata))
            if path == self._path(step):
                self._remove(self._files()[:-_KEPT])
                self._remove_parts({step}, of=json.loads(metadata.get("parts", "{}")))
        except (_files.OutputError, OSError) as error:
            reason = str(error).rstrip(".").rpartition(": ")[2]
            raise OSError(
                f"the checkpoint of step {step} cannot be written to {self.folder}: {reason}. "
                "Earlier checkpoints are kept: make room, and run the same again to go on."
            ) from None
        return metadata[safetensors.SEAL]

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:010d}.safetensors"

    def _files(self) -> list[tuple[int, Path]]:
        """(step, path), the newest last. Whatever else lies there is left alone."""
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match and path.is_file())

    def _remove(self, files: list[tuple[int, Path]]) -> None:
        # The file that makes it a checkpoint first: what is left of it then is no damaged one.
        for step, path in files:
            path.unlink(missing_ok=True)
            self._remove_parts({step})

    def _remove_parts(self, steps: set[int], of: Collection[str] = ()) -> None:
        """Removes the parts of checkpoints of some steps, but those that are named."""
        for path in list(self.folder.iterdir()):
            match = _PART_NAME.fullmatch(path.name)
            if match and int(match[1]) in steps and path.name not in of:
                path.unlink(missing_ok=True)

    def _parts(self) -> set[int]:
        """The steps of which there are parts."""
        found = (_PART_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return {int(match[1]) for match in found if match}

    def _read(self, path: Path, like: T) -> tuple[T | None, str | None]:
        """The checkpoint at a path, or what is wrong with it."""
        try:
            tensors, metadata, _ = _intact(path)
        except (ValueError, OSError) as error:
            return None, _reason(error)
        if (metadata.get("kind"), metadata.get("version")) != (_KIND, _VERSION):
            raise ValueError(
                f"{path} was written by another version of jaxtrelu: resume with that, or pass "
                "another folder to start afresh."
            )
        self._check(json.loads(metadata["identity"]))
        arrays = json.loads(metadata.get("arrays", "{}"))
        there = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in arrays.items()}
        there |= {name: (array.shape, array.dtype) for name, array in tensors.items()}
        # All of what is in this file, and of what is in parts the rows that are needed here.
        held = {name: {(0, len(a) if a.ndim else 1): a} for name, a in tensors.items()}
        missing: dict[str, dict[Span, np.ndarray]] = {}
        for name, old in _named(like).items():
            _check_fits(name, old, there.get(name))
            if name not in tensors:
                shape, dtype = there[name]
                spans = {(a, b): np.empty((b - a, *shape[1:]), dtype) for a, b in needed(old)}
                held[name] = missing[name] = spans
        damage = self._fill(missing, json.loads(metadata.get("parts", "{}")))
        return (None, damage) if damage else (_put(like, held), None)

    def _fill(
        self, missing: Mapping[str, Mapping[Span, np.ndarray]], parts: Mapping[str, Any]
    ) -> str | None:
        """Reads rows from the parts that have them; what is wrong with a part, if anything."""
        left = {name: sum(len(array) for array in missing[name].values()) for name in missing}
        for file, about in parts.items():
            # (tensor, where in it, array to fill, where in that)
            copies: list[tuple[str, slice, np.ndarray, slice]] = []
            for name, spans in about["rows"].items():
                for start, stop in spans:
                    for (first, last), array in missing.get(name, {}).items():
                        low, high = max(start, first), min(stop, last)
                        if low < high:
                            source = slice(low - start, high - start)
                            target = slice(low - first, high - first)
                            copies.append((f"{name}[{start}:{stop}]", source, array, target))
                            left[name] -= high - low
            if not copies:
                continue
            try:
                pieces, kinds, seal = _intact(self.folder / file)
                if seal != about["seal"] or kinds.get("kind") != _PART:
                    raise ValueError("it is of another checkpoint")
            except (ValueError, OSError) as error:
                return f"its part {file}: {_reason(error)}"
            for tensor, source, array, target in copies:
                array[target] = pieces[tensor][source]
        return "its parts do not have all rows" if any(left.values()) else None

    def _check(self, saved: Mapping[str, str]) -> None:
        names = {*saved, *self.identity}
        if _whole(saved.get("steps")) < _whole(self.identity.get("steps")):
            names -= {"steps", "log_every"}  # the same run, extended
        differing = [
            f"{name} is {saved.get(name)} there and {self.identity.get(name)} here"
            for name in sorted(names)
            if saved.get(name) != self.identity.get(name)
        ]
        if differing:
            raise ValueError(
                f"the checkpoints in {self.folder} belong to another run: {'; '.join(differing)}. "
                "Pass the settings of that run to resume it, or another folder, or fresh=True, to "
                "start afresh."
            )


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _named(state: object) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _intact(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], str]:
    """Tensors, metadata and seal of a file. Raises ValueError where it is damaged."""
    tensors, metadata = safetensors.read(path)
    return tensors, safetensors.check_seal(path, tensors, metadata), metadata[safetensors.SEAL]


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return str(error).rstrip(".").rpartition(": ")[2]


def _check_fits(name: str, old: Any, new: tuple[tuple[int, ...], np.dtype] | None) -> None:
    """Of one identity, so shapes agree unless optax changed."""
    if new is not None:
        shape, dtype = new
        if isinstance(old, np.ndarray):  # grows
            shape = (*old.shape[:1], *shape[1:])
        if (shape, dtype) == (old.shape, old.dtype):
            return
    raise ValueError(
        f"the checkpoint's {name} does not fit this version of the library or of optax: "
        "resume with the versions that wrote it, or pass another folder to start afresh."
    )


def _put(like: T, held: Mapping[str, Mapping[Span, np.ndarray]]) -> T:
    """The state of the rows that were read."""

    def leaf(path: Any, old: Any) -> Any:
        arrays = held[jax.tree_util.keystr(path)]
        sharding = getattr(old, "sharding", None)
        # Copies throughout: a training step donates its state.
        if isinstance(sharding, NamedSharding):
            return jax.make_array_from_callback(
                old.shape, sharding, lambda index: rows_of(arrays, index, old.shape).copy()
            )
        (array,) = arrays.values()
        return array.copy() if isinstance(old, np.ndarray) else jnp.array(array)

    return jax.tree_util.tree_map_with_path(leaf, like)
