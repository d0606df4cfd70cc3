"""Checkpoints of a training run, kept by orbax, each written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

T = TypeVar("T")


class Checkpoints:
    """The two newest checkpoints of one run, in a folder.

    Args:
      folder: made when the first checkpoint is saved.
      identity: what the run is: names and values that a checkpoint has to agree with to be resumed.
    """

    def __init__(self, folder: str | os.PathLike, identity: Mapping[str, str]):
        self.folder = Path(folder).expanduser().absolute()
        self.identity = dict(identity)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file, so no checkpoints can be kept in it.")
        self._check(self._saved_identity())

    def restore(self, fresh: T) -> T:
        """The newest checkpoint, in the structure, shapes and dtypes of `fresh`; else `fresh`."""
        if not self.folder.exists():
            return fresh
        with self._manager() as manager:
            newest = manager.latest_step()
            if newest is None:
                return fresh
            template = jax.tree.map(_abstract, fresh)
            return manager.restore(newest, args=ocp.args.StandardRestore(template))

    def save(self, step: int, state: object) -> None:
        """Saves `state`, a pytree of arrays, as the checkpoint of `step`; returns when done.

        Raises:
          OSError: it cannot be written. The earlier ones are still there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._saved_identity() is None:
                part = self.folder / f".run.{os.getpid()}.part"
                part.write_text(json.dumps(self.identity, indent=1), encoding="utf-8")
                os.replace(part, self.folder / "run.json")
            with self._manager() as manager:
                manager.save(step, args=ocp.args.StandardSave(state))
        except (OSError, ValueError, RuntimeError) as error:  # a full disk is a ValueError in orbax
            reason = str(error).partition(" [")[0]  # what follows is orbax's whole configuration
            raise OSError(
                f"the checkpoint of step {step} cannot be written to {self.folder}: {reason}. "
                "Earlier checkpoints are kept: make room, and run the same again to go on."
            ) from error

    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        return ocp.CheckpointManager(self.folder, options=options)

    def _saved_identity(self) -> dict[str, str] | None:
        try:
            text = (self.folder / "run.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return json.loads(text)

    def _check(self, saved: Mapping[str, str] | None) -> None:
        if saved is None:
            return
        names = sorted({*saved, *self.identity})
        differing = [
            f"{name} is {saved.get(name)} there and {self.identity.get(name)} here"
            for name in names
            if saved.get(name) != self.identity.get(name)
        ]
        if differing:
            raise ValueError(
                f"the checkpoints in {self.folder} belong to another run: {'; '.join(differing)}. "
                "Pass the settings of that run to resume it, or another folder to start afresh."
            )


def _abstract(leaf: jax.Array | np.ndarray) -> jax.ShapeDtypeStruct | np.ndarray:
    if isinstance(leaf, np.ndarray):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
