"""Files of Gemma Scope and Gemma Scope 2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtrelu.sae._formats import npz, safetensors
from jaxtrelu.sae._formats.shared import (
    LOWER,
    UPPER,
    Arrays,
    Contents,
    RefusedError,
    arrays_of,
    folded_for,
    read_json,
    take,
    weights_from,
)
from jaxtrelu.sae._model import Autoencoder

# What the header of a square transcoder's file says here; whoever reads tensors alone passes it by.
_TRANSCODER = {"type": "transcoder"}


def read_gemma_scope(arrays: Arrays) -> Autoencoder:
    """`params.npz`: no subtraction, no scale."""
    (threshold,) = take(arrays, "threshold")
    return Autoencoder(
        weights_from(arrays, UPPER, threshold, encoder_by_feature=False, decoder_by_feature=True)
    )


def write_gemma_scope(model: Autoencoder) -> Contents:
    """`params.npz`, in which shapes alone can say that a model is a transcoder."""
    if model.is_transcoder and model.skip is None and model.dimension == model.output_dimension:
        raise RefusedError(
            "a params.npz of Gemma Scope says by its shapes alone what is a transcoder, and this "
            "one writes as many dimensions as it reads: pass format='gemma_scope_2' or 'saelens'"
        )
    arrays, _ = arrays_of(folded_for(model, "Gemma Scope", transcoder=True))
    return {"": npz.to_bytes(arrays)}


def read_gemma_scope_2(
    arrays: Arrays, metadata: Mapping[str, str], folder: Path | None
) -> Autoencoder:
    """`params.safetensors`: the output adds x @ affine_skip_connection.

    Args:
      arrays: of the file.
      metadata: of the file; a transcoder written here says so.
      folder: where the file lies; the config.json of a release names the hooks. None: none is.
    """
    if "w_dec" in arrays and arrays["w_dec"].ndim == 3:
        raise RefusedError(
            f"it is a cross-layer transcoder whose decoder writes to {arrays['w_dec'].shape[1]} "
            "layers; take one layer of w_dec and b_dec"
        )
    (threshold,) = take(arrays, "threshold")
    weights = weights_from(
        arrays, LOWER, threshold, encoder_by_feature=False, decoder_by_feature=True
    )
    skip = None
    if "affine_skip_connection" in arrays:
        (skip,) = take(arrays, "affine_skip_connection")
    about: dict[str, Any] = {}
    if metadata.get("type") == _TRANSCODER["type"] or _writes_elsewhere(folder):
        about["transcoder"] = True
    return Autoencoder(weights, skip, about=about)  # type: ignore[arg-type]


def _writes_elsewhere(folder: Path | None) -> bool:
    """Whether a config.json names another hook for the outputs than for the inputs."""
    if folder is None or not (folder / "config.json").is_file():
        return False
    cfg = read_json(folder / "config.json")
    hook = cfg.get("hf_hook_point_in")
    return bool(cfg.get("affine_connection")) or cfg.get("hf_hook_point_out", hook) != hook


def write_gemma_scope_2(model: Autoencoder) -> Contents:
    """`params.safetensors`."""
    arrays, skip = arrays_of(folded_for(model, "Gemma Scope 2", skip=True, transcoder=True))
    arrays = {name.lower(): array for name, array in arrays.items()}
    if skip is not None:
        arrays["affine_skip_connection"] = skip
    return {"": safetensors.to_bytes(arrays, _TRANSCODER if model.is_transcoder else None)}
