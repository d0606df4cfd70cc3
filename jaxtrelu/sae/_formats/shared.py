"""What the formats share: arrays by name, which axis is which, and what has to be folded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrelu.sae._model import Autoencoder, folded, in_numpy
from jaxtrelu.sae._warn import warn
from jaxtrelu.sae._weights import Weights

Arrays = Mapping[str, np.ndarray]
#: {name of a file: content}. The key "" is the path itself, for formats of one file.
Contents = dict[str, bytes]


class RefusedError(Exception):
    """Why a file cannot be read, or a model not written: a clause that begins in lower case."""


def take(arrays: Arrays, *names: str) -> list[np.ndarray]:
    """Some of the arrays, in float32. Raises RefusedError where one is missing or no number."""
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


def weights_from(
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
    encoder, decoder, b_enc, b_dec = take(arrays, *names)
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
        warn(
            f"with as many features as dimensions ({m}) nothing shows which axis is which: the "
            "matrices are taken as the format has them."
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


UPPER = ("W_enc", "W_dec", "b_enc", "b_dec")
LOWER = ("w_enc", "w_dec", "b_enc", "b_dec")
LINEAR = ("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias")


def arrays_of(model: Autoencoder) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """{W_enc (d, m), …, threshold} of a model without scale, and its skip connection."""
    w = in_numpy(model.weights, np.float32)
    arrays = {
        "W_enc": w.encoder.T, "W_dec": w.decoder, "b_enc": w.encoder_bias,
        "b_dec": w.decoder_bias, "threshold": w.threshold,
    }  # fmt: skip
    skip = None if model.skip is None else np.asarray(model.skip, np.float32)
    return {name: np.ascontiguousarray(a) for name, a in arrays.items()}, skip  # type: ignore


def folded_for(
    model: Autoencoder, title: str, *, skip: bool = False, transcoder: bool = False
) -> Autoencoder:
    """The model with everything folded that the format has no place for."""
    if model.skip is not None and not skip:
        raise RefusedError(f"{title} has no place for a skip connection")
    if model.is_transcoder and not transcoder:
        raise RefusedError(f"{title} has no place for a transcoder")
    try:
        return folded(model)
    except ValueError as error:
        raise RefusedError(str(error)) from None


def json_bytes(values: Any) -> bytes:
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
