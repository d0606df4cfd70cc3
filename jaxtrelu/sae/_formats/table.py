"""The formats, one object each: how it is recognised, what its arrays mean, and how to write it.

Rules were read from the loaders of the libraries themselves; docs/autoencoders.md has them in a
table, with the mistakes of other loaders that are not repeated here.
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxtrelu.sae._formats import npz, recipe, safetensors, torch_file
from jaxtrelu.sae._model import Autoencoder, folded, in_numpy
from jaxtrelu.sae._weights import Weights

Arrays = Mapping[str, np.ndarray]
#: {name of a file: content}. The key "" is the path itself, for formats of one file.
Contents = dict[str, bytes]

OWN_KIND, OWN_VERSION = "jaxtrelu.sae", 1


class RefusedError(Exception):
    """Why a file cannot be read, or a model not written: a clause that begins in lower case."""


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


# --- the library's own ---------------------------------------------------------------------------


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


# --- what formats share --------------------------------------------------------------------------


def _take(arrays: Arrays, *names: str) -> list[np.ndarray]:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise RefusedError(f"it has no {', '.join(missing)}")
    found = []
    for name in names:
        array = np.asarray(arrays[name])
        # bfloat16 is of kind "V".
        if array.dtype.kind not in "fiuV":
            raise RefusedError(f"its {name} holds {array.dtype}")
        found.append(array.astype(np.float32))
    return found


def _oriented(name: str, matrix: np.ndarray, wanted: tuple[int, int], also: bool) -> np.ndarray:
    """The matrix of shape `wanted`; where `also`, one that is its transpose is turned."""
    if matrix.shape == wanted:
        return matrix
    if also and matrix.shape == wanted[::-1]:
        return matrix.T
    raise RefusedError(
        f"its {name} has shape {matrix.shape} where biases and thresholds say {wanted}"
    )


def _five(
    arrays: Arrays,
    names: tuple[str, str, str, str],
    threshold: np.ndarray,
    *,
    encoder_by_feature: bool,
    decoder_by_feature: bool,
    sure: bool = False,
) -> Weights:
    """Weights from encoder, decoder and their biases, told by which axis is which.

    Some releases turn a matrix round. Where d = m nothing shows that, so the format's rule holds;
    `sure`: the library that writes the format fixes it, so nothing has to be said.
    """
    encoder, decoder, b_enc, b_dec = _take(arrays, *names)
    if b_enc.ndim != 1 or b_dec.ndim != 1:
        raise RefusedError(
            f"its biases have shapes {b_enc.shape} and {b_dec.shape}, and are no vectors"
        )
    m, d_out = len(b_enc), len(b_dec)
    if encoder.ndim != 2 or m not in encoder.shape:
        raise RefusedError(
            f"its {names[0]} has shape {encoder.shape}, with no axis of {m} features"
        )
    other = encoder.shape[1 - encoder.shape.index(m)]
    rule = (m, other) if encoder_by_feature else (other, m)
    encoder = _oriented(names[0], encoder, rule, not sure)
    rule = (m, d_out) if decoder_by_feature else (d_out, m)
    decoder = _oriented(names[1], decoder, rule, not sure)
    if not sure and m in (d_out, other):
        warnings.warn(
            f"with as many features as dimensions ({m}) nothing shows which axis is which: the "
            "matrices are taken as the format has them.",
            stacklevel=2,
        )
    if threshold.ndim == 0:
        threshold = np.full(m, threshold, np.float32)
    # A negative threshold lets nothing more through than 0 does: these formats apply a ReLU, too.
    threshold = np.maximum(threshold, 0)
    return Weights(
        encoder if encoder_by_feature else encoder.T,  # type: ignore[arg-type]
        b_enc,  # type: ignore[arg-type]
        threshold,  # type: ignore[arg-type]
        decoder if decoder_by_feature else decoder.T,  # type: ignore[arg-type]
        b_dec,  # type: ignore[arg-type]
    )


_UPPER = ("W_enc", "W_dec", "b_enc", "b_dec")
_LOWER = ("w_enc", "w_dec", "b_enc", "b_dec")
_LINEAR = ("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias")


def _numpy(model: Autoencoder) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """{W_enc (d, m), …, threshold} of a model without scale, and its skip connection."""
    w = in_numpy(model.weights, np.float32)
    arrays = {
        "W_enc": w.encoder.T, "W_dec": w.decoder, "b_enc": w.encoder_bias,
        "b_dec": w.decoder_bias, "threshold": w.threshold,
    }  # fmt: skip
    skip = None if model.skip is None else np.asarray(model.skip, np.float32)
    return {name: np.ascontiguousarray(a) for name, a in arrays.items()}, skip  # type: ignore


def _plain(
    model: Autoencoder, title: str, *, skip: bool = False, wide: bool = False
) -> Autoencoder:
    """The model with everything folded that the format has no place for."""
    if model.skip is not None and not skip:
        raise RefusedError(f"{title} has no place for a skip connection")
    if model.dimension != model.output_dimension and not wide:
        raise RefusedError(f"{title} has no place for a transcoder")
    try:
        return folded(model)
    except ValueError as error:
        raise RefusedError(str(error)) from None


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """A configuration. Raises RefusedError where it is no table."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise RefusedError(f"its {path.name} is no JSON") from None
    if not isinstance(found, dict):
        raise RefusedError(f"its {path.name} is no table")
    return found


