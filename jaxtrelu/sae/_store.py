"""Loading and saving models: which format a path holds, and whole files or none."""

import os
from pathlib import Path
from typing import Literal, get_args

from jaxtrelu import _files
from jaxtrelu.sae._formats import npz, safetensors, torch_file
from jaxtrelu.sae._formats.dictionary_learning import read_dictionary_learning
from jaxtrelu.sae._formats.llama_scope import read_llama_scope
from jaxtrelu.sae._formats.own import OWN_KIND, read_own
from jaxtrelu.sae._formats.saelens import read_saelens
from jaxtrelu.sae._formats.shared import RefusedError
from jaxtrelu.sae._formats.table import FORMATS, check_finite, name_of, recognise_arrays
from jaxtrelu.sae._model import Autoencoder

FormatName = Literal[
    "jaxtrelu", "gemma_scope", "gemma_scope_2", "saelens", "dictionary_learning",
    "dictionary_learning_batch_top_k", "llama_scope", "circuit_tracer",
]  # fmt: skip
assert set(get_args(FormatName)) == set(FORMATS)


_SAELENS = ("cfg.json", "sae_weights.safetensors")
_SUFFIXES = (".safetensors", ".npz")
_NAMED = 8  # files, in a message


def load(path: str | os.PathLike) -> Autoencoder:
    """A model from a file or folder, in any of the known formats, which it recognises.

    Needs no PyTorch, and never runs a pickle.

    Args:
      path: of a file: `sae.save`'s own, `params.npz` (Gemma Scope), `params.safetensors` (Gemma
        Scope 2), `ae.pt` (dictionary_learning), `layer_*.safetensors` (circuit-tracer); or of a
        folder that holds one of these, or the files of SAELens or Llama Scope.

    Returns:
      An `Autoencoder`, in float32.

    Raises:
      TypeError: that is no path.
      FileNotFoundError: there is nothing at the path.
      ValueError: the file is damaged, newer, of an unknown format, or of an autoencoder without
        thresholds; the message is one sentence that says what to do.

    Source: docs/autoencoders.md has the rules of each format, and where they were read.
    """
    path = _path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {name_of(path)}.")
    try:
        model = _folder(path) if path.is_dir() else _file(path)
        check_finite(model)
    except RefusedError as reason:
        raise ValueError(f"{name_of(path)} cannot be loaded: {reason}.") from None
    except ValueError as error:
        text = str(error)
        if name_of(path) in text or str(path) in text:
            raise
        raise ValueError(f"{name_of(path)} cannot be loaded: {text}") from None
    except OSError as error:
        raise ValueError(
            f"{name_of(path)} cannot be read: {(error.strerror or str(error)).lower()}."
        ) from None
    return model


def save(
    model: Autoencoder, path: str | os.PathLike, *, format: FormatName = "jaxtrelu"
) -> list[Path]:
    """Writes a model, whole or not at all.

    Args:
      model: the model. What a format has no place for (a scale, a subtraction) is folded into the
        weights, in float64, which changes the function by rounding only; what cannot be folded is
        refused.
      path: of the file, or of the folder where the format has several files ("saelens",
        "dictionary_learning", "llama_scope"); folders that are not there are made. A folder that
        exists, for a format of one file, takes that file under its usual name; and where a path for
        another library's format has no suffix, such a folder is made. (Of "circuit_tracer" the
        usual name is `layer_0.safetensors`; the number of another layer is for the path to say.)
      format: "jaxtrelu" holds everything, the recipe with every setting included, under a checksum;
        the others are those of `load`.

    Returns:
      The files that were written.

    Raises:
      TypeError: it is no `Autoencoder`, or no path.
      ValueError: the format is not known, or cannot hold the model; the message says why.
      OSError: the file system refuses.
    """
    if format not in FORMATS:
        raise ValueError(f"`format` should be one of {', '.join(FORMATS)}, but is {format!r}.")
    if not isinstance(model, Autoencoder):
        raise TypeError(
            f"`model` should be a jaxtrelu.sae.Autoencoder, but is a {type(model).__name__}. "
            "A Flax module has to_model()."
        )
    kind, path = FORMATS[format], _path(path)
    try:
        contents = kind.write(model)
    except RefusedError as reason:
        raise ValueError(f"the model cannot be written as {format!r}: {reason}.") from None
    if not kind.is_folder and (path.is_dir() or (format != "jaxtrelu" and _is_new_folder(path))):
        path = path / kind.file
    try:
        if kind.is_folder:
            _files.check_folder(path)
            written: list[Path] = list(_files.write_files(path, contents))
        else:
            _files.check_file(path)
            written = [_files.write_file(path, contents[""])]
    except _files.OutputError as error:
        raise OSError(str(error)) from None
    return written


