"""Flax Linen layers: `ThresholdedReLU`."""

from jaxtrelu._layer_core import flax_is_missing

try:
    from jaxtrelu.linen.thresholded_relu import ThresholdedReLU
except ImportError as error:
    raise flax_is_missing(error, __name__) from error

__all__ = ["ThresholdedReLU"]
