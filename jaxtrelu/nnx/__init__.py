"""Flax NNX layers, and the variable types by which thresholds are filtered."""

import importlib
from typing import Any

from jaxtrelu._layer_core import flax_is_missing

try:
    from jaxtrelu.nnx.compact import CompactMLP
    from jaxtrelu.nnx.jump_relu import JumpReLU
    from jaxtrelu.nnx.thresholded_relu import FixedThreshold, Threshold, ThresholdedReLU
except ImportError as error:
    raise flax_is_missing(error, __name__) from error

__all__ = [
    "CompactMLP",
    "FixedThreshold",
    "InputScale",
    "JumpReLU",
    "SparseAutoencoder",
    "Threshold",
    "ThresholdedReLU",
]


def __getattr__(name: str) -> Any:
    # These need optax, which Flax brings, and are imported when first used.
    if name in ("SparseAutoencoder", "InputScale"):
        return getattr(importlib.import_module("jaxtrelu.nnx.sparse_autoencoder"), name)
    raise AttributeError(f"module 'jaxtrelu.nnx' has no attribute {name!r}")