# --- Gemma Scope ---------------------------------------------------------------------------------


def read_gemma_scope(arrays: Arrays) -> Autoencoder:
    """`params.npz`: no subtraction, no scale."""
    (threshold,) = _take(arrays, "threshold")
    return Autoencoder(
        _five(arrays, _UPPER, threshold, encoder_by_feature=False, decoder_by_feature=True)
    )


def write_gemma_scope(model: Autoencoder) -> Contents:
    """`params.npz`."""
    arrays, _ = _numpy(_plain(model, "Gemma Scope", wide=True))
    return {"": npz.to_bytes(arrays)}


def read_gemma_scope_2(arrays: Arrays) -> Autoencoder:
    """`params.safetensors`: the output adds x @ affine_skip_connection."""
    if "w_dec" in arrays and arrays["w_dec"].ndim == 3:
        raise RefusedError(
            f"it is a cross-layer transcoder whose decoder writes to {arrays['w_dec'].shape[1]} "
            "layers; take one layer of w_dec and b_dec"
        )
    (threshold,) = _take(arrays, "threshold")
    weights = _five(arrays, _LOWER, threshold, encoder_by_feature=False, decoder_by_feature=True)
    skip = None
    if "affine_skip_connection" in arrays:
        (skip,) = _take(arrays, "affine_skip_connection")
    return Autoencoder(weights, skip)  # type: ignore[arg-type]


def write_gemma_scope_2(model: Autoencoder) -> Contents:
    """`params.safetensors`."""
    arrays, skip = _numpy(_plain(model, "Gemma Scope 2", skip=True, wide=True))
    arrays = {name.lower(): array for name, array in arrays.items()}
    if skip is not None:
        arrays["affine_skip_connection"] = skip
    return {"": safetensors.to_bytes(arrays)}


