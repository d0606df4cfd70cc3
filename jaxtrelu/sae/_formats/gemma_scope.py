"""Files of Gemma Scope and Gemma Scope 2."""

from jaxtrelu.sae._formats import npz, safetensors
from jaxtrelu.sae._formats.shared import (
    LOWER,
    UPPER,
    Arrays,
    Contents,
    RefusedError,
    arrays_of,
    folded_for,
    take,
    weights_from,
)
from jaxtrelu.sae._model import Autoencoder


def read_gemma_scope(arrays: Arrays) -> Autoencoder:
    """`params.npz`: no subtraction, no scale."""
    (threshold,) = take(arrays, "threshold")
    return Autoencoder(
        weights_from(arrays, UPPER, threshold, encoder_by_feature=False, decoder_by_feature=True)
    )


def write_gemma_scope(model: Autoencoder) -> Contents:
    """`params.npz`."""
    arrays, _ = arrays_of(folded_for(model, "Gemma Scope", transcoder=True))
    return {"": npz.to_bytes(arrays)}


def read_gemma_scope_2(arrays: Arrays) -> Autoencoder:
    """`params.safetensors`: the output adds x @ affine_skip_connection."""
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
    return Autoencoder(weights, skip)  # type: ignore[arg-type]


def write_gemma_scope_2(model: Autoencoder) -> Contents:
    """`params.safetensors`."""
    arrays, skip = arrays_of(folded_for(model, "Gemma Scope 2", skip=True, transcoder=True))
    arrays = {name.lower(): array for name, array in arrays.items()}
    if skip is not None:
        arrays["affine_skip_connection"] = skip
    return {"": safetensors.to_bytes(arrays)}