def _is_new_folder(path: Path) -> bool:
    """Whether another library, which goes by the names of files, needs a folder made there."""
    return path.suffix.lower() not in _SUFFIXES and not path.exists()


def _path(path: str | os.PathLike) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            "`path` should be the path of a file or folder, such as 'model.safetensors', but is "
            f"{path!r:.40}."
        )
    return Path(path).expanduser()


def _folder(path: Path) -> Autoencoder:
    own = path / FORMATS["jaxtrelu"].file
    if own.is_file():
        return read_own(own)
    if (path / "cfg.json").is_file() and (path / "sae_weights.safetensors").is_file():
        return read_saelens(path)
    if (path / "cfg.json").is_file() and (path / "sae.safetensors").is_file():
        raise RefusedError("it is an autoencoder of sparsify, which is top-k and has no threshold")
    if (path / "hyperparams.json").is_file() or (
        (path / "config.json").is_file() and (path / "sae_weights.safetensors").is_file()
    ):
        return read_llama_scope(path)
    for there, missing in (_SAELENS, _SAELENS[::-1]):
        if (path / there).is_file():
            raise RefusedError(
                f"the folder holds {there} alone, which is half of a model of SAELens: {missing} "
                "is missing"
            )
    known = [path / name for name in ("ae.pt", "params.npz", "params.safetensors")]
    found = [file for file in known if file.is_file()]
    if not found:
        found = sorted(path.glob("layer_*.safetensors"), key=lambda file: (len(file.name), file))
        if len(found) > 1:
            names = ", ".join(file.name for file in found[:_NAMED])
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            raise RefusedError(
                f"the folder holds a transcoder for each of several layers ({names}{more}); pass "
                "the path of one of these files"
            )
    if not found:
        raise RefusedError(
            "the folder holds none of the known files (sae.safetensors, cfg.json with "
            "sae_weights.safetensors, hyperparams.json, ae.pt, params.npz, params.safetensors, "
            "layer_*.safetensors)"
        )
    return _file(found[0])


def _file(path: Path) -> Autoencoder:
    with open(path, "rb") as stream:
        start = stream.read(16)
    if not start:
        raise RefusedError("the file is empty")
    if path.name in _SAELENS and not (path.parent / FORMATS["jaxtrelu"].file).is_file():
        return _folder(path.parent)
    if path.name in ("hyperparams.json", "final.safetensors"):
        folder = path.parent if path.suffix == ".json" else path.parent.parent
        if (folder / "hyperparams.json").is_file():
            return read_llama_scope(folder)
    if start[:2] == b"PK":
        return _zip(path)
    if start[8:9] == b"{":
        if safetensors.metadata_of(path).get("kind") == OWN_KIND:
            return read_own(path)
        return recognise_arrays(*safetensors.read(path), path.parent)
    if start[:1] == b"\x80" and path.suffix != ".safetensors":
        return read_dictionary_learning(torch_file.read(path), path.parent)  # says what it is
    if path.suffix == ".npz":
        return recognise_arrays(npz.read(path))
    if path.suffix in (".pt", ".pth"):
        return read_dictionary_learning(torch_file.read(path), path.parent)
    if path.suffix == ".safetensors":
        return recognise_arrays(*safetensors.read(path), path.parent)
    raise RefusedError(
        "it is none of the known kinds of files: .safetensors, .npz, or a .pt of torch.save"
    )


def _zip(path: Path) -> Autoencoder:
    if path.suffix in (".pt", ".pth"):
        return read_dictionary_learning(torch_file.read(path), path.parent)
    return recognise_arrays(npz.read(path))
