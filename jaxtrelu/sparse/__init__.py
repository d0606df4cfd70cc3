"""Products that skip the zeros of a thresholded activation, exactly."""

from jaxtrelu.sparse._activity import Activity, entry_sum
from jaxtrelu.sparse._compact import compact_mlp
from jaxtrelu.sparse._gated import gated_mlp
from jaxtrelu.sparse._mlp import sparse_mlp
from jaxtrelu.sparse._mlp_vjp import FeatureGradients, sparse_mlp_vjp
from jaxtrelu.sparse._screen import Screen, prepare_screen

__all__ = [
    "Activity",
    "FeatureGradients",
    "Screen",
    "compact_mlp",
    "entry_sum",
    "gated_mlp",
    "prepare_screen",
    "sparse_mlp",
    "sparse_mlp_vjp",
]
