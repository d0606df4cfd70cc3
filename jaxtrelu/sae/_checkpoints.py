"""Checkpoints of a training run: whole files with a checksum and the run's identity."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrelu import _files
from jaxtrelu.sae._formats import safetensors

try:
    import fcntl
except ImportError:  # Windows, where two runs in one folder are the user's to avoid
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
_KIND, _VERSION = "checkpoint of jaxtrelu.sae", "1"
_NAME = re.compile(r"step-(\d{10})\.safetensors")
_KEPT = 2


class Found(NamedTuple):
    """What `Checkpoints.restore` found."""

    state: Any
    """The newest intact checkpoint, or the fresh state."""
    skipped: list[str]
    """A sentence for each newer one that is damaged."""


class Checkpoints:
    """The two newest checkpoints of one run, in a folder that no other run may use meanwhile.

    A context manager; the folder is made, locked and tried by writing when it is entered.

    Args:
      folder: where they are.

    Attributes:
      identity: what the run is: names and values that a checkpoint has to agree with to be resumed.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).expanduser().absolute()
        self.identity: Mapping[str, str] = {}
        self._lock: Any = None

    def __enter__(self) -> "Checkpoints":
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file, so no checkpoints can be kept in it.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "a+", encoding="ascii")
            self._take_lock()
            self._lock.truncate(0)
            self._lock.write(str(os.getpid()))
            self._lock.flush()
        except OSError as error:
            raise OSError(
                f"checkpoints cannot be written to {self.folder}: "
                f"{(error.strerror or str(error)).lower()}."
            ) from None
        for left in self.folder.glob(".step-*.part"):  # of a run that was killed while writing
            left.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _take_lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().strip()
            self._lock.close()
            raise ValueError(
                f"another run{f' (process {owner})' if owner else ''} is writing to {self.folder}: "
                "wait until it has ended, or pass another folder."
            ) from None

    def clear(self) -> None:
        """Removes the checkpoints that are there, whatever run they are of."""
        for _, path in self._files():
            path.unlink()

    def restore(self, fresh: T) -> Found:
        """The newest intact checkpoint, in the structure, shapes and dtypes of `fresh`.

        NumPy arrays grow during a run: they may have any number of rows. A run of fewer steps,
        equal otherwise, is taken up, too.

        Raises:
          ValueError: it belongs to another run; the message says what differs.
        """
        skipped = []
        for _, path in reversed(self._files()):
            try:
                tensors, metadata = safetensors.read(path)
                metadata = safetensors.check_seal(path, tensors, metadata)
            except (ValueError, OSError) as error:
                reason = str(error).rstrip(".").rpartition(": ")[2]
                skipped.append(f"the checkpoint {path} is damaged, and was skipped: {reason}.")
                continue
            if (metadata.get("kind"), metadata.get("version")) != (_KIND, _VERSION):
                raise ValueError(
                    f"{path} was written by another version of jaxtrelu: resume with that, or pass "
                    "another folder to start afresh."
                )
            self._check(json.loads(metadata["identity"]))
            return Found(_put(fresh, tensors), skipped)
        return Found(fresh, skipped)

    def save(self, step: int, state: object) -> None:
        """Saves `state`, a pytree of arrays, as the checkpoint of `step`; returns when done.

        Raises:
          OSError: it cannot be written. The earlier ones are still there.
        """
        metadata = {"kind": _KIND, "version": _VERSION, "identity": json.dumps(dict(self.identity))}
        path = self.folder / f"step-{step:010d}.safetensors"
        try:
            _files.write_file(path, safetensors.sealed(_named(state), metadata))
            for _, old in self._files()[:-_KEPT]:
                old.unlink(missing_ok=True)
        except (_files.OutputError, OSError) as error:
            reason = str(error).rstrip(".").rpartition(": ")[2]
            raise OSError(
                f"the checkpoint of step {step} cannot be written to {self.folder}: {reason}. "
                "Earlier checkpoints are kept: make room, and run the same again to go on."
            ) from None

    def _files(self) -> list[tuple[int, Path]]:
        """(step, path), the newest last. Whatever else lies there is left alone."""
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match and path.is_file())

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


def _named(state: object) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _put(fresh: T, tensors: Mapping[str, np.ndarray]) -> T:
    """The state of the saved tensors; of one identity, so shapes agree unless optax changed."""

    def leaf(path: Any, old: Any) -> Any:
        name = jax.tree_util.keystr(path)
        new = tensors.get(name)
        grows = isinstance(old, np.ndarray)
        shape = None if new is None else (*old.shape[:1], *new.shape[1:]) if grows else new.shape
        if new is None or (shape, new.dtype) != (old.shape, old.dtype):
            raise ValueError(
                f"the checkpoint's {name} does not fit this version of the library or of optax: "
                "resume with the versions that wrote it, or pass another folder to start afresh."
            )
        # Copies: a training step donates its state.
        return new.copy() if grows else jnp.array(new)

    return jax.tree_util.tree_map_with_path(leaf, fresh)
