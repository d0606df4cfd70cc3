"""Products that skip the zeros of a thresholded activation, exactly."""

from jaxtrelu.sparse.activity import Activity, entry_sum
from jaxtrelu.sparse.glu import thresholded_glu
from jaxtrelu.sparse.public import gated_mlp, sparse_mlp
from jaxtrelu.sparse.residual import compact_mlp

__all__ = ["Activity", "compact_mlp", "entry_sum", "gated_mlp", "sparse_mlp", "thresholded_glu"]
