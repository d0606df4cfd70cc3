"""Flax NNX layers: `ThresholdedReLU` and the variable types by which thresholds are filtered."""

from jaxtrelu._layer_core import flax_is_missing

try:
    from jaxtrelu.nnx.thresholded_relu import FixedThreshold, Threshold, ThresholdedReLU
except ImportError as error:
    raise flax_is_missing(error, __name__) from error

__all__ = ["FixedThreshold", "Threshold", "ThresholdedReLU"]
