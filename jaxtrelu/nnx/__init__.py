"""Flax NNX layers, and the variable types by which thresholds are filtered.

In every layer the attribute `threshold` is the variable (a `Threshold` if learned, else a
`FixedThreshold`) or a plain number, and `threshold_value` is what x is compared with.
"""

from jaxtrelu._layers import flax_is_missing

try:
    from jaxtrelu.nnx._compact import CompactMLP
    from jaxtrelu.nnx._jump_relu import JumpReLU
    from jaxtrelu.nnx._swap import (
        SparsityCurve,
        Swapped,
        sparsity_curve,
        swap_activations,
        zeros_by_layer,
    )
    from jaxtrelu.nnx._swap_layers import SwappedLayer
    from jaxtrelu.nnx._thresholded_relu import ThresholdedReLU
    from jaxtrelu.nnx._thresholds import (
        FixedThreshold,
        Threshold,
        ThresholdScale,
        threshold_labels,
    )
except ImportError as error:
    raise flax_is_missing(error, __name__) from error

__all__ = [
    "CompactMLP",
    "FixedThreshold",
    "JumpReLU",
    "SparsityCurve",
    "Swapped",
    "SwappedLayer",
    "Threshold",
    "ThresholdScale",
    "ThresholdedReLU",
    "sparsity_curve",
    "swap_activations",
    "threshold_labels",
    "zeros_by_layer",
]
