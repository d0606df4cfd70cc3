"""Products that skip the zeros of a thresholded activation, exactly."""

from jaxtrelu.sparse.activity import Activity, entry_sum
from jaxtrelu.sparse.glu import thresholded_glu
from jaxtrelu.sparse.public import sparse_mlp, sparse_mlp_vjp
from jaxtrelu.sparse.public_gated import gated_mlp
from jaxtrelu.sparse.residual import compact_mlp
from jaxtrelu.sparse.rows import RowGradients

__all__ = [
    "Activity",
    "RowGradients",
    "compact_mlp",
    "entry_sum",
    "gated_mlp",
    "sparse_mlp",
    "sparse_mlp_vjp",
    "thresholded_glu",
]
