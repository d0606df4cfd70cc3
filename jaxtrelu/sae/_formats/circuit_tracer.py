"""Transcoders of circuit-tracer."""

import numpy as np

from jaxtrelu.sae._formats import safetensors
from jaxtrelu.sae._formats.shared import (
    UPPER,
    Arrays,
    Contents,
    arrays_of,
    folded_for,
    take,
    weights_from,
)
from jaxtrelu.sae._model import Autoencoder


def read_circuit_tracer(arrays: Arrays) -> Autoencoder:
    """`layer_{i}.safetensors`, a transcoder: W_enc is (m, d), and the skip x @ W_skip.T."""
    (threshold,) = take(arrays, "activation_function.threshold")
    weights = weights_from(
        arrays, UPPER, threshold.reshape(-1) if threshold.size > 1 else threshold.reshape(()),
        encoder_by_feature=True, decoder_by_feature=True,
    )  # fmt: skip
    skip = None
    if "W_skip" in arrays:
        (skip,) = take(arrays, "W_skip")
        skip = skip.T
    return Autoencoder(weights, skip, about={"transcoder": True})  # type: ignore[arg-type]


def write_circuit_tracer(model: Autoencoder) -> Contents:
    """`layer_{i}.safetensors`."""
    arrays, skip = arrays_of(folded_for(model, "circuit-tracer", skip=True, transcoder=True))
    arrays["W_enc"] = np.ascontiguousarray(arrays["W_enc"].T)
    arrays["activation_function.threshold"] = arrays.pop("threshold")
    if skip is not None:
        arrays["W_skip"] = np.ascontiguousarray(skip.T)
    return {"": safetensors.to_bytes(arrays)}
