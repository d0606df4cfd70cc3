"""Flax Linen layers: `ThresholdedReLU`, `JumpReLU` and `CompactMLP`."""

from jaxtrelu._layers import flax_is_missing

try:
    from jaxtrelu.linen._compact import CompactMLP
    from jaxtrelu.linen._jump_relu import JumpReLU
    from jaxtrelu.linen._thresholded_relu import ThresholdedReLU
except ImportError as error:
    raise flax_is_missing(error, __name__) from error

__all__ = ["CompactMLP", "JumpReLU", "ThresholdedReLU"]