# --- SAELens -------------------------------------------------------------------------------------

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
    if relu:
        threshold = np.zeros((), np.float32)
    elif "threshold" in arrays:
        (threshold,) = _take(arrays, "threshold")
    else:
        (threshold,) = _take(arrays, "log_threshold")
        threshold = np.exp(threshold)
    transcoder = "transcoder" in architecture
    weights = _five(
        arrays, _UPPER, threshold, encoder_by_feature=False, decoder_by_feature=True, sure=True
    )
    skip = None
    if "W_skip" in arrays:
        (skip,) = _take(arrays, "W_skip")
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
        warnings.warn(
            "the file says normalize_activations 'expected_average_only_in' and holds no factor: "
            "inputs are taken as they are, as SAELens does, and should be scaled before.",
            stacklevel=2,
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
        about={"saelens": kept},
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
    arrays, skip = _numpy(model)
    transcoder = skip is not None or model.dimension != model.output_dimension
    kept = dict(model.about.get("saelens", {})) if isinstance(model.about, Mapping) else {}
    if transcoder and model.subtract_decoder_bias:
        model = folded(model)
        arrays, skip = _numpy(model)
    cfg = {
        "architecture": "jumprelu",
        "d_in": model.dimension,
        "d_sae": model.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": model.subtract_decoder_bias,
        "normalize_activations": model.normalisation,
        "reshape_activations": kept.get("reshape_activations", "none"),
        # With no version, or one before 6, SAELens would take the file for an old one.
        "metadata": {**kept.get("metadata", {}), "sae_lens_version": "6.0.0"},
    }
    if transcoder:
        cfg["architecture"] = "jumprelu_transcoder"
        cfg["d_out"] = model.output_dimension
    if skip is not None:
        cfg["architecture"] = "jumprelu_skip_transcoder"
        arrays["W_skip"] = np.ascontiguousarray(skip.T)
    return {"cfg.json": _json(cfg), "sae_weights.safetensors": safetensors.to_bytes(arrays)}


# --- dictionary_learning -------------------------------------------------------------------------


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
        (threshold,) = _take(found, "threshold")
        weights = _five(found, _UPPER, threshold, encoder_by_feature=False, decoder_by_feature=True)
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
    (threshold,) = _take(found, "threshold")
    if threshold.ndim or not threshold >= 0:
        raise RefusedError(
            "its threshold is not set (-1), so only top-k over a batch is defined; train until "
            "dictionary_learning has set it (threshold_start_step)"
        )
    weights = _five(
        found, names, threshold, encoder_by_feature=True, decoder_by_feature=False, sure=True
    )
    about["k"] = int(found["k"])
    return Autoencoder(
        weights, input_scale=scale, output_scale=scale, subtract_decoder_bias=True,
        about={"dictionary_learning": about},
    )  # fmt: skip


def write_dictionary_learning(model: Autoencoder) -> Contents:
    """`ae.pt` and `config.json` of its JumpReLU autoencoder."""
    arrays, _ = _numpy(_plain(model, "dictionary_learning"))
    return {
        "ae.pt": torch_file.to_bytes(arrays),
        "config.json": _trainer(model, "JumpReluAutoEncoder", "JumpReluTrainer"),
    }


def write_batch_top_k(model: Autoencoder) -> Contents:
    """`ae.pt` and `config.json` of its BatchTopK autoencoder: one threshold, and its k."""
    threshold = np.asarray(model.threshold)
    k = model.about.get("dictionary_learning", {}).get("k") if model.about else None
    if (threshold != threshold[0]).any() or k is None:
        raise RefusedError(
            "a BatchTopK autoencoder has one threshold for all features, and a k; pass "
            "format='dictionary_learning' for its JumpReLU"
        )
    plain = _plain(model, "dictionary_learning")
    w = in_numpy(plain.weights, np.float64)
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
    return _json({"trainer": {**kept, "dict_class": kind, "trainer_class": trainer, **sizes}})


# --- Llama Scope ---------------------------------------------------------------------------------


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
        (threshold,) = _take(arrays, "log_jumprelu_threshold")
        threshold = np.exp(threshold)
    else:
        value = cfg.get("jump_relu_threshold")
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise RefusedError(f"its jump_relu_threshold is {value!r}: top-k has no threshold")
        threshold = np.asarray(value, np.float32)
    weights = _five(arrays, _LINEAR, threshold, encoder_by_feature=True, decoder_by_feature=False)
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
    return Autoencoder(
        weights,
        input_scale=scale[0],
        output_scale=scale[1],
        subtract_decoder_bias=bool(cfg.get("apply_decoder_bias_to_pre_encoder")),
        about={"llama_scope": {k: cfg[k] for k in keep if k in cfg}},
    )


def write_llama_scope(model: Autoencoder) -> Contents:
    """`hyperparams.json` and `checkpoints/final.safetensors`."""
    title = "Llama Scope"
    threshold = np.asarray(model.threshold)
    if (threshold != threshold[0]).any():
        raise RefusedError(f"{title} has one threshold for all features, and the model's differ")
    if model.dimension != model.output_dimension or model.skip is not None:
        raise RefusedError(f"{title} has no place for a transcoder or a skip connection")
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
        "hyperparams.json": _json(cfg),
        "checkpoints/final.safetensors": safetensors.to_bytes(arrays),
    }


# --- circuit-tracer ------------------------------------------------------------------------------


def read_circuit_tracer(arrays: Arrays) -> Autoencoder:
    """`layer_{i}.safetensors`, a transcoder: W_enc is (m, d), and the skip x @ W_skip.T."""
    (threshold,) = _take(arrays, "activation_function.threshold")
    weights = _five(
        arrays, _UPPER, threshold.reshape(-1) if threshold.size > 1 else threshold.reshape(()),
        encoder_by_feature=True, decoder_by_feature=True,
    )  # fmt: skip
    skip = None
    if "W_skip" in arrays:
        (skip,) = _take(arrays, "W_skip")
        skip = skip.T
    return Autoencoder(weights, skip)  # type: ignore[arg-type]


def write_circuit_tracer(model: Autoencoder) -> Contents:
    """`layer_{i}.safetensors`."""
    arrays, skip = _numpy(_plain(model, "circuit-tracer", skip=True, wide=True))
    arrays["W_enc"] = np.ascontiguousarray(arrays["W_enc"].T)
    arrays["activation_function.threshold"] = arrays.pop("threshold")
    if skip is not None:
        arrays["W_skip"] = np.ascontiguousarray(skip.T)
    return {"": safetensors.to_bytes(arrays)}


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


def recognise_arrays(arrays: Arrays) -> Autoencoder:
    """The model in a file of arrays alone, told by their names."""
    if "activation_function.threshold" in arrays:
        return read_circuit_tracer(arrays)
    if "w_enc" in arrays:
        return read_gemma_scope_2(arrays)
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
        weights = Weights(*(_take(arrays, *Weights._fields)))  # type: ignore[arg-type]
        scale = float(_take(arrays, "input_scale")[0])
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
