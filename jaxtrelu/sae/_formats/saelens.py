"""Folders of SAELens, of any version."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrelu.sae._formats import safetensors
from jaxtrelu.sae._formats.shared import (
    UPPER,
    Contents,
    RefusedError,
    arrays_of,
    json_bytes,
    read_json,
    take,
    weights_from,
)
from jaxtrelu.sae._model import Autoencoder, folded
from jaxtrelu.sae._warn import warn

_SAELENS_NAMES = {
    "jumprelu", "jumprelu_training", "jumprelu_transcoder", "jumprelu_skip_transcoder",
}  # fmt: skip
_SAELENS_RELU = {"standard", "transcoder", "skip_transcoder"}


def read_saelens(folder: Path) -> Autoencoder:
    """`cfg.json` and `sae_weights.safetensors`, of any version."""
    cfg = read_json(folder / "cfg.json")
    arrays, _ = safetensors.read(folder / "sae_weights.safetensors")
    architecture = cfg.get("architecture", "standard")
    relu = architecture in _SAELENS_RELU and cfg.get("activation_fn_str", "relu") == "relu"
    if architecture not in _SAELENS_NAMES and not relu:
        reason = "it has no fixed threshold per feature"
        if "top" in f"{cfg.get('activation_fn_str')} {architecture}":
            reason = "top-k keeps the k largest of each row, by no threshold"
        raise RefusedError(
            f"its architecture is {architecture!r}, and {reason}; convert it to 'jumprelu' where "
            "it was trained"
        )
    if cfg.get("activation_fn_str", cfg.get("activation_fn", "relu")) not in ("relu", None):
        raise RefusedError(
            f"it has the activation {cfg.get('activation_fn_str')!r} before its threshold"
        )
    if relu and (extra := sorted(name for name in arrays if "threshold" in name)):
        raise RefusedError(
            f"its architecture {architecture!r} is a ReLU, which has no thresholds, and there is a "
            f"tensor {extra[0]!r}; SAELens refuses such a file, too: where it is a JumpReLU, say "
            '"architecture": "jumprelu" in its cfg.json'
        )
    if relu:
        threshold = np.zeros((), np.float32)
    elif "threshold" in arrays:
        (threshold,) = take(arrays, "threshold")
    elif "log_threshold" in arrays:
        (threshold,) = take(arrays, "log_threshold")
        threshold = np.exp(threshold)
    else:
        raise RefusedError("it has neither threshold nor log_threshold")
    transcoder = "transcoder" in architecture
    weights = weights_from(
        arrays, UPPER, threshold, encoder_by_feature=False, decoder_by_feature=True, sure=True
    )
    (m, d_in), d_out = weights.encoder.shape, weights.decoder.shape[1]
    for name, found in {"d_in": d_in, "d_sae": m, "d_out": d_out}.items():
        said = cfg.get(name)
        if said is not None and said != found:
            raise RefusedError(
                f"its cfg.json says {name} {said!r}, and its weights have {found}: the two files "
                "are of different models"
            )
    skip = None
    if "W_skip" in arrays:
        (skip,) = take(arrays, "W_skip")
        skip = skip.T
    subtract = not transcoder and bool(cfg.get("apply_b_dec_to_input", True))
    rule = cfg.get("normalize_activations") or "none"
    # Before version 5 a yes or no.
    rule = "expected_average_only_in" if rule is True else rule
    if rule == "covariance_whitening":
        raise RefusedError(
            "it whitens its inputs by a matrix that is not in the file: fold it with SAELens's "
            "fold_activation_whitening and save it again"
        )
    if rule == "expected_average_only_in":
        # SAELens applies no factor at inference, either: it is folded when the file is made.
        warn(
            "the file says normalize_activations 'expected_average_only_in' and holds no factor: "
            "inputs are taken as they are, as SAELens does, and should be scaled before."
        )
        rule = "none"
    if rule not in ("none", "layer_norm", "constant_norm_rescale"):
        raise RefusedError(f"its normalize_activations is {rule!r}, which is not known")
    if transcoder and rule != "none":
        raise RefusedError(f"it is a transcoder that normalises its inputs ({rule})")
    if cfg.get("finetuning_scaling_factor"):
        raise RefusedError("it has a finetuning_scaling_factor, which is not supported")
    kept = {k: cfg[k] for k in ("metadata", "reshape_activations") if cfg.get(k)}
    if not kept.get("metadata"):  # before version 6, all of it on one level
        inside = ("model_name", "hook_name", "hook_layer", "hook_head_index", "sae_lens_version")
        flat = {"hook_point": "hook_name", "hook_point_layer": "hook_layer"}
        found = {flat.get(k, k): v for k, v in cfg.items() if v is not None}
        kept["metadata"] = {k: found[k] for k in inside if k in found}
    return Autoencoder(
        weights,
        skip,  # type: ignore[arg-type]
        normalisation=rule,  # type: ignore[arg-type]
        subtract_decoder_bias=subtract,
        about={"saelens": kept, **({"transcoder": True} if transcoder else {})},
    )


def write_saelens(model: Autoencoder) -> Contents:
    """`cfg.json` and `sae_weights.safetensors`, as version 6 has them."""
    if model.normalisation == "none":
        # Subtraction has a place there, and is left where it changes nothing else.
        scaled = (model.input_scale, model.output_scale) != (1.0, 1.0)
        model = folded(model) if scaled else model
    elif (model.input_scale, model.output_scale) != (1.0, 1.0) or model.skip is not None:
        raise RefusedError(
            "SAELens has no place for a scale or a skip connection beside a normalisation"
        )
    arrays, skip = arrays_of(model)
    transcoder = model.is_transcoder
    kept = dict(model.about.get("saelens", {})) if isinstance(model.about, Mapping) else {}
    if transcoder and model.subtract_decoder_bias:
        model = folded(model)
        arrays, skip = arrays_of(model)
    cfg = {
        "architecture": "jumprelu",
        "d_in": model.dimension,
        "d_sae": model.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": model.subtract_decoder_bias,
        "normalize_activations": model.normalisation,
        "reshape_activations": kept.get("reshape_activations", "none"),
        "metadata": _metadata(model, kept.get("metadata", {})),
    }
    if transcoder:
        cfg["architecture"] = "jumprelu_transcoder"
        cfg["d_out"] = model.output_dimension
    if skip is not None:
        cfg["architecture"] = "jumprelu_skip_transcoder"
        arrays["W_skip"] = np.ascontiguousarray(skip.T)
    return {"cfg.json": json_bytes(cfg), "sae_weights.safetensors": safetensors.to_bytes(arrays)}


def _metadata(model: Autoencoder, kept: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of the model, and of itself.

    With no version, or one before 6, SAELens would take the file for an old one; and where it is
    not said by which version a model was trained, SAELens puts down its own.
    """
    version = str(kept.get("sae_lens_version"))
    first = version.partition(".")[0]
    metadata = {
        **kept,
        "sae_lens_version": version if first.isdecimal() and int(first) >= 6 else "6.0.0",
        "written_by": "jaxtrelu",
    }
    if "training" in model.about or "sae_lens_training_version" not in kept:
        metadata["sae_lens_training_version"] = None
    return metadata
