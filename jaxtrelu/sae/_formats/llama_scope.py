"""Folders of Llama Scope and of its R1."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrelu.sae._formats import safetensors
from jaxtrelu.sae._formats.shared import (
    LINEAR,
    Arrays,
    Contents,
    RefusedError,
    json_bytes,
    read_json,
    take,
    weights_from,
)
from jaxtrelu.sae._model import Autoencoder, in_numpy


def read_llama_scope(folder: Path) -> Autoencoder:
    """`hyperparams.json` and `checkpoints/final.safetensors`, or of Llama Scope R1."""
    old = (folder / "hyperparams.json").exists()
    cfg = read_json(folder / ("hyperparams.json" if old else "config.json"))
    file = (
        folder / "checkpoints" / "final.safetensors" if old else folder / "sae_weights.safetensors"
    )
    arrays, _ = safetensors.read(file)
    if cfg.get("use_glu_encoder"):
        raise RefusedError("its encoder is a gated linear unit, which has no threshold alone")
    if "log_jumprelu_threshold" in arrays:
        (threshold,) = take(arrays, "log_jumprelu_threshold")
        threshold = np.exp(threshold)
    else:
        value = cfg.get("jump_relu_threshold")
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise RefusedError(f"its jump_relu_threshold is {value!r}: top-k has no threshold")
        threshold = np.asarray(value, np.float32)
    weights = weights_from(
        arrays, LINEAR, threshold, encoder_by_feature=True, decoder_by_feature=False
    )
    if cfg.get("sparsity_include_decoder_norm"):
        # Thresholds are those of features times their decoder's norm, as at its own inference.
        norm = np.linalg.norm(weights.decoder, axis=1)
        norm = np.where(norm > 0, norm, 1)
        weights = weights._replace(
            encoder=weights.encoder * norm[:, None],
            encoder_bias=weights.encoder_bias * norm,
            decoder=weights.decoder / norm[:, None],
        )
    norms = cfg.get("dataset_average_activation_norm") or {}
    scale = [1.0, 1.0]
    if cfg.get("norm_activation", "dataset-wise") == "dataset-wise" and norms:
        try:
            d = weights.encoder.shape[1], weights.decoder.shape[1]
            ends = norms["in"], norms.get("out", norms["in"])
            scale = [n**0.5 / float(norm) for n, norm in zip(d, ends, strict=True)]
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            raise RefusedError(f"its dataset_average_activation_norm is {norms!r}") from None
    elif cfg.get("norm_activation", "none") not in ("none", "inference", "dataset-wise", None):
        raise RefusedError(
            f"it normalises activations {cfg['norm_activation']!r}, which is not known"
        )
    keep = ("hook_point_in", "hook_point_out", "model_name", "d_model", "d_sae")
    about: dict[str, Any] = {"llama_scope": {k: cfg[k] for k in keep if k in cfg}}
    if cfg.get("hook_point_out", cfg.get("hook_point_in")) != cfg.get("hook_point_in"):
        about["transcoder"] = True
    return Autoencoder(
        weights,
        input_scale=scale[0],
        output_scale=scale[1],
        subtract_decoder_bias=bool(cfg.get("apply_decoder_bias_to_pre_encoder")),
        about=about,
    )


def write_llama_scope(model: Autoencoder) -> Contents:
    """`hyperparams.json` and `checkpoints/final.safetensors`."""
    title = "Llama Scope"
    if model.is_transcoder:
        raise RefusedError(f"{title} has no place for a transcoder or a skip connection here")
    threshold = np.asarray(model.threshold)
    if (threshold != threshold[0]).any():
        raise RefusedError(f"{title} has one threshold for all features, and the model's differ")
    if model.normalisation != "none":
        raise RefusedError(f"{title} has no place for a normalisation row by row")
    w = in_numpy(model.weights, np.float32)
    root = model.dimension**0.5
    ends = float(model.input_scale), float(model.output_scale)
    cfg = {
        **model.about.get("llama_scope", {}),
        "d_model": model.dimension,
        "d_sae": model.features,
        "act_fn": "jumprelu",
        "jump_relu_threshold": float(threshold[0]),
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": root / ends[0], "out": root / ends[1]},
        "sparsity_include_decoder_norm": False,
        "apply_decoder_bias_to_pre_encoder": model.subtract_decoder_bias,
    }
    arrays: Arrays = {
        "encoder.weight": w.encoder, "decoder.weight": np.ascontiguousarray(w.decoder.T),
        "encoder.bias": w.encoder_bias, "decoder.bias": w.decoder_bias,
    }  # fmt: skip
    return {
        "hyperparams.json": json_bytes(cfg),
        "checkpoints/final.safetensors": safetensors.to_bytes(arrays),
    }
