"""Products that skip the zeros of a thresholded activation, exactly."""

from jaxtrelu.sparse.activity import Activity, entry_sum
from jaxtrelu.sparse.public import sparse_mlp

__all__ = ["Activity", "entry_sum", "sparse_mlp"]
