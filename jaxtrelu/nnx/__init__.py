"""Flax NNX layers, and the variable types by which thresholds are filtered."""

from jaxtrelu._layers import flax_is_missing

try:
    from jaxtrelu.nnx._compact import CompactMLP
    from jaxtrelu.nnx._jump_relu import JumpReLU
    from jaxtrelu.nnx._thresholded_relu import FixedThreshold, Threshold, ThresholdedReLU
except ImportError as error:
    raise flax_is_missing(error, __name__) from error

__all__ = [
    "CompactMLP",
    "FixedThreshold",
    "JumpReLU",
    "Threshold",
    "ThresholdedReLU",
]
