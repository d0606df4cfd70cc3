"""The back ends: Pallas kernels for GPU and TPU, each back end one object.

Importing this package makes them known to the primitives, and imports no kernel: Pallas is loaded
when a kernel is used.
"""

from jaxtrelu._backends.mosaic_gpu import MOSAIC_GPU
from jaxtrelu._backends.mosaic_tpu import MOSAIC_TPU
from jaxtrelu._primitive.lowering import register_back_end

register_back_end(MOSAIC_GPU)
register_back_end(MOSAIC_TPU)
