"""The formats in a table, and by which arrays each is recognised.

Rules were read from the loaders of the libraries themselves; docs/autoencoders.md has them in a
table, with the mistakes of other loaders that are not repeated here.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxtrelu.sae._formats.circuit_tracer import read_circuit_tracer, write_circuit_tracer
from jaxtrelu.sae._formats.dictionary_learning import write_batch_top_k, write_dictionary_learning
from jaxtrelu.sae._formats.gemma_scope import (
    read_gemma_scope,
    read_gemma_scope_2,
    write_gemma_scope,
    write_gemma_scope_2,
)
from jaxtrelu.sae._formats.llama_scope import write_llama_scope
from jaxtrelu.sae._formats.own import write_own
from jaxtrelu.sae._formats.saelens import write_saelens
from jaxtrelu.sae._formats.shared import Arrays, Contents, RefusedError, take
from jaxtrelu.sae._model import Autoencoder
from jaxtrelu.sae._weights import Weights


class Format(NamedTuple):
    """A format."""

    title: str
    """What it is, for tables."""
    file: str
    """The name of its file, or of the main one in a folder."""
    is_folder: bool
    """Whether there are several files, so that a path means a folder."""
    write: Callable[[Autoencoder], Contents]
    """Raises RefusedError."""


FORMATS = {
    "jaxtrelu": Format("jaxtrelu's own", "sae.safetensors", False, write_own),
    "gemma_scope": Format("Gemma Scope", "params.npz", False, write_gemma_scope),
    "gemma_scope_2": Format("Gemma Scope 2", "params.safetensors", False, write_gemma_scope_2),
    "saelens": Format("SAELens", "cfg.json", True, write_saelens),
    "dictionary_learning": Format(
        "dictionary_learning, JumpReLU", "ae.pt", True, write_dictionary_learning
    ),
    "dictionary_learning_batch_top_k": Format(
        "dictionary_learning, BatchTopK", "ae.pt", True, write_batch_top_k
    ),
    "llama_scope": Format("Llama Scope", "hyperparams.json", True, write_llama_scope),
    "circuit_tracer": Format(
        "circuit-tracer transcoder", "layer_0.safetensors", False, write_circuit_tracer
    ),
}


def recognise_arrays(
    arrays: Arrays, metadata: Mapping[str, str] | None = None, folder: Path | None = None
) -> Autoencoder:
    """The model in a file of arrays alone, told by their names.

    Args:
      arrays: by name.
      metadata: of the same file, if it has any.
      folder: where the file lies, beside what else says of what the arrays are.
    """
    if "activation_function.threshold" in arrays:
        return read_circuit_tracer(arrays)
    if "w_enc" in arrays:
        return read_gemma_scope_2(arrays, metadata or {}, folder)
    if "W_enc" in arrays and "threshold" in arrays:
        return read_gemma_scope(arrays)
    if "encoder.weight" in arrays and "W_dec" in arrays:
        raise RefusedError("it is an autoencoder of sparsify, which is top-k and has no threshold")
    if set(Weights._fields) <= set(arrays):
        if "input_scale" not in arrays:
            raise RefusedError(
                "its tensors are those of sae.save, and its header is not: it is damaged"
            )
        # The sae.npz of jaxtrelu 0.1.
        weights = Weights(*(take(arrays, *Weights._fields)))  # type: ignore[arg-type]
        scale = float(take(arrays, "input_scale")[0])
        return Autoencoder(weights, input_scale=scale, output_scale=scale)
    if "encoder.weight" in arrays or "W_enc" in arrays:
        raise RefusedError(
            "it has no threshold, without which nothing says which features are open"
        )
    names = ", ".join(sorted(arrays)[:8]) or "nothing"
    raise RefusedError(f"its arrays are those of no known autoencoder: it has {names}")


def check_finite(model: Autoencoder) -> None:
    """Raises RefusedError where a weight is NaN or infinite."""
    named = {**model.weights._asdict(), "skip": model.skip}
    for name, value in named.items():
        # A threshold at infinity closes a feature for good, which is allowed.
        if value is None or (name == "threshold" and not np.isnan(value).any()):
            continue
        if not np.isfinite(value).all():
            raise RefusedError(f"its {name} holds NaN or infinity")


def name_of(path: str | os.PathLike) -> str:
    """How a path is called in messages."""
    return repr(os.fspath(path))
