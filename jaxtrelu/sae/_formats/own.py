"""The library's own file: everything that a model needs, sealed with a checksum."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxtrelu.sae._formats import recipe, safetensors
from jaxtrelu.sae._formats.shared import (
    Contents,
    RefusedError,
)
from jaxtrelu.sae._model import Autoencoder
from jaxtrelu.sae._weights import Weights

OWN_KIND, OWN_VERSION = "jaxtrelu.sae", 1


def write_own(model: Autoencoder) -> Contents:
    """The library's own file, sealed with a checksum."""
    tensors = {name: np.asarray(value) for name, value in model.weights._asdict().items()}
    if model.skip is not None:
        tensors["skip"] = np.asarray(model.skip)
    settings = {
        "input_scale": float(model.input_scale),
        "output_scale": float(model.output_scale),
        "normalisation": model.normalisation,
        "subtract_decoder_bias": model.subtract_decoder_bias,
        "recipe": None if model.recipe is None else recipe.to_json(model.recipe),
        "about": dict(model.about),
    }
    metadata = {
        "kind": OWN_KIND,
        "version": str(OWN_VERSION),
        "settings": json.dumps(settings, sort_keys=True),
    }
    return {"": safetensors.sealed(tensors, metadata)}


def read_own(path: Path) -> Autoencoder:
    """The library's own file."""
    tensors, metadata = safetensors.read(path)
    version = metadata.get("version", "")
    if version.isdecimal() and int(version) > OWN_VERSION:
        raise RefusedError(f"it was written by a newer version of jaxtrelu (format {version})")
    metadata = safetensors.check_seal(path, tensors, metadata)
    try:
        settings = json.loads(metadata["settings"])
        if settings["recipe"] is not None:
            settings["recipe"] = recipe.from_json(settings["recipe"])
        skip = tensors.get("skip")
        weights = Weights(*(jnp.asarray(tensors[name]) for name in Weights._fields))
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"its settings cannot be understood ({error})") from None
    return Autoencoder(weights, None if skip is None else jnp.asarray(skip), **settings)
