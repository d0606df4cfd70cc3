"""The state of an NNX model as Orbax saves it: found in a folder, read, and put into a model."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxtrelu._cli import UserError

_SHOWN = 3  # paths in an error
# No weights: of these what the built model has does, where the checkpoint has none.
_PASSING = (nnx.RngState, nnx.Cache, nnx.Intermediate)
_Flat = dict[tuple[str, ...], Any]


def restore(model: nnx.Module, folder: str, part: str | None) -> Path:
    """Puts the state that was saved into the model, and says which folder it came from.

    Raises:
        UserError: no checkpoint there, or one of another model.
    """
    path = _find(Path(folder).expanduser())
    flat = _plain(_read(path))
    own = nnx.to_flat_state(nnx.state(model))
    wanted = {
        _words(place): variable for place, variable in own if not isinstance(variable, _PASSING)
    }
    ignored = {_words(place) for place, variable in own if isinstance(variable, _PASSING)}
    stored = _part(flat, set(wanted), part, path)
    missing = sorted(set(wanted) - set(stored))
    other = sorted(set(stored) - set(wanted) - ignored)
    shapes = [
        f"{'.'.join(place)} has shape {np.shape(stored[place])}, not {wanted[place].shape}"
        for place in sorted(set(wanted) & set(stored))
        if np.shape(stored[place]) != wanted[place].shape
    ]
    for what, which in (("lacks", missing), ("has besides", other)):
        if which:
            raise UserError(
                f"{path} is no checkpoint of the model that --model builds: it {what} "
                f"{_some(['.'.join(place) for place in which])}."
            )
    if shapes:
        raise UserError(f"{path} is of another model than --model builds: {_some(shapes)}.")
    for place, variable in wanted.items():
        variable[...] = np.asarray(stored[place]).astype(variable.dtype)
    return path


def _words(place: tuple) -> tuple[str, ...]:
    return tuple(map(str, place))


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _find(path: Path) -> Path:
    """The folder that holds the arrays: this one, or the last step of a CheckpointManager's."""
    if not path.is_dir():
        what = "is a file, not the folder" if path.exists() else "is not there: it should be that"
        raise UserError(f"{path} {what} of an Orbax checkpoint.")
    if (path / "_METADATA").exists():
        return path.resolve()
    steps = sorted((f for f in path.iterdir() if f.name.isdigit()), key=lambda f: int(f.name))
    step = steps[-1] if steps else path
    items = sorted(f.parent for f in step.glob("*/_METADATA"))
    if (step / "_METADATA").exists():
        return step.resolve()
    if len(items) == 1:
        return items[0].resolve()
    if items:
        raise UserError(
            f"{step} holds {_some([f.name for f in items])}: pass one of these folders."
        )
    raise UserError(f"{path} holds no Orbax checkpoint: it has no _METADATA, nor steps that have.")


def _read(path: Path) -> Any:
    """The tree, as NumPy arrays, wherever they were when they were saved."""
    import jax
    import orbax.checkpoint as ocp

    def is_leaf(value: Any) -> bool:
        return hasattr(value, "shape")

    with _quiet(), ocp.PyTreeCheckpointer() as files:
        try:
            found: Any = files.metadata(path)
            for name in ("item_metadata", "tree"):
                found = getattr(found, name, found)
            how = ocp.RestoreArgs(restore_type=np.ndarray)
            wanted = jax.tree.map(lambda _: how, found, is_leaf=is_leaf)
            return files.restore(path, restore_args=wanted)
        except (OSError, ValueError, KeyError, TypeError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"cannot read the checkpoint {path}: {first}.") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's remarks about shardings, which do not matter for NumPy arrays."""
    level = logging.getLogger("absl").level
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("absl").setLevel(level)


def _plain(tree: Any, place: tuple[str, ...] = ()) -> _Flat:
    """From path to array. A variable's array may lie one level deeper, under 'value'."""
    if isinstance(tree, dict):
        if set(tree) == {"value"}:
            return _plain(tree["value"], place)
        pairs = tree.items()
    elif isinstance(tree, list | tuple):
        pairs = enumerate(tree)
    else:
        return {place: tree}
    return {k: v for name, part in pairs for k, v in _plain(part, (*place, str(name))).items()}


def _part(flat: _Flat, wanted: set, part: str | None, path: Path) -> _Flat:
    """What lies below a place of the tree: the one named, or the only one where the model fits."""
    if part is not None:
        begin = tuple(part.split("."))
        found = _below(flat, begin)
        if not found:
            tops = _some(sorted({place[0] for place in flat if place}))
            raise UserError(f"{path} has no part {part!r}: there are {tops}.")
        return found
    begins = {place[:depth] for place in flat for depth in range(3)}
    fits = [begin for begin in sorted(begins) if wanted <= set(_below(flat, begin))]
    if len(fits) > 1:
        names = _some([".".join(begin) for begin in fits])
        raise UserError(f"the model fits several parts of {path}: pass --part, one of {names}.")
    return _below(flat, fits[0]) if fits else flat


def _below(flat: _Flat, begin: tuple[str, ...]) -> _Flat:
    return {
        place[len(begin) :]: value for place, value in flat.items() if place[: len(begin)] == begin
    }


def save(folder: Path, model: nnx.Module) -> None:
    """Saves the model's state as a dictionary. Raises UserError where that is not possible."""
    import orbax.checkpoint as ocp

    try:
        with _quiet(), ocp.StandardCheckpointer() as files:
            files.save(folder.resolve(), nnx.to_pure_dict(nnx.state(model)))
            files.wait_until_finished()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot save the model to {folder}: {error}.") from None
