"""Folders of dictionary_learning: JumpReLU, and BatchTopK by its threshold."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrelu.sae._formats import torch_file
from jaxtrelu.sae._formats.shared import (
    UPPER,
    Contents,
    RefusedError,
    arrays_of,
    folded_for,
    json_bytes,
    read_json,
    take,
    weights_from,
)
from jaxtrelu.sae._model import Autoencoder, in_numpy


def read_dictionary_learning(found: Any, folder: Path) -> Autoencoder:
    """`ae.pt`: JumpReLU or BatchTopK, or a checkpoint in mid-run with its weights under "ae"."""
    about: dict[str, Any] = {}
    if isinstance(found, dict) and isinstance(found.get("ae"), dict):
        about["step"] = found.get("step")
        if found.get("norm_factor") is not None:
            about["norm_factor"] = float(found["norm_factor"])
        found = found["ae"]
    if not isinstance(found, dict) or not all(isinstance(v, np.ndarray) for v in found.values()):
        raise RefusedError("it holds no dictionary of tensors, as an autoencoder's file does")
    if (folder / "config.json").exists():
        config = read_json(folder / "config.json").get("trainer")
        keep = ("dict_class", "layer", "lm_name", "submodule_name")
        if isinstance(config, dict):
            about["trainer"] = {k: config[k] for k in keep if k in config}
    kind = str(about.get("trainer", {}).get("dict_class", ""))
    # Trained on inputs divided by norm_factor; at the end of a run dictionary_learning scales the
    # biases back, in mid-run it has not yet.
    scale = 1 / about.get("norm_factor", 1.0)
    if not 0 < scale < math.inf:
        raise RefusedError(f"its norm_factor is {about['norm_factor']!r}")
    if "W_enc" in found:
        if "threshold" not in found:
            raise RefusedError("it has no threshold")
        (threshold,) = take(found, "threshold")
        weights = weights_from(
            found, UPPER, threshold, encoder_by_feature=False, decoder_by_feature=True
        )
        return Autoencoder(
            weights, input_scale=scale, output_scale=scale,
            about={"dictionary_learning": about},
        )  # fmt: skip
    if "gate_bias" in found or "r_mag" in found:
        raise RefusedError(
            "it is a gated autoencoder, whose gate is a second encoder and no threshold"
        )
    names = ("encoder.weight", "decoder.weight", "encoder.bias", "b_dec")
    if "k" not in found:
        reason = "it is no JumpReLU or BatchTopK autoencoder of dictionary_learning"
        raise RefusedError(f"{reason}: it has {', '.join(sorted(map(str, found))[:8])}")
    # AutoEncoderTopK saves a threshold, too, and encodes by top-k of each row.
    if kind and "BatchTopK" not in kind:
        raise RefusedError(
            f"it is a {kind}, which keeps the k largest of each row, by no threshold; train a "
            "BatchTopK or JumpReLU autoencoder"
        )
    (threshold,) = take(found, "threshold")
    if threshold.ndim or not threshold >= 0:
        raise RefusedError(
            "its threshold is not set (-1), so only top-k over a batch is defined; train until "
            "dictionary_learning has set it (threshold_start_step)"
        )
    weights = weights_from(
        found, names, threshold, encoder_by_feature=True, decoder_by_feature=False, sure=True
    )
    about["k"] = int(found["k"])
    return Autoencoder(
        weights, input_scale=scale, output_scale=scale, subtract_decoder_bias=True,
        about={"dictionary_learning": about},
    )  # fmt: skip


def write_dictionary_learning(model: Autoencoder) -> Contents:
    """`ae.pt` and `config.json` of its JumpReLU autoencoder."""
    arrays, _ = arrays_of(folded_for(model, "dictionary_learning"))
    return {
        "ae.pt": torch_file.to_bytes(arrays),
        "config.json": _trainer(model, "JumpReluAutoEncoder", "JumpReluTrainer"),
    }


def write_batch_top_k(model: Autoencoder) -> Contents:
    """`ae.pt` and `config.json` of its BatchTopK autoencoder: one threshold, and its k."""
    whole = folded_for(model, "dictionary_learning")
    threshold = np.asarray(model.threshold)
    k = model.about.get("dictionary_learning", {}).get("k") if model.about else None
    if (threshold != threshold[0]).any() or k is None:
        raise RefusedError(
            "a BatchTopK autoencoder has one threshold for all features, and a k; pass "
            "format='dictionary_learning' for its JumpReLU"
        )
    w = in_numpy(whole.weights, np.float64)
    arrays = {
        "encoder.weight": w.encoder,
        "encoder.bias": w.encoder_bias + w.encoder @ w.decoder_bias,
        "decoder.weight": w.decoder.T,
        "b_dec": w.decoder_bias,
        "threshold": threshold[0],
    }
    if (model.input_scale, model.output_scale, model.subtract_decoder_bias) == (1.0, 1.0, True):
        arrays["encoder.bias"] = np.asarray(model.weights.encoder_bias)  # bit for bit
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    arrays["k"] = np.asarray(k, np.int32)
    return {
        "ae.pt": torch_file.to_bytes(arrays),
        "config.json": _trainer(model, "BatchTopKSAE", "BatchTopKTrainer"),
    }


def _trainer(model: Autoencoder, kind: str, trainer: str) -> bytes:
    kept = model.about.get("dictionary_learning", {}).get("trainer", {})
    sizes = {"activation_dim": model.dimension, "dict_size": model.features}
    return json_bytes({"trainer": {**kept, "dict_class": kind, "trainer_class": trainer, **sizes}})
