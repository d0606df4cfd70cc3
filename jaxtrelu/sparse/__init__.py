"""Products that skip the zeros of a thresholded activation, exactly."""

from jaxtrelu.sparse._activity import Activity, entry_sum
from jaxtrelu.sparse._compact import compact_mlp
from jaxtrelu.sparse._gated import gated_mlp
from jaxtrelu.sparse._mlp import sparse_mlp
from jaxtrelu.sparse._mlp_vjp import FeatureGradients, sparse_mlp_vjp

__all__ = [
    "Activity",
    "FeatureGradients",
    "compact_mlp",
    "entry_sum",
    "gated_mlp",
    "sparse_mlp",
    "sparse_mlp_vjp",
]
